"""db_bench's output: the figures are those that were printed, of the right benchmark, and what
measured nothing has none.

The files in tests/data/db_bench are what RocksDB 7.8.3 printed: stdout, in 05 with stderr behind
it, in 06 and 16 as it came. Of 13 and later ones lines that say nothing more were taken out.
"""

import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.benchmark_output import result_of
from aiopt.metrics import Parsed, parse
from aiopt.protocols import Failed, Measured

DATA = Path(__file__).parent / "data" / "db_bench"
FILES = sorted(DATA.glob("*.txt"))
NO_RESULT = "no result line of db_bench"


def content(name: str) -> str:
    # Not read_text, which would make lines of the progress.
    return next(DATA.glob(f"{name}*")).read_bytes().decode()


def read(name: str) -> Parsed:
    return parse("db_bench", content(name), {})


def read_text(text: str) -> Parsed:
    return parse("db_bench", text, {})


def problems(parsed: Parsed) -> str:
    return "; ".join(str(each) for each in parsed.problems)


@pytest.mark.parametrize(
    ("file", "metric", "samples"),
    [
        ("01", "fillrandom.micros_per_op", (21.958,)),
        ("01", "fillrandom.ops_per_sec", (45480,)),
        ("01", "fillrandom.operations", (100000,)),
        ("01", "readrandom.found_ratio", (0.62896,)),
        ("01", "readrandom.mb_per_sec", (11.0,)),
        ("01", "readseq.seconds", (0.151,)),
        ("02", "fillrandom.micros_per_op", (105.21,)),
        ("02", "fillrandom.ops_per_sec", (35178,)),
        ("03", "fillrandom.write.p50_us", (4.83,)),
        ("03", "fillrandom.write.p99_us", (18.34,)),
        ("03", "fillrandom.write.p99.9_us", (10284.38,)),
        ("04", "rocksdb.block.cache.miss", (0,)),
        ("05", "fillseq.micros_per_op", (74.424,)),
        ("05", "fillseq.mb_per_sec", (1.5,)),
        ("07", "fillrandom.operations", (68999,)),
        ("09", "readrandom.ops_per_sec", (41665,)),
        ("10", "readrandom.ops_per_sec", (57584, 67800, 74784)),
        ("11", "stats.stall_percent", (0,)),
        ("11", "readrandom.found_ratio", (0.6313,)),
        ("11", "levelstats.level1.files", (0,)),
        ("12", "readmissing.ops_per_sec", (103589,)),
        ("12", "readmissing.found_ratio", (0,)),
        ("12", "deleterandom.operations", (50000,)),
        ("13", "readrandom.perf.user_key_comparison_count", (804207,)),
        ("14", "fillseq.write.p99_us", (20.53,)),
        ("14", "readrandomwriterandom.read.p99_us", (13.45,)),
        ("14", "readrandomwriterandom.write.p99_us", (131.95,)),
        ("14", "readrandomwriterandom.write.max_us", (11213,)),
        ("14", "readrandomwriterandom.read.median_us", (2.1631,)),
        ("14", "readrandomwriterandom.found", (16000,)),
        ("15", "stats.write_amplification", (1.8, 1.8)),
        ("15", "rocksdb.write_amplification", (1.8189240187939801,)),
        ("15", "rocksdb.compact.write.bytes", (2059295,)),
        ("15", "levelstats.level1.files", (3,)),
        ("15", "levelstats.level0.size_mb", (1,)),
        ("15", "fillrandom.write.p99_us", (5.86,)),
        ("15", "stats.level0.read.p99_us", (2.74, 2.73)),
        ("15", "stats.level1.read.max_us", (4, 6)),
        ("15", "readrandom.read.p99_us", (12.6,)),
        ("16", "fillrandom.write.p99_us", (5.94,)),
        ("16", "stats.write_amplification", (2.7,)),
        ("16", "stats.compaction_write_gb", (0.01,)),
        ("16", "stats.level0.read.p99_us", (3.41,)),
        ("16", "readrandom.read.p99_us", (8.31,)),
        ("17", "updaterandom.found", (3000,)),
        ("17", "randomwithverify.get", (2700,)),
        ("17", "randomwithverify.found", (283,)),
        ("17", "mixgraph.gets", (3000,)),
        ("17", "mixgraph.found_ratio", (1,)),
        ("17", "readrandomfast.found_ratio", (2266 / 3100,)),
        ("17", "readrandommergerandom.hits", (883,)),
        ("17", "randomtransaction.batches", (3000,)),
        ("17", "randomreplacekeys.micros_per_op", (30.283,)),
        ("17", "compact.micros_per_op", (29888,)),
        ("17", "crc32c.mb_per_sec", (383.5,)),
        ("17", "rocksdb.size-all-mem-tables", (2048,)),
        ("19", "readrandom.micros_per_op", (0.704, 0.704)),
        ("19", "readrandom.read.p99_us", (1.3, 1.31)),
    ],
)
def test_figures_are_those_that_were_printed(
    file: str, metric: str, samples: tuple[float, ...]
) -> None:
    parsed = read(file)
    assert parsed.samples[metric] == pytest.approx(samples)
    assert not parsed.problems


