"""The grammar of what `perf script` prints, read line by line in bounded memory (perf 5 to 6).

    comm tid [cpu] sec.frac: [period] event: rest
            hexaddr symbol+0xoff (object)
            …                                          leaf first, then a blank line

comm may contain spaces, colons and brackets, so a header is anchored on what follows it. Lines
`PERF_RECORD_SWITCH …` and `PERF_RECORD_LOST …` stand alone, as does a sample without call chain,
whose place follows its event. A sample that its end is missing of is cut, and is dropped.
"""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from attrs import define, field

from ._reading import Lines

__all__ = [
    "UNKNOWN",
    "Frame",
    "Lost",
    "Sample",
    "Script",
    "Stacks",
    "Switch",
    "code",
    "folded_stack",
    "frame_of",
]

UNKNOWN = "[unknown]"

_HEADER = re.compile(
    r"(?P<comm>[^\t]{0,64}?) {1,20}(?:(?P<pid>-?[0-9]{1,10})/)?(?P<tid>-?[0-9]{1,10}) {1,20}"
    r"(?:\[(?P<cpu>-?[0-9]{1,6})\] {1,20})?(?P<s>[0-9]{1,10})\.(?P<frac>[0-9]{9}|[0-9]{6}): {1,40}"
    r"(?:(?P<period>[0-9]{1,19}) {1,20})?(?P<rest>[^ ].*)"
)
_SWITCH = re.compile(r"PERF_RECORD_SWITCH(?:_CPU_WIDE)? {1,4}(IN|OUT)(?: {1,4}(preempt))?\b")
_LOST = re.compile(r"PERF_RECORD_LOST(?:_SAMPLES)? lost ([0-9]{1,18})")
_EVENT = re.compile(r"([^ ]{1,200}?):(?: +(.*))?$")
_FRAME = re.compile(r"[ \t]*([0-9a-f]{1,16}) +([^ ].*)")
_OFFSET = re.compile(r"\+0x[0-9a-f]{1,16}$")
_LIBRARIES = re.compile(r"(?:ld|libc|libpthread|ld-linux|ld-musl)\b[^/]*|\[vdso\]|\[vsyscall\]")

_MAX_DEPTH = 1024
"""Frames of a stack; perf records at most 127 unless a sysctl says otherwise."""
_MAX_SYMBOL = 500
_MAX_CACHED = 1 << 16
_MAX_STACKS_SIZE = 64 << 20
_ENTRY = 100
"""Bytes that a stack takes beside its characters, roughly."""


class Frame(NamedTuple):
    """One place in a call chain."""

    symbol: str
    """Without its offset; `[unknown]` if perf found none."""
    object: str
    """The path of the file, or a name in brackets."""
    kernel: bool
    name: str
    """What it is called in folded stacks: its symbol, else its object in brackets."""

    @property
    def known(self) -> bool:
        return self.symbol != UNKNOWN


class Sample(NamedTuple):
    """An event with a place."""

    comm: str
    tid: int
    time: int
    """ns, on perf's clock."""
    period: int
    """In the unit of the event (ns for cpu-clock); 1 if it is not printed."""
    event: str
    """As perf prints it: with modifiers (`cpu-clock:u`) and terms (`cpu-clock/period=1003009/`)."""
    detail: str
    """The fields of a tracepoint."""
    frames: tuple[Frame, ...]
    """Leaf first."""


class Switch(NamedTuple):
    """A thread left the CPU or came back."""

    comm: str
    tid: int
    time: int
    out: bool
    preempt: bool


class Lost(NamedTuple):
    """The kernel could not write that many records."""

    records: int


def frame_of(address: str, symbol: str, object: str) -> Frame:
    """A frame of what perf prints of it. Kernel addresses are those with the highest bit set."""
    symbol = _OFFSET.sub("", symbol.strip())[:_MAX_SYMBOL] or UNKNOWN
    object = object[:_MAX_SYMBOL]
    high = len(address) == 16 and address[0] > "7" and object != UNKNOWN
    kernel = high or object.startswith(("[kernel", "[guest.kernel"))
    if symbol != UNKNOWN:
        name = symbol
    elif kernel:
        name = "[kernel]"
    else:
        name = f"[{object.strip('[]').rpartition('/')[2]}]"
    return Frame(symbol, object, kernel, name.replace(";", ":"))


