"""Keep or discard: every proposal builds on the incumbent, and a kept one becomes it."""

from collections.abc import Sequence

from attrs import frozen
from numpy.random import Generator

from aiopt.protocols import Selection
from aiopt.replay import CampaignState

__all__ = ["Greedy"]


@frozen
class Greedy:
    """Hill climbing from the baseline; asked for several, it looks ahead on the same incumbent."""

    def ask(self, state: CampaignState, rng: Generator, count: int) -> Sequence[Selection]:
        """The incumbent, as often as there is room; see `aiopt.protocols.Strategy`."""
        here = Selection(parents=(state.incumbent,), genome=state.incumbent_genome)
        return [here] * count