def test_a_histogram_without_its_count_still_has_percentiles() -> None:
    text = "fill : 2.5 micros/op 400 ops/sec;\nMicroseconds per write:\n"
    text += "Count: 5\nMin: 3\nPercentiles: P50: 3\n"
    samples = read_text(text).samples
    assert {name for name in samples if ".write." in name} == {"fill.write.p50_us"}


def test_a_histogram_of_nothing_has_no_percentiles() -> None:
    text = "fill : 2.5 micros/op 400 ops/sec;\nMicroseconds per write:\n"
    text += "Count: 0 Average: 0.0000  StdDev: 0.00\nMin: 0  Median: 0.0000  Max: 0\n"
    text += "Percentiles: P50: 0.00 P99: 0.00\n"
    assert set(read_text(text).samples) == {"fill.micros_per_op", "fill.ops_per_sec"}
    samples = read("15").samples
    assert samples["rocksdb.multiget.io.batch.size.count"] == (0,)
    assert "rocksdb.multiget.io.batch.size.p50" not in samples
    wanted = parse("db_bench", content("15"), {"rocksdb.multiget.io.batch.size.p50": "number"})
    assert "'0.000000 of no samples'" in problems(wanted)


def test_histograms_of_statistics_have_percentiles_count_and_sum() -> None:
    samples = read("04").samples
    for key in ("p50", "p95", "p99", "p100", "count", "sum"):
        assert len(samples[f"rocksdb.db.get.micros.{key}"]) == 1
    assert samples["rocksdb.db.get.micros.p50"] <= samples["rocksdb.db.get.micros.p99"]


def test_what_found_nothing_has_measured_nothing() -> None:
    parsed = read("08")
    assert not parsed.samples
    assert "readrandom: '(0 of 1000 found)'" in problems(parsed)
    wanted = parse("db_bench", content("08"), {"readrandom.found_ratio": "number", "x": "number"})
    assert "readrandom.found_ratio: '(0 of 1000 found)': it found nothing" in problems(wanted)
    assert "x: not printed" in problems(wanted)
    result = result_of("db_bench", [content("08")])
    assert isinstance(result, Failed)
    assert "is the database there?" in result.reason


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        ("(0 of 5 found)", False),
        ("(0 of 0 found)", False),
        ("( updates:5 found:0)", False),
        ("( reads:4 writes:1 total:5 found:0)", False),
        ("( reads:0 writes:5 total:5 found:0)", True),
        ("( Gets:5 Puts:0 Seek:0, reads 0 in 5 found, avg size: 1.0 value, -nan scan)", False),
        ("( Gets:0 Puts:5 Seek:0, reads 0 in 0 found, avg size: 1.0 value, -nan scan)", True),
    ],
)
def test_reading_without_finding_does_not_count(message: str, counts: bool) -> None:
    line = f"read : 0.278 micros/op 3164556 ops/sec 0.010 seconds 5 operations; {message}\n"
    assert ("read.ops_per_sec" in read_text(line).samples) == counts
    assert ("it found nothing" in problems(read_text(line))) != counts
    missing = line.replace("read :", "readmissing :")
    assert read_text(missing).samples["readmissing.ops_per_sec"] == (3164556,)


