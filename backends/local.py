"""Run on this machine, in place, each command under a supervisor (see `machine.supervisor`).

What commands may do is bounded as far as an ordinary user can bound it: what they may write
(`machine.landlock`), whom they may signal or trace, what they see of the environment, how long
they run, and that nothing of them stays. It is not a sandbox against somebody determined. A command
can read whatever this user can read, talk to the network and to sockets in the file system (that of
docker would start something that nobody here sees), and use up memory, disk and processes. Run
strangers' code as a user who has nothing to lose.

Two commands of one workspace are outside of each other: a workload can talk to a service, but not
signal or trace it, unless `confine` is off. Nor does sudo work, or a pseudo-terminal.
"""

import fcntl
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import finalize

import anyio
from anyio import to_thread
from anyio.abc import ByteStream, TaskGroup
from attrs import field, frozen

from aiopt.errors import BackendError, BackendUnavailable, CommandTimeout, SessionLost
from aiopt.events import ProcessRef
from aiopt.protocols import Command, Completed, Service, Sink, Workspace, WorkspaceSpec

from . import _files, _host
from ._job import Job
from ._service import LocalService
from .machine import host, landlock, shared_memory
from .machine.command import (
    CannotStart,
    Supervisor,
    SupervisorLost,
    executables,
    passed_environment,
)
from .machine.locks import LOCK
from .machine.pool import Pool
from .machine.processes import Process, StillThere, kill_remains

__all__ = ["LocalBackend", "LocalService", "LocalWorkspace"]

_PLACEHOLDER = re.compile(r"\{(source|harness|run)\}")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty")


@frozen(kw_only=True, weakref_slot=True)
class LocalBackend:
    """This machine.

    Everything that a command starts is gone when it is over, and what it may write is confined.
    """

    output_cap_bytes: int = 8 << 20
    """Of stdout and of stderr, each: half of it from the beginning, half from the end."""
    grace_seconds: float = 2.0
    """Between TERM and KILL, at a timeout or an interruption."""
    confine: bool = True
    """Whether to use Landlock where the kernel has it."""
    capabilities: tuple[str, ...] = ()
    """What commands keep of the powers of root, if we are root: `perfmon`, `sys_admin`, ..."""
    shared_memory: bool = True
    """Whether commands may use /dev/shm, as databases and Python's multiprocessing do."""
    lock_path: str = LOCK
    """What is locked while measuring; one per machine."""
    _pool: "Pool" = field(init=False, eq=False, repr=False)

    @_pool.default
    def _new_pool(self) -> "Pool":
        pool = Pool(self.confines, self.capabilities)
        finalize(self, pool.close)  # at the latest when the interpreter ends
        return pool

    @asynccontextmanager
    async def session(self, marker: str) -> AsyncIterator["LocalBackend"]:
        """See `aiopt.protocols.Backend.session`: nothing has to be connected."""
        yield self

    @asynccontextmanager
    async def open(self, spec: WorkspaceSpec) -> AsyncIterator[Workspace]:
        """See `aiopt.protocols.Backend.open`."""
        if sys.platform != "linux":
            raise BackendUnavailable(f"the local backend needs Linux, this is {sys.platform}")
        for name, folder in (("tree", spec.tree), ("harness", spec.harness)):
            if not folder.is_dir():
                raise BackendUnavailable(f"{name}: {folder} is not a folder")
        spec.scratch.mkdir(parents=True, exist_ok=True)
        failure: BaseException | None = None
        # What the body raises shall arrive as it is, not in the group that a task group would make
        # of it.
        async with anyio.create_task_group() as tasks:
            workspace = LocalWorkspace(self, spec, tasks, self._pool)
            try:
                yield workspace
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await workspace.close()
        if failure is not None:
            raise failure

    async def observe(self) -> Mapping[str, Any]:
        """See `aiopt.protocols.Backend.observe`.

        `write confinement` says how commands are confined, or why they are not.
        """
        reason = landlock.missing() if self.confine else "switched off: confine = false"
        confinement = f"none ({reason})" if reason else f"landlock (interface {landlock.abi()})"
        return {**await to_thread.run_sync(host.observe), "write confinement": confinement}

    def building(self) -> AbstractAsyncContextManager[None]:
        """See `aiopt.protocols.Backend.building`."""
        return _host.host_lock("building", self.lock_path)

    def measuring(self) -> AbstractAsyncContextManager[None]:
        """See `aiopt.protocols.Backend.measuring`."""
        return _host.host_lock("measuring", self.lock_path)

    async def kill_remains(
        self, marker: str, supervisors: Sequence[ProcessRef], spared: Sequence[str] = ()
    ) -> int:
        """See `aiopt.protocols.Backend.kill_remains`; here nothing outlives its controller.

        Every marker that begins with `marker` counts; an empty one stands for none.
        """
        refs = [Process(ref.pid, ref.start_ticks, ref.boot_id) for ref in supervisors]
        try:
            return await to_thread.run_sync(kill_remains, marker, refs)
        except StillThere as error:
            raise BackendError(str(error)) from error

    @property
    def confines(self) -> bool:
        """Whether commands are confined here."""
        return self.confine and not landlock.missing()


