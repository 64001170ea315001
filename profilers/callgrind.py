"""Instructions by function, counted by valgrind's callgrind."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from attrs import evolve, frozen

from aiopt.events import Finding, Scalar
from aiopt.protocols import Command, Failed, Measured, NotAvailable, ProfileResult, Workspace

from ._callgrind_format import EMPTY, Run, read
from ._reading import folded, largest
from ._trial import missing

__all__ = ["Callgrind"]

_FIX = "apt-get install valgrind"

# Before each of these the counts are written and begin anew. A forked process has what its parent
# counted; without this it would be counted twice. What a part costs is a file of some kB.
_FORKS = ("fork", "fork@*", "__fork", "__libc_fork", "vfork", "vfork@*", "__vfork", "posix_spawn*")

# A script that gets TERM is gone before what it started has written its profile, and with the first
# process of a command the others are killed. So a shell that stays is the first. What outlives a
# script that ended by itself gets TERM, for it would only be killed. The end of stderr is what is
# shown of a run that failed.
_STAY = """
others() {
    left=
    for file in /proc/[0-9]*/stat; do
        { read -r line <"$file"; } 2>/dev/null || continue
        set -- ${line##*) }
        [ "$3" = $$ ] && [ "$1" != Z ] && [ "${line%% *}" != $$ ] && left="$left ${line%% *}"
    done
}
term=
trap term=1 TERM
"$@"
code=$?
tries=100
others
[ "$term" ] || [ ! "$left" ] || kill -TERM $left 2>/dev/null
while [ "$left" ] && { [ "$term" ] || [ $tries -gt 0 ]; }; do
    tries=$((tries - 1))
    sleep 0.1
    others
done
if [ $code = 132 ]; then
    echo "SIGILL: for an instruction that valgrind does not know, build without -march=native"
elif [ $code != 0 ]; then
    for file in "$0".process.*; do
        [ ! -e "$file" ] || [ -s "$file" ] || echo "a process was killed, or out of memory:" \
            "under valgrind it can take twice as much, or more"
    done
fi >&2
exit $code
"""

# Of a process that was killed there is an empty file. Without any process there is no output, which
# is what has to be seen.
_JOIN = f"""
for file in "$0".process.*; do
    [ -e "$file" ] || exit 0
    [ -s "$file" ] || echo "{EMPTY}${{file##*.process.}}"
    cat "$file" && echo
done >"$0.joined" && mv "$0.joined" "$0"
"""


@frozen(kw_only=True)
class Callgrind:
    """Counts the instructions that a program executes, by function.

    Scalars, all in instructions:

    - `instructions`: of all processes of a run, with those of a script that starts the program;
    - `instructions[function]`: executed in the function itself;
    - `instructions_inclusive[function]`: with what it called, in the same process. Exact, but of
      functions that call each other in a circle an upper bound, never more than all.

    All are counted, not sampled. `low` and `high` are the least and the most of several runs, of
    which the value is the mean; of one run they are the value. A function is its name: those of one
    name are added up. The findings are the functions that executed most themselves. The stacks are
    single functions with their own instructions: callgrind has a graph of calls, and which stacks
    it was made of is not known.

    A single thread of a program that does the same each time has the same counts to the digit. What
    changes them besides: what stdout is, and the lengths of argv[0] and of the environment, by some
    dozen instructions; so compare within one environment of aiopt, whose paths are equally long.
    Threads run one at a time, and how long they wait for each other differs: about the fifth digit.

    It takes 20 to 50 times as long, and time in it means nothing. Instructions are blind to cache
    misses, mispredictions, I/O, parallelism and the width of vectors: a guard and a tie-breaker,
    not the objective (valgrind's manual, section 6).

    Not counted are what a script executes before it execs another program, and forked processes
    that are ended by KILL. Programs that are setuid, or for another processor than valgrind, do not
    run under it. An instruction that valgrind does not know ends the program by SIGILL: build
    without -march=native, or install a newer valgrind.
    """

    valgrind: str = "valgrind"
    """The program."""
    top: int = 20
    """How many functions become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return await missing(self, workspace, ("true",), _FIX)

    def version(self) -> Command:
        return Command(argv=(self.valgrind, "--version"), timeout=20.0, label="callgrind")

    def wrap(self, command: Command, output: str) -> Command:
        # A .valgrindrc in the folder of the candidate could change what is counted.
        tool = (self.valgrind, "--command-line-only=yes", "-q", "--tool=callgrind", "--vgdb=no")
        forks = [f"--dump-before={function}" for function in _FORKS]
        out = f"--callgrind-out-file={output.replace('%', '%%')}.process.%p"
        argv = (*tool, "--trace-children=yes", *forks, out, *command.argv)
        return evolve(command, argv=("sh", "-c", _STAY, output, *argv))

    def finish(self, output: str) -> Command:
        return Command(argv=("sh", "-c", _JOIN, output), timeout=60.0, label="callgrind")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        """A file is what one run left, of one process or of several."""
        if not profiles:
            return Failed(reason="no callgrind profile was written")
        runs: list[Run] = []
        for number, file in enumerate(profiles, 1):
            run = read(file)
            if run.problem:
                of = f"profile {number}: " if len(profiles) > 1 else ""
                return Failed(reason=f"{of}{run.problem}")
            runs.append(run)
        return self._measured(runs)

    def _measured(self, runs: list[Run]) -> Measured:
        sums = [run.instructions for run in runs]
        total = sum(sums) / len(sums)
        own, inclusive = _mean([run.own for run in runs]), _mean([run.inclusive for run in runs])
        scalars = {"instructions": _of_runs(sums)}
        findings = []
        for name in largest(own, self.top):
            scalar = _of_runs([run.own.get(name, 0) for run in runs])
            scalars[f"instructions[{name}]"] = scalar
            places = (run.files[name] for run in runs if name in run.files)
            file = next((f"in {place.rpartition('/')[2]}; " for place in places), "")
            with_calls = f"{inclusive[name] / total:.1%} with what it calls"
            detail = f"{file}{own[name] / total:.1%} of all instructions itself, {with_calls}"
            finding = Finding(where=name, what="instructions", scalar=scalar, detail=detail)
            findings.append(finding)
        for name in largest(inclusive, self.top):
            scalars[f"instructions_inclusive[{name}]"] = _of_runs(
                [run.inclusive.get(name, 0) for run in runs]
            )
        return Measured(
            scalars=scalars,
            stacks=folded({name.replace(";", ":"): count for name, count in own.items()}),
            stacks_unit="instructions",
            findings=tuple(findings[:30]),
            notes=tuple(_notes(runs)),
        )


def _notes(runs: list[Run]) -> Iterator[str]:
    if unknown := sum(run.unknown for run in runs):
        yield f"{unknown} lines were not understood"
    if (processes := sum(run.processes for run in runs)) > len(runs):
        programs = _mean([run.programs for run in runs])
        total = sum(programs.values())
        parts = [f"{name} {programs[name] / total:.1%}" for name in largest(programs, 5)]
        rest = f" and {len(programs) - 5} more" if len(programs) > 5 else ""
        yield f"{processes} processes; of the instructions: {', '.join(parts)}{rest}"


def _of_runs(counts: list[int]) -> Scalar:
    value = sum(counts) / len(counts)
    low, high = float(min(counts)), float(max(counts))
    return Scalar(value=value, unit="instructions", low=low, high=high)


def _mean(runs: list[dict[str, int]]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: sum(run.get(name, 0) for run in runs) / len(runs) for name in names}
