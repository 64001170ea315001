"""Genomes: the ordered sets of patches that candidates are made of, and how to recombine them.

Order is canonical: patches stand in the order in which a campaign first saw them. A patch that was
written on top of others was seen after them, so this order applies wherever any order does, and
equal sets are one candidate whatever way they came about.
"""

from collections.abc import Iterable, Mapping

from attrs import frozen
from numpy.random import Generator

from aiopt.events import PatchRef, PatchShape

__all__ = ["Genome", "KnownPatch", "change_name", "ordered", "recombined", "union", "without"]

Genome = tuple[PatchRef, ...]


@frozen(kw_only=True)
class KnownPatch:
    """A patch that was part of some candidate of a campaign."""

    ref: PatchRef
    seen: tuple[int, int]
    """Its place in the canonical order; a part of a patch stands right behind the whole."""
    shape: PatchShape | None
    origin: str = ""
    """Digest of the patch that it is a part of; empty if it is a whole one."""
    hunks: tuple[int, ...] = ()
    """Of a part: which of the hunks of the whole."""


def ordered(genome: Iterable[PatchRef], known: Mapping[str, KnownPatch]) -> Genome:
    """The canonical form: each patch once, in the order in which they were first seen.

    What is not known yet stands last, in the order in which it came.
    """
    unique = {patch.digest: patch for patch in genome}
    new = (len(known) + 1, 0)
    return tuple(
        sorted(
            unique.values(),
            key=lambda patch: known[patch.digest].seen if patch.digest in known else new,
        )
    )


def union(first: Genome, second: Genome) -> Genome:
    """The patches of both; not in canonical order."""
    return tuple({patch.digest: patch for patch in (*first, *second)}.values())


def recombined(first: Genome, second: Genome, rng: Generator) -> Genome:
    """What both have, and each patch that one of them has with probability 1/2 (uniform crossover;
    Syswerda, "Uniform crossover in genetic algorithms", ICGA 1989).
    """
    common = {patch.digest for patch in first} & {patch.digest for patch in second}
    return tuple(
        patch for patch in union(first, second) if patch.digest in common or rng.random() < 0.5
    )


def without(genome: Genome, digest: str) -> Genome:
    """The others."""
    return tuple(patch for patch in genome if patch.digest != digest)


def change_name(before: Iterable[PatchRef], after: Iterable[PatchRef]) -> str:
    """What one genome has that another has not: `18-b`, `17-a + 18-b`, `17-a without 02-c`."""
    old, new = ({patch.digest: patch.name for patch in genome} for genome in (before, after))
    added = " + ".join(name for digest, name in new.items() if digest not in old)
    dropped = ", ".join(name for digest, name in old.items() if digest not in new)
    if not dropped:
        return added or "baseline"
    return f"{added} without {dropped}" if added else f"without {dropped}"
