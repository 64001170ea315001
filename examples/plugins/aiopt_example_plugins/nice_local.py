"""A backend: this machine, with every command at a lower priority.

    [environments.gentle]
    backend = "nice-local"
    options = { niceness = 10 }

It is the local backend but for one thing. `aiopt.testing.check_backend` says whether a backend
keeps its promises.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from attrs import evolve, frozen

from aiopt.backends.local import LocalBackend
from aiopt.protocols import Command, Completed, Service, Sink, Workspace, WorkspaceSpec


class NiceWorkspace:
    """A workspace that puts `nice` in front of what it runs and leaves the rest to another one."""

    def __init__(self, inner: Workspace, niceness: int) -> None:
        self._inner, self._nice = inner, ("nice", "-n", str(niceness))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, command: Command, sink: Sink) -> Completed:
        return await self._inner.run(evolve(command, argv=self._nice + command.argv), sink)

    async def start(self, command: Command, sink: Sink) -> Service:
        return await self._inner.start(evolve(command, argv=self._nice + command.argv), sink)


@frozen(kw_only=True)
class NiceLocal(LocalBackend):
    """The local backend with one more option."""

    niceness: int = 5

    @asynccontextmanager
    async def open(self, spec: WorkspaceSpec) -> AsyncIterator[Workspace]:
        async with super().open(spec) as workspace:
            yield cast(Workspace, NiceWorkspace(workspace, self.niceness))

    async def observe(self) -> Mapping[str, Any]:
        return {**await super().observe(), "niceness": self.niceness}
