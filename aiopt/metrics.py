"""Parsers of benchmark output: text in, samples and problems out.

A parser of one format is a generator from text to what it `Found`, and to `Problem`s. `parse` runs
it and is the only place where text becomes a number, so one rule holds for all formats: what is not
a finite number is a problem that says where it stood, never 0 and never a gap that nobody sees.

Names consist of letters, digits and `_ . / -` (µ is a letter); every run of other characters in the
name of a benchmark or a command becomes one `_`: `BM_Sort<int>` is `BM_Sort_int_`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from attrs import frozen

from aiopt.criterion import criterion
from aiopt.db_bench import db_bench
from aiopt.errors import ConfigError
from aiopt.found import Found, Parser, Problem

__all__ = [
    "FORMATS",
    "Found",
    "MetricKind",
    "Parsed",
    "Parser",
    "Problem",
    "criterion",
    "db_bench",
    "google_benchmark",
    "hyperfine",
    "json_lines",
    "json_object",
    "lines",
    "parse",
    "pytest_benchmark",
]

MetricKind = Literal["number", "digest"]
"""A number is measured; a digest is a text that is only compared."""


@frozen
class Parsed:
    """What the output said."""

    samples: Mapping[str, tuple[float, ...]]
    """All values of each metric, wanted or not, as printed and in that order; all are finite."""
    texts: Mapping[str, str]
    """The value of each digest."""
    problems: tuple[Problem, ...]


def parse(format: str | Parser, text: str, wanted: Mapping[str, MetricKind]) -> Parsed:
    """Read benchmark output.

    *format* is a name in FORMATS, or a parser. *wanted* says which metrics must be there, and which
    of them are digests. A digest that was printed with two values is a problem, so is a wanted
    metric that was not printed; a problem with its benchmark is the reason. Of a parser that raises
    no number is kept.

    Raises:
        ConfigError: no format has this name.
    """
    if isinstance(format, str):
        if format not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise ConfigError("output.format", [("", f"{format!r}: known are {known}")])
        format = FORMATS[format]
    samples: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    problems: list[Problem] = []
    origins: dict[str, str] = {}
    try:
        for item in format(text):
            name = _name(item.metric)
            if isinstance(item, Problem):
                problems.append(Problem(name, item.found, item.line, item.why))
                continue
            origin = origins.setdefault(name, item.metric)
            value = _number(item.value)
            if origin != item.metric:
                why = f"shares the name {name} with {origin}"
                problems.append(Problem(name, item.metric, item.line, why))
            elif wanted.get(name) == "digest":
                found = str(item.value)
                if found in _NO_DIGEST:
                    problems.append(Problem(name, found, item.line, "not a digest"))
                elif texts.setdefault(name, found) != found:
                    why = f"printed before as {texts[name]!r}"
                    problems.append(Problem(name, found, item.line, why))
            elif value is not None:
                samples.setdefault(name, []).append(value)
            elif item.declared or name in wanted:
                problems.append(Problem(name, str(item.value), item.line))
    except (
        Exception
    ) as error:  # a parser of somebody else's, reading the output of a broken program
        samples, texts = {}, {}
        why = f"the parser failed: {type(error).__name__}: {error}"
        problems.append(Problem("", "", why=why))
    named = {*samples, *texts, *(problem.metric for problem in problems)}
    problems += [_missing(name, problems) for name in wanted if name not in named]
    return Parsed({name: tuple(values) for name, values in samples.items()}, texts, tuple(problems))


def lines(text: str, separator: str = "=") -> Iterator[Found]:
    """`key=value` and `METRIC key=value`, one to a line, among any other text.

    The value is all of the rest of the line, and a number has no unit behind it. Only a line with
    METRIC declares a metric: `mode=fast` is other text unless it is wanted.
    """
    pattern = re.compile(rf"(METRIC\s+)?([\w./-]+)\s*{re.escape(separator)}\s*(.*)")
    for number, line in enumerate(text.split("\n"), 1):
        if match := pattern.fullmatch(line.strip()):
            declared, name, value = match.groups()
            yield Found(name, value, number, declared is not None)


def json_object(text: str) -> Iterator[Found | Problem]:
    """One JSON object; keys of nested ones are joined by dots, lists are samples of their key.

    If it is not all of the text, it is the last object that begins a line and ends one. A text
    whose last line belongs to a broken object has none. A string counts as the text in it; what is
    no number is other text unless it is wanted.
    """
    document, line = _document(text)
    if document is None:
        yield _no_object(text)
    else:
        yield from _flat(document, line)


def json_lines(text: str) -> Iterator[Found | Problem]:
    """One JSON object to a line, read as `json_object` does; repeated keys are samples.

    Lines that do not begin with a brace are other text.
    """
    seen = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("{"):
            seen = True
            document, _ = _document(line)
            if document is None:
                yield Problem("", _short(line), number, "not a JSON object")
            else:
                yield from _flat(document, number)
    if not seen:
        yield _no_object(text)


def google_benchmark(text: str) -> Iterator[Found | Problem]:
    """Google Benchmark with `--benchmark_format=json`.

    `<benchmark>.real_time` and `.cpu_time` in seconds per iteration; `.items_per_second`,
    `.bytes_per_second` and counters as they are. Repetitions are samples; aggregates of them are
    left out. A benchmark that ended by an error or was skipped has a problem and no numbers.
    """
    for entry in _entries(text, "benchmarks"):
        if isinstance(entry, Problem):
            yield entry
            continue
        name = _text(entry.get("name", ""))
        if entry.get("run_type") == "aggregate":
            continue
        if entry.get("error_occurred") or entry.get("skipped"):
            why = (
                "the benchmark failed"
                if entry.get("error_occurred")
                else "the benchmark was skipped"
            )
            message = entry.get("error_message", entry.get("skip_message", ""))
            yield Problem(name, _text(message), why=why)
            continue
        for key, value in entry.items():
            if key in ("real_time", "cpu_time"):
                yield _seconds(f"{name}.{key}", value, _text(entry.get("time_unit", "")))
            elif key not in _GOOGLE_FIELDS:
                yield Found(f"{name}.{key}", _text(value), declared=False)


def hyperfine(text: str) -> Iterator[Found | Problem]:
    """hyperfine with `--export-json`; seconds throughout.

    `seconds` has one sample per run, `user` and `system` are the means that hyperfine reports. With
    several commands each is `<command>.seconds` and so on. A command with an exit code other than 0
    has a problem and no numbers: what failed was not measured.
    """
    entries = list(_entries(text, "results"))
    for entry in entries:
        if isinstance(entry, Problem):
            yield entry
            continue
        prefix = f"{_text(entry.get('command', ''))}." if len(entries) > 1 else ""
        codes = entry.get("exit_codes")
        failed = [_text(code) for code in codes if code != "0"] if isinstance(codes, list) else []
        if failed:
            why = f"{len(failed)} of the runs failed"
            yield Problem(f"{prefix}seconds", f"exit code {', '.join(sorted({*failed}))}", why=why)
            continue
        for metric, key in (("seconds", "times"), ("user", "user"), ("system", "system")):
            yield from _values(f"{prefix}{metric}", entry.get(key, ""))


def pytest_benchmark(text: str) -> Iterator[Found | Problem]:
    """pytest-benchmark with `--benchmark-json`: `<test>.seconds`, per iteration.

    One sample per round where the file has them (`--benchmark-save-data` or the default of
    `--benchmark-json`), else the mean. Tests of one name in two files are a problem, not samples of
    each other.
    """
    entries = list(_entries(text, "benchmarks"))
    names = Counter(
        _text(entry.get("name", "")) for entry in entries if not isinstance(entry, Problem)
    )
    for entry in entries:
        if isinstance(entry, Problem):
            yield entry
            continue
        name = _text(entry.get("name", ""))
        stats = entry.get("stats")
        if names[name] > 1:
            yield Problem(
                f"{name}.seconds",
                _text(entry.get("fullname", "")),
                why="several tests have this name",
            )
        elif isinstance(stats, dict):
            yield from _values(f"{name}.seconds", stats.get("data") or stats.get("mean", ""))
        else:
            yield Problem(f"{name}.seconds", "", why="no stats")


FORMATS: Mapping[str, Parser] = MappingProxyType(
    {
        "lines": lines,
        "colon-lines": partial(lines, separator=":"),
        "json": json_object,
        "jsonl": json_lines,
        "google-benchmark": google_benchmark,
        "hyperfine": hyperfine,
        "pytest-benchmark": pytest_benchmark,
        "criterion": criterion,
        "db_bench": db_bench,
    }
)
"""The parsers by name. `colon-lines` is `lines` for `key: value`."""

_UNITS = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0}
_GOOGLE_FIELDS = frozenset(
    {
        "name",
        "run_name",
        "run_type",
        "family_index",
        "per_family_instance_index",
        "repetitions",
        "repetition_index",
        "threads",
        "iterations",
        "time_unit",
        "label",
    }
)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NO_DIGEST = ("", "null")


def _number(value: float | str) -> float | None:
    """The finite number that a text is, entirely; None for anything else."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _missing(name: str, problems: list[Problem]) -> Problem:
    """Why a wanted metric is not there: what is said of a benchmark is said of all it measures."""
    for problem in problems:
        if problem.metric and name.startswith(f"{problem.metric}."):
            return Problem(name, problem.found, problem.line, problem.why)
    return Problem(name, "", why="not printed")


