"""One writing process per log: a lease that outlives a killed controller as long as its children.

There are two files beside the log, because whoever inherits a flock can also free it for everybody:

* `events.lock` is locked by the controller and inherited (`pass_fds`) by supervisors, which are
  ours and only ever close it;
* `stages.lock` is locked, shared, once per stage: the supervisor opens it anew, takes LOCK_SH and
  leaves that descriptor to the stage across exec. A stage that unlocks it frees only its own.

A lease is taken only when both are free. Nothing here ever unlocks, it closes: the lock goes when
the last process that holds it is gone. The files are never removed and hold no secrets: options of
the command line are left out.

flock does not reach other machines, and a process that closed its descriptors is not seen: whoever
resumes kills by process group what is left of logged stages before anything else.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import orjson

from aiopt.errors import ConcurrentWriteError, LogError, LogFullError

__all__ = ["Lease"]

_POLL_SECONDS = 0.05


class Lease:
    """A lease that is held. Close it, or use it as a context manager."""

    def __init__(self, fd: int, path: Path, stages_path: Path) -> None:
        self.fd = fd
        """For supervisors to inherit; never unlock it, only close it."""
        self.path = path
        self.stages_path = stages_path
        """What a supervisor opens anew for each stage, and locks with LOCK_SH."""

    @classmethod
    def acquire(
        cls, log_path: Path | str, wait: float = 0.0, on_wait: Callable[[str], None] | None = None
    ) -> Self:
        """Take the lease of the log at `log_path`.

        A controller that is alive is not waited for. For what a dead one left behind, wait up to
        `wait` seconds; `on_wait` is told once what is waited for. Raise ConcurrentWriteError that
        says who holds the lease, and LogError or LogFullError if the files cannot be written.
        """
        folder = Path(log_path).parent
        path, stages_path = folder / "events.lock", folder / "stages.lock"
        deadline = time.monotonic() + wait
        told = on_wait is None
        fd = _open(path)
        try:
            while (trouble := _trouble(fd, path, stages_path)) is not None:
                text, can_wait = trouble
                if not can_wait or time.monotonic() >= deadline:
                    raise ConcurrentWriteError(text)
                if on_wait is not None and not told:
                    on_wait(text)
                    told = True
                time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path, stages_path)

    def close(self) -> None:
        """Let go. Children that inherited it go on holding it until they are gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogError(
            f"{path}: cannot be opened for the lease of the log ({error.strerror}); the folder"
            " must be there and be writable"
        ) from error


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _trouble(fd: int, path: Path, stages_path: Path) -> tuple[str, bool] | None:
    """Lock and sign. Return None if the lease is ours, else why not and whether to wait."""
    if not _lock(fd):
        holder = _holder(fd)
        if holder is not None and _alive(holder):
            return (
                f"{path}: the log is being written by process {holder['pid']}"
                f" ({holder['command']}, since {holder['since']}); end it, or wait until it is done"
            ), False
        who = f"process {holder['pid']} ({holder['command']})" if holder else "somebody unknown"
        return (
            f"{path}: {who} took the lease and is gone, but its children still hold it"
            f"{_list(_holders(path))}; wait for them or kill them"
        ), True
    _sign(fd, path)
    stages = _open(stages_path)
    try:
        if _lock(stages):
            return None
        return (
            f"{stages_path}: stages of a controller that is gone are still running"
            f"{_list(_holders(stages_path))}; wait for them or kill them"
        ), True
    finally:
        os.close(stages)


def _sign(fd: int, path: Path) -> None:
    """Say in the file who holds it."""
    words = [os.path.basename(sys.argv[0] or "python")]
    for word in sys.argv[1:]:
        if word.startswith("-"):
            break
        words.append(word)
    line = {
        "pid": os.getpid(),
        "start_ticks": _start_ticks(os.getpid()),
        "host": socket.gethostname(),
        "command": " ".join(words),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    except OSError as error:
        raise LogFullError(f"{path}: no room to sign the lease ({error.strerror})") from error


def _holder(fd: int) -> dict[str, Any] | None:
    with suppress(ValueError):
        found = orjson.loads(os.pread(fd, 65536, 0))
        if isinstance(found, dict) and {"pid", "start_ticks", "command", "since"} <= found.keys():
            return found
    return None


def _start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks after boot; None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _alive(holder: dict[str, Any]) -> bool:
    ticks = _start_ticks(holder["pid"])
    return ticks is not None and ticks == holder["start_ticks"]


def _holders(path: Path) -> list[int]:
    """The processes, as far as we may see, that have `path` open with a lock on it."""
    stat = path.stat()
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone, or not ours
            for entry in (process / "fd").iterdir():
                with suppress(OSError):
                    that = entry.stat()
                    if (that.st_dev, that.st_ino) != (stat.st_dev, stat.st_ino):
                        continue
                    if "\nlock:" in (process / "fdinfo" / entry.name).read_text():
                        found.append(int(process.name))
                        break
    return sorted(found)


def _list(pids: list[int]) -> str:
    return f" (process {', '.join(map(str, pids))})" if pids else ""
