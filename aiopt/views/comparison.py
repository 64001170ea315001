"""What every rule would have made of one campaign, side by side."""

from collections.abc import Iterator, Mapping

from attrs import frozen

from aiopt.errors import ConfigError
from aiopt.other_tools import OtherTool
from aiopt.replay import CampaignState
from aiopt.rescoring import rescore
from aiopt.rules import RuleParams, vary
from aiopt.verdict import RULES

__all__ = ["RuleRow", "RulesView", "compare_rules"]

_OURS = {
    "two-stage": "a screen, then a confirmation on fresh pairs, within one error budget",
    "signed-rank": "one exact test at a fixed number of pairs",
}


@frozen(kw_only=True)
class RuleRow:
    """One rule over the pairs that were logged."""

    rule: str
    what: str
    kept: tuple[str, ...]
    """Names of the patches that it would have kept."""
    refused: tuple[str, ...]
    """Those of them that the campaign itself did not keep."""
    missed: tuple[str, ...]
    """Patches that the campaign kept and this rule would not have."""
    undecided: tuple[str, ...]
    """Patches of which it would have needed more pairs than were run."""
    problem: str
    """Why it cannot be asked at all; empty if it can."""


@frozen(kw_only=True)
class RulesView:
    """Every rule over one campaign."""

    campaign: str
    rule: str
    """By which the campaign itself decided."""
    candidates: int
    """Decisions that were made."""
    rows: tuple[RuleRow, ...]
    post_hoc: bool
    """Always: no error level holds for a rule that is chosen after the outcomes were seen."""
    sentences: tuple[str, ...]


def compare_rules(
    campaign: CampaignState,
    params: RuleParams | None = None,
    weights: Mapping[str, float] | None = None,
) -> RulesView:
    """What each rule would have kept; nothing is run.

    Raises:
        ConfigError: a weight for a metric that the campaign did not measure.
    """
    if weights:
        params = vary(params or campaign.params, weights=dict(weights))
    decided = [e for e in campaign.of_purpose("candidate") if e.verdict is not None]
    logged = campaign.started.rule
    return RulesView(
        campaign=campaign.stream,
        rule=logged,
        candidates=len(decided),
        rows=tuple(_row(campaign, rule, params) for rule in RULES),
        post_hoc=True,
        sentences=tuple(_sentences(logged)),
    )


def _row(campaign: CampaignState, rule: str, params: RuleParams | None) -> RuleRow:
    try:
        decisions = rescore(campaign, rule=rule, params=params).decisions
        problem = ""
    except ConfigError as error:
        decisions, problem = (), "; ".join(text for _, text in error.problems)
    kept = [d for d in decisions if d.replayed == "keep"]
    return RuleRow(
        rule=rule,
        what=_what(rule),
        kept=tuple(d.patch for d in kept),
        refused=tuple(d.patch for d in kept if d.logged != "keep"),
        missed=tuple(
            d.patch
            for d in decisions
            if d.logged == "keep" and d.replayed not in ("keep", "needs_more")
        ),
        undecided=tuple(d.patch for d in decisions if d.replayed == "needs_more"),
        problem=problem,
    )


def _what(rule: str) -> str:
    found = RULES[rule]
    return found.comparison.what if isinstance(found, OtherTool) else _OURS.get(rule, "")


def _sentences(logged: str) -> Iterator[str]:
    yield (
        f"The campaign decided by {logged}. The others were asked about the pairs that it ran, "
        "against the incumbent of that time; where they would have wanted more, they stay "
        "undecided."
    )
    yield (
        "This flatters the rules of other tools: the pairs were run side by side, where those "
        "tools measure in blocks or against a stored score. They do not look at guards."
    )
    yield "No error level holds for a rule that is chosen after the outcomes were seen (post hoc)."
