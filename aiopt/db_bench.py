"""The output of RocksDB's db_bench (written for 7.8; that of 6 to 10 differs in nothing that is
read here).

    fillrandom   :      21.958 micros/op 45480 ops/sec 2.199 seconds 100000 operations;    5.0 MB/s
    readrandom   :       6.225 micros/op 158297 ops/sec 0.632 seconds 100000 operations; \
11.0 MB/s (62896 of 100000 found)

It exits with 0 where it measured nothing: reading a database that is not there is very fast.
"""

import re
from collections.abc import Iterator

from attrs import define, field

from aiopt.found import Found, Problem

__all__ = ["db_bench"]

_RESULT = re.compile(
    r"(?P<name>\S+) +: +(?P<micros_per_op>\S+) micros/op (?P<ops_per_sec>[^ ;]+) ops/sec"
    r"(?: (?P<seconds>\S+) seconds)?(?: (?P<operations>\S+) operations)?;?(?P<rest>.*)$"
)
_RATE = re.compile(r" *(\S+) MB/s\b")
_OF = re.compile(r"\(([0-9]+) of ([0-9]+) found\)")
_COUNTED = re.compile(r"\b(reads|writes|total|updates|merges|deletes|found):([0-9]+)")
_WARMING = re.compile(r"Warming up benchmark by running ([0-9]{1,6}) times")
_OPERATION = re.compile(r"Microseconds per (\S+):$")
_COUNT = re.compile(r"Count: (\S+) +Average: (\S+) +StdDev: (\S+)")
_RANGE = re.compile(r"Min: (\S+) +Median: (\S+) +Max: (\S+)")
_PERCENTILE = re.compile(r"\bP(100|[0-9]{1,2}(?:\.[0-9]{1,4})?) ?: (\S+)")
_TICKER = re.compile(r"(rocksdb\.\S+) COUNT : (\S+)$")
_HISTOGRAM = re.compile(r"(rocksdb\.\S+) P50 : .* COUNT : (\S+) SUM : (\S+)$")
_CONTEXT = re.compile(r"\b(\w+) = ([0-9]+)(?=,|$)")
_COMPACTION = re.compile(r"Cumulative compaction: (\S+) GB write, \S+ MB/s write, (\S+) GB read")
_STALL = re.compile(r"Cumulative stall: \S+ H:M:S, (\S+) percent")
_WRONG = re.compile(
    r"(unknown benchmark '.*'|ERROR: unknown command line flag.*|ERROR: .* flag .*|open error: .*"
    r"|(?:put|get|multiget) error: .*)"
)


def db_bench(text: str) -> Iterator[Found | Problem]:
    """RocksDB's db_bench, stdout with or without stderr.

    Of each benchmark `B.micros_per_op` (of one thread), `B.ops_per_sec` (of all threads),
    `B.seconds`, `B.operations`, `B.mb_per_sec`; `B.found_ratio`, what it found of what it looked
    up. Of its message the counts `B.reads`, `B.writes`, `B.total`, `B.updates`, `B.found`, which
    are those of one of its threads.

    With `--histogram=1`, by kind of operation (read, write …): `B.read.p50_us`, `.p99_us`,
    `.p99.9_us`, `.average_us`, `.min_us`, `.median_us`, `.max_us`. With `--perf_level`, the
    counters of RocksDB's PerfContext as `B.perf.NAME`. With `--statistics=1`: `rocksdb.TICKER`, and
    of its histograms `rocksdb.NAME.p50`, `.p99`, `.count`, `.sum`. Of the benchmark `stats`:
    `stats.write_amplification`, `stats.compaction_write_gb`, `stats.compaction_read_gb`,
    `stats.stall_percent`.

    A benchmark that runs several times has a sample for each; the lines that sum these up, and
    warm-ups, are passed over. One that looked for keys and found none (unless it is for missing
    ones), or did no operation, is a problem and has no numbers.
    """
    reading = _Reading()
    *complete, rest = text.split("\n")
    for number, line in enumerate(complete, 1):
        # Progress on stderr ends with a carriage return.
        yield from reading.line(line.rstrip().rpartition("\r")[2], number)
    if rest.strip():
        # What a result is worth stands at the end of its line.
        yield Problem("", rest.strip()[-80:], len(complete) + 1, "cut: the last line has no end")
    if not reading.results:
        yield Problem("", "", why="no result line of db_bench (`name : … micros/op …`)")


