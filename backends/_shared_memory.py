"""What commands leave in /dev/shm.

POSIX semaphores and shared memory live there, under names of the program's choosing, so commands
must be allowed to write to the folder that everybody shares. What a command left is what is new
since it began, belongs to this user, and is neither mapped nor open in any process.
"""

import os
import shutil
from contextlib import suppress

__all__ = ["FOLDER", "entries", "remove_leftovers"]

FOLDER = "/dev/shm"


def entries() -> frozenset[str]:
    """The names there now."""
    try:
        return frozenset(os.listdir(FOLDER))
    except OSError:
        return frozenset()


def remove_leftovers(before: frozenset[str]) -> None:
    """Remove what has appeared since `before` and nobody uses. Some 10 ms, if there is anything."""
    for path in (f"{FOLDER}/{name}" for name in entries() - before):
        with suppress(FileNotFoundError):
            if os.lstat(path).st_uid != os.getuid() or path in _used():
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def _used() -> set[str]:
    """The files and folders in /dev/shm that processes have open or mapped."""
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
    # Of a file in a folder the folder counts.
    return found | {"/".join(path.split("/")[:4]) for path in found}
