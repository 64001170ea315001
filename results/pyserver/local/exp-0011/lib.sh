# What the five scripts share; each reads it first. Written by aiopt, without need of it.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
fail() { echo "$0: $*" >&2; exit 1; }
arm=${ARM:-candidate}
case $arm in
candidate) work=$here/work ;;
incumbent) work=$here/work-incumbent ;;
*) fail "ARM=$arm: candidate or incumbent" ;;
esac
SOURCE_DIR=$work/source
TARGET_DIR=$here/harness
RUN_DIR=$work/run
# In the environment of everything that a stage starts, so that nothing of it is left behind.
job=aiopt-export-$(printf %s "$work" | cksum | cut -d ' ' -f 1)
python=$(command -v python3) || fail "python3 is needed"

remove() {
    if [ -d "$1" ]; then
        chmod -R u+rwX "$1"
        rm -rf "$1"
    fi
}

fresh_run() {
    remove "$RUN_DIR"
    mkdir -p "$RUN_DIR/home" "$RUN_DIR/tmp"
}

# stage SECONDS [VARIABLE=VALUE…] COMMAND [ARGUMENT…]: in the source, with the variables of a stage.
stage() (
    cd "$SOURCE_DIR"
    seconds=$1
    shift
    set --  "$@"
    for name in LANG LC_ALL LC_COLLATE LC_CTYPE LC_MESSAGES LC_MONETARY LC_NUMERIC LC_TIME TZ; do
        if eval "[ -n \"\${$name+x}\" ]"; then
            eval "value=\$$name"
            set -- "$name=$value" "$@"
        fi
    done
    set -- env -i PATH="$PATH" HOME="$RUN_DIR/home" TMPDIR="$RUN_DIR/tmp" AIOPT_JOB="$job" \
        SOURCE_DIR="$SOURCE_DIR" TARGET_DIR="$TARGET_DIR" RUN_DIR="$RUN_DIR" "$@"
    if [ "$seconds" != 0 ] && command -v timeout >/dev/null; then
        set -- timeout --foreground -k 5 "$seconds" "$@"
    fi
    exec "$@"
)

# in_workload SECONDS …: a stage, with the variables of the workload that was deployed.
in_workload() {
    seconds=$1
    shift
    case $(cat "$work/workload.name") in
    mixed) stage "$seconds" WORKLOAD=mixed LOAD_MIX=mixed LOAD_REQUESTS=1000 LOAD_SEED=1 LOAD_WARMUP=40 "$@" ;;
    writes) stage "$seconds" WORKLOAD=writes LOAD_MIX=writes LOAD_REQUESTS=240 LOAD_SEED=2 LOAD_WARMUP=40 "$@" ;;
    esac
}

check_workload() {
    case " mixed writes " in
    *" $1 "*) ;;
    *) fail "no workload $1; there are: mixed writes" ;;
    esac
}

# SERVICE_HOST, SERVICE_PORT and SERVICE_PID, as far as there is a service.
service_variables() {
    [ ! -f "$work/service.port" ] || echo SERVICE_HOST=127.0.0.1
    [ ! -f "$work/service.port" ] || echo "SERVICE_PORT=$(cat "$work/service.port")"
    [ ! -f "$work/service.pid" ] || echo "SERVICE_PID=$(cut -d ' ' -f 1 "$work/service.pid")"
}

# The service first, then everything else that a stage of this folder has left running.
stop() { "$python" "$here/helper.py" stop "$work/service" "$job"; }

print_usage() { # PREFIX METRIC…
    file=$1.usage
    shift
    for name in "$@"; do
        [ ! -f "$file" ] || sed -n "s/^${name#service_}=/$name=/p" "$file"
    done
}
