"""This side of a supervisor, and of a command that runs under it.

See `supervisor` for the other side. Nothing here waits: whoever uses it waits, in the way of its
own event loop, until `fileno` is readable.
"""

from __future__ import annotations

import marshal
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from . import landlock
from .output import CappedStream
from .processes import Process, process_ref

__all__ = [
    "KILL_SECONDS",
    "CannotStart",
    "Outcome",
    "Request",
    "RunningCommand",
    "Supervisor",
    "SupervisorLost",
    "executables",
    "passed_environment",
]

Request = Mapping[str, Any]
"""`argv`, `env`, `cwd` and `files`: what to try to execute, in this order."""

KILL_SECONDS = 30.0
"""How long a supervisor may take to get rid of everything, after KILL."""

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "supervisor.py")
_PASSED = re.compile(r"PATH|LANG|LC_[A-Z]+|TZ")


class CannotStart(Exception):
    """A supervisor or a command could not be set up."""


class SupervisorLost(Exception):
    """A supervisor ended before its command did."""


class Outcome(NamedTuple):
    """How a command ended: its wait status, and what it and everything under it used."""

    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    involuntary_switches: int
    major_faults: int
    strays_killed: int
    dropped_bytes: int


def passed_environment(also: Sequence[str] = ()) -> dict[str, str]:
    """The variables of this process that commands may see: a whitelist, and `also`."""
    return {
        name: text for name, text in os.environ.items() if name in also or _PASSED.fullmatch(name)
    }


def executables(name: str, env: Mapping[str, str]) -> list[str]:
    """The files that `name` may mean, in the order in which to try them."""
    if "/" in name:
        return [name]
    folders = env.get("PATH", os.defpath).split(":")
    places = [f"{folder or '.'}/{name}" for folder in folders]
    if not all(place.startswith("/") for place in places):
        return places
    # Trying to execute costs more than looking.
    return [place for place in places if os.access(place, os.X_OK)] or places


class Supervisor:
    """A supervisor process, which runs one command at a time."""

    def __init__(self, *, isolate: bool, capabilities: Sequence[str] = ()) -> None:
        """Start it; returns before it is ready.

        `isolate`: whether commands can neither reach out of it nor, run by root, keep more of
        root's powers than `capabilities`.

        Raises:
            CannotStart: it cannot be started.
        """
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        scope = landlock.signal_scope() if isolate else None
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
            raise CannotStart(
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
        self.ref: Process = ref
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
            SupervisorLost: it is gone.
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
            SupervisorLost: it is gone.
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

    def lost(self) -> SupervisorLost:
        """Make sure that it is dead, and say what happened to it."""
        self.usable = False
        self._process.kill()
        code = self._process.wait()
        said = os.pread(self._errors, 4000, 0).decode(errors="replace").strip()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return SupervisorLost(f"supervisor {self._process.pid} {how}{': ' + said if said else ''}")

    def close(self) -> None:
        """End it, in about a millisecond; if a command is still running, that ends too."""
        self.usable = False
        if self._process.returncode is None:
            self._link.shutdown(socket.SHUT_WR)
            # Its end is closed by its death alone.
            ended = select.poll()
            ended.register(self._link, select.POLLRDHUP)
            ended.poll(KILL_SECONDS * 1000)
            self._process.kill()  # unless it hangs there is nobody left to kill
            self._process.wait()
        self._link.close()
        os.close(self._errors)


class RunningCommand:
    """One command under a supervisor: passes its output on and learns how it ends."""

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
        stdout: Callable[[bytes], None],
        stderr: Callable[[bytes], None],
        cap: int,
    ) -> None:
        """Begin it. Of stdout and of stderr `cap` bytes each are passed on.

        Raises:
            SupervisorLost: the supervisor is gone.
        """
        self.pid: int | None = None
        self.outcome: Outcome | None = None
        self._supervisor = supervisor
        self._number = number
        self._streams = (CappedStream(stdout, cap), CappedStream(stderr, cap))
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

    def fileno(self) -> int:
        """Readable when `step` has something to do."""
        return self._poller.fileno()

    def step(self) -> None:
        """Pass on what there is, without waiting; afterwards `pid` or `outcome` may be known.

        Raises:
            SupervisorLost: the supervisor is gone; processes of the command may be left.
            CannotStart: the command could not be set up.
        """
        for descriptor, _ in self._poller.poll(0):
            stream = self._by_fd.get(descriptor)
            if stream is None:
                self._take_reply()
            elif stream.take() == 0:
                self._poller.unregister(descriptor)

    @property
    def stdout_tail(self) -> str:
        """The last 2000 bytes of its standard output, so far."""
        return self._streams[0].recent.decode(errors="replace")

    def end_soon(self, grace: float) -> None:
        """Ask for its end; `grace` seconds pass between TERM and KILL."""
        self._supervisor.kill(self._number, grace)

    def close(self) -> None:
        self._poller.close()
        for stream in self._streams:
            stream.close()

    def _take_reply(self) -> None:
        message = self._supervisor.receive()
        if message is None or message[1] != self._number:
            return
        kind, _, *rest = message
        if kind == "started":
            (self.pid,) = rest
        elif kind == "failed":
            self._supervisor.usable = False
            raise CannotStart(f"the supervisor could not set up the command: {rest[0]}")
        elif kind == "done":
            try:
                for stream in self._streams:
                    stream.finish()
            finally:  # over it is, whatever the sink says
                dropped = sum(stream.dropped_bytes for stream in self._streams)
                self.outcome = Outcome._make([*rest, dropped])
