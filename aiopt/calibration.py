"""What the calibration's pairs say of this machine: per objective and guard, a plan and warnings.

Calibration compares the incumbent with itself (and with neutral rebuilds of itself, where the
target can make them), so whatever differs is noise. Nothing here is kept between calls: verdicts
are made from the pairs, and what is logged as `CalibrationMeasured` is for people.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from attrs import frozen

from aiopt.events import (
    CalibrationFailed,
    CalibrationMeasured,
    Event,
    LayoutBuilt,
    PairPurpose,
)
from aiopt.pairs import (
    Pair,
    composite,
    differences,
    log_costs,
    needs,
    pairs_by_purpose,
    rounded,
    ten_digits,
)
from aiopt.planning import (
    Noise,
    Plan,
    layout_sd,
    noise_of,
    pairs_to_prove,
    plan_guard,
    plan_stages,
    sd_of_pairs,
)
from aiopt.rules import NeedsMore, Objective, RuleParams
from aiopt.sequential import Stage, take
from aiopt.stats import mad_sd, percent, smallest_n

__all__ = [
    "REFRESH_PAIRS",
    "Calibrated",
    "CalibrationOutcome",
    "Measured",
    "calibrate",
    "calibration_of",
    "calibration_pairs",
    "guard_plan",
    "guard_spread",
    "missing_calibration",
    "needs_anew",
]

Measured = Mapping[tuple[PairPurpose, str], Sequence[Pair]]
"""Valid pairs by purpose and workload."""

CalibrationOutcome = tuple[CalibrationMeasured, ...] | CalibrationFailed

ORDER_EFFECT_P = 0.001
FIRST_LOOK = 4
REFRESH_PAIRS = 50
_AUTOCORRELATED = 0.5
_LAYOUT_P = 0.01


@frozen
class Calibrated:
    """One objective: how noisy its pairs are, and the plan that follows."""

    objective: Objective
    sd_pair: float
    plan: Plan
    delta0: float
    """The margin in force."""
    alpha1: float
    """Its share of the screen's level."""
    d: tuple[float, ...]
    """Log ratios of its pairs."""

    @property
    def screen(self) -> Stage:
        return Stage(
            n=self.plan.n1,
            alpha=self.alpha1,
            first=FIRST_LOOK,
            delta0=self.delta0,
            mei=self.plan.mei_eff,
            sd_pair=self.sd_pair,
        )


@frozen
class _Diagnosed:
    """An objective, and what its calibration pairs say of machine and workload."""

    calibrated: Calibrated
    noise: Noise
    layout_sd: float | None
    layout_passes: bool
    """Whether neutral rebuilds would pass the screen, although they change nothing."""
    layout_p: float
    """Of the Kruskal-Wallis test that they do not differ."""

    @property
    def name(self) -> str:
        objective = self.calibrated.objective
        return f"{objective.metric} ({objective.workload})"


def missing_calibration(params: RuleParams, measured: Measured) -> NeedsMore | None:
    """Calibration pairs that are missing; None if all are there."""
    wanted: tuple[tuple[PairPurpose, Mapping[str, int]], ...] = (
        ("calibration", {name: params.calibration_pairs(name) for name in params.workloads}),
        ("layout", dict.fromkeys(params.main, params.layout.rotate * params.layout.pairs)),
    )
    for purpose, numbers in wanted:
        have = {workload: measured.get((purpose, workload), ()) for workload in numbers}
        missing = needs(purpose, numbers, have)
        if missing is not None:
            return missing
    return None


def calibration_pairs(params: RuleParams, measured: Measured, workload: str) -> Sequence[Pair]:
    """Those that count, however many there are."""
    pairs = measured.get(("calibration", workload), ())
    return pairs[: params.calibration_pairs(workload)]


