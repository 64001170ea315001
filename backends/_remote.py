"""Workspaces on another machine, through a keeper there (see `machine.keeper`)."""

import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import ByteStream
from attrs import define, evolve, field, frozen
from pathspec import GitIgnoreSpec

from aiopt.errors import (
    BackendError,
    BackendUnavailable,
    CommandTimeout,
    SessionLost,
)
from aiopt.events import ProcessRef
from aiopt.protocols import Command, Completed, Service, Sink, Workspace, WorkspaceSpec

from ._job import completed
from ._link import Link, Refused, Watched
from ._placeholders import expand
from .machine import trees
from .machine.command import KILL_SECONDS, Outcome
from .machine.locks import LOCK
from .machine.store import Entry, entries_of

__all__ = ["RemoteOptions", "RemoteSession", "RemoteWorkspace"]

_TRIES = 3


@frozen(kw_only=True)
class RemoteOptions:
    """What holds for all commands; see `ssh.SshBackend`."""

    output_cap_bytes: int
    grace_seconds: float
    lock_path: str = LOCK


class RemoteSession:
    """A machine to which there is a link: a backend that is connected."""

    def __init__(self, link: Link, marker: str, options: RemoteOptions) -> None:
        self._link, self._marker, self._options = link, marker, options
        self._names: set[str] = set()
        self.keeps_trees = False
        """Whether a workspace was left whose tree is to be kept."""

    @asynccontextmanager
    async def session(self, marker: str) -> AsyncIterator["RemoteSession"]:
        """Itself: it is connected."""
        yield self

    @asynccontextmanager
    async def open(self, spec: WorkspaceSpec) -> AsyncIterator[Workspace]:
        """See `aiopt.protocols.Backend.open`."""
        # The name is that of the folder there, so two of one name must not be open together.
        name, again = spec.name, 1
        while name in self._names:
            name, again = f"{spec.name}~{again}", again + 1
        self._names.add(name)
        try:
            workspace = RemoteWorkspace(self._link, evolve(spec, name=name), self._options)
            try:
                await workspace.enter()
                yield workspace
            finally:
                with anyio.CancelScope(shield=True):
                    await workspace.close()
                self.keeps_trees |= workspace.keeps_tree
        finally:
            self._names.discard(name)

    async def observe(self) -> Mapping[str, Any]:
        """See `aiopt.protocols.Backend.observe`."""
        facts: dict[str, Any] = (await self._link.ask("observe"))["facts"]
        return {**facts, "write confinement": self._link.facts["write confinement"]}

    def building(self) -> AbstractAsyncContextManager[None]:
        """See `aiopt.protocols.Backend.building`."""
        return self._locked(exclusive=False)

    def measuring(self) -> AbstractAsyncContextManager[None]:
        """See `aiopt.protocols.Backend.measuring`."""
        return self._locked(exclusive=True)

    @asynccontextmanager
    async def _locked(self, *, exclusive: bool) -> AsyncIterator[None]:
        name = secrets.token_hex(6)
        try:
            try:
                await self._link.ask(
                    "lock", name=name, path=self._options.lock_path, exclusive=exclusive
                )
            except Refused as error:
                raise BackendUnavailable(str(error)) from error
            yield
        finally:
            with anyio.CancelScope(shield=True), suppress(BackendError):
                await self._link.ask("unlock", name=name)

    async def kill_remains(
        self, marker: str, supervisors: Sequence[ProcessRef], spared: Sequence[str] = ()
    ) -> int:
        """See `aiopt.protocols.Backend.kill_remains`.

        What was started through the keeper of another session is not reached: `marker` must be
        that of this one.
        """
        if not marker or marker != self._marker:
            return 0
        killed: int = (await self._link.ask("clear", spared=list(spared)))["killed"]
        return killed


