"""One candidate's stages, and the events that they leave.

A backend knows nothing of events; `Stages` wraps its workspace and writes them. `prepare` takes a
candidate through source, build, test and binary identity; `Stages.execute` is one execution of the
workload with everything around it.
"""

import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import Protocol

import anyio
from attrs import define, evolve, field, frozen

from aiopt.blobs import BlobStore
from aiopt.errors import CommandTimeout, SessionLost
from aiopt.events import (
    ArtifactBuilt,
    GateFailed,
    GatePassed,
    LayoutBuilt,
    SourcePrepared,
    StageFinished,
    StageName,
    StageOutcome,
    StageStarted,
)
from aiopt.metrics import Parser, Problem, parse
from aiopt.protocols import Command, Completed, OutputStream, Service, Usage, Workspace
from aiopt.target import Ready, Stage, Target

__all__ = [
    "PROFILE_FOLDER",
    "Built",
    "Earlier",
    "Emit",
    "Execution",
    "Output",
    "Profiled",
    "StageResult",
    "Stages",
    "Tool",
    "prepare",
    "rebuild",
]

Emit = Callable[..., None]
"""Writes events, in one transaction, to the stream of the experiment."""

PROFILE_FOLDER = "{run}/profile"
"""Where profilers write, empty before each run."""

_PROFILE_GRACE = 120.0
"""Seconds that a profiled service may take to end: its profiler has a file to write."""

_STDOUT_CAP = 32 * 1024 * 1024
"""Bytes of standard output that are kept for the parsers; the backend caps the rest before."""


@define
class Output:
    """A sink that keeps what a command prints: both streams in order
    of arrival, and standard output by itself.
    """

    log: bytearray = field(factory=bytearray)
    stdout: bytearray = field(factory=bytearray)
    on_data: Callable[[], None] | None = None

    def write(self, stream: OutputStream, data: bytes) -> None:
        self.log += data
        if stream == "stdout" and len(self.stdout) < _STDOUT_CAP:
            self.stdout += data
        if self.on_data is not None:
            self.on_data()

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    def tail(self, lines: int = 3, width: int = 300) -> str:
        """The last lines, for a message."""
        text = self.log[-4096:].decode(errors="replace").strip().splitlines()
        return " | ".join(text[-lines:])[-width:]


@frozen(kw_only=True)
class StageResult:
    """How one stage ended."""

    outcome: StageOutcome
    detail: str
    """One line for people: what happened and the last thing it said."""
    output: Output
    usage: Usage | None
    log: str | None

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"


@frozen(kw_only=True)
class Execution:
    """One execution of the workload: what was measured, or why that failed."""

    metrics: Mapping[str, tuple[float, ...]] = field(factory=dict)
    texts: Mapping[str, str] = field(factory=dict)
    problems: tuple[Problem, ...] = ()
    log: str | None = None
    failed_stage: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        return not self.failed_stage


@frozen(kw_only=True)
class Profiled:
    """One execution under a profiler.

    Not an `Execution`, on purpose: its figures are not those of the program alone, and what makes
    runs, pairs and verdicts does not take it.
    """

    under_profiler: Mapping[str, tuple[float, ...]]
    failed_stage: str
    detail: str

    @property
    def ok(self) -> bool:
        return not self.failed_stage


class Tool(Protocol):
    """What `Stages.execute_profiled` needs of a profiler."""

    @property
    def slowdown(self) -> float:
        """By how much longer everything may take."""
        ...

    def wrap(self, command: Command) -> Command:
        """What to run instead of the service or the workload."""
        ...

    def query(self, env: Mapping[str, str]) -> Command | None:
        """What to run when the workload is over and a service still there."""
        ...

    def finish(self) -> Command | None:
        """What to run when all has ended."""
        ...


@frozen(kw_only=True)
class Built:
    """A candidate that is ready to be run, in its workspace."""

    candidate: str
    tree: str
    artifact: str | None
    workspace: Workspace


@frozen(kw_only=True)
class Earlier:
    """What an earlier controller got to with a candidate."""

    attempts: Mapping[tuple[str, str], int] = field(factory=dict)
    """By stage and run, how often each was begun."""
    cut_off: Mapping[tuple[str, int, str], StageStarted] = field(factory=dict)
    """By stage, attempt and run, those of which no end is known."""
    artifact: str | None = None
    """What it had built; a build whose files are still the same is not repeated."""
    passed: Sequence[str] = ()
    """The gates that it had passed with that."""


