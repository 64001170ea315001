"""Run the suite: campaigns to be killed, side by side, and the controls that must fail."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import orjson
from attrs import asdict, field, frozen

from .campaigns import Outcome, Task, work
from .checks import CHECKS, differs
from .plans import CONTROLS, KINDS

__all__ = ["Result", "main", "run_suite"]

_ROOT = Path(__file__).parents[2]
_CONTROL_KINDS = {
    "lease": ("two",),
    "transaction": ("append",),
    "acknowledge": ("append",),
    "remains": ("double",),  # else the lease makes the next controller wait for the clearing
}
_EXPECTED = {
    "lease": ("overlap", "twice"),
    "transaction": ("torn",),
    "acknowledge": ("lost",),
    "remains": ("orphan",),
}
"""Of which kind at least one violation must be found when the protection is missing."""


class _Worker:
    """A process that runs one task at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_suite", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, task: Task) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(asdict(task), option=orjson.OPT_APPEND_NEWLINE))
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker of {task.name} ended with {self._process.wait()}")
        return Outcome(**orjson.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@frozen(kw_only=True)
class Result:
    """What all of it came to."""

    seed: str
    seconds: float
    kills: dict[str, int]
    campaigns: list[Outcome] = field(factory=list)
    references: list[Outcome] = field(factory=list)
    controls: dict[str, Outcome] = field(factory=dict)

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def violations(self) -> Iterator[str]:
        for outcome in (*self.references, *self.campaigns):
            for text in outcome.violations:
                yield f"{outcome.name}: {text}"

    def found(self, control: str) -> Counter[str]:
        """Kinds of violations that the checks found without a protection."""
        return Counter(text.partition(":")[0] for text in self.controls[control].violations)

    def powerless(self) -> list[str]:
        """Controls that nobody noticed."""
        return [
            control
            for control in self.controls
            if not any(self.found(control)[kind] for kind in _EXPECTED[control])
        ]

    @property
    def ok(self) -> bool:
        return not any(self.violations()) and not self.powerless()


class _Suite:
    def __init__(self, kills: int, seed: str, jobs: int, seconds: float, folder: Path) -> None:
        self.kills, self.seed, self.jobs, self.seconds = kills, seed, jobs, seconds
        self.folder = folder
        self._local = threading.local()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._done: Counter[str] = Counter()
        self._planned = 0

    def _task(self, name: str, **named: Any) -> Task:
        return Task(
            name=name,
            moments=self.seed,
            base=str(self.folder / name),
            **{"seconds": self.seconds, **named},
        )

    def _run(self, task: Task) -> Outcome:
        if not hasattr(self._local, "worker"):
            self._local.worker = _Worker()
            with self._lock:
                self._workers.append(self._local.worker)
        outcome: Outcome = self._local.worker.run(task)
        self._tell(outcome)
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        kills = sum(outcome.kills.values())
        line = f"{outcome.name}: {kills} kills, {outcome.lives} lives, {outcome.seconds:.0f} s"
        found = Counter(text.partition(":")[0] for text in outcome.violations)
        if found:
            line += ", found " + ", ".join(f"{count} {kind}" for kind, count in found.items())
        print(line, file=sys.stderr, flush=True)

    def run(self) -> Result:
        began = time.monotonic()
        # two stages take more runs, which are shorter
        variants: dict[str, dict[str, Any]] = {
            "plain": {},
            "staged": {"staged": True, "seconds": 0.4 * self.seconds},
            "service": {"service": True},
        }
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                return self._all(pool, variants, began)
            finally:
                pool.shutdown(cancel_futures=True)
                for worker in self._workers:
                    worker.close()

    def _all(
        self, pool: ThreadPoolExecutor, variants: dict[str, dict[str, Any]], began: float
    ) -> Result:
        references: dict[str, Future[Outcome]] = {
            name: pool.submit(self._run, self._task(f"undisturbed-{name}", seed=7, **options))
            for name, options in variants.items()
        }
        controls = {control: pool.submit(self._run, self._control(control)) for control in CONTROLS}
        campaigns: list[tuple[str, Outcome]] = []
        kinds: Counter[str] = Counter()
        number = 0
        while (missing := self.kills - kinds.total()) > 0:
            each = max(8, min(22, -(-missing // self.jobs)))
            batch: list[tuple[str, Future[Outcome]]] = []
            while missing > 0 and len(batch) < 2 * self.jobs:
                number += 1
                variant = list(variants)[number % len(variants)]
                task = self._task(
                    f"{number:03d}-{variant}",
                    seed=7,
                    kills=min(each, missing),
                    slow_git=number % 4 == 2,
                    stamps=number % 5 in (1, 3),
                    **variants[variant],
                )
                missing -= each
                batch.append((variant, pool.submit(self._run, task)))
            ended = [(variant, future.result()) for variant, future in batch]
            campaigns += ended
            for _, outcome in ended:
                kinds.update(outcome.kills)
            if not any(outcome.kills for _, outcome in ended):
                break  # nothing works at all
        known = {name: future.result() for name, future in references.items()}
        for variant, outcome in campaigns:
            if outcome.summary and known[variant].summary:
                outcome.violations += differs(known[variant].summary, outcome.summary)
        return Result(
            seed=self.seed,
            seconds=time.monotonic() - began,
            kills=dict(kinds),
            campaigns=[outcome for _, outcome in campaigns],
            references=[*known.values()],
            controls={name: future.result() for name, future in controls.items()},
        )

    def _control(self, control: str) -> Task:
        return self._task(
            f"control-{control}",
            seed=7,
            kills=12 if self.kills >= 100 or control == "remains" else 5,
            daemons=control == "remains",
            control=control,
            kinds=_CONTROL_KINDS[control],
        )


def run_suite(kills: int, seed: str, jobs: int, seconds: float = 0.15) -> Result:
    """Run everything in a folder of its own, which stays only if something was found."""
    folder = Path(tempfile.mkdtemp(prefix="aiopt-kill-")).resolve()
    result = _Suite(kills, seed, jobs, seconds, folder).run()
    for outcome in (*result.references, *result.campaigns, *result.controls.values()):
        if result.ok or not outcome.violations:
            shutil.rmtree(outcome.base, ignore_errors=True)
    if result.ok:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"what was found is in {folder}", file=sys.stderr)
    return result


def _table(result: Result) -> Iterator[str]:
    lives = sum(outcome.lives for outcome in result.campaigns)
    refused = sum(outcome.refused for outcome in result.campaigns)
    yield f"seed {result.seed}, {result.seconds:.0f} s"
    yield f"{result.total} kills in {len(result.campaigns)} campaigns, {lives} lives"
    for kind in KINDS:
        yield f"  {kind:<12} {result.kills.get(kind, 0):>6}"
    yield f"second controllers refused {refused}"
    found = Counter(text.split(": ")[1] for text in result.violations())
    yield "violations"
    for check in CHECKS:
        yield f"  {check:<12} {found[check]:>6}"
    yield "controls: violations found without the protection (there must be some)"
    for control in result.controls:
        kinds = result.found(control)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        mark = "" if control not in result.powerless() else f"  MUST FIND {_EXPECTED[control]}"
        yield f"  {control:<12} {kinds.total():>6}  {shown}{mark}"


@click.command()
@click.option("--kills", default=300, show_default=True, help="At least so many.")
@click.option("--seed", help="Of the moments; a random one by default.")
@click.option("--jobs", default=6, show_default=True, help="Campaigns at the same time.")
@click.option("--seconds", default=0.15, show_default=True, help="How long stages take.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--worker", is_flag=True, hidden=True)
def main(
    kills: int, seed: str | None, jobs: int, seconds: float, as_json: bool, worker: bool
) -> None:
    """Kill campaigns at every kind of moment, resume them, and compare how they end."""
    if worker:
        work()
        return
    result = run_suite(kills, seed or secrets.token_hex(4), jobs, seconds)
    for text in result.violations():
        print(text, file=sys.stderr)
    if as_json:
        data = {**asdict(result), "ok": result.ok, "powerless": result.powerless()}
        print(json.dumps(data, indent=2))
    else:
        print("\n".join(_table(result)))
    sys.exit(0 if result.ok else 1)


if __name__ == "__main__":
    main()