def calibrate(params: RuleParams, measured: Measured) -> Mapping[tuple[str, str], Calibrated]:
    """The plan of each objective, by its key. All calibration pairs must be there."""
    found: dict[tuple[str, str], Calibrated] = {}
    delta0 = params.delta0 if params.layout.rotate else max(params.delta0, params.layout.floor)
    for objective in params.objectives:
        pairs = calibration_pairs(params, measured, objective.workload)
        d = composite(pairs, objective.weights, params)
        if d is None:
            continue
        plan = _plan(params, d, delta0)
        alpha1 = params.alpha1 / len(params.objectives)
        found[objective.key] = Calibrated(objective, sd_of_pairs(d), plan, delta0, alpha1, tuple(d))
    return found


def _plan(params: RuleParams, d: Sequence[float], delta0: float) -> Plan:
    """Every objective has its share of the levels."""
    shared = len(params.objectives)
    return plan_stages(
        d,
        mei=params.mei,
        delta0=delta0,
        alpha1=params.alpha1 / shared,
        alpha2=params.confirm_level / shared,
        power=params.power,
        cap=params.cap,
        boot=params.boot,
    )


def _diagnosed(params: RuleParams, measured: Measured, calibrated: Calibrated) -> _Diagnosed:
    objective = calibrated.objective
    pairs = calibration_pairs(params, measured, objective.workload)
    noise = noise_of(calibrated.d, *_in_time(params, objective, pairs))
    layout = measured.get(("layout", objective.workload), ())
    rebuilt = composite(layout, objective.weights, params) if params.layout.rotate else None
    if not rebuilt:
        return _Diagnosed(calibrated, noise, None, False, 1.0)
    groups = _by_rebuild(params, rebuilt)
    sd = layout_sd([median(group) for group in groups], noise.sd_pair, params.layout.pairs)
    passes = take(calibrated.screen, rebuilt).passed
    return _Diagnosed(calibrated, noise, sd, passes, _kruskal_p(groups))


def _kruskal_p(groups: Sequence[Sequence[float]]) -> float:
    # scipy.stats takes a second to import, and only compiled targets need it
    from scipy.stats import kruskal  # type: ignore[import-untyped]

    if len({x for group in groups for x in group}) < 2:
        return 1.0
    return float(kruskal(*groups).pvalue)


def _by_rebuild(params: RuleParams, d: Sequence[float]) -> list[Sequence[float]]:
    """Pair i of the purpose `layout` was against rebuild i mod K."""
    return [d[k :: params.layout.rotate] for k in range(params.layout.rotate)]


def _in_time(
    params: RuleParams, objective: Objective, pairs: Sequence[Pair]
) -> tuple[list[bool | None], list[float]]:
    """Whether the first run of each pair was the slower one, and ln(cost) of every run in time."""
    slower: list[bool | None] = []
    in_time: list[float] = []
    costs = log_costs(pairs, objective.weights, params) or ([], [])
    for pair, a, b in zip(pairs, *costs, strict=True):
        first, second = (a, b) if pair.a.position == 1 else (b, a)
        slower.append(None if first == second else first > second)
        in_time += [first, second]
    return slower, in_time


# ---- guards ----


def guard_spread(
    params: RuleParams, measured: Measured, metric: str, workload: str
) -> float | None:
    """Robust standard deviation of a metric's log ratio when nothing changes; None: not known."""
    pairs = calibration_pairs(params, measured, workload)
    d = differences(pairs, metric, params.metrics[metric].direction)
    return mad_sd(d) if d else None


def guard_plan(
    params: RuleParams, measured: Measured, metric: str, workload: str, margin: float, cap: int
) -> tuple[int, bool]:
    """Pairs of the first look at a guard, and whether those would show that it holds."""
    pairs = calibration_pairs(params, measured, workload)
    d = differences(pairs, metric, params.metrics[metric].direction)
    least = smallest_n(params.guard_first)
    if not d:
        return least, True
    n, reached = plan_guard(
        d,
        margin=math.log1p(margin),
        alpha=params.guard_first,
        power=params.power,
        cap=cap,
        boot=params.boot,
    )
    return max(least, n), reached


