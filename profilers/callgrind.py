"""Instructions by function, counted by valgrind's callgrind (the format of valgrind 3.19)."""

from collections.abc import Sequence
from typing import BinaryIO

from attrs import define, evolve, field, frozen

from aiopt.errors import CommandTimeout
from aiopt.events import Finding, Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Measured,
    NotAvailable,
    OutputStream,
    ProfileResult,
    Workspace,
)

from ._reading import Lines, folded

__all__ = ["Callgrind"]

_EVENT = "Ir"
_FIX = "apt-get install valgrind"


@define
class _Discard:
    def write(self, stream: OutputStream, data: bytes) -> None:
        """Nothing that the probe prints matters."""


@define
class _Profile:
    """Self cost by function of one file, and the totals that the file states."""

    own: dict[str, int] = field(factory=dict)
    names: dict[str, str] = field(factory=dict)
    summaries: list[int] = field(factory=list)
    totals: list[int] = field(factory=list)
    event: int | None = None
    positions: int = 1
    unknown: int = 0

    def read(self, file: BinaryIO) -> None:
        function, inclusive = None, False
        lines = Lines(file)
        for line in lines:
            if not line or line.startswith("#"):
                continue
            if line[0].isdigit() or line[0] in "+-*":
                # The line after calls= is what the called function cost, not self cost.
                if not inclusive:
                    self._cost(function, line)
                inclusive = False
            elif line.startswith("fn="):
                function = self._name(line[3:])
            elif line.startswith("cfn="):
                self._name(line[4:])
            elif line.startswith("calls="):
                inclusive = True
            elif line.startswith("events:"):
                events = line.split()[1:]
                self.event = events.index(_EVENT) if _EVENT in events else None
            elif line.startswith("positions:"):
                self.positions = len(line.split()) - 1
            elif line.startswith("summary:"):
                self._stated(self.summaries, line)
            elif line.startswith("totals:"):
                self._stated(self.totals, line)
            elif "=" not in line and ":" not in line:
                self.unknown += 1
        self.unknown += lines.too_long

    def _name(self, text: str) -> str:
        number, closed, name = text.partition(")")
        if not closed or not number.startswith("("):
            return text or "???"
        if name.strip():
            self.names[number] = name.strip()
        return self.names.get(number, "???")

    def _cost(self, function: str | None, line: str) -> None:
        count = self._count(line.split()[self.positions :])
        if function is None or count is None:
            self.unknown += 1
        else:
            self.own[function] = self.own.get(function, 0) + count

    def _stated(self, where: list[int], line: str) -> None:
        count = self._count(line.split()[1:])
        if count is None:
            self.unknown += 1
        else:
            where.append(count)

    def _count(self, columns: list[str]) -> int | None:
        if self.event is None:
            return None
        # Trailing costs that are zero may be left out.
        text = columns[self.event] if self.event < len(columns) else "0"
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def problem(self) -> str:
        """Why this profile cannot be believed; empty if it can."""
        counted = sum(self.own.values())
        if self.event is None:
            return f"no `events:` line with {_EVENT}"
        if not counted:
            return "no instructions were counted"
        stated = [sum(each) for each in (self.summaries, self.totals) if each]
        if not stated:
            return "neither `summary:` nor `totals:`"
        if any(each != counted for each in stated):
            return f"self costs add up to {counted}, not to the stated {stated}"
        return ""


@frozen(kw_only=True)
class Callgrind:
    """Counts instructions: 20 to 50 times slower, the same to the digit for one thread.

    The count also depends on argv[0], the size of the environment and what stdout is. It is blind
    to cache misses, I/O and parallelism. Of several runs the mean is given, with the least and the
    most as interval. A program that forks without exec overwrites its parent's profile.
    """

    valgrind: str = "valgrind"
    top: int = 20
    """How many functions become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        command = Command(argv=("true",), timeout=20.0, label="probe callgrind")
        try:
            completed = await workspace.run(self.wrap(command, "/dev/null"), _Discard())
        except CommandTimeout:
            return NotAvailable(reason="callgrind did not end on `true` within 20 s")
        if completed.ok:
            return None
        return NotAvailable(reason=f"callgrind of `true`: exit {completed.exit_code}", fix=_FIX)

    def wrap(self, command: Command, output: str) -> Command:
        prefix = (self.valgrind, "--tool=callgrind", f"--callgrind-out-file={output}")
        return evolve(command, argv=(*prefix, *command.argv))

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        if not profiles:
            return Failed(reason="no callgrind profile was written")
        own: dict[str, int] = {}
        sums, unknown = [], 0
        for number, file in enumerate(profiles, 1):
            profile = _Profile()
            profile.read(file)
            if problem := profile.problem():
                return Failed(reason=f"profile {number}: {problem}")
            for name, count in profile.own.items():
                own[name] = own.get(name, 0) + count
            sums.append(sum(profile.own.values()))
            unknown += profile.unknown
        runs = len(sums)
        total = sum(sums) / runs
        scalars = {
            "instructions": Scalar(
                value=total, unit="instructions", low=float(min(sums)), high=float(max(sums))
            )
        }
        findings = []
        for name, count in sorted(own.items(), key=lambda each: (-each[1], each[0]))[: self.top]:
            scalar = Scalar(value=count / runs, unit="instructions")
            scalars[f"instructions[{name}]"] = scalar
            share = f"{count / runs / total:.1%} of all instructions, its own"
            findings.append(Finding(where=name, what="instructions", scalar=scalar, detail=share))
        return Measured(
            scalars=scalars,
            stacks=folded({name.replace(";", ":"): count / runs for name, count in own.items()}),
            stacks_unit="instructions",
            findings=tuple(findings),
            notes=(f"{unknown} lines were not understood",) if unknown else (),
        )
