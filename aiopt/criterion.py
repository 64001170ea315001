"""The output of Rust's criterion benchmarks, as `cargo bench` prints it."""

import re
from collections.abc import Iterator

from aiopt.found import Found, Problem

__all__ = ["criterion"]

_TIME = re.compile(
    r"(?P<name>.*?)\s*\btime:\s+\[\S+ \S+ (?P<value>\S+) (?P<unit>\S+) \S+ \S+\]\s*$"
)
_BENCHER = re.compile(r"test (?P<name>.+?)\s+\.\.\. bench:\s+(?P<ns>[0-9.,]+) ns/iter")
_UNITS = {"ps": 1e-12, "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}


def criterion(text: str) -> Iterator[Found | Problem]:
    """criterion on stdout, also with `--output-format bencher`: `<benchmark>.seconds`, per
    iteration.

    The one sample of a benchmark is criterion's estimate, the middle of its three numbers. The
    lines `change:` and `thrpt:` say what was there before, or the same again.
    """
    above = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _TIME.match(line):
            # A long name is on a line of its own, above.
            name = found["name"].strip() or above
            scale = _UNITS.get(found["unit"])
            if scale is None or not name:
                why = "not a time of criterion's" if scale is None else "the benchmark has no name"
                yield Problem(f"{name}.seconds", line.strip()[:100], number, why)
            else:
                yield Found(f"{name}.seconds", _scaled(found["value"], scale), number)
        elif found := _BENCHER.match(line):
            value = _scaled(found["ns"].replace(",", ""), 1e-9)
            yield Found(f"{found['name']}.seconds", value, number)
        above = line.strip()


def _scaled(text: str, scale: float) -> float | str:
    try:
        return float(text) * scale
    except ValueError:
        return text
