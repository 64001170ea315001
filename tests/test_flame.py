"""Folded stacks for other programs."""

import shutil
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt import flame
from aiopt.errors import AiOptError, PrerequisiteError
from aiopt.flame import flame_graph, read_folded, speedscope, top_stacks

STACKS = "main;a 30\nmain;a;b 60\nmain 10\n"


def test_what_is_no_stack_is_passed_over() -> None:
    assert list(read_folded("a;b 2\n\nnothing\n 3\nc nan\nd -1\ne x\n")) == [(("a", "b"), 2.0)]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for frames, weight in read_folded(text):
        assert frames
        assert weight >= 0
    orjson.dumps(speedscope(text, "samples", "x"))
    top_stacks(text, 3)


def test_the_heaviest_come_first() -> None:
    first, second = top_stacks(STACKS, 2)
    assert first == {"frames": ["main", "a", "b"], "weight": 60.0, "share": 0.6}
    assert second["frames"] == ["main", "a"]


def test_speedscope_shares_its_frames() -> None:
    written = speedscope(STACKS, "us", "title")
    assert [frame["name"] for frame in written["shared"]["frames"]] == ["main", "a", "b"]
    (profile,) = written["profiles"]
    assert profile["samples"] == [[0, 1], [0, 1, 2], [0]]
    assert profile["weights"] == [30.0, 60.0, 10.0]
    assert (profile["unit"], profile["endValue"]) == ("microseconds", 100.0)


def test_a_flame_graph_is_drawn() -> None:
    if not (shutil.which("inferno-flamegraph") or flame._DEBIAN.is_file()):
        pytest.skip("needs libdevel-nytprof-perl or inferno")
    drawn = flame_graph(STACKS, "samples", "a title")
    assert b"a title" in drawn
    assert drawn.count(b"<rect") > 3


def test_nothing_to_draw_is_an_error() -> None:
    if not (shutil.which("inferno-flamegraph") or flame._DEBIAN.is_file()):
        pytest.skip("needs libdevel-nytprof-perl or inferno")
    with pytest.raises(AiOptError, match=r"flamegraph"):
        flame_graph("", "samples", "a title")


def test_without_a_program_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(flame, "_DEBIAN", Path("/nonexistent"))
    with pytest.raises(PrerequisiteError, match="libdevel-nytprof-perl"):
        flame_graph(STACKS, "samples", "a title")
