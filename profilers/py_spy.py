"""Where a Python program spends its time: py-spy's samples of its stacks."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from attrs import evolve, frozen

from aiopt.events import Finding, Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Workspace,
)
from aiopt.stats import wilson

from ._reading import Lines, folded, largest, shares, without_line
from ._trial import missing

__all__ = ["PySpy"]

_FIX = "pip install py-spy"

# TERM ends what is profiled, not py-spy, which still has a file to write: it is started with TERM
# ignored. What py-spy starts is a small Python program that gives the profiled one TERM back and
# keeps its exit code, of which py-spy's own says nothing. py-spy gives up on a process that is no
# Python program when it looks, such as a shell that has not come to its `exec` yet. What it prints
# goes to stderr, since stdout is the program's.
_SCRIPT = """
out=$0; tool=$1; beside=$2; rate=$3; more=$4; launcher=$5; shift 5
command -v "$tool" >/dev/null || tool=$beside
command -v "$tool" >/dev/null || { echo "py-spy is not installed" >&2; exit 127; }
trap '' TERM
exec 3>&1
printf %s "$launcher" >"$out.launcher"
# shellcheck disable=SC2086
"$tool" record --subprocesses -r "$rate" $more -f raw -o "$out" -- \
    python3 -I -S "$out.launcher" "$out.code" "$@" >&2
code=$?
[ $code = 0 ] || exit $code
[ -s "$out.code" ] && exit "$(cat "$out.code")"
"""
_LAUNCHER = """
import os, signal, sys
pid = os.fork()
if pid == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(3, 1)
    os.close(3)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        print(error, file=sys.stderr)
        os._exit(127)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with open(sys.argv[1], "w") as file:
    file.write(str(code if code >= 0 else 128 - code))
"""
_SPIN = "import time; end = time.monotonic() + 0.3\nwhile time.monotonic() < end: pass\n"
_MAX_STACKS = 1 << 17


@frozen(kw_only=True)
class PySpy:
    """Samples the stacks of a Python program, and of the Python programs that it starts, from
    outside.

    Scalars: `samples`, and for the most expensive functions `self_share[NAME (FILE)]` and
    `total_share[NAME (FILE)]` with what they call (ratio, Wilson's 95 % interval). Shares are of
    the samples that were taken, which on a busy machine are fewer than were asked for. Several
    profiles are added up.

    With `gil`, only threads that hold the interpreter's lock are sampled, which is where Python
    code runs. Without it, C code that gives up the lock is seen, too, and so is much that only
    waits: py-spy takes a thread in recv() for a busy one.
    """

    py_spy: str = "py-spy"
    rate: int = 200
    """Samples a second."""
    gil: bool = True
    """Whether to sample only what holds the interpreter's lock."""
    native: bool = False
    """Whether to sample extensions written in C, too."""
    nonblocking: bool = False
    """Whether to let the program run while it is read: it costs less, and some stacks are torn."""
    top: int = 20
    """How many functions become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return await missing(self, workspace, ("python3", "-c", _SPIN), _FIX)

    def version(self) -> Command:
        beside = str(Path(sys.executable).with_name("py-spy"))
        script = '"$0" --version 2>/dev/null || exec "$1" --version'
        return Command(argv=("sh", "-c", script, self.py_spy, beside), timeout=20.0, label="py-spy")

    def wrap(self, command: Command, output: str) -> Command:
        flags = [
            ("--gil", self.gil),
            ("--native", self.native),
            ("--nonblocking", self.nonblocking),
        ]
        more = " ".join(flag for flag, wanted in flags if wanted)
        beside = str(Path(sys.executable).with_name("py-spy"))  # aiopt's own environment
        words = (output, self.py_spy, beside, str(self.rate), more, _LAUNCHER)
        return evolve(command, argv=("sh", "-c", _SCRIPT, *words, *command.argv))

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        stacks: dict[str, float] = {}
        ignored = dropped = lines = 0
        for profile in profiles:
            reading = Lines(profile)
            naming = False  # a process, whose command line may hold newlines
            for line in reading:
                naming = (naming or line.startswith("process ")) and '";' not in line
                if naming or not line:
                    continue
                lines += 1
                found = _stack(line)
                if found is None:
                    ignored += 1
                elif found[0] in stacks or len(stacks) < _MAX_STACKS:
                    stacks[found[0]] = stacks.get(found[0], 0.0) + found[1]
                else:
                    dropped += found[1]
            ignored += reading.too_long
        if not stacks:
            if ignored:
                return Failed(reason=f"no py-spy profile: none of {ignored} lines was understood")
            return Inconclusive(reason="no samples: the program was too short, or no Python runs")
        notes = []
        if ignored:
            notes.append(f"{ignored} lines were not understood")
        if dropped:
            notes.append(f"{dropped} samples of rare stacks were left out")
        return self._measured(stacks, notes)

    def _measured(self, stacks: dict[str, float], notes: list[str]) -> Measured:
        samples = sum(stacks.values())
        # Functions are compared without their lines, which move with every patch.
        own, total = shares((_without_lines(stack), count) for stack, count in stacks.items())
        scalars = {"samples": Scalar(value=samples, unit="samples")}
        for name, weights in (("self_share", own), ("total_share", total)):
            for function in largest(weights, self.top):
                scalars[f"{name}[{function}]"] = _share(weights[function], samples)
        hottest = _hottest_lines(stacks)
        findings = tuple(
            Finding(
                where=function,
                what="sampled",
                scalar=_share(own[function], samples),
                detail=f"{100 * total[function] / samples:.1f} % with what it calls; most of its "
                f"own in line {hottest[function]}",
            )
            for function in largest(own, self.top)
        )
        return Measured(
            scalars=scalars, stacks=folded(stacks), findings=findings, notes=tuple(notes)
        )


def _stack(line: str) -> tuple[str, int] | None:
    """Frames, root first, without the process that py-spy names before them, and their count.

    What names a process may have begun in an earlier line.
    """
    text, _, number = line.rpartition(" ")
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        return None
    frames = text.rpartition('";')[2] if '";' in text else text
    if frames.startswith("process ") and frames.endswith('"'):  # and no Python code in it
        frames = ""
    if not int(number):
        return None
    return frames or "[unknown]", int(number)


def _without_lines(stack: str) -> str:
    return ";".join(without_line(frame)[0] for frame in stack.split(";"))


def _hottest_lines(stacks: dict[str, float]) -> dict[str, str]:
    """The line of each function in which most of its own samples are."""
    lines: dict[str, dict[str, float]] = {}
    for stack, count in stacks.items():
        function, line = without_line(stack.rpartition(";")[2])
        found = lines.setdefault(function, {})
        found[line] = found.get(line, 0.0) + count
    return {function: max(found, key=lambda k: found[k]) for function, found in lines.items()}


def _share(weight: float, samples: float) -> Scalar:
    low, high = wilson(weight / samples, samples)
    return Scalar(value=weight / samples, unit="ratio", low=low, high=high)
