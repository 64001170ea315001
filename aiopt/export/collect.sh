#!/bin/sh
# Print what is measured from outside.
. "$(dirname -- "$0")/lib.sh"
[ -f "$work/workload.name" ] || fail "run ./deploy.sh and ./workload.sh first"
@RUN@
