"""The controller's side of a keeper on another machine (see `machine.keeper`).

A `Link` survives its connection: it opens another one, with growing pauses, and what was asked and
not answered is asked again. Only when the machine stays away for too long, or when the keeper
itself is gone, do those who wait learn of it.

It needs nothing but a `Channel` that runs a command there, and asyncio (asyncssh needs it).
"""

import asyncio
import hashlib
import itertools
import json
import secrets
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field, frozen

from aiopt.errors import BackendError, BackendUnavailable, SessionLost
from aiopt.protocols import Sink

from . import machine
from .machine.frames import CHUNK, BadFrame, Frames, frame

__all__ = ["Channel", "Connection", "Link", "Refused", "Watched", "bootstrap"]

_FOLDER = Path(machine.__file__).parent
_RECORD = struct.Struct(">BI")
_READY_SECONDS = 60.0
_LONGEST_PAUSE = 15.0
_GOODBYE_SECONDS = 30.0
_BOOTSTRAP = (
    "import sys; i = sys.stdin.buffer; n = int(i.read(8), 16); p = i.read(n); import json, zlib;"
    " g = json.loads(zlib.decompress(p)); sys.version_info >= (3, 9) or sys.exit("
    '"Python 3.9 or newer is needed, this is " + sys.version.split()[0]);'
    ' m = {"__name__": "relay"}; exec(compile(g["modules"]["relay.py"], "relay", "exec"), m);'
    ' m["run"](g)'
)
"""Without a single quote, so that any login shell takes it in single quotes."""


class Refused(BackendError):
    """The other side could not do what was asked; `kind` is its word for why."""

    def __init__(self, text: str, kind: str) -> None:
        self.kind = kind
        super().__init__(text)


class Channel(Protocol):
    """A command that runs on the machine: its standard input and output."""

    async def read(self) -> bytes:
        """What has come; empty at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Raises OSError if nobody takes it any more."""
        ...

    async def close(self) -> str:
        """End it; what it said on standard error, if it had ended by itself."""
        ...


def bootstrap(python: str) -> str:
    """The command that a channel runs: it takes the program itself from its standard input."""
    return f"exec {python} -I -S -B -u -c '{_BOOTSTRAP}'"


def _modules() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.py"))}


@frozen(kw_only=True)
class Connection:
    """How to reach a keeper: which one, and what it is told when it has to be started."""

    open: Callable[[], Awaitable[Channel]]
    """Runs the bootstrap. Raises BackendUnavailable if that will not help next time either, and
    OSError or SessionLost if it may."""
    where: str
    """The machine, for messages."""
    root: str
    session: str
    options: Mapping[str, Any]
    """`token`, `marker`, `lease_seconds`, `confine`, `capabilities`, `shared_memory`."""
    patience: float
    """Seconds for which to try to get a lost connection back."""


@define
class _Asked:
    message: dict[str, Any]
    body: bytes
    answer: "asyncio.Future[dict[str, Any]]"
    pieces: bytearray = field(factory=bytearray)


@define(eq=False)
class Watched:
    """A job whose output is passed on as it comes."""

    key: str
    sink: Sink
    offset: int = 0
    started: bool = False
    done: "asyncio.Future[dict[str, Any]]" = field(
        factory=lambda: asyncio.get_running_loop().create_future()
    )
    _waiting: bytearray = field(factory=bytearray)

    async def ended(self) -> dict[str, Any]:
        """How it ended; whoever waits may be cancelled.

        Raises:
            SessionLost: nobody knows. Also what the sink has raised.
        """
        await asyncio.wait([self.done])
        return self.done.result()

    def take(self, offset: int, data: bytes) -> None:
        """Records of the output file from `offset` on; what was seen before is skipped."""
        new = data[max(0, self.offset - offset) :]
        self.offset += len(new)
        self._waiting += new
        while len(self._waiting) >= _RECORD.size:
            stream, length = _RECORD.unpack_from(self._waiting)
            end = _RECORD.size + length
            if len(self._waiting) < end:
                return
            content = bytes(self._waiting[_RECORD.size : end])
            del self._waiting[:end]
            self.sink.write("stdout" if stream == 1 else "stderr", content)


