"""The lock that keeps measurements alone on a machine, for whoever waits with anyio."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import anyio

from aiopt.errors import BackendUnavailable

from .machine.locks import LOCK, CannotLock, gate_of, open_lock, try_lock

__all__ = ["host_lock"]


async def _flock(path: str, *, exclusive: bool) -> int:
    """A descriptor with the lock.

    Polls, so that it can be cancelled: the system call would block a thread for ever.

    Raises:
        BackendUnavailable: `path` cannot be locked.
    """
    try:
        descriptor = open_lock(path)
    except CannotLock as error:
        raise BackendUnavailable(str(error)) from error
    pause = 0.001
    try:
        while not try_lock(descriptor, path, exclusive=exclusive):
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    except CannotLock as error:
        os.close(descriptor)
        raise BackendUnavailable(str(error)) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@asynccontextmanager
async def host_lock(
    kind: Literal["measuring", "building"], path: str = LOCK
) -> AsyncIterator[None]:
    """Measuring excludes everybody else on this host, building only measurements.

    Ends with the process, however that ends. Not re-entrant: a task that measures and asks to
    build waits for itself.

    Raises:
        BackendUnavailable: `path` cannot be locked.
    """
    exclusive = kind == "measuring"
    gate = await _flock(gate_of(path), exclusive=exclusive)
    try:
        lock = await _flock(path, exclusive=exclusive)
    finally:
        os.close(gate)
    try:
        yield
    finally:
        os.close(lock)
