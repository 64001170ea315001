"""The few functions that a script or a notebook needs, synchronous; `aiopt` itself exports them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import anyio
from attrs import evolve

from aiopt import plugins
from aiopt.benchmark_output import result_of
from aiopt.campaign import Observer, open_campaign
from aiopt.columnar import Columns, Unprojectable
from aiopt.config import structure
from aiopt.errors import ConfigError, LogError, UnknownPluginError
from aiopt.events import CampaignStarted
from aiopt.ids import short_name
from aiopt.log import Log
from aiopt.metrics import FORMATS
from aiopt.projection import Projection
from aiopt.protocols import Failed, Inconclusive, ProfileResult
from aiopt.quick_rescore import LEAST, only_weights, quick_rescore
from aiopt.ranking import DEFAULT_FITNESS
from aiopt.rechoosing import Rechosen
from aiopt.rechoosing import rechoose as rechoose_campaign
from aiopt.replay import LogState, fold
from aiopt.rescoring import Rescored
from aiopt.rescoring import rescore as rescore_campaign
from aiopt.rule_changes import with_changes
from aiopt.settings import TRY, Settings
from aiopt.views import EvidenceRow, ParetoView, Summary, evidence_table, pareto_view, summary
from aiopt.weight_grid import WhatIf, grid_points
from aiopt.weight_grid import what_if as ask_everywhere

__all__ = [
    "columns",
    "load_state",
    "pareto",
    "parse",
    "profile",
    "rechoose",
    "rescore",
    "run",
    "what_if",
]

_LARGEST = 256 << 20
"""Bytes of benchmark output that are read."""
_RECORDINGS: Mapping[bytes, str] = {
    b"PERFILE2": "a recording of perf; `perf script -i FILE` prints what is read here (for offcpu "
    "with --ns --show-switch-events --show-lost-events)",
    b'\x04"M\x18': "compressed by LZ4, as memray does; `memray transform csv FILE` "
    "writes what is read here",
    b"\x1f\x8b": "compressed; unpack it with gunzip",
    b"\xfd7zXZ": "compressed; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it with unzstd",
}
"""What files of tools begin with that are not what their own programs print."""


def run(
    target: Path | str,
    *,
    results: Path | str = "results",
    settings: Settings | None = None,
    resume: str | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Run a campaign on the target in this folder to its end, and return its summary.

    `resume` is the stream of an unfinished campaign (its own settings are used); `observer` is
    called with every event after it was written. Not from within an event loop: there, use
    `open_campaign`.

    Raises:
        ConfigError: the target or the settings have problems.
        ConcurrentWriteError: another process is working on this log.
        BaselineFailed, IncumbentFailed, Unfit: nothing can be measured.
    """
    return anyio.run(
        partial(
            _run, Path(target), Path(results).absolute(), settings, resume=resume, observer=observer
        )
    )


async def _run(folder: Path, results: Path, settings: Settings | None, **options: Any) -> Summary:
    async with open_campaign(folder, results, settings, **options) as campaign:
        await campaign.run()
        return summary(campaign.state)


def profile(
    target: Path | str,
    *,
    profilers: Sequence[str],
    workload: str | None = None,
    results: Path | str = "results",
    settings: Settings | None = None,
    resume: str | None = None,
    observer: Observer | None = None,
) -> tuple[EvidenceRow, ...]:
    """What each of these profilers finds, in a run of its own, logged like everything else.

    Of the unmodified source, or of the incumbent of the campaign whose stream is `resume`; of the
    first workload, or of the one that is named. A profiler that cannot run here is a row, too, with
    the reason and the command that would change it. Not from within an event loop: there, use
    `open_campaign(…, profile_with=…)` and its `profile`.

    Raises:
        UnknownPluginError: there is no profiler of this name.
        ConfigError, ConcurrentWriteError, BaselineFailed: as `run`.
    """
    folder, home = Path(target), Path(results).absolute()

    async def work() -> tuple[EvidenceRow, ...]:
        async with open_campaign(
            folder,
            home,
            settings or Settings(proposer=TRY),
            resume=resume,
            observer=observer,
            profile_with=tuple(profilers),
        ) as campaign:
            experiment = await campaign.profile(workload)
            return evidence_table(experiment.profiles, experiment.facts)

    return anyio.run(work)


