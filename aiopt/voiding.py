"""Which pairs do not count: those in which the machine was not itself, whatever was measured.

The rules look at covariates alone, never at a value, and at both runs of a pair alike, so what they
remove says nothing of the candidate. What is normal on this machine is what the calibration saw: a
rule that would have voided more than a fifth of its pairs is switched off for what follows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from attrs import evolve, frozen

from aiopt.pairs import Pair
from aiopt.rules import VoidRules

__all__ = ["WINDOW", "Void", "rules_in_force", "too_many", "void_of"]

Covariates = Mapping[str, float]

_TICKS_PER_SECOND = 100  # of /proc/stat: USER_HZ, which the kernel promises to user space
WINDOW = 25
_MOST = 0.2


@frozen
class Void:
    """Why a pair does not count."""

    rule: Literal["steal", "psi", "throttle"]
    detail: str


def void_of(rules: VoidRules, first: Covariates, second: Covariates) -> Void | None:
    """The rule that voids a pair, by the covariates of its two runs in the order of time."""
    for name, check in _CHECKS.items():
        detail = check(rules, first, second)
        if detail:
            return Void(name, detail)
    return None


def _steal(rules: VoidRules, first: Covariates, second: Covariates) -> str:
    for run in (first, second):
        seconds, cpus = run.get("run_seconds", 0.0), run.get("cpus", 1.0)
        stolen = run.get("steal_jiffies_delta", 0.0) / _TICKS_PER_SECOND
        if rules.steal and seconds > 0 and stolen > rules.steal * seconds * cpus:
            took = f"the hypervisor took {stolen / (seconds * cpus):.0%} of the processors' time"
            return f"{took}; at most {rules.steal:.0%}"
    return ""


def _psi(rules: VoidRules, first: Covariates, second: Covariates) -> str:
    """Before the pair only: a candidate with more threads raises it by itself."""
    waiting = first.get("psi_cpu_some_avg10", 0.0)
    if rules.psi and waiting > rules.psi:
        return (
            f"something waited for a processor {waiting:.0f} % of the time; at most {rules.psi:g} %"
        )
    return ""


def _throttle(rules: VoidRules, first: Covariates, second: Covariates) -> str:
    moved = any(run.get("throttle_count_delta", 0.0) > 0 for run in (first, second))
    return "the processor was throttled" if rules.throttle and moved else ""


_CHECKS: Mapping[
    Literal["steal", "psi", "throttle"], Callable[[VoidRules, Covariates, Covariates], str]
] = {
    "steal": _steal,
    "psi": _psi,
    "throttle": _throttle,
}


def rules_in_force(
    rules: VoidRules, calibration: Sequence[Pair]
) -> tuple[VoidRules, tuple[str, ...]]:
    """The rules for what follows a calibration, and what to tell the user of it."""
    off: dict[str, float | bool] = {}
    warnings = []
    for name, check in _CHECKS.items():
        voided = sum(1 for pair in calibration if check(rules, *_in_time(pair)))
        if calibration and voided > _MOST * len(calibration):
            off[name] = False if name == "throttle" else 0.0
            warnings.append(
                f"the rule {name} would void {voided} of {len(calibration)} calibration pairs, so "
                "it is off: this machine is never quiet, and its noise is in the plan"
            )
    return evolve(rules, **off), tuple(warnings)  # type: ignore[arg-type]


def _in_time(pair: Pair) -> tuple[Covariates, Covariates]:
    runs = sorted((pair.a, pair.b), key=lambda run: run.position)
    return runs[0].covariates, runs[1].covariates


def too_many(voided: Sequence[bool]) -> bool:
    """Whether more than a fifth of the last 25 scheduled pairs were voided by the machine."""
    return sum(voided[-WINDOW:]) > _MOST * WINDOW
