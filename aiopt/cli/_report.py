"""A campaign and its candidates as text."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from aiopt.cli._text import duration, effects_text, one_line, settled, short, status_text, table
from aiopt.events import MechanismChecked
from aiopt.views import (
    AblationRow,
    AuditView,
    BudgetView,
    CalibrationRow,
    CalibrationView,
    CandidateRow,
    CausalView,
    EffectView,
    LookRow,
    RulesView,
    ShrunkenRow,
    Summary,
)

__all__ = [
    "audit_lines",
    "budget_lines",
    "calibration_lines",
    "calibration_table",
    "candidate_lines",
    "causal_lines",
    "effect_lines",
    "look_lines",
    "mechanism_lines",
    "prose",
    "rules_lines",
    "summary_lines",
]

_REASON_WIDTH = 100
_PROSE_WIDTH = 100
_BEST = 10
"""Candidates of the table that is for ranking; all of them are in the JSON."""
_BIASED = "~ an estimate of the screen: the pairs that it is made from also decided when to stop"


def prose(sentences: Iterable[str], indent: str = "") -> Iterator[str]:
    """Sentences one below the other, folded."""
    for sentence in sentences:
        yield from wrap(
            sentence,
            _PROSE_WIDTH,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def summary_lines(summary: Summary) -> Iterator[str]:
    """The whole campaign: what it was, what can be proved, the candidates, the audit."""
    end = f": {summary.reason}" if summary.reason else ""
    yield (
        f"{short(summary.campaign)} {summary.target} in {summary.environment}: {summary.status}"
        f"{end} ({duration(summary.seconds)} in stages)"
    )
    if summary.calibration is not None:
        yield ""
        yield from calibration_lines(summary.calibration)
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
    if summary.causal is not None:
        yield ""
        yield from causal_lines(summary.causal)


def causal_lines(view: CausalView) -> Iterator[str]:
    """Where causal profiles see room, and how good their predictions were."""
    room = view.headroom
    if room is not None:
        best = f", most surely in {room.line}" if room.line else ""
        left = "; little is left for changes of single lines" if room.exhausted else ""
        yield (
            f"causal profiles: one line could save between {100 * room.low:.0f} % and "
            f"{100 * room.high:.0f} % of the time{best}{left}"
        )
    if view.credits:
        rows = [
            (
                short(row.experiment),
                row.patch,
                row.credit.line,
                f"{100 * row.credit.predicted.value:+.1f} %",
                f"{100 * row.credit.realised.value:+.1f} %",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                row.credit.status.replace("_", " "),
            )
            for row in view.credits
        ]
        head = ("experiment", "patch", "line", "predicted", "realised", "ratio", "")
        yield table(head, rows, right=[3, 4, 5])
    if view.summary.median_ratio is not None:
        yield (
            f"of what causal profiles predicted here, {100 * view.summary.median_ratio:.0f} % "
            f"came true in the median ({settled(view.summary.counts)})"
        )


# ---- calibration ----


def calibration_lines(view: CalibrationView) -> Iterator[str]:
    """What can be proved on this machine, in words."""
    yield f"calibration ({short(view.experiment)}, {duration(view.seconds)})"
    yield from prose(view.sentences, "  ")


def calibration_table(rows: Sequence[CalibrationRow]) -> Iterator[str]:
    """One line for each objective and guard, then what there is to be warned of."""
    lines = [
        (
            row.metric,
            row.workload,
            row.role,
            str(row.pairs),
            f"{row.sd_percent:.2f} %",
            f"{row.mei_eff_percent:.1f} %" if row.role == "primary" else "",
            "" if row.role == "primary" else f"{row.mei_eff_percent:.0f} %",
            str(row.n1) if row.n1 else "",
            str(row.n2),
            str(row.pairs_for_mei) if row.role == "primary" else "",
            "" if row.minutes is None else duration(60 * row.minutes),
            "" if row.layout_sd is None else f"{100 * row.layout_sd:.2f} %",
        )
        for row in rows
    ]
    head = (
        "metric",
        "workload",
        "role",
        "pairs",
        "pairs differ by",
        "provable",
        "margin",
        "screen",
        "confirmation",
        "for mei",
        "time",
        "layout",
    )
    yield table(head, lines, right=range(3, 12))
    warnings = (f"{row.metric} ({row.workload}): {text}" for row in rows for text in row.warnings)
    yield from prose(warnings)


# ---- candidates ----


def candidate_lines(rows: Sequence[CandidateRow]) -> Iterator[str]:
    """One line for each candidate: verdict, effect on the primaries, why it was not kept."""
    lines = [
        (
            str(row.number),
            short(row.experiment),
            row.patch,
            status_text(row.status),
            effects_text(row.primaries),
            one_line(_reason(row), _REASON_WIDTH),
        )
        for row in rows
    ]
    head = ("#", "experiment", "patch", "verdict", "better by [95 % interval]", "reason")
    yield table(head, lines, right=[0])
    if any(effect.biased for row in rows for effect in row.primaries):
        yield _BIASED


def _reason(row: CandidateRow) -> str:
    """Flags of a keep; else why not. What would settle it comes first, for reasons are cut."""
    if row.status == "keep":
        return "; ".join(row.flags)
    needs = f"about {row.needs} pairs would tell: " if row.needs is not None else ""
    return f"{needs}{row.reason}"


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
                f"{'~' if effect.biased else ''}{_percent(effect.better_percent)}",
                _interval(effect),
                "" if effect.state == "info" else effect.state,
            )
            for effect in effects
        ],
        right=[3, 4],
    )
    if any(effect.biased for effect in effects):
        yield _BIASED


def mechanism_lines(checks: Sequence[MechanismChecked], flags: Sequence[str]) -> Iterator[str]:
    """The claims of a patch: what the profiles say, and what has to be seen."""
    for check in checks:
        yield f"claim {check.claim.function}, {check.claim.metric}: {status_text(check.status)}"
        yield f"  {check.detail}"
    for flag in flags:
        yield f"! {flag}"


def look_lines(looks: Sequence[LookRow]) -> Iterator[str]:
    """One line for each look at the pairs of a stage."""
    yield table(
        ("look", "metric", "workload", "pairs", "p", "level", "better by", "sd", "then"),
        [
            (
                look.purpose,
                look.metric,
                look.workload,
                str(look.pairs),
                f"{look.p:.2g}",
                f"{look.level:.2g}",
                _percent(look.better_percent),
                f"{look.sd_percent:.2f} %",
                look.action,
            )
            for look in looks
        ],
        right=[3, 4, 5, 6, 7],
    )


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2f} %"


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2f}"


def _interval(effect: EffectView) -> str:
    return f"[{_bound(effect.better_percent_low)}, {_bound(effect.better_percent_high)}]"


# ---- the error budget ----


def budget_lines(view: BudgetView) -> Iterator[str]:
    """What was charged for which candidate, and what the campaign promises."""
    rule = f", rule {view.rule}" if view.budget is not None else ""  # else the sentence names it
    yield from prose([f"{short(view.campaign)}{rule}: {view.sentences[0]}"])
    if not view.rows:
        return
    yield ""
    rows = [
        (
            str(row.ordinal),
            str(row.number),
            short(row.experiment),
            row.patch,
            f"{row.charged:.2g}",
            f"{row.spent:.3g}",
            f"{row.left:.3g}",
            status_text(row.verdict),
        )
        for row in view.rows
    ]
    head = ("", "#", "experiment", "patch", "charged", "spent", "left", "verdict")
    yield table(head, rows, right=[0, 1, 4, 5, 6])


# ---- the audit ----


def audit_lines(audit: AuditView) -> Iterator[str]:
    """The result of the campaign, what its steps claimed, and what each patch is worth."""
    pairs = sorted({effect.pairs for effect in audit.effects})
    yield (
        f"audit ({short(audit.experiment)}): the final source against the baseline, "
        f"{' to '.join(map(str, pairs[:1] + pairs[1:][-1:]))} fresh pairs for each workload"
    )
    claimed = {(row.metric, row.workload): row.claimed_percent for row in audit.claims}
    shown = {(effect.metric, effect.workload) for effect in audit.effects}
    composites = [r.audited for r in audit.claims if (r.metric, r.workload) not in shown]
    yield table(
        ("metric", "workload", "role", "pairs", "better by", "95 % interval", "claimed"),
        [
            (
                effect.metric,
                effect.workload,
                effect.role,
                str(effect.pairs),
                _percent(effect.better_percent),
                _interval(effect),
                f"{claimed[effect.metric, effect.workload]:+.2f} %"
                if (effect.metric, effect.workload) in claimed
                else "",
            )
            for effect in [*composites, *audit.effects]
        ],
        right=[3, 4, 6],
    )
    yield from prose(audit.sentences)
    if audit.ablation:
        yield ""
        yield from _ablation_lines(audit.ablation)
    if audit.shrunken:
        yield ""
        yield from _shrunken_lines(audit.shrunken)


def _ablation_lines(rows: Sequence[AblationRow]) -> Iterator[str]:
    yield "what each patch contributes: the final source against itself without it"
    lines = [
        (
            short(row.experiment),
            row.patch,
            row.state,
            effects_text(row.effects),
            one_line(row.detail, _REASON_WIDTH),
        )
        for row in rows
    ]
    head = ("experiment", "patch", "state", "better by [95 % interval]", "why")
    yield table(head, lines)


def _shrunken_lines(rows: Sequence[ShrunkenRow]) -> Iterator[str]:
    yield "for ranking only: estimates of single candidates, drawn towards the mean of all"
    lines = []
    for key in dict.fromkeys((row.metric, row.workload) for row in rows):
        of_one = [row for row in rows if (row.metric, row.workload) == key]
        lines += [
            (
                row.metric,
                row.workload,
                short(row.experiment),
                row.patch,
                status_text(row.status),
                f"{row.effect_percent:+.2f} %",
                f"{row.shrunken_percent:+.2f} %",
            )
            for row in of_one[:_BEST]
        ]
    head = ("metric", "workload", "experiment", "patch", "verdict", "measured", "shrunken")
    yield table(head, lines, right=[5, 6])
    most = max(sum((r.metric, r.workload) == (a.metric, a.workload) for r in rows) for a in rows)
    if most > _BEST:
        yield f"the best {_BEST} of {most}; --json has all"


# ---- rules ----


def rules_lines(view: RulesView) -> Iterator[str]:
    """Every rule over the same pairs."""
    yield f"{short(view.campaign)}: {view.candidates} decisions by {view.rule}"
    yield ""
    rows = [
        (
            row.rule,
            *(
                ("?", "?", "?", row.problem)
                if row.problem
                else (
                    str(len(row.kept)),
                    str(len(row.undecided)),
                    str(len(row.refused)),
                    one_line(", ".join(row.refused), _REASON_WIDTH),
                )
            ),
        )
        for row in view.rows
    ]
    head = ("rule", "would keep", "undecided", "refused here", "which of them were refused here")
    yield table(head, rows, right=[1, 2, 3])
    for row in view.rows:
        if row.missed:
            yield f"{row.rule} would not have kept {', '.join(row.missed)}"
    yield ""
    yield from prose(view.sentences)
