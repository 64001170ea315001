"""Which candidates are the best of something: the front over several metrics."""

from collections.abc import Sequence

from attrs import evolve, frozen

from aiopt.errors import ConfigError
from aiopt.ranking import breaks_a_guard, rank
from aiopt.replay import CampaignState
from aiopt.standing import Objective, Standing
from aiopt.stats import Z95

__all__ = ["ParetoRow", "ParetoView", "pareto_view"]


@frozen(kw_only=True)
class ParetoRow:
    """The baseline, or a candidate that works and breaks no guard."""

    experiment: str
    """Empty for the baseline."""
    patch: str
    verdict: str
    gains: tuple[Objective, ...]
    """Log ratios to the baseline, positive is better, in the order of the metrics."""
    dominated_by: str
    """The experiment, or `baseline`, that is at least as good in each metric and better in one;
    empty for a member of the front.
    """
    proved: bool
    """Whether it is better in one metric with 95 % confidence, and not only by the estimate."""


@frozen(kw_only=True)
class ParetoView:
    """The front, its members first; each part by the first metric."""

    campaign: str
    metrics: tuple[str, ...]
    rows: tuple[ParetoRow, ...]
    left_out: tuple[tuple[str, str], ...]
    """Experiments that are not compared, each with the reason."""

    @property
    def front(self) -> tuple[ParetoRow, ...]:
        return tuple(row for row in self.rows if not row.dominated_by)


def pareto_view(campaign: CampaignState, metrics: Sequence[str] = ()) -> ParetoView:
    """Over these metrics, or the primaries.

    Raises:
        ConfigError: no such metric.
    """
    names = tuple(dict.fromkeys(metrics)) or campaign.params.primaries
    known = [name for name, metric in campaign.params.metrics.items() if metric.kind == "number"]
    if unknown := [name for name in names if name not in known]:
        problems = [(name, f"no such metric; there are {', '.join(known)}") for name in unknown]
        raise ConfigError("pareto", problems)
    exact = ",".join(f"{name}=0" for name in names)
    ranking = rank(campaign, fitness=f"lexicographic:{exact}", weights=dict.fromkeys(names, 1.0))
    rows = [_row("", "baseline", "", ranking.baseline)]
    standings = {"": ranking.baseline}
    left_out = list(ranking.unranked)
    for ranked in ranking.ranked:
        experiment = campaign.experiments[ranked.experiment]
        assert experiment.verdict is not None
        if breaks_a_guard(campaign, experiment, besides=names):
            left_out.append((ranked.experiment, f"breaks a guard: {experiment.verdict.reason}"))
            continue
        standings[ranked.experiment] = ranked.standing
        kind = experiment.verdict.kind
        rows.append(_row(ranked.experiment, ranked.patch, kind, ranked.standing))
    rows = [_judged(row, rows, standings) for row in rows]
    rows.sort(key=lambda row: (bool(row.dominated_by), -row.gains[0].value))
    return ParetoView(
        campaign=campaign.stream, metrics=names, rows=tuple(rows), left_out=tuple(left_out)
    )


def _row(experiment: str, patch: str, verdict: str, standing: Standing) -> ParetoRow:
    return ParetoRow(
        experiment=experiment,
        patch=patch,
        verdict=verdict,
        gains=standing.objectives,
        dominated_by="",
        proved=False,
    )


def _judged(row: ParetoRow, rows: Sequence[ParetoRow], standings: dict[str, Standing]) -> ParetoRow:
    """With the candidate that dominates it: one that provably does, if there is any."""
    mine = standings[row.experiment]
    better = [other for other in rows if _dominates(other, row)]
    for other in better:
        if _is_ahead_somewhere(standings[other.experiment], mine):
            return evolve(row, dominated_by=other.experiment or "baseline", proved=True)
    return evolve(row, dominated_by=better[0].experiment or "baseline") if better else row


def _dominates(one: ParetoRow, other: ParetoRow) -> bool:
    pairs = [(a.value, b.value) for a, b in zip(one.gains, other.gains, strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _is_ahead_somewhere(one: Standing, other: Standing) -> bool:
    return any(
        evolve(one, objectives=(a,)).is_ahead(evolve(other, objectives=(b,)), Z95)
        for a, b in zip(one.objectives, other.objectives, strict=True)
    )
