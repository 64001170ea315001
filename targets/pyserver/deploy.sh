#!/bin/sh
# Run the server in the foreground until SIGTERM. It prints `ready HOST:PORT` when it is ready.
#
# On one core where taskset exists: the interpreter lock lets one thread run at a time anyway, and
# its threads' wandering between cores doubled the spread of cpu_seconds (2.6 % became 5.4 %).
set -eu
cd "${SOURCE_DIR:-.}"
pin=
if command -v taskset >/dev/null; then
    # The last core that we may use; the first one tends to serve interrupts.
    pin="taskset -c $(taskset -cp $$ | sed 's/.*[ ,-]//')"
fi
# shellcheck disable=SC2086  # a command and its arguments, or nothing
exec $pin "${PYTHON:-python3}" server.py \
    --host "${SERVICE_HOST:-127.0.0.1}" --port "${SERVICE_PORT:?}" \
    --audit "${RUN_DIR:?}/audit.log"
