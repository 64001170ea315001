"""The output of RocksDB's db_bench (written for 7.8; from 6 on, the lines that are read differ only
in what they leave out).

    fillrandom   :      21.958 micros/op 45480 ops/sec 2.199 seconds 100000 operations;    5.0 MB/s
    readrandom   :       6.225 micros/op 158297 ops/sec 0.632 seconds 100000 operations; \
11.0 MB/s (62896 of 100000 found)

db_bench exits with 1 where it does not know a flag or a benchmark, and with 0 where it measured
nothing: reading a database that is not there is very fast. So the exit code proves nothing, and a
benchmark that found nothing has no numbers here.
"""

import re
from collections.abc import Iterator

from attrs import define, field

from aiopt.found import Found, Problem

__all__ = ["db_bench"]

_LONGEST = 1 << 16
"""Characters. Longer lines are other text: db_bench's longest, of PerfContext, has some 10,000."""

_RESULT = re.compile(
    # `timeseries write` is the one name with a blank.
    r"(?P<name>\S+(?: write)?) +: +(?P<micros_per_op>\S+) micros/op "
    r"(?P<ops_per_sec>[^ ;]+) ops/sec"
    r"(?: (?P<seconds>\S+) seconds)?(?: (?P<operations>\S+) operations)?;?(?P<rest>.*)$"
)
_RATE = re.compile(r" *(\S+) MB/s\b")
_MESSAGE = re.compile(r"\(([^()]*)\)")
# mixgraph says `reads 7 in 9 found`.
_OF = re.compile(r"(\(|reads )([0-9]{1,18}) (?:of|in) ([0-9]{1,18}) found\b")
_COUNTED = re.compile(r"\b([A-Za-z]{1,20}):([0-9]{1,18})(?![\w.])")
_READS = ("reads", "updates", "get")
_SKIPPED = re.compile(r"(\S+) +: (skipped \(.*\))")
_WARMING = re.compile(r"Warming up benchmark by running ([0-9]{1,6}) times")
_INTERIM = re.compile(r"\.\.\. thread [0-9]{1,9}: \(")
_OPERATION = re.compile(r"Microseconds per (\S+):$")
_LEVEL_READS = re.compile(r"\*\* Level ([0-9]{1,3}) read latency histogram \(micros\):")
_COUNT = re.compile(r"Count: (\S+) +Average: (\S+) +StdDev: (\S+)")
_RANGE = re.compile(r"Min: (\S+) +Median: (\S+) +Max: (\S+)")
_PERCENTILE = re.compile(r"\bP(100|[0-9]{1,2}(?:\.[0-9]{1,4})?) ?: (\S+)")
_TICKER = re.compile(r"(rocksdb\.\S+) COUNT : (\S+)$")
_HISTOGRAM = re.compile(r"(rocksdb\.\S+) P50 : .* COUNT : (\S+) SUM : (\S+)$")
_PROPERTY = re.compile(r"(rocksdb\.[^\s:]+): ([0-9]+)$")
_CONTEXT = re.compile(r"\b(\w+) = ([0-9]+)(?=,|$)")
_LEVEL = re.compile(r" *([0-9]{1,3}) +([0-9]{1,18}) +([0-9]{1,18})$")
_COMPACTION = re.compile(r"Cumulative compaction: (\S+) GB write, \S+ MB/s write, (\S+) GB read")
_STALL = re.compile(r"Cumulative stall: \S+ H:M:S, (\S+) percent")
_BANNER = re.compile(r"-+$|[A-Z][\w ]*: |Initializing |Set seed ")
_WRONG = re.compile(
    r"unknown benchmark |ERROR: |(?:Get|MultiGet) returned an error: "
    r"|(?:[Ii]terator|open|put|get|merge|write|del|delete|deletemany|deleterange|getmany|putmany"
    r"|put or merge|create column family) error: "
    r"|(?:Flush|Operation|Replay|VerifyChecksum\(\)|VerifyFileChecksums\(\)) failed: "
    r"|RandomTransactionVerify FAILED|Cannot parse |Invalid value for --|terminate called "
    r"|Received signal [0-9]"
)
_ZERO = re.compile(r"0+(?:\.0*)?")

_HIT, _MISS = "rocksdb.block.cache.hit", "rocksdb.block.cache.miss"
_COMPACTED, _FLUSHED = "rocksdb.compact.write.bytes", "rocksdb.flush.write.bytes"
_QUOTIENTS = {
    _HIT: ("rocksdb.block.cache.hit_ratio", (_HIT,), (_HIT, _MISS)),
    _FLUSHED: ("rocksdb.write_amplification", (_COMPACTED, _FLUSHED), (_FLUSHED,)),
}
"""Of sums of tickers, by the last one that is printed of them."""


