"""What profilers measured, as numbers for rankings: any scalar by its name, and how it changed.

A scalar is named `PROFILER:SCALAR`, such as `callgrind:instructions` or `offcpu:off_cpu_ms[L]`; no
metric has a colon in its name. Less of it is better: of time, instructions, bytes and shares.
"""

import math
from collections.abc import Iterable, Mapping

from attrs import frozen

from aiopt.events import EvidenceCaptured, Scalar

__all__ = ["Change", "change_of", "changes_of", "is_evidence", "scalar_of"]

_Z = 1.959963984540054


@frozen(kw_only=True)
class Change:
    """Natural log of incumbent over candidate: positive is less, and so better."""

    value: float
    se: float
    """Standard error; 0 where the profiler gives no interval."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - _Z * self.se

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + _Z * self.se


def is_evidence(name: str) -> bool:
    """Whether a name with a weight is that of a profiler's scalar, and not of a metric."""
    return ":" in name


def scalar_of(profiles: Iterable[object], name: str) -> Scalar | None:
    """The latest scalar of this name; None if no profiler has measured it."""
    profiler, _, scalar = name.partition(":")
    found = None
    for answer in profiles:
        if isinstance(answer, EvidenceCaptured) and answer.profiler == profiler:
            found = answer.scalars.get(scalar, found)
    return found


def change_of(before: Scalar | None, after: Scalar | None) -> Change | None:
    """None where a side is missing, and where a ratio says nothing: one side is zero."""
    if before is None or after is None:
        return None
    if before.value == after.value == 0:
        return Change(value=0.0, se=0.0)
    if before.value <= 0 or after.value <= 0:
        return None
    variance = _log_variance(before) + _log_variance(after)
    return Change(value=math.log(before.value / after.value), se=math.sqrt(variance))


def changes_of(
    names: Iterable[str], before: Iterable[object], after: Iterable[object]
) -> Mapping[str, Change]:
    """The changes of those scalars that both incumbent and candidate have."""
    earlier, later = list(before), list(after)
    found = {name: change_of(scalar_of(earlier, name), scalar_of(later, name)) for name in names}
    return {name: change for name, change in found.items() if change is not None}


def _log_variance(scalar: Scalar) -> float:
    """Of a value whose interval is of 95 %, by its relative width (delta method)."""
    if scalar.low is None or scalar.high is None:
        return 0.0
    return float(((scalar.high - scalar.low) / (2 * _Z * scalar.value)) ** 2)
