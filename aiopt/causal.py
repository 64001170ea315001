"""What causal and off-CPU profiles say of a campaign: the seed's fitness, where the opportunity is,
and how good the predictions were.

None of it is part of a verdict or of the default fitness. "Little causal potential left" is a
hypothesis about the code, never a gain.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Literal

from attrs import field, frozen

from aiopt.events import EvidenceCaptured, MechanismChecked, Scalar
from aiopt.evidence import latest
from aiopt.stats import Z95

__all__ = [
    "Credit",
    "CreditSummary",
    "Headroom",
    "SeedCausal",
    "SeedWeights",
    "Signals",
    "credit_of",
    "headroom",
    "seed_causal",
    "signal_errors",
    "signals_of",
    "summarise",
]

_LINE = re.compile(r"^slope\[(?P<line>.+),(?P<point>[^,\]]+)\]$")
_CURVE = re.compile(r"^delta\[(?P<line>.+),(?P<point>[^,\]]+),(?P<percent>[0-9]+)\]$")
_OFF_CPU = tuple(f"off_cpu_ms[{kind}]" for kind in "ILB")
_WORTH = 0.05
"""An upper bound below this leaves nothing worth looking for."""


# ---- the seed's formula, bounded ----


@frozen(kw_only=True)
class SeedWeights:
    """The weights of the seed document; they need not add up to 1."""

    throughput: float = 0.30
    latency: float = 0.20
    causal: float = 0.30
    off_cpu: float = 0.20


@frozen(kw_only=True)
class Signals:
    """What `seed_causal` is made of. None: not measured."""

    throughput: float | None = None
    """Ratio to the baseline, from pairs; above 1 is more."""
    latency: float | None = None
    """Ratio of tail latencies to the baseline's, from pairs; below 1 is faster."""
    causal: float | None = None
    """The largest program speed-up that a causal profile promises for any line, in [0, 1]."""
    off_cpu: float | None = None
    """Milliseconds of I/O, lock and other waiting in a profiled run (classes I, L and B)."""


@frozen(kw_only=True)
class SeedCausal:
    """A score of which the baseline's is exactly 1, and what it is made of."""

    value: float
    terms: Mapping[str, float]
    missing: tuple[str, ...]
    """Terms that could not be computed; the weights of the others were scaled up."""


def seed_causal(
    candidate: Signals, baseline: Signals, weights: SeedWeights = SeedWeights()
) -> SeedCausal | None:
    """The seed document's `causal_fitness` with its faults bounded; None without any term.

    Each term is a ratio to what was *measured* of the baseline: T/T0; p99_0/p99;
    (2 - M)/(2 - M0) for the largest promised speed-up M; r0/r for off-CPU milliseconds per unit of
    work, between 1/4 and 4. A term needs both sides. The seed instead took constants for the
    baseline, a percentage for M, 1 for whatever was missing and 100 for an off-CPU time of zero.

    It stays what it is: M measures how concentrated the remaining opportunity is, not a gain.
    """
    terms: dict[str, float] = {}
    if candidate.throughput is not None:
        terms["throughput"] = candidate.throughput
    if candidate.latency is not None and candidate.latency > 0:
        terms["latency"] = 1 / candidate.latency
    if candidate.causal is not None and baseline.causal is not None:
        now, before = (min(1.0, max(0.0, m)) for m in (candidate.causal, baseline.causal))
        terms["causal"] = (2 - now) / (2 - before)
    if candidate.off_cpu is not None and baseline.off_cpu is not None:
        now, before = max(0.0, candidate.off_cpu), max(0.0, baseline.off_cpu)
        ratio = before / now if now > 0 else math.inf if before > 0 else 1.0
        terms["off_cpu"] = min(4.0, max(0.25, ratio))
    weight = {name: getattr(weights, name) for name in terms}
    total = math.fsum(weight.values())
    if total <= 0:
        return None
    names = ("throughput", "latency", "causal", "off_cpu")
    return SeedCausal(
        value=math.fsum(weight[name] * terms[name] for name in terms) / total,
        terms=terms,
        missing=tuple(name for name in names if name not in terms and getattr(weights, name)),
    )


