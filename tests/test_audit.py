"""The campaign's result: how many pairs an audit takes, what an ablation says, shrinkage."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.audit import ablation_of, audit_of, audit_pairs, shrink
from aiopt.calibration import calibration_of
from aiopt.events import AblationMeasured, AuditMeasured, Event, GateFailed
from aiopt.rules import NeedsMore, RuleParams, params_from
from aiopt.verdict import Judge
from tests.test_verdict import measured

BASE = {
    "metrics": {"cpu": {"role": "primary"}, "rss": {"role": "primary"}},
    "workloads": {"mixed": {}, "writes": {"guard": True}},
    "ncal": 10,
    "ncal_guard": 6,
}


def params(**changes: object) -> RuleParams:
    return params_from({**BASE, **changes})


def run(judge: Judge[Any], gain: float, noise: float, seed: int = 1) -> None:
    """Run all pairs; arm B is better by `gain` (natural log) in cpu."""
    rng = np.random.default_rng(seed)
    while (pair := judge.next_pair()) is not None:
        a, b = (math.exp(rng.normal(0.0, noise)) for _ in "AB")
        judge.tell(
            pair,
            measured(pair, "A", {"cpu": a, "rss": 50.0}),
            measured(pair, "B", {"cpu": b * math.exp(-gain), "rss": 50.0}),
        )


def calibration(noise: float) -> list[Event]:
    judge: Judge[Any] = Judge(calibration_of, params(), seed=1, number=0)
    run(judge, 0.0, noise, seed=9)
    return list(judge.events)


def test_an_audit_takes_as_many_pairs_as_its_precision_needs() -> None:
    assert audit_pairs(params(), 0.001) == 10
    assert audit_pairs(params(), 0.02) == math.ceil((1.96 * 1.0233 * 0.02 / 0.01) ** 2)
    assert audit_pairs(params(), 5.0) == 200


def test_an_audit_estimates_every_metric_under_every_workload() -> None:
    judge = Judge(audit_of("base", "final"), params(), seed=1, number=0)
    run(judge, 0.2, 0.001)
    outcome = judge.outcome
    assert isinstance(outcome, AuditMeasured)
    assert (outcome.baseline, outcome.final) == ("base", "final")
    found = {(e.metric, e.workload): e for e in outcome.effects}
    assert set(found) == {(m, w) for m in ("cpu", "rss") for w in ("mixed", "writes")}
    assert found["cpu", "mixed"].effect == pytest.approx(0.2, abs=0.005)
    assert found["cpu", "mixed"].pairs == 10
    assert found["rss", "mixed"].effect == 0.0


def test_an_audit_is_extended_once_while_its_interval_is_too_wide() -> None:
    judge = Judge(audit_of("base", "final"), params(), seed=1, number=0)
    assert judge.missing == 20  # 10 of each workload
    run(judge, 0.2, 0.02)
    assert isinstance(judge.outcome, AuditMeasured)
    effect = next(e for e in judge.outcome.effects if (e.metric, e.workload) == ("cpu", "mixed"))
    assert 10 < effect.pairs <= 200
    narrow = next(e for e in judge.outcome.effects if (e.metric, e.workload) == ("cpu", "writes"))
    assert narrow.pairs == 10  # only what was claimed is measured precisely


def test_an_audit_is_planned_from_the_calibration_if_there_is_one() -> None:
    judge = Judge(audit_of("base", "final"), params(), seed=1, number=0, events=calibration(0.03))
    assert judge.missing > 40
    run(judge, 0.2, 0.03)
    assert isinstance(judge.outcome, AuditMeasured)


def test_an_ablation_says_whether_a_patch_may_still_be_worth_something() -> None:
    for gain, supported in ((0.05, True), (0.0, False), (-0.05, False)):
        judge = Judge(ablation_of("final", "p" * 64), params(), seed=1, number=0)
        run(judge, gain, 0.001)
        outcome = judge.outcome
        assert isinstance(outcome, AblationMeasured)
        assert (outcome.separable, outcome.supported) == (True, supported)
        cpu = next(e for e in outcome.effects if e.metric == "cpu")
        assert cpu.effect == pytest.approx(gain, abs=0.005)
        assert cpu.pairs == 10


def test_what_cannot_be_taken_out_alone_is_not_separable() -> None:
    decided = ablation_of("final", "p" * 64)(params(), [GateFailed(gate="build", detail="exit 1")])
    assert isinstance(decided, AblationMeasured)
    assert (decided.separable, decided.supported, decided.effects) == (False, None, ())
    assert decided.detail == "build: exit 1"
    assert isinstance(ablation_of("final", "p" * 64)(params(), []), NeedsMore)


estimates = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.tuples(st.floats(-0.5, 0.5), st.floats(0.001, 0.2)),
    min_size=1,
    max_size=8,
)


@given(estimates)
def test_shrinking_moves_each_estimate_towards_the_mean_and_never_past_it(
    found: dict[str, tuple[float, float]],
) -> None:
    weights = {name: 1 / se**2 for name, (_, se) in found.items()}
    mean = sum(weights[n] * h for n, (h, _) in found.items()) / sum(weights.values())
    for name, each in shrink(found).items():
        low, high = sorted((found[name][0], mean))
        assert low - 1e-9 <= each.shrunken <= high + 1e-9
        assert (each.effect, each.se) == found[name]


def test_estimates_that_differ_by_noise_alone_all_become_their_mean() -> None:
    shrunk = shrink({"a": (0.01, 0.05), "b": (-0.01, 0.05), "c": (0.0, 0.05)})
    assert {each.shrunken for each in shrunk.values()} == {0.0}
    assert shrink({}) == {}


def test_the_less_certain_of_two_equal_estimates_is_shrunken_more() -> None:
    shrunk = shrink({"sure": (0.2, 0.01), "lucky": (0.2, 0.1), "a": (0.0, 0.01), "b": (0.0, 0.01)})
    assert shrunk["sure"].shrunken > shrunk["lucky"].shrunken > 0.05
