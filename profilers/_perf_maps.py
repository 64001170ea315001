"""Let perf forget where the libraries of a program were that has started another in its place.

perf (seen with 6.1 and libunwind) keeps the memory map of a process when it executes another
program, and a new process has its parent's. Both images map the C library, at different addresses,
and perf takes the lowest of them for the place of its unwinding tables: every second call stack of
a program that `sh`, `env` or `taskset` has started ends in the C library's function. So the maps
before the last `execve` of a process are given to a process that does not exist, in place, and what
executes a program inherits none.

A script for the place where perf has recorded; only Python's own modules. It changes nothing in a
file that it does not understand. The format is that of tools/perf/Documentation/
perf.data-file-format.txt and perf_event_open(2).
"""

import mmap
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

MMAP, COMM, FORK, SAMPLE, MMAP2 = 1, 3, 7, 9, 10
COMM_EXEC = 1 << 13
TIME = 1 << 2
AFTER_TIME = 1 << 6 | 1 << 9 | 1 << 7 | 1 << 16
"""ID, STREAM_ID, CPU and IDENTIFIER, which follow the time at the end of a record."""
EMPTY, LUMBER = 0x7FFFFFF0, 0x7FFFFFF1
"""Above every pid: a process without maps, the parent of all that execute a program; and one that
has the maps that nobody is to have, and so is nobody's parent."""


def time_back(data: mmap.mmap) -> int | None:
    """How far before the end of a record its time is; None if the records do not say."""
    size_of_attr, start, size = struct.unpack_from("<3Q", data, 16)
    if start + size > len(data):
        return None
    kinds = set()
    for at in range(start, start + size, size_of_attr or 1):
        kinds.add(struct.unpack_from("<Q", data, at + 24)[0] & (TIME | AFTER_TIME))
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    return 8 * (bin(kind & AFTER_TIME).count("1") + 1) if kind & TIME else None


def records(data: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Offset, type, misc and size of each record but samples, as far as the file is whole."""
    at, length = struct.unpack_from("<2Q", data, 40)
    end = min(at + length, len(data)) if length else len(data)
    while at + 8 <= end:
        kind, misc, size = struct.unpack_from("<IHH", data, at)
        if size < 8 or at + size > end:
            return
        if kind in (MMAP, COMM, FORK, MMAP2) and size >= 32:
            yield at, kind, misc, size
        at += size


def forget(data: mmap.mmap) -> None:
    """Change the records, in place."""
    back = time_back(data) if data[:8] == b"PERFILE2" else None
    if back is None:
        return
    executed: dict[int, int] = {}
    for at, kind, misc, size in records(data):
        if kind == COMM and misc & COMM_EXEC:
            (pid,) = struct.unpack_from("<I", data, at + 8)
            (time,) = struct.unpack_from("<Q", data, at + size - back)
            executed[pid] = max(time, executed.get(pid, 0))
    for at, kind, _, size in records(data):
        pid, parent = struct.unpack_from("<2I", data, at + 8)
        (time,) = struct.unpack_from("<Q", data, at + size - back)
        if time >= executed.get(pid, 0):
            continue
        if kind == FORK and pid != parent:
            struct.pack_into("<I", data, at + 12, EMPTY)
            struct.pack_into("<I", data, at + 20, EMPTY)
        elif kind in (MMAP, MMAP2):
            struct.pack_into("<2I", data, at + 8, LUMBER, LUMBER)


def main(path: str) -> None:
    """Of this file. What is wrong with one, perf says itself."""
    with (
        suppress(OSError, ValueError, struct.error),
        open(path, "r+b") as file,
        mmap.mmap(file.fileno(), 0) as data,
    ):
        forget(data)


if __name__ == "__main__":
    main(sys.argv[1])
