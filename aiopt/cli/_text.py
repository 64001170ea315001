"""Plain text for people: tables, effects, times.

Colour only on a terminal, and not under NO_COLOR.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click
import orjson

from aiopt.plain import short, to_json

if TYPE_CHECKING:
    from aiopt.views import EffectView

__all__ = [
    "coloured",
    "duration",
    "effect_text",
    "effects_text",
    "is_terminal",
    "one_line",
    "print_json",
    "settled",
    "short",
    "status_text",
    "table",
]

_COLOURS = {"keep": "green", "discard_regression": "red", "invalid": "red", "rejected": "yellow"}


def is_terminal(stream: TextIO) -> bool:
    """Whether cursor movement makes sense there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(stream: TextIO) -> bool:
    """Whether to use colour there."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def print_json(value: Any) -> None:
    """One JSON object (or a view of one) on one line of standard output."""
    click.echo(orjson.dumps(to_json(value)).decode())


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Columns as wide as what is in them; those in `right` are right-aligned."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [
        max(len(click.unstyle(cell)) for cell in column) for column in zip(*lines, strict=True)
    ]
    right = set(right)

    def padded(cell: str, place: int) -> str:
        blank = " " * (widths[place] - len(click.unstyle(cell)))
        return blank + cell if place in right else cell + blank

    return "\n".join(
        "  ".join(padded(cell, place) for place, cell in enumerate(line)).rstrip() for line in lines
    )


def _signed(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:+.{digits}f}"


def effect_text(effect: "EffectView", workloads: int = 1) -> str:
    """`cost +19.8 % [+18.9, +20.7]`: the share that is saved, with its 95 % interval; `~+19.8 %`
    if the estimate is biased.
    """
    where = f" ({effect.workload})" if workloads > 1 else ""
    if effect.better_percent is None:
        return f"{effect.metric}{where} ?"
    digits = 2 if abs(effect.better_percent) < 1 else 1
    low, high = (
        _signed(v, digits) for v in (effect.better_percent_low, effect.better_percent_high)
    )
    about = "~" if effect.biased else ""
    value = _signed(effect.better_percent, digits)
    return f"{effect.metric}{where} {about}{value} % [{low}, {high}]"


def effects_text(effects: Sequence["EffectView"]) -> str:
    """Several effects on one line; the workload is named where there is more than one."""
    workloads = len({effect.workload for effect in effects})
    return ", ".join(effect_text(effect, workloads) for effect in effects)


def status_text(status: str, stream: TextIO | None = None) -> str:
    """`discard regression`, coloured where that is wanted."""
    text = status.replace("_", " ")
    colour = _COLOURS.get(status)
    return click.style(text, fg=colour) if colour and coloured(stream or sys.stdout) else text


def duration(seconds: float) -> str:
    """`0.4s`, `1m20s`, `2h05m`."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def one_line(text: str, width: int = 0) -> str:
    """Without line breaks; cut to `width` if that is above 0."""
    text = " ".join(text.split())
    return f"{text[: width - 1]}…" if 0 < width < len(text) else text


def settled(counts: Mapping[str, int]) -> str:
    """`2 keep, 1 invalid`."""
    return ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
