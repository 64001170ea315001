"""`aiopt log`: the events as they are, also of a log that is being written."""

import time
from collections.abc import Iterator
from pathlib import Path

import click
import orjson

from aiopt.cli._describe import describe
from aiopt.cli._options import Places, as_json, results
from aiopt.cli._places import find_log, find_stream
from aiopt.errors import UnknownEventError
from aiopt.events import EVENT_TYPES
from aiopt.ids import short_name
from aiopt.log import Log, recorded
from aiopt.logfile import Row, rows

__all__ = ["log"]

_POLL_SECONDS = 0.3
_TYPES = [cls.__name__ for cls in EVENT_TYPES]


@click.command(short_help="Print the events of a log.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option("--follow", "-f", is_flag=True, help="Go on as events come; Ctrl-C ends it.")
@click.option("--stream", metavar="NAME", help="Only of this stream, such as exp-0007.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only later.")
@click.option(
    "--type", "types", multiple=True, type=click.Choice(_TYPES), metavar="TYPE", help="Only these."
)
@as_json
def log(
    log: str,
    results: Path,
    follow: bool,
    stream: str | None,
    after: int,
    types: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the events of a log, one line each.

    The log may be written meanwhile: it is only read. With --json every line is one event with all
    columns of the log and its payload.

    \b
    Examples:
      aiopt log pyserver --stream exp-0007
      aiopt log results/pyserver/events.db --follow --type VerdictReached --json
    """
    path = find_log(log, results)
    if stream is not None:
        with Log.open(path, readonly=True) as opened:
            stream = find_stream(stream, opened.streams(), "stream")
    try:
        for row in _rows(path, after, stream, follow):
            if not types or row.type in types:
                click.echo(_json(row) if as_json else _line(path, row))
    except KeyboardInterrupt:
        if not follow:
            raise


def _rows(path: Path, after: int, stream: str | None, follow: bool) -> Iterator[Row]:
    while True:
        for row in rows(path, after, stream):
            yield row
            after = row.seq
        if not follow:
            return
        time.sleep(_POLL_SECONDS)


def _json(row: Row) -> str:
    payload = orjson.loads(row.payload)
    return orjson.dumps({**row._asdict(), "payload": payload, "hash": row.hash.hex()}).decode()


def _line(path: Path, row: Row) -> str:
    try:
        text = describe(recorded(path, row).event)
    except UnknownEventError:
        text = row.payload  # of a newer aiopt: shown as it is
    at = row.recorded_at[11:19]
    return f"{row.seq:>6} {at} {short_name(row.stream):<9} {row.type:<19} {text}".rstrip()
