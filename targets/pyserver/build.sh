#!/bin/sh
# Byte-compile the source tree; fails on a syntax error.
#
# checked-hash, because a tree that is patched in place within one second, to a file of the same
# size, would otherwise run the old bytecode.
set -eu
cd "${SOURCE_DIR:-.}"
exec "${PYTHON:-python3}" -m compileall -q -f --invalidation-mode checked-hash .
