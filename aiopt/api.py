"""The few functions that a script or a notebook needs, synchronous; `aiopt` itself exports them."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from attrs import fields, has

from aiopt.campaign import Observer, open_campaign
from aiopt.config import unstructure
from aiopt.errors import ConfigError
from aiopt.log import Log
from aiopt.replay import DEFAULT_FITNESS, LogState, Rescored, fold
from aiopt.replay import rescore as rescore_campaign
from aiopt.rules import RuleParams, params_from
from aiopt.settings import Settings
from aiopt.views import Summary, summary

__all__ = ["load_state", "merged", "rescore", "rule_parameters", "run", "with_changes"]


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


def load_state(log: Path | str) -> LogState:
    """The fold of a log, which may be growing meanwhile.

    Raises:
        LogError: there is none, or it is damaged.
    """
    with Log.open(log, readonly=True) as opened:
        return fold(opened.read())


def rescore(
    log: Path | str,
    *,
    campaign: str | None = None,
    weights: Mapping[str, float] | None = None,
    rule: str | None = None,
    changes: Mapping[str, Any] | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
) -> Rescored:
    """What the same measurements would have led to under other weights, rules or parameters.

    See `aiopt.replay.rescore`. `campaign` is a stream; without it, the latest one. `changes` are
    parameters of the rule by name, such as `{"mei": 0.05, "layout.rotate": 0}`. `fitness` is what
    the ranking is by, `guards` what profilers must not have found more of.

    Raises:
        ConfigError: no such campaign, rule, parameter or metric.
        LogError: there is no log, or it is damaged.
    """
    campaigns = load_state(log).campaigns
    if not campaigns:
        raise ConfigError(str(log), [("", "there is no campaign in this log")])
    stream = next(reversed(campaigns)) if campaign is None else campaign
    if stream not in campaigns:
        known = ", ".join(campaigns)
        raise ConfigError(str(log), [("campaign", f"{stream!r} is not there; there are {known}")])
    found = campaigns[stream]
    params = with_changes(found.params, changes) if changes else None
    return rescore_campaign(
        found, weights=weights, rule=rule, params=params, fitness=fitness, guards=guards
    )


# ---- parameters of a rule by their names ----


def rule_parameters() -> tuple[str, ...]:
    """Those that are plain numbers or truth values, parts of a table as `table.name`."""
    return tuple(sorted(_parameters(RuleParams)))


def _parameters(kind: type[Any], prefix: str = "") -> Iterator[str]:
    for attribute in fields(kind):
        name, default = f"{prefix}{attribute.name}", attribute.default
        if has(type(default)):
            yield from _parameters(type(default), f"{name}.")
        elif default is None or isinstance(default, int | float):
            yield name


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options, as a table of `aiopt.toml` has them, with changes by name on top."""
    found = dict(options)
    for name, value in changes.items():
        table, _, inner = name.partition(".")
        found[table] = {**found.get(table, {}), inner: value} if inner else value
    return found


def with_changes(params: RuleParams, changes: Mapping[str, Any]) -> RuleParams:
    """The same parameters but for these.

    Raises:
        ConfigError: there is no parameter of such a name, or they make no sense together.
    """
    unknown = sorted(changes.keys() - set(rule_parameters()))
    if unknown:
        known = ", ".join(rule_parameters())
        problem = f"no parameter {', '.join(unknown)}; there are {known}"
        raise ConfigError("rule parameters", [("", problem)])
    return params_from(merged(unstructure(params), changes))
