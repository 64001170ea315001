"""A log with any number of runs, as campaigns write them: for benchmarks and tests.

Every verdict is reached by the rule on the pairs that are logged. A campaign calibrates once; its
candidates are mostly neutral and end at the screen, some lose, a few are real gains that are
confirmed and become the incumbent; pairs are voided, gates fail, metrics are missing. Candidates
are drawn from a stock of judged ones, so that a million runs take minutes and not an hour: their
numbers, names and incumbents differ, their measurements come up again.

    python -m tests.benchmarks.large_log PATH --runs 1000000
"""

import argparse
import math
import random
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen

from aiopt.budget import charge_of
from aiopt.calibration import calibration_of
from aiopt.events import (
    ArtifactBuilt,
    CampaignStarted,
    CandidateProposed,
    Event,
    ExperimentFinished,
    ExperimentPurpose,
    ExperimentStarted,
    GateFailed,
    GatePassed,
    IncumbentChanged,
    LevelCharged,
    PairScheduled,
    PairVoided,
    PatchRef,
    RunMeasured,
    VerdictReached,
)
from aiopt.ids import candidate_id, digest
from aiopt.log import Log
from aiopt.rules import RuleParams
from aiopt.verdict import Judge, params_for, verdict_by

__all__ = ["METRICS", "RULE_PARAMS", "write"]

Items = list[tuple[str, Event]]

_COMMIT = "5f0c3b1e9d7a48260b1c2d3e4f5061728394a5b6"
_ENVIRONMENT = "local"
_TRANSACTION = 2_000
"""Events that are appended at a time."""
_STOCK = 1_500

METRICS: dict[str, tuple[float, float]] = {
    "bytes_written": (2.1e9, 0.002),
    "cache_misses": (4.7e6, 0.03),
    "cpu_seconds": (12.5, 0.01),
    "p50_us": (180.0, 0.01),
    "p95_us": (420.0, 0.015),
    "p999_us": (2900.0, 0.05),
    "p99_us": (910.0, 0.02),
    "rss_mb": (340.0, 0.004),
    "throughput_ops": (51_000.0, 0.01),
    "write_amplification": (3.2, 0.005),
}
"""Typical value and standard deviation of its log."""

RULE_PARAMS: dict[str, Any] = {
    "metrics": {
        name: {"direction": "higher" if name == "throughput_ops" else "lower"} for name in METRICS
    }
    | {"cpu_seconds": {"role": "primary"}, "rss_mb": {"role": "guard"}},
    "workloads": {"mixed": {}},
    "alpha2": 0.02,
    "planned": 1_000_000,
}

_KINDS = {"neutral": 0.905, "loser": 0.06, "gain": 0.002, "gate": 0.025, "no_change": 0.008}


@frozen
class _Judged:
    """A candidate of the stock: what its stream holds between its start and its end."""

    before: tuple[Event, ...]
    """Gates and artifact."""
    charged: bool
    after: tuple[Event, ...]
    """Pairs, runs and the verdict."""
    runs: int
    kept: bool


class _Bench:
    """Measures with noise."""

    def __init__(self, params: RuleParams, seed: int) -> None:
        self.params = params
        self.coin = random.Random(seed)
        self._seed = seed

    def measure(
        self, judge: Judge[Any], gain: float, missing: Sequence[str] = ()
    ) -> tuple[Event, ...]:
        """Every pair that the judge asks for; the candidate costs `gain` (natural log) less."""
        told: list[Event] = []
        while (pair := judge.next_pair()) is not None:
            events: list[Event] = [pair]
            events += [self._run(pair, arm, gain, missing) for arm in pair.order]
            if self.coin.random() < 0.02:
                events.append(
                    PairVoided(
                        purpose=pair.purpose,
                        workload=pair.workload,
                        index=pair.index,
                        attempt=pair.attempt,
                        reason="steal 12 %",
                        rule="steal",
                    )
                )
            judge.tell(*events)
            told += events
        return tuple(told)

    def _run(
        self, pair: PairScheduled, arm: Any, gain: float, missing: Sequence[str]
    ) -> RunMeasured:
        metrics: dict[str, tuple[float, ...]] = {}
        for name, (typical, spread) in METRICS.items():
            if name in missing and arm == "B":
                continue
            better = gain if arm == "B" and name != "rss_mb" else 0.0
            sign = 1 if name == "throughput_ops" else -1
            scale = math.exp(sign * better + self.coin.gauss(0, spread))
            metrics[name] = (float(f"{typical * scale:.6g}"),)
        return RunMeasured(
            purpose=pair.purpose,
            workload=pair.workload,
            index=pair.index,
            attempt=pair.attempt,
            arm=arm,
            position=1 + pair.order.index(arm),
            metrics=metrics,
            texts={},
            covariates={"load": round(self.coin.random(), 3)},
            log=None,
        )

    def calibration(self) -> tuple[Event, ...]:
        judge = Judge(calibration_of, self.params, seed=self._seed, number=0)
        events = self.measure(judge, 0.0)
        assert isinstance(judge.outcome, tuple), judge.outcome
        return (*events, *judge.outcome)

    def judged(self, kind: str, number: int, calibration: tuple[Event, ...]) -> _Judged:
        before: list[Event] = []
        built = digest(f"{self._seed} {number}".encode())
        same = built if kind == "no_change" else digest(b"incumbent")
        before.append(ArtifactBuilt(digest=built, files=1, incumbent_digest=same))
        if kind == "gate":
            before.append(GateFailed(gate="test", detail="exit 1"))
        elif kind != "no_change":
            before.append(GatePassed(gate="test"))
        charged = kind not in ("gate", "no_change")
        more = [self.charged("", number, 1)] if charged else []
        judge = Judge(
            verdict_by("two-stage"),
            self.params,
            seed=self._seed,
            number=number,
            events=[*calibration, *more, *before],
        )
        gain = {
            "loser": -self.coin.uniform(0.02, 0.2),
            "gain": self.coin.uniform(0.05, 0.15),
        }.get(kind, 0.0)
        missing = ("cache_misses",) if self.coin.random() < 0.03 else ()
        measured = self.measure(judge, gain, missing)
        verdict = judge.outcome
        assert isinstance(verdict, VerdictReached)
        runs = sum(isinstance(event, RunMeasured) for event in measured)
        after = (*measured, verdict)
        return _Judged(tuple(before), charged, after, runs, verdict.kind == "keep")

    def charged(self, calibration: str, number: int, ordinal: int) -> LevelCharged:
        cost = charge_of(self.params, ordinal)
        return LevelCharged(
            number=number,
            ordinal=ordinal,
            charged=cost,
            spent=cost * ordinal,
            left=1.0,
            calibration=calibration,
        )


