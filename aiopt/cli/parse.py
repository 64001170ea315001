"""`aiopt parse`: a profile or benchmark output that a user already has, as typed data."""

from pathlib import Path
from typing import BinaryIO

import click
import orjson

from aiopt.api import parse as read
from aiopt.cli._options import as_json
from aiopt.cli._text import print_json
from aiopt.errors import UnknownPluginError
from aiopt.flame import speedscope, top_stacks
from aiopt.protocols import Measured
from aiopt.views import evidence_lines, result_row

__all__ = ["parse"]


@click.command(short_help="Read a profile or benchmark output that you have.")
@click.argument("files", type=click.File("rb"), nargs=-1, required=True, metavar="FILE…")
@click.option("--with", "name", required=True, metavar="NAME", help="Which tool wrote the files.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option(
    "--folded", type=click.Path(dir_okay=False, path_type=Path), help="Write all stacks there."
)
@click.option(
    "--speedscope",
    "speedscope_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all stacks there, for https://www.speedscope.app.",
)
@as_json
@click.pass_context
def parse(
    ctx: click.Context,
    /,
    files: tuple[BinaryIO, ...],
    name: str,
    top: int,
    folded: Path | None,
    speedscope_file: Path | None,
    as_json: bool,
) -> None:
    """Read what a profiler or a benchmark printed: the same result as in a campaign.

    NAME is a profiler (`aiopt plugins profilers`) or a format of benchmark output: lines,
    colon-lines, json, jsonl, google-benchmark, hyperfine, pytest-benchmark, criterion, db_bench.
    Several files are several runs, taken together. `-` is standard input.

    \b
    Examples:
      aiopt parse --with coz profile.coz --json
      aiopt parse --with db_bench output.txt
      perf script -i perf.data | aiopt parse --with perf -

    \b
    Exit codes: 0 measured; 3 inconclusive; 1 failed; 2 usage.
    """
    try:
        result = read(name, files)
    except UnknownPluginError as error:
        raise click.UsageError(f"--with: {error}") from None
    stacks = result.stacks if isinstance(result, Measured) else ""
    if folded is not None:
        folded.write_text(stacks, encoding="utf-8")
    if speedscope_file is not None and isinstance(result, Measured):
        content = speedscope(stacks, result.stacks_unit, name)
        speedscope_file.write_bytes(orjson.dumps(content))
    row = result_row(name, result)
    if as_json:
        print_json(
            {
                "with": name,
                "files": [getattr(file, "name", "-") for file in files],
                "status": row.status,
                "reason": row.reason,
                "fix": row.fix,
                "scalars": row.scalars,
                "findings": row.findings,
                "stacks": top_stacks(stacks, top),
                "stacks_unit": row.stacks_unit,
                "notes": row.notes,
            }
        )
    else:
        for line in evidence_lines(row, top):
            click.echo(line)
    ctx.exit({"measured": 0, "inconclusive": 3}.get(row.status, 1))
