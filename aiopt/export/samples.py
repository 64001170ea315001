"""`metrics.log`: every run, in the order of measuring. All but `key=value` begins with #."""

from collections.abc import Iterator

from aiopt.events import GateFailed, MetricUnreadable, PairScheduled, PairVoided, RunMeasured
from aiopt.export.experiment import Experiment
from aiopt.export.figures import exact, short

__all__ = ["metrics_log"]


def metrics_log(experiment: Experiment) -> str:
    """The text of the file."""
    return "\n".join(_lines(experiment)) + "\n"


def _lines(experiment: Experiment) -> Iterator[str]:
    started = experiment.started
    yield f"# {experiment.name}: the raw samples of every run, in the order of measuring."
    yield "# Arm A is the incumbent, B the candidate. A key that is repeated within a run is a"
    yield "# metric with several samples."
    yield f"# candidate {started.candidate} tree {started.tree}"
    yield f"# incumbent {started.incumbent} tree {started.incumbent_tree}"
    for event in experiment.state.facts:
        match event:
            case PairScheduled():
                again = f" attempt {event.attempt + 1}" if event.attempt else ""
                yield ""
                layout = f" layout {event.layout}" if event.layout else ""
                yield f"# pair {_place(event)}{again} order {event.order}{layout}"
            case RunMeasured():
                if event.purpose == "check":  # no pair comes before it
                    yield ""
                yield f"# run {_place(event)} {event.arm}"
                for name, samples in sorted(event.metrics.items()):
                    yield from (f"{name}={exact(sample)}" for sample in samples)
                yield from (f"{name}={text}" for name, text in sorted(event.texts.items()))
                machine = (f"{n}:{short(value)}" for n, value in sorted(event.covariates.items()))
                yield "# machine: " + " ".join(machine)
            case PairVoided():
                yield f"# void: pair {_place(event)}: {_one_line(event.reason)}"
            case GateFailed():
                yield f"# failed: {event.gate}: {_one_line(event.detail)}"
            case _:
                pass
    for event in experiment.others:
        if isinstance(event, MetricUnreadable):
            where = f"{_place(event)} {event.arm}"
            yield f"# unreadable: {event.metric} in {where}: {_one_line(event.found)}"


def _place(event: PairScheduled | RunMeasured | PairVoided | MetricUnreadable) -> str:
    return f"{event.purpose} {event.workload} {event.index}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
