#!/bin/sh
# Begin a run of one workload, with whatever it needs to be there: ./deploy.sh [WORKLOAD]
. "$(dirname -- "$0")/lib.sh"
[ -d "$SOURCE_DIR" ] || fail "run ./build.sh first"
workload=${1:-mixed}
check_workload "$workload"
stop
rm -f "$work"/service.* "$work"/workload.*
echo "$workload" >"$work/workload.name"
fresh_run
"$python" "$here/helper.py" port >"$work/service.port"
{
    exec </dev/null >"$work/service.out" 2>"$work/service.err"
    in_workload 0 $(service_variables) "$python" "$here/helper.py" serve "$work/service" "$TARGET_DIR"/deploy.sh
} &
"$python" "$here/helper.py" ready "$work/service" "$(cat "$work/service.port")" line '^ready' 15 || {
    tail -n 5 "$work/service.out" "$work/service.err" >&2
    stop
    fail "the service was not ready within 15 s"
}
echo "deployed: $workload"
