"""`aiopt verify` and `aiopt merge`: logs as files."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from aiopt.cli._options import Places, as_json, results
from aiopt.cli._places import find_log, read_state
from aiopt.cli._text import print_json, short
from aiopt.errors import ConfigError
from aiopt.logfile import rows
from aiopt.merge import import_jsonl
from aiopt.merge import merge as merge_logs
from aiopt.reproduce import Reproduction, reproduce
from aiopt.verify import Problem, Report
from aiopt.verify import verify as verify_log
from aiopt.views import to_json

__all__ = ["merge", "verify"]

_HEAD = re.compile(r"(?:([0-9]+):([0-9]+):)?([0-9a-fA-F]{64})")


@click.command(short_help="Check that a log is what was once written.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option("--head", is_flag=True, help="Print the end of each writer's chain, to publish it.")
@click.option(
    "--expect-head",
    "expected",
    multiple=True,
    metavar="HEX",
    help="An earlier head: the log may have grown since, but not changed before it.",
)
@as_json
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    log: str,
    results: Path,
    head: bool,
    expected: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check that a log is what was once written: hash chains, gaps, payloads, blobs.

    Every decision in it is made anew from the pairs, and must come out the same.

    Whoever can write the file can also write all of it anew: only a head that was published
    elsewhere shows that. Exit code 1 if anything is wrong, with every problem.

    \b
    Examples:
      aiopt verify pyserver --head
      aiopt verify results/pyserver/events.db --expect-head 1234567:89:4f0c…
    """
    path = find_log(log, results)
    full, bare = _expected(expected)
    report = verify_log(path, expect_head=full)
    decided = None if report.problems or report.unknown else reproduce(read_state(path))
    problems = [*report.problems, *_absent(path, bare), *_contradictions(decided)]
    if as_json:
        data = {**to_json(report), "decisions": to_json(decided)}
        print_json({**data, "ok": not problems, "problems": problems})
    else:
        _print(report, problems, decided, head)
    ctx.exit(1 if problems else 0)


def _expected(texts: tuple[str, ...]) -> tuple[dict[int, tuple[int, str]], list[str]]:
    """Heads with writer and place, and hashes by themselves."""
    full, bare = {}, []
    for text in texts:
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                "--expect-head",
                [("", f"{text!r}: expected WRITER:NUMBER:HASH as --head prints, or the hash")],
            )
        if match[1]:
            full[int(match[1])] = (int(match[2]), match[3].lower())
        else:
            bare.append(match[3].lower())
    return full, bare


def _absent(path: Path, hashes: list[str]) -> list[Problem]:
    """Published hashes that no row has."""
    missing = set(hashes)
    if missing:
        for row in rows(path):
            missing.discard(row.hash.hex())
    return [
        Problem(kind="head", text=f"no event has the published head {found}")
        for found in sorted(missing)
    ]


def _contradictions(decided: Reproduction | None) -> list[Problem]:
    return [
        Problem(
            kind="decision",
            stream=found.experiment,
            text=f"{short(found.experiment)} does not follow from its events: {found.differs}",
        )
        for found in (decided.contradictions if decided else ())
    ]


def _print(
    report: Report, problems: list[Problem], decided: Reproduction | None, head: bool
) -> None:
    for problem in problems:
        click.echo(f"{problem.kind}: {problem.text}")
    for name, count in sorted(report.unknown.items()):
        click.echo(f"{count} events {name} are of a newer aiopt; their chain was checked")
    if head:
        for writer, (number, hash_) in sorted(report.heads.items()):
            click.echo(f"{writer}:{number}:{hash_}")
    for experiment, reason in decided.not_checked if decided else ():
        click.echo(f"{short(experiment)} was not decided anew: {reason}")
    what = f"{report.events} events in {report.streams} streams, {report.blobs} blobs"
    if decided is not None:
        what = f"{what}, {decided.decisions} decisions made anew"
    end = f"{len(problems)} problems" if problems else "all as it was written"
    click.echo(f"{report.path}: {what}: {end}", err=head and not problems)


@click.command(short_help="Join the logs of several machines into one.")
@click.argument("into", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("sources", metavar="FROM…", nargs=-1, required=True)
@results
@as_json
def merge(into: Path, sources: tuple[str, ...], results: Path, as_json: bool) -> None:
    """Add to the log INTO what the logs FROM have and it has not, with all their blobs.

    INTO is created if need be. It is all or nothing, and nothing the second time. What ends in
    .jsonl is lines that `aiopt export --jsonl` wrote; they carry no blobs.

    \b
    Examples:
      aiopt merge all/pyserver/events.db results/pyserver/events.db lab/events.db
      aiopt merge results/pyserver/events.db /mnt/lab/results/pyserver --json
      aiopt merge again/events.db events.jsonl
    """
    with TemporaryDirectory(prefix="aiopt-merge-") as folder:
        logs = [
            _from_lines(Path(source), Path(folder, str(number)))
            if source.endswith(".jsonl")
            else find_log(source, results)
            for number, source in enumerate(sources)
        ]
        report = merge_logs(into, logs)
    if as_json:
        print_json({**to_json(report), "log": str(into)})
    else:
        click.echo(
            f"{into}: {report.events} new events, {report.writers} new writers, "
            f"{report.blobs} new blobs"
        )


def _from_lines(file: Path, folder: Path) -> Path:
    """A log of its own, made of exported lines."""
    folder.mkdir()
    log = folder / "events.db"
    try:
        with file.open(encoding="utf-8") as lines:
            import_jsonl(lines, log)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: {error}") from None
    return log
