"""What a causal profile says of each line of code and progress point, as scalars and findings."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import frozen

from aiopt.events import Finding, Scalar

from ._coz_curve import Class, Curve, curve, discoveries
from ._coz_records import Profile

__all__ = ["Line", "lines_of", "short_names"]

_WARN_PHASE = 0.7
_ORDER: tuple[Class, ...] = ("opportunity", "contention", "negligible", "inconclusive")
_Z = 1.959963984540054
_BASE = re.compile(r"\(([^(),|]+),(0\.\d+|[01](?:\.0*)?)%\|\)$")
"""What BCOZ appends where it made something else faster, too: its number is a fraction."""

_Row = tuple[int, float, int, int]
"""Percent, cost, visits and selected samples of one experiment."""


@frozen(kw_only=True)
class Line:
    """A line of code seen from one progress point."""

    line: str
    point: str
    latency: bool
    curve: Curve
    phase: float | None
    work: Scalar | None
    kind: Class
    meaning: str = ""

    @property
    def rank(self) -> tuple[int, float, str, str]:
        return _ORDER.index(self.kind), -abs(self.curve.slope or 0.0), self.line, self.point

    def scalars(self) -> dict[str, Scalar]:
        """By name; of a line with too few experiments there is nothing but their number."""
        prefix = "latency_" if self.latency else ""
        where = f"[{self.line},{self.point}]"
        scalars = {f"{prefix}experiments{where}": self._experiments}
        found = self.curve
        if found.slope is None or found.too_few:
            return scalars
        scalars[f"{prefix}slope{where}"] = _slope(found)
        if self.work is not None and not self.latency:
            scalars[f"work_per_visit{where}"] = self.work
        numbers: dict[str, float | None] = {
            "area": found.area,
            "impact": found.impact,
            "max_speedup": found.max_speedup,
            "saturation": found.saturation,
            "phase_factor": self.phase,
            "p": min(found.p_better, found.p_worse),
        }
        for name, value in numbers.items():
            if value is not None:
                scalars[f"{prefix}{name}{where}"] = Scalar(value=value, unit="ratio")
        points = zip(found.percents, found.deltas, found.bounds, strict=True)
        for percent, delta, bounds in points:
            low, high = bounds or (None, None)
            scalars[f"{prefix}delta[{self.line},{self.point},{percent}]"] = Scalar(
                value=delta, unit="ratio", low=low, high=high
            )
        return scalars

    def finding(self) -> Finding:
        found = self.curve
        parts = [f"{'latency' if self.latency else 'throughput'} of {self.point}"]
        if self.meaning:
            parts.insert(0, self.meaning)
        if found.too_few:
            parts.append(f"too few: {found.too_few}")
        else:
            if self.kind == "inconclusive":
                parts.append("too wide")
            parts.append(f"p = {min(found.p_better, found.p_worse):.4f}")
            parts.append(f"at most {found.max_speedup:.1%} seen (biased upwards)")
        if self.kind == "opportunity" and found.saturation is not None:
            parts.append(f"90 % of it at a speed-up of {found.saturation:.0%}")
        if self.phase is not None:
            warning = ", so the whole run gains less" if self.phase < _WARN_PHASE else ""
            parts.append(f"phase factor {self.phase:.2f}{warning}")
        scalar = self._experiments if found.too_few else _slope(found)
        return Finding(where=self.line, what=self.kind, scalar=scalar, detail="; ".join(parts))

    @property
    def _experiments(self) -> Scalar:
        return Scalar(value=float(self.curve.baseline + self.curve.others), unit="experiments")


def _slope(found: Curve) -> Scalar:
    return Scalar(value=found.slope or 0.0, unit="ratio", low=found.low, high=found.high)


def lines_of(
    profile: Profile,
    name: Mapping[str, str],
    meaning: Callable[[str], str],
    *,
    seed: int,
    replicates: int,
    shuffles: int,
) -> list[Line]:
    """What every line and progress point says, most important first."""
    rows: dict[tuple[str, str, bool], list[_Row]] = {}
    for each in profile.experiments:
        for (point, latency), seen in each.points.items():
            row = (each.percent, seen.cost, seen.count, each.selected_samples)
            rows.setdefault((each.line, point, latency), []).append(row)
    curves = {
        key: curve([row[:3] for row in found], seed=seed, replicates=replicates, shuffles=shuffles)
        for key, found in rows.items()
    }
    level = discoveries(list(curves.values()))
    phases = _phases(profile)
    lines = [
        Line(
            line=name[line],
            point=point,
            latency=latency,
            curve=found,
            phase=phases.get(line),
            work=_work(rows[line, point, latency]),
            kind=found.classify(level),
            meaning=meaning(line),
        )
        for (line, point, latency), found in curves.items()
    ]
    return sorted(lines, key=lambda each: each.rank)


def _work(rows: Sequence[_Row]) -> Scalar | None:
    """Milliseconds in the line for each visit, in experiments without a speed-up.

    A ratio of two sums over experiments, with its standard error from those (Cochran, Sampling
    Techniques, 3rd ed., 1977, ch. 6).
    """
    seen = [(samples, visits) for percent, _, visits, samples in rows if percent == 0]
    visits = sum(count for _, count in seen)
    if not visits or len(seen) < 2:
        return None
    value = sum(samples for samples, _ in seen) / visits
    squares = math.fsum((samples - value * count) ** 2 for samples, count in seen)
    reach = _Z * math.sqrt(squares * len(seen) / (len(seen) - 1)) / visits
    return Scalar(value=value, unit="ms", low=max(0.0, value - reach), high=value + reach)


def _phases(profile: Profile) -> dict[str, float]:
    """By line: how much of the run its phase takes, at most 1, as far as samples tell.

    Its samples per time of the whole run, over those in its experiments without a speed-up.
    """
    selected: dict[str, tuple[int, int]] = {}
    for each in profile.experiments:
        if each.percent == 0:
            samples, duration = selected.get(each.line, (0, 0))
            selected[each.line] = samples + each.selected_samples, duration + each.duration
    factors = {}
    for line, (samples, duration) in selected.items():
        overall = profile.samples_in_runtime.get(line, 0)
        if samples and overall and profile.runtime:
            factors[line] = min(1.0, (overall / profile.runtime) / (samples / duration))
    return factors


def short_names(lines: Iterable[str]) -> dict[str, str]:
    """Short names, `file:line`; the whole path where two files have the same name."""
    parts = {line: _BASE.sub("", line) for line in lines}
    files: dict[str, set[str]] = {}
    for line in parts.values():
        path = line.rpartition(":")[0]
        files.setdefault(path.rpartition("/")[2], set()).add(path)
    names = {}
    for line, place in parts.items():
        unique = len(files[place.rpartition(":")[0].rpartition("/")[2]]) == 1
        name = place.rpartition("/")[2] if unique else place
        base = _BASE.search(line)
        names[line] = f"{name} ({base[1]} {float(base[2]):.0%} faster)" if base else name
    return names
