"""Did a patch do what it says it does: the function that it claims to make cheaper, before and
after.

A candidate can be faster for another reason than its author thinks: layout, noise, or a change
elsewhere. So it may claim a function and a metric, and the profiles of incumbent and candidate are
compared in that function. What comes out stands beside the verdict and changes neither it nor any
fitness.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from attrs import frozen

from aiopt.events import Claim, Effect, MechanismChecked, Scalar
from aiopt.stats import wilson

__all__ = ["Profile", "check_claim", "cost_in", "matches"]

_PLACE = re.compile(r"\s*\((?P<place>[^()]*)\)$")
_CLONE = re.compile(
    r"(?:\.(?:constprop|isra|part|cold|lto_priv|llvm|clone|specialized)(?:\.[0-9]+)*)+$"
)
"""What gcc and LLVM append to the names of copies of a function that they made themselves."""
_MEMORY_UNITS = frozenset({"b", "kb", "kib", "mb", "mib", "gb", "gib", "bytes"})
_Z = 1.959963984540054
_SPREAD = 0.05
"""Relative standard deviation that is taken for a weight that is no count of samples: the same
program under the same profiler again. Instruction counts repeat better, allocations do not."""
_NONE_SEEN = 3.0
"""Where a function has no sample left, its expected number is below this with 95 % (rule of three:
Hanley & Lippman-Hand, JAMA 249 (1983) 1743)."""


@frozen(kw_only=True)
class Profile:
    """The folded stacks that one profiler took of one candidate."""

    profiler: str
    stacks: str
    unit: str

    @property
    def of_memory(self) -> bool:
        return self.unit in _MEMORY_UNITS

    @property
    def counted(self) -> bool:
        return self.unit == "samples"


@frozen
class _Cost:
    inside: float
    all: float

    @property
    def share(self) -> float:
        return self.inside / self.all if self.all > 0 else 0.0


def matches(frame: str, function: str) -> bool:
    """Whether a frame is of this function.

    Frames look like `name`, `name (file:line)`, `Class::name(args)` or `file:line`; a function may
    be claimed as `name`, by the end of a qualified name, as `file:name`, or by one line as
    `file:line`.
    """
    place = _PLACE.search(frame)
    name = frame[: place.start()] if place else frame
    file, colon, wanted = function.rpartition(":")
    if wanted.isdigit():  # a line, as causal profiles name them
        spot = place["place"] if place else frame
        return spot == function or spot.endswith(f"/{function}")
    if not colon or function.count("::"):
        file, wanted = "", function
    if file and not (place and place["place"].partition(":")[0].endswith(file)):
        return False
    name = _CLONE.sub("", name)
    bare = name.partition("(")[0].strip()
    return wanted in (name, bare) or bare.endswith((f".{wanted}", f"::{wanted}"))


def cost_in(stacks: str, function: str) -> tuple[float, float]:
    """The weight of all stacks that the function is in, and that of all stacks.

    Lines that are no `frames weight` are passed over.
    """
    inside = everything = 0.0
    seen: dict[str, bool] = {}
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        try:
            weight = float(number)
        except ValueError:
            continue
        if not stack or not math.isfinite(weight) or weight < 0:
            continue
        everything += weight
        for frame in stack.split(";"):
            if frame not in seen:
                seen[frame] = matches(frame, function)
            if seen[frame]:
                inside += weight
                break
    return inside, everything


def check_claim(
    claim: Claim,
    metric_unit: str,
    before: Iterable[Profile],
    after: Iterable[Profile],
    effects: Sequence[Effect],
) -> MechanismChecked:
    """Compare incumbent (`before`) and candidate (`after`) in the claimed function.

    The cost of the function per unit of work, inclusive of what it calls: where samples are
    counted, its share of them times the metric as the timing runs measured it (`effects` of the
    verdict), for how many samples a run yields is chance; else its weight in a run itself (bytes,
    instructions, microseconds). The change is the natural log of candidate over incumbent, below 0
    if the function became cheaper, with a 95 % interval. Of profilers that could tell, the first
    one that has seen the function does, and those that count samples come first.
    """
    memory = metric_unit.lower() in _MEMORY_UNITS
    later = {profile.profiler: profile for profile in after}
    pairs = [
        (profile, later[profile.profiler])
        for profile in before
        if profile.of_memory == memory and profile.profiler in later
    ]
    pairs.sort(key=lambda pair: not pair[0].counted)
    if not pairs:
        kind = "memory" if memory else "time"
        return _unmeasured(claim, f"no profiler of {kind} has seen both incumbent and candidate")
    effect = next((e for e in effects if e.metric == claim.metric and e.effect is not None), None)
    for earlier, now in pairs:
        first, second = (_Cost(*cost_in(p.stacks, claim.function)) for p in (earlier, now))
        if first.inside or second.inside:
            return _compared(claim, earlier, first, second, effect)
    names = ", ".join(profile.profiler for profile, _ in pairs)
    return MechanismChecked(
        claim=claim,
        profiler=names,
        status="not_seen",
        detail=f"{claim.function} is in no stack of {names}, before or after",
    )


def _unmeasured(claim: Claim, why: str) -> MechanismChecked:
    return MechanismChecked(claim=claim, profiler="", status="not_measured", detail=why)


def _compared(
    claim: Claim, profile: Profile, before: _Cost, after: _Cost, effect: Effect | None
) -> MechanismChecked:
    counted = profile.counted
    base = (before.share, after.share) if counted else (before.inside, after.inside)
    shares = [_share(cost, counted) for cost in (before, after)]
    if not all(base):
        return _appeared_or_gone(claim, profile, before, after, shares)
    change = math.log(base[1] / base[0])
    variance = sum(_log_variance(cost, counted) for cost in (before, after))
    scaled = ""
    if counted and effect is not None and effect.effect is not None:
        change -= effect.effect
        if effect.low is not None and effect.high is not None:
            variance += ((effect.high - effect.low) / (2 * _Z)) ** 2
        scaled = f" of {claim.metric}"
    reach = _Z * math.sqrt(variance)
    low, high = change - reach, change + reach
    status: Literal["confirmed", "opposite", "unchanged"] = (
        "confirmed" if high < 0 else "opposite" if low > 0 else "unchanged"
    )
    percent = [100 * math.expm1(value) for value in (change, low, high)]
    return MechanismChecked(
        claim=claim,
        profiler=profile.profiler,
        status=status,
        share_before=shares[0],
        share_after=shares[1],
        change=Scalar(value=change, unit="ln ratio", low=low, high=high),
        detail=(
            f"{claim.function}: {100 * before.share:.1f} % before, {100 * after.share:.1f} % "
            f"after; its cost{scaled} changed by {percent[0]:+.1f} % "
            f"[{percent[1]:+.1f}, {percent[2]:+.1f}]"
        ),
    )


def _appeared_or_gone(
    claim: Claim, profile: Profile, before: _Cost, after: _Cost, shares: list[Scalar]
) -> MechanismChecked:
    """One side has not seen the function: a limit is known there, not a ratio."""
    gone = after.inside == 0
    there, other = (before, after) if gone else (after, before)
    limit = _NONE_SEEN / other.all if profile.counted and other.all else 0.0
    clear = there.share * (1 - _Z * math.sqrt(_log_variance(there, profile.counted)))
    status: Literal["confirmed", "opposite", "unchanged"] = "unchanged"
    if clear > limit:
        status = "confirmed" if gone else "opposite"
    return MechanismChecked(
        claim=claim,
        profiler=profile.profiler,
        status=status,
        share_before=shares[0],
        share_after=shares[1],
        detail=(
            f"{claim.function}: {100 * before.share:.1f} % before, {100 * after.share:.1f} % "
            f"after; {'no longer' if gone else 'not'} seen {'' if gone else 'before '}"
            f"(below {100 * limit:.1f} %)"
        ),
    )


def _log_variance(cost: _Cost, counted: bool) -> float:
    """Of the log of a share: binomial where samples are counted (delta method)."""
    return (1 - cost.share) / cost.inside if counted else _SPREAD**2


def _share(cost: _Cost, counted: bool) -> Scalar:
    low, high = wilson(cost.share, cost.all) if counted and cost.all > 0 else (None, None)
    return Scalar(value=cost.share, unit="ratio", low=low, high=high)
