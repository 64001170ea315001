"""The read models: what they say of a fold, and that they are plain JSON."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from aiopt.events import (
    AuditMeasured,
    CampaignFinished,
    CampaignInterrupted,
    CampaignStarted,
    CandidateProposed,
    CandidateRejected,
    Effect,
    Event,
    EvidenceCaptured,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    GatePassed,
    IncumbentChanged,
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    PatchRef,
    ProfilerUnavailable,
    Recorded,
    RunMeasured,
    Scalar,
    StageFinished,
    StageStarted,
    VerdictReached,
)
from aiopt.ids import candidate_id
from aiopt.replay import CampaignState, fold
from aiopt.views import (
    audit_view,
    baseline_failed,
    candidate_table,
    effect_view,
    estimates,
    evidence_table,
    experiment_view,
    gate_table,
    is_finished,
    pair_table,
    short,
    stage_table,
    summary,
    to_json,
)

from .factories import make

_CAMPAIGN = "cmp-0001~1"
_PARAMS = {
    "metrics": {"cost": {"role": "primary"}},
    "workloads": {"main": {}},
    "pairs": 7,
}
_PATCH = PatchRef(name="fast", digest="a" * 64)
_BASE = "b" * 40


def _state(*items: tuple[str, Event]) -> CampaignState:
    started = make(
        CampaignStarted,
        target="toy",
        environment="local",
        base_commit=_BASE,
        config={"mode": "fast", "strategy": "greedy", "proposer": "pool"},
        rule="signed-rank",
        rule_params=_PARAMS,
        seed=3,
    )
    versions: dict[str, int] = {}
    found = []
    for seq, (stream, event) in enumerate([(_CAMPAIGN, started), *items], 1):
        versions[stream] = versions.get(stream, 0) + 1
        found.append(
            Recorded(
                seq=seq,
                stream=stream,
                version=versions[stream],
                writer=1,
                wseq=seq,
                recorded_at="2026-01-01T00:00:00.000000+00:00",
                hash=b"",
                event=event,
            )
        )
    return fold(found).campaigns[_CAMPAIGN]


def _proposed(number: int) -> tuple[str, Event]:
    return _CAMPAIGN, make(
        CandidateProposed,
        number=number,
        candidate=f"c{number}",
        genome=(_PATCH,),
        parents=(),
        hypothesis="less work",
        proposer="pool",
    )


def _experiment(stream: str, purpose: Any = "candidate", number: int = 1) -> tuple[str, Event]:
    return stream, make(
        ExperimentStarted,
        campaign=_CAMPAIGN,
        number=number,
        purpose=purpose,
        candidate="c1" if purpose != "baseline" else candidate_id(_BASE, ()),
        genome=() if purpose == "baseline" else (_PATCH,),
    )


def _pair(index: int, a: float | None, b: float | None, purpose: Any = "screen") -> list[Event]:
    place: dict[str, Any] = {
        "purpose": purpose,
        "workload": "main",
        "index": index,
        "attempt": 0,
    }
    events: list[Event] = [PairScheduled(**place, order="AB")]
    for position, (arm, value) in enumerate((("A", a), ("B", b)), 1):
        if value is not None:
            run = make(RunMeasured, **place, arm=arm, position=position, metrics={"cost": (value,)})
            events.append(run)
    return events


def _effect(effect: float | None = 0.1, role: Any = "primary") -> Effect:
    return make(
        Effect,
        metric="cost",
        role=role,
        workload="main",
        pairs=7,
        effect=effect,
        low=None,
        high=0.2,
    )


def _on(stream: str, events: Iterable[Event]) -> list[tuple[str, Event]]:
    return [(stream, event) for event in events]


def test_effects_are_also_percentages() -> None:
    """A log ratio of 0.1 saves 9.5163 %; what has no bound has none as a percentage either."""
    view = effect_view(_effect())
    assert (view.better_percent, view.better_percent_low, view.better_percent_high) == (
        9.5163,
        None,
        18.1269,
    )
    assert view.effect == 0.1


def test_candidates_of_every_kind() -> None:
    """Judged, rejected, superseded, running and proposed candidates, with their reasons."""
    one, two, three = "exp-0001~1", "exp-0002~1", "exp-0003~1"
    rejected = make(
        CandidateRejected, number=2, reason="does_not_apply", detail="hunk 1", duplicate_of=None
    )
    state = _state(
        _proposed(1),
        _experiment(one),
        *_on(one, [*_pair(0, 100, 90), *_pair(1, 100, None)]),
        (one, make(VerdictReached, kind="keep", reason="better", effects=(_effect(),))),
        (one, ExperimentFinished(outcome="judged")),
        _proposed(2),
        (_CAMPAIGN, rejected),
        _proposed(3),
        _experiment(two, number=3),
        (two, ExperimentFinished(outcome="superseded", detail="the incumbent changed")),
        _proposed(4),
        _experiment(three, number=4),
        _proposed(5),
    )
    rows = candidate_table(state)
    assert [row.status for row in rows] == [
        "keep",
        "rejected",
        "superseded",
        "running",
        "proposed",
    ]
    assert [row.reason for row in rows] == [
        "better",
        "does not apply: hunk 1",
        "the incumbent changed",
        "",
        "",
    ]
    assert (rows[0].pairs, rows[0].patch, rows[0].hypothesis) == (1, "fast", "less work")
    assert [effect.metric for effect in rows[0].primaries] == ["cost"]
    assert summary(state).counts == {
        "keep": 1,
        "proposed": 1,
        "rejected": 1,
        "running": 1,
        "superseded": 1,
    }


def test_summary_and_audit() -> None:
    """What the campaign was, what it consists of now, and its result."""
    one, audit = "exp-0001~1", "exp-0002~1"
    changed = make(
        IncumbentChanged, candidate="c1", genome=(_PATCH,), experiment=one, previous="c0"
    )
    measured = AuditMeasured(baseline="c0", final="c1", effects=(_effect(),))
    before = _state(_proposed(1), _experiment(one))
    assert summary(before).audit is None
    assert summary(before).status == "unfinished"
    interrupted = _state((_CAMPAIGN, CampaignInterrupted(reason="stopped")))
    assert summary(interrupted).status == "interrupted"
    state = _state(
        _proposed(1),
        _experiment(one),
        (_CAMPAIGN, changed),
        _experiment(audit, "audit", 0),
        (audit, measured),
        (_CAMPAIGN, CampaignFinished(reason="no more")),
    )
    found = summary(state)
    assert (found.status, found.reason, found.kept) == ("finished", "no more", ("fast",))
    assert is_finished(state)
    assert found.audit == audit_view(state)
    assert found.audit is not None
    assert found.audit.effects[0].better_percent == 9.5163
    assert orjson.loads(orjson.dumps(to_json(found)))["candidates"][0]["number"] == 1


def test_an_audit_of_an_earlier_incumbent_does_not_count() -> None:
    """What was audited has to be what the campaign consists of now."""
    audit = "exp-0001~1"
    measured = AuditMeasured(baseline="c0", final="another", effects=(_effect(),))
    assert audit_view(_state(_experiment(audit, "audit", 0), (audit, measured))) is None


def test_baseline_failed() -> None:
    """Only if it was tried and given up."""
    stream = "exp-0001~1"
    start = _experiment(stream, "baseline", 0)
    assert not baseline_failed(_state())
    assert not baseline_failed(_state(start))
    assert baseline_failed(_state(start, (stream, ExperimentFinished(outcome="abandoned"))))
    assert not baseline_failed(_state(start, (stream, ExperimentFinished(outcome="measured"))))


def test_stages() -> None:
    """Each start with its own end, also where a stage was run again under the same number."""
    place: dict[str, Any] = {"stage": "build", "attempt": 0, "run": ""}
    start = make(StageStarted, **place, argv=("make",))
    end = make(
        StageFinished,
        **place,
        outcome="ok",
        exit_code=0,
        signal=None,
        seconds=1.5,
        peak_rss_bytes=3_000_000,
        log="c" * 64,
    )
    rows = stage_table([start, end, start])
    assert [(row.outcome, row.seconds, row.peak_rss_mb) for row in rows] == [
        ("ok", 1.5, 3.0),
        ("cut off", None, None),
    ]


def test_gates_pairs_and_evidence() -> None:
    """Yes/no checks, pairs that count and those that do not, profilers that worked or did not."""
    gates = gate_table([GatePassed(gate="test"), GateFailed(gate="build", detail="exit 1")])
    assert [(gate.gate, gate.passed, gate.detail) for gate in gates] == [
        ("test", True, ""),
        ("build", False, "exit 1"),
    ]
    place: dict[str, Any] = {"purpose": "screen", "workload": "main", "index": 1, "attempt": 0}
    unreadable = make(MetricUnreadable, **place, arm="B", metric="cost", found="n/a")
    pairs = pair_table(
        [*_pair(0, 2, 1), *_pair(1, 2, None), unreadable, PairVoided(**place, reason="interrupted")]
    )
    assert [pair.complete for pair in pairs] == [True, False]
    assert pairs[1].void == "interrupted"
    assert pairs[1].unreadable == ("cost (B): n/a",)
    captured = make(
        EvidenceCaptured,
        profiler="perf",
        scalars={"cycles": Scalar(value=3.0, unit="1")},
        stacks=None,
        artifact=None,
    )
    lacking = make(
        ProfilerUnavailable, profiler="coz", status="failed", reason="no symbols", fix="-g"
    )
    rows = evidence_table([captured, lacking])
    assert [(row.profiler, row.status, row.reason) for row in rows] == [
        ("perf", "measured", ""),
        ("coz", "failed", "no symbols"),
    ]
    assert rows[0].scalars == {"cycles": (3.0, "1")}


def test_experiment() -> None:
    """Everything about it, made of its stream and of the campaign's fold."""
    stream = "exp-0001~1"
    own: list[Event] = [
        *_pair(0, 100, 80),
        make(VerdictReached, kind="keep", reason="better", effects=(_effect(),)),
        ExperimentFinished(outcome="judged"),
    ]
    state = _state(_proposed(1), _experiment(stream), *_on(stream, own))
    view = experiment_view(state, state.experiments[stream], own)
    assert (view.status, view.reason, view.hypothesis) == ("keep", "better", "less work")
    assert (len(view.pairs), view.stages) == (1, ())
    assert view.genome == (("fast", "a" * 64),)


