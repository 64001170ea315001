"""Row 7: what an experiment costs beyond its commands, and row 8: what the command line costs."""

import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import anyio

from aiopt.backends.local import LocalBackend
from aiopt.blobs import BlobStore
from aiopt.events import Event, StageFinished, StageStarted
from aiopt.lease import Lease
from aiopt.lifecycle import Stages, prepare
from aiopt.log import Log
from aiopt.protocols import WorkspaceSpec
from aiopt.target import parse_target

from .measuring import (
    Cost,
    Line,
    Rounds,
    Unit,
    WrongWork,
    cost_of_process,
    equal,
    ratio,
    turns,
)
from .places import Places
from .raw import Raw, contents

__all__ = ["command_line", "experiment"]

_TARGET = """
name = "nothing"
source = { path = "src" }
scope = { editable = ["*"] }
output = { format = "lines" }
metrics.wall_seconds = { role = "primary", measured_by = "aiopt" }
workloads.only = {}
stages.build.run = ["true"]
stages.deploy.run = ["true"]
stages.workload.run = ["true"]
stages.collect.run = ["true"]
stages.teardown.run = ["true"]
"""
_COMMANDS = 5


def experiment(places: Places, quick: bool) -> Iterator[Line]:
    """Five stages, each `true`, local backend, on the disk, FULL."""
    measured, commits = anyio.run(_measure, places.disk / "row7", 3 if quick else 40)
    sides: list[tuple[str, str, str, Unit, float | None]] = [
        ("7", "ours", "wall", "wall", 1.5),
        ("7 cpu", "ours", "own CPU", "cpu", None),
        ("7 cold", "cold", "wall; new backend", "wall", None),
    ]
    for row, side, name, unit, goal in sides:
        yield Line(
            row=row,
            what=f"experiment of 5 stages `true`, {places.disk_kind} FULL, {name}",
            ours=measured.median(side, unit),
            other=measured.median("floor", unit),
            unit="s",
            beside="5 x run_process + raw",
            ratio=ratio(measured, side, "floor", unit),
            goal=goal,
            notes={
                "experiment": "open the workspace, prepare (build), execute (deploy, workload,"
                f" collect, teardown), close it; {commits} commits. The backend keeps its"
                " supervisor from one experiment to the next, as in a campaign; `cold` starts one"
                " for each",
                "5 x run_process + raw": "anyio.run_process(['true']) one after the other; the same"
                " rows and commits on raw sqlite3, in a file with the same bytes afterwards",
                "own CPU": "of the controlling process, without its children",
            }
            if row == "7"
            else {},
        )


async def _measure(folder: Path, rounds: int) -> tuple[Rounds, int]:
    for name in ("tree", "harness", "scratch"):
        (folder / name).mkdir(parents=True)
    path, other = folder / "events.db", folder / "raw.db"
    target = parse_target(_TARGET)
    blobs = BlobStore(folder / "blobs")
    measured = Rounds()
    with Log.open(path) as log, Lease.acquire(path) as lease:
        raw = Raw(other, path)
        kept = LocalBackend()
        sizes: list[int] = []
        spec = WorkspaceSpec(
            name="candidate",
            tree=folder / "tree",
            harness=folder / "harness",
            scratch=folder / "scratch",
            marker=f"aiopt-bench-{os.getpid()}-{time.monotonic_ns()}",
            lease_fd=lease.fd,
            stages_lock=lease.stages_path,
        )

        async def ours(backend: LocalBackend) -> None:
            stream = log.new_stream("exp")

            def emit(*events: Event) -> None:
                log.append([(stream, event) for event in events])
                sizes.append(len(events))

            async with backend.open(spec) as workspace:
                stages = Stages(target, workspace, emit, blobs, "lines")
                built = await prepare(
                    stages,
                    target,
                    workspace,
                    emit,
                    candidate="candidate",
                    tree="0" * 40,
                    harness_digest="0" * 64,
                    incumbent_artifact=None,
                )
                if built is None:
                    raise WrongWork("`true` did not build")
                ran = await stages.execute("only", "screen:only:0:0:A")
                if not ran.ok:
                    raise WrongWork(f"{ran.failed_stage}: {ran.detail}")

        async def floor() -> None:
            work = iter(raw.next())
            raw.write(next(work))
            per_command = (commits - 1) // _COMMANDS
            for _ in range(_COMMANDS):
                for _ in range(per_command - 1):
                    raw.write(next(work))
                await anyio.run_process(["true"])
                raw.write(next(work))
            for rows in work:
                raw.write(rows)

        for _ in range(2):
            sizes.clear()
            await ours(kept)
            raw.fetch(sizes)
        commits = len(sizes)
        for side in turns(["ours", "floor", "cold"], rounds, measured):
            sizes.clear()
            backend = kept if side == "ours" else LocalBackend()
            wall, cpu = time.perf_counter(), time.process_time()
            await (floor() if side == "floor" else ours(backend))
            cost = Cost(time.process_time() - cpu, time.perf_counter() - wall)
            measured.add(side, cost)
            if side != "floor":
                raw.fetch(sizes)
        raw.finish()
        events = [recorded.event for recorded in log.read()]
    equal("rows and their hash", contents(path), contents(other))
    finished = [event for event in events if isinstance(event, StageFinished)]
    equal("stages that ended well", {event.outcome for event in finished}, {"ok"})
    started = sum(isinstance(event, StageStarted) for event in events)
    equal("stages", len(finished), started)
    equal("five stages each", started, 5 * (2 + 2 * (rounds + 1)))
    return measured, commits


# ---- the command line ----


def command_line(places: Places, quick: bool) -> Iterator[Line]:
    """`aiopt --help` beside the import of click."""
    script = Path(sys.executable).with_name("aiopt")
    what = "`aiopt --help`, CPU of the process"
    if find_spec("aiopt.cli") is None or not script.exists() or not _works(script, places):
        yield Line(row="8", what=what, beside="import click", goal=2.0, status="not installed")
        return
    measured = Rounds()
    sides: dict[str, list[str]] = {
        "ours": [sys.executable, str(script), "--help"],
        "click": [sys.executable, "-c", "import click"],
    }
    nowhere = os.open(os.devnull, os.O_RDWR)
    for side in turns(list(sides), 2 if quick else 25, measured):
        measured.add(side, cost_of_process(sides[side], nowhere))
    os.close(nowhere)
    yield Line(
        row="8",
        what=what,
        ours=measured.median("ours", "cpu"),
        other=measured.median("click", "cpu"),
        unit="s",
        beside="import click",
        ratio=ratio(measured, "ours", "click", "cpu"),
        goal=2.0,
        notes={"import click": "python -c 'import click', the same interpreter and environment"},
    )


def _works(script: Path, places: Places) -> bool:
    output = places.disk / "help.txt"
    descriptor = os.open(output, os.O_RDWR | os.O_CREAT)
    try:
        cost_of_process([sys.executable, str(script), "--help"], descriptor)
    except WrongWork:
        return False
    finally:
        os.close(descriptor)
    return "Usage:" in output.read_text()
