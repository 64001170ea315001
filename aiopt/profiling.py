"""The profilers' runs: each profiler has its own, in an empty folder, and says what it found.

Whatever keeps a profiler from giving evidence is an event with the reason; it is neither a number
nor an exception, and it changes no verdict.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import anyio
from attrs import evolve, frozen

from aiopt.blobs import BlobStore
from aiopt.errors import CommandTimeout
from aiopt.events import EvidenceCaptured, ProfilerUnavailable
from aiopt.lifecycle import PROFILE_FOLDER, Emit, Output, Profiled
from aiopt.measure import Side, moved
from aiopt.protocols import (
    Backend,
    Command,
    Failed,
    Finishing,
    Inconclusive,
    Measured,
    NotAvailable,
    Profiler,
    ProfileResult,
    Querying,
    Repeating,
    Versioned,
    Workspace,
)

__all__ = ["ProfileRunner", "no_evidence", "probed"]

_OUTPUT = f"{PROFILE_FOLDER}/out"
_LARGEST = 1 << 30
"""Bytes of a profile that is fetched; what is larger has cost more than it tells."""
_PROBE_SECONDS = 30.0


@frozen(kw_only=True)
class _Around:
    """One profiler around the commands of one execution."""

    profiler: Profiler
    slowdown: float

    def wrap(self, command: Command) -> Command:
        """See `lifecycle.Tool.wrap`."""
        wrapped = self.profiler.wrap(command, _OUTPUT)
        return evolve(wrapped, env={**wrapped.env, "LC_ALL": "C"}, stdin=b"")

    def query(self, env: Mapping[str, str]) -> Command | None:
        """See `lifecycle.Tool.query`."""
        if not isinstance(self.profiler, Querying):
            return None
        return self._later(self.profiler.query(_OUTPUT, env))

    def finish(self) -> Command | None:
        """See `lifecycle.Tool.finish`."""
        if not isinstance(self.profiler, Finishing):
            return None
        return self._later(self.profiler.finish(_OUTPUT))

    def _later(self, command: Command) -> Command:
        return evolve(command, env={"LC_ALL": "C", **command.env}, stdin=b"")


async def probed(profiler: Profiler, workspace: Workspace) -> NotAvailable | None:
    """What keeps the profiler from working there, if anything does; broken probes are answers."""
    try:
        with anyio.fail_after(_PROBE_SECONDS):
            return await profiler.probe(workspace)
    except (TimeoutError, CommandTimeout):
        return NotAvailable(reason=f"its probe gave no answer in {_PROBE_SECONDS:g} s")
    except Exception as error:  # a plug-in's own fault must not end a campaign
        return NotAvailable(reason=f"its probe failed: {type(error).__name__}: {error}")


@frozen(kw_only=True)
class ProfileRunner:
    """Runs profilers on what was built, one after the other."""

    profilers: Mapping[str, Profiler]
    backend: Backend
    blobs: BlobStore
    scratch: Path
    slowdown: float
    """By how much longer every stage of a profiled run may take."""

    async def run(self, side: Side, workload: str, emit: Emit, done: frozenset[str]) -> None:
        """Let each profiler that is not among `done` have its runs of this workload.

        Raises:
            SessionLost: the machinery went away.
        """
        for name, profiler in self.profilers.items():
            if name not in done:
                emit(await self._profile(name, profiler, side, workload))

    async def _profile(
        self, name: str, profiler: Profiler, side: Side, workload: str
    ) -> EvidenceCaptured | ProfilerUnavailable:
        workspace, candidate = side.built.workspace, side.built.candidate
        await workspace.new_run(f"probe:{name}")
        unavailable = await probed(profiler, workspace)
        if unavailable is not None:
            return no_evidence(name, candidate, unavailable)
        tool = await _tool(profiler, workspace)
        before = await workspace.covariates()
        files: list[Path] = []
        metrics: dict[str, tuple[float, ...]] = {}
        try:
            for number in range(profiler.runs if isinstance(profiler, Repeating) else 1):
                run = f"profile:{name}:{workload}:{number}"
                ran, file = await self._run(profiler, side, workload, run)
                if isinstance(file, Failed):
                    return no_evidence(name, candidate, file)
                files.append(file)
                for metric, samples in ran.under_profiler.items():
                    metrics[metric] = (*metrics.get(metric, ()), *samples)
            artifacts = tuple(self.blobs.put_file(file) for file in files)
            result = await anyio.to_thread.run_sync(_parsed, profiler, files)
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        if not isinstance(result, Measured):
            return no_evidence(name, candidate, result)
        after = await workspace.covariates()
        return EvidenceCaptured(
            profiler=name,
            candidate=candidate,
            workload=workload,
            scalars=dict(result.scalars),
            stacks=self.blobs.put(result.stacks.encode()) if result.stacks else None,
            artifacts=artifacts,
            stacks_unit=result.stacks_unit,
            findings=result.findings,
            notes=result.notes,
            under_profiler=metrics,
            covariates={**before, **moved(before, after)},
            tool=tool,
        )

    async def _run(
        self, profiler: Profiler, side: Side, workload: str, run: str
    ) -> tuple[Profiled, Path | Failed]:
        """One execution under the profiler, and the file that it left."""
        workspace = side.built.workspace
        around = _Around(profiler=profiler, slowdown=self.slowdown)
        async with self.backend.measuring():
            ran = await side.stages.execute_profiled(workload, run, around)
        size = await _size(workspace)
        if not size:
            why = f"{ran.failed_stage}: {ran.detail}" if ran.detail else "the run itself was fine"
            state = "an empty profile" if size == 0 else "no profile"
            return ran, Failed(reason=f"it wrote {state}; {why}")
        if not ran.ok:
            return ran, Failed(reason=f"{ran.failed_stage} failed under it: {ran.detail}")
        if size > _LARGEST:
            return ran, Failed(
                reason=f"its profile has {size / 1e9:.1f} GB, more than {_LARGEST / 1e9:.1f}: "
                "profile a shorter workload, or sample less often"
            )
        file = self.scratch / f"{run.replace(':', '-')}.profile"
        await workspace.get(_OUTPUT, file)
        return ran, file


async def _tool(profiler: Profiler, workspace: Workspace) -> str:
    """The first line in which the tool says its version; empty if it does not."""
    if not isinstance(profiler, Versioned):
        return ""
    output = Output()
    try:
        await workspace.run(profiler.version(), output)
    except CommandTimeout:
        return ""
    return next((line.strip()[:200] for line in output.text.splitlines() if line.strip()), "")


async def _size(workspace: Workspace) -> int | None:
    """Bytes of the profile; None if there is none."""
    output = Output()
    done = await workspace.run(Command(argv=("stat", "-c", "%s", _OUTPUT), timeout=30), output)
    return int(output.text) if done.ok else None


def _parsed(profiler: Profiler, files: list[Path]) -> ProfileResult:
    with ExitStack() as opened:
        try:
            return profiler.parse([opened.enter_context(file.open("rb")) for file in files])
        except Exception as error:  # a parser should answer anything, but plug-ins are anybody's
            return Failed(reason=f"its parser failed: {type(error).__name__}: {error}")


def no_evidence(
    name: str, candidate: str, result: NotAvailable | Failed | Inconclusive
) -> ProfilerUnavailable:
    """How the log says that a profiler found nothing."""
    return ProfilerUnavailable(
        profiler=name,
        candidate=candidate,
        status=result.status,
        reason=result.reason,
        fix=result.fix if isinstance(result, NotAvailable) else "",
    )
