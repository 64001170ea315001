#!/bin/sh
# Begin a run of one workload, with whatever it needs to be there: ./deploy.sh [WORKLOAD]
. "$(dirname -- "$0")/lib.sh"
[ -d "$SOURCE_DIR" ] || fail "run ./build.sh first"
workload=${1:-@FIRST@}
check_workload "$workload"
stop
rm -f "$work"/service.* "$work"/workload.*
echo "$workload" >"$work/workload.name"
fresh_run
@RUN@
echo "deployed: $workload"
