"""Supervisors that wait for work."""

from collections.abc import Sequence

from ._job import Supervisor

__all__ = ["Pool"]

_KEPT = 4


class Pool:
    """Supervisors that wait for work, of all the workspaces of a backend; starting one costs ten
    times what a command costs.

    They hold nothing while they wait, no lease and no lock, and they end when the controller does.
    """

    def __init__(self, isolate: bool, capabilities: Sequence[str]) -> None:
        self._isolate = isolate
        self._capabilities = tuple(capabilities)
        self._idle: list[Supervisor] = []

    def __reduce__(self) -> "tuple[type[Pool], tuple[bool, tuple[str, ...]]]":
        return Pool, (self._isolate, self._capabilities)

    def take(self) -> Supervisor:
        if self._idle:
            return self._idle.pop()
        return Supervisor(isolate=self._isolate, capabilities=self._capabilities)

    def give(self, supervisor: Supervisor) -> None:
        if supervisor.usable and len(self._idle) < _KEPT:
            self._idle.append(supervisor)
        else:
            supervisor.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
