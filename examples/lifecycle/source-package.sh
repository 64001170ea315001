#!/bin/sh
# [source] script = ["./source-package.sh"]: fetch the source into the current folder, which is empty.
#
# It runs once per campaign, as you and with your environment, so it may use the network and the
# settings of your package client. What it leaves is committed; a candidate's id depends on it, so
# the same version must always give the same files.
set -eu
package=example-package # ADAPT
version=1.2.3           # ADAPT: one exact version

# Python. For others: `npm pack NAME@VERSION`, `cargo download NAME=VERSION`, `apt-get source NAME=VERSION`.
python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$PWD/.fetched" "$package==$version"
tar -xzf "$PWD"/.fetched/*.tar.gz --strip-components=1
rm -rf "$PWD/.fetched"

# A checksum says when an index serves something else under the same version.
# echo "SHA256  setup.py" | sha256sum --check --quiet
