"""What a campaign has on disk and keeps running: its source, the copy
of the harness, and one workspace per candidate.

Everything lies in one folder beside the log that can be deleted at any time; the log alone says
what was done.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus
from attrs import define

from aiopt.blobs import BlobStore
from aiopt.candidate import canonical
from aiopt.errors import ConfigError
from aiopt.events import GateFailed, PatchRef, ProcessRef
from aiopt.ids import digest
from aiopt.lease import Lease
from aiopt.lifecycle import Earlier, Emit, Stages, prepare, rebuild
from aiopt.measure import Side
from aiopt.metrics import Parser
from aiopt.protocols import Backend, Workspace, WorkspaceSpec
from aiopt.sources import SourceRepository, remove_tree
from aiopt.target import Target, harness_digest, harness_files

__all__ = ["Workbench", "load_parser", "marker_of"]


@define
class _Held:
    """A workspace that a task of its own keeps open, so that
    workspaces can be closed in any order.
    """

    workspace: Workspace
    harness: str | None
    """Digest of the harness that it uses, before anything ran."""
    _close: anyio.Event
    _closed: anyio.Event

    async def close(self, *, keep_tree: bool = False) -> None:
        if keep_tree:
            self.workspace.keep_tree()
        self._close.set()
        await self._closed.wait()


class Workbench:
    """The trees, the harness and the workspaces of one campaign.

    `sides` are the candidates that are built, tested and ready to be run, by id; their neutral
    rebuilds have trees and workspaces of their own, by names such as `<id>+3`.
    """

    def __init__(
        self,
        *,
        folder: Path,
        target: Target,
        backend: Backend,
        blobs: BlobStore,
        lease: Lease,
        work: Path,
        log_path: Path,
        tasks: TaskGroup,
    ) -> None:
        self.sides: dict[str, Side] = {}
        self._folder, self._target, self._backend = folder, target, backend
        self._blobs, self._lease, self._work, self._tasks = blobs, lease, work, tasks
        self._marker = marker_of(log_path)
        self._repository = SourceRepository(work, self._marker)
        self._held: dict[str, _Held] = {}
        self._harness = work / "harness"
        self._harness_names = harness_files(folder, target)
        self.harness_digest = harness_digest(folder, self._harness_names)
        self._parser = load_parser(target.output.format, folder)

    @property
    def scratch(self) -> Path:
        """For files that are needed for a moment."""
        return self._work

    async def clear(self, supervisors: Sequence[ProcessRef], spared: Sequence[str]) -> int:
        """Kill what a dead controller left running, but for jobs that are to be adopted, and remove
        its run folders; returns how many processes that were.
        """
        killed = await self._backend.kill_remains(self._marker, supervisors, spared)
        self._repository.unlock()
        remove_tree(self._work / "runs")
        self.restore_harness()
        return killed

    # -- source and harness --

    async def import_source(self) -> tuple[str, str]:
        """Commit and tree of the unmodified source.

        Raises:
            ConfigError: it cannot be had, and why.
            TimeoutError: fetching took longer than `source.timeout`.
        """
        source = self._target.source
        if source.path is not None:
            return await self._repository.import_folder(self._folder / source.path)
        with anyio.fail_after(source.timeout):
            if source.git is not None and source.revision is not None:
                return await self._repository.import_git(source.git, source.revision)
            return await self._fetched_source()

    async def _fetched_source(self) -> tuple[str, str]:
        """By the target's own script; it is the user's, so it may use
        the network and the user's environment.
        """
        script = self._target.source.script
        assert script is not None
        argv = ["sh", "-c", script] if isinstance(script, str) else list(script)
        if argv[0].startswith("./"):
            argv[0] = str(self._folder / argv[0])
        fetched = self._work / "fetched"
        remove_tree(fetched)
        fetched.mkdir(parents=True)
        try:
            env = {**os.environ, "AIOPT_JOB": self._marker}
            done = await anyio.run_process(argv, cwd=fetched, env=env, check=False)
        except OSError as error:
            raise ConfigError(
                str(self._folder / "target.toml"), [("source.script", str(error))]
            ) from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
            raise ConfigError(
                str(self._folder / "target.toml"),
                [("source.script", f"exit {done.returncode}: {' | '.join(said)}")],
            )
        imported = await self._repository.import_folder(fetched)
        remove_tree(fetched)
        return imported

    async def has_source(self, commit: str) -> bool:
        return await self._repository.has(commit)

    def restore_harness(self) -> None:
        """Copy the harness anew. Stages see the copy, so edits to the
        target's folder do not reach a running campaign.
        """
        remove_tree(self._harness)
        for name in self._harness_names:
            copy = self._harness / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self._folder / name, copy)

    def harness_archive(self) -> bytes:
        """The harness as a tar that depends on its files alone."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in self._harness_names:
                file = self._folder / name
                info = tarfile.TarInfo(name)
                info.size = file.stat().st_size
                info.mode = 0o755 if os.access(file, os.X_OK) else 0o644
                with file.open("rb") as content:
                    tar.addfile(info, content)
        return packed.getvalue()

    async def mend_harness(self) -> bool:
        """Whether somebody, code under test for instance, has modified a copy of the harness that
        a workspace uses. They are copied anew; a workspace that has one of its own is given up for
        that, and made again from its tree when it is needed.
        """
        if not await self._changed_harnesses():
            return False
        self.restore_harness()
        for name in await self._changed_harnesses():
            await self.close(name, keep_tree=True)
        return True

    async def _changed_harnesses(self) -> Sequence[str]:
        """The workspaces that use one."""
        return [
            name
            for name, held in self._held.items()
            if await _harness_in(held.workspace) != held.harness
        ]

    # -- candidates --

    def tree_of(self, candidate: str) -> Path:
        return self._work / "trees" / candidate

    async def is_intact(self, candidate: str, tree: str) -> bool:
        """Whether the candidate's source is checked out, as this tree, and unmodified."""
        return await self._repository.is_intact(self.tree_of(candidate), tree)

    async def diff(self, before: str, after: str) -> str:
        """The unified diff between two trees or commits."""
        return (await self._repository.diff(before, after)).decode(errors="surrogateescape")

    async def check_out(self, candidate: str, base: str, genome: Iterable[PatchRef]) -> str:
        """The candidate's tree: the base commit with the patches of
        its genome; returns the tree's id.

        Raises:
            PatchDoesNotApply, PatchOutOfScope: as `SourceRepository.apply`.
            CorruptLogError: a patch is not in the blob store.
        """
        patches = [canonical(self._blobs.get(patch.digest)) for patch in genome]
        folder = self.tree_of(candidate)
        return await self._repository.tree_with(base, patches, self._target.scope, folder)

    async def side(
        self,
        candidate: str,
        tree: str,
        emit: Emit,
        *,
        incumbent_artifact: str | None = None,
        earlier: Earlier | None = None,
    ) -> Side | None:
        """Build and test a candidate that is checked out; None if a
        gate failed. See `lifecycle.prepare`.
        """
        workspace = await self._open(candidate)
        stages = Stages(self._target, workspace, emit, self._blobs, self._parser, earlier)
        async with self._backend.building():
            built = await prepare(
                stages,
                self._target,
                workspace,
                emit,
                candidate=candidate,
                tree=tree,
                harness_digest=self.harness_digest,
                incumbent_artifact=incumbent_artifact,
                earlier=earlier,
            )
        if built is None:
            return None
        side = Side(built=built, stages=stages)
        self.sides[candidate] = side
        return side

    async def rebuilt(
        self,
        candidate: str,
        tree: str,
        emit: Emit,
        *,
        layout: int,
        base: str,
        genome: Iterable[PatchRef],
        earlier: Earlier,
    ) -> Side | GateFailed:
        """A candidate in another layout, kept until the candidate is closed; or the gate that
        failed. See `lifecycle.rebuild`; `base` and `genome` as in `check_out`.
        """
        name = _rebuild_name(candidate, layout)
        if name in self.sides:
            return self.sides[name]
        intact = await self.is_intact(name, tree)
        if not intact:
            await self.check_out(name, base, genome)
        workspace = await self._open(name)
        stages = Stages(self._target, workspace, emit, self._blobs, self._parser, earlier)
        async with self._backend.building():
            built = await rebuild(
                stages,
                self._target,
                workspace,
                emit,
                candidate=candidate,
                tree=tree,
                layout=layout,
                known_artifact=earlier.artifact if intact else None,
            )
        if isinstance(built, GateFailed):
            return built
        side = Side(built=built, stages=stages)
        self.sides[name] = side
        return side

    async def _open(self, candidate: str) -> Workspace:
        spec = WorkspaceSpec(
            name=candidate,
            tree=self.tree_of(candidate),
            harness=self._harness,
            scratch=self._work / "runs" / candidate,
            marker=self._marker,
            writable=self._target.writable,
            pass_env=self._target.pass_env,
            lease_fd=self._lease.fd,
            stages_lock=self._lease.stages_path,
        )
        spec.scratch.mkdir(parents=True, exist_ok=True)
        if candidate in self._held:  # its session was lost before it was ready
            await self._held.pop(candidate).close(keep_tree=True)
        held: _Held = await self._tasks.start(self._hold, spec)
        self._held[candidate] = held
        return held.workspace

    async def _hold(self, spec: WorkspaceSpec, *, task_status: TaskStatus[_Held]) -> None:
        close, closed = anyio.Event(), anyio.Event()
        try:
            async with self._backend.open(spec) as workspace:
                harness = await _harness_in(workspace)
                task_status.started(_Held(workspace, harness, close, closed))
                await close.wait()
        finally:
            closed.set()

    async def close(self, candidate: str, *, keep_tree: bool = False) -> None:
        """Give up a candidate's workspace and those of its rebuilds; nothing of them is left,
        their trees only if asked for.
        """
        for name in self._names(candidate):
            self.sides.pop(name, None)
            held = self._held.pop(name, None)
            if held is not None:
                await held.close(keep_tree=keep_tree)
            remove_tree(self._work / "runs" / name)
            if not keep_tree:
                remove_tree(self.tree_of(name))

    def _names(self, candidate: str) -> Sequence[str]:
        """The candidate's, and those of its rebuilds, also of ones that a dead controller made."""
        made = (path.name for path in (self._work / "trees").glob(f"{candidate}+*"))
        opened = (name for name in self._held if name.startswith(f"{candidate}+"))
        return candidate, *sorted({*made, *opened})

    async def close_all(self, *, keep_trees: bool) -> None:
        """Give up all workspaces. With `keep_trees` nothing needs to
        be built twice when the campaign goes on.
        """
        for candidate in list(self._held):
            await self.close(candidate, keep_tree=keep_trees)
        if not keep_trees:
            for name in ("trees", "runs", "harness", "fetched"):
                remove_tree(self._work / name)


def marker_of(log_path: Path) -> str:
    """What the processes of a log's controllers carry, so that a later one can recognise them."""
    return f"aiopt-{digest(str(log_path.resolve()).encode())[:16]}"


async def _harness_in(workspace: Workspace) -> str | None:
    """Digest of its harness, but for what Python puts beside a module that is imported; None if
    it cannot be read.
    """
    try:
        return (await workspace.digest(("*", "!*.pyc"), "{harness}"))[0]
    except OSError:
        return None


def _rebuild_name(candidate: str, layout: int) -> str:
    return f"{candidate}+{layout}"


def load_parser(name: str, folder: Path) -> str | Parser:
    """The parser of a target: the name of a format, or the function of
    `file.py:function` in the target's folder.

    Raises:
        ConfigError: there is no such file or function.
    """
    file, colon, function = name.partition(":")
    if not colon:
        return name
    path = folder / file
    spec = spec_from_file_location(f"aiopt_parser_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(str(folder / "target.toml"), [("output.format", f"no file {path}")])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., object] | None = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            str(folder / "target.toml"), [("output.format", f"{path} has no function {function}")]
        )
    return found  # type: ignore[return-value]
