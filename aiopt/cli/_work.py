"""Run something async from a command: with progress, and with signals that end it in good order."""

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click
from anyio.abc import TaskStatus

from aiopt.campaign import Campaign, open_campaign
from aiopt.cli._changes import check_changes, check_fits
from aiopt.cli._progress import Progress
from aiopt.lease import Lease
from aiopt.rule_changes import merged
from aiopt.settings import Settings, load_settings
from aiopt.verdict import check_rule

__all__ = ["check_lease", "drive", "in_campaign", "settings_from"]

T = TypeVar("T")

_TICK_SECONDS = 1.0
_LEFTOVER_SECONDS = 10.0
"""How long to wait for the stages of a controller that is gone."""


def drive(work: Callable[[], Awaitable[T]], progress: Progress | None = None) -> T:
    """Run `work` to its end.

    SIGINT and SIGTERM cancel it; what it tears down meanwhile is not disturbed by further ones.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    return anyio.run(partial(_drive, work, progress))


async def _drive(work: Callable[[], Awaitable[T]], progress: Progress | None) -> T:
    results: list[T] = []
    failure: Exception | None = None
    scope = anyio.CancelScope()

    async def watch(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if progress is not None and not scope.cancel_called:
                    progress.say("stopping: ending what runs, then the log is closed")
                scope.cancel()

    async def tick() -> None:
        while progress is not None:
            await anyio.sleep(_TICK_SECONDS)
            progress.tick()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch)
        tasks.start_soon(tick)
        with scope:
            try:
                results.append(await work())
            except Exception as error:
                failure = error
        tasks.cancel_scope.cancel()
    if progress is not None:
        progress.clear()
    if failure is not None:
        raise failure
    if not results:
        raise KeyboardInterrupt
    return results[0]


def in_campaign(
    folder: Path,
    results: Path,
    settings: Settings | None,
    resume: str | None,
    work: Callable[[Campaign], Awaitable[T]],
    profile_with: Sequence[str] | None = None,
) -> T:
    """Open a campaign, with progress on standard error, and do something in it."""
    progress, results = Progress(), results.absolute()

    async def inside() -> T:
        async with open_campaign(
            folder,
            results,
            settings,
            resume=resume,
            observer=progress,
            wait=_LEFTOVER_SECONDS,
            profile_with=profile_with,
        ) as campaign:
            progress.attach(lambda: campaign.state)
            return await work(campaign)

    return drive(inside, progress)


def check_lease(log: Path) -> None:
    """Say at once who is writing to this log, before anything in it is looked at.

    Raises:
        ConcurrentWriteError: another process is.
    """
    if log.parent.is_dir():
        Lease.acquire(
            log, wait=_LEFTOVER_SECONDS, on_wait=lambda text: click.echo(text, err=True)
        ).close()


def settings_from(folder: Path, options: Mapping[str, Any], **more: Any) -> Settings:
    """`aiopt.toml` with the options of the command line on top of it.

    Raises:
        ConfigError: all problems of the file, or of the two together.
    """
    from aiopt.config import structure

    file = options.get("config")
    if file is None:
        file = next((f for f in (Path("aiopt.toml"), folder / "aiopt.toml") if f.is_file()), None)
    data = load_settings(file)
    for name in ("env", "mode", "seed", "strategy", "proposer", "jobs", "rule"):
        if options.get(name) is not None:
            data["environment" if name == "env" else name] = options[name]
    given = {name: options[name] for name in ("pairs", "alpha") if options.get(name) is not None}
    changes = dict(options.get("set") or {})
    if given or changes:
        data["rule_options"] = merged(data.get("rule_options", {}), {**given, **changes})
    if options.get("budget"):
        data["budget"] = {**data.get("budget", {}), **options["budget"]}
    settings = structure({**data, **more}, Settings, str(file or "settings"))
    check_rule(settings.rule)
    for name in given:
        check_fits(name, settings.rule, f"--{name}")
    check_changes(changes, settings.rule)
    return settings