# ---- what is logged ----


def calibration_of(params: RuleParams, events: Sequence[Event]) -> CalibrationOutcome | NeedsMore:
    """What the calibration found, for people; or why nothing can be judged on this machine."""
    programs = _programs(params, events)
    if len(programs) == 1 < len(programs[0]):
        return CalibrationFailed(
            cause="layout",
            detail=f"all {len(programs[0])} rebuilds are the same program, byte for byte: the "
            "build ignores the variable of [layout], or what it does with it changes nothing",
        )
    measured = pairs_by_purpose(events)
    missing = missing_calibration(params, measured)
    if missing is not None:
        return missing
    found = [_diagnosed(params, measured, each) for each in calibrate(params, measured).values()]
    failure = _failure(found)
    if failure is not None:
        return failure
    same = tuple(_same_programs(programs))
    return (*(_reported(params, each, same) for each in found), *_guards(params, measured))


def _programs(params: RuleParams, events: Sequence[Event]) -> list[list[int]]:
    """The rebuilds, those together that are the same program; none if not all of them are there,
    or if the target does not say what its program is.
    """
    digests = {e.layout: e.digest for e in events if isinstance(e, LayoutBuilt) and e.digest}
    if not params.layout.rotate or len(digests) < params.layout.rotate:
        return []
    alike: dict[str, list[int]] = {}
    for layout, digest in sorted(digests.items()):
        alike.setdefault(digest, []).append(layout)
    return list(alike.values())


def _same_programs(programs: Sequence[Sequence[int]]) -> Iterator[str]:
    for layouts in programs:
        if len(layouts) > 1:
            names = ", ".join(map(str, layouts))
            yield f"the rebuilds {names} are the same program: there are {len(programs)} layouts"


def _failure(found: Sequence[_Diagnosed]) -> CalibrationFailed | None:
    if not found:
        detail = "no objective has a value in every calibration pair"
        return CalibrationFailed(cause="noise", detail=detail)
    for each in found:
        if each.noise.order_effect_p <= ORDER_EFFECT_P:
            return CalibrationFailed(
                cause="order_effect",
                detail=f"{each.name}: whichever run of a pair comes first is systematically faster "
                f"or slower (p = {each.noise.order_effect_p:.2g}), so runs influence each other: "
                "look for state that survives a run (files, caches, a process that is busy)",
            )
    if not any(each.calibrated.plan.reached for each in found):
        quietest = min(found, key=lambda each: each.noise.sd_pair)
        return CalibrationFailed(
            cause="noise",
            detail=f"two runs of the same program differ by {quietest.noise.sd_pair:.0%} and more, "
            "so no effect can be proved here: take a quieter machine or metric (CPU time), or a "
            "longer workload",
        )
    return None


def _reported(
    params: RuleParams, each: _Diagnosed, same_programs: tuple[str, ...]
) -> CalibrationMeasured:
    calibrated, noise = each.calibrated, each.noise
    plan = calibrated.plan
    return CalibrationMeasured(
        workload=calibrated.objective.workload,
        metric=calibrated.objective.metric,
        pairs=noise.pairs,
        sd_pair=ten_digits(noise.sd_pair),
        delta0=ten_digits(calibrated.delta0),
        mei_eff=ten_digits(plan.mei_eff),
        n1=plan.n1,
        n2=plan.n2,
        pairs_for_mei=pairs_to_prove(plan, params.mei, calibrated.delta0),
        autocorrelation=ten_digits(noise.autocorrelation),
        order_effect_p=ten_digits(noise.order_effect_p),
        layout_sd=rounded(each.layout_sd),
        warnings=(*_warnings(params, each), *same_programs),
    )