def db_bench(text: str) -> Iterator[Found | Problem]:
    """RocksDB's db_bench, stdout with or without stderr; larger is better where it says (+).

    Of each benchmark `B.micros_per_op` (of one thread), `B.ops_per_sec` (+, of all threads),
    `B.seconds`, `B.operations`, `B.mb_per_sec` (+, MiB); `B.found_ratio` (+), what it found of what
    it looked up. Of its message the counts, such as `B.reads`, `B.writes`, `B.total`, `B.updates`,
    `B.found`, which are those of one of its threads.

    With `--histogram=1`, by kind of operation (read, write …), in microseconds: `B.read.p50_us`,
    `.p99_us`, `.p99.9_us`, `.average_us`, `.min_us`, `.median_us`, `.max_us`; and `B.read.count`.
    With `--perf_level`, the counters of RocksDB's PerfContext as `B.perf.NAME`.

    With `--statistics=1`, of the whole run: `rocksdb.TICKER`; of histograms `rocksdb.NAME.p50`,
    `.p95`, `.p99`, `.p100`, `.count`, `.sum` (µs where the name says micros). Of tickers also
    `rocksdb.block.cache.hit_ratio` (+) and `rocksdb.write_amplification`, all bytes that were
    written by one that was flushed, which RocksDB prints as `W-Amp`, rounded.

    Of the benchmark `stats`, from the opening of the database on: `stats.write_amplification`,
    `stats.compaction_write_gb` and `stats.compaction_read_gb` (GiB), `stats.stall_percent`,
    `stats.level0.read.p99_us` and so on. Of `levelstats`: `levelstats.level0.files`, `.size_mb`.
    Of `memstats`: `rocksdb.PROPERTY`.

    A benchmark that runs several times has a sample for each; the lines that sum these up, warm-ups
    and statistics of intervals are passed over. One that was skipped, looked for keys and found
    none (unless it is for missing ones), did no operation or took no time is a problem and has no
    numbers. What was rounded to 0 is no number: 0.000 seconds is not the best of all times.
    """
    reading = _Reading()
    *complete, rest = text.split("\n")
    for number, line in enumerate(complete, 1):
        # Progress on stderr ends with a carriage return.
        line = line.rstrip().rpartition("\r")[2]
        if len(line) <= _LONGEST:
            yield from reading.line(line, number)
    rest = rest.rpartition("\r")[2].strip()
    if rest and not rest.startswith("... finished "):
        # What a result is worth stands at the end of its line.
        yield Problem("", rest[-80:], len(complete) + 1, "cut: the last line has no end")
    if not reading.results:
        why = "no result line of db_bench (`name : … micros/op …`)"
        yield Problem("", reading.last[:200], None, why)


