#!/bin/sh
# Run the server in the foreground until SIGTERM. It prints `ready HOST:PORT` when it is ready.
set -eu
cd "${SOURCE_DIR:-.}"
exec "${PYTHON:-python3}" server.py \
    --host "${SERVICE_HOST:-127.0.0.1}" --port "${SERVICE_PORT:?}" \
    --audit "${RUN_DIR:?}/audit.log"
