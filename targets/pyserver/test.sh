#!/bin/sh
# The correctness gate: the exit code says whether this source tree answers correctly.
set -eu
here=${TARGET_DIR:-$(cd "$(dirname "$0")" && pwd)}
export SOURCE_DIR="${SOURCE_DIR:-$PWD}"
exec "${PYTHON:-python3}" -B "$here/checks/run.py"
