"""The README of a folder: hypothesis, how to repeat it, what to expect, and what was found."""

import math
from collections.abc import Iterator, Sequence

from aiopt.events import Effect, EvidenceCaptured, PairScheduled, ProfilerUnavailable
from aiopt.export.experiment import Experiment, middle
from aiopt.export.figures import delta, short
from aiopt.pairs import pairs_of
from aiopt.replay import CampaignState
from aiopt.target import Target

__all__ = ["readme"]


def readme(experiment: Experiment, target: Target, notes: Sequence[str]) -> str:
    """The text of the file; the notes say what the folder lacks."""
    campaign, started = experiment.campaign, experiment.started
    genome = ", ".join(patch.name for patch in started.genome) or "none"
    parts = [
        f"# {experiment.name}: {started.purpose} of {target.name} in {started.environment}",
        "",
        f"Campaign {campaign.stream}, patches: {genome}. "
        f"Base commit {campaign.started.base_commit}, measured tree {started.tree}, "
        f"incumbent tree {started.incumbent_tree}.",
        "",
        "## Hypothesis",
        "",
        " ".join(experiment.hypothesis.split()),
        "",
        "## How to reproduce",
        "",
        *_how_to(target, started.incumbent != started.candidate),
        *_of_layouts(experiment, target),
        "",
    ]
    if notes:
        parts += ["Beware:", "", *(f"- {note}." for note in notes), ""]
    parts += ["## Expected results", "", *_expected(experiment), ""]
    parts += ["## Actual results", "", *_actual(experiment), ""]
    return "\n".join(parts)


def _how_to(target: Target, compares: bool) -> Iterator[str]:
    first = target.main_workloads[0]
    every = " ".join(target.workloads)
    deploy = target.stages.deploy
    starts = " and starts the service" if deploy is not None and deploy.service else ""
    needs = "`sh`, `tar`, `git` or `patch`, `python3`, and whatever the target itself needs"
    if target.source.git is not None:
        needs += f"; the source is fetched from {target.source.git}"
    elif target.source.script is not None:
        needs += "; the source is fetched by the target's own script"
    yield f"In this folder, which may be copied anywhere. Needed: {needs}. aiopt is not."
    yield "The scripts run the patch as you, without the confinement that aiopt puts around it:"
    yield "read `diff.patch` first."
    yield ""
    yield "1. `./build.sh` puts the source into `work/source`, applies `diff.patch`, builds, tests"
    yield f"2. `./deploy.sh {first}` begins a run for that workload (one of: {every}){starts}"
    yield "3. `./workload.sh` runs it and prints its metrics"
    yield "4. `./collect.sh` prints what is measured from outside, if the target has such metrics"
    yield "5. `./teardown.sh` ends everything that was started (`./teardown.sh all` removes `work`)"
    yield ""
    yield "Steps 2 to 5 are one run; repeat them for more. Each script may be run again."
    if target.output.format != "lines":
        yield f"The output is in the format `{target.output.format}`."
    if compares:
        yield "`ARM=incumbent ./build.sh` and so on do the same with what this candidate was"
        yield "compared with, in `work-incumbent`; take turns, in the order of the pairs in"
        yield "`metrics.log`."


def _of_layouts(experiment: Experiment, target: Target) -> Iterator[str]:
    facts = experiment.state.facts
    seen = {e.layout for e in facts if isinstance(e, PairScheduled) and e.layout}
    if not seen or target.layout is None:
        return
    name, rotate = target.layout.variable, experiment.campaign.params.layout.rotate
    arms = "arm B alone" if experiment.started.purpose == "calibration" else "both arms alike"
    yield ""
    yield f"This is the plain build. Pairs that `metrics.log` marks with a layout (1 to {rotate})"
    yield f"were measured in that neutral rebuild, {arms}: the same source in another layout of"
    yield "its code, so that no accident of layout is taken for a gain. Such a rebuild is what"
    yield f"`{name}=1 ./build.sh` and so on make."


def _expected(experiment: Experiment) -> list[str]:
    lines = [
        f"Medians of one run on the machine of the measurement{_machine(experiment.campaign)}. "
        "Another machine gives other numbers; what should be the same is the change, within its "
        "interval, and every text that is compared.",
        "",
        *_header("workload", "metric", "unit", "incumbent", "candidate", "change", "runs"),
    ]
    rows = list(_medians(experiment))
    return [*lines, *rows] if rows else ["Nothing was measured."]


