"""Stages and services in real workspaces: how each way of failing is told."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from attrs import evolve

from aiopt.backends.local import LocalBackend
from aiopt.blobs import BlobStore
from aiopt.errors import ConfigError, SessionLost
from aiopt.events import (
    Event,
    EvidenceCaptured,
    ProfilerUnavailable,
    Scalar,
    StageFinished,
    StageStarted,
)
from aiopt.lifecycle import Built, Execution, Stages
from aiopt.measure import Side
from aiopt.profiling import ProfileRunner
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Workspace,
    WorkspaceSpec,
)
from aiopt.target import Ready, Target, parse_target
from aiopt.workbench import load_parser

pytestmark = pytest.mark.anyio

SERVER = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["SERVICE_PORT"])), Handler)
print("ready at", server.server_port, flush=True)
server.serve_forever()
"""

LOAD = """\
import os
from urllib.request import urlopen
urlopen("http://{SERVICE_HOST}:{SERVICE_PORT}/health".format(**os.environ))
print("requests=1")
"""

TARGET = """
name = "served"
[source]
path = "src"
[scope]
editable = ["*"]
[stages.deploy]
run = "exec python3 server.py"
service = true
ready = { line = "^ready", timeout = 10 }
[stages.workload]
run = "python3 load.py"
[stages.collect]
run = "test -d /proc/$SERVICE_PID && echo alive=1"
[stages.teardown]
run = "touch $RUN_DIR/torn"
[metrics.requests]
direction = "higher"
role = "primary"
[metrics.alive]
[metrics.wall_seconds]
measured_by = "aiopt"
[metrics.service_cpu_seconds]
measured_by = "aiopt"
[metrics.service_peak_rss_mb]
measured_by = "aiopt"
[workloads.one]
"""


def target(**stages: Any) -> Target:
    plain = parse_target(TARGET)
    return evolve(plain, stages=evolve(plain.stages, **stages))


@asynccontextmanager
async def stages_of(folder: Path, what: Target) -> AsyncIterator[tuple[Stages, list[Event]]]:
    source, harness = folder / "src", folder / "harness"
    source.mkdir()
    harness.mkdir()
    (source / "server.py").write_text(SERVER)
    (source / "load.py").write_text(LOAD)
    spec = WorkspaceSpec(
        name="x", tree=source, harness=harness, scratch=folder / "runs", marker="aiopt-test"
    )
    events: list[Event] = []
    backend = LocalBackend(lock_path=str(folder))
    async with backend.open(spec) as workspace:
        blobs = BlobStore(folder / "blobs")
        yield Stages(what, workspace, lambda *new: events.extend(new), blobs, "lines"), events


async def run(folder: Path, what: Target) -> tuple[Execution, list[Event]]:
    async with stages_of(folder, what) as (stages, events):
        return await stages.execute("one", "screen:one:0:0:A"), events


def finished(events: list[Event]) -> dict[str, StageFinished]:
    return {event.stage: event for event in events if isinstance(event, StageFinished)}


READY = {
    "line": Ready(line="^ready", timeout=10),
    "port": Ready(port=True, timeout=10),
    "http": Ready(http="/health", timeout=10),
}


@pytest.mark.parametrize("way", READY)
async def test_a_service_is_waited_for_used_and_stopped(tmp_path: Path, way: str) -> None:
    plain = target().stages.deploy
    assert plain is not None
    execution, events = await run(tmp_path, target(deploy=evolve(plain, ready=READY[way])))
    assert execution.ok, execution.detail
    assert execution.metrics["requests"] == (1.0,)
    assert execution.metrics["alive"] == (1.0,)
    assert 0 < execution.metrics["service_cpu_seconds"][0] < 5
    assert 1 < execution.metrics["service_peak_rss_mb"][0] < 200
    assert execution.metrics["wall_seconds"][0] > 0
    assert execution.problems == ()
    ended = finished(events)
    assert {name: event.outcome for name, event in ended.items()} == dict.fromkeys(
        ("workload", "collect", "deploy", "teardown"), "ok"
    )
    started = [event for event in events if isinstance(event, StageStarted)]
    assert all(event.supervisor is not None for event in started)
    assert {event.run for event in started} == {"screen:one:0:0:A"}


@pytest.mark.parametrize(
    ("command", "ready", "words"),
    [
        ("echo no; exit 3", READY["line"], "ended.*exit 3: no"),
        ("exec sleep 60", Ready(line="^ready", timeout=0.3), "not ready after 0.3 s.*no line"),
        ("exec sleep 60", Ready(port=True, timeout=0.3), "nothing listens"),
        ("exec python3 server.py", Ready(http="/none", timeout=1.5), "no answer to GET /none"),
        ("exec /no/such/program", READY["line"], "exit 127"),
    ],
)
async def test_a_service_that_never_answers(
    tmp_path: Path, command: str, ready: Ready, words: str
) -> None:
    plain = target().stages.deploy
    assert plain is not None
    what = target(deploy=evolve(plain, run=command, ready=ready))
    execution, events = await run(tmp_path, what)
    assert execution.failed_stage == "deploy"
    assert re.search(words, execution.detail), execution.detail
    assert finished(events)["deploy"].outcome == "failed"
    assert "workload" not in finished(events)
    assert finished(events)["teardown"].outcome == "ok"


