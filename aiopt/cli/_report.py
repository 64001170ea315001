"""A campaign and its candidates as text."""

from collections.abc import Iterator, Sequence

from aiopt.cli._text import duration, effects_text, one_line, settled, short, status_text, table
from aiopt.views import AuditView, CandidateRow, EffectView, Summary

__all__ = ["audit_lines", "candidate_lines", "effect_lines", "summary_lines"]

_REASON_WIDTH = 100


def summary_lines(summary: Summary) -> Iterator[str]:
    """The whole campaign: what it was, the candidates, the audit."""
    end = f": {summary.reason}" if summary.reason else ""
    yield (
        f"{short(summary.campaign)} {summary.target} in {summary.environment}: {summary.status}"
        f"{end} ({duration(summary.seconds)} in stages)"
    )
    if not summary.candidates:
        yield "no candidate was proposed"
        return
    yield ""
    yield from candidate_lines(summary.candidates)
    yield ""
    yield f"{len(summary.candidates)} candidates: {settled(summary.counts)}"
    if summary.kept:
        yield f"kept: {', '.join(summary.kept)}"
    if summary.audit is not None:
        yield ""
        yield from audit_lines(summary.audit)


def candidate_lines(rows: Sequence[CandidateRow]) -> Iterator[str]:
    """One line for each candidate: verdict, effect on the primaries, why it was not kept."""
    lines = [
        (
            str(row.number),
            short(row.experiment),
            row.patch,
            status_text(row.status),
            effects_text(row.primaries),
            "" if row.status == "keep" else one_line(row.reason, _REASON_WIDTH),
        )
        for row in rows
    ]
    head = ("#", "experiment", "patch", "verdict", "better by [95 % interval]", "reason")
    yield table(head, lines, right=[0])


def audit_lines(audit: AuditView) -> Iterator[str]:
    """The result of the campaign."""
    pairs = max((effect.pairs for effect in audit.effects), default=0)
    yield (
        f"audit ({short(audit.experiment)}): the final source against the baseline, "
        f"{pairs} fresh pairs for each workload"
    )
    yield from effect_lines(audit.effects)


def effect_lines(effects: Sequence[EffectView]) -> Iterator[str]:
    """One line for each metric and workload; positive is better."""
    yield table(
        ("metric", "workload", "role", "pairs", "better by", "95 % interval", "state"),
        [
            (
                effect.metric,
                effect.workload,
                effect.role,
                str(effect.pairs),
                _percent(effect.better_percent),
                f"[{_bound(effect.better_percent_low)}, {_bound(effect.better_percent_high)}]",
                "" if effect.state == "info" else effect.state,
            )
            for effect in effects
        ],
        right=[3, 4],
    )


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2f} %"


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2f}"
