"""The process that works for one controller on a machine to which connections may break.

It listens on a socket in its own folder and outlives the connection: commands, locks, files and
open connections stay as they are until the controller is back. If it stays away for longer than
its lease, however it ended, everything of it is killed and removed. So nothing has to be running
on the machine beforehand, and nothing is left there.

    request   {"id": 7, "do": "free_port", ...}
    answer    {"to": 7, "port": 4711}   or   {"to": 7, "error": "...", "kind": "missing"}
    besides   {"job": KEY, "at": OFFSET} and bytes of its output,  {"job": KEY, "done": {...}},
              {"connection": ID} and bytes,  {"connection": ID, "end": true}

Every request may be repeated by somebody who did not get the answer, on a new connection: a job, a
lock and a connection have names that the controller chose.

The first message has the token that only the controller knows. Commands run as the same user and
could reach the socket, but they cannot read the token.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import hashlib
import hmac
import os
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from . import host, landlock, locks, shared_memory, trees
from .command import CannotStart, Supervisor, SupervisorLost, executables, passed_environment
from .frames import CHUNK, BadFrame, Frames, frame
from .jobs import Job, done_before
from .pool import Pool
from .processes import kill_remains, process_ref
from .store import Arrival, NotStored, Store

__all__ = ["main"]

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty")
_KINDS = {
    FileNotFoundError: "missing",
    PermissionError: "refused",
    NotStored: "not stored",
    CannotStart: "unavailable",
    locks.CannotLock: "unavailable",
    SupervisorLost: "lost",
}


class Client:
    """One connection of the controller."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.tasks: set[asyncio.Task[None]] = set()
        self.arrivals: dict[str, Arrival] = {}
        self.incoming: dict[str, Any] = {}
        self._sending = asyncio.Lock()

    async def send(self, message: dict[str, Any], body: bytes = b"") -> None:
        """Send one message; waits while the other side is slow.

        Raises:
            ConnectionError: it is gone.
        """
        async with self._sending:
            self.writer.write(frame(message, body))
            await self.writer.drain()

    def begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Workspace:
    """The folders of one candidate."""

    def __init__(self, folder: str, writable: list[str]) -> None:
        self.folder, self.writable = folder, writable
        self.source = os.path.join(folder, "source")
        self.harness = os.path.join(folder, "harness")
        self.run = ""
        self._ruleset: int | None = None

    def new_run(self) -> str:
        """An empty run folder; those before it are removed."""
        self.forget_ruleset()
        os.makedirs(self.folder, exist_ok=True)
        for name in os.listdir(self.folder):
            if name.startswith("r-"):
                trees.remove(os.path.join(self.folder, name))
        self.run = tempfile.mkdtemp(prefix="r-", dir=self.folder)
        for name in ("home", "tmp"):
            os.mkdir(os.path.join(self.run, name))
        return self.run

    def roots(self) -> list[str]:
        return [self.source, self.harness, self.run]

    def ruleset(self, shared: bool) -> int:
        if self._ruleset is None:
            for path in self.writable:
                os.makedirs(path, exist_ok=True)
            folders = [self.source, self.run, *self.writable]
            folders += [shared_memory.FOLDER] if shared else []
            self._ruleset = landlock.write_ruleset(folders, _DEVICES)
        return self._ruleset

    def forget_ruleset(self) -> None:
        if self._ruleset is not None:
            os.close(self._ruleset)
            self._ruleset = None