def _machine(campaign: CampaignState) -> str:
    observed = next(iter(campaign.environments.values()), None)
    if observed is None:
        return ""
    shown = ("cpu_model", "cpus_usable", "kernel", "governor")
    found = [str(observed.facts[name]) for name in shown if observed.facts.get(name)]
    return f" ({', '.join(found)})" if found else ""


def _medians(experiment: Experiment) -> Iterator[str]:
    params, spec = experiment.campaign.params, experiment.campaign.started.spec["metrics"]
    for workload in params.workloads:
        runs = experiment.runs(workload, "B")
        for name, metric in params.metrics.items():
            a, b = (experiment.value(name, workload, arm) for arm in ("A", "B"))
            if b is not None:
                unit = spec[name].get("unit", "")
                yield _line(workload, name, unit, short(a), short(b), delta(b, a), str(len(runs)))
            elif metric.kind == "digest" and runs:
                text = ", ".join(sorted({run.texts.get(name, "") for run in runs}))
                yield _line(workload, name, "", "", f"`{text[:80]}`", "", "")


def _actual(experiment: Experiment) -> Iterator[str]:
    yield from _pairs(experiment)
    yield from _effects(experiment)
    yield from _evidence(experiment)
    state = experiment.state
    if state.verdict is not None:
        yield (
            f"Decision: **{state.verdict.kind}** by {state.verdict.rule} "
            f"{state.verdict.rule_version}. Reason: {' '.join(state.verdict.reason.split())}."
        )
    elif state.outcome is not None:
        detail = " ".join(state.detail.split())
        yield f"Outcome: {state.outcome}{f', {detail}' if detail else ''}."
    else:
        yield "The experiment is not finished."


def _pairs(experiment: Experiment) -> Iterator[str]:
    metric, workload = experiment.deciding
    pairs = pairs_of(experiment.state.facts, experiment.purpose, workload)
    if experiment.purpose == "check" or not pairs:
        return
    yield f"`{metric}` of each run under `{workload}` (all others: `metrics.log`):"
    yield ""
    yield from _header("pair", "first", "incumbent", "candidate", "change")
    for pair in pairs:
        a, b = middle([pair.a], metric), middle([pair.b], metric)
        first = "incumbent" if pair.a.position == 1 else "candidate"
        yield _line(str(pair.a.index), first, short(a), short(b), delta(b, a))
    a, b = (experiment.value(metric, workload, arm) for arm in ("A", "B"))
    yield _line("median", "", short(a), short(b), delta(b, a))
    yield ""


def _effects(experiment: Experiment) -> Iterator[str]:
    effects = [effect for effect in experiment.effects if effect.effect is not None]
    if not effects:
        return
    yield (
        "Effects, as change of the metric itself (Hodges-Lehmann estimate over the pairs, "
        "95 % interval):"
    )
    yield ""
    yield from _header("workload", "metric", "role", "change", "interval", "pairs", "state")
    for effect in effects:
        change, interval = _changes(experiment.campaign, effect)
        pairs = str(effect.pairs)
        yield _line(
            effect.workload, effect.metric, effect.role, change, interval, pairs, effect.state
        )
    yield ""


def _changes(campaign: CampaignState, effect: Effect) -> tuple[str, str]:
    """An effect and its interval as changes of the metric, of which less may be better."""
    rule = campaign.params.metrics.get(effect.metric)
    sign = -1 if rule is None or rule.direction == "lower" else 1

    def change(value: float | None) -> str:
        return "unbounded" if value is None else f"{math.expm1(sign * value):+.2%}"

    low, high = (effect.low, effect.high) if sign > 0 else (effect.high, effect.low)
    return change(effect.effect), f"{change(low)} to {change(high)}"


def _evidence(experiment: Experiment) -> Iterator[str]:
    for event in experiment.others:
        if isinstance(event, EvidenceCaptured):
            found = ", ".join(
                f"{name} {short(scalar.value)} {scalar.unit}".rstrip()
                for name, scalar in sorted(event.scalars.items())
            )
            yield f"Evidence by {event.profiler} ({event.workload}): {found}."
        elif isinstance(event, ProfilerUnavailable):
            yield f"No evidence by {event.profiler}: {event.status}, {event.reason}."


def _header(*names: str) -> tuple[str, str]:
    return _line(*names), "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