@define
class _Reading:
    results: int = 0
    """Without those of warm-ups."""
    last: str = ""
    """The latest line that is nothing known: where there is no result, it may say why."""
    warming: int = 0
    """Results that are still to be passed over."""
    benchmark: str = ""
    """The latest one that counts; empty during a warm-up, or after one that measured nothing."""
    block: str = ""
    """The name of the histogram that is being read."""
    in_context: bool = False
    interim: bool = False
    """Whether statistics are those of an interval, on stderr."""
    columns: list[str] = field(factory=list)
    """Of the table of compactions that is being read."""
    in_levels: bool = False
    tickers: dict[str, int] = field(factory=dict)

    def line(self, line: str, number: int) -> Iterator[Found | Problem]:
        if found := _RESULT.match(line):
            self.block, self.in_context, self.interim = "", False, False
            yield from self._result(found, number)
        elif found := _SKIPPED.match(line):
            self.benchmark = self.block = ""
            yield Problem(found[1], found[2], number, "db_bench skipped it")
        elif found := _WARMING.match(line):
            self.warming = int(found[1])
        elif _INTERIM.search(line):
            self.interim, self.block, self.columns = True, "", []
        elif found := _OPERATION.match(line):
            self.block = f"{self.benchmark}.{found[1]}" if self.benchmark else ""
        elif line.startswith("** "):
            level = None if self.interim else _LEVEL_READS.match(line)
            self.block = f"stats.level{level[1]}.read" if level else ""
        elif line.strip() == "PERF_CONTEXT:":
            self.in_context = True
        elif self.in_context:
            self.in_context = False
            for name, value in _CONTEXT.findall(line) if self.benchmark else ():
                yield Found(f"{self.benchmark}.perf.{name}", value, number, declared=False)
        elif self.block and line.startswith(("Count: ", "Min: ", "Percentiles: ")):
            yield from self._latency(line, number)
        elif line.startswith("rocksdb."):
            yield from self._statistics(line, number)
        elif _WRONG.match(line):
            yield Problem("", line[:200], number, "db_bench failed")
        elif not self.interim:
            yield from self._stats(line, number)
            if line.strip() and not _BANNER.match(line):
                self.last = line.strip()

    def _result(self, found: re.Match[str], number: int) -> Iterator[Found | Problem]:
        name, rest = found["name"], found["rest"]
        self.benchmark = ""
        if self.warming:
            self.warming -= 1
            return
        self.results += 1
        message = _MESSAGE.search(rest)
        counts = {key.lower(): n for key, n in _COUNTED.findall(message[1])} if message else {}
        of = _OF.search(rest)
        found_none = int(counts.get("found", 1)) == 0 and any(int(counts.get(r, 0)) for r in _READS)
        if of:
            # mixgraph may do without reading, what says `(0 of 0 found)` exists for it.
            found_none = int(of[2]) == 0 and (of[1] == "(" or int(of[3]) > 0)
        nothing = {
            "it did nothing": found["operations"] == "0",
            # A time of 0 is infinitely many per second, which db_bench prints as less than 0.
            "it took no time that can be told": (
                found["ops_per_sec"].startswith("-") or _ZERO.fullmatch(found["micros_per_op"])
            ),
            "it found nothing, so it measured nothing: is the database there?": (
                found_none and "missing" not in name
            ),
        }
        for why in (why for why, holds in nothing.items() if holds):
            printed = message[0] if message else f"{found['ops_per_sec']} ops/sec"
            yield Problem(name, printed, number, why)
            return
        self.benchmark = name
        for key in ("micros_per_op", "ops_per_sec", "seconds", "operations"):
            if found[key] is not None:
                yield _above_zero(f"{name}.{key}", found[key], number)
        if rate := _RATE.match(rest):
            yield _above_zero(f"{name}.mb_per_sec", rate[1], number)
        if of and int(of[3]):
            yield Found(f"{name}.found_ratio", int(of[2]) / int(of[3]), number)
        for key, count in counts.items():
            yield Found(f"{name}.{key}", count, number)

    def _latency(self, line: str, number: int) -> Iterator[Found]:
        if found := _COUNT.match(line):
            if found[1] == "0":
                self.block = ""
                return
            yield Found(f"{self.block}.count", found[1], number, declared=False)
            yield Found(f"{self.block}.average_us", found[2], number)
        elif found := _RANGE.match(line):
            for key, value in zip(("min", "median", "max"), found.groups(), strict=True):
                yield Found(f"{self.block}.{key}_us", value, number)
        for percent, value in _PERCENTILE.findall(line):
            yield Found(f"{self.block}.p{percent}_us", value, number)
        if line.startswith("Percentiles: "):
            self.block = ""

    def _statistics(self, line: str, number: int) -> Iterator[Found]:
        if found := _HISTOGRAM.match(line):
            name = found[1]
            for percent, value in _PERCENTILE.findall(line):
                value = f"{value} of no samples" if found[2] == "0" else value
                yield Found(f"{name}.p{percent}", value, number, declared=False)
            yield Found(f"{name}.count", found[2], number, declared=False)
            yield Found(f"{name}.sum", found[3], number, declared=False)
        elif found := _TICKER.match(line):
            yield Found(found[1], found[2], number, declared=False)
            if re.fullmatch("[0-9]{1,18}", found[2]):
                yield from self._quotient(found[1], int(found[2]), number)
        elif found := _PROPERTY.match(line):
            yield Found(found[1], found[2], number, declared=False)

    def _quotient(self, ticker: str, value: int, number: int) -> Iterator[Found]:
        if ticker in (_HIT, _MISS, _COMPACTED, _FLUSHED):
            self.tickers[ticker] = value
        if ticker in _QUOTIENTS:
            name, above, below = _QUOTIENTS[ticker]
            known = {*above, *below} <= self.tickers.keys()
            if known and (divisor := sum(self.tickers[each] for each in below)):
                quotient = sum(self.tickers[each] for each in above) / divisor
                yield Found(name, quotient, number, declared=False)

    def _stats(self, line: str, number: int) -> Iterator[Found]:
        words = line.split()
        if words == ["Level", "Files", "Size(MB)"]:
            self.in_levels = True
        elif self.in_levels and (found := _LEVEL.match(line)):
            yield Found(f"levelstats.level{found[1]}.files", found[2], number, declared=False)
            yield Found(f"levelstats.level{found[1]}.size_mb", found[3], number, declared=False)
        elif "W-Amp" in words:
            self.columns = words if words[0] == "Level" else []
        elif words[:1] == ["Sum"] and self.columns:
            # A size is two words (`0.00 KB`), so columns are counted from the right.
            if len(words) == len(self.columns) + 1:
                value = words[self.columns.index("W-Amp") - len(self.columns)]
                yield _above_zero("stats.write_amplification", value, number, declared=False)
            self.columns = []
        elif found := _COMPACTION.match(line):
            for key, value in zip(("write", "read"), found.groups(), strict=True):
                yield _above_zero(f"stats.compaction_{key}_gb", value, number, declared=False)
        elif found := _STALL.match(line):
            yield Found("stats.stall_percent", found[1], number, declared=False)
        elif words and not line.startswith("---"):
            self.in_levels = False


def _above_zero(metric: str, value: str, line: int, declared: bool = True) -> Found:
    """What was rounded to 0 says so where it is wanted."""
    if _ZERO.fullmatch(value):
        return Found(metric, f"{value}, rounded to 0", line, declared=False)
    return Found(metric, value, line, declared)
