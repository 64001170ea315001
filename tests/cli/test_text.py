"""Text for people, and progress on a terminal and elsewhere."""

import io

import pytest
from attrs import evolve

from aiopt.cli._progress import Progress
from aiopt.cli._text import duration, effect_text, effects_text, one_line, status_text, table
from aiopt.log import Log
from aiopt.replay import LogState, step
from aiopt.views import EffectView

from .conftest import Finished

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
    assert "5 of at most 7 pairs  cost +20.0 % [" in text
    assert " left" in text
    assert "01-better: keep  cost +20.0 %" in text


def test_progress_elsewhere(finished: Finished) -> None:
    """Plain lines: one per candidate, and no more than one in ten seconds besides."""
    quick = _replayed(finished, io.StringIO(), 0.001).splitlines()
    slow = _replayed(finished, io.StringIO(), 5.0).splitlines()
    assert not any("\x1b" in line or "\r" in line for line in quick + slow)
    assert len([line for line in quick if "of at most" in line]) == 0
    assert len([line for line in slow if "of at most" in line]) > 3
