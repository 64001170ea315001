"""What valgrind's callgrind writes (the format of valgrind 3.19, its manual's section 6.4).

# callgrind format
pid: 2149
cmd:  ./det 5
part: 1                         of what this process wrote: each time from zero
events: Ir
fl=(146) /demo/det.c            (number) name defines, (number) alone refers
fn=(614) sum_phase
7 15000607                      line and self cost; later lines may be relative: +2, -1, *
cfn=(600) cmp                   a call, its number, and on the line after that what it cost
calls=1 5
9 4610121
totals: 56531563                what all self costs of the part add up to

Such profiles may follow each other in one file, of one process or of several.
"""

import re
from typing import BinaryIO

from attrs import define, field

from ._reading import Lines

__all__ = ["EMPTY", "OTHERS", "Run", "read"]

EMPTY = "# empty: "
"""How a line begins that stands for the empty file of a process, whose id comes after it."""

OTHERS = "[others]"
"""Where the costs of functions beyond a number that no program has are."""

_EVENT = "Ir"
_RECURSION = re.compile(r"'[0-9]{1,9}$")
_MAX_FUNCTIONS = 1 << 17
_MAX_CALLS = 1 << 20
_MAX_NAME = 2000
_MAX_PROGRAMS = 100


@define
class Run:
    """The instructions that all processes of a run executed, by function."""

    own: dict[str, int] = field(factory=dict)
    """Self cost."""
    inclusive: dict[str, int] = field(factory=dict)
    """With what the function called, in the same process."""
    files: dict[str, str] = field(factory=dict)
    """The source file of each function, where it is known."""
    programs: dict[str, int] = field(factory=dict)
    """By the name of the program."""
    processes: int = 0
    unknown: int = 0
    """Lines that were not understood."""
    problem: str = ""
    """Why it cannot be believed; empty if it can."""

    @property
    def instructions(self) -> int:
        return sum(self.programs.values())


def read(file: BinaryIO) -> Run:
    """What one run left."""
    reading = _Reading()
    lines = Lines(file)
    for line in lines:
        reading.line(line)
    reading.end()
    run = reading.run
    run.unknown += lines.too_long
    if not run.problem and not run.instructions:
        run.problem = "no instructions were counted"
    return run


