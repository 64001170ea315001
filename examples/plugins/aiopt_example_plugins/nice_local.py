"""A backend: this machine, with every command at a lower priority.

    [environments.gentle]
    backend = "nice-local"
    options = { niceness = 10 }

It composes the local backend. `aiopt.testing.check_backend` says whether one keeps its promises.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, cast

from attrs import evolve, field, frozen

from aiopt.backends.local import LocalBackend
from aiopt.events import ProcessRef
from aiopt.protocols import Backend, Command, Completed, Service, Sink, Workspace, WorkspaceSpec


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
class NiceLocal:
    niceness: int = 5
    _local: LocalBackend = field(init=False, factory=LocalBackend)

    def session(self, marker: str) -> AbstractAsyncContextManager[Backend]:
        return nullcontext(self)

    @asynccontextmanager
    async def open(self, spec: WorkspaceSpec) -> AsyncIterator[Workspace]:
        async with self._local.open(spec) as workspace:
            yield cast(Workspace, NiceWorkspace(workspace, self.niceness))

    async def observe(self) -> Mapping[str, Any]:
        return {**await self._local.observe(), "niceness": self.niceness}

    def building(self) -> AbstractAsyncContextManager[None]:
        return self._local.building()

    def measuring(self) -> AbstractAsyncContextManager[None]:
        return self._local.measuring()

    async def kill_remains(
        self, marker: str, supervisors: Sequence[ProcessRef], spared: Sequence[str] = ()
    ) -> int:
        return await self._local.kill_remains(marker, supervisors, spared)
