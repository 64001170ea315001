"""A campaign of a long log under other weights, in seconds: from the columns beside the log."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiopt.batch_rescoring import FACTS, BatchRescored, Source, rescore_columns
from aiopt.columnar import Unprojectable
from aiopt.projection import Projection
from aiopt.scoring import DEFAULT_FITNESS

__all__ = ["LEAST", "only_weights", "quick_rescore"]

LEAST = 8 << 20
"""Bytes of a log that is long enough: a shorter one is folded as fast."""


def only_weights(
    *, rule: object, changes: object, fitness: str, guards: object, complete: bool
) -> bool:
    """Whether a question is one that columns can answer."""
    return not (rule or changes or guards or complete) and fitness == DEFAULT_FITNESS


def quick_rescore(
    log: Path,
    *,
    choose: Callable[[Sequence[str]], str],
    weights: Mapping[str, float] | None = None,
) -> BatchRescored | None:
    """The answer of `aiopt.rescoring.rescore` to these weights, under the campaign's own rule; None
    where the log is short, or only the fold can answer.

    `choose` is given the campaigns' streams, of which there is one at least, and says which.

    Raises:
        ConfigError: as `rescore`.
    """
    try:
        if log.stat().st_size < LEAST:
            return None
        with Projection.open(log) as opened:
            columns = opened.columns
            if not columns.campaigns:
                return None
            source = Source(columns, lambda stream: opened.events(stream, FACTS), opened.event)
            return rescore_columns(source, choose(columns.campaigns), weights=weights)
    except (Unprojectable, OSError):
        return None