def test_what_took_no_time_or_was_skipped_has_no_numbers() -> None:
    parsed = read("18")
    assert "'-9223372036854775808 ops/sec': it took no time" in problems(parsed)
    assert "seekrandom: '(0 of 3000 found)'" in problems(parsed)
    assert "mergerandom: 'skipped (--merge_operator is unknown)'" in problems(parsed)
    assert {name.partition(".")[0] for name in parsed.samples} == {"timeseries_write"}


def test_what_was_rounded_to_nothing_is_no_number() -> None:
    line = "compact : 5665000.000 micros/op 0 ops/sec 5.665 seconds 1 operations;    0.0 MB/s\n"
    wanted = parse("db_bench", line, {"compact.ops_per_sec": "number"})
    assert set(wanted.samples) == {
        "compact.micros_per_op",
        "compact.seconds",
        "compact.operations",
    }
    assert "'0, rounded to 0': not a finite number" in problems(wanted)
    assert "stats.write_amplification" not in read("11").samples


def test_what_did_nothing_has_measured_nothing() -> None:
    line = "fillseq      :       inf micros/op 0 ops/sec 0.000 seconds 0 operations;\n"
    parsed = read_text(line)
    assert not parsed.samples
    assert "it did nothing" in problems(parsed)
    assert "inf" in problems(read_text(line.replace("0 operations", "7 operations")))


def test_an_unknown_benchmark_or_flag_is_a_problem() -> None:
    assert "unknown benchmark 'nosuchbench'" in problems(read("06"))
    assert "no result line of db_bench" in problems(read("06"))


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: unknown command line flag 'x'",
        "ERROR: illegal value 'abc' specified for int32 flag 'threads'",
        "Cannot parse compression type 'nosuch'",
        "open error: IO error: `/dev/shm/x' exists but is not a directory",
        "Get returned an error: Corruption: block checksum mismatch: stored = 15, computed = 9",
        "put error: IO error: No space left on device",
        "terminate called after throwing an instance of 'std::invalid_argument'",
    ],
)
def test_what_went_wrong_is_said(line: str) -> None:
    parsed = read_text(f"... finished 100 ops     \r{line}\n")
    assert f"db_bench failed; {NO_RESULT}" in problems(parsed)
    assert line[:40] in problems(parsed).replace('"', "'").replace("\\'", "'")
    seen = read_text(f"{content('01')}\n{line}\n")
    assert "db_bench failed" in problems(seen)


def test_without_a_result_the_last_line_is_the_reason() -> None:
    words = "Please set use_existing_keys to true and specify a row cache size"
    head = "\n".join(content("01").split("\n")[:17])
    for end in ("", "WARNING: Assertions are enabled\n---------\n", "\n"):
        assert f"'{words}': {NO_RESULT}" in problems(read_text(f"{head}\n{words}\n{end}"))
    assert problems(read_text(head + "\n")).startswith(NO_RESULT)