def signals_of(profiles: Sequence[object], workload: str) -> Signals:
    """What profilers add to the signals of one candidate: causal and off-CPU.

    Of each profiler what it said last; of several that know of waiting, one.
    """
    said = [answer for answer in latest(profiles) if answer.workload == workload]
    slopes = [slope.value for answer in said for _, _, slope in _slopes(answer)]
    waits = {
        answer.profiler: [answer.scalars[name].value for name in _OFF_CPU if name in answer.scalars]
        for answer in said
    }
    known = sorted(profiler for profiler, values in waits.items() if values)
    return Signals(
        causal=max(0.0, *slopes) if slopes else None,
        off_cpu=math.fsum(waits[known[0]]) if known else None,
    )


def signal_errors(profiles: Sequence[object], workload: str) -> Mapping[str, float]:
    """Standard errors of `causal` and `off_cpu` in `signals_of`, by those names; 0 for what a
    profiler gave without an interval.
    """
    said = [answer for answer in latest(profiles) if answer.workload == workload]
    slopes = [slope for answer in said for _, _, slope in _slopes(answer)]
    waits = {
        answer.profiler: [answer.scalars[name] for name in _OFF_CPU if name in answer.scalars]
        for answer in said
    }
    known = sorted(profiler for profiler, scalars in waits.items() if scalars)
    largest = max(slopes, key=lambda slope: slope.value, default=None)
    return {
        "causal": _error(largest) if largest is not None else 0.0,
        "off_cpu": math.hypot(*map(_error, waits[known[0]])) if known else 0.0,
    }


def _error(scalar: Scalar) -> float:
    return (
        0.0 if scalar.low is None or scalar.high is None else (scalar.high - scalar.low) / (2 * Z95)
    )


def _slopes(profile: EvidenceCaptured) -> Iterator[tuple[str, str, Scalar]]:
    """Lines and progress points of a causal profile, and the program speed-up that a line's own
    promises."""
    for name, scalar in profile.scalars.items():
        if match := _LINE.match(name):
            yield match["line"], match["point"], scalar


# ---- where it is worth looking ----


@frozen(kw_only=True)
class Headroom:
    """Between which bounds the largest gain from one line lies, as a share of the time saved.

    `low` says where effort pays; only `high` can say that little is left.
    """

    low: float
    high: float
    line: str
    """The line with the largest lower bound; empty if no line has a positive one."""

    @property
    def exhausted(self) -> bool:
        """Whether no line promises anything worth looking for."""
        return self.high < _WORTH


def headroom(profiles: Sequence[object]) -> Headroom | None:
    """Of all causal profiles of one candidate; None where there is none with intervals.

    Source: causal profiling, Curtsinger & Berger, SOSP'15; the bounds are ours.
    """
    lines = [
        (slope.low, slope.high, line)
        for profile in latest(profiles)
        for line, _, slope in _slopes(profile)
        if slope.low is not None and slope.high is not None
    ]
    if not lines:
        return None
    low, _, line = max(lines)
    high = min(1.0, max(0.0, *(high for _, high, _ in lines)))
    return Headroom(low=max(0.0, low), high=high, line=line if low > 0 else "")


# ---- how good the predictions were ----

CreditStatus = Literal[
    "confirmed", "exceeded", "fell_short", "other_cause", "absorbed", "no_effect"
]


@frozen(kw_only=True)
class Credit:
    """What a causal profile of the parent promised for a change, and what came of it.

    Shares of the time saved, with 95 % intervals: `predicted` is what the line's curve says for
    the speed-up that the patch gave to the line itself (its slope times that where it has no
    points), `realised` is from timing pairs alone.
    """

    line: str
    local_speedup: Scalar
    predicted: Scalar
    realised: Scalar
    status: CreditStatus
    """confirmed: the intervals meet and a gain was predicted. exceeded, fell_short: more or less
    came than was predicted. other_cause: faster, though this line promised nothing. absorbed:
    promised, and not faster, so the bottleneck moved. no_effect: nothing was promised and nothing
    came."""

    @property
    def ratio(self) -> float | None:
        """Realised over predicted; None where nothing was predicted."""
        return self.realised.value / self.predicted.value if self.predicted.value > 0 else None


