"""How a candidate is made from one or two that were measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import evolve, frozen
from numpy.random import Generator

from aiopt.events import Operator, PatchRef
from aiopt.genome import Genome, ordered, recombined, union, without
from aiopt.ids import candidate_id
from aiopt.protocols import Selection
from aiopt.replay import CampaignState

from ._population import Individual, Known, compatible

__all__ = ["Variation", "not_shares"]

_TOURNAMENT = 3
"""Patches among which the one to add or to drop is chosen."""

_DRAWS = 100
"""How many children are thrown away because they are known before it is said that there is none."""


def not_shares(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Options that have to be probabilities and are none, each with what is wrong."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            yield name, f"{value:g}: a probability from 0 to 1"


@frozen(kw_only=True)
class Variation:
    """Where the next candidates come from; see `Genetic` for what the probabilities say."""

    crossover: float
    mutation: float
    union: float
    hunks: float
    rewrite: float

    def ask(
        self,
        state: CampaignState,
        everyone: Sequence[Individual],
        parent: Callable[[], Individual],
        base: Callable[[], Individual],
        rng: Generator,
        count: int,
    ) -> Sequence[Selection]:
        """New patches while the proposer has any, and children of known ones, each of which is
        another candidate. `parent` draws who breeds, `base` what a new patch is built on.
        """
        known = Known.of(state, everyone)
        found: list[Selection] = []
        while len(found) < count:
            has_more = "propose" not in state.declined
            child = None
            if not has_more or rng.random() < self.crossover:
                child = self._child(state, known, parent, rng)
            if child is None and has_more:
                child = self._proposal(state, base(), rng)
            if child is None:
                break
            if child.operator not in ("propose", "rewrite"):
                known = evolve(known, tried=known.tried | {_id(child.genome, state)})
            found.append(child)
        return found

    def _proposal(self, state: CampaignState, base: Individual, rng: Generator) -> Selection:
        """A new patch on top of a candidate, or in place of one of its patches, if the proposer
        can do that.
        """
        if base.genome and "rewrite" not in state.declined and rng.random() < self.rewrite:
            replaced = base.genome[int(rng.integers(len(base.genome)))]
            return Selection(
                parents=(base.candidate,),
                genome=without(base.genome, replaced.digest),
                operator="rewrite",
                replaces=replaced,
            )
        return Selection(parents=(base.candidate,), genome=base.genome)

    def _child(
        self,
        state: CampaignState,
        known: Known,
        parent: Callable[[], Individual],
        rng: Generator,
    ) -> Selection | None:
        """A genome that was not tried yet; None if none was found."""
        for _ in range(_DRAWS):
            first = parent()
            made: tuple[Operator, tuple[str, ...], Genome] | None
            if rng.random() < self.mutation:
                made = _mutated(first, known, rng)
            else:
                made = self._crossed(first, parent(), rng)
            if made is None:
                continue
            operator, parents, genome = made
            genome = compatible(genome, known, state, rng)
            parts: Mapping[str, tuple[int, ...]] = {}
            if rng.random() < self.hunks:
                genome, parts = _some_hunks(state, genome, rng)
            if parts or (genome and _id(genome, state) not in known.tried):
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


def _id(genome: Genome, state: CampaignState) -> str:
    return candidate_id(state.started.base_commit, [patch.digest for patch in genome])


def _mutated(
    parent: Individual, known: Known, rng: Generator
) -> tuple[Operator, tuple[str, ...], Genome] | None:
    """One known patch more, or one less: of a few that are drawn the one that brought the most, or
    the least.
    """
    others, worth = [p for p in known.pool if p not in parent.genome], known.worth
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
