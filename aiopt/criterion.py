"""The output of Rust's criterion benchmarks: text, messages of cargo-criterion, estimates."""

import json
import re
from collections.abc import Iterator
from typing import Any

from aiopt.found import Found, Problem

__all__ = ["criterion"]

_LARGEST = 16 << 20
"""Characters of a line of JSON that are read; it holds each measurement of one benchmark."""

_ESTIMATE = re.compile(r"\s+\[\S+ \S+ (?P<value>\S+) (?P<unit>\S+) \S+ \S+\]\s*$")
_BENCHER = re.compile(r"\s+(?P<ns>[0-9.,]+) ns/iter")
_POSITIVE = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_UNITS = {"ps": 1e-12, "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
# Numbers stay text here, so that there is one rule for what a number is.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)


def criterion(text: str) -> Iterator[Found | Problem]:
    """criterion on stdout, also with `--output-format bencher`, `cargo criterion
    --message-format=json`, or one `new/estimates.json`: `<benchmark>.seconds`, per iteration.

    The one sample of a benchmark is criterion's estimate: the middle of its three numbers, the
    `typical` one of a message, the slope (else the mean) of estimates. These do not say whose they
    are and are just `seconds`. The lines `change:` and `thrpt:` say what was there before, or the
    same again. What was rounded to 0 ns is no number.
    """
    above = last = ""
    results = anonymous = 0
    for number, line in enumerate(text.splitlines(), 1):
        for item in _json(line, number) if line.startswith('{"') else _text(line, above, number):
            results += 1
            anonymous += item.metric == "seconds"
            if item.metric == "seconds" and anonymous > 1:
                why = "estimates of several benchmarks, which do not say whose they are"
                item = Problem("seconds", "", number, why)
            yield item
        above = line.strip()
        last = above or last
    if not results:
        yield Problem("", last[:200], None, "no result of criterion (`name  time:   [… … …]`)")


def _text(line: str, above: str, number: int) -> Iterator[Found | Problem]:
    name, _, rest = line.rpartition("time:")
    if (found := _ESTIMATE.match(rest)) and (not name or name[-1].isspace()):
        # A long name is on a line of its own, above.
        if name := name.strip() or above:
            yield _seconds(f"{name}.seconds", found["value"], found["unit"], number)
        else:
            yield Problem("", line.strip()[:100], number, "the benchmark has no name")
        return
    name, mark, rest = line.rpartition(" ... bench:")
    if mark and name.startswith("test ") and (found := _BENCHER.match(rest)):
        name = name.removeprefix("test ").strip()
        yield _seconds(f"{name}.seconds", found["ns"].replace(",", ""), "ns", number)


def _json(line: str, number: int) -> Iterator[Found | Problem]:
    """Messages or estimates; the file of these has no end of line, so several can be in one."""
    at = 0
    while line.startswith("{", at):
        try:
            if len(line) > _LARGEST:
                raise ValueError
            entry, at = _DECODER.raw_decode(line, at)
        except (ValueError, RecursionError):
            why = "not a JSON object, or too large a one"
            yield Problem("", line[at : at + 80], number, why)
            return
        yield from _entry(entry, number)


def _entry(entry: dict[str, Any], number: int) -> Iterator[Found | Problem]:
    if entry.get("reason") == "benchmark-complete":
        typical = _object(entry.get("typical"))
        name, value, unit = entry.get("id"), typical.get("estimate"), typical.get("unit")
        yield _seconds(f"{name}.seconds", str(value), str(unit), number)
    elif "mean" in entry and "std_dev" in entry:
        estimate = _object(entry.get("slope") or entry["mean"])
        yield _seconds("seconds", str(estimate.get("point_estimate")), "ns", number)
    elif "mean" in entry:
        why = "change/estimates.json has changes; the times are in new/estimates.json"
        yield Problem("seconds", "", number, why)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _seconds(metric: str, value: str, unit: str, number: int) -> Found | Problem:
    printed = f"{value} {unit}"[:100]
    if unit not in _UNITS or not _POSITIVE.fullmatch(value):
        return Problem(metric, printed, number, "not a time of criterion's")
    if float(value) == 0:
        return Found(metric, f"{printed}, rounded to 0", number, declared=False)
    return Found(metric, float(value) * _UNITS[unit], number)