class RemoteWorkspace:
    """Copies of source and harness, and run folders, on the other machine."""

    def __init__(self, link: Link, spec: WorkspaceSpec, options: RemoteOptions) -> None:
        self._link, self._spec, self._options = link, spec, options
        self._folders: dict[str, Any] = {}
        self._running: set[Watched] = set()
        self._services: list[RemoteService] = []
        self._commands = 0
        self.keeps_tree = False

    # ---- folders ----

    async def enter(self) -> None:
        """Make the folders there, sending only contents that are new there."""
        tree = await to_thread.run_sync(_listed, self._spec.tree, "tree")
        harness = await to_thread.run_sync(_listed, self._spec.harness, "harness")
        contents = {**_contents(self._spec.tree, tree), **_contents(self._spec.harness, harness)}
        for tries in range(_TRIES):
            await self._link.store(contents, lambda _: None)
            try:
                self._folders = await self._link.ask(
                    "open",
                    name=self._spec.name,
                    source=tree,
                    harness=harness,
                    writable=list(self._spec.writable),
                )
                return
            except Refused as error:
                if error.kind != "not stored" or tries == _TRIES - 1:
                    raise BackendUnavailable(str(error)) from error

    def keep_tree(self) -> None:
        """See `aiopt.protocols.Workspace.keep_tree`."""
        self.keeps_tree = True

    async def new_run(self, label: str) -> None:
        """See `aiopt.protocols.Workspace.new_run`."""
        answer = await self._link.ask("new_run", name=self._spec.name)
        self._folders["run"] = answer["run"]

    def expand(self, text: str) -> str:
        """`text` with our folders in place of the placeholders."""
        return expand(text, self._folders)

    def _path(self, remote: str) -> str:
        path = self.expand(remote)
        return path if path.startswith("/") else f"{self._folders['source']}/{path}"

    async def put(self, local: Path, remote: str) -> None:
        """See `aiopt.protocols.Workspace.put`. A relative path begins at `{source}`.

        Raises:
            PermissionError: a link would lead out of the workspace.
        """
        scratch = self._spec.scratch / f"put-{secrets.token_hex(6)}"
        try:
            sha256 = await to_thread.run_sync(_packed, local, scratch)
            for tries in range(_TRIES):
                await self._link.store({sha256: scratch}, lambda _: None)
                try:
                    await self._link.ask(
                        "put", name=self._spec.name, path=self._path(remote), packed=sha256
                    )
                    return
                except Refused as error:
                    if error.kind == "not stored" and tries < _TRIES - 1:
                        continue
                    raise _as_file_error(error) from None
        finally:
            scratch.unlink(missing_ok=True)

    async def get(self, remote: str, local: Path) -> None:
        """See `aiopt.protocols.Workspace.get`. A relative path begins at `{source}`.

        Raises:
            FileNotFoundError: nothing is there.
            PermissionError: a link leads out of the workspace.
        """
        try:
            _, packed = await self._link.fetch("get", name=self._spec.name, path=self._path(remote))
        except Refused as error:
            raise _as_file_error(error) from None
        await to_thread.run_sync(_unpacked, packed, local)

    async def digest(self, patterns: Sequence[str], folder: str = "{source}") -> tuple[str, int]:
        """See `aiopt.protocols.Workspace.digest`."""
        folder = self._path(folder)
        names: list[str] = (await self._link.ask("names", folder=folder))["names"]
        spec = GitIgnoreSpec.from_lines(patterns)
        wanted = await to_thread.run_sync(lambda: list(spec.match_files(names)))
        answer = await self._link.ask("digest", folder=folder, names=wanted)
        return answer["digest"], answer["count"]

    async def free_port(self) -> int:
        """See `aiopt.protocols.Workspace.free_port`. Nothing keeps it free."""
        port: int = (await self._link.ask("free_port"))["port"]
        return port

    async def connect(self, port: int) -> ByteStream:
        """See `aiopt.protocols.Workspace.connect`."""
        try:
            name, arriving = await self._link.connect(port)
        except Refused as error:
            raise ConnectionRefusedError(str(error)) from None
        return _RemoteStream(self._link, name, arriving)

    async def covariates(self) -> Mapping[str, float]:
        """See `aiopt.protocols.Workspace.covariates`."""
        figures: dict[str, float] = (await self._link.ask("covariates"))["figures"]
        return figures

    # ---- commands ----

    @property
    def supervisor(self) -> ProcessRef | None:
        """See `aiopt.protocols.Workspace.supervisor`: the keeper there takes care of them."""
        return None

    async def run(self, command: Command, sink: Sink) -> Completed:
        """See `aiopt.protocols.Workspace.run`."""
        job = Watched(command.job or self.new_job(), sink)
        await self._start(job, command, timeout=command.timeout)
        return await self._finish(job, command)

    async def adopt(self, job: str, command: Command, sink: Sink) -> Completed | None:
        """See `aiopt.protocols.Workspace.adopt`."""
        watched = Watched(job, sink)
        if not self._folders["intact"] or not await self._link.watch(watched):
            await self._link.ask("kill", job=job, grace=0.0)
            await self._link.ask("ended", job=job)
            await self._link.forget(watched)
            return None
        self._running.add(watched)
        return await self._finish(watched, command)

    async def _finish(self, job: Watched, command: Command) -> Completed:
        try:
            done = await job.ended()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._kill(job, self._options.grace_seconds)
            raise
        except SessionLost:
            raise
        except BaseException:  # the sink's
            with anyio.CancelScope(shield=True):
                await self._kill(job, self._options.grace_seconds)
            raise
        finally:
            self._running.discard(job)
        await self._link.forget(job)
        if done.get("timed_out"):
            raise CommandTimeout(command.argv, command.timeout, done["stdout_tail"])
        return _completed(done)

    async def start(self, command: Command, sink: Sink) -> Service:
        """See `aiopt.protocols.Workspace.start`. `command.timeout` does not apply."""
        job = Watched(command.job or self.new_job(), sink)
        pid = await self._start(job, command, timeout=None)
        if pid is None:
            self._running.discard(job)
            raise SessionLost(f"{command.argv[0]} ended before it had a process number")
        service = RemoteService(self._link, job, pid)
        self._services.append(service)
        return service

    def new_job(self) -> str:
        """See `aiopt.protocols.Workspace.new_job`."""
        self._commands += 1
        return f"{self._spec.name}/{secrets.token_hex(4)}-{self._commands:04d}"

    async def _start(self, job: Watched, command: Command, *, timeout: float | None) -> int | None:  # noqa: ASYNC109
        argv = [self.expand(word) for word in command.argv]
        cwd = self._path(command.cwd)
        env = {name: self.expand(text) for name, text in command.env.items()}
        if not argv or not argv[0]:
            raise ValueError("a command needs at least the name of a program")
        if any("\0" in text for text in [*argv, cwd, *env, *env.values()]):
            raise ValueError(
                f"{argv[0]!r}: a NUL character in its arguments, folder or environment"
            )
        self._running.add(job)
        try:
            return await self._link.start(
                job,
                command.stdin,
                workspace=self._spec.name,
                argv=argv,
                env={**_named(self._spec.pass_env), **env},
                cwd=cwd,
                timeout=timeout,
                grace=self._options.grace_seconds,
                cap=self._options.output_cap_bytes,
            )
        except Refused as error:
            self._running.discard(job)
            raise BackendUnavailable(str(error)) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._kill(job, 0)
            raise

    async def _kill(self, job: Watched, grace: float) -> None:
        """End a job and wait until nothing of it is left; unless the link is down for too long,
        when the machine does it by itself as soon as the lease is over.
        """
        self._running.discard(job)
        with anyio.move_on_after(grace + KILL_SECONDS), suppress(BackendError):
            await self._link.ask("kill", job=job.key, grace=grace)
            if job.started:
                await self._link.ask("ended", job=job.key)
            await self._link.forget(job)

    async def close(self) -> None:
        """End all commands and remove the folders. Not to be cancelled."""
        async with anyio.create_task_group() as tasks:
            for service in self._services:
                tasks.start_soon(service.end, self._options.grace_seconds)
            for job in list(self._running - {service.job for service in self._services}):
                tasks.start_soon(self._kill, job, self._options.grace_seconds)
        with suppress(BackendError):
            await self._link.ask("close", name=self._spec.name, keep=self.keeps_tree)