@pytest.mark.parametrize("outcome", [None, "measured"])
def test_experiment_of_the_baseline(outcome: Any) -> None:
    """It has no proposal; its status is how it ended."""
    stream = "exp-0001~1"
    end = [(stream, ExperimentFinished(outcome=outcome))] if outcome else []
    state = _state(_experiment(stream, "baseline", 0), *end)
    view = experiment_view(state, state.experiments[stream], [])
    assert (view.status, view.patch) == (outcome or "running", "baseline")
    assert view.effects == ()


def test_estimates_before_the_verdict() -> None:
    """The primaries of the pairs so far: of the screen, or of the audit."""
    one, audit = "exp-0001~1", "exp-0002~1"
    state = _state(
        _proposed(1),
        _experiment(one),
        *_on(one, [event for index in range(5) for event in _pair(index, 100, 80)]),
        _experiment(audit, "audit", 0),
        *_on(audit, [event for index in range(5) for event in _pair(index, 100, 50, "audit")]),
    )
    (found,) = estimates(state, state.experiments[one])
    assert found.better_percent == pytest.approx(20)
    (found,) = estimates(state, state.experiments[audit])
    assert found.better_percent == pytest.approx(50)


def test_short_names() -> None:
    """Streams as people write them."""
    assert short("exp-0007~1") == "exp-0007"
    assert short(None) == "-"
