"""What `aiopt replay` prints of another strategy's choices."""

import tomllib
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from aiopt.stats import percent

if TYPE_CHECKING:
    from aiopt.rechoosing import CellRow, Choice, EliteChanges, Rechosen

__all__ = ["choice_lines", "edges_of", "toml_values"]


def toml_values(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, Any]:
    """`NAME=VALUE` as TOML has it."""
    try:
        return tomllib.loads("\n".join(value))
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(f"expected NAME=VALUE as in aiopt.toml: {error}") from None


def edges_of(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, list[float]]:
    """`NAME=0.5,0.8,1`, several times."""
    found: dict[str, list[float]] = {}
    for text in value:
        name, _, numbers = text.rpartition("=")
        try:
            edges = [float(number) for number in numbers.split(",")]
        except ValueError:
            edges = []
        if not name or name in found or len(edges) < 2:
            raise click.BadParameter(f"{text!r}: expected MEASURE=EDGE,EDGE,…, each measure once")
        found[name] = edges
    return found


def choice_lines(result: "Rechosen", top: int) -> Iterator[str]:
    """Choices that would be others, and elites that are."""
    yield (
        f"strategy {result.strategy}, seed {result.seed}: choices: {len(result.choices)}, "
        f"other ones: {len(result.changed)}"
    )
    for choice in islice(result.changed, top):
        yield f"  {_choice(choice)}"
    if len(result.changed) > top:
        yield f"… and {len(result.changed) - top:,} more; --top {len(result.changed)} shows all"
    if result.parts_at is not None:
        yield f"the strategies' histories part at event {result.parts_at}"
        yield "later choices are for what was measured, not for what the other would have measured"
    if result.elites is not None:
        yield from _elites(result.elites, top)


def _choice(choice: "Choice") -> str:
    replayed = choice.replayed or "nothing"
    return f"#{choice.number} {choice.logged} -> {replayed} (event {choice.seq})"


def _elites(elites: "EliteChanges", top: int) -> Iterator[str]:
    yield (
        f"elites over {', '.join(elites.measures)}: {len(elites.elites)}, in "
        f"{100 * elites.coverage:.3g} % of the cells; QD score {elites.qd_score:.4g}"
    )
    if not elites.compared:
        yield "the campaign's own strategy keeps no archive over the same measures"
        for name in islice(elites.elites, top):
            yield f"  {name}"
        return
    yield f"cells with another elite: {len(elites.cells)}"
    for row in islice(elites.cells, top):
        yield f"  {_cell(elites, row)}"
    for what, names in (("elites only now", elites.entered), ("no elites now", elites.left)):
        if names:
            yield f"{what}: {', '.join(islice(names, top))}{', …' if len(names) > top else ''}"


def _cell(elites: "EliteChanges", row: "CellRow") -> str:
    where = ", ".join(
        f"{name} {low:.4g} to {high:.4g}"
        for name, (low, high) in zip(elites.measures, row.edges, strict=True)
    )
    return (
        f"{where}: {_elite(row.was, row.objective_was)} -> {_elite(row.is_now, row.objective_is)}"
    )


def _elite(name: str | None, objective: float | None) -> str:
    if name is None or objective is None:
        return "empty"
    return f"{name} ({100 * percent(objective):+.2f} %)"