@define(eq=False)
class RemoteService:
    """A command that lives while others run. Made by `RemoteWorkspace.start`."""

    _link: Link
    job: Watched
    pid: int
    _asked: bool = False
    _completed: Completed | None = None

    def exited(self) -> bool:
        """See `aiopt.protocols.Service.exited`."""
        return not self._asked and self.job.done.done()

    async def stop(self, grace: float = 5.0) -> Completed:
        """See `aiopt.protocols.Service.stop`.

        Raises:
            SessionLost: the machine or its supervisor went away.
        """
        if self._completed is None:
            if not self.job.done.done():
                self._asked = True
                await self._link.ask("kill", job=self.job.key, grace=grace)
            done = await self.job.ended()
            await self._link.forget(self.job)
            self._completed = _completed(done)
        return self._completed

    async def end(self, grace: float) -> None:
        """Like `stop`, but says nothing about how it went."""
        with suppress(BackendError), anyio.move_on_after(grace + KILL_SECONDS):
            await self.stop(grace)


@frozen
class _RemoteStream(ByteStream):
    _link: Link
    _name: str
    _arriving: Any
    _rest: bytearray = field(factory=bytearray)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._rest:
            data = await self._arriving.get()
            if not data:
                self._arriving.put_nowait(b"")
                raise anyio.EndOfStream
            self._rest.extend(data)
        found = bytes(self._rest[:max_bytes])
        del self._rest[:max_bytes]
        return found

    async def send(self, item: bytes) -> None:
        await self._link.send_to(self._name, item)

    async def send_eof(self) -> None:
        raise NotImplementedError("half a connection cannot be closed")

    async def aclose(self) -> None:
        with suppress(OSError):
            await self._link.send_to(self._name, b"", end=True)


def _listed(folder: Path, what: str) -> Sequence[Entry]:
    if not folder.is_dir():
        raise BackendUnavailable(f"{what}: {folder} is not a folder")
    return [entry for entry in entries_of(str(folder)) if entry[0] != ".git"]


def _contents(folder: Path, entries: Sequence[Entry]) -> dict[str, Path]:
    return {content: folder / path for path, kind, content in entries if kind != "l"}


def _named(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _packed(local: Path, scratch: Path) -> str:
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with scratch.open("wb") as file:
        trees.pack(str(local), file)
    return trees.sha256_of(str(scratch)).hex()


def _unpacked(packed: bytes, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile() as file:
        file.write(packed)
        file.seek(0)
        trees.unpack(file, str(local))


def _as_file_error(error: Refused) -> Exception:
    kinds = {"missing": FileNotFoundError, "refused": PermissionError}
    return kinds[error.kind](str(error)) if error.kind in kinds else BackendUnavailable(str(error))


def _completed(done: Mapping[str, Any]) -> Completed:
    """The end of a job, in the words of the protocols.

    Raises:
        SessionLost, BackendUnavailable: it did not end, but what kept it did.
    """
    if "lost" in done:
        raise SessionLost(done["lost"])
    if "failed" in done:
        raise BackendUnavailable(done["failed"])
    return completed(Outcome(*(done[name] for name in Outcome._fields)))