def test_warm_ups_do_not_count() -> None:
    line = "fill : {} micros/op 5 ops/sec 1.0 seconds 5 operations;\nMicroseconds per write:\n"
    block = "Count: 5 Average: {} StdDev: 1\nPercentiles: P50: {} P99: 9\n"
    text = "Warming up benchmark by running 2 times\n"
    text += "".join((line + block).replace("{}", str(n)) for n in (1, 2, 3))
    samples = read_text(text).samples
    assert samples["fill.micros_per_op"] == (3,)
    assert samples["fill.write.average_us"] == (3,)
    assert samples["fill.write.p50_us"] == (3,)
    only = text.partition("fill : 3 ")[0]
    assert NO_RESULT in problems(read_text(only))


def test_progress_and_older_versions_are_read() -> None:
    progress = "... finished 9 ops  \r... finished 10 ops  \r"
    text = f"{progress}fill : 2.5 micros/op 400000 ops/sec;  4.4 MB/s\n"
    for end in ("", progress, "... finished 11 o"):
        parsed = read_text(text + end)
        assert parsed.samples == {
            "fill.micros_per_op": (2.5,),
            "fill.ops_per_sec": (400000,),
            "fill.mb_per_sec": (4.4,),
        }
        assert not parsed.problems


def test_statistics_of_intervals_are_passed_over() -> None:
    """They are on stderr, and what stdout had not printed yet of other statistics follows them."""
    text = content("16")
    assert text.count("... thread 0: ") == 3
    assert text.count(" Sum ") == 4
    assert len(read("16").samples["stats.write_amplification"]) == 1
    assert not read("16").problems
    before, _, rest = text.partition("** Level 0 read")
    glued = read_text(f"{before}{rest}\nMicroseconds per read:\nCount: 5 Average: 7 StdDev: 0\n")
    assert glued.samples["readrandom.read.average_us"] == (2.9473, 7)


COMPACTIONS = """\
fill : 2.5 micros/op 400000 ops/sec 1.0 seconds 400000 operations;
** Compaction Stats [default] **
Level    Files   Size     Score Read(GB)  Rn(GB) Wnew(GB) W-Amp Rd(MB/s) Comp(cnt)
-----------------------------------------------------------------------------------
  L0      2/0    1.30 MB   0.5      0.0     0.0      0.1   1.0      0.0        4
 Sum      2/0    1.30 MB   0.0      0.2     0.0      0.1   3.5      9.0        9
 Int      0/0    0.00 KB   0.0      0.0     0.0      0.0   0.0      0.0        0
Priority    Files   Size     Score Read(GB)  Rn(GB) Wnew(GB) W-Amp Rd(MB/s) Comp(cnt)
 Sum      0/0    0.00 KB   0.0      0.2     0.0      0.1   7.5      9.0        9
Cumulative compaction: 0.35 GB write, 10.00 MB/s write, 0.25 GB read, 9.00 MB/s read, 1.0 seconds
Cumulative stall: 00:00:1.000 H:M:S, 12.5 percent
"""


def test_compaction_figures_are_those_of_the_sum_over_levels() -> None:
    samples = read_text(COMPACTIONS).samples
    assert {name: value for name, (value,) in samples.items() if name.startswith("stats.")} == {
        "stats.write_amplification": 3.5,
        "stats.compaction_write_gb": 0.35,
        "stats.compaction_read_gb": 0.25,
        "stats.stall_percent": 12.5,
    }
    assert "stats.write_amplification" not in read_text(" Sum 3.5\n").samples
    short = COMPACTIONS.replace("2/0    1.30 MB   0.0      0.2     0.0      0.1   3.5 ", "")
    assert "stats.write_amplification" not in read_text(short).samples


def test_counters_without_a_benchmark_are_passed_over() -> None:
    text = " PERF_CONTEXT:\nblock_read_count = 7, block_read_byte = 8\n"
    assert not read_text(text).samples
    text = "rocksdb.block.cache.miss COUNT : x\nrocksdb.block.cache.hit COUNT : 0\n"
    assert not any(name.endswith("ratio") for name in read_text(text).samples)
    assert not any(name.endswith("ratio") for name in read_text(text.replace("x", "0")).samples)
    text = "Microseconds per read:\nCount: 1 Average: 2 StdDev: 3\nrocksdb.some.thing else\n"
    assert not read_text(text).samples


