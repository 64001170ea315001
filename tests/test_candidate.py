"""Patches as values: what they touch, and what a target allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.candidate import canonical, check_scope, hypothesis_of
from aiopt.errors import PatchError, PatchOutOfScope
from aiopt.target import Scope

EDIT = b"""\
diff --git a/src/main.py b/src/main.py
index 1111111..2222222 100644
--- a/src/main.py
+++ b/src/main.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""

SCOPE = Scope(editable=("src/**/*.py", "!src/fixed.py"))


def test_the_preamble_is_not_part_of_the_patch() -> None:
    """The same change with other words before it is the same patch."""
    told = b"From somebody\nHypothesis: fewer bytes\n\n" + EDIT + b"\n\n"
    assert canonical(told) == canonical(EDIT)
    assert hypothesis_of(told) == "fewer bytes"
    assert hypothesis_of(EDIT) == ""
    assert hypothesis_of(b"hypothesis:  spaced \n") == "spaced"


def test_it_knows_what_it_touches() -> None:
    patch = canonical(EDIT)
    assert patch.paths == ("src/main.py",)
    assert patch.modes == {"100644"}
    assert not patch.zero_context


def test_a_patch_as_diff_writes_it_is_understood() -> None:
    patch = canonical(b"--- a/src/x.py\t2026-01-01\n+++ b/src/x.py\n@@ -1 +1 @@\n-a\n+b\n")
    assert patch.paths == ("src/x.py",)
    assert patch.zero_context


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"just words",
        b"--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n one\n",
        b"--- a/x\n+++ b/x\n@@ nonsense @@\n-a\n+b\n",
        b"diff --git a/x b/x\nindex 1..2 100644\nGIT binary patch\nliteral 3\nabc\n",
    ],
)
def test_what_is_no_patch_is_refused(text: bytes) -> None:
    with pytest.raises(PatchError):
        canonical(text)


def new_file(path: str, mode: str = "100644", content: str = "x") -> bytes:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\nindex 0000000..1111111\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{content}\n"
    ).encode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (new_file("../outside.py"), "leaves the source tree"),
        (new_file("src/../../outside.py"), "leaves the source tree"),
        (new_file("/etc/cron.d/x"), "leaves the source tree"),
        (new_file(".git/hooks/post-checkout"), "git's own files"),
        (new_file("src/.GIT/config"), "git's own files"),
        (new_file("Makefile"), "not editable"),
        (new_file("src/fixed.py"), "not editable"),
        (new_file("src/link.py", "120000", "/etc/passwd"), "symbolic link"),
        (new_file("src/module.py", "160000", "Subproject commit 1"), "submodule"),
        (
            b"diff --git a/src/a.py b/other/a.py\nsimilarity index 100%\n"
            b"rename from src/a.py\nrename to other/a.py\n",
            "other/a.py: not editable",
        ),
        (
            b"diff --git a/src/a.py b/src/a.py\nold mode 100644\nnew mode 120000\n",
            "symbolic link",
        ),
    ],
)
def test_what_is_out_of_scope_is_refused_with_the_reason(text: bytes, why: str) -> None:
    with pytest.raises(PatchOutOfScope, match=why):
        check_scope(canonical(text), SCOPE)


def test_what_is_in_scope_passes() -> None:
    check_scope(canonical(EDIT), SCOPE)
    check_scope(canonical(new_file("src/deep/er/new.py")), SCOPE)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_patch_or_a_patch_error(text: bytes) -> None:
    """Whatever a proposer sends, the answer is a value or a PatchError."""
    for candidate in (text, EDIT + text, EDIT[:60] + text, b"--- " + text):
        try:
            patch = canonical(candidate)
        except PatchError:
            continue
        assert patch.paths
        assert canonical(patch.text) == patch