@define
class _Process:
    pid: str = ""
    command: str = ""
    own: dict[str, int] = field(factory=dict)
    files: dict[str, str] = field(factory=dict)
    calls: dict[tuple[str, str], int] = field(factory=dict)
    """What the calls of caller and callee cost, with what these called in turn."""

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command[:100]})" if self.pid else "the process"

    def inclusive(self) -> dict[str, int]:
        """Cost of each function with what it called.

        The calls within a recursion hold each other's costs. So of functions that call each other
        in a circle it is the lesser of two upper bounds: what the circle as a whole cost with all
        that it called, and what the function itself and all its calls cost. Of a function in no
        circle, and of one that calls but itself, both are exact or the lesser one is.
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
        circle_cost = [0] * len(names)
        with_calls = dict(self.own)
        for name, own in self.own.items():
            circle_cost[circles[number[name]]] += own
        for (caller, callee), called in self.calls.items():
            with_calls[caller] += called
            circle = circles[number[caller]]
            if callee not in number or circles[number[callee]] != circle:
                circle_cost[circle] += called
        total = sum(self.own.values())
        return {
            name: min(total, with_calls[name], circle_cost[circles[number[name]]]) for name in names
        }


@define
class _Part:
    """What has to add up."""

    event: int | None = None
    own: int = 0
    summary: int | None = None
    totals: int | None = None

    @property
    def begun(self) -> bool:
        return self.event is not None or self.totals is not None

    def problem(self) -> str:
        """Why it cannot be believed; empty if it can."""
        if self.event is None:
            return f"no `events:` line with {_EVENT}: it was cut, or counted something else"
        stated = self.summary if self.totals is None else self.totals
        cut = "" if self.totals is not None else "; it was cut"
        if stated is None:
            return "it does not say what its costs add up to: it was cut"
        if stated != self.own:
            return f"self costs add up to {self.own}, not to the stated {stated}{cut}"
        return ""


@define
class _Reading:
    run: Run = field(factory=Run)
    _process: _Process = field(factory=_Process)
    _part: _Part | None = None
    _names: dict[str, dict[str, str]] = field(factory=lambda: {"fn": {}, "fl": {}})
    """By kind: functions, and files."""
    _function: str | None = None
    _callee: str | None = None
    _file: str = ""
    _positions: int = 1
    _skip: bool = False
    _is_call: bool = False

    def line(self, line: str) -> None:
        if not line or line[0] == "#":
            if line.startswith("# callgrind format"):
                self._begin_part()
                self._names = {"fn": {}, "fl": {}}
            elif line.startswith(EMPTY):
                self._trouble(
                    f"process {line.removeprefix(EMPTY)[:20]} wrote nothing: it was killed, or "
                    "ran out of memory; all that a run starts has to end by itself or on TERM"
                )
        elif self._skip:  # the line after a jump is a place, without cost
            self._skip = False
        elif line[0].isdigit() or line[0] in "+-*":
            self._cost(line)
        else:
            self._keyed(line)

    def end(self) -> None:
        self._end_part()
        self._end_process()

    def _begin_part(self) -> None:
        self._end_part()
        self._part = _Part()

    def _end_part(self) -> None:
        if self._part is not None and (problem := self._part.problem()):
            self._trouble(f"{self._process}: {problem}")
        self._part = None
        self._function = self._callee = None
        self._file, self._positions = "", 1
        self._skip = self._is_call = False

    def _end_process(self, next_pid: str = "") -> None:
        process, run = self._process, self.run
        if process.own:
            run.processes += 1
            _add(run.own, process.own)
            _add(run.inclusive, process.inclusive())
            for name, file in process.files.items():
                if name in run.own:
                    run.files.setdefault(name, file)
            words = process.command.split(maxsplit=1)
            program = words[0].rpartition("/")[2][:_MAX_NAME] if words else ""
            _add(run.programs, {program or "?": sum(process.own.values())}, _MAX_PROGRAMS)
        self._process = _Process(next_pid)

    def _trouble(self, problem: str) -> None:
        self.run.problem = self.run.problem or problem

    def _keyed(self, line: str) -> None:
        key, mark, value = line.partition("=")
        if mark and key.isalpha() and len(key) <= 5:
            self._position(key, value)
            return
        key, mark, value = line.partition(":")
        if not mark:
            self.run.unknown += 1
        else:
            self._header(key, value.strip())

    def _header(self, key: str, value: str) -> None:
        if key == "pid":
            if self._part is None or self._part.begun:
                self._begin_part()
            if (pid := value[:20]) != self._process.pid:
                self._end_process(pid)
        elif key == "cmd":
            # After exec, another program has the same number.
            if self._process.command not in ("", value):
                self._end_process(self._process.pid)
            self._process.command = value
        elif key in ("events", "summary", "totals"):
            self._part = self._part or _Part()
            if key == "events":
                events = value.split()
                self._part.event = events.index(_EVENT) if _EVENT in events else None
            elif (count := self._count(value.split())) is None:
                self.run.unknown += 1
            elif key == "summary":
                self._part.summary = count
            else:
                self._part.totals = count
        elif key == "positions":
            self._positions = max(1, len(value.split()))

    def _position(self, key: str, value: str) -> None:
        match key:
            case "fl":
                self._file = self._name("fl", value)
            case "fi" | "fe" | "cfi" | "cfl" | "jfi":
                # Inlined code is its function's; after it there is a `fe` with the function's file.
                self._name("fl", value)
            case "fn":
                self._function = self._function_of(value)
                if self._file not in ("", "???"):
                    self._process.files.setdefault(self._function, self._file)
            case "cfn":
                self._callee = self._function_of(value)
            case "jfn":
                self._name("fn", value)
            case "calls":
                self._is_call = True
            case "jump" | "jcnd":
                self._skip = True
            case "ob" | "cob" | "rec" | "frfn":
                pass
            case _:
                self.run.unknown += 1

    def _function_of(self, text: str) -> str:
        name = _RECURSION.sub("", self._name("fn", text))
        own = self._process.own
        return name if name in own or len(own) < _MAX_FUNCTIONS else OTHERS

    def _name(self, kind: str, text: str) -> str:
        names = self._names[kind]
        number, closed, name = text.partition(")")
        if not closed or not number.startswith("("):
            return text[:_MAX_NAME] or "???"
        name = name.strip()[:_MAX_NAME]
        if name and (number in names or len(names) < 2 * _MAX_FUNCTIONS):
            names[number] = name
        return names.get(number, "???")

    def _cost(self, line: str) -> None:
        count = self._count(line.split()[self._positions :])
        is_call, self._is_call = self._is_call, False
        if self._part is None or self._function is None or count is None:
            self.run.unknown += 1
        elif not is_call:
            own = self._process.own
            own[self._function] = own.get(self._function, 0) + count
            self._part.own += count
        elif self._callee is not None:
            calls, call = self._process.calls, (self._function, self._callee)
            if call in calls or len(calls) < _MAX_CALLS:
                calls[call] = calls.get(call, 0) + count
            self._process.own.setdefault(self._function, 0)

    def _count(self, columns: list[str]) -> int | None:
        event = self._part.event if self._part is not None else None
        if event is None:
            return None
        # Trailing costs that are zero may be left out.
        text = columns[event] if event < len(columns) else "0"
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _add(sums: dict[str, int], more: dict[str, int], limit: int = _MAX_FUNCTIONS) -> None:
    for name, count in more.items():
        known = name if name in sums or len(sums) < limit else OTHERS
        sums[known] = sums.get(known, 0) + count