def _frame(line: str) -> Frame | None:
    found = _FRAME.match(line)
    if found is None:
        return None
    address, rest = found.groups()
    text, end = rest.rstrip(), ""
    if text.endswith(" (deleted))"):
        text, end = f"{text[: -len(' (deleted))')]})", " (deleted)"
    # A path in parentheses ends the line; a symbol in C++ may have parentheses of its own.
    at = max(text.rfind(" (/"), text.rfind(" (["))
    at = at if at >= 0 else text.rfind(" (")
    if at < 0 or not text.endswith(")"):
        return None
    return frame_of(address, text[:at], text[at + 2 : -1] + end)


def folded_stack(frames: Iterable[Frame]) -> str:
    """Root first, joined by `;`, of frames that are leaf first.

    What follows a broken frame pointer is garbage, often dozens of unknown frames: one is kept.
    """
    names = [frame.name for frame in frames]
    names.reverse()
    if UNKNOWN in names:
        before = ["", *names[:-1]]
        names = [a for a, b in zip(names, before, strict=True) if not a == b == UNKNOWN]
    return ";".join(names)


def code(frames: Iterable[Frame]) -> list[Frame]:
    """The frames that the user's code is most likely in: neither of the kernel nor unknown, nor of
    the C library. Leaf first.
    """
    return [
        frame
        for frame in frames
        if frame.known
        and not frame.kernel
        and not _LIBRARIES.fullmatch(frame.object.rpartition("/")[2])
    ]


@define
class Stacks:
    """Weights by folded stack, in bounded memory; what found no room is in `left_out`."""

    weights: dict[str, float] = field(factory=dict)
    left_out: float = 0.0
    _size: int = field(default=0, init=False)

    def add(self, stack: str, weight: float) -> None:
        if stack in self.weights:
            self.weights[stack] += weight
        elif self._size + len(stack) <= _MAX_STACKS_SIZE:
            self._size += len(stack) + _ENTRY
            self.weights[stack] = weight
        else:
            self.left_out += weight


def _uncut(lines: Lines) -> Iterator[str]:
    """All lines, but not a last one without its end: that may be cut in the middle of a word."""
    before: str | None = None
    for line in lines:
        if before is not None:
            yield before
        before = line
    if before is not None and lines.complete:
        yield before


@define
class Script:
    """What `perf script` printed, one record after the other; iterate once.

    `unknown` counts the lines that were not understood, `cut` the records without an end,
    `comments` holds the first lines that begin with `# `.
    """

    file: BinaryIO
    unknown: int = 0
    cut: int = 0
    comments: list[str] = field(factory=list)
    _cache: dict[str, Frame] = field(factory=dict, init=False)
    _open: Sample | None = field(default=None, init=False)
    _frames: list[Frame] = field(factory=list, init=False)

    def __iter__(self) -> Iterator[Sample | Switch | Lost]:
        lines = Lines(self.file)
        for line in _uncut(lines):
            if line.startswith("\t"):
                self._stack_line(line)
            elif not line:
                if self._open is not None:
                    yield self._open._replace(frames=tuple(self._frames))
                    self._open = None
            elif line.startswith("# "):
                if len(self.comments) < 20:
                    self.comments.append(line[2:500])
            else:
                if self._open is not None:
                    self.cut += 1
                    self._open = None
                record = self._header(line)
                if isinstance(record, Sample) and not record.frames:
                    self._open, self._frames = record, []
                elif record is not None:
                    yield record
        self.unknown += lines.too_long
        if self._open is not None or not lines.complete:
            self.cut += 1
        self._open = None

    def _stack_line(self, line: str) -> None:
        frame = self._cache.get(line)
        if frame is None:
            frame = _frame(line)
            if frame is None:
                self.unknown += 1
                return
            if len(line) <= _MAX_SYMBOL:
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[line] = frame
        if self._open is None:
            self.unknown += 1
        elif len(self._frames) < _MAX_DEPTH:
            self._frames.append(frame)

    def _header(self, line: str) -> Sample | Switch | Lost | None:
        found = _HEADER.fullmatch(line.strip(" "))
        if found is None:
            self.unknown += 1
            return None
        comm, rest = found["comm"], found["rest"]
        tid = int(found["tid"])
        time = int(found["s"]) * 10**9 + int(found["frac"].ljust(9, "0"))
        if switch := _SWITCH.match(rest):
            return Switch(comm, tid, time, switch[1] == "OUT", switch[2] is not None)
        if lost := _LOST.match(rest):
            return Lost(int(lost[1]))
        event = _EVENT.match(rest)
        if event is None or rest.startswith("PERF_RECORD_"):
            self.unknown += 1
            return None
        name, detail = event[1], event[2] or ""
        period = int(found["period"] or 1)
        only = _frame(detail) if detail else None
        frames = (only,) if only is not None else ()
        return Sample(comm, tid, time, period, name, "" if only else detail, frames)
