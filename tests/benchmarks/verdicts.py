"""Score every decision rule on noise, side by side, and print the figures H1 to H10 as a table.

Exit codes: 0 no bar was missed by our rule, 1 one was, 2 usage, 130 interrupted.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import orjson
from attrs import asdict, evolve

from aiopt.comparisons import COMPARISONS
from aiopt.simulate import FIGURES, ComparisonScheme, ProtocolScheme, Row, Scheme, score, sources_in
from aiopt.verdict import protocol

__all__ = ["OURS", "SCHEMES", "TRACES", "main"]

TRACES = Path(__file__).parents[1] / "data/noise"

OURS = "two-stage"
_INTERLEAVED = evolve(COMPARISONS["benchstat"], id="benchstat-pairs", design="pairs")
SCHEMES: dict[str, Scheme] = {
    OURS: ProtocolScheme(protocol),
    **{rule.id: ComparisonScheme(rule) for rule in (*COMPARISONS.values(), _INTERLEAVED)},
}
"""Every rule, by id."""

_QUICK = 0.03
"""Share of the campaigns that a quick table simulates."""


def _status(row: Row) -> str:
    return {True: "met", False: "missed", None: "no value"}[row.reached]


# ---- printing ----


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _bar(row: Row) -> str:
    if row.at_most is not None:
        return f"<= {row.at_most:g}"
    return f">= {row.at_least:g}"


def _print_table(found: Mapping[str, Sequence[Row]], judged: bool) -> None:
    heads = ["", "what", "bar", *found]
    if judged:
        heads.insert(heads.index(OURS) + 1, "")
    lines = [heads]
    previous = ""
    for rows in zip(*found.values(), strict=True):
        first = rows[0]
        if first.figure != previous:
            previous = first.figure
            lines.append([first.figure, FIGURES[first.figure]])
        cells = [
            "",
            f"  {first.what} ({first.unit})",
            _bar(first),
            *(_number(r.value) for r in rows),
        ]
        if judged:
            ours = list(found).index(OURS)
            cells.insert(4 + ours, _status(rows[ours]))
        lines.append(cells)
    full = [line for line in lines if len(line) > 2]
    widths = [max(len(line[column]) for line in full) for column in range(len(heads))]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=False))
        print("  ".join(padded).rstrip())


def _progress(rule: str) -> Callable[[int, int], None]:
    """Tells on stderr how far a rule is, now and then."""
    began = last = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == of or now - last > 10:
            last = now
            print(f"{rule}: {done} of {of} campaigns, {now - began:.0f} s", file=sys.stderr)

    return tell


# ---- the command ----


def _rules(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SCHEMES]
    if unknown:
        msg = f"no rule {', '.join(unknown)}; there are {', '.join(SCHEMES)}"
        raise argparse.ArgumentTypeError(msg)
    return names


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.verdicts", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="few campaigns; no bar is judged")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument(
        "--only", action="append", metavar="FIGURE", choices=list(FIGURES), help="may be repeated"
    )
    parser.add_argument("--rules", type=_rules, default=list(SCHEMES), help="separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of all campaigns (0)")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (at most 2)"
    )
    return parser.parse_args(argv)


def _plain(row: Row) -> dict[str, Any]:
    return {**asdict(row), "reached": row.reached}


def main(argv: Sequence[str] | None = None) -> int:
    """Score and print; returns the exit code."""
    arguments = _arguments(argv)
    found: dict[str, list[Row]] = {}
    try:
        for rule in arguments.rules:
            found[rule] = score(
                SCHEMES[rule],
                sources=sources_in(TRACES),
                figures=arguments.only or FIGURES,
                scale=_QUICK if arguments.quick else 1.0,
                seed=arguments.seed,
                jobs=arguments.jobs,
                progress=_progress(rule),
            )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    judged = OURS in found and not arguments.quick
    ok = not judged or all(row.reached for row in found[OURS])
    if arguments.json:
        report = {
            "quick": arguments.quick,
            "seed": arguments.seed,
            "rules": {rule: [_plain(row) for row in rows] for rule, rows in found.items()},
            "ok": ok,
        }
        sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE))
    else:
        _print_table(found, judged)
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main())
