"""What profilers measured, as numbers for rankings: any scalar by its name, and how it changed.

A scalar is named `PROFILER:SCALAR`, such as `callgrind:instructions` or `offcpu:off_cpu_ms[L]`; no
metric has a colon in its name. Less of it is better: of time, instructions, bytes and shares.
"""

import math
from collections.abc import Iterable, Mapping

from attrs import frozen

from aiopt.events import EvidenceCaptured, Scalar
from aiopt.stats import Z95

__all__ = [
    "Change",
    "change_of",
    "changes_of",
    "is_evidence",
    "latest",
    "scalar_names",
    "scalar_of",
]

_EXACT = frozenset({"instructions"})
_SPREAD = 0.05
"""Relative standard deviation that is taken for a scalar without an interval, unless it is counted
and comes out the same every time."""


@frozen(kw_only=True)
class Change:
    """Natural log of incumbent over candidate: positive is less, and so better.

    Infinite where one of them is proved to be more than the other one's zero.
    """

    value: float
    se: float
    """Standard error."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - Z95 * self.se

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + Z95 * self.se


def is_evidence(name: str) -> bool:
    """Whether a name with a weight is that of a profiler's scalar, and not of a metric."""
    return ":" in name


def latest(profiles: Iterable[object]) -> tuple[EvidenceCaptured, ...]:
    """The last word of each profiler about each workload, in the order in which they were said."""
    found: dict[tuple[str, str], EvidenceCaptured] = {}
    for answer in profiles:
        if isinstance(answer, EvidenceCaptured):
            key = answer.profiler, answer.workload
            found.pop(key, None)
            found[key] = answer
    return tuple(found.values())


def scalar_of(profiles: Iterable[object], name: str) -> Scalar | None:
    """The latest scalar of this name; None if no profiler has measured it."""
    scalars = list(_by_workload(profiles, name).values())
    return scalars[-1] if scalars else None


def scalar_names(profiles: Iterable[object]) -> tuple[str, ...]:
    """Of all that profilers measured, each once."""
    return tuple(
        dict.fromkeys(
            f"{answer.profiler}:{name}" for answer in latest(profiles) for name in answer.scalars
        )
    )


def _by_workload(profiles: Iterable[object], name: str) -> Mapping[str, Scalar]:
    profiler, _, scalar = name.partition(":")
    return {
        answer.workload: answer.scalars[scalar]
        for answer in latest(profiles)
        if answer.profiler == profiler and scalar in answer.scalars
    }


def change_of(before: Scalar | None, after: Scalar | None) -> Change | None:
    """None where a side is missing, and where a ratio says nothing: with less than zero, or with a
    zero and what may be as little.
    """
    if before is None or after is None or before.value < 0 or after.value < 0:
        return None
    if before.value == after.value == 0:
        return Change(value=0.0, se=0.0)
    if not before.value:
        return Change(value=-math.inf, se=0.0) if _is_more_than_none(after) else None
    if not after.value:
        return Change(value=math.inf, se=0.0) if _is_more_than_none(before) else None
    variance = _log_variance(before) + _log_variance(after)
    return Change(value=math.log(before.value / after.value), se=math.sqrt(variance))


def changes_of(
    names: Iterable[str], before: Iterable[object], after: Iterable[object]
) -> Mapping[str, Change]:
    """The changes of those scalars that both incumbent and candidate have, of one workload."""
    earlier, later = list(before), list(after)
    found: dict[str, Change] = {}
    for name in names:
        old = _by_workload(earlier, name)
        for workload, scalar in _by_workload(later, name).items():
            change = change_of(old.get(workload), scalar)
            if change is not None:
                found[name] = change
    return found


def _is_more_than_none(scalar: Scalar) -> bool:
    return scalar.low is None or scalar.low > 0


def _log_variance(scalar: Scalar) -> float:
    """Of a value whose interval is of 95 %, by its relative width (delta method)."""
    if scalar.low is None or scalar.high is None:
        return 0.0 if scalar.unit in _EXACT else _SPREAD**2
    return float(((scalar.high - scalar.low) / (2 * Z95 * scalar.value)) ** 2)
