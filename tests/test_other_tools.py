"""The rules of other tools, asked about the pairs of a log."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from aiopt.comparisons import COMPARISONS
from aiopt.errors import ConfigError
from aiopt.events import ArtifactBuilt, Event, GateFailed, PairScheduled, VerdictReached
from aiopt.rules import NeedsMore, RuleParams, params_from
from aiopt.verdict import RULES, Judge, decide, params_for, verdict_by
from tests.factories import make
from tests.test_verdict import measured

TARGET: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary"},
        "rps": {"role": "primary", "direction": "higher"},
        "answers": {"kind": "digest"},
    },
    "workloads": {"mixed": {}, "reads": {}, "writes": {"guard": True}},
}


def params(**changes: Any) -> RuleParams:
    return params_from({**TARGET, **changes})


def pairs(a: Sequence[float], b: Sequence[float], *, confirm: int = 0) -> list[Event]:
    """Pairs of both main workloads with these costs; the last ones of a confirmation."""
    found: list[Event] = []
    for workload in ("mixed", "reads"):
        for number, costs in enumerate(zip(a, b, strict=True)):
            screen = number < len(a) - confirm
            index = number if screen else number - (len(a) - confirm)
            purpose = "screen" if screen else "confirm"
            pair = make(
                PairScheduled,
                purpose=purpose,
                workload=workload,
                index=index,
                attempt=0,
                order="AB",
            )
            found.append(measured(pair, "A", {"cpu": costs[0], "rps": 100.0}))
            found.append(measured(pair, "B", {"cpu": costs[1], "rps": 100.0}))
    return found


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_a_clear_gain_is_kept_and_claimed_as_the_tool_would(name: str) -> None:
    runs = COMPARISONS[name].runs
    a, b = [1.0 + i / 1000 for i in range(runs)], [0.8 + i / 1000 for i in range(runs)]
    verdict = decide(name, params(), pairs(a, b))
    assert isinstance(verdict, VerdictReached)
    assert (verdict.kind, verdict.rule) == ("keep", name)
    better = [e for e in verdict.effects if e.state == "improved"]
    assert {(e.metric, e.workload) for e in better} == {("cpu", "mixed"), ("cpu", "reads")}
    assert better[0].effect == pytest.approx(COMPARISONS[name].judge(a, b).effect, rel=1e-9)
    assert better[0].effect == pytest.approx(-math.log(0.8), abs=0.01)
    worse = decide(name, params(), pairs(b, a))
    assert isinstance(worse, VerdictReached)
    assert worse.kind == "discard_no_effect"


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_runs_that_are_missing_are_asked_for_not_guessed(name: str) -> None:
    runs = COMPARISONS[name].runs
    needs = decide(name, params(), [])
    assert needs == NeedsMore(
        purpose="screen", wanted={"mixed": runs, "reads": runs}, missing=2 * runs
    )


def test_pairs_of_a_confirmation_are_runs_like_any_others() -> None:
    a, b = [1.0, 1.01, 1.02], [0.9, 0.91, 0.92]
    verdict = decide("no-overlap", params(), pairs(a, b, confirm=2))
    assert isinstance(verdict, VerdictReached)
    assert verdict.kind == "keep"
    needs = decide("no-overlap", params(), pairs(a[:2], b[:2], confirm=1))
    assert needs == NeedsMore(purpose="screen", wanted={"mixed": 2, "reads": 2}, missing=2)


def test_only_the_first_runs_count() -> None:
    a, b = [1.0] * 6, [0.9, 0.9, 0.9, 5.0, 5.0, 5.0]
    verdict = decide("mean-of-n", params(), pairs(a, b))
    assert isinstance(verdict, VerdictReached)
    assert verdict.kind == "keep"
    six = decide("mean-of-n", params(pairs=6), pairs(a, b))
    assert isinstance(six, VerdictReached)
    assert six.kind == "discard_no_effect"


def test_gates_and_answers_are_looked_at() -> None:
    failed = decide("single-run", params(), [GateFailed(gate="test", detail="exit 1")])
    assert isinstance(failed, VerdictReached)
    assert failed.kind == "invalid"
    same = decide("single-run", params(), [make(ArtifactBuilt, digest="a", incumbent_digest="a")])
    assert isinstance(same, VerdictReached)
    assert same.kind == "no_change"
    events = pairs([1.0], [0.5])
    events[1] = measured(
        make(PairScheduled, purpose="screen", workload="mixed", index=0, attempt=0, order="AB"),
        "B",
        {"cpu": 0.5, "rps": 100.0},
        "other",
    )
    different = decide("single-run", params(), events)
    assert isinstance(different, VerdictReached)
    assert different.kind == "invalid"


def test_a_composite_decides_where_there_are_weights() -> None:
    verdict = decide("single-run", params(weights={"cpu": 1.0, "rps": 1.0}), pairs([1.0], [0.5]))
    assert isinstance(verdict, VerdictReached)
    assert {e.metric for e in verdict.effects} == {"composite"}
    assert verdict.effects[0].effect == pytest.approx(math.log(2) / 2)
    rule = params(metrics={**TARGET["metrics"], "gone": {}}, weights={"gone": 1.0})
    unmeasured = decide("single-run", rule, pairs([1.0], [0.5]))
    assert isinstance(unmeasured, VerdictReached)
    assert (unmeasured.kind, unmeasured.effects) == ("discard_no_effect", ())


def test_they_can_run_a_campaign_and_take_no_looks() -> None:
    judge = Judge(verdict_by("mean-of-n"), params(), seed=1, number=1)
    while (pair := judge.next_pair()) is not None:
        judge.tell(
            pair,
            measured(pair, "A", {"cpu": 1.0, "rps": 100.0}),
            measured(pair, "B", {"cpu": 0.9, "rps": 100.0}),
        )
    assert judge.outcome is not None
    assert judge.outcome.kind == "keep"
    assert RULES["mean-of-n"].looks(params(), judge.events) == ()
    assert not RULES["mean-of-n"].calibrated


def test_numbers_with_which_a_rule_could_not_work_are_refused() -> None:
    assert params_for("benchstat", TARGET) == params()
    with pytest.raises(ConfigError, match="at least 2"):
        params_for("no-overlap", {**TARGET, "pairs": 1})
    with pytest.raises(ConfigError, match="no rule"):
        params_for("best-of-n", TARGET)
    with pytest.raises(ConfigError, match="never prove"):
        params_for("signed-rank", {**TARGET, "pairs": 3})
