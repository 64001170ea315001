"""db_bench's and criterion's output: the figures are those that were printed, of the right
benchmark, and what measured nothing has none.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.benchmark_output import result_of
from aiopt.metrics import Parsed, parse
from aiopt.protocols import Failed, Measured

DATA = Path(__file__).parent / "data" / "db_bench"
FILES = sorted(DATA.glob("*.txt"))


def read(name: str) -> Parsed:
    return parse("db_bench", next(DATA.glob(f"{name}*")).read_text(), {})


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
        ("07", "fillrandom.operations", (68999,)),
        ("10", "readrandom.ops_per_sec", (57584, 67800, 74784)),
        ("11", "stats.stall_percent", (0,)),
        ("11", "stats.write_amplification", (0,)),
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
    samples = parse("db_bench", text, {}).samples
    assert {name for name in samples if ".write." in name} == {"fill.write.p50_us"}


def test_histograms_of_statistics_have_percentiles_count_and_sum() -> None:
    samples = read("04").samples
    for key in ("p50", "p95", "p99", "p100", "count", "sum"):
        assert len(samples[f"rocksdb.db.get.micros.{key}"]) == 1
    assert samples["rocksdb.db.get.micros.p50"] <= samples["rocksdb.db.get.micros.p99"]


def test_what_found_nothing_has_measured_nothing() -> None:
    parsed = read("08")
    assert not parsed.samples
    assert "readrandom.ops_per_sec: '(0 of 1000 found)'" in problems(parsed)
    result = result_of("db_bench", [next(DATA.glob("08*")).read_text()])
    assert isinstance(result, Failed)
    assert "is the database there?" in result.reason


def test_what_did_nothing_has_measured_nothing() -> None:
    line = "fillseq      :       inf micros/op 0 ops/sec 0.000 seconds 0 operations;\n"
    parsed = parse("db_bench", line, {})
    assert not parsed.samples
    assert "it did nothing" in problems(parsed)
    assert "inf" in problems(parse("db_bench", line.replace("0 operations", "7 operations"), {}))


def test_an_unknown_benchmark_or_flag_is_a_problem() -> None:
    assert "unknown benchmark 'nosuchbench'" in problems(read("06"))
    assert "no result line of db_bench" in problems(read("06"))
    parsed = parse("db_bench", "ERROR: unknown command line flag 'x'\n", {})
    assert "unknown command line flag 'x'" in problems(parsed)


def test_warm_ups_do_not_count() -> None:
    line = "fill : {} micros/op 5 ops/sec 1.0 seconds 5 operations;\nMicroseconds per write:\n"
    block = "Count: 5 Average: {} StdDev: 1\nPercentiles: P50: {} P99: 9\n"
    text = "Warming up benchmark by running 2 times\n"
    text += "".join((line + block).replace("{}", str(n)) for n in (1, 2, 3))
    samples = parse("db_bench", text, {}).samples
    assert samples["fill.micros_per_op"] == (3,)
    assert samples["fill.write.average_us"] == (3,)
    assert samples["fill.write.p50_us"] == (3,)


def test_progress_and_older_versions_are_read() -> None:
    progress = "... finished 9 ops  \r... finished 10 ops  \r"
    text = f"{progress}fill : 2.5 micros/op 400000 ops/sec;  4.4 MB/s\n"
    samples = parse("db_bench", text, {}).samples
    assert samples == {
        "fill.micros_per_op": (2.5,),
        "fill.ops_per_sec": (400000,),
        "fill.mb_per_sec": (4.4,),
    }


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
    samples = parse("db_bench", COMPACTIONS, {}).samples
    assert {name: value for name, (value,) in samples.items() if name.startswith("stats.")} == {
        "stats.write_amplification": 3.5,
        "stats.compaction_write_gb": 0.35,
        "stats.compaction_read_gb": 0.25,
        "stats.stall_percent": 12.5,
    }
    assert "stats.write_amplification" not in parse("db_bench", " Sum 3.5\n", {}).samples
    short = COMPACTIONS.replace("2/0    1.30 MB   0.0      0.2     0.0      0.1   3.5 ", "")
    assert "stats.write_amplification" not in parse("db_bench", short, {}).samples


def test_counters_without_a_benchmark_are_passed_over() -> None:
    text = " PERF_CONTEXT:\nblock_read_count = 7, block_read_byte = 8\n"
    assert not parse("db_bench", text, {}).samples
    text = "Microseconds per read:\nCount: 1 Average: 2 StdDev: 3\nrocksdb.some.thing else\n"
    assert not parse("db_bench", text, {}).samples


def test_several_runs_give_the_median_and_the_range() -> None:
    texts = [next(DATA.glob(f"{name}*")).read_text() for name in ("01", "03", "10")]
    result = result_of("db_bench", texts)
    assert isinstance(result, Measured)
    scalar = result.scalars["fillrandom.micros_per_op"]
    assert scalar.unit == "us"
    assert scalar.low is not None
    assert scalar.high is not None
    assert scalar.low < scalar.value < scalar.high
    assert result.scalars["fillrandom.mb_per_sec"].unit == "MB/s"
    assert result.scalars["readrandom.found_ratio"].unit == "ratio"


@given(data=st.data(), file=st.sampled_from(FILES))
def test_of_a_part_nothing_is_read_that_is_not_in_the_whole(
    data: st.DataObject, file: Path
) -> None:
    text = file.read_text()
    end = data.draw(st.integers(0, len(text)))
    part, whole = (parse("db_bench", each, {}) for each in (text[:end], text))
    for name, samples in part.samples.items():
        assert samples == whole.samples[name][: len(samples)]
    assert (
        text[:end].endswith("\n") or "cut" in problems(part) or "no result line" in problems(part)
    )


@given(st.text() | st.binary().map(lambda data: data.decode(errors="replace")))
def test_any_text_gives_an_answer(text: str) -> None:
    for format in ("db_bench", "criterion"):
        parsed = parse(format, text, {})
        assert parsed.problems or parsed.samples or format == "criterion"


def test_a_very_long_line_is_no_trouble() -> None:
    for word in ("x", "( ", "a : ", "= 1, ", "P50: "):
        parsed = parse("db_bench", word * 500_000 + "\n", {})
        assert not parsed.samples


# ---- criterion ----

CRITERION = """\
Benchmarking fib 20
Benchmarking fib 20: Warming up for 3.0000 s
fib 20                  time:   [26.029 µs 26.251 µs 26.505 µs]
                        change: [-0.1 % +0.2 % +0.5 %] (p = 0.12 > 0.05)
