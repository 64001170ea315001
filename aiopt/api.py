"""The few functions that a script or a notebook needs, synchronous; `aiopt` itself exports them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from aiopt.campaign import Observer, open_campaign
from aiopt.errors import ConfigError
from aiopt.log import Log
from aiopt.replay import LogState, Rescored, fold
from aiopt.replay import rescore as rescore_campaign
from aiopt.settings import Settings
from aiopt.verdict import RULES
from aiopt.views import Summary, summary

__all__ = ["load_state", "rescore", "run"]


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
        BaselineFailed, IncumbentFailed: nothing can be measured.
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
) -> Rescored:
    """What the same measurements would have led to under other weights or another rule.

    See `aiopt.replay.rescore`.
    `campaign` is a stream; without it, the latest one.

    Raises:
        ConfigError: no such campaign, rule or metric.
        LogError: there is no log, or it is damaged.
    """
    campaigns = load_state(log).campaigns
    if not campaigns:
        raise ConfigError(str(log), [("", "there is no campaign in this log")])
    stream = next(reversed(campaigns)) if campaign is None else campaign
    if stream not in campaigns:
        known = ", ".join(campaigns)
        raise ConfigError(str(log), [("campaign", f"{stream!r} is not there; there are {known}")])
    if rule is not None and rule not in RULES:
        known = ", ".join(sorted(RULES))
        raise ConfigError("rule", [("", f"no rule {rule!r}; there are {known}")])
    return rescore_campaign(campaigns[stream], weights=weights, rule=rule)
