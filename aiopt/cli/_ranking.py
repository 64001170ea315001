"""Gains with their intervals as text, and rankings of them."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from aiopt.cli._text import short, table
from aiopt.fitness import Fitness
from aiopt.ranking import Ranked
from aiopt.rescoring import Rescored
from aiopt.scoring import OF_PAIRS
from aiopt.standing import Objective, Standing, tied_with
from aiopt.stats import percent

if TYPE_CHECKING:
    from aiopt.views import ParetoView

__all__ = ["first_lines", "gain_text", "pareto_lines", "ranking_lines"]


def first_lines(lines: Iterable[str], count: int, top: int) -> Iterator[str]:
    """So many of them, and how many more there are."""
    yield from islice(lines, top)
    if count > top:
        yield f"… and {count - top:,} more; --top {count} shows all, --json has them"


def ranking_lines(result: Rescored, count: int, top: int) -> Iterator[str]:
    """The first ones of so many, and what they were compared by."""
    shown = result.ranking[:top]
    tied = tied_with([ranked.standing for ranked in shown])
    is_total = result.fitness in OF_PAIRS
    rows = [
        (
            str(place),
            f"~{first}" if first < place else "",
            short(ranked.experiment),
            ranked.patch,
            *([] if is_total else [_score(ranked.standing)]),
            gain_text(ranked.total),
            _ends(_in_all(ranked)),
            gain_text(ranked.step.value),
            _ends(ranked.step),
            str(ranked.step.pairs),
            ranked.verdict.replace("_", " "),
            f"without {', '.join(ranked.step.missing)}" if ranked.step.missing else "",
        )
        for place, (ranked, first) in enumerate(zip(shown, (n + 1 for n in tied), strict=True), 1)
    ]
    score = [] if is_total else [result.fitness]
    head = ("", "", "experiment", "patch", *score, "better in all", "95 % interval")
    head = (*head, "own step", "95 % interval", "pairs", "verdict", "")
    yield table(head, rows, right=[0, *range(4, 8 + len(score)), 8 + len(score)])
    yield from first_lines((), count, top)
    if any(first < place for place, first in enumerate(tied)):
        yield "~N: the measurements do not tell it apart from place N"
    if result.compared_by and result.lacking:
        lacking = ", ".join(f"{name} ({n} without)" for name, n in result.lacking.items())
        yield (
            f"compared by {', '.join(result.compared_by)}, which all of them were measured on, and "
            f"not by {lacking}; --complete ranks only those that have everything"
        )


def _score(standing: Standing) -> str:
    """What the ranking is by, the most important first."""
    if len(standing.objectives) > 1:
        return ", ".join(gain_text(objective.value) for objective in standing.objectives)
    (objective,) = standing.objectives
    if not math.isfinite(objective.se):
        return f"{objective.value:.4g} [?, ?]"
    return f"{objective.value:.4g} [{objective.low:.4g}, {objective.high:.4g}]"


def _in_all(ranked: Ranked) -> Objective:
    return Objective(value=ranked.total, se=ranked.se, step_se=ranked.step.se)


def gain_text(value: float) -> str:
    """Of a log ratio, positive is better: the share that is saved."""
    return f"{100 * percent(value):+.2f} %"


def _ends(number: Objective | Fitness) -> str:
    return f"[{_end(number.low)}, {_end(number.high)}]"


def _end(value: float) -> str:
    return f"{100 * percent(value):+.2f}" if math.isfinite(value) else "?"


def pareto_lines(view: "ParetoView") -> Iterator[str]:
    """The front, and below it what is behind it."""
    yield f"{short(view.campaign)}: {len(view.front)} of {len(view.rows)} are the best of something"
    yield ""
    rows = []
    for row in view.rows:
        proof = "" if row.proved else ", not proved"
        place = f"behind {short(row.dominated_by)}{proof}" if row.dominated_by else "front"
        gains = (f"{gain_text(gain.value)} {_ends(gain)}" for gain in row.gains)
        verdict = row.verdict.replace("_", " ")
        rows.append((short(row.experiment), row.patch, *gains, place, verdict))
    head = ("experiment", "patch", *(f"{name} [95 % interval]" for name in view.metrics), "", "")
    yield table(head, rows, right=range(2, 2 + len(view.metrics)))
    for experiment, reason in view.left_out:
        yield f"not compared: {short(experiment)}: {reason}"
