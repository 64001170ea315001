"""Every decision of a log, made anew: what follows from the events, and what was tampered with."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import evolve

from aiopt.audit import ablation_of, audit_of
from aiopt.calibration import calibration_of
from aiopt.config import unstructure
from aiopt.events import (
    AblationMeasured,
    AuditMeasured,
    CalibrationFailed,
    CalibrationMeasured,
    CampaignStarted,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    LevelCharged,
    LookTaken,
    RunMeasured,
    VerdictReached,
)
from aiopt.replay import fold
from aiopt.reproduce import Reproduction, reproduce
from aiopt.verdict import RULES, Judge, verdict_by
from tests.factories import make
from tests.test_replay import recorded
from tests.test_two_stage import Run, better, incumbent, params, run_pairs

Items = list[tuple[str, Event]]

CAMPAIGN, CALIBRATION, CANDIDATE, AUDIT, ABLATION = (
    "cmp-0001~1",
    "exp-0001~1",
    "exp-0002~1",
    "exp-0003~1",
    "exp-0004~1",
)
RULE = params(workloads={"mixed": {}}, audit_pairs=6, ablation_pairs=6)


def experiment(stream: str, purpose: str, **more: Any) -> tuple[str, Event]:
    started = make(ExperimentStarted, campaign=CAMPAIGN, purpose=purpose, number=0, **more)
    return stream, evolve(started, number=1) if purpose == "candidate" else started


def measured(judge: Judge[Any], b: Run, seed: int, known: int) -> list[Event]:
    run_pairs(judge, incumbent, b, seed)
    return list(judge.events[known:])


def outcome(judge: Judge[Any]) -> Any:
    assert judge.outcome is not None
    return judge.outcome


@pytest.fixture(scope="module")
def log() -> Items:
    """A campaign that kept one patch, with everything that is decided in one."""
    started = make(
        CampaignStarted, rule="two-stage", rule_version=1, rule_params=unstructure(RULE), seed=1
    )
    items: Items = [(CAMPAIGN, started), experiment(CALIBRATION, "calibration")]
    calibration: Judge[Any] = Judge(calibration_of, RULE, seed=1, number=0)
    facts = measured(calibration, incumbent, 1, 0)
    finished = make(ExperimentFinished, outcome="measured")
    items += [(CALIBRATION, e) for e in (*facts, *outcome(calibration), finished)]

    charged = make(LevelCharged, ordinal=1, calibration=CALIBRATION)
    candidate: Judge[Any] = Judge(
        verdict_by("two-stage"), RULE, seed=1, number=1, events=[*facts, charged]
    )
    own = [charged, *measured(candidate, better(cpu=0.06), 2, len(facts) + 1)]
    looks = RULES["two-stage"].looks(RULE, candidate.events)
    judged = make(ExperimentFinished, outcome="judged")
    items += [experiment(CANDIDATE, "candidate")]
    items += [(CANDIDATE, e) for e in (*own, *looks, outcome(candidate), judged)]

    for stream, purpose, decider in (
        (AUDIT, "audit", audit_of("base", "final")),
        (ABLATION, "ablation", ablation_of("final", "p" * 64)),
    ):
        judge: Judge[Any] = Judge(decider, RULE, seed=1, number=0, events=facts)
        more = measured(judge, better(cpu=0.06), 3, len(facts))
        items += [experiment(stream, purpose)]
        items += [(stream, e) for e in (*more, outcome(judge), finished)]
    return items


def decided(items: Sequence[tuple[str, Event]]) -> Reproduction:
    return reproduce(fold(recorded(list(items))))


def changed(items: Items, kind: type[Any], change: Callable[[Any], Event | None]) -> Items:
    """The log with the last event of a kind changed, or left out."""
    at = max(i for i, (_, event) in enumerate(items) if isinstance(event, kind))
    stream, event = items[at]
    new = change(event)
    return [*items[:at], *([(stream, new)] if new is not None else []), *items[at + 1 :]]


def test_what_was_logged_follows_from_the_pairs(log: Items) -> None:
    kinds = {type(event) for _, event in log}
    assert kinds >= {
        CalibrationMeasured,
        LookTaken,
        VerdictReached,
        AuditMeasured,
        AblationMeasured,
    }
    assert decided(log) == Reproduction(decisions=5, contradictions=(), not_checked=())


@pytest.mark.parametrize(
    ("kind", "change", "stream", "differs"),
    [
        (VerdictReached, lambda e: evolve(e, kind="discard_no_effect"), CANDIDATE, "kind"),
        (VerdictReached, lambda e: evolve(e, p_confirm=1e-9), CANDIDATE, "p_confirm"),
        (
            VerdictReached,
            lambda e: evolve(e, effects=(evolve(e.effects[0], effect=9.0), *e.effects[1:])),
            CANDIDATE,
            "effects",
        ),
        (AuditMeasured, lambda e: evolve(e, effects=()), AUDIT, "effects"),
        (AblationMeasured, lambda e: evolve(e, supported=False), ABLATION, "supported"),
    ],
)
def test_a_decision_that_was_altered_is_found_with_what_differs(
    log: Items,
    kind: type[Any],
    change: Callable[[Any], Event],
    stream: str,
    differs: str,
) -> None:
    (found,) = decided(changed(log, kind, change)).contradictions
    assert found.experiment == stream
    assert found.differs == f"{kind.__name__} differs in {differs}"
    assert found.logged != found.recomputed


@pytest.mark.parametrize(
    ("kind", "change", "stream"),
    [
        (LookTaken, lambda e: evolve(e, p=0.5), CANDIDATE),
        (LookTaken, lambda e: None, CANDIDATE),
        (CalibrationMeasured, lambda e: evolve(e, n1=3), CALIBRATION),
        (CalibrationMeasured, lambda e: None, CALIBRATION),
    ],
)
def test_looks_and_calibrations_must_be_there_and_what_they_were(
    log: Items, kind: type[Any], change: Callable[[Any], Event | None], stream: str
) -> None:
    (found,) = decided(changed(log, kind, change)).contradictions
    assert found.experiment == stream


def test_a_run_that_was_altered_contradicts_what_it_led_to(log: Items) -> None:
    def slower(event: RunMeasured) -> RunMeasured:
        return evolve(event, metrics={**event.metrics, "cpu": (5.0,)})

    confirm = [
        (stream, slower(e))
        if isinstance(e, RunMeasured) and (e.purpose, e.arm) == ("confirm", "B")
        else (stream, e)
        for stream, e in log
    ]
    found = decided(confirm).contradictions
    assert {each.experiment for each in found} == {CANDIDATE}
    assert len(found) == 2  # the look and the verdict


def test_a_pair_that_was_removed_is_missing(log: Items) -> None:
    without = [
        (stream, e)
        for stream, e in log
        if not (isinstance(e, RunMeasured) and (e.purpose, e.index) == ("confirm", 0))
    ]
    verdict, looks = decided(without).contradictions
    assert "needs 1 more pairs of the purpose confirm" in verdict.recomputed
    assert verdict.differs.startswith("VerdictReached instead of: needs 1 more")
    assert 'purpose":"confirm' in looks.logged
    assert 'purpose":"confirm' not in looks.recomputed


def test_a_failed_calibration_is_decided_anew_too(log: Items) -> None:
    failure = CalibrationFailed(cause="noise", detail="made up")
    at = next(i for i, (_, e) in enumerate(log) if isinstance(e, CalibrationMeasured))
    facts = [item for item in log[:at] if not isinstance(item[1], CalibrationMeasured)]
    (found,) = decided([*facts, (CALIBRATION, failure)]).contradictions
    assert found.experiment == CALIBRATION
    assert "CalibrationFailed" in found.logged
    assert "CalibrationMeasured" in found.recomputed


def test_what_another_version_decided_is_not_judged_by_this_one(log: Items) -> None:
    for changes, reason in (
        ({"rule": "gone"}, "no rule gone"),
        ({"rule_version": 7}, "rule two-stage version 7; this aiopt has 1"),
    ):
        found = decided(changed(log, CampaignStarted, lambda e, c=changes: evolve(e, **c)))  # type: ignore[misc]
        assert found.decisions == 0
        assert found.contradictions == ()
        assert found.not_checked == tuple(
            (stream, reason) for stream in (CALIBRATION, CANDIDATE, AUDIT, ABLATION)
        )


def test_what_cannot_be_taken_out_alone_was_not_decided_by_pairs(log: Items) -> None:
    alone = changed(log, AblationMeasured, lambda e: evolve(e, separable=False, supported=None))
    assert decided(alone) == Reproduction(decisions=4, contradictions=(), not_checked=())


def test_a_log_without_decisions_has_none_to_contradict(log: Items) -> None:
    assert decided(log[:2]) == Reproduction(decisions=0, contradictions=(), not_checked=())
    assert decided([]).decisions == 0
