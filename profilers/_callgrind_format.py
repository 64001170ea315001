"""What valgrind's callgrind writes (the format of valgrind 3.19, its manual's section 6.4).

# callgrind format
pid: 2149                       the parts of one process follow each other
events: Ir
fl=(146) /demo/det.c            (number) name defines, (number) alone refers
fn=(614) sum_phase
7 15000607                      line and self cost; later lines may be relative: +2, -1, *
cfn=(600) cmp                   a call, its number, and on the line after that what it cost
calls=1 5
9 4610121
totals: 56531563                what all self costs add up to
"""

import re
from typing import BinaryIO

from attrs import define, field

from ._reading import Lines

__all__ = ["OTHERS", "Process", "processes"]

OTHERS = "[others]"
"""Where the costs of functions beyond a number that no program has are."""

_EVENT = "Ir"
_RECURSION = re.compile(r"'[0-9]{1,9}$")
_MAX_FUNCTIONS = 1 << 17
_MAX_CALLS = 1 << 20


@define
class Process:
    """The instructions that one process executed, by function."""

    pid: str = ""
    own: dict[str, int] = field(factory=dict)
    """Self cost."""
    files: dict[str, str] = field(factory=dict)
    """The source file of each function, where it is known."""
    calls: dict[tuple[str, str], int] = field(factory=dict)
    """What the calls of caller and callee cost, with what these called in turn."""
    totals: list[int] = field(factory=list)
    """What each part states that its costs add up to."""
    event: int | None = None
    unknown: int = 0

    @property
    def instructions(self) -> int:
        return sum(self.own.values())

    def problem(self) -> str:
        """Why this profile cannot be believed; empty if it can."""
        if self.event is None:
            return f"no `events:` line with {_EVENT}"
        if not self.instructions:
            return "no instructions were counted"
        if not self.totals:
            return "it has no `totals:`: it was cut"
        if sum(self.totals) != self.instructions:
            stated = sum(self.totals)
            return f"self costs add up to {self.instructions}, not to the stated {stated}"
        return ""

    def inclusive(self) -> dict[str, int]:
        """Cost of each function with what it called.

        The costs of calls within a recursion hold each other. So functions that call each other in
        a circle are taken for one: all of them have the cost of the circle and of what it calls.
        """
        # scipy takes a second to import, and only here it is needed
        from scipy.sparse import coo_array  # type: ignore[import-untyped]
        from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

        names = [*self.own]
        number = {name: index for index, name in enumerate(names)}
        between = [(number[a], number[b]) for a, b in self.calls if a in number and b in number]
        rows, columns = zip(*between, strict=True) if between else ((), ())
        graph = coo_array(
            ([1] * len(between), (rows, columns)), shape=(len(names), len(names)), dtype=int
        )
        _, circles = connected_components(graph, connection="strong")
        cost = [0] * len(names)
        for name, own in self.own.items():
            cost[circles[number[name]]] += own
        for (caller, callee), called in self.calls.items():
            circle = circles[number[caller]] if caller in number else None
            if circle is not None and (callee not in number or circles[number[callee]] != circle):
                cost[circle] += called
        total = self.instructions
        return {name: min(total, cost[circles[number[name]]]) for name in names}


def processes(file: BinaryIO) -> tuple[list[Process], int]:
    """The processes of a file, which may be several profiles in a row, and how many lines were not
    understood.
    """
    reading = _Reading()
    lines = Lines(file)
    for line in lines:
        reading.line(line)
    unknown = reading.unknown + lines.too_long
    return [each for each in reading.processes.values() if each.own or each.event is not None], (
        unknown + sum(each.unknown for each in reading.processes.values())
    )


@define
class _Reading:
    processes: dict[str, Process] = field(factory=dict)
    unknown: int = 0
    _at: Process = field(factory=Process)
    _names: dict[str, dict[str, str]] = field(factory=dict)
    """By kind: functions, and files."""
    _function: str | None = None
    _callee: str | None = None
    _file: str = ""
    _positions: int = 1
    _skip: bool = False
    _is_call: bool = False

    def line(self, line: str) -> None:
        if not line or line.startswith("#"):
            if line.startswith("# callgrind format"):
                self._begin("")
        elif self._skip:  # the line after a jump is a place, without cost
            self._skip = False
        elif line[0].isdigit() or line[0] in "+-*":
            self._cost(line)
        else:
            self._keyed(line)

    def _begin(self, pid: str) -> None:
        self._at = self.processes.setdefault(pid, Process(pid))
        self._names = {"fn": {}, "fl": {}}
        self._function = self._callee = None
        self._file, self._positions, self._is_call = "", 1, False

    def _keyed(self, line: str) -> None:
        key, mark, value = line.partition("=")
        if mark and key.isalpha() and len(key) <= 5:
            self._position(key, value)
            return
        key, mark, value = line.partition(":")
        if not mark:
            self.unknown += 1
        elif key == "pid":
            self._begin(value.strip())
        elif key == "events":
            events = value.split()
            self._at.event = events.index(_EVENT) if _EVENT in events else None
        elif key == "positions":
            self._positions = max(1, len(value.split()))
        elif key == "totals":
            count = self._count(value.split())
            if count is None:
                self.unknown += 1
            else:
                self._at.totals.append(count)

    def _position(self, key: str, value: str) -> None:
        match key:
            case "fl":
                self._file = self._name("fl", value)
            case "fi" | "fe" | "cfi" | "cfl":
                self._name("fl", value)
            case "fn":
                self._function = self._function_of(value)
                if self._file not in ("", "???"):
                    self._at.files.setdefault(self._function, self._file)
            case "cfn":
                self._callee = self._function_of(value)
            case "calls":
                self._is_call = True
            case "jump" | "jcnd":
                self._skip = True
            case "ob" | "cob" | "jfi" | "jfn" | "rec" | "frfn":
                pass
            case _:
                self.unknown += 1

    def _function_of(self, text: str) -> str:
        name = _RECURSION.sub("", self._name("fn", text))
        known = name in self._at.own or len(self._at.own) < _MAX_FUNCTIONS
        return name if known else OTHERS

    def _name(self, kind: str, text: str) -> str:
        names = self._names.setdefault(kind, {})
        number, closed, name = text.partition(")")
        if not closed or not number.startswith("("):
            return text or "???"
        if name.strip() and (number in names or len(names) < 2 * _MAX_FUNCTIONS):
            names[number] = name.strip()
        return names.get(number, "???")

    def _cost(self, line: str) -> None:
        count = self._count(line.split()[self._positions :])
        is_call, self._is_call = self._is_call, False
        if self._function is None or count is None:
            self.unknown += 1
        elif not is_call:
            own = self._at.own
            own[self._function] = own.get(self._function, 0) + count
        elif self._callee is not None:
            call = self._function, self._callee
            if call in self._at.calls or len(self._at.calls) < _MAX_CALLS:
                self._at.calls[call] = self._at.calls.get(call, 0) + count
            self._at.own.setdefault(self._function, 0)

    def _count(self, columns: list[str]) -> int | None:
        event = self._at.event
        if event is None:
            return None
        # Trailing costs that are zero may be left out.
        text = columns[event] if event < len(columns) else "0"
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
