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
from functools import lru_cache
from typing import Literal

from attrs import frozen

from aiopt.events import Claim, Effect, MechanismChecked, Scalar
from aiopt.stats import Z95, wilson

__all__ = ["Profile", "check_claim", "cost_in", "is_line", "matches"]

_PLACE = re.compile(r"\s*\((?P<place>[^()]*)\)$")
_LINE = re.compile(r"[^:]+:[0-9]+")
_IN_FILE = re.compile(r"(?P<file>[^:\s]+):(?!:)(?P<name>.+)")
_COPY = re.compile(
    r"(?: \[clone [^\]]*\]|'[0-9]+|@plt"
    r"|\.(?:constprop|isra|part|cold|lto_priv|llvm|clone|specialized)(?:\.[0-9]+)*)+$"
)
"""What gcc and LLVM append to the names of copies of a function that they made themselves, and
callgrind to those of a function that calls itself."""
_OPERATOR = re.compile(r"\boperator(?:<=>|<<=?|>>=?|->\*?|[<>]=?|\(\))")
_GO_METHOD = re.compile(r"\(\*?(\w+)\)\.")
_SAFE = str.maketrans("<>()", "\x01\x02\x03\x04")
_MEMORY_UNITS = frozenset({"b", "kb", "kib", "mb", "mib", "gb", "gib", "bytes"})
_SPREADS = {"instructions": 0.01, "us": 0.1}
_SPREAD = 0.05
"""Relative standard deviation that is taken for a weight that is no count of samples, by its unit:
the same program under the same profiler again. Instruction counts repeat well, waiting does not."""
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


def is_line(function: str) -> bool:
    """Whether a claim is about one line, `file:line`, as causal profiles name places."""
    return _LINE.fullmatch(function) is not None


def matches(frame: str, function: str) -> bool:
    """Whether a frame is of this function.

    Frames look like `name`, `name (file:line)`, `Class::name(args)` or `file:line`; a function may
    be claimed as `name`, by the end of a qualified name, as `file:name`, or by one line as
    `file:line`. Arguments, template arguments and the type that is returned do not count.
    """
    found = _PLACE.search(frame)
    name, place = (frame[: found.start()], found["place"]) if found else (frame, "")
    if is_line(function):
        return _is_file(place or frame, function)
    file, wanted = "", function
    if in_file := _IN_FILE.fullmatch(function):
        file, wanted = in_file["file"], in_file["name"]
    if file and not _is_file(place.partition(":")[0], file):
        return False
    bare, wanted = _bare(name), _bare(wanted)
    return bare == wanted or bare.endswith((f".{wanted}", f"::{wanted}"))


def _is_file(path: str, end: str) -> bool:
    return path == end or path.endswith(f"/{end}")


@lru_cache(maxsize=64)  # the claimed name is compared with every frame
def _bare(name: str) -> str:
    """A qualified name without what else demanglers print: `a::b` of `int a::b<c>(d) const`."""
    name = _COPY.sub("", name).replace("(anonymous namespace)", "{anonymous}")
    name = _GO_METHOD.sub(r"\1.", name)
    name = _OPERATOR.sub(lambda found: found[0].translate(_SAFE), name)
    kept, depth = "", 0
    for char in name:
        if char == "<" and (depth or not kept.endswith(".")):
            depth += 1
        elif char == ">" and depth:
            depth -= 1
        elif not depth:
            kept += char
    kept = kept if kept.strip() else name  # Python's <lambda> and <module>
    kept = kept.partition("(")[0].strip()
    before, operator, after = kept.rpartition("operator ")
    return before.rpartition(" ")[2] + operator + after if operator else kept.rpartition(" ")[2]


