"""Rows 2 and 3: one trial's facts, beside Optuna's two ways to keep them."""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Literal

from aiopt.events import CandidateProposed, ExperimentFinished, RunMeasured
from aiopt.log import Log

from . import facts
from .measuring import Line, Rounds, Unit, cost_of, equal, ratio, turns
from .places import Places

__all__ = ["against_optuna"]

Kind = Literal["rdb", "journal"]

_PARAMETERS = ("depth", "width", "rate")
_GOALS: dict[Kind, tuple[str, str, float]] = {
    "rdb": ("2", "Optuna RDB (SQLite)", 100.0),
    "journal": ("3", "Optuna Journal file", 10.0),
}
_NOTES = {
    "a trial, ours": "name the stream, then 3 events in 3 transactions: the candidate with 3"
    " parameters, a run with ten metrics, the end; the event objects are made within the time",
    "a trial, Optuna": "ask (random sampler), 3 suggest_float, one attribute with the ten metrics,"
    " report, tell. It draws its parameters, ours is given some",
}


def against_optuna(kind: Kind, places: Places, quick: bool) -> Iterator[Line]:
    """The same trials in both, first in memory, then on the disk."""
    row, beside, goal = _GOALS[kind]
    what = f"one trial's facts, {places.memory_kind}, CPU"
    if find_spec("optuna") is None:
        yield Line(
            row=row, what=what, beside=beside, turned=True, goal=goal, status="not installed"
        )
        return
    trials, rounds = (2, 3) if quick else (10 if kind == "rdb" else 50, 20)
    measured = _measure(kind, places.memory / kind, trials, rounds)
    lines: list[tuple[str, str, Rounds, Unit]] = [(row, what, measured, "cpu")]
    trials, rounds = (1, 2) if quick else (4 if kind == "rdb" else 15, 12)
    on_disk = _measure(kind, places.disk / kind, trials, rounds)
    lines.append((f"{row} disk cpu", f"the same, {places.disk_kind} FULL, CPU", on_disk, "cpu"))
    lines.append((f"{row} disk wall", f"the same, {places.disk_kind} FULL, wall", on_disk, "wall"))
    for name, what, found, unit in lines:
        yield Line(
            row=name,
            what=what,
            ours=found.median("ours", unit),
            other=found.median("optuna", unit),
            unit="s",
            beside=beside,
            ratio=ratio(found, "optuna", "ours", unit),
            turned=True,
            goal=goal if found is measured else None,
            notes=_NOTES if found is measured else {},
        )


def _study(kind: Kind, folder: Path) -> Any:
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if kind == "rdb":
        storage: Any = f"sqlite:///{folder}/optuna.db"
    else:
        journal = import_module("optuna.storages.journal")
        backend = journal.JournalFileBackend(str(folder / "optuna.log"))
        storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=7))


def _measure(kind: Kind, folder: Path, trials: int, rounds: int) -> Rounds:
    folder.mkdir()
    study = _study(kind, folder)
    measured = Rounds()
    numbers = {"ours": count(), "optuna": count()}
    asked = [dict.fromkeys(_PARAMETERS, (n % 100) / 128) for n in range(trials * (rounds + 1))]
    with Log.open(folder / "ours.db") as log:
        (campaign, _), *_ = items = facts.campaign(log.writer)
        log.append(items)
        one_trial: dict[str, Callable[[int], None]] = {
            "ours": lambda number: _ours(log, campaign, number, asked[number]),
            "optuna": lambda number: _theirs(study, number),
        }

        def some(side: str) -> None:
            for _ in range(trials):
                one_trial[side](next(numbers[side]))

        for side in turns(["ours", "optuna"], rounds, measured):
            measured.add(side, cost_of(lambda side=side: some(side)).per(trials))  # type: ignore[misc]
        kept = [
            {name: values[0] for name, values in recorded.event.metrics.items()}
            for recorded in log.read()
            if isinstance(recorded.event, RunMeasured)
        ]
        finished = sum(isinstance(r.event, ExperimentFinished) for r in log.read())
    equal("trials", finished, len(study.trials))
    equal("metrics", kept, [trial.user_attrs["metrics"] for trial in study.trials])
    equal("parameters", {3}, {len(trial.params) for trial in study.trials})
    return measured


def _ours(log: Log, campaign: str, number: int, parameters: dict[str, float]) -> None:
    stream = log.new_stream("exp")
    candidate = f"{number:012x}"
    proposed = CandidateProposed(
        number=number,
        candidate=candidate,
        genome=(),
        parents=(),
        hypothesis="",
        proposer="random",
        cost=parameters,
    )
    log.append([(campaign, proposed)])
    log.append([(stream, facts.run(number))])
    log.append([(stream, ExperimentFinished(outcome="judged"))])


def _theirs(study: Any, number: int) -> None:
    trial = study.ask()
    for name in _PARAMETERS:
        trial.suggest_float(name, 0.0, 1.0)
    run = facts.run(number)
    metrics = {name: values[0] for name, values in run.metrics.items()}
    trial.set_user_attr("metrics", metrics)
    trial.report(metrics["p99_us"], 0)
    study.tell(trial, metrics["p99_us"])