def credit_of(check: MechanismChecked, realised: Scalar, parent: Sequence[object]) -> Credit | None:
    """The credit of one claim about a line; None where the parent's profile says nothing of it.

    `realised` is the share of the time saved, 1 - candidate/incumbent.
    """
    if check.change is None:
        return None
    promise = next(
        (
            _Promise(slope, _curve(profile, line, point))
            for profile in latest(parent)
            for line, point, slope in _slopes(profile)
            if line == check.claim.function or line.endswith(f"/{check.claim.function}")
        ),
        None,
    )
    if promise is None:
        return None
    local = Scalar(
        value=-math.expm1(check.change.value),
        unit="ratio",
        low=None if check.change.high is None else -math.expm1(check.change.high),
        high=None if check.change.low is None else -math.expm1(check.change.low),
    )
    speedups = [at for at in (local.low, local.value, local.high) if at is not None]
    bounds = [promise.at(speedup, end) for speedup in speedups for end in (_low, _high)]
    predicted = Scalar(
        value=promise.at(local.value, lambda scalar: scalar.value),
        unit="ratio",
        low=min(bounds),
        high=max(bounds),
    )
    return Credit(
        line=check.claim.function,
        local_speedup=local,
        predicted=predicted,
        realised=realised,
        status=_status(predicted, realised),
    )


@frozen
class _Promise:
    """What a causal profile says of a line, for any speed-up of the line."""

    slope: Scalar
    curve: tuple[tuple[float, Scalar], ...]
    """In the order of the speed-ups."""

    def at(self, speedup: float, number: Callable[[Scalar], float]) -> float:
        """This number of each scalar: on the curve, between its points; where it does not reach,
        by the slope.
        """
        points = [(0.0, 0.0), *((at, number(delta)) for at, delta in self.curve)]
        for (left, before), (right, after) in pairwise(points):
            if left <= speedup <= right:
                return before + (after - before) * (speedup - left) / (right - left)
        return number(self.slope) * speedup


def _low(scalar: Scalar) -> float:
    return scalar.value if scalar.low is None else scalar.low


def _high(scalar: Scalar) -> float:
    return scalar.value if scalar.high is None else scalar.high


def _curve(profile: EvidenceCaptured, line: str, point: str) -> tuple[tuple[float, Scalar], ...]:
    found = [
        (int(match["percent"]) / 100, scalar)
        for name, scalar in profile.scalars.items()
        if (match := _CURVE.match(name)) and (match["line"], match["point"]) == (line, point)
    ]
    return tuple(sorted((point for point in found if point[0] > 0), key=lambda point: point[0]))


def _status(predicted: Scalar, realised: Scalar) -> CreditStatus:
    promised = (predicted.low or 0.0) > 0
    came = (realised.low or 0.0) > 0
    if promised and came:
        if _meet(predicted, realised):
            return "confirmed"
        return "exceeded" if realised.value > predicted.value else "fell_short"
    if promised:
        return "confirmed" if _meet(predicted, realised) and realised.value > 0 else "absorbed"
    return "other_cause" if came else "no_effect"


def _meet(a: Scalar, b: Scalar) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.low <= b.high and b.low <= a.high


@frozen(kw_only=True)
class CreditSummary:
    """How good the predictions of causal profiles were on this target."""

    counts: Mapping[str, int] = field(factory=dict)
    median_ratio: float | None = None
    """Of realised over predicted, where something was predicted."""


def summarise(credits: Sequence[Credit]) -> CreditSummary:
    """Over a campaign."""
    counts: dict[str, int] = {}
    for credit in credits:
        counts[credit.status] = counts.get(credit.status, 0) + 1
    ratios = [ratio for credit in credits if (ratio := credit.ratio) is not None]
    return CreditSummary(counts=counts, median_ratio=median(ratios) if ratios else None)
