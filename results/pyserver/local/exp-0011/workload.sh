#!/bin/sh
# Run the workload and print its metrics: ./workload.sh [WORKLOAD]
. "$(dirname -- "$0")/lib.sh"
deployed=$(cat "$work/workload.name" 2>/dev/null || true)
if [ -z "$deployed" ] || [ "${1:-$deployed}" != "$deployed" ]; then
    "$here/deploy.sh" "$@" >&2
fi
in_workload 30 $(service_variables) "$TARGET_DIR"/workload.sh
: # no usage asked for