class LocalWorkspace:
    """Source and harness in place, run folders in the scratch folder.

    Made by `LocalBackend.open`.
    """

    def __init__(
        self, backend: LocalBackend, spec: WorkspaceSpec, tasks: TaskGroup, pool: Pool
    ) -> None:
        self._backend = backend
        self._pool = pool
        self._spec = spec
        self._tasks = tasks
        self._source = str(spec.tree.resolve())
        self._harness = str(spec.harness.resolve())
        self._run: str | None = None
        self._old_runs: list[str] = []
        self._idle: list[Supervisor] = []
        self._busy = 0
        self._all_given_back = anyio.Event()
        self._running: set[Job] = set()
        self._services: list[LocalService] = []
        self._commands = 0
        self._ruleset: int | None = None
        if spec.stages_lock is not None:
            spec.stages_lock.touch()
        self._idle.append(self._supervise())

    # ---- folders ----

    @property
    def run_folder(self) -> str:
        """What `{run}` stands for."""
        if self._run is None:
            # All names are equally long: the length of paths and environment moves the stack, and
            # so the timing.
            self._run = tempfile.mkdtemp(prefix="r", dir=self._spec.scratch.resolve())
            for name in ("home", "tmp"):
                os.mkdir(os.path.join(self._run, name))
        return self._run

    def keep_tree(self) -> None:
        """See `aiopt.protocols.Workspace.keep_tree`: it is used in place, not a copy."""

    async def new_run(self, label: str) -> None:
        """See `aiopt.protocols.Workspace.new_run`.

        The old folder goes, unless something still runs.
        """
        if self._run is not None:
            self._old_runs.append(self._run)
            self._run = None
            self._forget_ruleset()
        if not self._busy:
            await self._clean()
        self.run_folder  # noqa: B018  (creates it)

    async def _clean(self) -> None:
        while self._old_runs:
            await _files.remove(self._old_runs[-1])
            self._old_runs.pop()

    def expand(self, text: str) -> str:
        """`text` with our folders in place of the placeholders."""
        if "{" not in text:
            return text
        return _PLACEHOLDER.sub(lambda match: self._folder(match[1]), text)

    def _folder(self, name: str) -> str:
        return {"source": self._source, "harness": self._harness}.get(name) or self.run_folder

    def _path(self, remote: str) -> Path:
        return Path(self._source, self.expand(remote))

    def _roots(self) -> tuple[str, ...]:
        return (self._source, self._harness, self.run_folder)

    async def put(self, local: Path, remote: str) -> None:
        """See `aiopt.protocols.Workspace.put`.

        A relative path begins at `{source}`; links keep being links.

        Raises:
            PermissionError: a link would lead out of the workspace.
        """
        await to_thread.run_sync(_files.put, local, self._path(remote), self._roots())

    async def get(self, remote: str, local: Path) -> None:
        """See `aiopt.protocols.Workspace.get`.

        A relative path begins at `{source}`; links keep being links.

        Raises:
            FileNotFoundError: nothing is there.
            PermissionError: a link leads out of the workspace.
        """
        await to_thread.run_sync(_files.get, self._path(remote), local, self._roots())

    async def digest(self, patterns: Sequence[str], folder: str = "{source}") -> tuple[str, int]:
        """See `aiopt.protocols.Workspace.digest`."""
        return await to_thread.run_sync(_files.digest, self._path(folder), tuple(patterns))

    async def free_port(self) -> int:
        """See `aiopt.protocols.Workspace.free_port`. Nothing keeps it free."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    async def connect(self, port: int) -> ByteStream:
        """See `aiopt.protocols.Workspace.connect`."""
        return await anyio.connect_tcp("127.0.0.1", port)

    async def covariates(self) -> Mapping[str, float]:
        """See `aiopt.protocols.Workspace.covariates`."""
        return host.covariates()

    # ---- commands ----

    @property
    def supervisor(self) -> ProcessRef | None:
        """See `aiopt.protocols.Workspace.supervisor`. If all are busy this starts another."""
        if not self._idle:
            self._idle.append(self._supervise())
        return ProcessRef(**self._idle[-1].ref._asdict())

    def new_job(self) -> str:
        """See `aiopt.protocols.Workspace.new_job`: nobody can, they end with their controller."""
        return ""

    async def adopt(self, job: str, command: Command, sink: Sink) -> Completed | None:
        """See `aiopt.protocols.Workspace.adopt`."""
        return None

    async def run(self, command: Command, sink: Sink) -> Completed:
        """See `aiopt.protocols.Workspace.run`."""
        supervisor = self._take()
        shared = shared_memory.entries()
        job: Job | None = None
        try:
            job = self._begin(supervisor, command, sink, tell=False)
            self._running.add(job)
            with anyio.move_on_after(command.timeout):
                return await job.finished()
            await job.kill(self._backend.grace_seconds)
            raise CommandTimeout(command.argv, command.timeout, job.stdout_tail)
        except BaseException:
            if job is not None and job.outcome is None and supervisor.usable:
                await job.kill(self._backend.grace_seconds)
            raise
        finally:
            if job is not None:
                self._running.discard(job)
                job.close()
            self._give_back(supervisor)
            await self._sweep(shared)

    async def start(self, command: Command, sink: Sink) -> Service:
        """See `aiopt.protocols.Workspace.start`. `command.timeout` does not apply."""
        supervisor = self._take()
        shared = shared_memory.entries()
        try:
            job = self._begin(supervisor, command, sink, tell=True)
        except BaseException:
            self._give_back(supervisor)
            raise
        try:
            pid = await job.started()
        except BaseException:
            if job.outcome is None and supervisor.usable:
                await job.kill(0)
            job.close()
            self._give_back(supervisor)
            raise
        service = LocalService(job, pid)
        self._services.append(service)
        self._tasks.start_soon(self._attend, service, supervisor, shared)
        return service

    async def _attend(
        self, service: "LocalService", supervisor: Supervisor, shared: frozenset[str]
    ) -> None:
        with anyio.CancelScope(shield=True):  # `close` ends it
            try:
                await service.attend()
            finally:
                self._give_back(supervisor)
                await self._sweep(shared)
                service.over.set()

    async def _sweep(self, before: frozenset[str]) -> None:
        if shared_memory.entries() - before:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(shared_memory.remove_leftovers, before)

    def _supervise(self) -> Supervisor:
        try:
            return self._pool.take()
        except CannotStart as error:
            raise BackendUnavailable(str(error)) from error
        except SupervisorLost as error:
            raise SessionLost(str(error)) from error

    def _take(self) -> Supervisor:
        supervisor = self._idle.pop() if self._idle else self._supervise()
        if not self._busy:
            self._all_given_back = anyio.Event()
        self._busy += 1
        return supervisor

    def _give_back(self, supervisor: Supervisor) -> None:
        self._busy -= 1
        if not self._busy:
            self._all_given_back.set()
        if supervisor.usable:
            self._idle.append(supervisor)
        else:
            supervisor.close()

    def _begin(self, supervisor: Supervisor, command: Command, sink: Sink, *, tell: bool) -> Job:
        self._commands += 1
        marker = f"{self._spec.marker}/{self._commands:04d}"
        argv = [self.expand(word) for word in command.argv]
        env = self._environment(command, marker)
        cwd = str(Path(self._source, self.expand(command.cwd)))
        if not argv or not argv[0]:
            raise ValueError("a command needs at least the name of a program")
        if any("\0" in text for text in [*argv, cwd, *env, *env.values()]):
            raise ValueError(
                f"{argv[0]!r}: a NUL character in its arguments, folder or environment"
            )
        lock = None if self._spec.stages_lock is None else _shared_lock(self._spec.stages_lock)
        try:
            return Job(
                supervisor,
                self._commands,
                {"argv": argv, "env": env, "cwd": cwd, "files": executables(argv[0], env)},
                stdin=command.stdin,
                ruleset=self._allowed_writes() if self._backend.confines else None,
                lease=self._spec.lease_fd,
                lock=lock,
                tell=tell,
                sink=sink,
                cap=self._backend.output_cap_bytes,
                marker=marker,
            )
        finally:
            if lock is not None:
                os.close(lock)  # the command has it now

    def _environment(self, command: Command, marker: str) -> dict[str, str]:
        run = self.run_folder
        env = passed_environment(self._spec.pass_env)
        env |= {"HOME": f"{run}/home", "TMPDIR": f"{run}/tmp", "AIOPT_JOB": marker}
        env |= {"SOURCE_DIR": self._source, "TARGET_DIR": self._harness, "RUN_DIR": run}
        return env | {name: self.expand(text) for name, text in command.env.items()}

    def _allowed_writes(self) -> int:
        """A Landlock ruleset, kept until the next run folder."""
        if self._ruleset is None:
            shared = [shared_memory.FOLDER] if self._backend.shared_memory else []
            writable = [self.expand(path) for path in self._spec.writable]
            for path in writable:
                os.makedirs(path, exist_ok=True)
            folders = [self._source, self.run_folder, *writable, *shared]
            self._ruleset = landlock.write_ruleset(folders, _DEVICES)
        return self._ruleset

    def _forget_ruleset(self) -> None:
        if self._ruleset is not None:
            os.close(self._ruleset)
            self._ruleset = None

    # ---- the end ----

    async def close(self) -> None:
        """End all commands, give back the supervisors, remove the run folders. Not to be cancelled.

        Commands of other tasks may be running: those tasks learn of their end, or are cancelled
        themselves and ending them.
        """
        for job in self._running:
            job.end_soon(self._backend.grace_seconds)
        async with anyio.create_task_group() as tasks:
            for service in self._services:
                tasks.start_soon(service.end, self._backend.grace_seconds)
        if self._busy:
            await self._all_given_back.wait()
        for supervisor in self._idle:
            self._pool.give(supervisor)
        self._forget_ruleset()
        if self._run is not None:
            self._old_runs.append(self._run)
        await self._clean()


def _shared_lock(path: Path) -> int:
    """A shared lock, for one command: whoever unlocks it there frees only this one.

    Raises:
        BackendUnavailable: somebody holds it exclusively, who thinks that nothing runs.
    """
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise BackendUnavailable(f"{path}: another controller is just taking over") from error
    return lock
