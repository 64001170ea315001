"""jemalloc's heap dumps (`heap_v2`), as it writes them and as `jeprof --raw` passes them on.

    heap_v2/65536                           the mean number of bytes from one sample to the next
      t*: 1737: 2085693 [25995: 91941391]   objects: bytes, live and [accumulated], of all threads
    @ 0x7f26b6aa2630 0x5596de8ac19f         a call stack, leaf first
      t*: 1484: 1519631 [1484: 1519631]     the same for it alone

    MAPPED_LIBRARIES:                       /proc/self/maps
    5596de8ac000-5596de8ad000 r-xp 00001000 fe:00 1843311     /srv/demo/bin/alloc

Symbols, where there are any, come first (`--- symbol`, `0xaddress name--inlined`;
`--- heap`), and among them what `_heap_names` has to say (`# note: …`). Several dumps may follow
each other in one file.
"""

import math
import re
from bisect import bisect_right
from typing import BinaryIO, Literal

from attrs import define, field, frozen

from ._reading import Lines

__all__ = ["Dump", "Estimate", "Heap", "heap_of", "unsampled"]

_HEADER = re.compile(r"heap_v2/([0-9]{1,18})$")
_COUNTS = re.compile(
    r" *t(\*|[0-9]{1,9}): ([0-9]{1,18}): ([0-9]{1,18}) \[([0-9]{1,18}): ([0-9]{1,18})\]$"
)
_STACK = re.compile(r"@(?: 0x[0-9a-f]{1,16})+$")
_MAPPED = re.compile(
    r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ..x. ([0-9a-f]{1,16}) [0-9a-f:]+ [0-9]+ +(\S.*)$"
)
_SYMBOL = re.compile(r"(0x[0-9a-f]{1,16}) +(\S.*)$")
_SAID = re.compile(r"# (note|not available|inconclusive): (\S.*)$")
_NUMBERED = re.compile(r"<[0-9a-f]{16}>")
"""What jeprof appends to tell equal names apart."""

_MAX_STACKS = 1 << 17
_MAX_MAPS = 1 << 16
_MAX_TEXT = 64 << 20
"""Characters of the stacks of one dump, and of the symbols of a file."""
_MAX_SYMBOL = 4000
_MAX_DEPTH = 256


@frozen
class Estimate:
    """Of all allocations, from the sampled ones."""

    objects: float
    bytes: float
    noise: float
    """Relative variance of both (Horvitz & Thompson, JASA 47 (1952) 663): an object that is much
    larger than the sampling period is always seen, and adds none."""


def unsampled(objects: int, size: int, period: int) -> Estimate:
    """Estimate for one stack, live or accumulated: n objects of mean size m were sampled with the
    probability 1 - exp(-m/S) each (jeprof's AdjustSamples for heap_v2; Poisson sampling as in
    tcmalloc).
    """
    if not objects or not size:
        return Estimate(float(objects), float(size), 0.0)
    seen = -math.expm1(-(size / objects) / period)
    return Estimate(objects / seen, size / seen, (1 - seen) / objects)


@define
class Dump:
    """One dump: what was live when it was written, and what had been allocated until then."""

    period: int
    stacks: dict[str, list[int]] = field(factory=dict)
    """Addresses (leaf first, as printed) to live objects and bytes, accumulated objects and bytes.
    """
    text: int = 0
    left_out: int = 0

    def add(self, stack: str, counts: list[int]) -> None:
        """Count for a stack; one that there is no more room for is left out."""
        known = self.stacks.get(stack)
        if known is not None:
            self.stacks[stack] = [a + b for a, b in zip(known, counts, strict=True)]
        elif len(self.stacks) < _MAX_STACKS and self.text + len(stack) <= _MAX_TEXT:
            self.stacks[stack] = counts
            self.text += len(stack)
        else:
            self.left_out += 1

    def live(self) -> float:
        """Estimated live bytes."""
        return math.fsum(unsampled(n[0], n[1], self.period).bytes for n in self.stacks.values())

    def accumulated(self) -> float:
        """Estimated bytes of all allocations; 0 without `prof_accum`."""
        return math.fsum(unsampled(n[2], n[3], self.period).bytes for n in self.stacks.values())


