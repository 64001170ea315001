"""Chooses among jemalloc's heap dumps and names their addresses, where the program has run.

The text of this module is sent there, for a Python from 3.8 on without any packages. What it writes
has the form of `pprof --raw`, which jeprof reads too: a section of symbols, with comments of ours,
and the dumps as they are.

Of the processes, the one that allocated most is the program. Of its dumps, the one with the most
live bytes tells of the peak, and the last one of all allocations.
"""

from __future__ import annotations

import glob
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from bisect import bisect_right

__all__ = ["main"]

_SECONDS = 480.0
"""For all calls of binutils together."""
_WORTH_A_NOTE = 0.05


class Dump:
    """What a dump says in all, by the formula of `_heap_dumps.unsampled`."""

    def __init__(self, path: str, key: tuple[str, str], number: int) -> None:
        self.path = path
        self.written = (os.stat(path).st_mtime_ns, number)
        self.live = self.allocated = 0.0
        self.whole = False
        program = ""
        with open(path, errors="replace") as file:
            period = max(1, int(file.readline().partition("/")[2]))
            in_stack = False
            for line in file:
                if line.startswith("@"):
                    in_stack = True
                elif in_stack and line.startswith("  t*:"):
                    counts = [int(word) for word in re.findall(r"\d+", line)]
                    self.live += _unsampled(counts[0], counts[1], period)
                    self.allocated += _unsampled(counts[2], counts[3], period)
                    in_stack = False
                elif line.startswith("MAPPED_LIBRARIES"):
                    self.whole = True
                elif self.whole and "/" in line:
                    program = "/" + line.rstrip("\n").partition("/")[2]
                    break
        # A process that calls exec keeps its number, and what it was before has dumps too.
        self.process = (*key, program)


def _unsampled(objects: int, size: int, period: int) -> float:
    return size / -math.expm1(-(size / objects) / period) if objects and size else float(size)


def dumps_of(out: str) -> list[list[Dump]]:
    """Those of each process, the process that allocated most first."""
    processes: dict[tuple[str, str, str], list[Dump]] = {}
    for path in glob.glob(glob.escape(out) + ".*.heap"):
        found = re.search(r"\.(mine|rust)\.(\d+)\.(\d+)\.[a-z]\d*\.heap$", path)
        if found is None:
            continue
        try:
            dump = Dump(path, (found[1], found[2]), int(found[3]))
        except (ValueError, IndexError, OSError):
            continue
        if dump.whole:
            processes.setdefault(dump.process, []).append(dump)
    return sorted(processes.values(), key=_allocated, reverse=True)


def _allocated(dumps: list[Dump]) -> float:
    return max(dump.allocated or dump.live for dump in dumps)


def nothing(library: str) -> str:
    """Why there may be no dump: the library as the linker and jemalloc itself see it."""
    if library:
        said = subprocess.run(
            ["sh", "-c", ":"],
            env={"LD_PRELOAD": library, "MALLOC_CONF": "prof:true"},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ).stderr
        if "preload" in said:
            return "not available: " + " ".join(said.split())
        if re.search(r"Invalid conf \w+: prof\b", said):
            return f"not available: {library} was built without --enable-prof"
    return (
        "inconclusive: no heap dump was written: the program has no jemalloc with profiling in it "
        "(if it has one of its own, that has to be built with --enable-prof; a static program needs"
        " one), or it was killed, or ended by a signal that it does not handle, before it had "
        "allocated enough for a first dump (a smaller lg_interval)"
    )