def parse(tool: str, files: Sequence[Path | str | BinaryIO]) -> ProfileResult:
    """A profile or benchmark output that you have, as the same typed result as in a campaign.

    `tool` is a profiler's name or a format of benchmark output. Several files are several runs,
    taken together.

    Raises:
        UnknownPluginError: there is no such profiler or format.
        OSError: a file cannot be opened.
    """
    reads = _reader(tool)
    with ExitStack() as opened:
        streams = [
            opened.enter_context(open(each, "rb")) if isinstance(each, Path | str) else each
            for each in files
        ]
        result = reads(streams)
        if isinstance(result, Failed | Inconclusive):
            for hint in filter(None, map(_recording, streams)):
                return evolve(result, reason=f"{result.reason}; the file is {hint}")
        return result


def _recording(file: BinaryIO) -> str | None:
    """What a file is that a tool keeps for itself, and what makes readable text of it."""
    if not file.seekable():
        return None
    file.seek(0)
    beginning = file.read(8)
    return next((hint for magic, hint in _RECORDINGS.items() if beginning.startswith(magic)), None)


def _reader(tool: str) -> Callable[[Sequence[BinaryIO]], ProfileResult]:
    try:
        profiler = plugins.load("profilers", tool).plugin
    except UnknownPluginError:
        if tool not in FORMATS:
            known = ", ".join((*(f.name for f in plugins.available("profilers")), *FORMATS))
            raise UnknownPluginError(f"{tool!r} is not known; there are {known}") from None
        return lambda files: result_of(
            tool, [file.read(_LARGEST).decode(errors="replace") for file in files]
        )
    read: Callable[[Sequence[BinaryIO]], ProfileResult] = profiler.parse
    return read


def load_state(log: Path | str) -> LogState:
    """The fold of a log, which may be growing meanwhile.

    Raises:
        LogError: there is none, or it is damaged.
    """
    with Log.open(log, readonly=True) as opened:
        return fold(opened.read())


def columns(log: Path | str) -> Columns:
    """The runs of a log as numpy arrays, one value a run, for tables and plots.

    They are kept in `projection/` beside the log, which may be deleted at any time. `columns[name]`
    is a metric (the median of its samples; NaN where it was not measured), `columns.experiments`
    has a record for each experiment; `to_pandas()`, `to_polars()` and `to_arrow()` make tables.

    Raises:
        LogError: there is no log, it is damaged, or no campaign has written it.
    """
    try:
        with Projection.open(log) as opened:
            return opened.whole()
    except Unprojectable as error:
        load_state(log)
        raise LogError(f"{log}: cannot be read by columns: {error}") from error


def rescore(
    log: Path | str,
    *,
    campaign: str | None = None,
    weights: Mapping[str, float] | None = None,
    rule: str | None = None,
    changes: Mapping[str, Any] | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
    complete: bool = False,
) -> Rescored:
    """What the same measurements would have led to under other weights, rules or parameters.

    See `aiopt.rescoring.rescore`. `campaign` is one such as cmp-0002; without it, the latest one.
    `changes` are parameters of the rule by name, such as `{"mei": 0.05, "layout.rotate": 0}`.
    `fitness` is what the ranking is by (see `aiopt.scoring`), `guards` what profilers must not have
    found more of; if `complete`, only those are ranked that have every signal with a weight.

    Raises:
        ConfigError: no such campaign, rule, parameter or metric.
        LogError: there is no log, or it is damaged.
    """

    def choose(streams: Sequence[str]) -> str:
        return _chosen(log, streams, campaign)

    if only_weights(rule=rule, changes=changes, fitness=fitness, guards=guards, complete=complete):
        quick = quick_rescore(Path(log), choose=choose, weights=weights)
        if quick is not None:
            return quick.whole()
    campaigns = load_state(log).campaigns
    found = campaigns[choose([*campaigns])]
    params = with_changes(found.params, changes) if changes else None
    return rescore_campaign(
        found,
        weights=weights,
        rule=rule,
        params=params,
        fitness=fitness,
        guards=guards,
        complete=complete,
    )