@define
class Heap:
    """What the dumps of one program say, and what its addresses mean."""

    peak: Dump | None = None
    """The dump with most live bytes; None if there is no dump."""
    most: Dump | None = None
    """The dump that knows of most allocations: the last one, of one program."""
    symbols: dict[int, str] = field(factory=dict)
    maps: list[tuple[int, int, int, str]] = field(factory=list)
    """Start, end, offset in the file, and path of what is mapped and can be executed."""
    notes: list[str] = field(factory=list)
    nothing: tuple[Literal["not available", "inconclusive"], str] | None = None
    """Why there is no dump, if it is known."""
    unknown: int = 0

    def frames(self, addresses: str) -> tuple[list[str], bool]:
        """The functions of a stack, root first; `object+0xoffset` for those without a symbol.

        Frames of a library that is jemalloc are left out, and whether there were any comes second:
        such libraries are stripped, so that their own frames would have wrong names.
        """
        places = _places(addresses)
        own = 0
        while own < len(places) - 1 and "libjemalloc" in self._object(places[own])[0]:
            own += 1
        names = [name for address in reversed(places[own:]) for name in self._names(address)]
        return names, own > 0

    def is_known(self, addresses: str) -> bool:
        """Whether any of its functions has a name."""
        return any(
            place in self.symbols or place - 1 in self.symbols for place in _places(addresses)
        )

    def _names(self, address: int) -> list[str]:
        # pprof's tools name the byte before a return address, which is within the call.
        name = self.symbols.get(address - 1) or self.symbols.get(address)
        if name is not None:
            parts = [_NUMBERED.sub("", part) for part in name.split("--")]
            return [part.replace(";", ":") for part in parts if part]
        path, offset = self._object(address)
        return [f"{path.replace(';', ':')}+{offset:#x}"] if path else [f"{address:#x}"]

    def _object(self, address: int) -> tuple[str, int]:
        """The name of the file that is mapped there (empty if none is), and the place in it."""
        at = bisect_right(self.maps, (address, 1 << 64, 0, "")) - 1
        if at < 0 or not self.maps[at][0] <= address < self.maps[at][1]:
            return "", 0
        start, _, offset, path = self.maps[at]
        return path.rpartition("/")[2], address - start + offset


def _places(addresses: str) -> list[int]:
    return [int(word, 16) for word in addresses.split(" ")[1:]]


def heap_of(file: BinaryIO) -> Heap:
    """All that can be read; lines that are not understood are counted."""
    reader, lines = _Reader(), Lines(file)
    for line in lines:
        reader.read(line)
    reader.finish_dump()
    heap = reader.heap
    heap.unknown += lines.too_long + (not lines.complete)
    heap.maps = sorted(set(heap.maps))
    return heap


@define
class _Reader:
    heap: Heap = field(factory=Heap)
    section: str = ""
    dump: Dump | None = None
    stack: str = ""
    """Whose counts come next; empty before the first, whose counts are those of the header."""
    text: int = 0
    live: float = -1.0
    accumulated: float = -1.0

    def read(self, line: str) -> None:
        if header := _HEADER.match(line):
            self.finish_dump()
            self.dump, self.stack, self.section = Dump(max(1, int(header[1]))), "", "heap"
        elif line.startswith("---"):
            self.section = line.strip("- ")
        elif line.startswith("MAPPED_LIBRARIES"):
            self.section = "maps"
        elif line.startswith("# "):
            self._told(line)
        elif self.section == "maps":
            if (found := _MAPPED.match(line)) and len(self.heap.maps) < _MAX_MAPS:
                start, end, offset = (int(found[n], 16) for n in (1, 2, 3))
                self.heap.maps.append((start, end, offset, found[4][:500]))
        elif line and not line.startswith("binary="):
            understood = self._symbol(line) if self.section == "symbol" else self._counts(line)
            self.heap.unknown += not understood

    def finish_dump(self) -> None:
        """Only two dumps matter, so that no more are kept."""
        if self.dump is None:
            return
        if (live := self.dump.live()) > self.live:
            self.heap.peak, self.live = self.dump, live
        if (accumulated := self.dump.accumulated()) >= self.accumulated:
            self.heap.most, self.accumulated = self.dump, accumulated

    def _told(self, line: str) -> None:
        said = _SAID.match(line)
        if said is None:
            return
        what, text = said[1], said[2][:500]
        if what == "note":
            self.heap.notes = [*self.heap.notes, text][:10]
        else:
            self.heap.nothing = (
                "inconclusive" if what == "inconclusive" else "not available",
                text,
            )

    def _symbol(self, line: str) -> bool:
        found = _SYMBOL.match(line)
        if found is None or self.text > _MAX_TEXT:
            return False
        name = found[2]
        while len(name) > _MAX_SYMBOL and "--" in name:  # then without what is inlined deepest
            name = name.rpartition("--")[0]
        name = name[:_MAX_SYMBOL]
        self.heap.symbols[int(found[1], 16)] = name
        self.text += len(name) + 100
        return True

    def _counts(self, line: str) -> bool:
        if self.dump is None:
            return False
        if _STACK.match(line):
            self.stack = " ".join(line.split(" ", _MAX_DEPTH + 1)[: _MAX_DEPTH + 1])
            return True
        counts = _COUNTS.match(line)
        if counts is None:
            return False
        if counts[1] == "*" and self.stack:
            self.dump.add(self.stack, [int(counts[n]) for n in (2, 3, 4, 5)])
        return True