def _warnings(params: RuleParams, each: _Diagnosed) -> Iterator[str]:
    plan, noise = each.calibrated.plan, each.noise
    if not plan.reached:
        yield "too noisy for any proof"
    elif plan.mei_eff > params.mei:
        yield f"effects below {percent(plan.mei_eff):.1%} cannot be proved"
    if not noise.warmed_up:
        yield "the first three runs differ from the rest: warm up inside the workload"
    if noise.autocorrelation > _AUTOCORRELATED:
        yield (
            f"runs resemble their neighbours (autocorrelation {noise.autocorrelation:.2f}): "
            "the machine drifts, and only comparisons side by side mean anything"
        )
    if each.layout_p <= _LAYOUT_P:
        # Two arms differ by two accidents, of which the rebuilds average out all but this.
        left = (each.layout_sd or 0.0) * math.sqrt(2 / params.layout.rotate)
        yield (
            f"neutral rebuilds differ (sd {each.layout_sd or 0:.1%}): rotating over "
            f"{params.layout.rotate} of them leaves {left:.1%}"
        )
    if each.layout_passes:
        yield (
            "neutral rebuilds pass the screen, which compares plain builds: candidates will pass "
            "it too that only the confirmation, in rotated layouts, finds to be no better"
        )


def _guards(params: RuleParams, measured: Measured) -> Sequence[CalibrationMeasured]:
    """Guard metrics, and primaries on guard workloads: how many pairs show that they hold."""
    found = []
    for name, metric in params.metrics.items():
        if metric.kind != "number" or metric.limit is not None:
            continue
        for workload, rule in params.workloads.items():
            if metric.role == "primary" and rule.guard:
                margin = rule.margin
            elif metric.role == "guard" and not rule.guard:
                margin = metric.margin
            else:
                continue
            pairs = calibration_pairs(params, measured, workload)
            if differences(pairs, name, metric.direction):
                found.append(_guard_reported(params, measured, name, workload, margin))
    return found


def _guard_reported(
    params: RuleParams, measured: Measured, metric: str, workload: str, margin: float
) -> CalibrationMeasured:
    pairs = calibration_pairs(params, measured, workload)
    rule = params.metrics[metric]
    d = differences(pairs, metric, rule.direction) or []
    objective = Objective(metric, workload, {metric: 1.0})
    noise = noise_of(d, *_in_time(params, objective, pairs))
    cap = 3 * params.cap
    n, reached = guard_plan(params, measured, metric, workload, margin, cap)
    warning = (
        f"too noisy to show within {cap} pairs that it is not worse by {margin:.0%}: candidates "
        "that only this guard holds back will be inconclusive; give it a wider margin"
    )
    return CalibrationMeasured(
        workload=workload,
        metric=metric,
        role="guard",
        pairs=len(d),
        sd_pair=ten_digits(noise.sd_pair),
        delta0=0.0,
        mei_eff=ten_digits(math.log1p(margin)),
        n1=0,
        n2=n,
        pairs_for_mei=n,
        autocorrelation=ten_digits(noise.autocorrelation),
        order_effect_p=ten_digits(noise.order_effect_p),
        warnings=() if reached else (warning,),
    )


# ---- later ----


def needs_anew(
    params: RuleParams,
    calibrated: Calibrated,
    residuals: Sequence[float],
) -> bool:
    """Whether the last 50 pairs are twice as noisy as the calibration was, or half,
    and another plan would follow from that.

    Args:
        params: of the rule.
        calibrated: what the calibration led to.
        residuals: log ratios since then, in order, each minus the estimate of its candidate and
            stage. Fewer than 50 say nothing.
    """
    if len(residuals) < REFRESH_PAIRS:
        return False
    ratio = sd_of_pairs(residuals[-REFRESH_PAIRS:]) / calibrated.sd_pair
    if 0.5 <= ratio <= 2:
        return False
    return _plan(params, [x * ratio for x in calibrated.d], calibrated.delta0) != calibrated.plan