def test_several_runs_give_the_median_and_the_range() -> None:
    result = result_of("db_bench", [content(name) for name in ("01", "03", "10")])
    assert isinstance(result, Measured)
    scalar = result.scalars["fillrandom.micros_per_op"]
    assert scalar.unit == "us"
    assert scalar.low is not None
    assert scalar.high is not None
    assert scalar.low < scalar.value < scalar.high
    assert result.scalars["fillrandom.mb_per_sec"].unit == "MB/s"
    assert result.scalars["readrandom.found_ratio"].unit == "ratio"


def test_levels_are_read_from_their_table_only() -> None:
    table = "Level Files Size(MB)\n--------\n  0        3        1\nother\n  1        4        2\n"
    samples = read_text(table).samples
    assert samples == {"levelstats.level0.files": (3,), "levelstats.level0.size_mb": (1,)}


def test_numbers_of_any_length_are_no_trouble() -> None:
    digits = "9" * 5000
    line = f"read : {digits} micros/op 5 ops/sec;  ({digits} of {digits} found:{digits})\n"
    parsed = read_text(f"{line}rocksdb.flush.write.bytes COUNT : {digits}\n")
    assert parsed.samples == {"read.ops_per_sec": (5,)}


@given(data=st.data(), file=st.sampled_from(FILES))
def test_of_a_part_nothing_is_read_that_is_not_in_the_whole(
    data: st.DataObject, file: Path
) -> None:
    text = file.read_bytes().decode()
    end = data.draw(st.integers(0, len(text)))
    part, whole = (read_text(each) for each in (text[:end], text))
    for name, samples in part.samples.items():
        assert samples == whole.samples[name][: len(samples)]
    complete = text[:end].endswith(("\n", "\r")) or not text[:end].rpartition("\n")[2].strip()
    progress = "... finished " in text[:end].rpartition("\n")[2]
    assert complete or progress or "cut" in problems(part)


@given(data=st.data(), file=st.sampled_from(FILES))
def test_shuffled_lines_give_only_numbers_that_were_printed(
    data: st.DataObject, file: Path
) -> None:
    lines = file.read_bytes().decode().splitlines(keepends=True)
    chosen = data.draw(st.lists(st.sampled_from(lines), max_size=60))
    parsed = read_text("".join(chosen))
    assert parsed.samples or parsed.problems
    printed = {float(word) for word in re.findall(r"[0-9]+(?:\.[0-9]+)?", "".join(chosen))}
    for name, samples in parsed.samples.items():
        derived = name.endswith(("found_ratio", "hit_ratio", "rocksdb.write_amplification"))
        assert derived or printed.issuperset(samples), name


@given(st.text() | st.binary().map(lambda data: data.decode(errors="replace")))
def test_any_text_gives_an_answer(text: str) -> None:
    parsed = read_text(text)
    assert parsed.problems or parsed.samples


@pytest.mark.parametrize(
    "word",
    ["x", " ", "( ", "a : ", "= 1, ", "P50: ", "\r", "(0 of ", "reads:1 ", "rocksdb. COUNT : "],
)
def test_a_very_long_line_is_no_trouble(word: str) -> None:
    for line in (
        word * 500_000,
        "rocksdb.x P50 : " + word * 4000,
        "a : 1 micros/op " + word * 9000,
    ):
        parsed = read_text(f"{line}\n")
        assert parsed.problems or parsed.samples


def test_of_a_long_output_only_the_figures_are_kept() -> None:
    """Memory is that of the text: no line is kept, and none is longer than a limit when read."""
    line = "... finished 100 ops                              \r" * 40 + "\n"
    text = line * 5000 + " PERF_CONTEXT:\n" + "a = 1, " * 500_000 + "\n"
    tracemalloc.start()
    try:
        read_text(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(text)
