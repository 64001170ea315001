#!/bin/sh
# Drive the running server; prints latency, throughput, errors and the digest of all answers.
set -eu
here=${TARGET_DIR:-$(cd "$(dirname "$0")" && pwd)}
exec "${PYTHON:-python3}" -B "$here/load.py"
