"""Text for people, and progress on a terminal and elsewhere."""

import io
import math
from typing import Any

import pytest
from attrs import evolve

from aiopt.cli._describe import describe
from aiopt.cli._progress import Progress
from aiopt.cli._report import audit_lines, candidate_lines
from aiopt.cli._text import duration, effect_text, effects_text, one_line, status_text, table
from aiopt.events import (
    AblationMeasured,
    CalibrationFailed,
    CalibrationMeasured,
    CampaignStarted,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    LevelCharged,
    LookTaken,
    MachineUnfit,
    MeasuringPaused,
    PairScheduled,
    PairVoided,
    Recorded,
    RunMeasured,
    VerdictReached,
)
from aiopt.log import Log
from aiopt.replay import LogState, step
from aiopt.views import AuditView, CandidateRow, EffectView, ShrunkenRow
from tests.factories import make

from .conftest import Finished

_CAMPAIGN, _ONE = "cmp-0001~1", "exp-0001~1"
_PARAMS = {"metrics": {"cost": {"role": "primary"}}, "workloads": {"main": {}}, "pairs": 7}

_EFFECT = EffectView(
    metric="cost",
    workload="main",
    role="primary",
    state="improved",
    pairs=7,
    effect=0.1,
    low=0.05,
    high=None,
    p=0.01,
    better_percent=9.5163,
    better_percent_low=4.8771,
    better_percent_high=None,
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.96, "10s"), (59.4, "59s"), (80, "1m20s"), (7500, "2h05m")],
)
def test_duration(seconds: float, text: str) -> None:
    """Two figures that matter."""
    assert duration(seconds) == text


def test_effects() -> None:
    """The workload is named only where there is more than one."""
    assert effect_text(_EFFECT) == "cost +9.5 % [+4.9, ?]"
    other = evolve(_EFFECT, workload="other", better_percent=-0.5, better_percent_high=0.25)
    assert effects_text([_EFFECT, other]).endswith(", cost (other) -0.50 % [+4.88, +0.25]")
    assert effect_text(evolve(_EFFECT, better_percent=None)) == "cost ?"
    assert effect_text(evolve(_EFFECT, biased=True)) == "cost ~+9.5 % [+4.9, ?]"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            make(
                CalibrationMeasured,
                metric="cpu",
                workload="main",
                sd_pair=0.01,
                mei_eff=0.03,
                n1=10,
                n2=11,
                warnings=("it drifts",),
            ),
            "cpu (main): pairs differ by 1.00%, 3.0% can be proved with 10 + 11; it drifts",
        ),
        (
            make(
                CalibrationMeasured,
                metric="rss",
                workload="main",
                role="guard",
                sd_pair=0.01,
                mei_eff=math.log(1.1),
                n2=6,
                warnings=(),
            ),
            "rss (main): pairs differ by 1.00%, 6 pairs show that it holds within 10%",
        ),
        (CalibrationFailed(cause="order_effect", detail="p = 1e-5"), "order effect: p = 1e-5"),
        (MeasuringPaused(reason="6 of 25 were void", seconds=60.0), "for 1m00s: 6 of 25 were void"),
        (MachineUnfit(reason="9 of 25 were void", voided=9, scheduled=25), "9 of 25 were void"),
        (
            make(LevelCharged, number=3, charged=0.0005, spent=0.0015, left=0.0985),
            "#3 is charged 0.0005: spent 0.0015, left 0.0985",
        ),
        (
            make(
                LookTaken,
                purpose="screen",
                metric="cpu",
                workload="main",
                pairs=6,
                p=0.0156,
                level=0.001,
                effect=0.05,
                sd=0.01,
                action="cap",
            ),
            "screen cpu (main) after 6 pairs: p 0.016 of 0.001, effect +0.0500, sd 0.0100: cap",
        ),
        (
            make(VerdictReached, kind="inconclusive", reason="noise", effects=(), pairs_needed=230),
            "inconclusive: noise; about 230 pairs would tell",
        ),
        (
            AblationMeasured(
                final="c2",
                without="a" * 64,
                separable=False,
                detail="does not apply",
                effects=(),
                supported=None,
            ),
            "c2 without aaaaaaaaaaaa: not separable: does not apply",
        ),
        (
            AblationMeasured(
                final="c2",
                without="a" * 64,
                separable=True,
                detail="",
                effects=(),
                supported=False,
            ),
            "c2 without aaaaaaaaaaaa, unsupported:",
        ),
        (
            make(PairScheduled, purpose="confirm", workload="main", index=3, attempt=0, layout=2),
            "confirm main 3 order AB rebuild 2",
        ),
    ],
)
def test_events_on_one_line(event: Event, text: str) -> None:
    """What each says."""
    assert describe(event) == text


