"""Lines are followed as the diff has them, and as difflib finds them again."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.moved_lines import lines_after

OLD = [f"line {number}" for number in range(1, 41)]
NEW = [*OLD[:4], "new 1", "new 2", *OLD[4:19], "instead", *OLD[21:29], *OLD[30:]]


def diff_of(old: list[str], new: list[str], path: str = "src/a.c", context: int = 3) -> str:
    lines = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", lineterm="", n=context)
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (1, [1]),
        (4, [4]),
        (5, [7]),
        (19, [21]),
        (20, [22]),  # two lines became one
        (21, [22]),
        (22, [23]),
        (30, []),
        (31, [31]),
        (40, [40]),
    ],
)
def test_lines_move_with_what_is_before_them(line: int, expected: list[int], context: int) -> None:
    diff = diff_of(OLD, NEW, context=context)
    for file in ("a.c", "src/a.c", "/home/me/src/a.c"):
        assert lines_after(diff, f"{file}:{line}") == tuple(f"{file}:{n}" for n in expected)


def test_the_end_of_a_file_may_lack_a_newline() -> None:
    diff = "--- a/a.c\n+++ b/a.c\n@@ -1,2 +1,3 @@\n x\n-y\n\\ No newline at end of file\n+z\n+y\n"
    assert lines_after(diff, "a.c:2") == ("a.c:2", "a.c:3")
    assert lines_after(diff, "a.c:1") == ("a.c:1",)


def test_other_files_stay_as_they_are() -> None:
    diff = diff_of(OLD, NEW)
    for place in ("b.c:30", "ba.c:30", "a.c.c:30"):
        assert lines_after(diff, place) == (place,)
    assert lines_after("", "a.c:3") == ("a.c:3",)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_a_line_that_is_kept_has_the_same_text(old: list[str], new: list[str]) -> None:
    diff = diff_of(old, new)
    removed = {
        number
        for tag, low, high, _, _ in difflib.SequenceMatcher(None, old, new).get_opcodes()
        if tag in ("delete", "replace")
        for number in range(low + 1, high + 1)
    }
    for number, text in enumerate(old, 1):
        found = [int(place.rpartition(":")[2]) for place in lines_after(diff, f"a.c:{number}")]
        assert all(1 <= each <= len(new) for each in found)
        if number not in removed:
            assert [new[each - 1] for each in found] == [text]
