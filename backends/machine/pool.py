"""Supervisors that wait for work."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .command import Supervisor

__all__ = ["Pool"]

_KEPT = 4


class Pool:
    """Supervisors that wait for work, for all the workspaces of a backend.

    Starting one costs ten times what a command costs. They hold nothing while they wait, no lease
    and no lock, and they end when the controller does.
    """

    def __init__(self, isolate: bool, capabilities: Sequence[str]) -> None:
        self._isolate = isolate
        self._capabilities = tuple(capabilities)
        self._idle: list[Supervisor] = []
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[type[Pool], tuple[bool, tuple[str, ...]]]:
        return Pool, (self._isolate, self._capabilities)

    def take(self) -> Supervisor:
        """One that waits, or a new one.

        Raises:
            CannotStart: it cannot be started.
        """
        while self._idle:
            supervisor = self._idle.pop()
            if supervisor.alive():
                return supervisor
            supervisor.close()
        return Supervisor(isolate=self._isolate, capabilities=self._capabilities)

    def give(self, supervisor: Supervisor) -> None:
        """Keep it for the next; ends it if it is of no more use or there are enough."""
        if supervisor.usable and len(self._idle) < _KEPT:
            self._idle.append(supervisor)
        else:
            supervisor.close()

    def close(self) -> None:
        """End those that wait."""
        if os.getpid() != self._owner:
            return  # a fork of the controller, which has only copies
        while self._idle:
            self._idle.pop().close()
