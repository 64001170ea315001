"""The lock that keeps measurements alone on a machine.

A lock that all users of a machine share needs something that exists on every machine, that every
user can open, and that stays when they are gone. A lock file would be left over, would belong to
whoever came first, and another user could not open it in a sticky folder. flock works on folders,
and needs no right to write: so it is `/` itself. Nothing is written. Two containers have two roots
and do not see each other's lock; then measure from outside, or give both one path.

Builders that overlap without a gap would keep a measurement waiting for ever. So everybody first
passes a gate: a measurement keeps it shut while it waits, and no new builder gets in. A builder
that waits holds it too, so that it comes before the next measurement.
"""

from __future__ import annotations

import errno
import fcntl
import os

__all__ = ["LOCK", "CannotLock", "gate_of", "open_lock", "try_lock"]

LOCK = "/"
"""What is locked by default."""

_GATE = "/proc"


class CannotLock(Exception):
    """A path that cannot be locked by anybody."""


def gate_of(path: str) -> str:
    """What is locked while waiting for the lock `path`."""
    return _GATE if path == LOCK else os.path.dirname(path) or "."


def open_lock(path: str) -> int:
    """A descriptor to lock, which is closed to unlock.

    Each use opens anew: the lock belongs to the open file description, so two tasks of one process
    exclude each other.

    Raises:
        CannotLock: `path` cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotLock(f"cannot open {path} for the lock of this host: {error}") from error


def try_lock(descriptor: int, path: str, *, exclusive: bool) -> bool:
    """Whether the lock was free, and is held now.

    Raises:
        CannotLock: `path` cannot be locked.
    """
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        raise CannotLock(f"cannot lock {path}: {error}; set another lock_path") from error
    return True
