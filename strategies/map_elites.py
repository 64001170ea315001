"""MAP-Elites: in each cell of a grid over measures the best candidate, and children of all of them.

    strategy = "map-elites"
    [strategies.map-elites]
    parents = "curiosity"
    [[strategies.map-elites.measures]]
    name = "peak_rss_mb"
    low = 0.6
    high = 1.2
    bins = 6

A candidate that takes a fifth less memory and is a little slower is the elite of its cell, however
fast others are; its children may be both. The archive is folded anew from the log each time, so
other edges, weights or a longer log need no other experiments (Mouret and Clune 2015,
"Illuminating search spaces by mapping elites").
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from attrs import asdict, field, frozen
from numpy.random import Generator

from aiopt.archive import Archive, curiosity
from aiopt.errors import ConfigError
from aiopt.evidence import changes_of, is_evidence
from aiopt.grid import Axis, Grid, Spacing
from aiopt.protocols import Selection
from aiopt.ranking import DEFAULT_FITNESS, rank
from aiopt.replay import CampaignState
from aiopt.views import profiles_of

from ._population import Individual, individuals
from ._variation import Variation, not_shares

__all__ = ["MapElites", "Measure"]

_SHAPE = ("patches", "files", "hunks", "lines")


@frozen(kw_only=True)
class Measure:
    """One axis of the grid.

    With `edges` these; with `low` and `high` bins between them; else bins that fit what was
    measured so far.
    """

    name: str
    """A metric or a profiler's `PROFILER:SCALAR`, each relative to the baseline (0.8: a fifth less
    than it), or of the genome: `patches`, `files`, `hunks`, or `lines` that it adds and removes.
    """
    edges: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    bins: int = 8
    spacing: Spacing = "linear"

    def __attrs_post_init__(self) -> None:
        problem = ""
        if (self.low is None) != (self.high is None):
            problem = "low and high belong together"
        elif self.edges and self.low is not None:
            problem = "either edges, or low and high"
        elif self.low is not None and self.spacing == "quantiles":
            problem = "quantiles are of what was measured: without low and high"
        if problem:
            raise ConfigError(f"measure {self.name}", [("", problem)])
        if self.edges or self.low is not None:
            self.axis(())

    def axis(self, values: Sequence[float]) -> Axis:
        """The axis; `values` are those to fit, where it has no edges of its own.

        Raises:
            ConfigError: there can be no such axis.
        """
        if self.edges:
            return Axis(self.name, self.edges)
        if self.low is None or self.high is None:
            return Axis.fitted(self.name, values, self.bins, self.spacing)
        make = Axis.log if self.spacing == "log" else Axis.linear
        return make(self.name, self.low, self.high, self.bins)


def _default_measures() -> tuple[Measure, ...]:
    return (Measure(name="patches"), Measure(name="lines", spacing="quantiles"))


@frozen(kw_only=True)
class MapElites:
    """Children of elites, chosen uniformly or by curiosity."""

    measures: tuple[Measure, ...] = field(factory=_default_measures)
    parents: Literal["uniform", "curiosity"] = "uniform"
    """`curiosity`: in proportion to 1 + how often children entered the archive, less half of how
    often they did not.
    """
    incumbent: float = 0.7
    """Probability that a new patch is built on the incumbent and not on an elite; half of it is
    that of the incumbent as a parent of known patches.
    """
    crossover: float = 0.25
    """Probability of a child of known patches while the proposer has new ones; this and the rest as
    in the strategy `genetic`.
    """
    mutation: float = 0.5
    union: float = 0.75
    hunks: float = 0.1
    rewrite: float = 0.05
    weights: Mapping[str, float] = field(factory=dict)
    """Of metrics in the objective; the primaries alike if there are none."""
    fitness: str = DEFAULT_FITNESS

    def __attrs_post_init__(self) -> None:
        shares = {**asdict(self._variation), "incumbent": self.incumbent}
        problems = [*not_shares(shares)]
        names = [measure.name for measure in self.measures]
        if not names or len(set(names)) < len(names):
            problems.append(("measures", "at least one, and each name once"))
        if self.fitness.partition(":")[0] == "lexicographic":
            problem = (
                "the elite of a cell is the one with the largest number; lexicographic has none"
            )
            problems.append(("fitness", problem))
        if problems:
            raise ConfigError("strategies.map-elites", problems)

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
        """New patches on top of the incumbent and of elites while there are any, and children of
        elites; see `aiopt.protocols.Strategy`.

        Raises:
            ConfigError: a measure that the campaign does not have.
        """
        everyone = {one.candidate: one for one in individuals(state, self.weights, self.fitness)}
        archive = self.archive(state, list(everyone.values()))
        elites = [everyone[elite.item] for elite in archive.elites]
        chances = self._chances(state, archive, elites)

        def elite() -> Individual:
            return elites[int(rng.choice(len(elites), p=chances))]

        def on_incumbent(share: float) -> Individual:
            if rng.random() < share and state.incumbent in everyone:
                return everyone[state.incumbent]
            return elite()

        def parent() -> Individual:
            return on_incumbent(self.incumbent / 2)

        def base() -> Individual:
            return on_incumbent(self.incumbent)

        return self._variation.ask(state, [*everyone.values()], parent, base, rng, count)

    def archive(
        self, state: CampaignState, everyone: Sequence[Individual] | None = None
    ) -> Archive[str]:
        """The fold: every candidate that works and breaks no guard, in the order of the log.

        Raises:
            ConfigError: as `ask`.
        """
        if everyone is None:
            everyone = individuals(state, self.weights, self.fitness)
        everyone = sorted(everyone, key=lambda one: one.number)
        columns = [_values(state, measure.name, everyone) for measure in self.measures]
        axes = [
            measure.axis([value for value in column if math.isfinite(value)])
            for measure, column in zip(self.measures, columns, strict=True)
        ]
        return Archive.refolded(
            Grid(axes),
            [one.candidate for one in everyone],
            [one.value for one in everyone],
            np.array(columns, dtype=np.float64).T,
        )

    def _chances(
        self, state: CampaignState, archive: Archive[str], elites: Sequence[Individual]
    ) -> list[float]:
        scores: Mapping[str, float] = {}
        if self.parents == "curiosity":
            scores = curiosity(_offspring(state, archive))
        weights = [1.0 + scores.get(elite.candidate, 0.0) for elite in elites]
        return [weight / sum(weights) for weight in weights]


def _offspring(state: CampaignState, archive: Archive[str]) -> Iterator[tuple[str, bool]]:
    """Every parent with whether its child is an elite now."""
    elites = {elite.item for elite in archive.elites}
    for proposal_ in state.proposals.values():
        for parent in proposal_.proposed.parents:
            yield parent, proposal_.proposed.candidate in elites


def _values(state: CampaignState, name: str, everyone: Sequence[Individual]) -> list[float]:
    """One measure of each, NaN where it was not measured."""
    if name in _SHAPE:
        return [float(_shape(state, name, one)) for one in everyone]
    if is_evidence(name):
        before = profiles_of(state, state.baseline)
        return [_evidence(state, name, before, one) for one in everyone]
    metric = state.params.metrics.get(name)
    if metric is None or metric.kind == "digest":
        known = ", ".join(n for n, m in state.params.metrics.items() if m.kind == "number")
        problem = f"no such measure; there are {known}, PROFILER:SCALAR, {', '.join(_SHAPE)}"
        raise ConfigError("strategies.map-elites", [(f"measures.{name}", problem)])
    sign = -1.0 if metric.direction == "lower" else 1.0
    ranked = rank(state, weights={name: 1.0}).ranked
    totals = {state.experiments[r.experiment].started.candidate: r.total for r in ranked}
    totals[state.baseline] = 0.0
    return [math.exp(sign * totals.get(one.candidate, math.nan)) for one in everyone]


def _evidence(state: CampaignState, name: str, before: Sequence[object], one: Individual) -> float:
    change = changes_of([name], before, profiles_of(state, one.candidate)).get(name)
    return math.exp(-change.value) if change is not None else math.nan


def _shape(state: CampaignState, name: str, one: Individual) -> int:
    shapes = [state.patches[patch.digest].shape for patch in one.genome]
    known = [shape for shape in shapes if shape is not None]
    if name == "patches":
        return len(one.genome)
    if name == "lines":
        return sum(shape.added + shape.removed for shape in known)
    return sum(shape.files if name == "files" else shape.hunks for shape in known)
