"""Commands whose output and end are kept in files, so that who was cut off can come back for them.

A job has a folder of its own, named by its key. `output` there is what it printed, in the order of
arrival, as records: one byte for the stream (1 or 2), four for the length, big endian, and the
data. `done` is how it ended, and comes last.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
from typing import Any

from . import shared_memory
from .command import KILL_SECONDS, CannotStart, Request, RunningCommand, Supervisor, SupervisorLost
from .processes import StillThere, kill_remains

__all__ = ["Job", "done_before"]

_RECORD = struct.Struct(">BI")


def done_before(folder: str) -> dict[str, Any] | None:
    """How a job ended that another process kept; None if it did not get so far."""
    try:
        with open(os.path.join(folder, "done"), encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return found


class Job:
    """One command, from its start until somebody has taken note of its end."""

    def __init__(self, folder: str, marker: str, workspace: str) -> None:
        """`folder` is there and empty; `marker` is what only processes of this command carry."""
        self.folder, self.marker, self.workspace = folder, marker, workspace
        self.pid: int | None = None
        self.done: dict[str, Any] | None = None
        """How it ended: as `Outcome`, or `lost` or `failed` with a reason; `timed_out` besides."""
        self.size = 0
        """Bytes of the output file."""
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._timed_out = False
        self._trouble = ""
        self._shared = shared_memory.entries()
        self._timers: list[asyncio.TimerHandle] = []
        self._ending: asyncio.Task[None] | None = None
        self._output = os.open(
            os.path.join(folder, "output"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
        )

    def start(
        self,
        supervisor: Supervisor,
        number: int,
        request: Request,
        *,
        stdin: bytes,
        ruleset: int | None,
        cap: int,
        timeout: float | None,
        grace: float,
    ) -> None:
        """Begin the command. `timeout` holds also while nobody is connected.

        Raises:
            SupervisorLost: the supervisor is gone.
        """
        self._supervisor, self._grace = supervisor, grace
        self._command = RunningCommand(
            supervisor,
            number,
            request,
            stdin=stdin,
            ruleset=ruleset,
            lease=None,
            lock=None,
            tell=True,
            stdout=lambda data: self._keep(1, data),
            stderr=lambda data: self._keep(2, data),
            cap=cap,
        )
        self._loop.add_reader(self._command.fileno(), self._step)
        if timeout is not None:
            self._timers.append(self._loop.call_later(timeout, self._late))

    def end_soon(self, grace: float) -> None:
        """TERM, and KILL to everything after `grace` seconds; `changed` tells of the end."""
        if self.done is None and self._ending is None:
            self._command.end_soon(grace)
            self._timers.append(self._loop.call_later(grace + KILL_SECONDS, self._abandon))

    async def changed(self) -> None:
        """Wait until there is more output, a process number, or an end."""
        future = self._loop.create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def ended(self) -> None:
        """Wait for its end."""
        while self.done is None:
            await self.changed()

    def _late(self) -> None:
        self._timed_out = True
        self.end_soon(self._grace)

    def _tell(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _keep(self, stream: int, data: bytes) -> None:
        record = _RECORD.pack(stream, len(data)) + data
        while record:
            record = record[os.write(self._output, record) :]
        self.size = os.lseek(self._output, 0, os.SEEK_CUR)

    def _step(self) -> None:
        try:
            self._command.step()
        except SupervisorLost as lost:
            self._end({"lost": str(lost)}, remains=True)
            return
        except CannotStart as error:
            self._end({"failed": str(error)}, remains=False)
            return
        except OSError as error:
            self._trouble = f"cannot keep the output in {self.folder}: {error.strerror}"
            self._command.end_soon(0)
        outcome = self._command.outcome
        self.pid = self._command.pid
        if outcome is not None:
            trouble = {"failed": self._trouble} if self._trouble else outcome._asdict()
            self._end(trouble, remains=False)
        self._tell()

    def _abandon(self) -> None:
        """It does not even end when it is killed: do without the supervisor."""
        if self._ending is None:
            self._end({"lost": str(self._supervisor.lost())}, remains=True)

    def _end(self, done: dict[str, Any], *, remains: bool) -> None:
        self._loop.remove_reader(self._command.fileno())
        for timer in self._timers:
            timer.cancel()
        tail = self._command.stdout_tail
        done = {**done, "timed_out": self._timed_out, "stdout_tail": tail}
        self._ending = self._loop.create_task(self._clean_up(done, remains=remains))

    async def _clean_up(self, done: dict[str, Any], *, remains: bool) -> None:
        if remains:
            self._supervisor.lost()
            try:
                await self._loop.run_in_executor(None, kill_remains, self.marker, [])
            except StillThere as error:
                done = {**done, "lost": f"{done['lost']}; {error}"}
        if shared_memory.entries() - self._shared:
            await self._loop.run_in_executor(None, shared_memory.remove_leftovers, self._shared)
        self._command.close()
        os.close(self._output)
        try:
            self._write_done(done)
        except OSError as error:
            # As long as this process lives it can still tell.
            done = {**done, "not_kept": str(error)}
        self.done = done
        self._tell()

    def _write_done(self, done: dict[str, Any]) -> None:
        half = os.path.join(self.folder, "done.half")
        with open(half, "w", encoding="utf-8") as file:
            json.dump(done, file)
        os.rename(half, os.path.join(self.folder, "done"))
