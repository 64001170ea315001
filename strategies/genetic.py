"""A genetic algorithm on sets of patches.

    strategy = "genetic"
    [strategies.genetic]
    population = 12
    crossover = 0.25

The genome is a set of patches. The best candidates so far are the population; a child is made from
one or two of them and measured beside the incumbent like any other candidate, so the incumbent
changes only by a confirmed verdict. What a pair of patches is worth together, while each alone is
worth nothing, is found by unions: what changes nothing is tied with the best, and ties breed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from attrs import field, frozen
from numpy.random import Generator

from aiopt.errors import ConfigError
from aiopt.events import Operator, PatchRef
from aiopt.genome import Genome, ordered, recombined, union, without
from aiopt.protocols import Selection
from aiopt.ranking import DEFAULT_FITNESS
from aiopt.replay import CampaignState

from ._population import Individual, best, compatible, gene_pool, individuals, is_new

__all__ = ["Genetic"]

_DRAWS = 100
"""How many children are thrown away because they are known before it is said that there is none."""


@frozen(kw_only=True)
class Genetic:
    """Tournament or rank selection among the best, unions, recombination, mutation."""

    population: int = 12
    """How many of the best may have children."""
    elites: int = 1
    """How many of the best by estimate are in every population whatever their island; the incumbent
    always is.
    """
    selection: Literal["tournament", "rank"] = "tournament"
    tournament: int = 3
    z: float = 1.0
    """Standard errors by which one must be ahead to win; less is a tie, and a coin decides."""
    crossover: float = 0.25
    """Probability of a child of known patches while the proposer has new ones."""
    mutation: float = 0.3
    """Of the children of known patches, how many have one parent."""
    union: float = 0.75
    """Of the children of two parents, how many have all patches of both; the others have those that
    both have, and each further one with probability 1/2.
    """
    hunks: float = 0.1
    """Of the children, how many get but some hunks of one of their patches."""
    rewrite: float = 0.05
    """Of the proposals, how many ask for another form of a patch."""
    islands: int = 1
    migration: float = 0.1
    """Probability that a parent comes from any island."""
    weights: Mapping[str, float] = field(factory=dict)
    """Of metrics in the fitness; the primaries alike if there are none."""
    fitness: str = DEFAULT_FITNESS

    def __attrs_post_init__(self) -> None:
        shares = ("crossover", "mutation", "union", "hunks", "rewrite", "migration")
        least = {"population": 2, "elites": 0, "tournament": 1, "islands": 1, "z": 0}
        problems = [
            (name, f"{value:g}: a probability from 0 to 1")
            for name in shares
            if not 0 <= (value := getattr(self, name)) <= 1
        ]
        problems += [
            (name, f"{value:g}: at least {bound}")
            for name, bound in least.items()
            if (value := getattr(self, name)) < bound
        ]
        if problems:
            raise ConfigError("strategies.genetic", problems)

    def ask(self, state: CampaignState, rng: Generator, count: int) -> Sequence[Selection]:
        """New patches on top of good genomes while there are any, and children of known ones; see
        `aiopt.protocols.Strategy`.
        """
        everyone = individuals(state, self.weights, self.fitness)
        found: list[Selection] = []
        while len(found) < count:
            child = self._one(state, everyone, rng)
            if child is None:
                break
            found.append(child)
        return found

    def _one(
        self, state: CampaignState, everyone: Sequence[Individual], rng: Generator
    ) -> Selection | None:
        if "propose" not in state.declined and rng.random() >= self.crossover:
            return self._proposal(state, everyone, rng)
        child = self._child(state, everyone, rng)
        if child is None and "propose" not in state.declined:
            return self._proposal(state, everyone, rng)
        return child

    # -- what the proposer is asked for --

    def _proposal(
        self, state: CampaignState, everyone: Sequence[Individual], rng: Generator
    ) -> Selection:
        parent = self._parent(state, everyone, rng)
        if parent.genome and "rewrite" not in state.declined and rng.random() < self.rewrite:
            replaced = parent.genome[rng.integers(len(parent.genome))]
            return Selection(
                parents=(parent.candidate,),
                genome=without(parent.genome, replaced.digest),
                operator="rewrite",
                replaces=replaced,
            )
        return Selection(parents=(parent.candidate,), genome=parent.genome)

    # -- children of known patches --

    def _child(
        self, state: CampaignState, everyone: Sequence[Individual], rng: Generator
    ) -> Selection | None:
        pool = gene_pool(state)
        for _ in range(_DRAWS):
            first = self._parent(state, everyone, rng)
            made: tuple[Operator, tuple[str, ...], Genome] | None
            if rng.random() < self.mutation:
                made = _mutated(first, pool, rng)
            else:
                made = self._crossed(first, self._parent(state, everyone, rng), rng)
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

    # -- who breeds --

    def _parent(
        self, state: CampaignState, everyone: Sequence[Individual], rng: Generator
    ) -> Individual:
        island = state.next_number % self.islands
        migrates = rng.random() < self.migration
        breeding = [
            one
            for place, one in enumerate(everyone)
            if migrates
            or one.number % self.islands == island
            or one.candidate == state.incumbent
            or place < self.elites
        ][: self.population]
        if self.selection == "rank":
            # Linear ranking with a pressure of 2 (Baker, "Adaptive selection methods", 1985).
            weights = [len(breeding) - place for place in range(len(breeding))]
            return breeding[rng.choice(len(breeding), p=[w / sum(weights) for w in weights])]
        size = min(self.tournament, len(breeding))
        drawn = rng.choice(len(breeding), size=size, replace=False)
        return best([breeding[place] for place in drawn], self.z, rng)


def _mutated(
    parent: Individual, pool: Genome, rng: Generator
) -> tuple[Operator, tuple[str, ...], Genome] | None:
    """One known patch more, or one less."""
    others = [patch for patch in pool if patch not in parent.genome]
    ways: list[tuple[Operator, Callable[[], Genome]]] = []
    if others:
        ways.append(("add", lambda: (*parent.genome, _any(others, rng))))
    if len(parent.genome) > 1:
        drop = parent.genome
        ways.append(("drop", lambda: without(drop, _any(drop, rng).digest)))
    if not ways:
        return None
    operator, make = ways[rng.integers(len(ways))]
    return operator, (parent.candidate,), make()


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
