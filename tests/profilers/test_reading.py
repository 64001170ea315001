"""Reading untrusted profiles, and folding."""

from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from aiopt.profilers._reading import MAX_LINE, Lines, folded, shares, whole


@given(st.lists(st.text(alphabet="ab \té", max_size=5)))
def test_lines_are_those_of_the_text(lines: list[str]) -> None:
    read = Lines(BytesIO("".join(f"{line}\n" for line in lines).encode()))
    assert list(read) == lines
    assert (read.too_long, read.complete) == (0, True)


def test_a_line_that_was_cut_is_known_as_such() -> None:
    read = Lines(BytesIO(b"a\r\nb"))
    assert list(read) == ["a", "b"]
    assert not read.complete


@given(st.sampled_from([MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 << 20]), st.booleans())
def test_a_long_line_is_counted_and_the_next_one_is_read(size: int, last: bool) -> None:
    read = Lines(BytesIO(b"a\n" + b"x" * size + (b"" if last else b"\nb\n")))
    lines = list(read)
    assert read.too_long == (size > MAX_LINE)
    kept = ["x" * size] if size <= MAX_LINE else []
    assert lines == ["a", *kept, *([] if last else ["b"])]
    assert read.complete != last


def test_a_file_is_read_as_a_whole_up_to_a_limit() -> None:
    assert whole(BytesIO(b"abc")) == b"abc"


def test_folded_stacks_have_one_canonical_text() -> None:
    assert folded({"a;b": 2, "a;c": 2.0, "a": 10, "b": 0}) == "a 10\na;b 2\na;c 2\n"


def test_a_recursive_function_is_counted_once_for_a_stack() -> None:
    own, total = shares([("main;f;f", 2.0), ("main;g", 1.0)])
    assert own == {"f": 2.0, "g": 1.0}
    assert total == {"main": 3.0, "f": 2.0, "g": 1.0}
