#!/bin/sh
# Print what is measured from outside.
. "$(dirname -- "$0")/lib.sh"
[ -f "$work/workload.name" ] || fail "run ./deploy.sh and ./workload.sh first"
in_workload 10 $(service_variables) "$TARGET_DIR"/collect.sh
