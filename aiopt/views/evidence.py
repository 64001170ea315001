"""What profilers found: as a table, and as a text that is short enough for a prompt."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from attrs import evolve, frozen

from aiopt.events import (
    Event,
    EvidenceCaptured,
    Finding,
    MechanismChecked,
    ProfilerUnavailable,
    RunMeasured,
    Scalar,
)
from aiopt.evidence import changes_of
from aiopt.protocols import Measured, NotAvailable, ProfileResult
from aiopt.replay import CampaignState

__all__ = [
    "EvidenceRow",
    "evidence_digest",
    "evidence_lines",
    "evidence_table",
    "instruction_flags",
    "mechanism_flags",
    "profiles_of",
    "result_row",
    "scalar_text",
]

Answer = EvidenceCaptured | ProfilerUnavailable

_MOST_FINDINGS = 8
"""Of each profiler, in a digest."""
_MOST_CHARACTERS = 6000
_LONGEST_LINE = 240


@frozen(kw_only=True)
class EvidenceRow:
    """What one profiler found, or why it found nothing."""

    profiler: str
    candidate: str
    workload: str
    status: str
    """measured, inconclusive, not_available or failed."""
    reason: str
    fix: str
    scalars: Mapping[str, Scalar]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    overhead_percent: Mapping[str, float]
    """By how much each metric was larger under the profiler than in runs without it (medians)."""
    stacks: str | None
    stacks_unit: str
    artifacts: tuple[str, ...]
    tool: str = ""
    """What the profiler's tool says its version is."""


def evidence_table(
    answers: Iterable[Answer], facts: Iterable[Event] = ()
) -> tuple[EvidenceRow, ...]:
    """The profilers in the order in which they ran.

    `facts` are runs without a profiler, of the same candidate as arm B: with them, what each
    profiler costs is known.
    """
    plain: dict[tuple[str, str], list[float]] = {}
    for event in facts:
        if isinstance(event, RunMeasured) and event.arm == "B" and event.purpose != "warmup":
            for metric, samples in event.metrics.items():
                plain.setdefault((event.workload, metric), []).extend(samples)
    return tuple(_row(answer, plain) for answer in answers)


def _row(answer: Answer, plain: Mapping[tuple[str, str], Sequence[float]]) -> EvidenceRow:
    if isinstance(answer, ProfilerUnavailable):
        return EvidenceRow(
            profiler=answer.profiler,
            candidate=answer.candidate,
            workload="",
            status=answer.status,
            reason=answer.reason,
            fix=answer.fix,
            scalars={},
            findings=(),
            notes=(),
            overhead_percent={},
            stacks=None,
            stacks_unit="",
            artifacts=(),
        )
    overhead = {}
    for metric, samples in sorted(answer.under_profiler.items()):
        without = plain.get((answer.workload, metric))
        if samples and without and median(without) > 0:
            overhead[metric] = round(100 * (median(samples) / median(without) - 1), 1)
    return EvidenceRow(
        profiler=answer.profiler,
        candidate=answer.candidate,
        workload=answer.workload,
        status="measured",
        reason="",
        fix="",
        scalars=dict(sorted(answer.scalars.items())),
        findings=answer.findings,
        notes=answer.notes,
        overhead_percent=overhead,
        stacks=answer.stacks,
        stacks_unit=answer.stacks_unit,
        artifacts=answer.artifacts,
        tool=answer.tool,
    )


def result_row(profiler: str, result: ProfileResult) -> EvidenceRow:
    """What a parser answered, outside of any campaign."""
    row = EvidenceRow(
        profiler=profiler,
        candidate="",
        workload="",
        status=result.status,
        reason="" if isinstance(result, Measured) else result.reason,
        fix=result.fix if isinstance(result, NotAvailable) else "",
        scalars={},
        findings=(),
        notes=(),
        overhead_percent={},
        stacks=None,
        stacks_unit="",
        artifacts=(),
    )
    if not isinstance(result, Measured):
        return row
    return evolve(
        row,
        scalars=dict(sorted(result.scalars.items())),
        findings=result.findings,
        notes=result.notes,
        stacks_unit=result.stacks_unit if result.stacks else "",
    )


def profiles_of(campaign: CampaignState, candidate: str) -> tuple[Answer, ...]:
    """What each profiler said last about one candidate, workload by workload."""
    found: dict[tuple[str, str], Answer] = {}
    for experiment in campaign.experiments.values():
        for answer in experiment.profiles:
            if answer.candidate == candidate:
                workload = answer.workload if isinstance(answer, EvidenceCaptured) else ""
                found[answer.profiler, workload] = answer
    return tuple(found.values())