a/group/with a very long name/1000
                        time:   [1.2000 ms 1.2500 ms 1.3000 ms]
                        thrpt:  [769.2 Kelem/s 800.0 Kelem/s 833.3 Kelem/s]
Found 3 outliers among 100 measurements (3.00%)
"""


def test_criterion_gives_seconds_per_iteration() -> None:
    parsed = parse("criterion", CRITERION, {})
    assert parsed.samples["fib_20.seconds"] == pytest.approx((26.251e-6,))
    assert parsed.samples["a/group/with_a_very_long_name/1000.seconds"] == pytest.approx((1.25e-3,))
    assert len(parsed.samples) == 2
    assert not parsed.problems


def test_criterion_in_the_form_of_bencher() -> None:
    text = "test fib 20 ... bench:      26,251 ns/iter (+/- 305)\n"
    assert parse("criterion", text, {}).samples["fib_20.seconds"] == pytest.approx((26251e-9,))


def test_what_is_no_time_of_criterion_is_a_problem() -> None:
    text = "x  time:   [1.0 fortnights 1.1 fortnights 1.2 fortnights]\n"
    assert "not a time of criterion's" in problems(parse("criterion", text, {}))
    assert "no name" in problems(parse("criterion", "time:   [1 s 1 s 1 s]", {}))
    assert "nan" in problems(parse("criterion", "x  time:   [nan s nan s nan s]", {}))
    assert "many" in problems(parse("criterion", "x  time:   [1 s many s 1 s]", {}))