class Link:
    """Requests to one keeper, over whatever connection there is at the time."""

    def __init__(self, connection: Connection) -> None:
        self._at = connection
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._jobs: dict[str, Watched] = {}
        self._connections: dict[str, asyncio.Queue[bytes]] = {}
        self._channel: Channel | None = None
        self._connected = asyncio.Event()
        self._process: list[Any] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pings: asyncio.Task[None] | None = None
        self._failure: BackendError | None = None
        self.reconnects = 0
        """How often a connection was lost and another one made."""
        self.facts: dict[str, Any] = {}
        """What the keeper said of itself."""

    # ---- its life ----

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            BackendUnavailable: that does not work, and why.
        """
        try:
            await self._connect()
        except (OSError, SessionLost) as error:
            raise BackendUnavailable(f"{self._at.where}: {error}") from error
        self._reader = asyncio.create_task(self._keep_connected())
        self._pings = asyncio.create_task(self._ping())

    async def close(self, *, keep_trees: bool) -> None:
        """Tell the keeper to end; if it cannot be told, it ends when its lease is over."""
        if self._failure is None:
            with suppress(BackendError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self.ask("bye", keep_trees=keep_trees)
        for task in (self._pings, self._reader):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, BackendError):
                    await task
        if self._channel is not None:
            await self._channel.close()
        self._fail(SessionLost(f"{self._at.where}: the session was closed"))

    async def _connect(self) -> None:
        """Open a channel and greet the keeper.

        Raises:
            BackendUnavailable: there is no use in trying again.
            OSError, SessionLost: it may work later.
        """
        modules = _modules()
        ready = f"aiopt {secrets.token_hex(8)} ready\n"
        payload = {
            "root": self._at.root,
            "session": self._at.session,
            "options": dict(self._at.options),
            "modules": modules,
            "version": hashlib.sha256(json.dumps(modules).encode()).hexdigest(),
            "ready": ready,
        }
        packed = zlib.compress(json.dumps(payload).encode())
        channel = await self._at.open()
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await channel.write(b"%08x" % len(packed) + packed)
                rest = await _after(channel, ready.encode())
                frames = Frames()
                hello = self._message("hello", {"token": self._at.options["token"]})
                await channel.write(frame(hello))
                first, early = await self._greeted(channel, frames, hello["id"], rest)
        except TimeoutError:
            said = await channel.close()
            raise SessionLost(f"no answer within {_READY_SECONDS:g} s {said}".strip()) from None
        except BaseException:
            await channel.close()
            raise
        if self._process is not None and self._process != first["process"]:
            with suppress(OSError):
                await channel.write(frame(self._message("bye", {"keep_trees": False})))
                await channel.read()  # the answer
            await channel.close()
            raise BackendUnavailable("what kept the session there is gone, and all that ran in it")
        self._process, self.facts = first["process"], first
        self._channel, self._frames = channel, frames
        for message, body in early:
            self._take(message, body)

    async def _greeted(
        self, channel: Channel, frames: Frames, number: int, data: bytes
    ) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]:
        """The answer to our greeting, and what came right behind it."""
        while True:
            try:
                found = list(frames.feed(data))
            except BadFrame as error:
                raise SessionLost(str(error)) from None
            for i, (message, _) in enumerate(found):
                if message.get("to") == number and "error" in message:
                    raise BackendUnavailable(message["error"])
                if message.get("to") == number:
                    return message, found[i + 1 :]
            data = await channel.read()
            if not data:
                raise SessionLost("the connection ended")

    async def _keep_connected(self) -> None:
        try:
            while True:
                await self._resume()
                reason = await self._read()
                self._connected.clear()
                assert self._channel is not None
                said = await self._channel.close()
                await self._reconnect(f"{reason} {said}".strip())
                self.reconnects += 1
        except BackendError as error:
            self._fail(error)
        except Exception as error:  # whoever waits for an answer must not wait for ever
            self._fail(BackendError(f"{self._at.where}: {type(error).__name__}: {error}"))

    async def _reconnect(self, reason: str) -> None:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._at.patience, 0.1
        last = reason
        while True:
            try:
                await self._connect()
                return
            except BackendUnavailable as error:
                raise SessionLost(f"{self._at.where}: {error}") from error
            except (OSError, SessionLost) as error:
                last = f"{reason}; {error}" if str(error) not in reason else reason
            if loop.time() + pause > deadline:
                raise SessionLost(
                    f"{self._at.where}: the connection was lost and did not come back within"
                    f" {self._at.patience:g} s: {last}"
                )
            await asyncio.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _resume(self) -> None:
        """Ask again what was not answered, and come back to what runs."""
        self._connected.set()
        with suppress(OSError):
            for job in [job for job in self._jobs.values() if job.started]:
                message = self._message("watch", {"job": job.key, "offset": job.offset})
                await self._send(message)
            for asked in list(self._asked.values()):
                asked.pieces.clear()
                if "stream" not in asked.message:
                    await self._send(asked.message, asked.body)

    async def _read(self) -> str:
        """Take what comes until the connection is lost; returns why."""
        assert self._channel is not None
        while True:
            try:
                data = await self._channel.read()
                if not data:
                    return "the connection ended"
                for message, body in self._frames.feed(data):
                    self._take(message, body)
            except (OSError, SessionLost, BadFrame) as error:
                return str(error) or type(error).__name__

    async def _ping(self) -> None:
        """Says that we are alive, often enough for the lease."""
        seconds = min(20.0, self._at.options["lease_seconds"] / 4)
        while True:
            await asyncio.sleep(seconds)
            with suppress(BackendError):
                await self.ask("ping")

    def _fail(self, error: BackendError) -> None:
        self._failure = self._failure or error
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(SessionLost(str(error)))
        for job in self._jobs.values():
            if not job.done.done():
                job.done.set_exception(SessionLost(str(error)))
                job.done.exception()  # it may be that nobody waits
        for queue in self._connections.values():
            queue.put_nowait(b"")

    # ---- messages ----

    def _message(self, do: str, details: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": next(self._numbers), "do": do, **details}

    async def _send(self, message: Mapping[str, Any], body: bytes = b"") -> None:
        if self._channel is not None:
            await self._channel.write(frame(dict(message), body))

    def _take(self, message: dict[str, Any], body: bytes) -> None:
        if "to" in message:
            asked = self._asked.get(message["to"])
            if asked is not None and not asked.answer.done():
                asked.answer.set_result(message)
            if message.get("known") is False:
                self._unknown(message)  # asked by `_resume`, or by `watch`
        elif "for" in message:
            if message["for"] in self._asked:
                self._asked[message["for"]].pieces += body
        elif "job" in message:
            job = self._jobs.get(message["job"])
            if job is not None:
                self._job(job, message, body)
        elif "connection" in message:
            queue = self._connections.get(message["connection"])
            if queue is not None:
                queue.put_nowait(b"" if message.get("end") else body)

    def _job(self, job: Watched, message: dict[str, Any], body: bytes) -> None:
        if job.done.done():
            return
        if "done" in message:
            job.done.set_result(message["done"])
            return
        try:
            job.take(message["at"], body)
        except Exception as error:  # whatever the sink raises is for who waits for the job
            job.done.set_exception(error)

    def _unknown(self, message: dict[str, Any]) -> None:
        """A job to which we came back is not there any more."""
        job = self._jobs.get(message["job"])
        if job is None or job.done.done():
            return
        if message["done"] is not None:
            job.done.set_result(message["done"])
        else:
            job.done.set_exception(SessionLost(f"{self._at.where}: the command is gone"))

    async def ask(self, do: str, body: bytes = b"", **details: Any) -> dict[str, Any]:
        """The answer to a request, which is repeated if the connection is lost meanwhile.

        Raises:
            Refused: the other side says no.
            SessionLost: the connection is lost for good.
        """
        answer, _ = await self.fetch(do, body, **details)
        return answer

    async def fetch(
        self, do: str, body: bytes = b"", **details: Any
    ) -> tuple[dict[str, Any], bytes]:
        """An answer, and the bytes that came before it. Raises as `ask` does."""
        if self._failure is not None:
            raise SessionLost(str(self._failure))
        message = self._message(do, details)
        asked = _Asked(message, body, asyncio.get_running_loop().create_future())
        self._asked[message["id"]] = asked
        try:
            if self._connected.is_set():
                with suppress(OSError):  # it is sent again on the next connection
                    await self._send(message, body)
            answer = await asked.answer
        finally:
            del self._asked[message["id"]]
        if "error" in answer:
            raise Refused(f"{self._at.where}: {answer['error']}", answer["kind"])
        return answer, bytes(asked.pieces)

    # ---- jobs ----

    async def start(self, job: Watched, body: bytes, **details: Any) -> int | None:
        """Start a job, or come back to it; its process number, if it has one (still)."""
        self._jobs[job.key] = job
        try:
            answer = await self.ask("start", body, job=job.key, offset=job.offset, **details)
        except BaseException:
            self._jobs.pop(job.key, None)
            raise
        job.started = True
        if not answer["started"] and not job.done.done():
            job.done.set_result(answer["done"])
        pid: int | None = answer.get("pid")
        return pid

    async def watch(self, job: Watched) -> bool:
        """Come back to a job that somebody else started; whether it is known. Raises as `ask`."""
        job.started = True
        self._jobs[job.key] = job
        answer = await self.ask("watch", job=job.key, offset=job.offset)
        if not answer["known"] and answer["done"] is None:
            self._jobs.pop(job.key, None)
            return False
        return True

    async def forget(self, job: Watched) -> None:
        """It has ended, and its end has been taken note of."""
        self._jobs.pop(job.key, None)
        with suppress(BackendError):
            await self.ask("forget", job=job.key)

    # ---- contents ----

    async def store(self, contents: Mapping[str, Path], progress: Callable[[int], None]) -> None:
        """Make sure that the store there has these files, by their sha256; what it has is not sent.

        `progress` is told how many bytes of files were sent, piece by piece.

        Raises:
            Refused: they cannot be stored there.
            SessionLost: the connection is lost for good.
        """
        while True:
            answer = await self.ask("missing", wanted=sorted(contents))
            missing: Sequence[str] = answer["missing"]
            if not missing or await self._sent(contents, missing, progress):
                return

    async def _sent(
        self,
        contents: Mapping[str, Path],
        missing: Sequence[str],
        progress: Callable[[int], None],
    ) -> bool:
        """Whether they were sent over one connection."""
        before, name = self.reconnects, secrets.token_hex(8)
        compress = zlib.compressobj(1)
        await self._connected.wait()
        try:
            async for piece, size in _pieces(contents, missing):
                if packed := compress.compress(piece):
                    await self._send({"do": "arrive", "name": name}, packed)
                progress(size)
                if self.reconnects != before or not self._connected.is_set():
                    return False
        except OSError:
            return False
        message = self._message("arrive", {"name": name, "last": True, "stream": True})
        asked = _Asked(message, b"", asyncio.get_running_loop().create_future())
        self._asked[message["id"]] = asked
        try:
            await self._send(message, compress.flush())
            while not asked.answer.done():
                if self.reconnects != before or self._failure is not None:
                    return False
                await asyncio.wait([asked.answer], timeout=0.5)
            answer = asked.answer.result()
        except OSError:
            return False
        finally:
            del self._asked[message["id"]]
        if "error" in answer:
            raise Refused(f"{self._at.where}: {answer['error']}", answer["kind"])
        return True

    # ---- connections ----

    async def connect(self, port: int) -> tuple[str, "asyncio.Queue[bytes]"]:
        """Connect to a port there; the name of the connection, and what comes from it.

        Raises:
            Refused: nothing listens.
        """
        name = secrets.token_hex(6)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._connections[name] = queue
        try:
            await self.ask("connect", name=name, port=port)
        except BaseException:
            self._connections.pop(name, None)
            raise
        return name, queue

    async def send_to(self, name: str, data: bytes, *, end: bool = False) -> None:
        """Send to a connection; with `end` it is closed."""
        await self._send({"to_connection": name, "end": end}, data)
        if end:
            self._connections.pop(name, None)


async def _pieces(
    contents: Mapping[str, Path], missing: Sequence[str]
) -> AsyncIterator[tuple[bytes, int]]:
    """Heads and contents of files, in pieces that are not too long, and their sizes."""
    for sha256 in missing:
        with contents[sha256].open("rb") as file:
            size = contents[sha256].stat().st_size
            yield f"{sha256}{size:016x}".encode(), 0
            left = size
            while left and (data := file.read(min(CHUNK, left))):
                left -= len(data)
                yield data, len(data)
            if left:
                raise BackendError(f"{contents[sha256]} became shorter while it was sent")


async def _after(channel: Channel, mark: bytes) -> bytes:
    """What comes behind a line; start-up files of a shell may have printed before it.

    Raises:
        BackendUnavailable: the other side cannot say it.
        SessionLost: it does not come.
    """
    seen = b""
    while mark not in seen:
        data = await channel.read()
        if not data:
            said = await channel.close()
            if said:
                raise BackendUnavailable(said)
            raise SessionLost(f"the connection ended {seen[-300:]!r}")
        seen += data
    return seen.partition(mark)[2]
