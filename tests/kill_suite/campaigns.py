"""One campaign from its first life to its last, in a process that forks the controllers."""

import os
import select
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import orjson
from attrs import asdict, define, evolve, field, frozen

from aiopt.log import Log
from aiopt.replay import fold

from . import checks, controller
from .controller import FAILED, FINISHED, OVERLAPPED, REFUSED, Folders
from .plans import DRAWN, Plan, draw
from .processes import start_ticks, supervisors_of, wait_until_none
from .target import POOL, write_target

__all__ = ["Outcome", "Task", "work"]

_LIFE_SECONDS = 180.0
_MOST_REFUSALS = 10


@frozen(kw_only=True)
class Task:
    """A campaign to be run."""

    name: str
    seed: int
    """Of the campaign; the moments are drawn from `moments`."""
    moments: str = ""
    kills: int = 0
    """After so many it may finish."""
    seconds: float = 0.2
    service: bool = False
    staged: bool = False
    """Whether the rule is `two-stage`, which calibrates, screens, confirms and ablates."""
    slow_git: bool = False
    daemons: bool = False
    stamps: bool = False
    """Whether a build changes a file of the source, so that each resume checks it out anew."""
    patches: tuple[str, ...] = POOL
    control: str = ""
    kinds: tuple[str, ...] = DRAWN
    base: str = ""


@define(kw_only=True)
class Outcome:
    """What came of it."""

    name: str
    base: str
    kills: dict[str, int] = field(factory=dict)
    """By kind of moment."""
    lives: int = 0
    refused: int = 0
    seconds: float = 0.0
    violations: list[str] = field(factory=list)
    summary: dict[str, Any] = field(factory=dict)
    """See `checks.summary`; empty if it did not get to its end."""


