"""Campaigns that run on another machine."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from aiopt.backends.ssh import SshBackend
from aiopt.config import unstructure
from aiopt.events import CampaignResumed, StageFinished, StageStarted
from aiopt.settings import Environment, Settings
from tests.test_campaign import QUICK, finish, outcomes, read, sound
from tests.toy import EXPECTED, POOL, TARGET, cost, write_target

from .server import Server

pytestmark = pytest.mark.anyio


def on(backend: SshBackend) -> Settings:
    """The quick settings of other campaigns, on that machine."""
    options = unstructure(backend)
    return evolve(
        QUICK,
        environment="lab",
        environments={"lab": Environment(backend="ssh", options=options)},
    )


async def test_each_patch_of_a_pool_gets_what_it_deserves(
    backend: SshBackend, server: Server, tmp_path: Path
) -> None:
    target = write_target(tmp_path / "target", POOL)
    state = await finish(target, tmp_path / "results", on(backend))
    assert outcomes(state) == EXPECTED
    assert [p.name for p in state.incumbent_genome] == ["01-win", "13-second-win"]
    sound(tmp_path / "results")
    assert left(server) == []


def left(server: Server) -> list[str]:
    """What there is of sessions: processes and folders."""
    listed = ["ps", "-u", server.user, "-o", "args="]
    found = subprocess.run(listed, capture_output=True, text=True).stdout.splitlines()
    processes = [line for line in found if "keeper" in line or "supervisor" in line]
    folder = server.home / ".cache" / "aiopt" / "s"
    return [*processes, *(str(path) for path in folder.iterdir())]


SLOW = TARGET.replace('"sh -n main.sh"', '"sh $TARGET_DIR/build.sh"')
BUILD = """#!/bin/sh
echo "$AIOPT_JOB" >> "{ran}"
if grep -q 80 cost.txt; then sleep 3; fi
echo built
"""
LIVE = """
import os, signal, sys
from pathlib import Path
import anyio
from aiopt.config import structure
from aiopt.events import StageStarted
from aiopt.settings import Settings
from aiopt.campaign import open_campaign
target, results, settings = sys.argv[1:]
builds = 0

def watch(recorded):
    global builds
    if isinstance(recorded.event, StageStarted) and recorded.event.stage == "build":
        builds += 1
        if builds == 2:
            import threading
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()

async def run():
    import json
    given = structure(json.loads(settings), Settings, "test")
    async with open_campaign(Path(target), Path(results), given, observer=watch) as campaign:
        await campaign.run()

anyio.run(run)
"""


async def test_a_build_goes_on_without_its_controller(
    backend: SshBackend, server: Server, tmp_path: Path
) -> None:
    """Killed in the middle of it, the next controller takes its result: it runs once."""
    ran = server.home / "ran"
    target = write_target(tmp_path / "target", {"01": cost(80)}, SLOW)
    (target / "build.sh").write_text(BUILD.format(ran=ran))
    (target / "build.sh").chmod(0o755)
    results = tmp_path / "results"
    given = json.dumps(unstructure(on(evolve(backend, confine=False))))
    arguments = [sys.executable, "-c", LIVE, str(target), str(results), given]
    died = await anyio.run_process(arguments, check=False, env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    stream = next(r.stream for r in read(results) if r.stream.startswith("cmp"))
    state = await finish(target, results, None, resume=stream)
    assert outcomes(state) == {"01": "keep"}
    builds = Counter(job.split("/")[1] for job in ran.read_text().split())
    assert builds[state.incumbent] == 1
    (candidate,) = (e.stream for e in state.of_purpose("candidate"))
    of_it = [
        r.event
        for r in read(results)
        if r.stream == candidate or isinstance(r.event, CampaignResumed)
    ]
    builds_of_it = [
        type(event)
        for event in of_it
        if isinstance(event, CampaignResumed)
        or (isinstance(event, StageStarted | StageFinished) and event.stage == "build")
    ]
    assert builds_of_it == [StageStarted, CampaignResumed, StageFinished]
    (ended,) = (e for e in of_it if isinstance(e, StageFinished) and e.stage == "build")
    assert (ended.attempt, ended.outcome) == (0, "ok")
    assert ended.seconds > 3
    assert left(server) == []