def _name(text: str) -> str:
    return re.sub(r"[^\w./-]+", "_", text)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _no_object(text: str) -> Problem:
    """About the end of the text: there it was cut off, or says why."""
    ending = text.rstrip()
    return Problem("", _short(ending.rpartition("\n")[2]), ending.count("\n") + 1, "no JSON object")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all of its keys, the repeated ones too."""


_OBJECT = re.compile(r"^[ \t]*(?=\{\s*(?:[\"}]|\Z))", re.MULTILINE)
_REST_OF_LINE = re.compile(r"[^\S\n]*$", re.MULTILINE)
# Numbers stay text here: a digest keeps its digits, and there is one rule for what a number is.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_float=str, parse_int=str, parse_constant=str
)


def _document(text: str) -> tuple[_Pairs | None, int | None]:
    """The last object that begins a line and ends one, and its line if it needs just one."""
    document: _Pairs | None = None
    start = end = 0
    last_line = text.rstrip().rfind("\n")
    for match in _OBJECT.finditer(text):
        if match.end() < end:
            continue
        try:
            candidate, after = _DECODER.raw_decode(text, match.end())
        except json.JSONDecodeError as error:
            if error.pos > last_line:
                return None, None
            continue
        except RecursionError:
            return None, None
        if not _REST_OF_LINE.match(text, after):
            end = after
            continue
        document, start, end = candidate, match.end(), after
    one_line = document is not None and "\n" not in text[start:end]
    return document, text.count("\n", 0, start) + 1 if one_line else None


def _flat(document: _Pairs, line: int | None) -> Iterator[Found]:
    """Every value of a document in its order: keys joined by dots, lists under one name."""
    todo: list[tuple[str, Any]] = document[::-1]
    while todo:
        name, value = todo.pop()
        if isinstance(value, _Pairs):
            todo += [(f"{name}.{key}", inner) for key, inner in reversed(value)]
        elif isinstance(value, list):
            todo += [(name, inner) for inner in reversed(value)]
        else:
            yield Found(name, _text(value), line, declared=False)


def _entries(text: str, key: str) -> Iterator[dict[str, Any] | Problem]:
    """The objects in the list under this key, as ordinary dicts."""
    document, _ = _document(text)
    if document is None:
        yield _no_object(text)
        return
    entries = dict(document).get(key)
    if not isinstance(entries, list) or isinstance(entries, _Pairs) or not entries:
        yield Problem("", "", why=f"no list {key!r}, or an empty one")
        return
    for entry in entries:
        if isinstance(entry, _Pairs):
            yield {name: _plain(value) for name, value in entry}
        else:
            yield Problem("", _short(_text(entry)), why=f"not an object, in {key!r}")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, _Pairs) else value


def _values(metric: str, value: Any) -> Iterator[Found]:
    """The samples under one key: a list of them, or one."""
    for each in value if isinstance(value, list) else [value]:
        yield Found(metric, _text(each))


def _seconds(metric: str, value: Any, unit: str) -> Found | Problem:
    number = _number(_text(value))
    if unit not in _UNITS:
        return Problem(metric, unit, why="not a unit of time")
    return Found(metric, _text(value) if number is None else number / _UNITS[unit])


def _text(value: Any) -> str:
    """A JSON value as it was written, near enough to recognise it."""
    return value if isinstance(value, str) else json.dumps(value)
