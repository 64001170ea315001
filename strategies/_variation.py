"""How a candidate is made from one or two that were measured."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from attrs import frozen
from numpy.random import Generator

from aiopt.events import Operator, PatchRef
from aiopt.genome import Genome, ordered, recombined, union, without
from aiopt.protocols import Selection
from aiopt.replay import CampaignState

from ._population import Individual, compatible, gains, gene_pool, is_new

__all__ = ["Variation", "proposal"]

_TOURNAMENT = 3
"""Patches among which the one to add or to drop is chosen."""

_DRAWS = 100
"""How many children are thrown away because they are known before it is said that there is none."""


def proposal(state: CampaignState, parent: Individual, rewrite: float, rng: Generator) -> Selection:
    """A new patch on top of a candidate, or with the probability `rewrite` one in place of one of
    its patches, if the proposer can do that.
    """
    if parent.genome and "rewrite" not in state.declined and rng.random() < rewrite:
        replaced = _any(parent.genome, rng)
        return Selection(
            parents=(parent.candidate,),
            genome=without(parent.genome, replaced.digest),
            operator="rewrite",
            replaces=replaced,
        )
    return Selection(parents=(parent.candidate,), genome=parent.genome)


@frozen(kw_only=True)
class Variation:
    """Children of known patches; see `Genetic` for what the probabilities say."""

    mutation: float
    union: float
    hunks: float

    def child(
        self,
        state: CampaignState,
        everyone: Iterable[Individual],
        parent: Callable[[], Individual],
        rng: Generator,
    ) -> Selection | None:
        """A genome that was not tried yet; `parent` draws who breeds. None if none was found."""
        pool, worth = gene_pool(state), gains(state, everyone)
        for _ in range(_DRAWS):
            first = parent()
            made: tuple[Operator, tuple[str, ...], Genome] | None
            if rng.random() < self.mutation:
                made = _mutated(first, pool, worth, rng)
            else:
                made = self._crossed(first, parent(), rng)
            if made is None:
                continue
            operator, parents, genome = made
            genome = compatible(genome, state, rng)
            parts: Mapping[str, tuple[int, ...]] = {}
            if rng.random() < self.hunks:
                genome, parts = _some_hunks(state, genome, rng)
            if parts or (genome and is_new(genome, state)):
                return Selection(parents=parents, genome=genome, operator=operator, parts=parts)
        return None

    def _crossed(
        self, first: Individual, second: Individual, rng: Generator
    ) -> tuple[Operator, tuple[str, ...], Genome] | None:
        if first.candidate == second.candidate:
            return None
        parents = (first.candidate, second.candidate)
        if rng.random() < self.union:
            return "union", parents, union(first.genome, second.genome)
        return "recombine", parents, recombined(first.genome, second.genome, rng)


def _mutated(
    parent: Individual, pool: Genome, worth: Mapping[str, float], rng: Generator
) -> tuple[Operator, tuple[str, ...], Genome] | None:
    """One known patch more, or one less: of a few that are drawn the one that brought the most, or
    the least.
    """
    others = [patch for patch in pool if patch not in parent.genome]
    ways: list[tuple[Operator, Callable[[], Genome]]] = []
    if others:
        ways.append(("add", lambda: (*parent.genome, _drawn(others, worth, 1.0, rng))))
    if len(parent.genome) > 1:
        drop = parent.genome
        ways.append(("drop", lambda: without(drop, _drawn(drop, worth, -1.0, rng).digest)))
    if not ways:
        return None
    operator, make = ways[rng.integers(len(ways))]
    return operator, (parent.candidate,), make()


def _drawn(
    patches: Sequence[PatchRef], worth: Mapping[str, float], sign: float, rng: Generator
) -> PatchRef:
    """The first in a tournament of a few; what was never measured alone is worth nothing."""
    size = min(_TOURNAMENT, len(patches))
    places = rng.choice(len(patches), size=size, replace=False)
    drawn = [patches[int(place)] for place in places]
    return max(drawn, key=lambda patch: sign * worth.get(patch.digest, 0.0))


def _any(patches: Sequence[PatchRef], rng: Generator) -> PatchRef:
    return patches[int(rng.integers(len(patches)))]


def _some_hunks(
    state: CampaignState, genome: Genome, rng: Generator
) -> tuple[Genome, Mapping[str, tuple[int, ...]]]:
    """The genome with some hunks of one of its whole patches, each with probability 1/2, but
    neither all nor none; a part that is known already stands for itself.
    """
    several = list(_with_hunks(state, genome))
    if not several:
        return genome, {}
    digest, count = several[int(rng.integers(len(several)))]
    hunks = tuple(hunk for hunk in range(count) if rng.random() < 0.5)
    if not 0 < len(hunks) < count:
        return genome, {}
    for known in state.patches.values():
        if (known.origin, known.hunks) == (digest, hunks):
            return ordered((*without(genome, digest), known.ref), state.patches), {}
    return genome, {digest: hunks}


def _with_hunks(state: CampaignState, genome: Genome) -> Iterator[tuple[str, int]]:
    for patch in genome:
        known = state.patches[patch.digest]
        if known.shape is not None and known.shape.hunks > 1 and not known.origin:
            yield patch.digest, known.shape.hunks
