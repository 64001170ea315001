"""`aiopt targets` and `aiopt new-target`."""

from collections.abc import Iterator
from pathlib import Path

import click
from attrs import frozen

from aiopt import plugins
from aiopt.cli._options import as_json
from aiopt.cli._places import local_targets
from aiopt.cli._text import one_line, print_json, table
from aiopt.errors import AiOptError
from aiopt.skeleton import write_skeleton
from aiopt.target import Target, load_target

__all__ = ["new_target", "targets"]


@frozen(kw_only=True)
class _Row:
    name: str
    folder: str
    description: str
    primaries: tuple[str, ...]
    workloads: tuple[str, ...]
    problems: tuple[str, ...]


@click.command(short_help="List the targets that can be run.")
@as_json
@click.pass_context
def targets(ctx: click.Context, /, as_json: bool) -> None:
    """List the targets below ./targets and those that packages bring, with their problems.

    Exit code 1 if one of them has problems.

    \b
    Example:
      aiopt targets --json
    """
    rows = list(_rows())
    if as_json:
        print_json({"targets": rows})
    elif not rows:
        click.echo("no targets here; `aiopt new-target NAME` writes one")
    else:
        lines = [
            (
                row.name,
                row.folder,
                "problems" if row.problems else ", ".join(row.primaries),
                ", ".join(row.workloads),
                one_line(row.description, 60),
            )
            for row in rows
        ]
        click.echo(table(("target", "folder", "primaries", "workloads", "description"), lines))
        for row in rows:
            for problem in row.problems:
                click.echo(problem, err=True)
    ctx.exit(1 if any(row.problems for row in rows) else 0)


def _rows() -> Iterator[_Row]:
    for folder in local_targets():
        yield _row(folder.name, folder)
    for found in plugins.available("targets"):
        try:
            folder = Path(plugins.load("targets", found.name).plugin)
        except AiOptError as error:
            yield _broken(found.name, f"{found.distribution} ({found.value})", error)
            continue
        yield _row(found.name, folder)


def _row(name: str, folder: Path) -> _Row:
    try:
        target: Target = load_target(folder)
    except AiOptError as error:
        return _broken(name, str(folder), error)
    return _Row(
        name=target.name,
        folder=str(folder),
        description=target.description,
        primaries=target.primaries,
        workloads=tuple(target.workloads),
        problems=(),
    )


def _broken(name: str, where: str, error: AiOptError) -> _Row:
    return _Row(
        name=name, folder=where, description="", primaries=(), workloads=(), problems=(str(error),)
    )


@click.command("new-target", short_help="Write the skeleton of a new target.")
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write it.  [targets/NAME]",
)
def new_target(name: str, folder: Path | None) -> None:
    """Write the skeleton of a new target: target.toml, scripts, hints, a tiny source to begin with.

    It can be run as it is; what is marked ADAPT is yours to change. Nothing is overwritten.

    \b
    Examples:
      aiopt new-target mine
      aiopt new-target mine --dir ~/work/mine-target
    """
    folder = folder if folder is not None else Path("targets") / name
    for path in write_skeleton(folder, name):
        click.echo(path)
    typed = name if folder == Path("targets") / name else folder
    click.echo("next, when what is marked ADAPT fits:")
    click.echo("  aiopt doctor")
    click.echo(f"  aiopt try {typed} --patch FILE")
    click.echo(f"  aiopt run {typed} --budget 30m")
