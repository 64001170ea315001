"""A strategy: hill climbing that ends when the incumbent is made of so many patches.

    strategy = "depth-limited"
    [strategies.depth-limited]
    depth = 3

The log is a strategy's memory: `ask` sees the fold of all that happened and must depend on its
arguments alone, so that a campaign can be resumed and replayed.
"""

from collections.abc import Sequence

from attrs import frozen
from numpy.random import Generator

from aiopt.protocols import Selection
from aiopt.replay import CampaignState


@frozen(kw_only=True)
class DepthLimited:
    depth: int = 3

    def ask(self, state: CampaignState, rng: Generator, count: int) -> Sequence[Selection]:
        if len(state.incumbent_genome) >= self.depth:
            return []
        here = Selection(parents=(state.incumbent,), genome=state.incumbent_genome)
        return [here] * count
