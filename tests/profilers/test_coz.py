"""What coz really writes gives the figures that are known to be true of its programs."""

import json
import random
from io import BytesIO
from pathlib import Path

import pytest

from aiopt.profilers.coz import Coz
from aiopt.protocols import (
    Command,
    Failed,
    Finishing,
    Inconclusive,
    Measured,
    ProfileResult,
    Repeating,
)

from .hostile import check_total, contents

DATA = Path(__file__).parents[1] / "data" / "profilers" / "coz"


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


def parse(*files: bytes) -> ProfileResult:
    return Coz().parse(contents(*files))


def measured(*files: bytes) -> Measured:
    result = parse(*files)
    assert isinstance(result, Measured), result
    return result


def why_not(*files: bytes) -> str:
    result = parse(*files)
    assert isinstance(result, Inconclusive), result
    return result.reason


def value(result: Measured, name: str) -> float:
    return result.scalars[name].value


@pytest.mark.parametrize(
    ("name", "where", "slope", "low", "high"),
    [
        ("serial-70-30.coz", "serial.c:10,round", 0.674, 0.655, 0.689),
        ("serial-70-30.coz", "serial.c:15,round", 0.254, 0.224, 0.281),
        ("serial-three-runs.coz", "serial.c:10,round", 0.697, 0.653, 0.733),
        ("toy-barrier.coz", "toy.c:17,round", 0.312, 0.229, 0.397),
        ("toy-barrier.coz", "toy.c:22,round", -0.051, -0.212, 0.075),
        ("head-serial.jsonl.coz", "serial.c:10,round", 0.653, 0.633, 0.674),
        ("head-serial.jsonl.coz", "serial.c:15,round", 0.283, 0.256, 0.307),
    ],
)
def test_slopes_are_those_known(
    name: str, where: str, slope: float, low: float, high: float
) -> None:
    scalar = measured(read(name)).scalars[f"slope[{where}]"]
    assert scalar.unit == "ratio"
    assert scalar.value == pytest.approx(slope, abs=0.0006)
    assert scalar.low == pytest.approx(low, abs=0.01)
    assert scalar.high == pytest.approx(high, abs=0.01)


def test_the_other_figures_of_the_serial_program() -> None:
    result = measured(read("serial-70-30.coz"))
    for line, count, most, area in ((10, 81, 0.680, 0.333), (15, 45, 0.270, 0.115)):
        where = f"[serial.c:{line},round]"
        assert value(result, f"experiments{where}") == count
        assert value(result, f"max_speedup{where}") == pytest.approx(most, abs=0.0006)
        assert value(result, f"area{where}") == pytest.approx(area, abs=0.0006)
        assert value(result, f"p{where}") == pytest.approx(0.0005, abs=0.00001)
    assert [(each.where, each.what) for each in result.findings] == [
        ("serial.c:10", "opportunity"),
        ("serial.c:15", "opportunity"),
    ]


def test_of_two_threads_only_the_critical_one_is_an_opportunity() -> None:
    result = measured(read("toy-barrier.coz"))
    assert [(each.where, each.what) for each in result.findings][:2] == [
        ("toy.c:17", "opportunity"),
        ("toy.c:22", "inconclusive"),
    ]
    assert value(result, "max_speedup[toy.c:17,round]") == pytest.approx(0.330, abs=0.0006)
    assert value(result, "p[toy.c:22,round]") == pytest.approx(0.37, abs=0.04)


def test_an_oversubscribed_machine_gives_no_opportunity() -> None:
    assert "too wide" in why_not(read("toy-overloaded.coz"))


def test_a_line_that_works_in_one_phase_only_is_said_to_be_overstated() -> None:
    result = measured(read("phases.coz"))
    for line, slope, phase in ((11, 0.972, 0.53), (16, 0.978, 0.49)):
        (where,) = (name for name in result.scalars if name.startswith(f"slope[phases.c:{line},"))
        assert value(result, where) == pytest.approx(slope, abs=0.0006)
        factor = value(result, where.replace("slope", "phase_factor"))
        assert factor == pytest.approx(phase, abs=0.006)
    assert all("gains less" in each.detail for each in result.findings[:2])


def test_latency_comes_from_the_number_in_flight() -> None:
    result = measured(read("lat.coz"))
    slopes = {name for name in result.scalars if "slope" in name}
    assert {"slope[lat.c:8,requests]", "latency_slope[lat.c:8,request]"} <= slopes
    # With a constant number in flight, latency is the inverse of throughput.
    assert value(result, "latency_slope[lat.c:8,request]") == pytest.approx(
        value(result, "slope[lat.c:8,requests]"), abs=0.01
    )


def test_without_a_baseline_there_is_no_result() -> None:
    for name in ("end-to-end.coz", "fixed-50-no-baseline.coz"):
        assert "without a speed-up to compare" in why_not(read(name))
    assert "end-to-end" in why_not(read("head-end-to-end.jsonl.coz"))


def test_few_experiments_are_no_result() -> None:
    assert "too few" in why_not(read("head-legacy.coz"))


FAILURES = [json.loads(line) for line in read("failures.jsonl").splitlines()]


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case["name"])
def test_ways_to_fail(case: dict[str, str | None]) -> None:
    text = case["output_text"]
    result = parse(*([] if text is None else [text.encode()]))
    expected = {"failed": Failed, "inconclusive": Inconclusive}[str(case["expected_result"])]
    assert isinstance(result, expected)
    causes = {
        "no-progress-point": "no progress point",
        "too-short": "run for longer",
        "location-views": "-gno-variable-location-views",
        "no-debug-info": "do not strip",
    }
    assert causes.get(str(case["name"]), "") in getattr(result, "reason", "")


