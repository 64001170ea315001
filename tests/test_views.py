"""The read models: what they say of a fold, and that they are plain JSON."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
import pytest

from aiopt.calibration import calibration_of
from aiopt.errors import ConfigError
from aiopt.events import (
    AblationMeasured,
    AuditMeasured,
    CalibrationFailed,
    CalibrationMeasured,
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
    Finding,
    GateFailed,
    GatePassed,
    IncumbentChanged,
    LevelCharged,
    LookTaken,
    MachineUnfit,
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
from aiopt.rules import params_from
from aiopt.views import (
    advice,
    audit_view,
    baseline_failed,
    budget_view,
    calibration_view,
    candidate_table,
    compare_rules,
    effect_view,
    estimates,
    evidence_digest,
    evidence_lines,
    evidence_table,
    experiment_view,
    gate_table,
    is_finished,
    left_out,
    look_table,
    pair_table,
    progress_view,
    short,
    stage_table,
    summary,
    to_json,
)
from aiopt.views._words import share, spell_time

from .factories import make

_CAMPAIGN = "cmp-0001~1"
_PARAMS = {
    "metrics": {"cost": {"role": "primary"}},
    "workloads": {"main": {}},
    "pairs": 7,
}
_PATCH = PatchRef(name="fast", digest="a" * 64)
_BASE = "b" * 40


def _state(
    *items: tuple[str, Event],
    rule: str = "signed-rank",
    params: Mapping[str, Any] = _PARAMS,
    spec: Mapping[str, Any] | None = None,
) -> CampaignState:
    started = make(
        CampaignStarted,
        target="toy",
        spec=dict(spec or {}),
        environment="local",
        base_commit=_BASE,
        config={"mode": "fast", "strategy": "greedy", "proposer": "pool"},
        rule=rule,
        rule_params=dict(params),
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
        (
            one,
            make(
                VerdictReached,
                kind="keep",
                reason="better",
                effects=(_effect(),),
                stage="screen",
                mei_eff=0.03,
                pairs_needed=40,
            ),
        ),
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
    assert (rows[0].stage, rows[1].stage) == ("screen", "")
    assert (rows[0].needs, rows[0].mei_eff_percent, rows[0].effects[0].biased) == (40, 2.9554, True)
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
    unfit = MachineUnfit(reason="9 of the last 25 pairs were void", voided=9, scheduled=25)
    assert summary(_state((_CAMPAIGN, unfit))).reason == (
        "the machine is unfit: 9 of the last 25 pairs were void"
    )
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
        artifacts=(),
        workload="main",
        under_profiler={"cost": (150.0,)},
    )
    lacking = make(
        ProfilerUnavailable, profiler="coz", status="failed", reason="no symbols", fix="-g"
    )
    rows = evidence_table([captured, lacking], _pair(0, 2, 100))
    assert [(row.profiler, row.status, row.reason) for row in rows] == [
        ("perf", "measured", ""),
        ("coz", "failed", "no symbols"),
    ]
    assert rows[0].scalars == {"cycles": Scalar(value=3.0, unit="1")}
    assert rows[0].overhead_percent == {"cost": 50.0}


def _evidence(profiler: str, findings: int = 0, where: str = "hot", **more: Any) -> Any:
    share = Scalar(value=0.5, unit="ratio")
    return make(
        EvidenceCaptured,
        **{
            "profiler": profiler,
            "scalars": {"samples": Scalar(value=5.0, unit="samples")},
            "findings": (Finding(where=where, what="on-CPU", scalar=share),) * findings,
            "notes": (),
            "workload": "main",
            **more,
        },
    )


def test_a_digest_is_bounded_and_no_profiler_is_silenced_by_another() -> None:
    rows = evidence_table([_evidence("perf", 2), _evidence("coz", 1)])
    text = evidence_digest(rows)
    assert text.splitlines() == [
        "perf, workload main:",
        "  samples 5 samples",
        "  50 %  on-CPU  hot",
        "  50 %  on-CPU  hot",
        "coz, workload main:",
        "  samples 5 samples",
        "  50 %  on-CPU  hot",
    ]
    assert evidence_digest([]) == ""
    long = "N" * 9000
    failed = make(ProfilerUnavailable, profiler="a", status="failed", reason=long)
    found = evidence_table([failed, _evidence("perf", 8, long), _evidence("coz", 1)])
    text = evidence_digest(found)
    assert [line[:9] for line in text.splitlines()].count("coz, work") == 1
    assert max(map(len, text.splitlines())) == 240
    for limit in (0, 10, 60, 100, 200, 700, 1000, 5000):
        assert len(evidence_digest(found, limit)) <= limit
    short = evidence_digest(found, 700)
    assert "more lines: `aiopt show` has them)" in short
    assert "coz, workload main:" in short


def test_what_has_no_findings_shows_its_scalars() -> None:
    scalars = {f"s{number}": Scalar(value=number, unit="ms") for number in range(9)}
    (row,) = evidence_table([_evidence("proc", scalars=scalars, notes=("busy",))])
    assert [*evidence_lines(row)] == [
        "proc, workload main:",
        *(f"  s{number} {number} ms" for number in range(8)),
        "  and 1 more: --top N, or --json",
        "  note: busy",
    ]
    bounded = {"s": Scalar(value=2.0, unit="bytes", low=1e6, high=3e6)}
    (row,) = evidence_table([_evidence("proc", scalars=bounded)])
    assert [*evidence_lines(row)][1:] == ["  s 2e-06 MB [1, 3]"]


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


# ---- a calibrated rule ----

_CALIBRATED: Mapping[str, Any] = {
    "metrics": {
        "p99": {"role": "primary"},
        "cpu": {"role": "info"},
        "rate": {"role": "info", "direction": "higher"},
        "rss": {"role": "guard", "margin": 0.1},
        "answer": {"kind": "digest"},
    },
    "workloads": {"main": {}, "writes": {"guard": True}},
    "ncal": 20,
    "ncal_guard": 6,
}
_UNITS = {"metrics": {"p99": {"unit": "ms"}, "cpu": {"unit": "s"}, "rss": {"unit": "MB"}}}
_QUIET = {"p99": 0.01, "cpu": 0.002, "rate": 0.01, "rss": 0.001}
_FIRST = "exp-0001~1"


def _measured(
    purpose: Any,
    workload: str,
    index: int,
    a: Mapping[str, float],
    b: Mapping[str, float],
    **more: Any,
) -> list[Event]:
    """A pair, with both costs of each metric."""
    place: dict[str, Any] = {
        "purpose": purpose,
        "workload": workload,
        "index": index,
        "attempt": 0,
    }
    runs = [
        make(
            RunMeasured,
            **place,
            arm=arm,
            position=position,
            metrics={name: (value,) for name, value in values.items()},
            texts={"answer": "42"},
            covariates=more,
        )
        for position, (arm, values) in enumerate((("A", a), ("B", b)), 1)
    ]
    return [PairScheduled(**place, order="AB"), *runs]


def _noise(
    spread: Mapping[str, float], params: Mapping[str, Any] = _CALIBRATED, **more: Any
) -> list[Event]:
    """The pairs of a calibration in which each metric has this standard deviation of a pair."""
    rng = np.random.Generator(np.random.PCG64(7))
    events: list[Event] = []
    checked = params_from(params)
    for workload in checked.workloads:
        for index in range(checked.calibration_pairs(workload)):
            a, b = (
                {n: 100 * math.exp(rng.normal(0, sd / math.sqrt(2))) for n, sd in spread.items()}
                for _ in range(2)
            )
            events += _measured("calibration", workload, index, a, b, **more)
    return events


def _calibration(
    spread: Mapping[str, float], params: Mapping[str, Any] = _CALIBRATED, **more: Any
) -> list[tuple[str, Event]]:
    """A whole calibration, with what it found."""
    events = _noise(spread, params, **more)
    outcome = calibration_of(params_from(params), events)
    found: list[Event] = list(outcome) if isinstance(outcome, tuple) else []
    assert found
    end = ExperimentFinished(outcome="measured")
    return [
        _experiment(_FIRST, "calibration", 0),
        *_on(_FIRST, [*events, *found, end]),
    ]


def _said(spread: Mapping[str, float], **more: Any) -> tuple[str, ...]:
    state = _state(
        *_calibration(spread, run_seconds=1.5, **more),
        rule="two-stage",
        params=_CALIBRATED,
        spec=_UNITS,
    )
    view = calibration_view(state)
    assert view is not None
    assert summary(state).calibration == view
    return view.sentences


def test_calibration_in_words() -> None:
    """What can be proved on this machine, what that takes, and what is quietest."""
    first, *rest = _said(_QUIET)
    start = "On this machine, workload main: the smallest gain in p99 that can be proved is 3.0 %; "
    assert first.startswith(start)
    assert first.endswith(" that takes about 15 pairs, 45 seconds.")
    assert [text.partition(" (")[0] for text in rest] == ["rss is the quietest metric"]
    state = _state(*_calibration(_QUIET), rule="two-stage", params=_CALIBRATED)
    view = calibration_view(state)
    assert view is not None
    assert view.sentences[0].endswith(" pairs.")  # how long a pair takes is not known
    rows = {(row.metric, row.workload): row for row in view.rows}
    assert rows["p99", "main"].minutes is None
    assert rows["rss", "main"].mei_eff_percent == pytest.approx(10)
    assert rows["p99", "writes"].role == "guard"
    assert view.mei_percent == 2.9554
    shown = experiment_view(state, state.experiments[_FIRST], [])
    assert shown.calibration == view.rows


def test_calibration_that_is_too_noisy() -> None:
    """What a gain of interest would take, and which metric of the same kind would be cheaper."""
    text = " ".join(_said({**_QUIET, "p99": 0.14}))
    assert "A gain of 3.0 % would take about " in text
    assert " and cannot be proved with this plan; cpu would make it cheaper: its pairs" in text
    assert "effects below" not in text
    alone = " ".join(_said({**_QUIET, "p99": 0.14, "cpu": 0.14}))
    assert "cannot be proved with this plan." in alone


def test_kinds_of_metrics_without_units() -> None:
    """Their names say it: a time is not replaced by memory."""
    spread = {"p99_ms": 0.14, "wall_seconds": 0.01, "rss_mb": 0.001, "steps": 0.0}
    params = {
        "metrics": {name: {"role": "primary" if name == "p99_ms" else "info"} for name in spread},
        "workloads": {"main": {}},
        "ncal": 20,
    }
    view = calibration_view(_state(*_calibration(spread, params), rule="two-stage", params=params))
    assert view is not None
    text = " ".join(view.sentences)
    assert "wall_seconds would make it cheaper" in text
    assert "rss_mb is the quietest metric" in text


def test_a_metric_of_which_nothing_can_be_proved() -> None:
    """Said so, beside another one of which something can."""
    params = {
        "metrics": {"cpu": {"role": "primary"}, "p99": {"role": "primary"}},
        "workloads": {"main": {}},
        "ncal": 20,
    }
    spread = {"cpu": 0.01, "p99": 3.0}
    view = calibration_view(_state(*_calibration(spread, params), rule="two-stage", params=params))
    assert view is not None
    text = " ".join(view.sentences)
    assert "workload main: the smallest gain in cpu that can be proved is 3.0 %; that" in text
    assert "Nothing can be proved of p99: its pairs differ by " in text
    assert "A gain of" not in text


def test_a_single_metric_is_not_the_quietest() -> None:
    """There is nothing to compare it with."""
    params = {**_PARAMS, "ncal": 20}
    state = _state(*_calibration({"cost": 0.01}, params), rule="two-stage", params=params)
    view = calibration_view(state)
    assert view is not None
    assert len(view.sentences) == 1


def test_void_rules_that_are_off() -> None:
    """Because this machine is never quiet, or because the settings say so."""
    text = " ".join(_said(_QUIET, psi_cpu_some_avg10=50.0))
    assert "The rule psi would void 26 of 26 calibration pairs, so it is off: " in text
    params = {**_CALIBRATED, "void": {"psi": 0, "throttle": False}}
    view = calibration_view(_state(*_calibration(_QUIET, params), rule="two-stage", params=params))
    assert view is not None
    assert view.void_rules_off == ("psi", "throttle")
    text = "Switched off by the settings, so that they void no pair: psi, throttle."
    assert view.sentences[-1] == text


def test_layout_of_compiled_targets() -> None:
    """How much rebuilds differ that change nothing."""
    found = make(
        CalibrationMeasured,
        metric="cost",
        workload="main",
        role="primary",
        mei_eff=0.03,
        layout_sd=0.018,
        warnings=(),
    )
    state = _state(
        _experiment(_FIRST, "calibration", 0),
        (_FIRST, found),
        (_FIRST, ExperimentFinished(outcome="measured")),
        rule="two-stage",
        params={**_PARAMS, "layout": {"rotate": 6}},
    )
    view = calibration_view(state)
    assert view is not None
    assert view.sentences[1] == (
        "cost (main): neutral rebuilds of the same source differ by 1.8 %; confirmation rotates "
        "over 6 of them."
    )


def test_calibration_that_failed() -> None:
    """The reason; none at all is no calibration."""
    assert calibration_view(_state()) is None
    running = _state(_experiment(_FIRST, "calibration", 0), rule="two-stage", params=_CALIBRATED)
    assert calibration_view(running) is None
    failed = CalibrationFailed(cause="order_effect", detail="runs influence each other")
    state = _state(
        _experiment(_FIRST, "calibration", 0),
        (_FIRST, failed),
        (_FIRST, ExperimentFinished(outcome="abandoned", detail="order_effect")),
        rule="two-stage",
        params=_CALIBRATED,
    )
    view = calibration_view(state)
    assert view is not None
    assert (view.status, view.reason) == (
        "failed",
        "order effect: runs influence each other",
    )
    assert view.sentences == (f"The calibration failed ({view.reason}).",)
    shown = experiment_view(state, state.experiments[_FIRST], [])
    assert shown.reason == "runs influence each other"


def _charge(stream: str, ordinal: int, charged: float = 0.0005) -> tuple[str, Event]:
    return stream, make(
        LevelCharged,
        number=ordinal,
        ordinal=ordinal,
        charged=charged,
        spent=charged * ordinal,
        left=0.1 - charged * ordinal,
        calibration=_FIRST,
    )


def test_budget() -> None:
    """One row for each candidate that was charged, and the promise; more than planned too."""
    one, two = "exp-0002~1", "exp-0003~1"
    items = [
        _proposed(1),
        _experiment(one, number=1),
        _charge(one, 1),
        (one, make(VerdictReached, kind="discard_no_effect", effects=())),
        (one, ExperimentFinished(outcome="judged")),
        _proposed(2),
        _experiment(two, number=2),
    ]
    state = _state(*items, rule="two-stage", params=_CALIBRATED)
    view = budget_view(state)
    assert view.sentences == (
        "at most 0.1 false keeps are expected among 200 candidates; so far 1 was screened: at most "
        "0.0005",
    )
    items.append(_charge(two, 2))
    view = budget_view(_state(*items, rule="two-stage", params={**_CALIBRATED, "planned": 1}))
    assert [row.verdict for row in view.rows] == ["discard_no_effect", "running"]
    assert [(row.patch, row.ordinal) for row in view.rows] == [("fast", 1), ("fast", 2)]
    assert view.budget == pytest.approx(0.15)
    assert (view.screened, view.spent) == (2, 0.001)
    assert (
        "among all candidates, those beyond the 1 planned ones included; so far 2 were"
        in (view.sentences[0])
    )
    shown = experiment_view(state, state.experiments[one], [])
    assert shown.charged == 0.0005


def test_rules_without_a_budget() -> None:
    """Their level is for one candidate, or there is none."""
    view = budget_view(_state(_proposed(1)))
    assert (view.budget, view.left, view.rows) == (None, None, ())
    assert (
        "its level is 0.01 for each candidate, so 1 false keeps are expected" in (view.sentences[0])
    )
    (text,) = budget_view(_state(rule="single-run")).sentences
    assert text == "the rule single-run has no error budget, and states no error level"


def test_looks() -> None:
    """Each with what it saw and what followed."""
    look = make(
        LookTaken, metric="p99", purpose="screen", pairs=4, effect=0.1, sd=0.02, action="futile"
    )
    (row,) = look_table([*_pair(0, 1, 1), look], params_from(_CALIBRATED))
    assert (row.pairs, row.better_percent, row.sd_percent, row.action) == (4, 9.5163, 2.0, "futile")


# ---- the audit ----

_SLOW = PatchRef(name="second", digest="d" * 64)


def _kept(
    stream: str, number: int, patch: PatchRef, effect: Effect, genome: tuple[PatchRef, ...]
) -> list[tuple[str, Event]]:
    changed = make(
        IncumbentChanged,
        candidate=candidate_id(_BASE, [p.digest for p in genome]),
        genome=genome,
        experiment=stream,
    )
    started = make(
        ExperimentStarted, campaign=_CAMPAIGN, number=number, purpose="candidate", genome=genome
    )
    return [
        (stream, started),
        (stream, make(VerdictReached, kind="keep", effects=(effect,), stage="confirm")),
        (stream, ExperimentFinished(outcome="judged")),
        (_CAMPAIGN, changed),
    ]


def _ablated(stream: str, without: PatchRef, **outcome: Any) -> list[tuple[str, Event]]:
    rest = [p.digest for p in (_PATCH, _SLOW) if p != without]
    started = make(
        ExperimentStarted,
        campaign=_CAMPAIGN,
        number=0,
        purpose="ablation",
        candidate=_FINAL,
        genome=(_PATCH, _SLOW),
        incumbent=candidate_id(_BASE, rest),
    )
    measured = AblationMeasured(final=_FINAL, without=without.digest, **outcome)
    return [
        (stream, started),
        (stream, measured),
        (stream, ExperimentFinished(outcome="measured")),
    ]


_FINAL = candidate_id(_BASE, [_PATCH.digest, _SLOW.digest])


def _audited(*more: tuple[str, Event], **options: Any) -> CampaignState:
    """Two kept patches and their audit."""
    audit = "exp-0004~1"
    effect = make(Effect, metric="cost", workload="main", role="primary", pairs=9, effect=0.25)
    return _state(
        *_kept("exp-0002~1", 1, _PATCH, _effect(), (_PATCH,)),
        *_kept("exp-0003~1", 2, _SLOW, _effect(0.2), (_PATCH, _SLOW)),
        _experiment(audit, "audit", 0),
        *_on(audit, [e for i in range(6) for e in _pair(i, 100, 80, "audit")]),
        (audit, AuditMeasured(baseline="c0", final=_FINAL, effects=(effect,))),
        (audit, ExperimentFinished(outcome="measured")),
        *more,
        **options,
    )


def test_audit_beside_the_claims() -> None:
    """The sum of what the steps claimed, and what the audit says."""
    state = _audited()
    view = audit_view(state)
    assert view is not None
    (claim,) = view.claims
    assert claim.steps == 2
    assert claim.claimed == pytest.approx(0.3)
    assert claim.claimed_percent == pytest.approx(100 * (1 - math.exp(-0.3)), abs=1e-3)
    assert claim.audited == view.effects[0]
    assert view.ablation_due
    assert view.sentences == (
        "The audit is the result. What is claimed beside it is the sum over 2 kept patches, each "
        "of which was chosen.",
    )


def test_audit_of_a_composite() -> None:
    """Its estimate is made from the same pairs; steps that have none are not counted."""
    state = _audited(params={**_PARAMS, "weights": {"cost": 2.0}})
    view = audit_view(state)
    assert view is not None
    (claim,) = view.claims
    assert (claim.metric, claim.steps, claim.claimed) == ("composite", 0, 0)
    assert claim.audited.effect == pytest.approx(math.log(100 / 80))
    assert claim.audited.pairs == 6


def test_ablations() -> None:
    """Supported, unsupported and not separable patches, and the one that is not measured yet."""
    effects = (_effect(0.2), make(Effect, metric="cost", workload="other", role="primary"))
    good = _ablated(
        "exp-0005~1", _PATCH, separable=True, detail="", effects=effects, supported=True
    )
    state = _audited(*good)
    view = audit_view(state)
    assert view is not None
    assert view.ablation_due
    (row,) = view.ablation
    assert (row.patch, row.state, [e.workload for e in row.effects]) == (
        "fast",
        "supported",
        ["main"],
    )
    idle = _ablated(
        "exp-0006~1", _SLOW, separable=True, detail="", effects=(_effect(0.0),), supported=False
    )
    view = audit_view(_audited(*good, *idle))
    assert view is not None
    assert not view.ablation_due
    assert [row.state for row in view.ablation] == ["supported", "unsupported"]
    assert view.sentences[1].startswith("unsupported: second: without it the final source is not")
    stuck = _ablated(
        "exp-0006~1", _SLOW, separable=False, detail="does not apply", effects=(), supported=None
    )
    state = _audited(*stuck)
    view = audit_view(state)
    assert view is not None
    assert [(row.patch, row.state) for row in view.ablation] == [("second", "not separable")]
    ablation = state.experiments["exp-0006~1"]
    assert left_out(state, ablation) == "second"
    shown = experiment_view(state, ablation, [])
    assert (shown.patch, shown.reason) == ("second", "does not apply")
    off = audit_view(_audited(params={**_PARAMS, "ablation_pairs": 0}))
    assert off is not None
    assert not off.ablation_due


def test_ablation_of_an_unknown_patch() -> None:
    """A genome that no single patch explains has no name."""
    stream = "exp-0005~1"
    state = _state(_experiment(stream, "ablation", 0))
    assert left_out(state, state.experiments[stream]) == "?"


def test_shrunken_table() -> None:
    """Standard errors come from intervals, from the calibration, or from the pairs."""
    found = make(
        CalibrationMeasured, metric="cost", workload="main", role="primary", sd_pair=0.04, n1=9
    )
    calibration = [
        _experiment(_FIRST, "calibration", 0),
        (_FIRST, make(CalibrationMeasured, metric="size", workload="main", role="guard")),
        (_FIRST, found),
        (_FIRST, ExperimentFinished(outcome="measured")),
    ]
    no_bound, bound = (
        _effect(0.1),
        make(Effect, metric="cost", workload="main", pairs=8, effect=-0.1, low=-0.2, high=0.0),
    )

    def judged(stream: str, effect: Effect) -> list[tuple[str, Event]]:
        return [
            _experiment(stream, number=1),
            *_on(stream, [e for i in range(4) for e in _pair(i, 100, 80 + i)]),
            (stream, make(VerdictReached, kind="discard_no_effect", effects=(effect,))),
        ]

    one, two = judged("exp-0002~1", no_bound), judged("exp-0003~1", bound)
    rows = audit_view(_audited(*calibration, *judged("exp-0008~1", no_bound)))
    assert rows is not None
    by_name = {row.experiment: row for row in rows.shrunken}
    assert by_name["exp-0008~1"].se == pytest.approx(1.0233 * 0.04 / math.sqrt(7))
    plain = _state(*one, *two)
    first, second = _shrunken(plain)
    assert (first.experiment, second.experiment) == ("exp-0002~1", "exp-0003~1")
    assert 0 < first.se < 0.03
    assert second.se == pytest.approx(0.2 / 3.92)
    assert first.effect > first.shrunken >= second.shrunken > second.effect
    assert first.shrunken_percent < first.effect_percent
    assert _shrunken(_state(*one)) == ()


def _shrunken(state: CampaignState) -> Any:
    from aiopt.views.audit import shrunken_table

    return shrunken_table(state)


# ---- progress ----


def test_progress_of_each_purpose() -> None:
    """Pairs until the next look, and whether all that are to come are known."""
    params = {**_CALIBRATED, "audit_pairs": 6, "ablation_pairs": 6}
    one = {"p99": 100.0, "cpu": 1.0, "rss": 10.0}
    calibration = _calibration(_QUIET, params)

    def view(*items: tuple[str, Event]) -> Any:
        state = _state(*items, rule="two-stage", params=params)
        experiment = next(reversed(state.experiments.values()))
        return progress_view(state, experiment)

    pairs = _noise(_QUIET, params)
    begun = [_experiment(_FIRST, "calibration", 0), *_on(_FIRST, pairs[: 3 * 4])]
    found = view(*begun)
    assert found.text == "calibrating 4 of 20 pairs (main), 0 of 6 pairs (writes)"
    assert (found.doing, found.bound) == ("calibrating", "exactly")
    assert found.missing == {"main": 16, "writes": 6}
    assert view(*calibration[:-1]) is None
    assert view(_experiment(_FIRST, "baseline", 0)) is None
    two = "exp-0002~1"
    for purpose, bound in (("audit", "at least"), ("ablation", "exactly")):
        started = [*calibration, _experiment(two, purpose, 0)]
        measured = _on(two, _measured(purpose, "main", 0, one, one))
        found = view(*started, *measured)
        assert (found.doing, found.bound, found.done["main"]) == (purpose, bound, 1)
        assert found.text.startswith(f"{purpose} 1 of ")
    screened = [
        *calibration,
        _proposed(1),
        _experiment(two),
        *_on(two, _measured("screen", "main", 0, one, one)),
    ]
    found = view(*screened)
    assert (found.text, found.bound) == ("screen 1 of 4", "unknown")


def test_progress_of_a_fixed_number_of_pairs() -> None:
    """It may end early, so what is missing is the most."""
    state = _state(_proposed(1), _experiment(_FIRST), *_on(_FIRST, _pair(0, 2, 1)))
    found = progress_view(state, state.experiments[_FIRST])
    assert found is not None
    assert (found.text, found.bound) == ("screen 1 of 7", "at most")


def test_estimates_of_the_stages() -> None:
    """Those of the screen are biased, those of the confirmation are not; rebuilds have none."""
    params = {**_CALIBRATED, "metrics": {"cost": {"role": "primary"}}}
    two, ablation = "exp-0002~1", "exp-0003~1"
    items = [
        _experiment(_FIRST, "calibration", 0),
        _proposed(1),
        _experiment(two),
        *_on(two, [event for index in range(5) for event in _pair(index, 100, 80)]),
    ]
    state = _state(*items, rule="two-stage", params=params)
    assert estimates(state, state.experiments[_FIRST]) == ()
    (found,) = estimates(state, state.experiments[two])
    assert found.biased
    confirm = [event for index in range(5) for event in _pair(index, 100, 50, "confirm")]
    ablated = [event for index in range(5) for event in _pair(index, 100, 90, "ablation")]
    items += [
        *_on(two, confirm),
        _experiment(ablation, "ablation", 0),
        *_on(ablation, ablated),
    ]
    state = _state(*items, rule="two-stage", params=params)
    (found,) = estimates(state, state.experiments[two])
    assert not found.biased
    assert found.better_percent == pytest.approx(50)
    (found,) = estimates(state, state.experiments[ablation])
    assert found.better_percent == pytest.approx(10)


# ---- rules side by side ----


def test_rules_side_by_side() -> None:
    """What each would have kept, refused, missed and left undecided."""
    one, two = "exp-0001~1", "exp-0002~1"
    lucky = [e for i, b in enumerate((90, 101, 101, 101)) for e in _pair(i, 100, b)]
    neutral = [e for i in range(10) for e in _pair(i, 100, 101 if i % 2 else 99.5)]
    state = _state(
        _proposed(1),
        _experiment(one),
        *_on(one, lucky),
        (one, make(VerdictReached, kind="discard_no_effect", effects=())),
        (one, ExperimentFinished(outcome="judged")),
        _proposed(2),
        _experiment(two, number=2),
        *_on(two, neutral),
        (two, make(VerdictReached, kind="keep", effects=())),
        (two, ExperimentFinished(outcome="judged")),
    )
    view = compare_rules(state)
    assert (view.rule, view.candidates, view.post_hoc) == ("signed-rank", 2, True)
    rows = {row.rule: row for row in view.rows}
    assert rows["single-run"].refused == ("fast",)
    assert rows["single-run"].kept == ("fast", "fast")
    assert rows["signed-rank"].missed == ("fast",)
    assert rows["benchstat"].undecided == ("fast",)
    assert rows["two-stage"].undecided == ("fast", "fast")
    assert "stored score" in rows["single-run"].what
    assert rows["two-stage"].what
    few = compare_rules(state, params_from({**_PARAMS, "pairs": 1}))
    problem = next(row for row in few.rows if row.rule == "signed-rank").problem
    assert "1 can never prove anything" in problem
    with pytest.raises(ConfigError, match="no such metric"):
        compare_rules(state, weights={"speed": 1.0})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.52, "1.5 seconds"),
        (40, "40 seconds"),
        (72, "1.2 minutes"),
        (720, "12 minutes"),
        (7560, "2.1 hours"),
    ],
)
def test_times_in_sentences(seconds: float, text: str) -> None:
    """Two figures, in the unit that people would use."""
    assert spell_time(seconds) == text


def test_shares_in_sentences() -> None:
    """Two figures."""
    assert [share(x) for x in (0.14, 0.03, 0.0012, 0.0)] == ["14 %", "3.0 %", "0.12 %", "0.00 %"]


# ---- what to do next ----


def _advice(
    kind: Any, effects: tuple[Effect, ...] = (), needs: int | None = None, rule: str = "two-stage"
) -> str:
    verdict = make(VerdictReached, kind=kind, effects=effects, pairs_needed=needs)
    judged = _on(_FIRST, [verdict, ExperimentFinished(outcome="judged")])
    state = _state(_proposed(1), _experiment(_FIRST), *judged, rule=rule, params=_CALIBRATED)
    return advice(state, state.proposals[1], "toy.db", "toy")


def test_advice_after_an_inconclusive_verdict() -> None:
    """More pairs if there is a plan for them; else less noise, larger gains or wider margins."""
    assert "about 101 pairs would tell: `aiopt try toy --new --set cap=51`" in (
        _advice("inconclusive", needs=101)
    )
    assert "about 900 pairs would tell, more than any plan has: quieten the machine" in (
        _advice("inconclusive", needs=900)
    )
    assert _advice("inconclusive").startswith("noise may hide a gain: quieten the machine")
    assert "--new --rule signed-rank --pairs N" in _advice("inconclusive", rule="signed-rank")
    guard = make(Effect, metric="rss", role="guard", workload="main", state="unresolved")
    text = _advice("inconclusive", (guard,), needs=70)
    assert "too much noise to be sure of rss (about 70 pairs would tell): give it a wider" in text
    assert "sure of rss: give it a wider margin" in _advice("inconclusive", (guard,))


def test_advice_after_other_verdicts() -> None:
    """Mend it, change something that is used, or go on with another idea."""
    assert "mend what failed and try again; `aiopt show toy.db exp-0001`" in _advice("invalid")
    assert "the build came out the same" in _advice("no_change")
    assert "another idea on top of the unmodified source" in _advice("discard_no_effect")
    state = _state(*_kept(_FIRST, 1, _PATCH, _effect(), (_PATCH,)), _proposed(1))
    state.proposals[1].status, state.proposals[1].experiment = "judged", _FIRST
    assert "the next patch must apply to the source with fast" in (
        advice(state, state.proposals[1], "toy.db", "toy")
    )


@pytest.mark.parametrize("verdict", [None, "discard_no_effect"])
def test_advice_after_a_duplicate(verdict: Any) -> None:
    """Where it was tried before; a patch that does not apply is to be mended."""
    judged = [(_FIRST, make(VerdictReached, kind=verdict, effects=()))] if verdict else []
    duplicate = make(CandidateRejected, number=2, reason="duplicate", duplicate_of=_FIRST)
    mended = make(CandidateRejected, number=3, reason="does_not_apply", duplicate_of=None)
    state = _state(
        _proposed(1),
        _experiment(_FIRST),
        *judged,
        _proposed(2),
        (_CAMPAIGN, duplicate),
        _proposed(3),
        (_CAMPAIGN, mended),
    )
    said = advice(state, state.proposals[2], "toy.db", "toy")
    assert said == (
        f"it was tried before: {verdict or 'not judged yet'}; `aiopt show toy.db exp-0001` has "
        "everything"
    )
    assert "mend the patch" in advice(state, state.proposals[3], "toy.db", "toy")