class Stages:
    """Runs the stages of one target in one workspace and writes their events."""

    def __init__(
        self,
        target: Target,
        workspace: Workspace,
        emit: Emit,
        blobs: BlobStore,
        parser: str | Parser,
        earlier: Earlier | None = None,
    ) -> None:
        self._target = target
        self._workspace = workspace
        self._emit = emit
        self._blobs = blobs
        self._parser = parser
        earlier = earlier or Earlier()
        self._attempts, self._cut_off = dict(earlier.attempts), dict(earlier.cut_off)

    def writing_to(self, emit: Emit) -> "Stages":
        """The same stages in the same workspace, as part of another experiment."""
        other = copy(self)
        other._emit, other._attempts, other._cut_off = emit, {}, {}
        return other

    # -- single stages --

    def _next_attempt(self, name: StageName, run: str) -> int:
        attempt = self._attempts.get((name, run), 0)
        self._attempts[name, run] = attempt + 1
        return attempt

    def _command(self, stage: Stage, env: Mapping[str, str], label: str) -> Command:
        return Command(
            argv=stage.argv,
            env={**self._target.environment, **env, **stage.env},
            timeout=stage.timeout,
            label=label,
        )

    def _started(self, name: StageName, attempt: int, command: Command, run: str) -> None:
        self._emit(
            StageStarted(
                stage=name,
                attempt=attempt,
                argv=command.argv,
                timeout=command.timeout,
                supervisor=self._workspace.supervisor,
                run=run,
                job=command.job,
            )
        )

    async def run(
        self, name: StageName, stage: Stage, env: Mapping[str, str], run: str = ""
    ) -> StageResult:
        """Run one stage to its end; how it ends is a value.

        Raises:
            SessionLost: the machinery went away; logged as outcome `lost`.
        """
        command = self._command(stage, env, name)
        return await self._run(name, command, run)

    async def run_on(
        self, name: StageName, stage: Stage, env: Mapping[str, str], run: str = ""
    ) -> StageResult:
        """The same, but one that an earlier controller began and that goes on without it is not
        begun again.

        Raises:
            SessionLost: the machinery went away; logged as outcome `lost`.
        """
        command = self._command(stage, env, name)
        for (cut_off, attempt, of_run), started in list(self._cut_off.items()):
            if (cut_off, of_run) != (name, run) or not started.job:
                continue
            del self._cut_off[cut_off, attempt, of_run]

            async def adopt(output: Output, job: str = started.job) -> Completed | None:
                return await self._workspace.adopt(job, command, output)

            found = await self._to_its_end(name, attempt, command, run, adopt)
            if found is not None:
                return found
        return await self._run(name, command, run)

    async def _run(self, name: StageName, command: Command, run: str) -> StageResult:
        attempt = self._next_attempt(name, run)
        command = evolve(command, job=self._workspace.new_job())
        self._started(name, attempt, command, run)

        async def begin(output: Output) -> Completed | None:
            return await self._workspace.run(command, output)

        result = await self._to_its_end(name, attempt, command, run, begin)
        assert result is not None
        return result

    async def _to_its_end(
        self,
        name: StageName,
        attempt: int,
        command: Command,
        run: str,
        wait: Callable[[Output], Awaitable[Completed | None]],
    ) -> StageResult | None:
        output, began = Output(), anyio.current_time()
        try:
            done = await wait(output)
        except CommandTimeout:
            seconds = anyio.current_time() - began
            self._finished(name, attempt, run, "timeout", None, output, seconds)
            detail = f"still running after {command.timeout:g} s; killed"
            return self._result("timeout", detail, output, None)
        except SessionLost:
            self._finished(name, attempt, run, "lost", None, output, anyio.current_time() - began)
            raise
        if done is None:
            return None
        outcome: StageOutcome = "ok" if done.ok else "failed"
        self._finished(name, attempt, run, outcome, done, output, done.usage.wall_seconds)
        return self._result(outcome, _how_it_ended(done), output, done.usage)

    def _finished(
        self,
        name: StageName,
        attempt: int,
        run: str,
        outcome: StageOutcome,
        done: Completed | None,
        output: Output,
        seconds: float,
    ) -> None:
        usage = done.usage if done is not None else None
        self._emit(
            StageFinished(
                stage=name,
                attempt=attempt,
                outcome=outcome,
                exit_code=done.exit_code if done else None,
                signal=done.signal if done else None,
                seconds=round(seconds, 6),
                cpu_seconds=round(usage.cpu_seconds, 6) if usage else 0.0,
                peak_rss_bytes=usage.peak_rss_bytes if usage else 0,
                log=self._keep(output),
                dropped_bytes=done.dropped_bytes if done else 0,
                strays_killed=done.strays_killed if done else 0,
                run=run,
            )
        )

    def _keep(self, output: Output) -> str | None:
        return self._blobs.put(bytes(output.log)) if output.log else None

    def _result(
        self, outcome: StageOutcome, detail: str, output: Output, usage: Usage | None
    ) -> StageResult:
        said = output.tail() if outcome != "ok" else ""
        return StageResult(
            outcome=outcome,
            detail=f"{detail}: {said}" if said else detail,
            output=output,
            usage=usage,
            log=self._keep(output),
        )

    # -- one execution of the workload --

    async def execute(self, workload: str, run: str) -> Execution:
        """deploy, workload, collect, teardown in a fresh run folder; a
        service is started anew and is gone afterwards.

        Raises:
            SessionLost: the machinery went away.
        """
        return await self._execute(workload, run, None)

    async def execute_profiled(self, workload: str, run: str, tool: Tool) -> Profiled:
        """The same with a profiler around what is measured: the service if there is one, else
        the workload.

        Raises:
            SessionLost: the machinery went away.
        """
        execution = await self._execute(workload, run, tool)
        finish = tool.finish()
        if execution.ok and finish is not None:
            finished = await self._run("profile", finish, run)
            if not finished.ok:
                execution = Execution(failed_stage="profile", detail=finished.detail)
        return Profiled(
            under_profiler=execution.metrics,
            failed_stage=execution.failed_stage,
            detail=execution.detail,
        )

    async def _execute(self, workload: str, run: str, tool: Tool | None) -> Execution:
        await self._workspace.new_run(run)
        if tool is not None:
            folder = Command(argv=("mkdir", "-p", PROFILE_FOLDER), cwd="{run}")
            await self._workspace.run(folder, Output())
        env = {"WORKLOAD": workload, **self._target.workloads[workload].env}
        stages = self._target.stages
        deploy = stages.deploy
        if deploy is not None and deploy.service:
            execution = await self._with_service(deploy, env, run, tool)
        else:
            execution = await self._without_service(deploy, env, run, tool)
        if stages.teardown is not None:
            cleaned = await self.run("teardown", stages.teardown, env, run)
            if not cleaned.ok and execution.ok:
                return Execution(failed_stage="teardown", detail=cleaned.detail, log=cleaned.log)
        return execution

    async def _without_service(
        self,
        deploy: Stage | None,
        env: Mapping[str, str],
        run: str,
        tool: Tool | None,
    ) -> Execution:
        if deploy is not None:
            deployed = await self.run("deploy", deploy, env, run)
            if not deployed.ok:
                return Execution(failed_stage="deploy", detail=deployed.detail, log=deployed.log)
        return await self._measure(env, run, tool)

    async def _with_service(
        self,
        deploy: Stage,
        env: Mapping[str, str],
        run: str,
        tool: Tool | None,
    ) -> Execution:
        port = await self._workspace.free_port()
        env = {**env, "SERVICE_HOST": "127.0.0.1", "SERVICE_PORT": str(port)}
        command = self._command(deploy, env, "deploy")
        if tool is not None:
            command = tool.wrap(command)
        command = evolve(command, job=self._workspace.new_job())
        attempt, output = self._next_attempt("deploy", run), Output()
        self._started("deploy", attempt, command, run)
        began = anyio.current_time()
        service = await self._workspace.start(command, output)
        try:
            assert deploy.ready is not None
            patience = 1.0 if tool is None else tool.slowdown
            ready = await self._wait_ready(deploy.ready, patience, service, output, port)
            if ready:
                execution = Execution(failed_stage="deploy", detail=ready)
            else:
                pid = service.pid if tool is None else await self._largest_below(service.pid)
                env = {**env, "SERVICE_PID": str(pid)}
                execution = await self._measure(env, run, tool, service)
        finally:
            with anyio.CancelScope(shield=True):
                died = service.exited()
                done = await service.stop(5.0 if tool is None else _PROFILE_GRACE)
        seconds = anyio.current_time() - began
        expected = done.ok or done.signal == signal.SIGTERM
        if tool is not None:  # what a shell makes of a program that TERM ended
            expected = expected or done.exit_code == 128 + signal.SIGTERM
        outcome: StageOutcome = "ok" if expected and not died and execution.ok else "failed"
        self._finished("deploy", attempt, run, outcome, done, output, seconds)
        if execution.failed_stage == "deploy" or (died and not execution.ok):
            said = output.tail()
            detail = execution.detail if not died else f"the service ended: {_how_it_ended(done)}"
            return Execution(
                failed_stage="deploy",
                detail=f"{detail}: {said}" if said else detail,
                log=self._keep(output),
            )
        if not execution.ok:
            return execution
        usage = {
            "service_cpu_seconds": done.usage.cpu_seconds,
            "service_peak_rss_mb": done.usage.peak_rss_bytes / 1e6,
        }
        return self._with_usage(execution, usage)

    async def _largest_below(self, pid: int) -> int:
        """Of a process and all below it, the one that holds most memory: a profiler is small
        beside the service that it started.
        """
        output = Output()
        listed = Command(argv=("ps", "-A", "-o", "pid=,ppid=,rss="), cwd="{run}", timeout=10)
        if not (await self._workspace.run(listed, output)).ok:
            return pid
        rows = [tuple(map(int, line.split())) for line in output.text.splitlines()]
        below = {pid}
        while more := {row[0] for row in rows if row[1] in below} - below:
            below |= more
        return max(((row[2], row[0]) for row in rows if row[0] in below), default=(0, pid))[1]

    async def _wait_ready(
        self, ready: Ready, patience: float, service: Service, output: Output, port: int
    ) -> str:
        """An empty text when the service answers, else what went wrong."""
        timeout = ready.timeout * patience
        with anyio.move_on_after(timeout):
            while not await self._is_ready(ready, output, port):
                if service.exited():
                    return "the service ended before it was ready"
                await anyio.sleep(0.01)
            return ""
        return f"not ready after {timeout:g} s ({_describe(ready)})"

    async def _is_ready(self, ready: Ready, output: Output, port: int) -> bool:
        if ready.line is not None:
            return re.search(ready.line, output.text, re.MULTILINE) is not None
        try:
            stream = await self._workspace.connect(port)
        except OSError:
            return False
        async with stream:
            if ready.http is None:
                return True
            try:
                request = f"GET {ready.http} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
                await stream.send(request.encode())
                answer = await stream.receive()
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                return False
        return re.match(rb"HTTP/1\.[01] 2\d\d", answer) is not None

    async def _measure(
        self,
        env: Mapping[str, str],
        run: str,
        tool: Tool | None,
        service: Service | None = None,
    ) -> Execution:
        command = self._command(self._target.stages.workload, env, "workload")
        if tool is not None:
            patient = evolve(command, timeout=command.timeout * tool.slowdown)
            command = tool.wrap(patient) if service is None else patient
        worked = await self._run("workload", command, run)
        if not worked.ok:
            return Execution(failed_stage="workload", detail=worked.detail, log=worked.log)
        query = None if tool is None else tool.query(env)
        if query is not None:
            asked = await self._run("profile", query, run)
            if not asked.ok:
                return Execution(failed_stage="profile", detail=asked.detail, log=asked.log)
        text = worked.output.text
        if self._target.stages.collect is not None:
            collected = await self.run("collect", self._target.stages.collect, env, run)
            if not collected.ok:
                return Execution(failed_stage="collect", detail=collected.detail, log=collected.log)
            text = f"{text}\n{collected.output.text}"
        wanted = {
            name: metric.kind
            for name, metric in self._target.metrics.items()
            if metric.measured_by == "target"
        }
        parsed = parse(self._parser, text, wanted)
        execution = Execution(
            metrics=parsed.samples,
            texts=parsed.texts,
            problems=parsed.problems,
            log=self._blobs.put(text.encode()),  # what the parser saw
        )
        assert worked.usage is not None
        usage = {
            "wall_seconds": worked.usage.wall_seconds,
            "cpu_seconds": worked.usage.cpu_seconds,
            "peak_rss_mb": worked.usage.peak_rss_bytes / 1e6,
        }
        return self._with_usage(execution, usage)

    def _with_usage(self, execution: Execution, usage: Mapping[str, float]) -> Execution:
        """Add what aiopt measured itself, where the target asks for it."""
        asked = {
            name: (usage[name],)
            for name, metric in self._target.metrics.items()
            if metric.measured_by == "aiopt" and name in usage
        }
        return Execution(
            metrics={**execution.metrics, **asked},
            texts=execution.texts,
            problems=execution.problems,
            log=execution.log,
        )


