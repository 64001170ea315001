"""A command that lives while others run."""

from contextlib import suppress

import anyio

from aiopt.errors import BackendError
from aiopt.protocols import Completed

from ._job import Job

__all__ = ["LocalService"]


class LocalService:
    """A command that lives while others run. Made by `LocalWorkspace.start`."""

    def __init__(self, job: Job, pid: int) -> None:
        self._job = job
        self._pid = pid
        self._asked = False
        self.over = anyio.Event()
        self._failure: Exception | None = None

    @property
    def pid(self) -> int:
        """See `aiopt.protocols.Service.pid`."""
        return self._pid

    def exited(self) -> bool:
        """See `aiopt.protocols.Service.exited`."""
        return not self._asked and (self._job.outcome is not None or self._failure is not None)

    async def stop(self, grace: float = 5.0) -> Completed:
        """See `aiopt.protocols.Service.stop`.

        Raises:
            SessionLost: its supervisor went away; what it left has been killed.
        """
        await self.end(grace)
        if self._failure is not None:
            raise self._failure
        if self._job.outcome is None:
            raise BackendError(f"service {self._pid} ended without a result")
        return self._job.outcome

    async def end(self, grace: float) -> None:
        """Like `stop`, but says nothing about how it went."""
        if not self.exited():
            self._asked = True
            self._job.end_soon(grace)
        await self.over.wait()

    async def attend(self) -> None:
        """Pass its output on until it is over; what goes wrong is raised by `stop`."""
        try:
            await self._job.finished()
        except Exception as error:
            self._failure = error
            with suppress(BackendError):  # the first reason is the one to tell
                await self._job.kill(0)
        finally:
            self._job.close()
