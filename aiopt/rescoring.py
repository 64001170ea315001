"""What other weights, another rule or other parameters would make of what was measured.

The events are decided and ranked anew. Nothing is run, and what the log cannot tell is said.
"""

from collections.abc import Mapping

from attrs import evolve, frozen

from aiopt.evidence import is_evidence
from aiopt.ranking import DEFAULT_FITNESS, Ranked, equal_weights, rank
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import NeedsMore, RuleParams, vary
from aiopt.verdict import check_rule, decide

__all__ = ["Decision", "Rescored", "rescore"]


@frozen(kw_only=True)
class Decision:
    """One experiment, as it was decided and as it would be."""

    experiment: str
    number: int
    patch: str
    seq: int
    logged: str
    replayed: str
    """A verdict, or `needs_more`."""
    needs_more: int
    """Pairs that are missing for the replayed decision, at the most."""
    same_premise: bool
    """False if under the replayed decisions another incumbent would have been measured against."""

    @property
    def flipped(self) -> bool:
        """Whether a keep became something else, or the other way round."""
        return (self.logged == "keep") != (self.replayed == "keep")


@frozen(kw_only=True)
class Rescored:
    """A campaign under other weights or another rule."""

    campaign: str
    rule: str
    fitness: str
    """What the ranking is by, see `aiopt.scoring`."""
    weights: Mapping[str, float]
    ranking: tuple[Ranked, ...]
    unranked: tuple[tuple[str, str], ...]
    """Experiment and the reason why it has no fitness."""
    compared_by: tuple[str, ...]
    lacking: Mapping[str, int]
    """Both as in `aiopt.ranking.Ranking`."""
    decisions: tuple[Decision, ...]
    post_hoc: bool
    """Whether rule or parameters were chosen after the outcomes were seen, so that the error level
    which they state does not hold.
    """
    parts_at: int | None
    """The first event at which the two histories part, or None."""

    @property
    def flips(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.flipped)


def rescore(
    campaign: CampaignState,
    *,
    weights: Mapping[str, float] | None = None,
    rule: str | None = None,
    params: RuleParams | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
    complete: bool = False,
) -> Rescored:
    """What the same events would have led to; nothing is run, and what cannot be known is said.

    Without `weights` the primaries decide as they did, and the ranking weighs them equally; see
    `aiopt.ranking.rank` for the fitness, for weights and guards of what profilers measured, and for
    `complete`. No decision depends on the ranking.

    Raises:
        ConfigError: no such rule or fitness, parameters under which it could not decide, or a
        weight or guard for what the campaign did not measure.
    """
    params = params or campaign.params
    of_metrics = {name: w for name, w in (weights or {}).items() if not is_evidence(name)}
    if of_metrics:
        params = vary(params, weights=of_metrics)
    logged = campaign.started.rule
    if rule is not None and rule != logged and params.pairs == campaign.params.pairs:
        params = evolve(params, pairs=None)  # the number belonged to the logged rule
    rule = rule or logged
    check_rule(rule, params)
    ranking_weights = dict(weights) if weights else equal_weights(params)
    ranking = rank(
        campaign,
        params=params,
        weights=ranking_weights,
        fitness=fitness,
        guards=guards,
        complete=complete,
    )
    incumbent = campaign.baseline
    decisions = []
    for experiment in campaign.judged():
        decision = _decision(campaign, experiment, rule, params, incumbent)
        decisions.append(decision)
        if decision.replayed == "keep" and decision.same_premise:
            incumbent = experiment.started.candidate
    flips = [decision.seq for decision in decisions if decision.flipped]
    return Rescored(
        campaign=campaign.stream,
        rule=rule,
        fitness=fitness,
        weights=ranking_weights,
        ranking=ranking.ranked,
        unranked=ranking.unranked,
        compared_by=ranking.compared_by,
        lacking=ranking.lacking,
        decisions=tuple(decisions),
        post_hoc=rule != logged or params != campaign.params,
        parts_at=min(flips) if flips else None,
    )


def _decision(
    campaign: CampaignState,
    experiment: ExperimentState,
    rule: str,
    params: RuleParams,
    incumbent: str,
) -> Decision:
    assert experiment.verdict is not None
    outcome = decide(rule, params, campaign.evidence(experiment))
    return Decision(
        experiment=experiment.stream,
        number=experiment.started.number,
        patch=campaign.change_name(experiment),
        seq=experiment.verdict_seq,
        logged=experiment.verdict.kind,
        replayed="needs_more" if isinstance(outcome, NeedsMore) else outcome.kind,
        needs_more=outcome.missing if isinstance(outcome, NeedsMore) else 0,
        same_premise=experiment.started.incumbent == incumbent,
    )
