"""Instructions by function, counted by valgrind's callgrind."""

from collections.abc import Sequence
from typing import BinaryIO

from attrs import evolve, frozen

from aiopt.events import Finding, Scalar
from aiopt.protocols import Command, Failed, Measured, NotAvailable, ProfileResult, Workspace

from ._callgrind_format import Process, processes
from ._perf_trial import trial
from ._reading import folded

__all__ = ["Callgrind"]

_FIX = "apt-get install valgrind"
_WORTH_A_NOTE = 0.01

# A file for each process; without a process there is none, and that is what has to be seen.
_JOIN = 'set -- "$0" "$0".process.*; [ -e "$2" ] || exit 0; out=$1; shift; cat "$@" >"$out"'


@frozen(kw_only=True)
class Callgrind:
    """Counts instructions: 20 to 50 times slower, and the same to the digit for a single thread.

    Scalars: `instructions`; `instructions[function]`, its own, and `instructions_inclusive
    [function]`, with what it calls, for the most expensive ones. Functions that call each other in
    a circle are taken for one in the latter. Of several runs the mean is given, with the least and
    the most as interval.

    The counts also depend on the size of argv[0], of the environment and on what stdout is: those
    of one environment of aiopt can be compared. They are blind to cache misses, I/O and
    parallelism: a guard and a tie-breaker rather than an objective.

    Every process below the command is counted by itself, and the one that executed most is the
    program. Adding them up would count twice: a process that was forked has in its counts what its
    parent executed before.

    The stacks are single functions with their own instructions: there is a call graph, and no
    stacks that it was made of.
    """

    valgrind: str = "valgrind"
    top: int = 20
    """How many functions become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        result = await trial(self, workspace, ("true",), _FIX)
        if isinstance(result, Measured):
            return None
        if isinstance(result, NotAvailable):
            return result
        return NotAvailable(reason=f"of `true` it counted nothing: {result.reason}", fix=_FIX)

    def wrap(self, command: Command, output: str) -> Command:
        tool = (self.valgrind, "-q", "--tool=callgrind", "--trace-children=yes")
        out = f"--callgrind-out-file={output}.process.%p"
        return evolve(command, argv=(*tool, out, *command.argv))

    def finish(self, output: str) -> Command:
        return Command(argv=("sh", "-c", _JOIN, output), timeout=60.0, label="callgrind")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        """A file is what one run left, of one process or of several."""
        if not profiles:
            return Failed(reason="no callgrind profile was written")
        runs: list[Process] = []
        notes: list[str] = []
        for number, file in enumerate(profiles, 1):
            found, unknown = processes(file)
            if unknown:
                notes.append(f"{unknown} lines of profile {number} were not understood")
            if not found:
                return Failed(reason=f"profile {number}: no `events:` line with Ir")
            largest = max(found, key=lambda process: process.instructions)
            if problem := largest.problem():
                return Failed(reason=f"profile {number}: {problem}")
            others = sum(process.instructions for process in found) - largest.instructions
            if others > _WORTH_A_NOTE * largest.instructions:
                notes.append(
                    f"run {number} had {len(found) - 1} other processes; they executed "
                    f"{others:,} instructions, which are left out"
                )
            runs.append(largest)
        return self._measured(runs, notes)

    def _measured(self, runs: list[Process], notes: list[str]) -> Measured:
        sums = [run.instructions for run in runs]
        total = sum(sums) / len(sums)
        own, inclusive = _mean([run.own for run in runs]), _mean([r.inclusive() for r in runs])
        scalars = {
            "instructions": Scalar(
                value=total, unit="instructions", low=float(min(sums)), high=float(max(sums))
            )
        }
        findings = []
        for name in _largest(own, self.top):
            scalar = _of_runs([run.own.get(name, 0) for run in runs])
            scalars[f"instructions[{name}]"] = scalar
            places = (run.files[name] for run in runs if name in run.files)
            file = next((f"in {place.rpartition('/')[2]}; " for place in places), "")
            with_calls = f"{inclusive[name] / total:.1%} with what it calls"
            detail = f"{file}{own[name] / total:.1%} of all instructions itself, {with_calls}"
            finding = Finding(where=name, what="instructions", scalar=scalar, detail=detail)
            findings.append(finding)
        for name in _largest(inclusive, self.top):
            scalars[f"instructions_inclusive[{name}]"] = Scalar(
                value=inclusive[name], unit="instructions"
            )
        return Measured(
            scalars=scalars,
            stacks=folded({name.replace(";", ":"): count for name, count in own.items()}),
            stacks_unit="instructions",
            findings=tuple(findings[:30]),
            notes=tuple(notes),
        )


def _of_runs(counts: list[int]) -> Scalar:
    value = sum(counts) / len(counts)
    low, high = float(min(counts)), float(max(counts))
    return Scalar(value=value, unit="instructions", low=low, high=high)


def _mean(runs: list[dict[str, int]]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: sum(run.get(name, 0) for run in runs) / len(runs) for name in names}


def _largest(weights: dict[str, float], count: int) -> list[str]:
    return sorted(weights, key=lambda name: (-weights[name], name))[:count]
