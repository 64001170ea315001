#!/bin/sh
# [stages.build] run = ["./build-cmake.sh"]: an optimised build in build/, inside the source tree.
#
# In target.toml:
#   writable = ["~/.cache/aiopt-ccache"]        shared by all candidates; nothing else is
#   [artifact]
#   paths = ["build/program"]                   equal files: nothing changed, nothing is measured
#   [layout]
#   variable = "LAYOUT"                         neutral rebuilds; build-layout.sh says more
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
# An object in front of all others moves their code and data; 0 is the plain build.
mkdir -p build
pad=
if [ "${LAYOUT:-0}" -ne 0 ]; then
    pad=$PWD/build/pad.o
    bytes=$((16 * (1 + LAYOUT * 37 % 255)))
    printf '%s\n' .text ".skip $bytes" .data ".skip $bytes" '.section .note.GNU-stack,"",%progbits' |
        ${CC:-cc} -c -x assembler -o "$pad" -
fi
# shellcheck disable=SC2086 # the launcher is several words
cmake -S . -B build $launcher \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="$map -g" -DCMAKE_CXX_FLAGS="$map -g" -DCMAKE_EXE_LINKER_FLAGS="$pad"
cmake --build build --parallel "$(nproc)" --target program # ADAPT