def _row(number: int) -> ShrunkenRow:
    return ShrunkenRow(
        metric="cost",
        workload="main",
        number=number,
        experiment=f"exp-{number:04d}~1",
        patch=f"patch-{number}",
        status="keep",
        effect=0.1,
        se=0.01,
        shrunken=0.09,
        effect_percent=9.5,
        shrunken_percent=8.6,
    )


def test_the_table_for_ranking_is_cut() -> None:
    """Its best rows are shown; how many there are is said."""
    view = AuditView(
        experiment="exp-0020~1",
        final="c1",
        effects=(_EFFECT,),
        claims=(),
        ablation=(),
        ablation_due=False,
        shrunken=tuple(_row(number) for number in range(1, 13)),
        sentences=(),
    )
    text = "\n".join(audit_lines(view))
    assert "patch-10 " in text
    assert "patch-11 " not in text
    assert text.endswith("the best 10 of 12; --json has all")


def test_what_would_settle_an_undecided_candidate() -> None:
    """Stands before the reason, which may be cut."""
    row = CandidateRow(
        number=1,
        experiment="exp-0003~1",
        candidate="c1",
        patch="fast",
        hypothesis="",
        proposer="pool",
        status="inconclusive",
        reason="neither proved nor excluded " * 9,
        stage="screen",
        pairs=40,
        seconds=1.0,
        p_screen=0.2,
        p_confirm=None,
        mei_eff_percent=9.0,
        needs=231,
        effects=(evolve(_EFFECT, biased=True),),
    )
    lines = list(candidate_lines([row]))
    assert "cost ~+9.5 % [+4.9, ?]     about 231 pairs would tell: neither proved" in lines[0]
    assert lines[-1].startswith("~ an estimate of the screen")


