"""From what a user types to a target's folder, a log, a campaign or an experiment."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import click

from aiopt.errors import AiOptError
from aiopt.ids import short_name
from aiopt.replay import CampaignState, LogState

__all__ = [
    "find_campaign",
    "find_log",
    "find_stream",
    "find_target",
    "latest",
    "local_targets",
    "log_of",
    "places_of",
    "read_state",
    "target_of_log",
]


def local_targets() -> Iterator[Path]:
    """The folders below ./targets that hold a target.toml."""
    for file in sorted(Path("targets").glob("*/target.toml")):
        yield file.parent


def _plugin_folder(name: str) -> Path | None:
    from aiopt import plugins

    if not any(found.name == name for found in plugins.available("targets")):
        return None
    return Path(plugins.load("targets", name).plugin)


def find_target(text: str) -> Path:
    """A folder, or the name of one below ./targets or of an entry point.

    Raises:
        click.UsageError: there is none.
    """
    folder = Path(text)
    if (folder / "target.toml").is_file():
        return folder
    if folder.name == "target.toml" and folder.is_file():
        return folder.parent
    if "/" not in text:
        if (Path("targets") / text / "target.toml").is_file():
            return Path("targets") / text
        if (plugged := _plugin_folder(text)) is not None:
            return plugged
    names = ", ".join(path.name for path in local_targets()) or "none"
    what = f"{text} has no target.toml" if folder.is_dir() else f"no target {text!r}"
    raise click.UsageError(
        f"{what}; targets here: {names}. `aiopt targets` lists all, "
        "`aiopt new-target NAME` writes a new one"
    )


def log_of(folder: Path, results: Path) -> Path:
    """Where the log of the target in this folder is or will be."""
    from aiopt.target import load_target

    return results / load_target(folder).name / "events.db"


def find_log(text: str, results: Path) -> Path:
    """A log, the folder that it is in, or the target that it belongs to.

    Raises:
        click.UsageError: there is none.
    """
    path = Path(text)
    if path.is_file() and path.name != "target.toml":
        return path
    tried = [path / "events.db"]
    if "/" not in text:
        tried.append(results / text / "events.db")
    for log in tried:
        if log.is_file():
            return log
    with suppress(click.UsageError, AiOptError):  # no target, or one that does not load
        tried.append(log_of(find_target(text), results))
    if tried[-1].is_file():
        return tried[-1]
    places = ", ".join(dict.fromkeys(map(str, tried)))
    raise click.UsageError(
        f"no log for {text!r}: looked for {places}. Give the path of an events.db, a folder "
        f"{results}/TARGET or a target; --results says where logs are"
    )


def target_of_log(log: Path, name: str) -> Path:
    """The folder of the target that a log belongs to.

    Raises:
        click.UsageError: there is none by this name below ./targets or among the plug-ins.
    """
    try:
        return find_target(name)
    except click.UsageError:
        raise click.UsageError(
            f"{log} belongs to the target {name!r}, which is not below ./targets: "
            f"give its folder, as in `aiopt resume FOLDER --results {log.parent.parent}`"
        ) from None


def places_of(typed: str, log: Path, campaign: CampaignState) -> tuple[Path, Path]:
    """The target's folder and the results' of a campaign that is to go on.

    The folder is what was typed, if that is one, else found by the name in the log.

    Raises:
        click.UsageError: there is no such target, or the log is in no place to go on in.
    """
    name, home = campaign.started.target, log.parent.parent
    is_folder = (Path(typed) / "target.toml").is_file()
    folder = Path(typed) if is_folder else target_of_log(log, name)
    if log != home / name / "events.db":
        raise click.UsageError(f"{log}: a log that goes on must be RESULTS/{name}/events.db")
    return folder, home


def read_state(log: Path) -> LogState:
    """The fold of a log."""
    from aiopt.api import load_state

    return load_state(log)


def find_stream(text: str, streams: Iterable[str], what: str) -> str:
    """A stream by its full or its short name.

    Raises:
        click.UsageError: none, or more than one.
    """
    streams = list(streams)
    if text in streams:
        return text
    found = [stream for stream in streams if short_name(stream) == text]
    if len(found) == 1:
        return found[0]
    if found:
        raise click.UsageError(
            f"{text} is ambiguous, since logs were merged; there are {', '.join(found)}"
        )
    there = ", ".join(map(short_name, streams[-12:])) or "none"
    more = "…, " if len(streams) > 12 else ""
    raise click.UsageError(f"no {what} {text!r}; there are: {more}{there}")


def find_campaign(state: LogState, text: str | None, log: Path) -> CampaignState:
    """The campaign of this name, or the latest.

    Raises:
        click.UsageError: there is none.
    """
    return state.campaigns[choose_campaign([*state.campaigns], text, log)]


def choose_campaign(streams: Sequence[str], text: str | None, log: Path) -> str:
    """The campaign's stream that is meant, or the latest.

    Raises:
        click.UsageError: there is none.
    """
    if text is not None:
        return find_stream(text, streams, "campaign")
    if not streams:
        raise click.UsageError(f"there is no campaign in {log} yet; `aiopt run` begins one")
    return streams[-1]


def latest(state: LogState) -> CampaignState | None:
    """The campaign that was begun last."""
    return next(reversed(state.campaigns.values()), None)
