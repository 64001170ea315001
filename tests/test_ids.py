"""Names that follow from content."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt import ids


def test_a_candidate_is_its_base_and_its_patches_in_order() -> None:
    """The id is part of every log, so it may never change."""
    assert ids.candidate_id("base", ["a", "b"]) == "b4e638664280"
    assert ids.candidate_id("base", ["b", "a"]) != ids.candidate_id("base", ["a", "b"])
    assert ids.candidate_id("base", []) != ids.candidate_id("other", [])


@given(st.integers(1, 2**31), st.integers(1, 2**31))
def test_writers_have_tags_of_their_own(one: int, other: int) -> None:
    assert (ids.writer_tag(one) == ids.writer_tag(other)) == (one == other)


def test_a_writer_is_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        ids.writer_tag(0)


@given(st.integers(1, 99_999), st.integers(1, 2**31))
def test_a_stream_has_a_short_name_and_a_number(number: int, writer: int) -> None:
    stream = ids.stream_name("exp", number, writer)
    assert ids.short_name(stream) == f"exp-{number:04d}"
    assert ids.short_name("exp-0007") == "exp-0007"


def test_runs_are_labelled() -> None:
    assert ids.run_key("screen", "mixed", 3, 0, "B") == "screen:mixed:3:0:B"
