"""The campaign's error budget: what each candidate may cost of it, and the ledger.

A candidate is charged alpha1 * alpha2 when its screen starts: at most that is the probability that
it passes screen and confirmation without being better, whatever happened before it. By linearity
the false keeps expected in the whole campaign are at most the sum of the charges, also when the
proposer adapts to results.
"""

import math
from collections.abc import Iterable, Sequence

from attrs import frozen

from aiopt.events import LevelCharged
from aiopt.rules import RuleParams

__all__ = ["Ledger", "charge", "charge_of", "confirm_level_of", "ledger", "stated_budget"]


@frozen(kw_only=True)
class Ledger:
    """What was spent of the error budget, and what is left."""

    budget: float
    """False keeps expected in the campaign, at the most: `pfer`, and the extension if more
    candidates than planned were screened.
    """
    planned: int
    charged: tuple[LevelCharged, ...]
    spent: float
    """False keeps expected among the candidates so far, at the most."""

    @property
    def left(self) -> float:
        return self.budget - self.spent


def _extension(params: RuleParams) -> float:
    return params.pfer / 2 if params.pfer_ext is None else params.pfer_ext


def confirm_level_of(params: RuleParams, ordinal: int) -> float:
    """alpha2 of the candidate that is the ordinal-th to be screened.

    Beyond the planned number, the extension is shared out as 6/(pi k)^2 (k = 1, 2, …), which sums
    to 1, so that any number of further candidates stays within it.
    """
    if ordinal <= params.planned:
        return params.confirm_level
    share = 6 / (math.pi * (ordinal - params.planned)) ** 2
    return min(_extension(params) * share / params.alpha1, 0.05)


def charge_of(params: RuleParams, ordinal: int) -> float:
    """What the ordinal-th candidate costs of the budget."""
    return params.alpha1 * confirm_level_of(params, ordinal)


def charge(
    params: RuleParams, number: int, before: Sequence[LevelCharged], calibration: str
) -> LevelCharged:
    """The charge of the candidate that is screened after these were charged."""
    ordinal = len(before) + 1
    cost = charge_of(params, ordinal)
    spent = sum(each.charged for each in before) + cost
    return LevelCharged(
        number=number,
        ordinal=ordinal,
        charged=cost,
        spent=spent,
        left=stated_budget(params, ordinal) - spent,
        calibration=calibration,
    )


def stated_budget(params: RuleParams, ordinal: int) -> float:
    """False keeps expected in a campaign that has screened so many candidates, at the most:
    `pfer`, or what an alpha2 that was given makes of it, and the extension.
    """
    planned = params.pfer
    if params.alpha2 is not None:
        planned = max(planned, params.planned * charge_of(params, 1))
    return planned + (_extension(params) if ordinal > params.planned else 0.0)


def ledger(params: RuleParams, charged: Iterable[LevelCharged]) -> Ledger:
    """The ledger of a campaign, from what its candidates were charged."""
    charges = tuple(charged)
    return Ledger(
        budget=stated_budget(params, len(charges)),
        planned=params.planned,
        charged=charges,
        spent=sum(charge.charged for charge in charges),
    )
