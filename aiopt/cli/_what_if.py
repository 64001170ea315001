"""What `aiopt replay --what-if` prints."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import click

from aiopt.cli._text import short
from aiopt.weight_grid import OrderRow, WhatIf

__all__ = ["axes_of", "what_if_lines", "what_if_progress"]


def axes_of(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> Mapping[str, Sequence[float] | None] | None:
    """`A,B` or `A=0:1:0.1,B=0.2:0.8:0.2`: from, to and step; one number is one weight."""
    if value is None:
        return None
    found: dict[str, Sequence[float] | None] = {}
    for part in value.split(","):
        name, equals, text = part.partition("=")
        try:
            numbers = [float(number) for number in text.split(":")] if equals else None
            axis = numbers if numbers is None else _axis(*numbers)
        except (ValueError, TypeError):
            raise click.BadParameter(
                f"{part!r}: expected METRIC, or METRIC=FROM:TO:STEP with a step above 0"
            ) from None
        if not name or name in found:
            raise click.BadParameter(f"{part!r}: expected every metric once")
        found[name] = axis
    return found


def _axis(start: float, stop: float | None = None, step: float | None = None) -> Sequence[float]:
    if stop is None and step is None:
        return [start]
    if stop is None or step is None or step <= 0 or stop < start or (stop - start) / step > 1e4:
        raise ValueError
    return [start + number * step for number in range(round((stop - start) / step * 1.000001) + 1)]


def what_if_progress(done: int) -> None:
    """On a terminal only."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} weightings\r", nl=False, err=True)


def what_if_lines(result: WhatIf, top: int) -> Iterator[str]:
    """What holds everywhere, and where the rest changes."""
    count = len(result.points)
    weightings = "1 weighting" if count == 1 else f"{count} weightings"
    yield f"{short(result.campaign)}: {weightings} of {', '.join(result.points[0])}"
    yield ""
    if not result.first:
        yield "no candidate can be ranked"
    for row in islice(result.first, top):
        name = f"{short(row.experiment)} {row.patch}"
        if row.points == count:
            yield f"first at every weighting: {name}"
        else:
            yield f"first at {row.points} of {count}: {name} ({_where(row.where)})"
    yield ""
    same = result.decisions - len(result.swings)
    yield f"decisions: {result.decisions}, the same at every weighting: {same}"
    for swing in islice(result.swings, top):
        others = count - swing.kept if swing.logged == "keep" else swing.kept
        where = (
            "everywhere" if others == count else f"at {others} of {count}, {_where(swing.where)}"
        )
        would = "not kept" if swing.logged == "keep" else "kept"
        logged = swing.logged.replace("_", " ")
        yield f"  {short(swing.experiment)} {swing.patch}: {logged}; {would} {where}"
    if len(result.swings) > top:
        yield f"… and {len(result.swings) - top:,} more; --top {len(result.swings)} shows all"
    if result.order:
        yield ""
        yield "of the first ones at equal weights:"
        for two in result.order:
            yield f"  {_order(two, count)}"


def _where(where: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(
        f"{name} {low:.3g}" if low == high else f"{name} {low:.3g} to {high:.3g}"
        for name, (low, high) in where.items()
    )


def _order(two: OrderRow, count: int) -> str:
    where = "at every weighting" if two.points == count else f"at {two.points} of {count}"
    proved = "always proved" if two.told_apart == two.points else f"proved at {two.told_apart}"
    names = f"{short(two.better)} before {short(two.worse)}"
    return f"{names}: {where}, {proved if two.told_apart else 'never proved'}"
