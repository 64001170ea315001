"""Which strategy gets the most out of pyserver's pool with the same number of runs.

    python -m tests.targets.strategy_study --results results/strategies
    python -m tests.targets.strategy_study --results results/strategies --table

A campaign for each strategy and seed, each with the same budget of runs (calibration and all) and
then an audit of its final source against the unmodified one, on fresh pairs beyond the budget. So
that it takes hours and not days, one run is 250 requests, and the server's CPU time is taken at the
pace of its core (see pace.py). What was interrupted goes on where it stopped. Of a campaign that
is finished STRATEGY-SEED.json has the outcome; `--table` only prints what there is of them.
"""

import argparse
import math
import shutil
import signal
import statistics
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import orjson
from attrs import frozen

import aiopt
from aiopt.config import structure, unstructure
from aiopt.events import CandidateRejected, ExperimentStarted, Recorded, VerdictReached
from aiopt.replay import CampaignState
from aiopt.settings import Budget, Settings
from aiopt.views import audit_view, short, summary

from .measure_pool import TARGET

STRATEGIES = ("greedy", "genetic", "map-elites")
OBJECTIVES = ("cpu_seconds", "peak_rss_mb")
REQUESTS = {"1000": "250", "240": "120"}
"""How long the workloads are here, by how long they are in the target."""
PACE = '"${PYTHON:-python3}" -B "$TARGET_DIR/pace.py"'
STAGES = {
    "deploy.sh": f"""\
{PACE} $$ "$RUN_DIR/pace" </dev/null >/dev/null &
exec "$TARGET_DIR/plain-deploy.sh"
""",
    "collect.sh": f'"$TARGET_DIR/plain-collect.sh" | {PACE} "$RUN_DIR/pace"\n',
}
"""What stands in front of the target's own scripts."""
RULE: dict[str, object] = {
    "mei": 0.05,
    "power": 0.9,
    "ncal": 20,
    "ncal_guard": 8,
    "planned": 60,
    "audit_every": 1000,
    "audit_pairs": 16,
    "audit_cap": 16,
    "ablation_pairs": 0,
    "void": {"steal": 0.0, "psi": 0.0},
}
"""Fewer pairs than by default, for patches that are worth more, and no pauses on a busy machine."""


@frozen(kw_only=True)
class Outcome:
    """How one campaign ended."""

    strategy: str
    seed: int
    runs: int
    candidates: int
    kept: tuple[str, ...]
    effects: dict[str, tuple[float, float, float]]
    """Audited, by objective: ln of the cost ratio, positive is better, with its interval; NaN where
    there are too few pairs for one.
    """


def make_target(folder: Path) -> Path:
    """pyserver with shorter workloads, and with CPU time at the pace of the core."""
    if folder.exists():
        return folder
    shutil.copytree(TARGET, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("pace.py"), folder)
    for script, command in STAGES.items():
        (folder / script).rename(folder / f"plain-{script}")
        (folder / script).write_text(f"#!/bin/sh\nset -eu\n{command}")
        (folder / script).chmod(0o755)
    description = (folder / "target.toml").read_text()
    for long, brief in REQUESTS.items():
        wanted = f'LOAD_REQUESTS = "{long}"'
        assert description.count(wanted) == 1, f"target.toml: {wanted} is not there once"
        description = description.replace(wanted, f'LOAD_REQUESTS = "{brief}"')
    (folder / "target.toml").write_text(description)
    return folder


def outcome_file(results: Path, strategy: str, seed: int) -> Path:
    """Where the outcome of a campaign is kept: it is all that the table needs."""
    return results / f"{strategy}-{seed}.json"


def log_of(results: Path, strategy: str, seed: int) -> Path:
    return results / f"{strategy}-{seed}" / "pyserver" / "events.db"


def latest(log: Path) -> CampaignState | None:
    """The campaign in the log, if it was begun."""
    if not log.is_file():
        return None
    campaigns = list(aiopt.load_state(log).campaigns.values())
    return campaigns[-1] if campaigns else None


def carry_on(target: Path, log: Path, settings: Settings) -> None:
    """Begin the campaign, or go on with it, unless it was finished."""
    begun = latest(log)
    if begun is None or begun.finished is None:
        aiopt.run(
            target,
            results=log.parent.parent,
            settings=settings,
            resume=begun.stream if begun else None,
            observer=Watch(log.parent.parent.name),
        )


