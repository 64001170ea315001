"""Which processes of a campaign are there, as /proc shows them."""

import os
import time
from contextlib import suppress
from pathlib import Path

from attrs import frozen

__all__ = ["Found", "of_campaign", "start_ticks", "supervisors_of", "wait_until_none"]


@frozen(kw_only=True)
class Found:
    """A process that belongs to a campaign."""

    pid: int
    life: int
    """That of the controller that began it; 0: it does not say."""
    command: str


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def of_campaign(base: Path) -> list[Found]:
    """Those whose command line or environment names the campaign's folder; no controller does."""
    found = []
    for pid in _pids():
        environment = _read(pid, "environ")
        command = _read(pid, "cmdline")
        if os.fsencode(base) not in command and os.fsencode(base) not in environment:
            continue
        life = 0
        for entry in environment.split(b"\0"):
            if entry.startswith(b"KILL_LIFE="):
                with suppress(ValueError):
                    life = int(entry.partition(b"=")[2])
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        if fields and fields[0] not in (b"Z", b"X"):
            text = command.replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(Found(pid=pid, life=life, command=text))
    return found


def start_ticks(pid: int) -> int | None:
    """When a process began; None if it is gone or a zombie."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None


def supervisors_of(controller: int) -> list[int]:
    """The supervisors below a controller."""
    found = []
    for pid in _pids():
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        below = bool(fields) and int(fields[1]) == controller
        if below and _read(pid, "comm").startswith(b"aiopt-superviso"):
            found.append(pid)
    return found


def wait_until_none(base: Path, seconds: float) -> list[Found]:
    """Wait for the processes of a campaign to end; returns those that did not."""
    end = time.monotonic() + seconds
    while (found := of_campaign(base)) and time.monotonic() < end:
        time.sleep(0.02)
    return found
