"""Genomes: the ordered sets of patches that candidates are made of, and how to recombine them.

Order is canonical: patches stand in the order in which a campaign first saw them. A patch that was
written on top of others was seen after them, so this order applies wherever any order does, and
equal sets are one candidate whatever way they came about.
"""

from collections.abc import Iterable

from aiopt.events import PatchRef

__all__ = ["Genome", "change_name"]

Genome = tuple[PatchRef, ...]


def change_name(before: Iterable[PatchRef], after: Iterable[PatchRef]) -> str:
    """What one genome has that another has not: `18-b`, `17-a + 18-b`, `17-a without 02-c`."""
    old, new = ({patch.digest: patch.name for patch in genome} for genome in (before, after))
    added = " + ".join(name for digest, name in new.items() if digest not in old)
    dropped = ", ".join(name for digest, name in old.items() if digest not in new)
    if not dropped:
        return added or "baseline"
    return f"{added} without {dropped}" if added else f"without {dropped}"