def what_if(
    log: Path | str,
    axes: Mapping[str, Sequence[float] | None] | Sequence[str],
    *,
    campaign: str | None = None,
    rule: str | None = None,
    changes: Mapping[str, Any] | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
    top: int = 5,
    progress: Callable[[int], None] = lambda done: None,
) -> WhatIf:
    """Which conclusions hold whatever the weights are; see `aiopt.weight_grid`.

    `axes` are the weights of each metric, of which every combination is a point, or names of
    metrics, whose weights are then all tenths that add up to 1. The rest is as in `rescore`; `top`
    is how many of the first candidates are compared with each other.

    Raises:
        ConfigError: as `rescore`; or there are too many points.
        LogError: there is no log, or it is damaged.
    """
    points = grid_points(axes if isinstance(axes, Mapping) else dict.fromkeys(axes))
    only = only_weights(rule=rule, changes=changes, fitness=fitness, guards=guards, complete=False)
    if only and Path(log).is_file() and Path(log).stat().st_size >= LEAST:

        def ask(weights: Mapping[str, float]) -> Rescored:
            return rescore(log, campaign=campaign, weights=weights)
    else:
        campaigns = load_state(log).campaigns
        found = campaigns[_chosen(log, [*campaigns], campaign)]
        params = with_changes(found.params, changes) if changes else None

        def ask(weights: Mapping[str, float]) -> Rescored:
            return rescore_campaign(
                found, weights=weights, rule=rule, params=params, fitness=fitness, guards=guards
            )

    return ask_everywhere(ask, points, top=top, progress=progress)


def pareto(
    log: Path | str, metrics: Sequence[str] = (), *, campaign: str | None = None
) -> ParetoView:
    """Which candidates are the best of something: the front over these metrics, or the primaries.

    Raises:
        ConfigError: no such campaign or metric.
        LogError: there is no log, or it is damaged.
    """
    campaigns = load_state(log).campaigns
    return pareto_view(campaigns[_chosen(log, [*campaigns], campaign)], metrics)


def rechoose(
    log: Path | str,
    *,
    campaign: str | None = None,
    strategy: str | None = None,
    options: Mapping[str, Any] | None = None,
    edges: Mapping[str, Sequence[float]] | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Rechosen:
    """What another strategy, seed or other parameters would have built on; see `aiopt.rechoosing`.

    `campaign` is one such as cmp-0002; without it, the latest one. `options` are the strategy's, as
    in `aiopt.toml`; what is not among them stays as it was, if the campaign's own is meant.
    `edges` are MAP-Elites' measures with the edges of their bins, `weights` those of a strategy
    that has any.

    Raises:
        ConfigError: no such campaign or option; or no strategy chose in it, since its patches were
        handed in.
        UnknownPluginError: no such strategy.
        LogError: there is no log, or it is damaged.
    """
    with Log.open(log, readonly=True) as opened:
        started = {
            recorded.stream: recorded.event
            for recorded in opened.read()
            if isinstance(recorded.event, CampaignStarted)
        }
        stream = _chosen(log, [*started], campaign)
        settings = structure(started[stream].config, Settings, "the log")
        if settings.proposer == TRY:
            problem = "its patches were handed in one at a time, so no strategy chose anything"
            raise ConfigError(str(log), [(stream, problem)])
        own = settings.strategies.get(settings.strategy, {})
        name = strategy or settings.strategy
        changed = {**(own if name == settings.strategy else {}), **(options or {})}
        if edges:
            changed["measures"] = [{"name": n, "edges": [*e]} for n, e in edges.items()]
        wanted = plugins.load("strategies", name, changed).plugin
        if weights and hasattr(wanted, "weights"):
            wanted = evolve(wanted, weights=dict(weights))
        return rechoose_campaign(
            opened.read(),
            stream,
            wanted,
            name=name,
            logged=plugins.load("strategies", settings.strategy, own).plugin,
            seed=seed,
        )


def _chosen(log: Path | str, streams: Sequence[str], campaign: str | None) -> str:
    """The campaign that is meant, by its stream or the short name of that, or the latest."""
    if not streams:
        raise ConfigError(str(log), [("", "there is no campaign in this log")])
    found = [stream for stream in streams if campaign in (None, stream, short_name(stream))]
    if not found:
        problem = f"{campaign!r} is not there; there are {', '.join(map(short_name, streams))}"
        raise ConfigError(str(log), [("campaign", problem)])
    return found[-1]
