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

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import asdict, field, frozen
from numpy.random import Generator

from aiopt.errors import ConfigError
from aiopt.protocols import Selection
from aiopt.ranking import DEFAULT_FITNESS
from aiopt.replay import CampaignState

from ._population import Individual, best, individuals
from ._variation import Variation, not_shares

__all__ = ["Genetic"]


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
    incumbent: float = 0.7
    """Probability that a new patch is built on the incumbent and not on another of the best."""
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
        least = {"population": 2, "elites": 0, "tournament": 1, "islands": 1, "z": 0}
        shares = {**asdict(self._variation), "incumbent": self.incumbent}
        problems = [*not_shares({**shares, "migration": self.migration})]
        problems += [
            (name, f"{value:g}: at least {bound}")
            for name, bound in least.items()
            if (value := getattr(self, name)) < bound
        ]
        if problems:
            raise ConfigError("strategies.genetic", problems)

    @property
    def _variation(self) -> Variation:
        return Variation(
            crossover=self.crossover,
            mutation=self.mutation,
            union=self.union,
            hunks=self.hunks,
            rewrite=self.rewrite,
        )

    def ask(self, state: CampaignState, rng: Generator, count: int) -> Sequence[Selection]:
        """New patches on top of good genomes while there are any, and children of known ones; see
        `aiopt.protocols.Strategy`.
        """
        everyone = individuals(state, self.weights, self.fitness)

        def parent() -> Individual:
            return self._parent(state, everyone, rng)

        def base() -> Individual:
            on_top = rng.random() < self.incumbent
            found = (one for one in everyone if on_top and one.candidate == state.incumbent)
            return next(found, None) or parent()

        return self._variation.ask(state, everyone, parent, base, rng, count)

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
