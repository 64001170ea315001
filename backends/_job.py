"""A command under a supervisor, for whoever waits with anyio."""

import os

import anyio
from anyio import to_thread

from aiopt.errors import BackendError, BackendUnavailable, SessionLost
from aiopt.protocols import Completed, Sink, Usage

from .machine.command import (
    KILL_SECONDS,
    CannotStart,
    Outcome,
    Request,
    RunningCommand,
    Supervisor,
    SupervisorLost,
)
from .machine.processes import StillThere, kill_remains

__all__ = ["Job", "completed"]


def completed(outcome: Outcome) -> Completed:
    """An outcome in the words of the protocols."""
    signaled = os.WIFSIGNALED(outcome.status)
    return Completed(
        exit_code=None if signaled else os.WEXITSTATUS(outcome.status),
        signal=os.WTERMSIG(outcome.status) if signaled else None,
        usage=Usage(
            wall_seconds=outcome.wall_seconds,
            cpu_seconds=outcome.cpu_seconds,
            peak_rss_bytes=outcome.peak_rss_bytes,
            involuntary_switches=outcome.involuntary_switches,
            major_faults=outcome.major_faults,
        ),
        dropped_bytes=outcome.dropped_bytes,
        strays_killed=outcome.strays_killed,
    )


class Job:
    """One command under a supervisor: drives its output and learns how it ends."""

    def __init__(
        self,
        supervisor: Supervisor,
        number: int,
        request: Request,
        *,
        stdin: bytes,
        ruleset: int | None,
        lease: int | None,
        lock: int | None,
        tell: bool,
        sink: Sink,
        cap: int,
        marker: str,
    ) -> None:
        """Begin the command. `marker` is what only its processes carry.

        Raises:
            SessionLost: the supervisor is gone.
        """
        self.outcome: Completed | None = None
        self._supervisor, self._marker = supervisor, marker
        try:
            self._command = RunningCommand(
                supervisor,
                number,
                request,
                stdin=stdin,
                ruleset=ruleset,
                lease=lease,
                lock=lock,
                tell=tell,
                stdout=lambda data: sink.write("stdout", data),
                stderr=lambda data: sink.write("stderr", data),
                cap=cap,
            )
        except SupervisorLost as lost:
            raise SessionLost(str(lost)) from None

    async def started(self) -> int:
        """Wait until it has a process number.

        Raises:
            SessionLost: the supervisor is gone.
        """
        while self._command.pid is None:
            await self._step()
        return self._command.pid

    async def finished(self) -> Completed:
        """Wait for the end, passing output on.

        Raises:
            SessionLost: the supervisor is gone; what it left has been killed.
            BackendUnavailable: the command could not be set up.
        """
        while self.outcome is None:
            await self._step()
        return self.outcome

    @property
    def stdout_tail(self) -> str:
        """The last 2000 bytes of its standard output, so far."""
        return self._command.stdout_tail

    def end_soon(self, grace: float) -> None:
        """Ask for its end, as `kill` does; whoever waits in `finished` learns of it."""
        self._command.end_soon(grace)

    async def kill(self, grace: float) -> None:
        """End it and everything that it started; `grace` seconds pass between TERM and KILL.

        Not to be cancelled.

        Raises:
            SessionLost: the supervisor is gone, or could not get rid of something.
        """
        with anyio.CancelScope(shield=True):
            if self.outcome is None:
                self._command.end_soon(grace)
                with anyio.move_on_after(grace + KILL_SECONDS):
                    await self.finished()
            if self.outcome is None:
                raise await self._abandon()

    def close(self) -> None:
        self._command.close()

    async def _step(self) -> None:
        await anyio.wait_readable(self._command.fileno())
        try:
            self._command.step()
        except SupervisorLost:
            raise await self._abandon() from None
        except CannotStart as error:
            raise BackendUnavailable(str(error)) from None
        finally:
            if self._command.outcome is not None:
                self.outcome = completed(self._command.outcome)

    async def _abandon(self) -> SessionLost:
        """Without a supervisor: kill what carries our marker."""
        lost = SessionLost(str(self._supervisor.lost()))
        with anyio.CancelScope(shield=True):
            try:
                await to_thread.run_sync(kill_remains, self._marker, [])
            except StillThere as error:
                raise BackendError(str(error)) from lost
        return lost