def _started(campaign: str, purpose: ExperimentPurpose, **more: Any) -> ExperimentStarted:
    return ExperimentStarted(
        campaign=campaign, purpose=purpose, environment=_ENVIRONMENT, mode="full", **more
    )


def _campaign(log: Log, bench: _Bench, runs: int, seed: int) -> Iterator[Items]:
    """The events of one campaign, an experiment at a time."""
    stream, coin = log.new_stream("cmp"), bench.coin
    yield [
        (
            stream,
            CampaignStarted(
                target="kv",
                target_digest=digest(b"target"),
                harness=digest(b"harness"),
                spec={"name": "kv"},
                base_commit=_COMMIT,
                base_tree=_COMMIT,
                config={"strategy": "greedy", "mode": "full"},
                rule="two-stage",
                rule_version=1,
                rule_params=RULE_PARAMS,
                seed=seed,
                environment=_ENVIRONMENT,
                plugins=(),
                aiopt_version="0.1.0",
            ),
        )
    ]
    here, genome = candidate_id(_COMMIT, ()), ()
    noise = bench.calibration()
    calibration = log.new_stream("exp")
    begun = _started(
        stream,
        "calibration",
        number=0,
        candidate=here,
        genome=(),
        tree=_COMMIT,
        incumbent=here,
        incumbent_tree=_COMMIT,
    )
    yield [(calibration, e) for e in (begun, *noise, ExperimentFinished(outcome="measured"))]
    done = sum(isinstance(event, RunMeasured) for event in noise)
    stock: dict[str, list[_Judged]] = {kind: [] for kind in _KINDS}
    size = min(_STOCK, max(10, runs // 40))
    number = ordinal = 0
    incumbent: tuple[str, tuple[PatchRef, ...]] = (here, genome)
    kinds = list(_KINDS)
    while done < runs:
        number += 1
        kind = coin.choices(kinds, list(_KINDS.values()))[0]
        known = stock[kind]
        if len(known) < max(5, size * _KINDS[kind]):
            known.append(bench.judged(kind, number, noise))
            judged = known[-1]
        else:
            judged = known[coin.randrange(len(known))]
        patch = PatchRef(name=f"{number:06d}-{kind}", digest=digest(f"{seed} {number}".encode()))
        genes = (*incumbent[1], patch)
        candidate = candidate_id(_COMMIT, [each.digest for each in genes])
        # Of the genome the last patch: with all of a hundred keeps the log would be mostly that.
        exp = log.new_stream("exp")
        ordinal += judged.charged
        proposed = CandidateProposed(
            number=number,
            candidate=candidate,
            genome=genes[-1:],
            patch=patch.digest,
            parents=(incumbent[0],),
            hypothesis="less work in the inner loop",
            proposer="pool",
        )
        events: list[Event] = [
            _started(
                stream,
                "candidate",
                number=number,
                candidate=candidate,
                genome=genes[-1:],
                tree=digest(candidate.encode())[:40],
                incumbent=incumbent[0],
                incumbent_tree=_COMMIT,
            ),
            *judged.before,
            *([bench.charged(calibration, number, ordinal)] if judged.charged else []),
            *judged.after,
            ExperimentFinished(outcome="judged"),
        ]
        items: Items = [(stream, proposed), *((exp, event) for event in events)]
        if judged.kept:
            changed = IncumbentChanged(
                candidate=candidate,
                genome=genes[-1:],
                tree=digest(candidate.encode())[:40],
                experiment=exp,
                previous=incumbent[0],
            )
            items.append((stream, changed))
            incumbent = (candidate, genes)
        done += judged.runs
        yield items


def write(path: Path, runs: int, *, campaigns: int = 1, seed: int = 1) -> int:
    """Add campaigns with at least this number of runs, all in all, to the log at `path`, which may
    not be there yet; returns how many events were written.
    """
    params = params_for("two-stage", RULE_PARAMS)
    written = 0
    with Log.open(path) as log:
        for number in range(campaigns):
            bench = _Bench(params, seed + number)
            waiting: Items = []
            for items in _campaign(log, bench, -(-runs // campaigns), seed + number):
                waiting += items
                if len(waiting) >= _TRANSACTION:
                    written += len(log.append(waiting))
                    waiting = []
            written += len(log.append(waiting))
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Write a log; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.large_log", description="Write a log of many runs."
    )
    number = partial(parser.add_argument, type=int)
    parser.add_argument("path", type=Path)
    number("--runs", default=1_000_000)
    number("--campaigns", default=1)
    number("--seed", default=1)
    arguments = parser.parse_args(argv)
    events = write(
        arguments.path, arguments.runs, campaigns=arguments.campaigns, seed=arguments.seed
    )
    print(f"{arguments.path}: {events:,} events")
    return 0


if __name__ == "__main__":
    sys.exit(main())