class Watch:
    """Says on standard error how far a campaign is."""

    def __init__(self, name: str) -> None:
        self._name, self._start = name, time.monotonic()
        self._labels: dict[str, str] = {}

    def __call__(self, recorded: Recorded) -> None:
        match recorded.event:
            case ExperimentStarted() as event:
                patches = "+".join(patch.name.partition("-")[0] for patch in event.genome)
                self._labels[recorded.stream] = f"{event.purpose} {patches}"
            case VerdictReached() as event:
                # Of one that began before the campaign was resumed there is no label.
                label = f"{short(recorded.stream)} {self._labels.get(recorded.stream, '')}"
                self._say(f"{label}: {event.kind.replace('_', ' ')}")
            case CandidateRejected() as event:
                self._say(f"#{event.number} rejected: {event.detail}")

    def _say(self, text: str) -> None:
        minutes = (time.monotonic() - self._start) / 60
        print(f"{self._name} {minutes:6.1f} min  {text}", file=sys.stderr, flush=True)


def outcome_of(strategy: str, seed: int, campaign: CampaignState) -> Outcome:
    audit = audit_view(campaign)
    effects = dict.fromkeys(OBJECTIVES, (0.0, 0.0, 0.0))  # nothing was kept
    for effect in audit.effects if audit else ():
        if effect.metric in effects and effect.workload in campaign.params.main:
            known = (effect.effect, effect.low, effect.high)
            value, low, high = (math.nan if x is None else x for x in known)
            effects[effect.metric] = (value, low, high)
    whole = summary(campaign)
    return Outcome(
        strategy=strategy,
        seed=seed,
        runs=campaign.runs,
        candidates=len(whole.candidates),
        kept=tuple(sorted(whole.kept)),
        effects=effects,
    )


def finished(results: Path, strategies: Iterable[str], seeds: Sequence[int]) -> list[Outcome]:
    files = [outcome_file(results, strategy, seed) for strategy in strategies for seed in seeds]
    return [
        structure(orjson.loads(file.read_bytes()), Outcome, str(file))
        for file in files
        if file.is_file()
    ]


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """All campaigns, and the median of each strategy's."""
    yield "| strategy | seed | runs | candidates | cpu_seconds | peak_rss_mb | kept |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for one in outcomes:
        effects = " | ".join(_percent(*one.effects[name]) for name in OBJECTIVES)
        kept = " ".join(name.partition("-")[0] for name in one.kept) or "nothing"
        yield (
            f"| {one.strategy} | {one.seed} | {one.runs} | {one.candidates} | {effects} | {kept} |"
        )
    for strategy in dict.fromkeys(one.strategy for one in outcomes):
        of_it = [one for one in outcomes if one.strategy == strategy]
        medians = (statistics.median(o.effects[name][0] for o in of_it) for name in OBJECTIVES)
        yield f"| **{strategy}** | median | | | {' | '.join(map(_change, medians))} | |"


def _change(effect: float) -> str:
    return f"{100 * math.expm1(-effect):+.1f} %"


def _percent(effect: float, low: float, high: float) -> str:
    return f"{_change(effect)} [{_change(high)[:-2]}, {_change(low)[:-2]}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="keep the logs there")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=700, help="the budget of each campaign")
    parser.add_argument("--set", action="append", default=[], metavar="a=b", help="of the rule")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    options = parser.parse_args()
    strategies, seeds = options.strategies.split(","), range(1, options.seeds + 1)
    rule = {**RULE, **tomllib.loads("\n".join(options.set))}
    # However it is ended, it shall tear everything down. Started with `&` it would ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        target = options.results / "target" / "pyserver"
        for seed in () if options.table else seeds:
            for strategy in strategies:
                settings = Settings(
                    strategy=strategy,
                    seed=seed,
                    budget=Budget(runs=options.runs),
                    rule_options=rule,
                )
                file = outcome_file(options.results, strategy, seed)
                if file.is_file():
                    continue
                log = log_of(options.results, strategy, seed)
                carry_on(make_target(target), log, settings)
                done = latest(log)
                assert done is not None
                outcome = unstructure(outcome_of(strategy, seed, done))
                file.write_bytes(orjson.dumps(outcome, option=orjson.OPT_APPEND_NEWLINE))
    except aiopt.AiOptError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print("\n".join(table(finished(options.results, strategies, seeds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
