"""jemalloc's heap dumps (`heap_v2`), as it writes them and as `jeprof --raw` passes them on.

    heap_v2/65536                           the mean number of bytes from one sample to the next
      t*: 1737: 2085693 [25995: 91941391]   objects: bytes, live and [accumulated], of all threads
    @ 0x7f26b6aa2630 0x5596de8ac19f         a call stack, leaf first
      t*: 1484: 1519631 [1484: 1519631]     the same for it alone

    MAPPED_LIBRARIES:                       /proc/self/maps
    5596de8ac000-5596de8ad000 r-xp 00001000 fe:00 1843311     /srv/demo/bin/alloc

Symbols, where there are any, come first (`--- symbol`, `0xaddress name--inlined`;
`--- heap`). Several dumps may follow each other in one file.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import BinaryIO

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
_NUMBERED = re.compile(r"<[0-9a-f]{16}>")
"""What jeprof appends to tell equal names apart."""

_MAX_STACKS = 1 << 17
_MAX_SYMBOLS = 1 << 20
_MAX_DEPTH = 256


@frozen
class Estimate:
    """Of all allocations, from the sampled ones."""

    objects: float
    bytes: float
    variance: float
    """Of the bytes (Horvitz & Thompson, JASA 47 (1952) 663): an object that is much larger than the
    sampling period is always seen, and adds none."""


def unsampled(objects: int, size: int, period: int) -> Estimate:
    """Estimate for one stack, live or accumulated: n objects of mean size m were sampled with the
    probability 1 - exp(-m/S) each (jeprof's AdjustSamples for heap_v2; Poisson sampling as in
    tcmalloc).
    """
    if not objects or not size:
        return Estimate(float(objects), float(size), 0.0)
    seen = -math.expm1(-(size / objects) / period)
    estimate = size / seen
    return Estimate(objects / seen, estimate, estimate * estimate * (1 - seen) / objects)


@define
class Dump:
    """One dump: what was live when it was written, and what had been allocated until then."""

    period: int
    stacks: dict[str, list[int]] = field(factory=dict)
    """Addresses (leaf first, as printed) to live objects and bytes, accumulated objects and bytes.
    """
    left_out: int = 0

    @property
    def live(self) -> float:
        """Estimated live bytes."""
        return math.fsum(unsampled(n[0], n[1], self.period).bytes for n in self.stacks.values())

    @property
    def accumulated(self) -> float:
        """Estimated bytes of all allocations; 0 without `prof_accum`."""
        return math.fsum(unsampled(n[2], n[3], self.period).bytes for n in self.stacks.values())


@define
class Heap:
    """The dumps of one program, and what its addresses mean."""

    dumps: list[Dump] = field(factory=list)
    symbols: dict[int, str] = field(factory=dict)
    maps: list[tuple[int, int, int, str]] = field(factory=list)
    """Start, end, offset in the file, and path of what is mapped and can be executed."""
    unknown: int = 0

    def frames(self, addresses: str) -> list[str]:
        """The functions of a stack, root first; `object+0xoffset` for those without a symbol."""
        places = [int(word, 16) for word in addresses.split(" ")[1:_MAX_DEPTH]]
        # The library that was preloaded is stripped: its own frames would have wrong names.
        while len(places) > 1 and "libjemalloc" in self._object(places[0])[0]:
            del places[0]
        return [name for address in reversed(places) for name in self._names(address)]

    def is_known(self, addresses: str) -> bool:
        """Whether any of its functions has a name."""
        places = [int(word, 16) for word in addresses.split(" ")[1:_MAX_DEPTH]]
        return any(place in self.symbols or place - 1 in self.symbols for place in places)

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


def heap_of(file: BinaryIO) -> Heap:
    """All that can be read; lines that are not understood are counted."""
    heap, lines = Heap(), Lines(file)
    for _ in _read(heap, lines):
        pass
    heap.unknown += lines.too_long + (not lines.complete)
    heap.maps = sorted(set(heap.maps))
    return heap


def _read(heap: Heap, lines: Lines) -> Iterator[None]:
    section, dump, stack = "", None, None
    for line in lines:
        if not line or line.startswith(("# ", "binary=")):
            continue
        if line.startswith("---"):
            section = line.strip("- ")
        elif header := _HEADER.match(line):
            dump, stack, section = Dump(max(1, int(header[1]))), None, "heap"
            heap.dumps.append(dump)
            if len(heap.dumps) > 1000:
                del heap.dumps[0]
        elif line.startswith("MAPPED_LIBRARIES"):
            section = "maps"
        elif section == "maps":
            if (found := _MAPPED.match(line)) and len(heap.maps) < _MAX_SYMBOLS:
                start, end, offset = (int(found[n], 16) for n in (1, 2, 3))
                heap.maps.append((start, end, offset, found[4][:500]))
        elif section == "symbol":
            if (symbol := _SYMBOL.match(line)) and len(heap.symbols) < _MAX_SYMBOLS:
                heap.symbols[int(symbol[1], 16)] = symbol[2][:1000]
            else:
                heap.unknown += 1
        elif dump is None:
            heap.unknown += 1
        elif _STACK.match(line):
            stack = line
        elif counts := _COUNTS.match(line):
            if counts[1] == "*" and stack is not None:
                _add(dump, stack, [int(counts[n]) for n in (2, 3, 4, 5)])
        else:
            heap.unknown += 1
        yield


def _add(dump: Dump, stack: str, counts: list[int]) -> None:
    known = dump.stacks.get(stack)
    if known is not None:
        dump.stacks[stack] = [a + b for a, b in zip(known, counts, strict=True)]
    elif len(dump.stacks) < _MAX_STACKS:
        dump.stacks[stack] = counts
    else:
        dump.left_out += 1
