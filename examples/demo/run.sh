#!/bin/sh
# `make demo`: search the example service for patches that make it cheaper, from a pool of thirty
# of which most do not help. Options are passed on: make demo ARGS="--budget 10m".
#
# Its log is in results/demo, apart from the one of results/pyserver that came with the source.
#
# A demo that was interrupted goes on where it stopped; one that finished begins anew.
set -eu
cd "$(dirname "$0")/../.."
target=pyserver
results=${AIOPT_RESULTS:-results/demo}
log=$results/$target/events.db
command -v aiopt >/dev/null || {
    echo "aiopt is not installed here; \`make demo\` does that" >&2
    exit 1
}

unfinished() {
    [ -f "$log" ] && aiopt show "$log" --json | python3 -c '
import json, sys
latest = json.load(sys.stdin)["campaigns"][-1:]
sys.exit(not any(c["status"] != "finished" and c["proposer"] != "try" for c in latest))'
}

code=2
if unfinished; then
    echo "going on with the demo that was interrupted" >&2
    code=0
    aiopt resume "$target" --results "$results" || code=$?
fi
if [ "$code" = 2 ]; then # nothing to resume, or what there is cannot be resumed
    code=0
    aiopt run "$target" --results "$results" --new "$@" || code=$?
fi
case $code in
0 | 3) # 3: finished, and nothing was kept; for a demo that is an outcome like any other
    echo
    echo "each experiment as scripts that measure again without aiopt:"
    aiopt export "$log" --results "$results"
    ;;
*) exit "$code" ;;
esac