def mechanism_flags(status: str, checks: Iterable[MechanismChecked]) -> tuple[str, ...]:
    """What a user must see of the claims of a candidate that ended with this verdict."""
    return tuple(
        f"{'faster, but' if status == 'keep' else 'the claim does not hold:'} "
        f"{_FLAGS[check.status].format(function=check.claim.function)}"
        for check in checks
        if check.status in _FLAGS
    )


def instruction_flags(
    campaign: CampaignState, status: str, incumbent: str, candidate: str
) -> tuple[str, ...]:
    """Of what was kept though it executes more instructions, where callgrind has counted them.

    Instructions are blind to waiting and to caches, so this decides nothing.
    """
    name = "callgrind:instructions"
    sides = (profiles_of(campaign, each) for each in (incumbent, candidate))
    change = changes_of([name], *sides).get(name)
    if status != "keep" or change is None or change.value > -_MORE_INSTRUCTIONS:
        return ()
    return (f"kept, though callgrind counts {100 * math.expm1(-change.value):+.1f} % instructions",)


_MORE_INSTRUCTIONS = 0.01
_FLAGS = {
    "unchanged": "the targeted function {function} did not change",
    "opposite": "the targeted function {function} became dearer",
    "not_seen": "the targeted function {function} is in no profile",
}


def scalar_text(scalar: Scalar) -> str:
    """`0.41 ratio [0.38, 0.44]`, shares in percent, bytes in MB, with four digits at the most."""
    factor, unit = _SCALES.get(scalar.unit, (1.0, scalar.unit))
    value = f"{scalar.value * factor:.4g} {unit}".strip()
    if scalar.low is None or scalar.high is None:
        return value
    return f"{value} [{scalar.low * factor:.4g}, {scalar.high * factor:.4g}]"


_SCALES = {"ratio": (100.0, "%"), "bytes": (1e-6, "MB")}


def evidence_digest(rows: Iterable[EvidenceRow], limit: int = _MOST_CHARACTERS) -> str:
    """What a proposer should know, most important first, in at most `limit` characters.

    Each profiler may take an equal part of what those before it have left.
    """
    texts: list[str] = []
    parts = [[_clipped(line) for line in evidence_lines(row)] for row in rows]
    for number, lines in enumerate(parts):
        left = limit - sum(map(len, texts))
        texts.append(_within(lines, left // (len(parts) - number)))
    return "".join(texts)


def _clipped(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"


def _within(lines: Sequence[str], limit: int) -> str:
    text = ""
    for number, line in enumerate(lines):
        left_out = f"  ({len(lines) - number} more lines: `aiopt show` has them)\n"
        room = limit if number == len(lines) - 1 else limit - len(left_out)
        if len(text) + len(line) + 1 > room:
            return text + left_out if len(text) + len(left_out) <= limit else text
        text += line + "\n"
    return text


def _of_all(name: str) -> bool:
    """Whether a scalar is about the whole run, or a class (`off_cpu_ms[L]`), and no function."""
    return len(name.partition("[")[2]) <= len("X]")


def evidence_lines(row: EvidenceRow, most: int = _MOST_FINDINGS) -> Iterator[str]:
    """What one profiler says, for people; its `most` most important findings."""
    if row.status != "measured":
        fix = f" (to fix: {row.fix})" if row.fix else ""
        yield f"{row.profiler}: {row.status.replace('_', ' ')}: {row.reason}{fix}"
        return
    seen = [(name, value) for name, value in row.overhead_percent.items() if abs(value) >= 1]
    cost = ", ".join(f"{name} {value:+.0f} %" for name, value in seen[:4])
    where = f", workload {row.workload}" if row.workload else ""
    yield f"{row.profiler}{where}{f' (under it: {cost})' if cost else ''}:"
    if row.findings:
        whole = [f"{name} {scalar_text(s)}" for name, s in row.scalars.items() if _of_all(name)]
        for at in range(0, len(whole), 4):
            yield f"  {', '.join(whole[at : at + 4])}"
    for finding in row.findings[:most]:
        detail = f" ({finding.detail})" if finding.detail else ""
        yield f"  {scalar_text(finding.scalar)}  {finding.what}  {finding.where}{detail}"
    if not row.findings:
        for name, scalar in list(row.scalars.items())[:most]:
            yield f"  {name} {scalar_text(scalar)}"
        if len(row.scalars) > most:
            yield f"  and {len(row.scalars) - most} more: --top N, or --json"
    for note in row.notes[:3]:
        yield f"  note: {note}"
