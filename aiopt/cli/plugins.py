"""`aiopt plugins`: what is installed, and whether it loads."""

import traceback
from collections.abc import Iterator

import click
from attrs import frozen

from aiopt.cli._options import as_json
from aiopt.cli._text import print_json, table
from aiopt.plugins import GROUPS, Found, available

__all__ = ["plugins"]


@frozen(kw_only=True)
class _Row:
    group: str
    name: str
    distribution: str
    version: str
    value: str
    loads: bool
    error: str


@click.command(short_help="List plug-ins and whether they load.")
@click.argument("group", type=click.Choice(GROUPS), required=False)
@as_json
@click.pass_context
def plugins(ctx: click.Context, /, group: str | None, as_json: bool) -> None:
    """List plug-ins: backends, profilers, strategies, proposers and targets.

    Each is imported. One that fails is shown with the last line of its traceback and does not
    disturb the others; then the exit code is 1. AIOPT_PLUGINS=none switches all off that do not
    come with aiopt.

    \b
    Examples:
      aiopt plugins
      aiopt plugins profilers --json
    """
    rows = list(_rows((group,) if group else GROUPS))
    if as_json:
        print_json({"plugins": rows})
    else:
        lines = [
            (row.group, row.name, f"{row.distribution} {row.version}", row.error or "loads")
            for row in rows
        ]
        click.echo(table(("group", "name", "distribution", ""), lines))
    ctx.exit(0 if all(row.loads for row in rows) else 1)


def _rows(groups: tuple[str, ...]) -> Iterator[_Row]:
    for group in groups:
        known = available(group)
        for found in known:
            others = [f.distribution for f in known if f.name == found.name and f is not found]
            error = _error(found)
            if not error and others:
                error = f"the same name is brought by {', '.join(others)}: uninstall one"
            yield _Row(
                group=group,
                name=found.name,
                distribution=found.distribution,
                version=found.version,
                value=found.value,
                loads=not error,
                error=error,
            )


def _error(found: Found) -> str:
    try:
        found.entry.load()
    except Exception as error:
        return traceback.format_exception_only(error)[-1].strip()
    return ""
