"""Genomes as sets in a canonical order, and patches taken apart by hunks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.candidate import canonical, part_of
from aiopt.errors import PatchError
from aiopt.events import PatchRef
from aiopt.genome import (
    Genome,
    KnownPatch,
    change_name,
    ordered,
    recombined,
    union,
    without,
)
from aiopt.sources import SourceRepository
from aiopt.target import Scope

REFS = [PatchRef(name=f"p{n}", digest=f"{n:064x}") for n in range(8)]
KNOWN = {
    ref.digest: KnownPatch(ref=ref, seen=(place, 0), shape=None)
    for place, ref in enumerate(REFS[:6], 1)
}
genomes = st.lists(st.sampled_from(REFS), max_size=10).map(tuple)


@given(genomes)
def test_equal_sets_are_one_candidate(genome: Genome) -> None:
    """Whatever the order; of what the campaign knows, the one in which it was first seen."""
    known = [patch for patch in genome if patch.digest in KNOWN]
    assert ordered(known, KNOWN) == ordered(reversed(known), KNOWN)
    assert ordered(known, KNOWN) == tuple(ref for ref in REFS if ref in known)
    canonical_ = ordered(genome, KNOWN)
    assert ordered(canonical_, KNOWN) == canonical_
    assert set(canonical_) == set(genome)


@given(genomes, genomes, st.integers(0, 99))
def test_recombination(first: Genome, second: Genome, seed: int) -> None:
    child = recombined(first, second, np.random.default_rng(seed))
    assert set(first) & set(second) <= set(child) <= set(union(first, second))
    assert set(union(first, second)) == set(first) | set(second)
    assert set(recombined(first, first, np.random.default_rng(seed))) == set(first)
    for patch in first:
        assert set(without(first, patch.digest)) == set(first) - {patch}


def test_a_part_stands_behind_its_whole() -> None:
    part = KnownPatch(ref=REFS[7], seen=(2, 9), shape=None, origin=REFS[1].digest, hunks=(0,))
    known = {**KNOWN, REFS[7].digest: part}
    assert ordered((REFS[4], REFS[7], REFS[1]), known) == (REFS[1], REFS[7], REFS[4])


def test_what_changed() -> None:
    a, b, c = REFS[:3]
    assert change_name((a,), (a, b, c)) == "p1 + p2"
    assert change_name((a, b), (a, c)) == "p2 without p1"
    assert change_name((a, b), (b,)) == "without p0"
    assert change_name((a,), (a,)) == "baseline"


# ---- hunks ----

LINES = [f"line {n}" for n in range(40)]


def patch_of(edits: dict[int, list[str]], context: int, name: str = "a.txt") -> str:
    """A diff of LINES in which each of these lines becomes others (none: it is deleted)."""
    text, shift = [f"--- a/{name}\n+++ b/{name}\n"], 0
    for line, new in sorted(edits.items()):
        before, after = LINES[line - context : line], LINES[line + 1 : line + 1 + context]
        old_size, new_size = len(before) + 1 + len(after), len(before) + len(new) + len(after)
        start = line - len(before) + 1
        new_start = start + shift - (new_size == 0)
        text.append(f"@@ -{start},{old_size} +{new_start},{new_size} @@\n")
        text += [f" {each}\n" for each in before]
        text += [f"-{LINES[line]}\n", *(f"+{each}\n" for each in new)]
        text += [f" {each}\n" for each in after]
        shift += len(new) - 1
    return "".join(text)


@pytest.mark.parametrize("context", [0, 1, 3])
async def test_the_hunks_one_by_one_make_the_whole(tmp_path: Path, context: int) -> None:
    """Each applies by itself, and all of them together are the tree of the patch."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.txt", "b.txt"):
        (source / name).write_text("".join(f"{line}\n" for line in LINES))
    edits: dict[int, list[str]] = {4: ["more", "and", "more"], 15: [], 25: ["other"]}
    whole = canonical(
        (patch_of(edits, context) + patch_of({30: ["last"]}, context, "b.txt")).encode()
    )
    assert (whole.shape.files, whole.shape.hunks) == (2, 4)
    assert (whole.shape.added, whole.shape.removed) == (5, 4)
    repository, scope = SourceRepository(tmp_path / "work"), Scope(editable=("*.txt",))
    commit, _ = await repository.import_folder(source)
    tree = await repository.tree_with(commit, [whole], scope, tmp_path / "tree")
    parts = [part_of(whole, {hunk}) for hunk in range(4)]
    assert len({part.digest for part in parts}) == 4
    for order in (parts, parts[::-1]):
        assert await repository.tree_with(commit, order, scope, tmp_path / "tree") == tree
    two = [part_of(whole, {0, 2}), part_of(whole, {1, 3})]
    assert await repository.tree_with(commit, two, scope, tmp_path / "tree") == tree
    assert part_of(whole, {0, 1, 2, 3}).text == whole.text
    alone = await repository.tree_with(commit, [parts[1]], scope, tmp_path / "tree")
    left = (tmp_path / "tree" / "a.txt").read_text().splitlines()
    assert alone != tree
    assert left == LINES[:15] + LINES[16:]


def test_a_hunk_that_is_not_there() -> None:
    patch = canonical(patch_of({4: ["x"]}, 1).encode())
    for hunks in ({1}, set[int](), {-1, 0}):
        with pytest.raises(PatchError, match="hunks 0 to 0"):
            part_of(patch, hunks)
