"""What commands leave in /dev/shm.

POSIX semaphores and shared memory live there, under names of the program's choosing, so commands
must be allowed to write to the folder that everybody shares. Nothing tells who made a file, and
other programs of this user keep theirs there. So only that is removed which is new since the
command began, belongs to this user, is neither mapped nor open in any process, *and* has the name
of a semaphore or segment that is nothing without its processes. Anything else stays.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

__all__ = ["FOLDER", "entries", "remove_leftovers"]

FOLDER = "/dev/shm"

# glibc's sem_open, Python's multiprocessing.shared_memory, PostgreSQL's dynamic segments
_EPHEMERAL = ("sem.", "psm_", "PostgreSQL.")


def entries() -> frozenset[str]:
    """The names there now."""
    try:
        return frozenset(os.listdir(FOLDER))
    except OSError:
        return frozenset()


def remove_leftovers(before: frozenset[str]) -> None:
    """Remove what has appeared since `before` and nobody uses. Some 10 ms, if there is anything."""
    new = [name for name in entries() - before if name.startswith(_EPHEMERAL)]
    used = _used() if new else set()
    for path in (f"{FOLDER}/{name}" for name in new):
        with suppress(OSError):
            details = os.lstat(path)
            ours = stat.S_ISREG(details.st_mode) and details.st_uid == os.getuid()
            if ours and path not in used:
                os.unlink(path)


def _used() -> set[str]:
    """The files in /dev/shm that processes have open or mapped."""
    found: set[str] = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                path = line.rstrip(b"\n").split(None, 5)[5:]
                if path and path[0].startswith(b"/dev/shm/"):
                    found.add(os.fsdecode(path[0]))
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    path_there = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                    if path_there.startswith(FOLDER):
                        found.add(path_there)
    return found
