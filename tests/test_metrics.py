"""Parsers of benchmark output, on real captures and on anything at all."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiopt.errors import ConfigError
from aiopt.metrics import FORMATS, Found, MetricKind, Parsed, Problem, parse

DATA = Path(__file__).parent / "data" / "metrics"

names = st.from_regex(r"[\w./-]+", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False)


def captured(name: str) -> str:
    return (DATA / f"{name}.json").read_text(encoding="utf-8")


def google(**fields: object) -> str:
    entry = {"name": "BM", "run_type": "iteration", "real_time": 5, "time_unit": "ns"}
    return json.dumps({"benchmarks": [{**entry, **fields}]})


class TestParse:
    @pytest.mark.parametrize("format", sorted(FORMATS))
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Segmentation fault\n",
            "ops: many\nops=many",
            '{"ops": 1',
            "[1, 2]",
            "{}",
            '{"ops": NaN}',
        ],
    )
    def test_total_failure_is_no_number(self, format: str, text: str) -> None:
        """Where nothing can be parsed there are problems, and no number: not 0, not anything."""
        parsed = parse(format, text, {"ops": "number"})
        assert parsed.samples == {}
        assert "ops" in {problem.metric for problem in parsed.problems}

    def test_bad_value(self) -> None:
        """A value that is no number is a problem that names metric, text and line."""
        parsed = parse("lines", "start\nops=12 k\nops=13\n", {"ops": "number"})
        assert parsed == Parsed({"ops": (13,)}, {}, (Problem("ops", "12 k", 2),))
        assert str(parsed.problems[0]) == "line 2: ops: '12 k': not a finite number"

    def test_not_printed(self) -> None:
        """A wanted metric that never came is a problem without a place."""
        parsed = parse("lines", "ops=1", {"ops": "number", "p99": "number", "sum": "digest"})
        assert [str(p) for p in parsed.problems] == ["p99: not printed", "sum: not printed"]

    def test_the_problem_of_a_benchmark_is_that_of_its_metrics(self) -> None:
        """A wanted metric of a benchmark that failed says why, not just that it was not printed."""
        text = google(error_occurred=True, error_message="no device")
        parsed = parse("google-benchmark", text, {"BM.real_time": "number", "BMX.time": "number"})
        assert [str(p) for p in parsed.problems] == [
            "BM: 'no device': the benchmark failed",
            "BM.real_time: 'no device': the benchmark failed",
            "BMX.time: not printed",
        ]

    @pytest.mark.parametrize(
        "value",
        ["nan", "inf", "-inf", "1e999", "", "1_000", "0x10", "1,5", "٣", "12ms", "--1", "."],
    )
    def test_only_finite_numbers(self, value: str) -> None:
        """What Python would read leniently is refused as well."""
        parsed = parse("lines", f"METRIC ops={value}", {})
        assert parsed == Parsed({}, {}, (Problem("ops", value, 1),))

    @pytest.mark.parametrize(
        ("value", "number"), [("-1", -1), ("+.5", 0.5), ("5.", 5), ("1e-3", 0.001), ("007", 7)]
    )
    def test_numbers(self, value: str, number: float) -> None:
        """Decimal numbers with sign, point and exponent."""
        assert parse("lines", f"ops={value}", {}).samples == {"ops": (number,)}

    def test_digest(self) -> None:
        """A digest is text, even where it looks like a number, and must not change."""
        wanted: dict[str, MetricKind] = {"sum": "digest"}
        assert parse("lines", "sum=0012\nsum=0012", wanted) == Parsed({}, {"sum": "0012"}, ())
        changed = parse("lines", "sum=ab\nsum=cd", wanted)
        assert changed.texts == {"sum": "ab"}
        assert changed.problems == (Problem("sum", "cd", 2, "printed before as 'ab'"),)
        assert parse("json", '{"sum": 12345678901234567890}', wanted).texts == {
            "sum": "12345678901234567890"
        }

    @pytest.mark.parametrize(("format", "text"), [("lines", "sum="), ("json", '{"sum": null}')])
    def test_empty_digest(self, format: str, text: str) -> None:
        """Two programs that both print nothing do not agree."""
        parsed = parse(format, text, {"sum": "digest"})
        assert parsed.texts == {}
        assert [p.why for p in parsed.problems] == ["not a digest"]

    def test_unknown_format(self) -> None:
        """An unknown format says what there is."""
        with pytest.raises(ConfigError, match=r"'criterium': known are colon-lines, crit"):
            parse("criterium", "", {})

    def test_own_parser(self) -> None:
        """A target may bring a function; what it finds goes through the same rules."""

        def parser(text: str) -> Iterator[Found | Problem]:
            yield Found("ops", len(text))
            yield Found("bad", math.nan)
            yield Problem("whole run", "oops", why="was cut short")

        parsed = parse(parser, "four", {"ops": "number"})
        assert parsed.samples == {"ops": (4.0,)}
        assert parsed.problems == (
            Problem("bad", "nan"),
            Problem("whole_run", "oops", why="was cut short"),
        )

    def test_parser_that_raises(self) -> None:
        """It is a problem, and the numbers before it do not count."""

        def parser(text: str) -> Iterator[Found]:
            yield Found("ops", 1)
            raise KeyError(text)

        parsed = parse(parser, "no such key", {"ops": "number"})
        assert parsed.samples == {}
        assert [str(p) for p in parsed.problems] == [
            "the parser failed: KeyError: 'no such key'",
            "ops: not printed",
        ]

    def test_names_that_become_one(self) -> None:
        """Two names that differ only in odd characters are not samples of each other."""
        parsed = parse("json", '{"a b": 1, "a+b": 2, "a b": 3}', {})
        assert parsed.samples == {"a_b": (1, 3)}
        assert [str(p) for p in parsed.problems] == [
            "line 1: a_b: 'a+b': shares the name a_b with a b"
        ]

    @pytest.mark.parametrize("format", sorted(FORMATS))
    @given(text=st.text())
    def test_never_raises(self, format: str, text: str) -> None:
        """Any text is parsed to finite numbers or problems."""
        assert_sound(parse(format, text, {"ops": "number", "sum": "digest"}))


def assert_sound(parsed: Parsed) -> None:
    assert all(values for values in parsed.samples.values())
    assert all(math.isfinite(x) for values in parsed.samples.values() for x in values)
    assert all(isinstance(x, float) for values in parsed.samples.values() for x in values)
    named = {*parsed.samples, *parsed.texts, *(problem.metric for problem in parsed.problems)}
    assert {"ops", "sum"} <= named
    assert not any("the parser failed" in problem.why for problem in parsed.problems)


class TestLines:
    @given(st.lists(st.tuples(names, finite)), st.sampled_from(["", "METRIC ", " METRIC\t"]))
    def test_round_trip(self, pairs: list[tuple[str, float]], prefix: str) -> None:
        """All samples come back, exactly and in their order."""
        text = "".join(f"{prefix}{name}={value!r}\n" for name, value in pairs)
        expected: dict[str, tuple[float, ...]] = {}
        for name, value in pairs:
            expected[name] = (*expected.get(name, ()), value)
        assert parse("lines", text, {}) == Parsed(expected, {}, ())

    def test_other_text(self) -> None:
        """Metrics may stand among anything, and what only looks like one does not matter."""
        text = "loading…\r\n  ops = 5 \r\nmode=fast\r\n$ make CFLAGS=-O2 x=1\r\nµs/op=2\r\n"
        assert parse("lines", text, {}) == Parsed({"ops": (5,), "µs/op": (2,)}, {}, ())

    def test_line_numbers(self) -> None:
        """Lines are counted as editors and grep do."""
        parsed = parse("lines", "\f\n\x0b \u2028\n\nMETRIC ops=x", {})
        assert parsed.problems == (Problem("ops", "x", 4),)

    def test_colon(self) -> None:
        """The other separator is a format of its own."""
        text = "ops: 5\nMETRIC p99: 1.5\nratio=3\n12:30"
        assert parse("colon-lines", text, {}).samples == {"ops": (5,), "p99": (1.5,), "12": (30,)}

    def test_long_blank_line(self) -> None:
        """Time grows with the text, not with its square."""
        assert parse("lines", "a" + " " * 500_000 + "b" + "a" * 500_000, {}).samples == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                [
                    "ops",
                    "benchmarks",
                    "results",
                    "name",
                    "times",
                    "stats",
                    "data",
                    "mean",
                    "command",
                    "real_time",
                    "time_unit",
                    "run_type",
                    "exit_codes",
                    "error_occurred",
                    "sum",
                    "x y",
                ]
            ),
            inner,
        )
    ),
)


class TestJson:
    def test_flat(self) -> None:
        """Nested keys are joined by dots, lists and repeated keys are samples."""
        text = '{"a": {"b": 1, "c": [2, 3, [4]]}, "l": [{"t": 5}, {"t": 6}], "x": 7, "x": 8}'
        assert parse("json", text, {}).samples == {
            "a.b": (1,),
            "a.c": (2, 3, 4),
            "l.t": (5, 6),
            "x": (7, 8),
        }

    def test_other_values(self) -> None:
        """Strings, booleans and null are other text, but a problem where a number is wanted."""
        text = '{"ok": true, "v": "1.2.3", "n": null, "t": "5"}'
        assert parse("json", text, {}) == Parsed({"t": (5,)}, {}, ())
        wanted: dict[str, MetricKind] = {"ok": "number", "v": "number", "n": "number"}
        assert parse("json", text, wanted).problems == (
            Problem("ok", "true", 1),
            Problem("v", "1.2.3", 1),
            Problem("n", "null", 1),
        )

    @pytest.mark.parametrize(
        "text",
        [
            '{"ops": 1}',
            '  {\n "ops":\n1}\n\n',
            'warming up {\n{"ops": 7}\n{"ops": 1}\ndone\n',
            'log\n{\n"runs": [\n{"ops": 7}\n],\n"ops": 1\n}\n',
            '{not json}\n{"ops": 2} and more\n{"ops": 1}',
            '{"ops": many}\n{"ops": 1}',
        ],
    )
    def test_where(self, text: str) -> None:
        """It is all of the text, or the last object that has its lines for itself."""
        assert parse("json", text, {"ops": "number"}).samples["ops"] == (1,)

    @pytest.mark.parametrize(
        "text",
        [
            '{"runs": [\n{"ops": 1}\n',
            '{"runs": [\n{"ops": 1}\n], "x": tr',
            '{"runs": [\n{"ops": 1}\n], "x": "cut',
            '{"ops": 1}{"ops": 2}',
            '{"ops":' * 100_000,
            '{"ops": ' + "[" * 100_000,
        ],
    )
    def test_cut_short(self, text: str) -> None:
        """A part of a broken document is not taken for the document."""
        parsed = parse("json", text, {"ops": "number"})
        assert parsed.samples == {}
        assert [problem.why for problem in parsed.problems] == ["no JSON object", "not printed"]

    @pytest.mark.parametrize("line", ['{"ops": 1}', '{"ops": 1} x', "{ops"])
    def test_long_log(self, line: str) -> None:
        """Time grows with the text, not with its square."""
        text = f"{line}\n" * 50_000 + '{"ops": 2}\n'
        assert parse("json", text, {}).samples == {"ops": (2,)}

    def test_says_what_it_found(self) -> None:
        """The problem shows the end of the text, where programs say why they stop."""
        parsed = parse("json", "start\nerror: " + "x" * 100 + "\n\n", {})
        assert parsed.problems == (Problem("", "error: " + "x" * 70 + "...", 2, "no JSON object"),)

    @pytest.mark.parametrize("format", sorted(FORMATS))
    @given(value=json_values)
    @example(value={"benchmarks": [{"name": ["x"], "real_time": {"ops": 1}, "time_unit": "ns"}]})
    @example(value={"benchmarks": [{"name": "t", "stats": {"data": {"ops": 1}}}, 5]})
    @example(value={"results": [{"command": 1, "exit_codes": [[1]]}, {}]})
    def test_never_raises(self, format: str, value: object) -> None:
        """Any JSON is parsed to finite numbers or problems."""
        assert_sound(parse(format, json.dumps(value), {"ops": "number", "sum": "digest"}))
        assert_sound(
            parse(format, json.dumps({"benchmarks": value}), {"ops": "number", "sum": "digest"})
        )

    @given(st.dictionaries(names, st.lists(finite, min_size=1), max_size=5))
    def test_round_trip(self, samples: dict[str, list[float]]) -> None:
        """All samples come back, exactly and in their order."""
        parsed = parse("json", json.dumps(samples, indent=1), {})
        assert parsed == Parsed({name: tuple(values) for name, values in samples.items()}, {}, ())


class TestJsonLines:
    def test_samples(self) -> None:
        """Each line adds its samples; other lines do not matter."""
        text = 'go\n{"ops": 1}\n\n  {"ops": [2, 3]}\r\n{"ops": 4, "p99": 5}\n[6]\n'
        assert parse("jsonl", text, {}) == Parsed({"ops": (1, 2, 3, 4), "p99": (5,)}, {}, ())

    def test_broken_line(self) -> None:
        """A line that was cut short is a problem; the others count."""
        parsed = parse("jsonl", '{"ops": 1}\n{"ops": \n{"ops": "x"}', {"ops": "number"})
        assert parsed.samples == {"ops": (1,)}
        assert parsed.problems == (
            Problem("", '{"ops":', 2, "not a JSON object"),
            Problem("ops", "x", 3),
        )


class TestGoogleBenchmark:
    def test_captured(self) -> None:
        """Microseconds become seconds, repetitions samples; failures are problems."""
        parsed = parse("google-benchmark", captured("google-benchmark"), {})
        assert sorted(parsed.samples) == [
            "BM_Sum/4096.cpu_time",
            "BM_Sum/4096.items_per_second",
            "BM_Sum/4096.real_time",
            "BM_Sum/4096.size",
            "BM_Sum/64.cpu_time",
            "BM_Sum/64.items_per_second",
            "BM_Sum/64.real_time",
            "BM_Sum/64.size",
        ]
        assert parsed.samples["BM_Sum/64.size"] == (64, 64, 64)
        assert parsed.samples["BM_Sum/64.real_time"] == pytest.approx(
            [1.8607681860585562e-08, 1.8561450200510459e-08, 1.8548932892648712e-08]
        )
        assert (
            parsed.problems == (Problem("BM_Broken", "no input", why="the benchmark failed"),) * 3
        )

    @pytest.mark.parametrize(
        ("unit", "seconds"), [("ns", 5e-9), ("us", 5e-6), ("ms", 5e-3), ("s", 5)]
    )
    def test_units(self, unit: str, seconds: float) -> None:
        """Each unit of time is converted."""
        parsed = parse("google-benchmark", google(time_unit=unit), {})
        assert parsed.samples == {"BM.real_time": (seconds,)}

    def test_bad_unit(self) -> None:
        """A time in an unknown unit is not a time in seconds."""
        parsed = parse("google-benchmark", google(time_unit="fortnights"), {})
        assert parsed == Parsed(
            {}, {}, (Problem("BM.real_time", "fortnights", why="not a unit of time"),)
        )

    def test_bad_values(self) -> None:
        """A time that is no number is a problem; so is a counter, if it is wanted."""
        text = google(real_time=math.nan, rate=math.inf, note="x")
        parsed = parse("google-benchmark", text, {"BM.rate": "number"})
        assert parsed == Parsed(
            {}, {}, (Problem("BM.real_time", "NaN"), Problem("BM.rate", "Infinity"))
        )

    def test_skipped(self) -> None:
        """A skipped benchmark has no numbers."""
        parsed = parse("google-benchmark", google(skipped=True, skip_message="no GPU"), {})
        assert parsed == Parsed({}, {}, (Problem("BM", "no GPU", why="the benchmark was skipped"),))

    def test_names(self) -> None:
        """What a name may not contain becomes an underscore."""
        parsed = parse("google-benchmark", google(name="BM<int, 3>/threads:2"), {})
        assert parsed.samples == {"BM_int_3_/threads_2.real_time": (5e-9,)}

    def test_entries(self) -> None:
        """A list that is not one, or has other things in it, is a problem."""
        assert [str(p) for p in parse("google-benchmark", '{"benchmarks": {}}', {}).problems] == [
            "no list 'benchmarks', or an empty one"
        ]
        assert [str(p) for p in parse("google-benchmark", '{"benchmarks": [5]}', {}).problems] == [
            "'5': not an object, in 'benchmarks'"
        ]


class TestHyperfine:
    def test_one(self) -> None:
        """One command needs no prefix."""
        parsed = parse("hyperfine", captured("hyperfine-one"), {"seconds": "number"})
        assert parsed.samples == {
            "seconds": (
                0.0006567280000000001,
                0.000621215,
                0.0006083960000000001,
                0.000600975,
                0.00059774,
            ),
            "user": (0.0005627999999999999,),
            "system": (0.0,),
        }
        assert parsed.problems == ()

    def test_two(self) -> None:
        """Several commands are told apart by their text."""
        parsed = parse("hyperfine", captured("hyperfine-two"), {})
        assert {name: len(values) for name, values in parsed.samples.items()} == {
            "sleep_0.002.seconds": 4,
            "sleep_0.002.user": 1,
            "sleep_0.002.system": 1,
            "true.seconds": 4,
            "true.user": 1,
            "true.system": 1,
        }
        assert parsed.problems == ()

    def test_failing(self) -> None:
        """A command that fails was not measured."""
        parsed = parse("hyperfine", captured("hyperfine-failing"), {})
        assert sorted(parsed.samples) == ["quick.seconds", "quick.system", "quick.user"]
        assert parsed.problems == (
            Problem("failing.seconds", "exit code 3", why="3 of the runs failed"),
        )

    def test_killed(self) -> None:
        """A run that was killed has no exit code, and failed."""
        text = json.dumps({"results": [{"command": "x", "times": [1, 2], "exit_codes": [0, None]}]})
        parsed = parse("hyperfine", text, {})
        assert parsed.samples == {}
        assert parsed.problems == (
            Problem("seconds", "exit code null", why="1 of the runs failed"),
        )

    def test_missing(self) -> None:
        """Times that are not there are problems."""
        parsed = parse("hyperfine", '{"results": [{"times": [1, "x"]}, 5]}', {})
        assert parsed.samples == {".seconds": (1,)}
        assert parsed.problems == (
            Problem(".seconds", "x"),
            Problem(".user", ""),
            Problem(".system", ""),
            Problem("", "5", why="not an object, in 'results'"),
        )


class TestPytestBenchmark:
    def test_captured(self) -> None:
        """The rounds are samples, in seconds per iteration."""
        parsed = parse("pytest-benchmark", captured("pytest-benchmark"), {})
        assert {name: len(values) for name, values in parsed.samples.items()} == {
            "test_sum.seconds": 5,
            "test_sort.seconds": 5,
        }
        assert parsed.samples["test_sum.seconds"][0] == 1.2864499979059474e-05
        assert parsed.problems == ()

    def test_without_data(self) -> None:
        """A file without rounds has means."""
        document = json.loads(captured("pytest-benchmark"))
        for entry in document["benchmarks"]:
            del entry["stats"]["data"]
        parsed = parse("pytest-benchmark", json.dumps(document), {})
        assert parsed.samples == {
            "test_sum.seconds": (1.2651899987758953e-05,),
            "test_sort.seconds": (2.080599983855791e-07,),
        }

    def test_problems(self) -> None:
        """Tests of one name, without figures, and things that are no tests."""
        text = json.dumps(
            {
                "benchmarks": [
                    {"name": "t", "fullname": "a.py::t", "stats": {"mean": 1}},
                    {"name": "t", "fullname": "b.py::t", "stats": {"mean": 2}},
                    {"name": "u", "stats": {}},
                    {"name": "v"},
                    "w",
                ]
            }
        )
        parsed = parse("pytest-benchmark", text, {})
        assert parsed.samples == {}
        assert parsed.problems == (
            Problem("t.seconds", "a.py::t", why="several tests have this name"),
            Problem("t.seconds", "b.py::t", why="several tests have this name"),
            Problem("u.seconds", ""),
            Problem("v.seconds", "", why="no stats"),
            Problem("", "w", why="not an object, in 'benchmarks'"),
        )