def test_an_empty_file_is_a_failure() -> None:
    assert isinstance(parse(b""), Failed)
    assert isinstance(parse(b"something else\n"), Failed)


def test_appended_runs_are_those_of_two_files() -> None:
    text, lines = read("serial-70-30.coz"), read("head-serial.jsonl.coz")
    apart, together = measured(text, lines), measured(text + lines)
    assert apart == together
    where = "experiments[serial.c:10,round]"
    assert value(together, where) == value(measured(text), where) + value(measured(lines), where)


def test_the_order_of_experiments_does_not_matter() -> None:
    blocks = read("serial-70-30.coz").split(b"experiment\t")
    # The last one is dropped, and the others carry the blocks of mid-run with them.
    middle = blocks[1:-1]
    random.Random(1).shuffle(middle)
    shuffled = b"experiment\t".join([blocks[0], *middle, blocks[-1]])
    assert shuffled != read("serial-70-30.coz")
    assert measured(shuffled) == measured(read("serial-70-30.coz"))


def test_the_last_experiment_of_a_run_that_ended_is_dropped() -> None:
    whole = read("serial-three-runs.coz")
    assert "3 experiments dropped that the end of a run cut short" in measured(whole).notes
    crashed = whole[: whole.rindex(b"runtime\t")]
    where = "experiments[serial.c:15,round]"
    assert value(measured(crashed), where) == value(measured(whole), where) + 1


def test_impossible_durations_are_rejected_and_told() -> None:
    profile = read("serial-70-30.coz")
    bad = b"".join(
        b"experiment\tselected=/demo/src/serial.c:10\tspeedup=1.00\tduration=%d\tselected-samples=9\n"
        b"throughput-point\tname=round\tdelta=15\n" % duration
        for duration in (0, 2**64 - 3_675_842)
    )
    head, line, rest = profile.partition(b"experiment\t")
    result = measured(head + bad + line + rest)
    assert result.scalars == measured(profile).scalars
    note = "2 experiments rejected for their duration (serial.c:10 at 100 %: 2)"
    assert note in result.notes


def test_coz_own_lines_and_their_points_do_not_count() -> None:
    profile = read("serial-70-30.coz")
    head, line, rest = profile.partition(b"experiment\t")
    own = (
        b"experiment\tselected=/usr/include/coz.h:95\tspeedup=0.00\tduration=5\tselected-samples=9\n"
        b"throughput-point\tname=round\tdelta=15\n"
    )
    assert measured(head + own + line + rest) == measured(profile)


def test_the_names_of_2014_are_read() -> None:
    profile = read("serial-70-30.coz")
    old = profile.replace(
        b"throughput-point\tname=round", b"progress-point\tname=round\ttype=source"
    )
    assert measured(old) == measured(profile)


def test_a_json_record_may_be_spelled_with_underscores() -> None:
    profile = read("head-serial.jsonl.coz")
    assert measured(profile.replace(b"throughput-point", b"throughput_point")) == measured(profile)


def test_what_is_not_understood_is_counted_and_a_cut_line_dropped() -> None:
    profile = read("serial-70-30.coz")
    result = measured(profile + b"unknown\tx=1\nsamples\tlocation=/demo/src/serial.c:10\tcount=9")
    assert "2 lines were not understood" in result.notes
    assert result.scalars == measured(profile).scalars


def test_a_line_that_slows_the_program_down_is_contention() -> None:
    coin = random.Random(3)
    lines = [b"startup\ttime=1"]
    for percent in [0, 25, 50, 75, 100] * 8:
        duration = int(5e8 * (1 + percent / 200) * coin.uniform(0.99, 1.01))
        lines.append(
            b"experiment\tselected=a.c:1\tspeedup=%.2f\tduration=%d\tselected-samples=9"
            % (percent / 100, duration)
        )
        lines.append(b"throughput-point\tname=work\tdelta=100")
    (finding,) = measured(b"\n".join(lines) + b"\n").findings
    assert (finding.where, finding.what) == ("a.c:1", "contention")
    assert finding.scalar.value == pytest.approx(-0.5, abs=0.02)


def test_files_of_one_name_are_told_apart() -> None:
    profile = read("serial-70-30.coz").replace(b"/src/serial.c:15", b"/other/serial.c:15")
    names = measured(profile).scalars
    assert "slope[/demo/src/serial.c:10,round]" in names
    assert "slope[/demo/other/serial.c:15,round]" in names


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(Coz().parse, read("serial-70-30.coz"))
    check_total(Coz().parse, read("head-serial.jsonl.coz"))


def test_numbers_do_not_depend_on_chance() -> None:
    profile = read("toy-barrier.coz")
    assert Coz().parse([BytesIO(profile)]) == Coz().parse([BytesIO(profile)])


def test_the_command_runs_under_coz() -> None:
    profiler = Coz(source_scope=("%a.c",), binary_scope=("MAIN", "%liba%"), fixed_line="a.c:9")
    wrapped = profiler.wrap(Command(argv=("./a", "1")), "/o/p")
    options = (
        *("run", "-o", "/o/p.profile", "--source-scope", "%a.c", "--binary-scope", "MAIN"),
        *("--binary-scope", "%liba%", "--fixed-line", "a.c:9", "---", "./a", "1"),
    )
    assert wrapped.argv[-len(options) :] == options
    assert isinstance(profiler, Finishing)
    assert isinstance(profiler, Repeating)