def test_table_and_lines() -> None:
    """Columns are aligned, and a long line is cut."""
    assert table(("a", "b"), [("x", "10"), ("long", "9")], right=[1]) == (
        "a      b\nx     10\nlong   9"
    )
    assert one_line("a\n b  c") == "a b c"
    assert one_line("abcdef", 4) == "abc…"


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only on a terminal, and not under NO_COLOR."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert status_text("keep", _Terminal()) == "\x1b[32mkeep\x1b[0m"
    assert status_text("discard_no_effect", _Terminal()) == "discard no effect"
    assert status_text("keep", io.StringIO()) == "keep"
    monkeypatch.setenv("NO_COLOR", "1")
    assert status_text("keep", _Terminal()) == "keep"


def _replayed(finished: Finished, stream: io.StringIO, seconds: float) -> str:
    """What the progress of a finished campaign would have shown, at so many seconds an event."""
    state = LogState()
    now = 0.0

    def clock() -> float:
        return now

    progress = Progress(stream=stream, clock=clock)
    progress.attach(lambda: next(iter(state.campaigns.values())))
    with Log.open(finished.log, readonly=True) as log:
        for recorded in log.read():
            state = step(state, recorded)
            progress(recorded)
            now += seconds
    progress.clear()
    return stream.getvalue()


def test_progress_on_a_terminal(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that is rewritten: pairs so far, estimate, time left; one that stays at the end."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    text = _replayed(finished, _Terminal(), 0.5)
    assert "\r\x1b[K" in text
    assert "exp-0002  calibrating 4 of 10 pairs (main)  " in text
    assert "s left" in text
    assert "exp-0003 01-better  screen 4 of 6  cost ~+20.0 % [" in text
    assert "exp-0003 01-better  confirmation 5 of 8  cost +20.0 % [" in text
    assert "01-better: keep  cost +20.0 %" in text
    assert "exp-0008  audit 3 of 6 pairs (main)  cost +28.0 % [?, ?]  at least " in text
    assert "exp-0009 without 01-better  ablation 3 of 6 pairs (main)  cost +20.0 % [" in text
    lines = [line for line in text.replace("\r\x1b[K", "\n").splitlines() if " left" in line]
    assert lines
    assert not any("screen" in line or "confirmation" in line for line in lines)


def test_progress_elsewhere(finished: Finished) -> None:
    """Plain lines: one per candidate, and no more than one in ten seconds besides."""
    quick = _replayed(finished, io.StringIO(), 0.001).splitlines()
    slow = _replayed(finished, io.StringIO(), 5.0).splitlines()
    assert not any("\x1b" in line or "\r" in line for line in quick + slow)
    assert len([line for line in quick if " of " in line and "calibrating" in line]) == 0
    assert len([line for line in slow if "calibrating" in line]) > 3
    said = " ".join(" ".join(quick).split())
    assert "On this machine, workload main: the smallest gain in cost that can be proved" in said


def _shown(*events: tuple[str, Event]) -> str:
    """What the progress says of events that happen at once."""
    log = [(_CAMPAIGN, make(CampaignStarted, rule="signed-rank", rule_params=_PARAMS)), *events]
    state, stream = LogState(), io.StringIO()
    progress = Progress(stream=stream, clock=lambda: 0.0)
    progress.attach(lambda: next(iter(state.campaigns.values())))
    for seq, (name, event) in enumerate(log, 1):
        recorded = Recorded(seq, name, 1, 1, seq, "2026-01-01T00:00:00", b"", event)
        state = step(state, recorded)
        progress(recorded)
    return stream.getvalue()


def _place(index: int) -> dict[str, Any]:
    return {"purpose": "screen", "workload": "main", "index": index, "attempt": 0}


def test_progress_of_what_is_rare() -> None:
    """Pauses, pairs that do not count, a rule with a fixed number, a baseline that fails."""
    text = _shown((_CAMPAIGN, MeasuringPaused(reason="6 of the last 25 pairs", seconds=120.0)))
    assert "paused for 2m00s: 6 of the last 25 pairs" in text
    started = make(ExperimentStarted, campaign=_CAMPAIGN, number=0, purpose="baseline", genome=())
    failed = ExperimentFinished(outcome="abandoned", detail="exit 3")
    text = _shown((_ONE, started), (_ONE, failed))
    assert "exp-0001 baseline fails: exit 3 (0.0s)" in text
    candidate = make(ExperimentStarted, campaign=_CAMPAIGN, number=1, purpose="candidate")
    runs = [
        make(RunMeasured, **_place(0), arm=arm, position=place, metrics={"cost": (1.0,)})
        for place, arm in enumerate("AB", 1)
    ]
    scheduled = PairScheduled(**_place(0), order="AB")
    begun: tuple[Event, ...] = (candidate, scheduled, *runs)
    pairs = [(_ONE, event) for event in begun]
    assert "screen 1 of 7" not in _shown(*pairs)  # no silence yet
    assert "audit" not in _shown(*pairs, (_ONE, PairVoided(**_place(0), reason="steal")))
    for purpose in ("calibration", "audit", "ablation"):
        started = make(ExperimentStarted, campaign=_CAMPAIGN, number=0, purpose=purpose)
        text = _shown((_ONE, started), (_ONE, failed))
        assert "done" not in text