def segments(path: str) -> list[tuple[int, int, int]]:
    """Offset, length and address of what an ELF file has loaded. The address need not be the
    offset."""
    with open(path, "rb") as file:
        head = file.read(64)
        wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
        (at,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        file.seek(at)
        table = file.read(size * count)
    found = []
    for number in range(count):
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(
                order + "IIQQQQ", table, number * size
            )
        else:
            kind, offset, address, _, length = struct.unpack_from(
                order + "IIIII", table, number * size
            )
        if kind == 1:
            found.append((offset, length, address))
    return found


class Binutils:
    """addr2line and nm, until the time is up."""

    def __init__(self) -> None:
        self.end = time.monotonic() + _SECONDS

    def lines(self, *argv: str, given: str = "") -> list[str]:
        """What a tool prints; nothing if it is not there or takes too long."""
        left = self.end - time.monotonic()
        if left <= 0 or not shutil.which(argv[0]):
            return []
        try:
            return subprocess.run(
                argv,
                input=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                timeout=left,
            ).stdout.splitlines()
        except (subprocess.TimeoutExpired, OSError):
            return []

    def extents(self, path: str) -> list[tuple[int, int]]:
        """Where its functions begin and end, as far as they have symbols."""
        ends: dict[int, int] = {}
        for which in ((), ("-D",)):
            for line in self.lines("nm", "-S", "--defined-only", *which, path):
                if found := re.match(r"([0-9a-f]+) ([0-9a-f]+) [tTwWiuV] ", line):
                    start = int(found[1], 16)
                    ends[start] = max(ends.get(start, 0), start + int(found[2], 16))
        return sorted(ends.items())

    def names(self, path: str, places: list[int], source: str) -> dict[int, str]:
        """`outermost (file:line)--inlined (file:line)` of addresses in a file."""
        told = self.lines(
            "addr2line",
            "-a",
            "-f",
            "-i",
            "-C",
            "-e",
            path,
            given="".join(f"{n:x}\n" for n in places),
        )
        answers: dict[int, list[str]] = {}
        answer: list[str] = []
        for line in told:
            if re.fullmatch(r"0x[0-9a-f]+", line):
                answer = answers.setdefault(int(line, 16), [])
            else:
                answer.append(line)
        names: dict[int, str] = {}
        extents: list[tuple[int, int]] | None = None
        for place, answer in answers.items():
            chain = [
                function.replace("--", "- -") + _place(where, source)
                for function, where in zip(answer[::2], answer[1::2])  # noqa: B905  (3.8 has no strict)
                if function != "??"
            ]
            if not chain:
                continue
            if answer[1].startswith("??"):
                # Without lines it goes by the nearest symbol before, however far off that is.
                extents = self.extents(path) if extents is None else extents
                at = bisect_right(extents, (place, 1 << 64)) - 1
                if at < 0 or place >= extents[at][1]:
                    continue
            names[place] = "--".join(reversed(chain))
        return names


def _place(where: str, source: str) -> str:
    file, _, line = re.sub(r" \(discriminator \d+\)$", "", where).rpartition(":")
    if not file.strip("?"):
        return ""
    file = file[len(source) :] if file.startswith(source) else file.rpartition("/")[2]
    return f" ({file}:{line})"


def symbols(texts: list[str], source: str) -> dict[int, str]:
    """Names by the address before the one that is printed.

    What is printed is where a call returns to; the byte before it is in the call.
    """
    addresses: set[int] = set()
    maps: dict[int, tuple[int, int, str]] = {}
    for text in texts:
        for line in text.splitlines():
            if line.startswith("@ "):
                addresses.update(int(word, 16) for word in line.split()[1:])
            elif found := re.match(r"(\w+)-(\w+) ..x. (\w+) \S+ \d+ +(/.*)", line):
                maps[int(found[1], 16)] = (int(found[2], 16), int(found[3], 16), found[4])
    starts = sorted(maps)
    wanted: dict[str, dict[int, int]] = {}
    for address in addresses:
        at = bisect_right(starts, address - 1) - 1
        if at >= 0 and address - 1 < maps[starts[at]][0]:
            _, offset, path = maps[starts[at]]
            wanted.setdefault(path, {})[address - 1] = address - 1 - starts[at] + offset
    tools = Binutils()
    names: dict[int, str] = {}
    for path, offsets in wanted.items():
        try:
            parts = segments(path)
        except (OSError, struct.error, IndexError):
            continue
        places = {
            address: place - offset + virtual
            for address, place in offsets.items()
            for offset, length, virtual in parts
            if offset <= place < offset + length
        }
        known = tools.names(path, sorted(set(places.values())), source) if places else {}
        for address, place in places.items():
            if place in known:
                names[address] = known[place]
    return names


def main(out: str, library: str) -> None:
    processes = dumps_of(out)
    if not processes:
        with open(out, "w") as file:
            file.write(f"# {nothing(library)}\n")
        return
    dumps, *others = processes
    peak = max(dumps, key=lambda dump: (dump.live, dump.written))
    last = max(dumps, key=lambda dump: dump.written)
    texts = []
    for path in dict.fromkeys([peak.path, last.path]):
        with open(path, errors="replace") as file:
            texts.append(file.read())
    with open(out, "w") as file:
        file.write("--- symbol\nbinary=program\n")
        if others and _allocated(others[0]) > _WORTH_A_NOTE * _allocated(dumps):
            file.write(
                f"# note: of {len(processes)} processes that wrote dumps this is the one that "
                f"allocated most; the next one, {others[0][0].process[2]}, allocated "
                f"{_allocated(others[0]) / _allocated(dumps):.0%} of that\n"
            )
        if not (shutil.which("addr2line") and shutil.which("nm")):
            file.write("# note: no names without addr2line and nm: apt-get install binutils\n")
        for address, name in sorted(symbols(texts, os.getcwd() + "/").items()):
            file.write(f"{address:#x} {name}\n")
        file.write("---\n--- heap\n")
        file.writelines(texts)


if __name__ == "__main__":
    main(*sys.argv[1:3])
