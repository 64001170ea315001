"""Measure aiopt beside its peers and its floors, and print one table.

Exit codes: 0 no goal was missed, 1 one was or a side did other work, 2 usage, 130 interrupted.
"""

import argparse
import os
import platform
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import orjson
from attrs import asdict

from . import appending, archives, experiments, parsing, replaying, rescoring, trials
from .measuring import Line, WrongWork
from .places import Places, places

__all__ = ["main"]

Row = Callable[[Places, bool], Iterator[Line]]


def _kill_suite(places: Places, quick: bool) -> Iterator[Line]:
    yield Line(row="9", what="1000 kills, nothing lost: `make kill-suite`", status="run it")


ROWS: Mapping[str, Row] = {
    "1": appending.against_raw,
    "2": lambda places, quick: trials.against_optuna("rdb", places, quick),
    "3": lambda places, quick: trials.against_optuna("journal", places, quick),
    "4": appending.growth,
    "replay": replaying.replay,
    "verify": replaying.verifying,
    "parse": parsing.profiles,
    "5a": rescoring.against_memory,
    "5b": rescoring.against_json,
    "5c": rescoring.command,
    "6a": archives.against_ribs,
    "6b": archives.against_openevolve,
    "7": experiments.experiment,
    "8": experiments.command_line,
    "9": _kill_suite,
}
_ON_TMPFS = {"1", "2", "3", "4"}
_BYTES_NEEDED = {True: 64 << 20, False: 1500 << 20}
_NAMED = (
    "attrs",
    "cattrs",
    "orjson",
    "sqlite-utils",
    "anyio",
    "click",
    "numpy",
    "optuna",
    "eventsourcing",
    "ribs",
    "numba",
    "openevolve",
)


def measure(rows: Sequence[str], where: Places, quick: bool) -> Iterator[Line]:
    """The lines of the table, as they come."""
    for row in rows:
        possible = not quick
        if row in _ON_TMPFS:
            possible = possible and where.has_tmpfs
        elif row == "7":
            possible = possible and where.has_disk
        began = time.monotonic()
        try:
            for line in ROWS[row](where, quick):
                yield line.judged(possible)
        except WrongWork as error:
            yield Line(row=row, what=str(error), status="wrong work")
        if (seconds := time.monotonic() - began) > 1:
            print(f"row {row} took {seconds:.0f} s", file=sys.stderr)


# ---- printing ----

_WIDTHS = (13, 68, 9, 9, 21, 7, 7, 15, 8)
_HEADS = ("row", "what", "ours", "other", "other is", "ratio", "goal", "quartiles", "status")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def _fields(line: Line) -> tuple[str, ...]:
    middle = spread = ""
    if line.ratio is not None:
        middle = _number(line.ratio.median)
        spread = f"{_number(line.ratio.low)} to {_number(line.ratio.high)}"
    return (
        line.row,
        line.what,
        _duration(line.ours),
        _duration(line.other),
        line.beside,
        middle,
        line.goal_text.removesuffix("x"),
        spread,
        line.status,
    )


def _print(fields: Sequence[str]) -> None:
    cells = (text.ljust(width) for text, width in zip(fields, _WIDTHS, strict=True))
    print("  ".join(cells).rstrip(), flush=True)


def _machine(where: Places) -> dict[str, str]:
    found = {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "memory": f"{where.memory.parent} ({where.memory_kind})",
        "disk": f"{where.disk.parent} ({where.disk_kind})",
    }
    for name in _NAMED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; no goal is judged")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument(
        "--only", action="append", metavar="ROW", choices=list(ROWS), help="may be repeated"
    )
    return parser.parse_args(argv)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    lines: list[Line] = []
    try:
        with places(_BYTES_NEEDED[arguments.quick]) as where:
            machine = _machine(where)
            if not arguments.json:
                print(", ".join(f"{name} {text}" for name, text in machine.items()))
                if not where.has_tmpfs:
                    print("no tmpfs with enough room was found: rows 1 to 4 are not judged")
                _print(_HEADS)
            rows = [row for row in ROWS if not arguments.only or row in arguments.only]
            for line in measure(rows, where, arguments.quick):
                lines.append(line)
                if not arguments.json:
                    _print(_fields(line))
    except KeyboardInterrupt:
        print("interrupted; what was written is removed", file=sys.stderr)
        return 130
    failed = any(line.status in ("missed", "wrong work") for line in lines)
    if arguments.json:
        report = {
            "quick": arguments.quick,
            "machine": machine,
            "rows": [asdict(line) for line in lines],
            "ok": not failed,
        }
        sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE))
        return int(failed)
    notes = {name: text for line in lines for name, text in line.notes.items()}
    print("\nratio: median over the rounds of ours / other, for goals with >= of other / ours")
    for name, text in notes.items():
        print(f"{name}: {text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