class Keeper:
    """See the module."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        self._folder, self._options = folder, options
        self._token = options["token"].encode()
        self._lease = float(options["lease_seconds"])
        self._confine = bool(options["confine"]) and not landlock.missing()
        self._pool = Pool(self._confine, options["capabilities"])
        self._store = Store(options["store"])
        self._marker = options["marker"]
        self._jobs: dict[str, Job] = {}
        self._workspaces: dict[str, Workspace] = {}
        self._locks: dict[str, int] = {}
        self._locking: dict[str, asyncio.Task[None]] = {}
        self._connections: dict[str, asyncio.StreamWriter] = {}
        self._returning: set[asyncio.Future[None]] = set()
        self._client: Client | None = None
        self._numbers = 0
        self._contact = time.monotonic()
        self._over = asyncio.Event()
        self._keep_trees = False

    # ---- its life ----

    async def serve(self, listener: socket.socket) -> None:
        """Until the controller says that it needs no more, or its lease is over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._over.set)
        server = await asyncio.start_unix_server(self._accept, sock=listener)
        reaper = asyncio.ensure_future(self._watch_lease())
        await self._over.wait()
        reaper.cancel()
        server.close()
        await self._clear([])
        self._pool.close()
        if not self._keep_trees:
            await loop.run_in_executor(None, trees.remove, self._folder)

    async def _watch_lease(self) -> None:
        while True:
            left = self._contact + self._lease - time.monotonic()
            if left <= 0:
                self._over.set()
                return
            await asyncio.sleep(left)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, frames = Client(writer), Frames()
        try:
            if not _same_user(writer):
                return
            while data := await reader.read(CHUNK):
                for message, body in frames.feed(data):
                    if self._client is not client and not self._enter(client, message):
                        stranger = "a session of this name is there that does not know us"
                        await client.send({"to": message.get("id"), "error": stranger})
                        return
                    self._contact = time.monotonic()
                    await self._take(client, message, body)
        except (ConnectionError, BadFrame):
            pass
        finally:
            for task in list(client.tasks):
                task.cancel()
            for arrival in client.arrivals.values():
                arrival.close()
            if self._client is client:
                self._client = None
            writer.close()

    def _enter(self, client: Client, message: dict[str, Any]) -> bool:
        """Whether this is our controller; if so, a connection that it had before is over."""
        if not hmac.compare_digest(str(message.get("token", "")).encode(), self._token):
            return False
        if self._client is not None:
            self._client.writer.close()
        self._client = client
        return True

    async def _take(self, client: Client, message: dict[str, Any], body: bytes) -> None:
        if "to_connection" in message:
            await self._forward(message, body)
        elif message["do"] == "arrive":  # in the order in which they come
            self._arrive(client, message, body)
            if message.get("last"):
                client.begin(self._answer(client, message, body))
        else:
            client.begin(self._answer(client, message, body))

    async def _answer(self, client: Client, message: dict[str, Any], body: bytes) -> None:
        method: Callable[..., Awaitable[Any]] = getattr(self, f"_do_{message['do']}")
        try:
            result = await method(client, message, body)
            answer = {"to": message["id"], **(result or {})}
        except Exception as error:
            kind = next((k for c, k in _KINDS.items() if isinstance(error, c)), "failed")
            text = f"{type(error).__name__}: {error}" if kind == "failed" else str(error)
            answer = {"to": message["id"], "error": text, "kind": kind}
        with suppress(ConnectionError):
            await client.send(answer)

    # ---- what it can be asked ----

    async def _do_hello(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        me = process_ref(os.getpid())
        assert me is not None
        confinement = f"landlock (interface {landlock.abi()})"
        if not self._confine:
            reason = landlock.missing() if self._options["confine"] else "confine = false"
            confinement = f"none ({reason})"
        return {"process": list(me), "jobs": sorted(self._jobs), "write confinement": confinement}

    async def _do_ping(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        os.utime(os.path.join(self._folder, "lock"))  # for whoever sweeps, see `relay`
        return {}

    async def _do_observe(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        return {"facts": await _in_thread(host.observe)}

    async def _do_covariates(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        return {"figures": dict(host.covariates())}

    async def _do_free_port(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return {"port": probe.getsockname()[1]}

    async def _do_bye(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        self._keep_trees = message["keep_trees"]
        asyncio.get_running_loop().call_soon(self._over.set)
        return {}

    # -- files --

    async def _do_missing(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        return {"missing": await _in_thread(self._store.missing, message["wanted"])}

    def _arrive(self, client: Client, message: dict[str, Any], body: bytes) -> None:
        name = message["name"]
        if name not in client.arrivals:
            client.arrivals[name] = Arrival(self._store)
            client.incoming.pop(name, None)
        if name in client.incoming:
            return  # it has failed already
        try:
            client.arrivals[name].feed(body)
        except (OSError, ValueError) as error:
            client.incoming[name] = error

    async def _do_arrive(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        client.arrivals.pop(message["name"]).close()
        failed = client.incoming.pop(message["name"], None)
        if failed is not None:
            raise failed
        return {}

    async def _do_open(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """Folders of a workspace, with source and harness in them."""
        name = message["name"]
        workspace = self._workspaces.get(name)
        if workspace is None:
            folder = trees.path_inside(os.path.join(self._folder, "w"), name)
            workspace = Workspace(folder, message["writable"])
            os.makedirs(folder, exist_ok=True)
            self._workspaces[name] = workspace
        # What was built in it is of use to whoever comes back to a command of it.
        used = any(job.workspace == name for job in self._jobs.values())
        make = self._store.make_tree
        source = used or await _in_thread(make, workspace.source, message["source"])
        await _in_thread(make, workspace.harness, message["harness"], True)
        run = workspace.run or await _in_thread(workspace.new_run)
        return {
            "source": workspace.source,
            "harness": workspace.harness,
            "run": run,
            "intact": source,
        }

    async def _do_new_run(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        return {"run": await _in_thread(self._workspaces[message["name"]].new_run)}

    async def _do_close(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        name = message["name"]
        await self._end([key for key, job in self._jobs.items() if job.workspace == name])
        workspace = self._workspaces.pop(name, None)
        if workspace is not None:
            workspace.forget_ruleset()
            gone = workspace.run if message["keep"] else workspace.folder
            await _in_thread(trees.remove, gone)
        return {}

    async def _do_names(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        return {"names": await _in_thread(trees.names_in, message["folder"])}

    async def _do_digest(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        digest, count = await _in_thread(trees.digest_of, message["folder"], message["names"])
        return {"digest": digest, "count": count}

    async def _do_put(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """A packed file or folder that has arrived in the store."""
        workspace, path = self._workspaces[message["name"]], message["path"]
        trees.check_inside(os.path.dirname(path), workspace.roots())
        packed = self._store.path_of(message["packed"])

        def unpack() -> None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(packed, "rb") as file:
                    trees.unpack(file, path)
            except FileNotFoundError as error:
                raise NotStored(message["packed"]) from error

        await _in_thread(unpack)
        return {}

    async def _do_get(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """A file or folder, packed, in pieces before the answer."""
        workspace, path = self._workspaces[message["name"]], message["path"]
        trees.check_inside(path, workspace.roots())
        with tempfile.TemporaryFile(dir=self._folder) as packed:
            await _in_thread(trees.pack, path, packed)
            packed.seek(0)
            while piece := packed.read(CHUNK):
                await client.send({"for": message["id"]}, piece)
        return {}

    # -- commands --

    async def _do_start(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """Start a job, or come back to it if it was started before. Its output follows."""
        key = message["job"]
        folder = self._job_folder(key)
        job = self._jobs.get(key)
        if job is None:
            try:
                os.makedirs(os.path.dirname(folder), exist_ok=True)
                os.mkdir(folder)
            except FileExistsError:
                done = done_before(folder) or {"lost": "the process that kept it is gone"}
                return {"started": False, "done": done}
            job = self._jobs[key] = Job(folder, f"{self._marker}/{key}", message["workspace"])
            self._begin(job, key, message, body)
        client.begin(self._pass_on(client, key, job, message["offset"]))
        while job.pid is None and job.done is None:
            await job.changed()
        return {"started": True, "pid": job.pid}

    async def _do_watch(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """Come back to a job, only if it is known."""
        key = message["job"]
        job = self._jobs.get(key)
        if job is None:
            done = done_before(self._job_folder(key))
            return {"known": False, "job": key, "done": done}
        client.begin(self._pass_on(client, key, job, message["offset"]))
        return {"known": True, "pid": job.pid}

    async def _do_kill(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        job = self._jobs.get(message["job"])
        if job is not None:
            job.end_soon(message["grace"])
        return {}

    async def _do_ended(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """Wait for the end of a job."""
        job = self._jobs.get(message["job"])
        if job is not None:
            await job.ended()
        return {}

    async def _do_forget(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """The controller has taken note of the end of a job."""
        job = self._jobs.get(message["job"])
        if job is None or job.done is not None:
            self._jobs.pop(message["job"], None)
            await _in_thread(trees.remove, self._job_folder(message["job"]))
        return {}

    def _job_folder(self, key: str) -> str:
        return os.path.join(self._folder, "j", hashlib.sha256(key.encode()).hexdigest()[:24])

    def _begin(self, job: Job, key: str, message: dict[str, Any], stdin: bytes) -> None:
        workspace = self._workspaces[message["workspace"]]
        shared = bool(self._options["shared_memory"])
        run = workspace.run
        env = passed_environment()
        env.update({"HOME": f"{run}/home", "TMPDIR": f"{run}/tmp", "AIOPT_JOB": job.marker})
        env.update(
            {"SOURCE_DIR": workspace.source, "TARGET_DIR": workspace.harness, "RUN_DIR": run}
        )
        env.update(message["env"])
        argv = message["argv"]
        request = {
            "argv": argv,
            "env": env,
            "cwd": message["cwd"],
            "files": executables(argv[0], env),
        }
        self._numbers += 1
        supervisor = self._pool.take()
        try:
            job.start(
                supervisor,
                self._numbers,
                request,
                stdin=stdin,
                ruleset=workspace.ruleset(shared) if self._confine else None,
                cap=message["cap"],
                timeout=message["timeout"],
                grace=message["grace"],
            )
        except BaseException:
            supervisor.close()
            self._jobs.pop(key, None)
            trees.remove(job.folder)
            raise
        returning = asyncio.ensure_future(self._give_back(job, supervisor))
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)

    async def _give_back(self, job: Job, supervisor: Supervisor) -> None:
        await job.ended()
        self._pool.give(supervisor)

    async def _pass_on(self, client: Client, key: str, job: Job, offset: int) -> None:
        """Send what a job has printed from `offset` on, as it comes, and then how it ended."""
        output = os.open(os.path.join(job.folder, "output"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                data = os.pread(output, CHUNK, offset)
                if data:
                    await client.send({"job": key, "at": offset}, data)
                    offset += len(data)
                elif job.done is not None:
                    await client.send({"job": key, "done": job.done})
                    return
                else:
                    await job.changed()
        finally:
            os.close(output)

    async def _do_clear(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """End all that an earlier life of the controller has left, but for some jobs."""
        return {"killed": await self._clear(message["spared"])}

    async def _clear(self, spared: list[str]) -> int:
        for task in self._locking.values():
            task.cancel()
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()
        killed = await self._end([key for key in self._jobs if key not in spared])
        if not spared:
            # What an earlier keeper left that was killed itself.
            killed += await _in_thread(kill_remains, self._marker, [])
        return killed

    async def _end(self, keys: list[str]) -> int:
        """Kill these jobs and forget them; how many were running."""
        running = [self._jobs[key] for key in keys if self._jobs[key].done is None]
        for job in running:
            job.end_soon(0)
        for job in running:
            await job.ended()
        for key in keys:
            job_or_none = self._jobs.pop(key, None)
            if job_or_none is not None:
                await _in_thread(trees.remove, job_or_none.folder)
        return len(running)

    # -- locks --

    async def _do_lock(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        """The lock of the machine, held until `unlock`; waits for it."""
        name, path, exclusive = message["name"], message["path"], message["exclusive"]
        if name not in self._locks:
            if name not in self._locking:
                task = asyncio.ensure_future(self._lock(name, path, exclusive))
                self._locking[name] = task
                task.add_done_callback(lambda _: self._locking.pop(name, None))
            await asyncio.shield(self._locking[name])
        return {}

    async def _lock(self, name: str, path: str, exclusive: bool) -> None:
        gate = await _locked(locks.gate_of(path), exclusive)
        try:
            self._locks[name] = await _locked(path, exclusive)
        finally:
            os.close(gate)

    async def _do_unlock(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        waiting = self._locking.get(message["name"])
        if waiting is not None:
            waiting.cancel()
        held = self._locks.pop(message["name"], None)
        if held is not None:
            os.close(held)
        return {}

    # -- connections to services --

    async def _do_connect(self, client: Client, message: dict[str, Any], body: bytes) -> Any:
        name = message["name"]
        reader, writer = await asyncio.open_connection("127.0.0.1", message["port"])
        self._connections[name] = writer
        client.begin(self._read_connection(client, name, reader))
        return {}

    async def _read_connection(
        self, client: Client, name: str, reader: asyncio.StreamReader
    ) -> None:
        try:
            while data := await reader.read(CHUNK):
                await client.send({"connection": name}, data)
        except ConnectionError:
            pass
        await client.send({"connection": name, "end": True})

    async def _forward(self, message: dict[str, Any], data: bytes) -> None:
        writer = self._connections.get(message["to_connection"])
        if writer is None:
            return
        with suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
            if message.get("end"):
                self._connections.pop(message["to_connection"], None)
                writer.close()


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def _locked(path: str, exclusive: bool) -> int:
    descriptor, pause = locks.open_lock(path), 0.001
    try:
        while not locks.try_lock(descriptor, path, exclusive=exclusive):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _same_user(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return bool(struct.unpack("3i", peer)[1] == os.getuid())


def main(folder: str, options: dict[str, Any]) -> int:
    """Keep `folder` until it is not needed any more; 3 if another process does."""
    os.umask(0o077)
    os.makedirs(folder, exist_ok=True)
    guard = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 3
    path = os.path.join(folder, "socket")
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(folder)  # a path of a socket must be short
    listener.bind("socket.new")
    listener.listen(8)
    os.rename("socket.new", "socket")
    gc.freeze()

    async def run() -> None:
        await Keeper(folder, options).serve(listener)

    asyncio.run(run())
    return 0
