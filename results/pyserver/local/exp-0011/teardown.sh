#!/bin/sh
# End everything that was started and remove the run: ./teardown.sh [all]
. "$(dirname -- "$0")/lib.sh"
stop
if [ -f "$work/workload.name" ] && [ -d "$RUN_DIR" ]; then
    : # nothing else
    : # no usage asked for
    stop
fi
remove "$RUN_DIR"
rm -f "$work/workload.name" "$work"/service.*
if [ "${1:-}" = all ]; then
    remove "$work"
    remove "$TARGET_DIR"
fi
