"""The controller's side of a supervisor, and of a command that runs under it.

See `_supervisor` for the other side.
"""

import marshal
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from aiopt.errors import BackendUnavailable, SessionLost
from aiopt.events import ProcessRef
from aiopt.protocols import Completed, Sink, Usage

from . import _landlock
from ._output import CappedStream
from ._remains import kill_remains, process_ref

__all__ = ["Job", "Request", "Supervisor"]

Request = Mapping[str, Any]
"""`argv`, `env`, `cwd` and `files`: what to try to execute, in this order."""

_SCRIPT = str(Path(__file__).with_name("_supervisor.py"))
_KILL_SECONDS = 30.0


class Supervisor:
    """A supervisor process, which runs one command at a time."""

    def __init__(self, *, isolate: bool, capabilities: Sequence[str] = ()) -> None:
        """Start it; returns before it is ready.

        `isolate`: whether commands can neither reach out of it nor, run by root, keep more of
        root's powers than `capabilities`.

        Raises:
            BackendUnavailable: it cannot be started.
        """
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        scope = _landlock.signal_scope() if isolate else None
        numbers = [-1 if fd is None else fd for fd in (theirs.fileno(), scope)]
        kept = ",".join(capabilities) if isolate else "all"
        self._errors = os.memfd_create("aiopt-supervisor-stderr")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SCRIPT, *map(str, numbers), kept],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[fd for fd in numbers if fd >= 0],
                start_new_session=True,
                cwd="/",
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            )
        except OSError as error:
            self._link.close()
            os.close(self._errors)
            raise BackendUnavailable(
                f"cannot start {sys.executable} as the supervisor: {error}"
            ) from error
        finally:
            theirs.close()
            if scope is not None:
                os.close(scope)
        ref = process_ref(self._process.pid)
        if ref is None:
            self._link.close()
            raise self.lost()
        self.ref: ProcessRef = ref
        self.usable = True

    def fileno(self) -> int:
        return self._link.fileno()

    def alive(self) -> bool:
        """Whether its process still runs."""
        return self._process.poll() is None

    def submit(
        self,
        number: int,
        request: Request,
        descriptors: Sequence[int],
        *,
        lease: int | None,
        locked: bool,
        tell: bool,
    ) -> None:
        """Begin a command. `descriptors`: stdin, stdout, stderr, perhaps a lock and a ruleset.

        `tell`: whether to reply with its process number.

        Raises:
            SessionLost: the supervisor is gone.
        """
        # A file and not the message itself: an environment may be larger than a packet.
        body = os.memfd_create("aiopt-request")
        try:
            with open(body, "wb", closefd=False) as file:
                file.write(marshal.dumps(dict(request)))
            os.lseek(body, 0, os.SEEK_SET)
            head = marshal.dumps(("run", number, tell, lease is not None, locked))
            leases = [] if lease is None else [lease]
            socket.send_fds(self._link, [head], [*leases, body, *descriptors])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self.lost() from error
        finally:
            os.close(body)

    def kill(self, number: int, grace: float) -> None:
        """End a command: TERM to its group, after `grace` seconds KILL to everything.

        The reply still comes.
        """
        with suppress(BrokenPipeError, ConnectionResetError):  # the reply will say so
            self._link.send(marshal.dumps(("kill", number, float(grace))))

    def receive(self) -> tuple[Any, ...] | None:
        """One reply; None if there is none yet.

        Raises:
            SessionLost: the supervisor is gone.
        """
        try:
            data = self._link.recv(65536)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            raise self.lost()
        message: tuple[Any, ...] = marshal.loads(data)
        return message

    def lost(self) -> SessionLost:
        """Make sure that it is dead, and say what happened to it."""
        self.usable = False
        self._process.kill()
        code = self._process.wait()
        said = os.pread(self._errors, 4000, 0).decode(errors="replace").strip()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return SessionLost(f"supervisor {self._process.pid} {how}{': ' + said if said else ''}")

    def close(self) -> None:
        """End it, in about a millisecond; if a command is still running, that ends too."""
        self.usable = False
        if self._process.returncode is None:
            self._link.shutdown(socket.SHUT_WR)
            # Its end is closed by its death alone.
            ended = select.poll()
            ended.register(self._link, select.POLLRDHUP)
            ended.poll(_KILL_SECONDS * 1000)
            self._process.kill()  # unless it hangs there is nobody left to kill
            self._process.wait()
        self._link.close()
        os.close(self._errors)


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
        self.pid: int | None = None
        self.outcome: Completed | None = None
        self._supervisor = supervisor
        self._number = number
        self._marker = marker
        self._streams = (CappedStream("stdout", sink, cap), CappedStream("stderr", sink, cap))
        self._by_fd = {stream.read_end: stream for stream in self._streams}
        self._poller = select.epoll()
        source = os.memfd_create("aiopt-stdin") if stdin else os.open("/dev/null", os.O_RDONLY)
        try:
            if stdin:
                with open(source, "wb", closefd=False) as file:
                    file.write(stdin)
                os.lseek(source, 0, os.SEEK_SET)
            ends = [stream.write_end for stream in self._streams]
            optional = [descriptor for descriptor in (lock, ruleset) if descriptor is not None]
            supervisor.submit(
                number,
                request,
                [source, *ends, *optional],
                lease=lease,
                locked=lock is not None,
                tell=tell,
            )
            for stream in self._streams:
                stream.handed_over()
                self._poller.register(stream.read_end, select.EPOLLIN)
            self._poller.register(supervisor.fileno(), select.EPOLLIN)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(source)

    async def started(self) -> int:
        """Wait until it has a process number.

        Raises:
            SessionLost: the supervisor is gone.
        """
        while self.pid is None:
            await self._step()
        return self.pid

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
        return self._streams[0].recent.decode(errors="replace")

    def end_soon(self, grace: float) -> None:
        """Ask for its end, as `kill` does; whoever waits in `finished` learns of it."""
        self._supervisor.kill(self._number, grace)

    async def kill(self, grace: float) -> None:
        """End it and everything that it started; `grace` seconds pass between TERM and KILL.

        Not to be cancelled.

        Raises:
            SessionLost: the supervisor is gone, or could not get rid of something.
        """
        with anyio.CancelScope(shield=True):
            if self.outcome is None:
                self._supervisor.kill(self._number, grace)
                with anyio.move_on_after(grace + _KILL_SECONDS):
                    await self.finished()
            if self.outcome is None:
                await self._abandon()
                raise self._supervisor.lost()

    def close(self) -> None:
        self._poller.close()
        for stream in self._streams:
            stream.close()

    async def _step(self) -> None:
        await anyio.wait_readable(self._poller.fileno())
        for descriptor, _ in self._poller.poll(0):
            stream = self._by_fd.get(descriptor)
            if stream is None:
                await self._reply()
            elif stream.take() == 0:
                self._poller.unregister(descriptor)

    async def _reply(self) -> None:
        try:
            message = self._supervisor.receive()
        except SessionLost:
            await self._abandon()
            raise
        match message:
            case ("started", self._number, int(pid)):
                self.pid = pid
            case ("failed", self._number, str(text)):
                self._supervisor.usable = False
                raise BackendUnavailable(f"the supervisor could not set up the command: {text}")
            case (
                "done",
                self._number,
                int(status),
                float(wall),
                float(cpu),
                rss,
                switches,
                faults,
                strays,
            ):
                usage = Usage(
                    wall_seconds=wall,
                    cpu_seconds=cpu,
                    peak_rss_bytes=rss,
                    involuntary_switches=switches,
                    major_faults=faults,
                )
                signaled = os.WIFSIGNALED(status)
                try:
                    for stream in self._streams:
                        stream.finish()
                finally:  # over it is, whatever the sink says
                    self.outcome = Completed(
                        exit_code=None if signaled else os.WEXITSTATUS(status),
                        signal=os.WTERMSIG(status) if signaled else None,
                        usage=usage,
                        dropped_bytes=sum(stream.dropped_bytes for stream in self._streams),
                        strays_killed=strays,
                    )
            case _:
                pass

    async def _abandon(self) -> None:
        """Without a supervisor: kill what carries our marker."""
        self._supervisor.lost()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(kill_remains, self._marker, [])
