"""How a command is run under coz, and what is written down beside the profile.

`coz run` itself sets the environment of coz; our library in it (`_coz_preload`) finds the process
that coz is for. Each such process has a profile of its own, which are joined at the end, after
lines of ours: `aiopt-program` for each of these processes, with what keeps coz from reading it;
`aiopt-other` for other executables that ran; `aiopt-load` with the time that the processes ran and
waited for a CPU, of all threads that lived long enough to be seen.
"""

from collections.abc import Sequence

from attrs import evolve

from aiopt.protocols import Command

from ._coz_preload import SOURCE

__all__ = ["END", "gathered", "launched"]

END = "aiopt-end"
"""Follows each profile; directly after a line that was cut, which is then none."""

# TERM goes to the whole process group. coz would end at once and leave its program alone, so that
# it is started with TERM ignored; the library sets it back for what coz starts.
_LAUNCH = r"""
out=$0; coz=$1; program=$2; code=$3; shift 3
command -v "$coz" >/dev/null || { echo "$coz is not installed" >&2; exit 127; }
for cc in cc gcc clang ''; do command -v "$cc" >/dev/null && break; done
[ "$cc" ] || { echo "there is no C compiler, which it needs to reach the program" >&2; exit 127; }
dir=$(mktemp -d) || exit 1
case $dir in *[:\ ]*) echo "the temporary folder has a colon or space: $dir" >&2; exit 1; esac
printf %s "$code" | "$cc" -w -O1 -shared -fPIC -x c - -o "$dir/preload.so" || exit 1
case $("$coz" run --help 2>&1) in *--legacy-format*) AIOPT_COZ_NEW=1; export AIOPT_COZ_NEW; esac
watch() {
    lines=0
    while [ -d "$dir" ]; do
        for process in "$out".process.*; do
            pid=${process##*.}
            for task in "/proc/$pid/task"/*; do
                [ $lines -lt 2000000 ] && read -r ran waited rest <"$task/schedstat" || continue
                echo "$pid.${task##*/} $ran $waited"
                lines=$((lines + 1))
            done
        done >>"$out.load"
        sleep 0.3
    done
}
trap '' TERM
watch </dev/null >/dev/null 2>&1 &
AIOPT_COZ_OUT=$out AIOPT_COZ_PROGRAM=$program AIOPT_COZ_PRELOAD=$dir/preload.so \
    LD_PRELOAD=$dir/preload.so${LD_PRELOAD:+:$LD_PRELOAD} "$coz" "$@"
code=$?
rm -rf "$dir"
wait
exit $code
"""

_GATHER = r"""
{
    for each in "$0".process.*; do cat "$each"; done
    sort -u "$0.others" | head -n 50 | sed 's/^aiopt-program/aiopt-other/'
    awk '{ ran[$1] = $2; waited[$1] = $3 }
        END { for (each in ran) { r += ran[each]; w += waited[each] }
              printf "aiopt-load\tran=%.0f\twaited=%.0f\n", r, w }' "$0.load"
    for each in "$0".profile*; do [ -e "$each" ] && cat "$each" && echo "$1"; done
} >"$0" 2>/dev/null
exit 0
"""


def launched(
    command: Command, coz: str, options: Sequence[str], program: str, output: str
) -> Command:
    """The command with coz in the processes below it whose executable has progress points.

    `options` are those of `coz run`; `program` is a pattern of the path of the executable instead.
    """
    own = ("sh", "-c", _LAUNCH, output, coz, program, SOURCE)
    run = ("run", "-o", f"{output}.profile", *options, "---")
    return evolve(command, argv=(*own, *run, *command.argv))


def gathered(output: str) -> Command:
    """What joins all that was written."""
    return Command(argv=("sh", "-c", _GATHER, output, END), timeout=60.0, label="coz")
