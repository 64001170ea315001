"""`aiopt export`: a log as folders that run by themselves, as tables, or as lines of JSON."""

import sys
from pathlib import Path
from typing import Any

import click

from aiopt.cli._options import Places, as_json, results
from aiopt.cli._places import find_log
from aiopt.cli._text import print_json
from aiopt.export import export as export_log
from aiopt.merge import export_jsonl

__all__ = ["export"]


@click.command(short_help="Write folders that repeat each experiment, and tables.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that gets TARGET/ENV/EXPERIMENT.  [where the log's own folder is]",
)
@click.option("--campaign", metavar="NAME", help="Only this one, such as cmp-0002.")
@click.option(
    "--jsonl", metavar="FILE", help="Write the events instead, as lines of JSON; - is stdout."
)
@as_json
def export(
    log: str,
    results: Path,
    out: Path | None,
    campaign: str | None,
    jsonl: str | None,
    as_json: bool,
) -> None:
    """Write each experiment as a folder whose scripts repeat its measurement, and results.tsv.

    With --jsonl, write all events as lines of JSON instead: a header, then one event a line, from
    which the log can be made again.

    \b
    Examples:
      aiopt export pyserver --out exported
      aiopt export results/pyserver/events.db --jsonl events.jsonl
    """
    path = find_log(log, results)
    if jsonl is not None:
        if out is not None or campaign is not None:
            raise click.UsageError("--jsonl is the whole log: no --out, no --campaign")
        _lines(path, jsonl, as_json)
        return
    folder = Path(log) if (Path(log) / "target.toml").is_file() else None
    done = export_log(path, out, campaign=campaign, target=folder)
    answer: dict[str, Any] = {
        "log": str(path),
        "folders": [str(each) for each in done.folders],
        "tables": [str(each) for each in done.tables],
        "notes": list(done.notes),
    }
    if as_json:
        print_json(answer)
        return
    for each in (*answer["folders"], *answer["tables"]):
        click.echo(each)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)


def _lines(log: Path, file: str, as_json: bool) -> None:
    if file == "-":
        if as_json:
            raise click.UsageError("--jsonl - and --json both want standard output")
        export_jsonl(log, sys.stdout)
        return
    with open(file, "w", encoding="utf-8") as out:
        count = export_jsonl(log, out)
    if as_json:
        print_json({"log": str(log), "jsonl": file, "events": count})
    else:
        click.echo(f"{file}: {count} events")