def _how_it_ended(done: Completed) -> str:
    if done.signal is not None:
        try:
            return f"killed by {signal.Signals(done.signal).name}"
        except ValueError:
            return f"killed by signal {done.signal}"
    return f"exit {done.exit_code}"


def _describe(ready: Ready) -> str:
    if ready.line is not None:
        return f"no line matches {ready.line!r}"
    return f"no answer to GET {ready.http}" if ready.http else "nothing listens on its port"


# ---- before anything is measured ----


async def prepare(
    stages: Stages,
    target: Target,
    workspace: Workspace,
    emit: Emit,
    *,
    candidate: str,
    tree: str,
    harness_digest: str,
    incumbent_artifact: str | None,
    earlier: Earlier | None = None,
) -> Built | None:
    """Build and test a candidate whose source is in the workspace;
    None if a gate failed, which is then logged.

    A build of an earlier controller whose files are still the same is not repeated, nor is a test
    that it passed.
    """
    emit(SourcePrepared(tree=tree, harness_digest=harness_digest))
    await workspace.new_run("prepare")
    artifact: str | None = None
    earlier = earlier or Earlier()
    patterns, passed = target.artifact.paths, earlier.passed
    if earlier.artifact is not None and patterns:
        artifact, _ = await workspace.digest(patterns)
    if artifact is None or artifact != earlier.artifact:
        passed = ()
        if target.stages.build is not None:
            built = await stages.run_on("build", target.stages.build, target.build_env(0))
            if not built.ok:
                emit(GateFailed(gate="build", detail=built.detail, log=built.log))
                return None
        if patterns:
            artifact, files = await workspace.digest(patterns)
            if files == 0:
                detail = f"the build left no file that matches artifact.paths {list(patterns)}"
                emit(GateFailed(gate="build", detail=detail))
                return None
            emit(ArtifactBuilt(digest=artifact, files=files, incumbent_digest=incumbent_artifact))
    if target.stages.test is not None and "test" not in passed:
        tested = await stages.run_on("test", target.stages.test, {})
        if not tested.ok:
            emit(GateFailed(gate="test", detail=tested.detail, log=tested.log))
            return None
        emit(GatePassed(gate="test"))
    return Built(candidate=candidate, tree=tree, artifact=artifact, workspace=workspace)