@define
class _Reading:
    results: int = 0
    warming: int = 0
    """Results that are still to be passed over."""
    benchmark: str = ""
    """The latest one that counts; empty during a warm-up, or after one that measured nothing."""
    operation: str = ""
    in_context: bool = False
    columns: list[str] = field(factory=list)
    """Of the table of compactions that is being read."""

    def line(self, line: str, number: int) -> Iterator[Found | Problem]:
        if found := _RESULT.match(line):
            self.results += 1
            self.operation, self.in_context = "", False
            yield from self._result(found, number)
        elif found := _WARMING.match(line):
            self.warming = int(found[1])
        elif found := _OPERATION.match(line):
            self.operation = found[1]
        elif line.strip() == "PERF_CONTEXT:":
            self.in_context = True
        elif self.in_context:
            self.in_context = False
            for name, value in _CONTEXT.findall(line) if self.benchmark else ():
                yield Found(f"{self.benchmark}.perf.{name}", value, number, declared=False)
        elif self.operation and line.startswith(("Count: ", "Min: ", "Percentiles: ")):
            yield from self._latency(line, number)
        elif line.startswith("rocksdb."):
            yield from _statistics(line, number)
        elif found := _WRONG.match(line):
            yield Problem("", found[1][:200], number, "db_bench failed")
        else:
            yield from self._stats(line, number)

    def _result(self, found: re.Match[str], number: int) -> Iterator[Found | Problem]:
        name, rest = found["name"], found["rest"]
        self.benchmark = ""
        if self.warming:
            self.warming -= 1
            return
        looked_up = _OF.search(rest)
        if looked_up and int(looked_up[1]) == 0 and "missing" not in name:
            why = "it found nothing, so it measured nothing: is the database there?"
            yield Problem(f"{name}.ops_per_sec", looked_up[0], number, why)
            return
        if found["operations"] == "0":
            yield Problem(f"{name}.ops_per_sec", "0 operations", number, "it did nothing")
            return
        self.benchmark = name
        for key in ("micros_per_op", "ops_per_sec", "seconds", "operations"):
            if found[key] is not None:
                yield Found(f"{name}.{key}", found[key], number)
        if rate := _RATE.match(rest):
            yield Found(f"{name}.mb_per_sec", rate[1], number)
        if looked_up and int(looked_up[2]):
            yield Found(f"{name}.found_ratio", int(looked_up[1]) / int(looked_up[2]), number)
        for key, count in _COUNTED.findall(rest):
            yield Found(f"{name}.{key}", count, number)

    def _latency(self, line: str, number: int) -> Iterator[Found]:
        if not self.benchmark:
            return
        prefix = f"{self.benchmark}.{self.operation}"
        if found := _COUNT.match(line):
            yield Found(f"{prefix}.average_us", found[2], number)
        elif found := _RANGE.match(line):
            for key, value in zip(("min", "median", "max"), found.groups(), strict=True):
                yield Found(f"{prefix}.{key}_us", value, number)
        for percent, value in _PERCENTILE.findall(line):
            yield Found(f"{prefix}.p{percent}_us", value, number)

    def _stats(self, line: str, number: int) -> Iterator[Found]:
        words = line.split()
        if "W-Amp" in words:
            # A size is two words (`0.00 KB`), so columns are counted from the right.
            self.columns = words if words[0] == "Level" else []
        elif words[:1] == ["Sum"] and self.columns:
            at = self.columns.index("W-Amp") - len(self.columns)
            if len(words) > -at:
                yield Found("stats.write_amplification", words[at], number, declared=False)
            self.columns = []
        elif found := _COMPACTION.match(line):
            yield Found("stats.compaction_write_gb", found[1], number, declared=False)
            yield Found("stats.compaction_read_gb", found[2], number, declared=False)
        elif found := _STALL.match(line):
            yield Found("stats.stall_percent", found[1], number, declared=False)


def _statistics(line: str, number: int) -> Iterator[Found]:
    if found := _HISTOGRAM.match(line):
        name = found[1]
        for percent, value in _PERCENTILE.findall(line):
            yield Found(f"{name}.p{percent}", value, number, declared=False)
        yield Found(f"{name}.count", found[2], number, declared=False)
        yield Found(f"{name}.sum", found[3], number, declared=False)
    elif found := _TICKER.match(line):
        yield Found(found[1], found[2], number, declared=False)
