"""Processes as /proc shows them, and killing what a dead controller left.

A process number alone proves nothing, since numbers are reused: compare the start time, and the
boot. A kill goes through a descriptor of the process (pidfd) that was opened *before* looking, so
it can hit only what was looked at.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

__all__ = ["Process", "StillThere", "boot_id", "kill_remains", "process_ref", "process_tree"]

_PATIENCE_SECONDS = 30.0


class Process(NamedTuple):
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    start_ticks: int
    boot_id: str


class StillThere(Exception):
    """Processes that do not end, whatever they are sent."""


@cache
def boot_id() -> str:
    """The random id of this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state (number 3) on; None if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def process_ref(pid: int) -> Process | None:
    """Who `pid` is now; None if it is gone or a zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, int(fields[19]), boot_id())


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _parents() -> dict[int, int]:
    """Of each living process its parent."""
    found = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None and fields[0] not in (b"Z", b"X"):
            found[pid] = int(fields[1])
    return found


def process_tree(root: int) -> set[int]:
    """The living descendants of a process, without itself."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def _ours() -> set[int]:
    """This process and its ancestors."""
    found = {1}
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
    return found


def _marked(pid: int, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(wanted) for entry in file.read().split(b"\0"))
    except OSError:
        return False


def _kill(pid: int, number: int, wanted: bytes | None) -> bool:
    """Signal a process, or only if it carries the marker `wanted`; whether that was done."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if wanted is not None and not _marked(pid, wanted):
            return False
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def kill_remains(marker: str, supervisors: Iterable[Process]) -> int:
    """Kill what carries a marker that begins with `marker`, and what is below the supervisors.

    Again and again, until nothing is left. An empty marker matches nothing. Never kills this
    process or its ancestors. Returns how many processes were killed; a supervisor itself does not
    count.

    Raises:
        StillThere: something was still there after 30 seconds.
    """
    wanted = b"AIOPT_JOB=" + os.fsencode(marker)
    refs = list(supervisors)
    killed: set[int] = set()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        spared = _ours()
        alive = [ref.pid for ref in refs if ref.pid not in spared and process_ref(ref.pid) == ref]
        below = {pid for root in alive for pid in process_tree(root)} - spared
        for pid in below:
            _kill(pid, signal.SIGSTOP, None)
        hit = {pid for pid in below if _kill(pid, signal.SIGKILL, None)}
        if marker:
            hit |= {
                pid for pid in _pids() if pid not in spared and _kill(pid, signal.SIGKILL, wanted)
            }
        killed |= hit
        if not hit:
            # Only now: as long as it lives, orphans stay below it and can be found.
            hit = {
                ref.pid for ref in refs if ref.pid in alive and _kill(ref.pid, signal.SIGKILL, None)
            }
        if not hit:
            return len(killed)
        if time.monotonic() > deadline:
            raise StillThere(
                f"processes {sorted(hit)} are still there {_PATIENCE_SECONDS:g} s after SIGKILL"
            )
        time.sleep(0.005)