async def test_a_service_that_dies_under_load_is_to_blame(tmp_path: Path) -> None:
    """Its end explains more than the failed workload does."""
    plain = target().stages
    assert plain.deploy is not None
    dies = evolve(plain.deploy, run="echo ready; sleep 0.3; echo out of luck; exit 5")
    work = evolve(plain.workload, run="sleep 1; false")
    execution, events = await run(tmp_path, target(deploy=dies, workload=work))
    assert execution.failed_stage == "deploy"
    assert re.search("the service ended: exit 5.*out of luck", execution.detail)
    assert finished(events)["deploy"].outcome == "failed"


@pytest.mark.parametrize("stage", ["workload", "collect", "teardown"])
async def test_the_stage_that_fails_is_named_with_its_last_words(
    tmp_path: Path, stage: str
) -> None:
    broken = evolve(target().stages.workload, run="echo about to fail >&2; exit 7")
    execution, events = await run(tmp_path, target(**{stage: broken}))
    assert execution.failed_stage == stage
    assert execution.detail == "exit 7: about to fail"
    assert execution.log is not None
    assert finished(events)[stage].exit_code == 7


async def test_without_a_service_deploy_runs_to_its_end(tmp_path: Path) -> None:
    plain = target().stages
    assert plain.deploy is not None
    prepare = evolve(plain.deploy, run="echo made > $RUN_DIR/data", service=False, ready=None)
    work = evolve(plain.workload, run="test $(cat $RUN_DIR/data) = made && echo requests=2")
    what = target(deploy=prepare, workload=work, collect=None, teardown=None)
    execution, _ = await run(tmp_path, what)
    assert execution.ok, execution.detail
    assert execution.metrics["requests"] == (2.0,)
    (tmp_path / "again").mkdir()
    failing = evolve(prepare, run="exit 9")
    execution, _ = await run(
        tmp_path / "again", evolve(what, stages=evolve(what.stages, deploy=failing))
    )
    assert (execution.failed_stage, execution.detail) == ("deploy", "exit 9")


async def test_a_stage_that_is_killed_says_by_which_signal(tmp_path: Path) -> None:
    killed = evolve(target().stages.workload, run="kill -SEGV $$")
    execution, events = await run(tmp_path, target(workload=killed))
    assert execution.detail == "killed by SIGSEGV"
    assert finished(events)["workload"].signal == 11


async def test_a_lost_session_is_logged_and_raised(tmp_path: Path) -> None:
    async with stages_of(tmp_path, target()) as (stages, events):

        async def lose(*_: object) -> None:
            raise SessionLost("the link is down")

        stages._workspace.run = lose  # type: ignore[method-assign, assignment]
        work = target().stages.workload
        with pytest.raises(SessionLost):
            await stages.run("build", work, {})
    assert finished(events)["build"].outcome == "lost"


class Look:
    """A profiler that writes what it is told to."""

    def __init__(self, says: str, missing: NotAvailable | None = None) -> None:
        self.says, self.missing = says, missing

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return self.missing

    def wrap(self, command: Command, output: str) -> Command:
        script = f'printf "{self.says}" > "$0"; exec "$@"' if self.says else 'exec "$@"'
        return evolve(command, argv=("sh", "-c", script, output, *command.argv))

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        profile = profiles[0].read()
        if profile == b"empty":
            return Inconclusive(reason="no samples")
        if profile == b"broken":
            return Failed(reason="no header")
        return Measured(
            scalars={"on_cpu": Scalar(value=float(profile), unit="s")}, stacks="main;work 3\n"
        )


async def test_profilers_give_evidence_or_the_reason_why_not(tmp_path: Path) -> None:
    what = target()
    profilers: Mapping[str, Any] = {
        "done": Look("7"),
        "good": Look("1.5"),
        "empty": Look("empty"),
        "broken": Look("broken"),
        "silent": Look(""),
        "absent": Look("1", NotAvailable(reason="no perf", fix="apt-get install linux-perf")),
    }
    blobs = BlobStore(tmp_path / "blobs")
    async with stages_of(tmp_path, what) as (stages, events):
        built = Built(candidate="c", tree="t", artifact=None, workspace=stages._workspace)
        runner = ProfileRunner(
            profilers=profilers,
            backend=LocalBackend(lock_path=str(tmp_path)),
            blobs=blobs,
            scratch=tmp_path,
            slowdown=2.0,
        )
        side = Side(built=built, stages=stages)
        await runner.run(side, "one", lambda *new: events.extend(new), frozenset({"done"}))
    (evidence,) = [event for event in events if isinstance(event, EvidenceCaptured)]
    assert evidence.profiler == "good"
    assert evidence.scalars["on_cpu"].value == 1.5
    assert evidence.stacks is not None
    assert [blobs.get(digest) for digest in evidence.artifacts] == [b"1.5"]
    assert blobs.get(evidence.stacks) == b"main;work 3\n"
    missing = {e.profiler: e for e in events if isinstance(e, ProfilerUnavailable)}
    assert {name: event.status for name, event in missing.items()} == {
        "empty": "inconclusive",
        "broken": "failed",
        "silent": "failed",
        "absent": "not_available",
    }
    assert missing["absent"].fix == "apt-get install linux-perf"
    assert "wrote no profile" in missing["silent"].reason


def test_a_target_can_bring_its_own_parser(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def read(text):\n    return []\nnumber = 3\n")
    assert load_parser("lines", tmp_path) == "lines"
    assert callable(load_parser("mine.py:read", tmp_path))
    with pytest.raises(ConfigError, match="no function other"):
        load_parser("mine.py:other", tmp_path)
    with pytest.raises(ConfigError, match="no function number"):
        load_parser("mine.py:number", tmp_path)
    with pytest.raises(ConfigError, match="no file"):
        load_parser("yours.py:read", tmp_path)