class _Life:
    """A controller that was forked."""

    def __init__(self, folders: Folders, seed: int, plan: Plan, staged: bool) -> None:
        self.plan = plan
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            controller.run(folders.base, seed, plan, staged)
        self._handle = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or minus the signal; None if it still lives."""
        if self.code is None:
            ended, _, _ = select.select([self._handle], [], [], max(0.0, seconds))
            if ended:
                _, status = os.waitpid(self.pid, 0)
                self.code = os.waitstatus_to_exitcode(status)
                os.close(self._handle)
        return self.code

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)


class _Campaign:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.folders = Folders(Path(task.base))
        self.outcome = Outcome(name=task.name, base=task.base)
        self.rng = Random(f"{task.moments}/{task.name}")
        self.kills: Counter[str] = Counter()
        self.lives: list[_Life] = []
        self.anew = self.last = False

    # -- before --

    def prepare(self) -> None:
        folders, task = self.folders, self.task
        for folder in (folders.base, folders.temporary, folders.lock):
            folder.mkdir(parents=True, exist_ok=True)
        write_target(
            folders.target,
            folders.side,
            seconds=task.seconds,
            service=task.service,
            guarded=task.service or task.staged,
            patches=task.patches,
            daemons=task.daemons,
            stamps=task.stamps,
        )
        self.before = checks.fingerprint(folders.target)
        if task.slow_git:
            self._slow_git()

    def _slow_git(self) -> None:
        """A repository in which every command takes a while."""
        folder, git = self.folders.side / "bin", shutil.which("git")
        folder.mkdir()
        (folder / "git").write_text(f'#!/bin/sh\nsleep 0.15\nexec {git} "$@"\n')
        (folder / "git").chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"

    # -- lives --

    def run(self) -> None:
        task, refusals = self.task, 0
        while True:
            dying = sum(self.kills.values()) < task.kills
            if task.control and not dying:
                self._stop()
                return
            if not task.kills:
                self.last = True  # undisturbed
            ended = self._live(self._plan(dying))
            codes = [life.code for life in ended]
            if FAILED in codes or OVERLAPPED in codes:
                self._died(ended)
                return
            if FINISHED in codes:
                break
            refusals = refusals + 1 if all(code == REFUSED for code in codes) else 0
            if refusals > _MOST_REFUSALS:
                self._say("died: refused again and again though no controller lived")
                return
        self.outcome.violations += checks.finished(self.folders, self.before)
        self.outcome.summary = _summary(self.folders)

    def _plan(self, dying: bool) -> Plan:
        life, control = self.outcome.lives + 1, self.task.control
        if not dying:
            last, self.last = self.last, True
            if last or self.rng.random() < 0.3:
                return Plan(life=life, control=control)
            return draw(self.rng, life, kinds=("finish",))
        kinds = self.task.kinds
        if self.anew and "git" in kinds:
            kinds = ("git", "git", "time")  # while it makes its folder of work again
        if control == "lease" and life == 1:  # something for two controllers to meet at
            return Plan(life=1, kind="event", at="ExperimentStarted", limit=60, control=control)
        staged = self.task.staged
        plan = draw(self.rng, life, control=control, kinds=kinds, staged=staged)
        if self.anew and plan.kind == "git":
            plan = evolve(plan, nth=self.rng.randint(1, 16))
        self.anew = plan.remove_work
        if plan.kind == "two" and not self.folders.log.exists():
            plan = evolve(plan, kind="time")  # both would begin a campaign
        return plan

    def _fork(self, plan: Plan) -> _Life:
        self.outcome.lives = plan.life
        life = _Life(self.folders, self.task.seed, plan, self.task.staged)
        self.lives.append(life)
        return life

    def _live(self, plan: Plan) -> list[_Life]:
        """One life, or two at once; returns those that have ended."""
        began = time.monotonic()
        lives = [self._fork(plan)]
        if plan.kind == "two":
            lives.append(self._fork(evolve(plan, life=plan.life + 1)))
        limit = plan.limit if plan.inside else plan.delay if plan.kind else _LIFE_SECONDS
        self._look_around(lives, began + limit)
        for life in lives:
            life.wait(began + limit - time.monotonic())
        supervisors = []
        if plan.kind == "double":
            supervisors = supervisors_of(lives[0].pid)
        killed = [life for life in lives if life.code is None]
        for life in killed if self.rng.random() < 0.5 else []:
            life.kill()
        for pid in supervisors:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for life in killed:
            life.kill()
            life.wait(60)
        self._count(plan, lives)
        self.outcome.violations += checks.torn(self.folders)
        if plan.remove_work and not wait_until_none(self.folders.base, 25):
            shutil.rmtree(self.folders.work, ignore_errors=True)
        return lives

    def _look_around(self, lives: list[_Life], end: float) -> None:
        """Once one of them has cleared away, nothing else may be there."""
        own = {life.plan.life for life in lives}
        position = self.folders.stages.stat().st_size
        while time.monotonic() < end and any(life.wait(0) is None for life in lives):
            with self.folders.stages.open("rb") as file:
                file.seek(position)
                words = [line.split() for line in file.read().splitlines()]
            if any(len(line) == 5 and line[3] == b"cleared" for line in words):
                self.outcome.violations += checks.running(self.folders.base, own)
                if lives[0].plan.visit:
                    self._visit(self.rng.uniform(0, max(0.0, end - time.monotonic())))
                return
            time.sleep(0.005)

    def _visit(self, seconds: float) -> None:
        """Read the log with SQLite alone, as people do who are curious."""
        time.sleep(seconds * 0.6)
        if self.folders.log.exists():
            with closing(sqlite3.connect(self.folders.log, timeout=10)) as visitor:
                visitor.execute("SELECT count(*) FROM event").fetchone()

    def _count(self, plan: Plan, lives: list[_Life]) -> None:
        for life in lives:
            if life.code == -signal.SIGKILL:
                own = plan.kind
                if plan.inside and not self._killed_itself(life):
                    own = "time"
                self.kills[own or "time"] += 1
            elif life.code == REFUSED:
                self.outcome.refused += 1

    def _killed_itself(self, life: _Life) -> bool:
        moments = self.folders.moments
        text = moments.read_text() if moments.exists() else ""
        return any(line.startswith(f"{life.plan.life} ") for line in text.splitlines())

    # -- what went wrong --

    def _say(self, text: str) -> None:
        self.outcome.violations.append(text)

    def _died(self, lives: list[_Life]) -> None:
        said = self.folders.output.read_text(errors="replace").strip().splitlines()[-3:]
        for life in lives:
            if life.code == OVERLAPPED:
                self._say(f"overlap: controller {life.plan.life} met another writer: {said[-1]}")
            elif life.code not in (FINISHED, REFUSED, -signal.SIGKILL):
                last = " | ".join(said)
                self._say(f"died: controller {life.plan.life} ended with {life.code}: {last}")
        self._stop()

    def _stop(self) -> None:
        """What can be known of a campaign that is not over."""
        self.outcome.violations += checks.lost(self.folders)
        self.outcome.violations += checks.overlap(self.folders)

    def close(self) -> None:
        for life in self.lives:
            life.kill()
            life.wait(60)
        for process in wait_until_none(self.folders.base, 1.0):
            if start_ticks(process.pid) is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def run_task(task: Task) -> Outcome:
    """Run one campaign to its end and check it."""
    began = time.monotonic()
    path = os.environ["PATH"]
    campaign = _Campaign(task)
    outcome = campaign.outcome
    try:
        campaign.prepare()
        campaign.run()
    finally:
        campaign.close()
        os.environ["PATH"] = path
    outcome.kills = dict(campaign.kills)
    outcome.seconds = time.monotonic() - began
    return outcome


def _summary(folders: Folders) -> dict[str, Any]:
    with Log.open(folders.log, readonly=True) as log:
        (campaign,) = fold(log.read()).campaigns.values()
    return asdict(checks.summary(campaign))


def _tasks() -> Iterator[Task]:
    for line in sys.stdin.buffer:
        data = orjson.loads(line)
        for name in ("patches", "kinds"):
            data[name] = tuple(data[name])
        yield Task(**data)


def work() -> None:
    """Run the tasks that come on standard input, a line each; answer with a line of outcome."""
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    for task in _tasks():
        os.write(answers, orjson.dumps(asdict(run_task(task)), option=orjson.OPT_APPEND_NEWLINE))
