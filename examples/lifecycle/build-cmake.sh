#!/bin/sh
# [stages.build] run = ["./build-cmake.sh"]: an optimised build in build/, inside the source tree.
#
# In target.toml:
#   writable = ["~/.cache/aiopt-ccache"]        shared by all candidates; nothing else is
#   [artifact]
#   paths = ["build/program"]                   equal files: nothing changed, nothing is measured
set -eu
export CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/aiopt-ccache}" # ADAPT: as in `writable`; give it by [environment]
# Paths of candidates differ: without this every candidate would miss the cache, and the artifact
# would contain its own path and so never be equal to another.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=true
map="-ffile-prefix-map=$PWD=."

launcher=
if command -v ccache >/dev/null; then
    launcher="-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache"
fi
# shellcheck disable=SC2086 # the launcher is several words
cmake -S . -B build $launcher \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="$map -g" -DCMAKE_CXX_FLAGS="$map -g"
cmake --build build --parallel "$(nproc)" --target program # ADAPT
