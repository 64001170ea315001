"""The campaign's error budget: what was charged for which candidate, and what that promises."""

from collections.abc import Iterator

from attrs import frozen

from aiopt.budget import Ledger, ledger
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import RuleParams
from aiopt.verdict import RULES
from aiopt.views._words import plural

__all__ = ["BudgetView", "ChargeRow", "budget_view"]


@frozen(kw_only=True)
class ChargeRow:
    """One candidate that was screened."""

    ordinal: int
    """Counts the candidates that were charged, from 1."""
    number: int
    """Of the proposal."""
    experiment: str
    patch: str
    charged: float
    """At most the probability that it is kept without being better."""
    spent: float
    """Of the budget, this candidate included."""
    left: float
    verdict: str
    """Or what has become of it without one."""


@frozen(kw_only=True)
class BudgetView:
    """What error rate the verdicts of a campaign have, all together."""

    campaign: str
    rule: str
    budget: float | None
    """False keeps expected in the whole campaign, at the most; None: the rule promises none."""
    planned: int | None
    screened: int
    spent: float
    """False keeps expected among the candidates so far, at the most."""
    left: float | None
    rows: tuple[ChargeRow, ...]
    sentences: tuple[str, ...]


def budget_view(campaign: CampaignState) -> BudgetView:
    """The ledger of a campaign; under a rule without a budget, what its level is about."""
    rule, params = campaign.started.rule, campaign.params
    if not RULES[rule].calibrated:
        return BudgetView(
            campaign=campaign.stream,
            rule=rule,
            budget=None,
            planned=None,
            screened=0,
            spent=0.0,
            left=None,
            rows=(),
            sentences=(_level_of(rule, params),),
        )
    account = ledger(params, campaign.charged)
    return BudgetView(
        campaign=campaign.stream,
        rule=rule,
        budget=account.budget,
        planned=account.planned,
        screened=len(account.charged),
        spent=account.spent,
        left=account.left,
        rows=tuple(_rows(campaign)),
        sentences=(_promise(account),),
    )


def _rows(campaign: CampaignState) -> Iterator[ChargeRow]:
    charged: dict[int, ExperimentState] = {
        experiment.charged.ordinal: experiment
        for experiment in campaign.of_purpose("candidate")
        if experiment.charged is not None
    }
    for charge in campaign.charged:
        experiment = charged[charge.ordinal]
        verdict = experiment.verdict.kind if experiment.verdict is not None else None
        yield ChargeRow(
            ordinal=charge.ordinal,
            number=charge.number,
            experiment=experiment.stream,
            patch=campaign.change_name(experiment),
            charged=charge.charged,
            spent=charge.spent,
            left=charge.left,
            verdict=verdict or experiment.outcome or "running",
        )


def _promise(account: Ledger) -> str:
    among = plural(account.planned, "candidate")
    if len(account.charged) > account.planned:
        among = f"all candidates, those beyond the {account.planned} planned ones included"
    screened = len(account.charged)
    return (
        f"at most {account.budget:g} false keeps are expected among {among}; so far {screened} "
        f"{'was' if screened == 1 else 'were'} screened: at most {account.spent:.2g}"
    )


def _level_of(rule: str, params: RuleParams) -> str:
    if rule == "signed-rank":
        return (
            f"the rule {rule} has no error budget: its level is {params.alpha:g} for each "
            f"candidate, so {params.alpha * 100:g} false keeps are expected among 100 candidates "
            "that do nothing, at most"
        )
    return f"the rule {rule} has no error budget, and states no error level"
