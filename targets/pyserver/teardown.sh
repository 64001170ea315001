#!/bin/sh
# Nothing outlives a run but its audit log.
set -eu
rm -f "${RUN_DIR:?}/audit.log"