async def rebuild(
    stages: Stages,
    target: Target,
    workspace: Workspace,
    emit: Emit,
    *,
    candidate: str,
    tree: str,
    layout: int,
    known_artifact: str | None = None,
) -> Built | GateFailed:
    """Build a candidate that passed its gates in another layout; the gate if that fails, which is
    not logged yet: whose fault it is depends on the arm.

    It is not tested again: it is the same source, and only timing may differ. Should the layout
    change more than that, digest metrics tell, which are compared in every pair.
    """
    build = target.stages.build
    assert build is not None  # a target without it has no variable for layouts
    await workspace.new_run("prepare")
    artifact: str | None = None
    patterns = target.artifact.paths
    if known_artifact is not None and patterns:
        artifact, _ = await workspace.digest(patterns)
    if artifact is None or artifact != known_artifact:
        env = target.build_env(layout)
        built = await stages.run_on("build", build, env, f"layout:{layout}")
        if not built.ok:
            detail = f"in layout {layout}: {built.detail}"
            return GateFailed(gate="build", detail=detail, log=built.log)
        if patterns:
            artifact, files = await workspace.digest(patterns)
            if files == 0:
                detail = f"in layout {layout}: it left no file that matches {list(patterns)}"
                return GateFailed(gate="build", detail=detail)
    emit(LayoutBuilt(candidate=candidate, layout=layout, digest=artifact))
    return Built(candidate=candidate, tree=tree, artifact=artifact, workspace=workspace)