def cost_in(stacks: str, *functions: str) -> tuple[float, float]:
    """The weight of all stacks that one of the functions is in, and that of all stacks.

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
                seen[frame] = any(matches(frame, function) for function in functions)
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
    lines_after: Sequence[str] | None = None,
) -> MechanismChecked:
    """Compare incumbent (`before`) and candidate (`after`) in the claimed function.

    The cost of the function per unit of work, inclusive of what it calls: where samples are
    counted, its share of them times the CPU time as the timing runs measured it (`effects` of the
    verdict), for how many samples a run yields is chance; without such a metric, their number;
    else its weight in a run itself (bytes, instructions, microseconds). The change is the natural
    log of candidate over incumbent, below 0 if the function became cheaper, with a 95 % interval.
    Of profilers that have seen the function, the one that can tell its change most precisely does.

    A patch moves lines: of a claim about a `file:line`, `lines_after` says which lines of the
    candidate came of it (see `moved_lines`).
    """
    memory = metric_unit.lower() in _MEMORY_UNITS
    later = {profile.profiler: profile for profile in after}
    pairs = [
        (profile, later[profile.profiler])
        for profile in before
        if profile.of_memory == memory and profile.profiler in later
    ]
    if "cpu" in claim.metric:  # waiting says nothing of it
        pairs = [pair for pair in pairs if pair[0].unit != "us"] or pairs
    if not pairs:
        kind = "memory" if memory else "time"
        return _unmeasured(claim, f"no profiler of {kind} has seen both incumbent and candidate")
    if is_line(claim.function) and lines_after is None:
        return _unmeasured(claim, "a line cannot be followed through this change")
    names_after = (claim.function,) if lines_after is None else lines_after
    compared = [
        (
            profile,
            _Cost(*cost_in(profile.stacks, claim.function)),
            _Cost(*cost_in(now.stacks, *names_after)),
        )
        for profile, now in pairs
    ]
    seen = [each for each in compared if each[1].inside or each[2].inside]
    if seen:
        return _compared(claim, *min(seen, key=_vagueness), _cpu_effect(claim, effects))
    names = ", ".join(profile.profiler for profile, _ in pairs)
    return MechanismChecked(
        claim=claim,
        profiler=names,
        status="not_seen",
        detail=f"{claim.function} is in no stack of {names}, before or after",
    )


def _cpu_effect(claim: Claim, effects: Sequence[Effect]) -> Effect | None:
    """What samples on the CPU are in proportion to; not so the wall time, of which they may be a
    small part, nor its quantiles."""
    known = [each for each in effects if "cpu" in each.metric and each.effect is not None]
    return next((e for e in known if e.metric == claim.metric), known[0] if known else None)


def _vagueness(compared: tuple[Profile, _Cost, _Cost]) -> float:
    profile, before, after = compared
    return _log_variance(before if before.inside else after, profile)


def _unmeasured(claim: Claim, why: str) -> MechanismChecked:
    return MechanismChecked(claim=claim, profiler="", status="not_measured", detail=why)


def _compared(
    claim: Claim, profile: Profile, before: _Cost, after: _Cost, effect: Effect | None
) -> MechanismChecked:
    shares = [_share(cost, profile.counted) for cost in (before, after)]
    if not (before.inside and after.inside):
        return _appeared_or_gone(claim, profile, before, after, shares)
    change = math.log(after.inside / before.inside)
    variance = sum(_log_variance(cost, profile) for cost in (before, after))
    scaled = ""
    if profile.counted and effect is not None and effect.effect is not None:
        change = math.log(after.share / before.share) - effect.effect
        if effect.low is not None and effect.high is not None:
            variance += ((effect.high - effect.low) / (2 * Z95)) ** 2
        scaled = f" of {effect.metric}"
    elif profile.counted:
        variance = 1 / before.inside + 1 / after.inside + 2 * _SPREAD**2
    reach = Z95 * math.sqrt(variance)
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
    clear = there.share * (1 - Z95 * math.sqrt(_log_variance(there, profile)))
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


def _log_variance(cost: _Cost, profile: Profile) -> float:
    """Of the log of a share: binomial where samples are counted (delta method)."""
    if profile.counted:
        return (1 - cost.share) / cost.inside
    return float(_SPREADS.get(profile.unit, _SPREAD) ** 2)


def _share(cost: _Cost, counted: bool) -> Scalar:
    low, high = wilson(cost.share, cost.all) if counted and cost.all > 0 else (None, None)
    return Scalar(value=cost.share, unit="ratio", low=low, high=high)
