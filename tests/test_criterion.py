"""criterion's output: seconds per iteration, of the benchmark that they belong to."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.benchmark_output import result_of
from aiopt.metrics import Parsed, parse
from aiopt.protocols import Failed, Measured

TEXT = """\
Benchmarking fib 20
Benchmarking fib 20: Warming up for 3.0000 s
fib 20                  time:   [26.029 µs 26.251 µs 26.505 µs]
                        change: [-0.1 % +0.2 % +0.5 %] (p = 0.12 > 0.05)
a/group/with a very long name/1000
                        time:   [1.2000 ms 1.2500 ms 1.3000 ms]
                        thrpt:  [769.2 Kelem/s 800.0 Kelem/s 833.3 Kelem/s]
Found 3 outliers among 100 measurements (3.00%)
"""


def problems(parsed: Parsed) -> str:
    return "; ".join(str(each) for each in parsed.problems)


def read(text: str) -> Parsed:
    return parse("criterion", text, {})


def message(**fields: object) -> str:
    """What cargo-criterion prints about one benchmark, with what is not read here shortened."""
    estimate = {"estimate": 3419.5, "lower_bound": 3375.2, "upper_bound": 3465.5, "unit": "ns"}
    entry = {
        "reason": "benchmark-complete",
        "id": "group/norm 3",
        "iteration_count": [30, 3000],
        "measured_values": [124200.0, 9937100.0],
        "unit": "ns",
        "typical": estimate,
        "mean": {**estimate, "estimate": 3419.6},
        "change": None,
    }
    return json.dumps({**entry, **fields})


def estimates(point: object = 287.5, **fields: object) -> str:
    """`new/estimates.json`: nanoseconds, without a name and without an end of the line."""
    one = {"confidence_interval": {"confidence_level": 0.95}, "point_estimate": point}
    mean = {**one, "point_estimate": 290.0}
    return json.dumps({"mean": mean, "median": mean, "slope": one, "std_dev": mean, **fields})


def test_text_gives_seconds_per_iteration() -> None:
    parsed = read(TEXT)
    assert parsed.samples["fib_20.seconds"] == pytest.approx((26.251e-6,))
    assert parsed.samples["a/group/with_a_very_long_name/1000.seconds"] == pytest.approx((1.25e-3,))
    assert len(parsed.samples) == 2
    assert not parsed.problems


def test_the_form_of_bencher() -> None:
    text = "test fib 20 ... bench:      26,251 ns/iter (+/- 305)\ntest x ... ok\n"
    assert read(text).samples == {"fib_20.seconds": pytest.approx((26251e-9,))}


def test_several_runs_have_a_range() -> None:
    result = result_of("criterion", [TEXT, TEXT.replace("26.251", "28.251")])
    assert isinstance(result, Measured)
    scalar = result.scalars["fib_20.seconds"]
    assert scalar.unit == "s"
    assert (scalar.low, scalar.value, scalar.high) == pytest.approx(
        (26.251e-6, 27.251e-6, 28.251e-6)
    )


def test_messages_of_cargo_criterion() -> None:
    group = json.dumps({"reason": "group-complete", "group_name": "x", "benchmarks": ["x/norm"]})
    parsed = read(f"{message()}\n{group}\n{message(id='b')}\n")
    assert parsed.samples["group/norm_3.seconds"] == pytest.approx((3419.5e-9,))
    assert parsed.samples["b.seconds"] == pytest.approx((3419.5e-9,))
    assert not parsed.problems


def test_estimates_of_one_benchmark() -> None:
    assert read(estimates()).samples == {"seconds": pytest.approx((287.5e-9,))}
    flat = estimates(slope=None)  # sampled with as many iterations each time
    assert read(flat).samples == {"seconds": pytest.approx((290e-9,))}


def test_estimates_of_several_benchmarks_are_no_samples_of_one() -> None:
    parsed = read(estimates() + estimates())
    assert len(parsed.samples["seconds"]) == 1
    assert "several benchmarks" in problems(parsed)


def test_changes_are_no_times() -> None:
    change = json.dumps({"mean": {"point_estimate": 0.01}, "median": {"point_estimate": 0.02}})
    assert "new/estimates.json" in problems(read(change))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x  time:   [1.0 fortnights 1.1 fortnights 1.2 fortnights]", "1.1 fortnights"),
        ("time:   [1 s 1 s 1 s]", "no name"),
        ("x  time:   [nan s nan s nan s]", "'nan s': not a time"),
        ("x  time:   [1 s many s 1 s]", "'many s': not a time"),
        ("x  time:   [1 s 1_0 s 1 s]", "'1_0 s': not a time"),
        ("x  time:   [1 s -1 s 1 s]", "'-1 s': not a time"),
        ("x  time:   [1 s 1e999 s 1 s]", "not a finite number"),
        ("test x ... bench: 1.2.3 ns/iter", "'1.2.3 ns': not a time"),
        (message(typical=None), "'None None': not a time"),
        (message(typical={"estimate": 5, "unit": "cycles"}), "5 cycles"),
        (message()[:50], "not a JSON object"),
        ('{"a":' * 100_000, "not a JSON object"),
        ('{"reason": "' + "x" * (16 << 20) + '"}', "too large a one"),
        (estimates("1" * 5000), "not a finite number"),
        (estimates(slope=[1]), "'None ns': not a time"),
        ("error: could not compile `x`", "'error: could not compile `x`': no result of criterion"),
        ("runtime:   [1 s 1 s 1 s]", "no result of criterion"),
    ],
)
def test_what_is_no_time_of_criterion_is_a_problem(text: str, why: str) -> None:
    parsed = read(text + "\n")
    assert not parsed.samples
    assert why in problems(parsed)


def test_what_was_rounded_to_nothing_is_no_number() -> None:
    text = "test fast ... bench:           0 ns/iter (+/- 0)\n"
    assert not read(text).samples
    wanted = parse("criterion", text, {"fast.seconds": "number"})
    assert "'0 ns, rounded to 0'" in problems(wanted)
    assert isinstance(result_of("criterion", [""]), Failed)


@given(st.text() | st.binary().map(lambda data: data.decode(errors="replace")))
def test_any_text_gives_an_answer(text: str) -> None:
    parsed = read(text)
    assert parsed.problems or parsed.samples


@given(st.permutations([*TEXT.splitlines(), message(), estimates()]), st.data())
def test_shuffled_and_cut_lines_give_only_what_was_printed(
    lines: list[str], data: st.DataObject
) -> None:
    text = "\n".join(lines)
    end = data.draw(st.integers(0, len(text)))
    printed = {26.251e-6, 1.25e-3, 3419.5e-9, 287.5e-9}
    for samples in read(text[:end]).samples.values():
        assert all(
            value == pytest.approx(min(printed, key=lambda p: abs(p - value))) for value in samples
        )


@pytest.mark.parametrize("word", ["x", " ", "test ", "time: ", "[ ", "test x ... bench: "])
def test_a_very_long_line_is_no_trouble(word: str) -> None:
    assert not read(f"test{word * 500_000}\n").samples
