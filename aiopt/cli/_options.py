"""Options that several commands have, and the kinds of their values."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "Places",
    "as_json",
    "budget",
    "numbers",
    "parameters",
    "results",
    "set_option",
    "settings_options",
]

F = TypeVar("F", bound=Callable[..., Any])


def budget(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, float]:
    """`20` candidates, `500r` runs, or a time such as `30m`, as the fields of
    `aiopt.settings.Budget`.
    """
    found: dict[str, float] = {}
    for text in value:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([rsmh]?)", text)
        if match is None or float(match[1]) <= 0 or (match[2] in ("", "r") and "." in match[1]):
            raise click.BadParameter(
                f"{text!r}: give a number of candidates (20), of runs (500r), "
                "or a time (90s, 30m, 2h)"
            )
        if match[2] == "r":
            found["runs"] = int(match[1])
        elif match[2]:
            found["minutes"] = float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60}[match[2]]
        else:
            found["candidates"] = int(match[1])
    return found


def numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> dict[str, float] | None:
    """`name=number,name=number`; whole numbers stay whole. What stands in brackets may have commas
    and equal signs in it: `offcpu:off_cpu_ms[L,take_lock]=0.2`.
    """
    if value is None:
        return None
    found: dict[str, float] = {}
    for part in re.split(r",(?![^\[]*\])", value):
        name, _, text = (word.strip() for word in part.rpartition("="))
        try:
            number = int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
        except ValueError:
            raise click.BadParameter(
                f"{part!r}: expected name=number, separated by commas"
            ) from None
        if name in found or not name:
            raise click.BadParameter(f"{part!r}: every name once")
        found[name] = number
    return found


def parameters(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, bool | int | float]:
    """`name=value,name=value`, several times: numbers, or `true` and `false`."""
    found: dict[str, bool | int | float] = {}
    for part in (part for text in value for part in text.split(",")):
        name, _, text = (word.strip() for word in part.partition("="))
        if name in found or not name:
            raise click.BadParameter(f"{part!r}: every name once")
        found[name] = _value(part, text)
    return found


def _value(part: str, text: str) -> bool | int | float:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
    except ValueError:
        raise click.BadParameter(
            f"{part!r}: expected name=value, separated by commas; a value is a number, true or "
            "false"
        ) from None


def set_option(command: F) -> F:
    """`--set`."""
    return click.option(
        "--set",
        multiple=True,
        callback=parameters,
        metavar="NAME=VALUE,…",
        help="Parameters of the rule, such as mei=0.05,void.psi=0.",
    )(command)


def results(command: F) -> F:
    """`--results DIR`."""
    return click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("results"),
        show_default=True,
        envvar="AIOPT_RESULTS",
        help="Folder of all logs.",
    )(command)


def as_json(command: F) -> F:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON on standard output, and only that."
    )(command)


def settings_options(command: F) -> F:
    """What `aiopt.toml` says too; the command line wins."""
    for option in reversed(
        (
            click.option("--env", metavar="NAME", help="Where to run.  [local]"),
            click.option("--mode", type=click.Choice(["fast", "full"]), help="full: profile too."),
            click.option("--seed", type=click.IntRange(min=0), help="Of every random choice."),
            click.option("--rule", metavar="NAME", help="What decides.  [two-stage]"),
            set_option,
            click.option(
                "--pairs",
                type=click.IntRange(min=2),
                help="Pairs for each workload, where the rule does not plan them itself.",
            ),
            click.option(
                "--alpha",
                type=float,
                help="Of --rule signed-rank: probability of a false keep, for one candidate.",
            ),
            click.option(
                "--config",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Settings.  [./aiopt.toml, else the target's]",
            ),
        )
    ):
        command = option(command)
    return command


class Places:
    """Metavars, so that all commands name the same things alike."""

    TARGET = "TARGET"
    LOG = "LOG|TARGET"
