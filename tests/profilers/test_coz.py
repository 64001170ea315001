"""What coz really writes gives the figures that are known to be true of its programs."""

import json
import os
import random
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest

from aiopt.profilers.coz import Coz
from aiopt.protocols import (
    Command,
    Failed,
    Finishing,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Repeating,
    Workspace,
)

from .hostile import check_total, contents
from .programs import Printed, compiled, opened, profiled, skip_without

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
    lines = beside(("/b/x", "")) + read("serial-70-30.coz") + b"aiopt-end\n"
    check_total(Coz().parse, lines)
    for odd in (b"aiopt-load\tran=-1\twaited=1e999\n", b"aiopt-program\n", b"aiopt-x\tpath=\n"):
        assert "1 lines were not understood" in measured(odd + lines).notes


def test_numbers_do_not_depend_on_chance() -> None:
    profile = read("toy-barrier.coz")
    assert Coz().parse([BytesIO(profile)]) == Coz().parse([BytesIO(profile)])


# ---- what is written down beside the profile ----


def beside(*programs: tuple[str, str], others: tuple[str, ...] = ()) -> bytes:
    lines = [f"aiopt-program\tpath={path}\tproblem={problem}" for path, problem in programs]
    lines += [f"aiopt-other\tpath={path}\tproblem=" for path in others]
    return "\n".join([*lines, "aiopt-load\tran=97000000000\twaited=3000000000"]).encode() + b"\n"


def unavailable(*files: bytes) -> NotAvailable:
    result = parse(*files)
    assert isinstance(result, NotAvailable), result
    return result


@pytest.mark.parametrize(
    ("problem", "reason", "fix"),
    [
        ("dwarf-5", "DWARF 5", "-gdwarf-4"),
        ("compressed", "compressed", "-gz=none"),
        ("location-views", "location views", "-gno-variable-location-views"),
        ("no-debug-info", "no debug information", "do not strip"),
        ("static", "linked statically", "without -static"),
    ],
)
def test_a_program_that_coz_cannot_read_is_the_reason_for_nothing(
    problem: str, reason: str, fix: str
) -> None:
    result = unavailable(beside(("/b/fine", ""), ("/b/x", problem)))
    assert result.reason.startswith("/b/x: ")
    assert reason in result.reason
    assert fix in result.fix


def test_a_program_that_coz_could_read_after_all_is_only_noted() -> None:
    profile = read("serial-70-30.coz")
    result = measured(beside(("/b/x", "location-views")) + profile)
    assert any(note.startswith("/b/x: coz 0.2.2 cannot read") for note in result.notes)
    assert result.scalars.items() >= measured(profile).scalars.items()


def test_where_nothing_has_progress_points_it_says_what_ran() -> None:
    result = unavailable(beside(others=("/bin/sh", "/usr/bin/sleep")))
    assert result.reason == "no program was started that has a progress point (sh, sleep)"
    assert "COZ_PROGRESS_NAMED" in result.fix


def test_a_program_that_left_no_profile_has_failed() -> None:
    result = parse(beside(("/b/x", "")))
    assert result == Failed(reason="coz wrote nothing of x: did it crash?")


def test_on_a_busy_machine_nothing_is_said() -> None:
    profile = read("serial-70-30.coz")
    assert value(measured(beside(("/b/x", "")) + profile), "cpu_share") == pytest.approx(0.97)
    busy = b"aiopt-load\tran=97000000000\twaited=30000000000\n" + profile
    assert why_not(busy).startswith("host busy: the program ran in 76% of the time")
    assert isinstance(Coz(least_cpu_share=0.7).parse(contents(busy)), Measured)
    assert any("how busy" in note for note in measured(profile).notes)


def test_a_line_cut_before_the_end_of_its_profile_is_dropped() -> None:
    profile = read("serial-70-30.coz")
    cut = profile[: profile.rindex(b"1", 0, profile.rindex(b"runtime")) + 1]
    joined = beside(("/b/x", "")) + cut + b"aiopt-end\n" + profile + b"aiopt-end\n"
    assert measured(joined).scalars.items() >= measured(cut, profile).scalars.items()
    assert "1 lines were not understood" in measured(joined).notes


def test_work_for_each_visit_is_what_the_serial_program_does() -> None:
    """Both lines together take all of its time."""
    result = measured(read("serial-70-30.coz"))
    work = [result.scalars[f"work_per_visit[serial.c:{line},round]"] for line in (10, 15)]
    assert all(w.unit == "ms" and w.low and w.high and w.low < w.value < w.high for w in work)
    assert work[0].value / work[1].value == pytest.approx(70 / 30, rel=0.1)


def test_of_a_line_with_too_few_experiments_there_is_only_their_number() -> None:
    few = read("serial-three-runs.coz").replace(b"/src/serial.c:15", b"/src/serial.c:10", 9)
    lone = few + read("head-legacy.coz").replace(b"serial.c", b"rare.c").replace(b":15", b":10")
    names = [name for name in measured(lone).scalars if "rare.c" in name]
    assert names == ["experiments[rare.c:10,round]"]


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


# ---- real programs ----


def line_of(comment: str) -> int:
    """The line of phases.c that has this comment."""
    source = Path(__file__).with_name("programs") / "phases.c"
    lines = source.read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if f"/* {comment} */" in line)


async def one_run(profiler: Coz, workspace: Workspace, *argv: str) -> bytes:
    """The profile of one run, which gets more of the CPUs than what else is on the machine."""
    printed, output = Printed(), "{run}/out"
    await workspace.new_run("one")
    service = await workspace.start(profiler.wrap(Command(argv=argv), output), printed)
    # The scheduler's groups are sessions; without the right to it, the load is what it is.
    with suppress(OSError):
        await anyio.Path(f"/proc/{service.pid}/autogroup").write_text("-10")
    while not service.exited():  # noqa: ASYNC110  (there is no event)
        await anyio.sleep(0.05)
    done = await service.stop()
    assert done.ok, (done, printed)
    assert (await workspace.run(profiler.finish(output), printed)).ok
    with TemporaryDirectory() as folder:
        await workspace.get(output, Path(folder, "profile"))
        return await anyio.Path(folder, "profile").read_bytes()


async def need_coz(workspace: Workspace) -> None:
    if (missing := await Coz().probe(workspace)) is not None:
        skip_without(missing)


def test_the_points_of_a_curve_have_intervals() -> None:
    result = parse((DATA / "serial-70-30.coz").read_bytes())
    assert isinstance(result, Measured)
    slope = result.scalars["slope[serial.c:10,round]"].value
    points = {
        int(name.rpartition(",")[2][:-1]): scalar
        for name, scalar in result.scalars.items()
        if name.startswith("delta[serial.c:10,round,")
    }
    assert len(points) >= 10
    known = {at: point for at, point in points.items() if point.low is not None}
    assert len(known) >= 5
    for at, point in known.items():
        assert point.low is not None
        assert point.high is not None
        assert point.low <= point.value <= point.high
        assert point.value == pytest.approx(slope * at / 100, abs=0.15)


@pytest.mark.anyio
async def test_the_line_that_counts_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    """Two threads and a barrier; see phases.c. A script starts the program."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU only")
    program = compiled("phases", tmp_path, "-DWITH_COZ", "-ldl")
    critical, irrelevant = (line_of(f"the {name} line") for name in ("critical", "irrelevant"))
    script = '"$0" seconds=10 times=4 pin=1; exit $?'
    files: list[bytes] = []
    # Less than by default, so that it also works beside other tests: the lines differ by much.
    pooled = Coz(least_cpu_share=0.5)
    result: ProfileResult = Inconclusive(reason="nothing was run")
    async with opened(tmp_path) as workspace:
        await need_coz(workspace)
        for runs in (1, 2, 3, 4):
            for line in (critical, irrelevant):
                fixed = Coz(fixed_line=f"phases.c:{line}")
                files.append(await one_run(fixed, workspace, "sh", "-c", script, program))
            result = pooled.parse(contents(*files))
            # How many experiments have no speed-up is chance.
            if runs > 1 and isinstance(result, Measured) and len(opportunities(result)) == 1:
                break
    if isinstance(result, Inconclusive) and "host busy" in result.reason:
        pytest.skip(f"the machine is too busy: {result.reason}")
    assert isinstance(result, Measured), result
    first, second = result.findings
    assert (first.where, first.what) == (f"phases.c:{critical}", "opportunity")
    assert second.where == f"phases.c:{irrelevant}"
    # Where others hold up its thread, the line is at times one that counts a little.
    assert second.what in ("inconclusive", "negligible", "opportunity")
    counts, does_not = first.scalar, second.scalar
    assert counts.low is not None
    assert does_not.low is not None
    assert does_not.high is not None
    assert does_not.low - 0.1 < 0 < does_not.high + 0.1
    assert counts.low > 0.1
    assert counts.value > 2 * abs(does_not.value)
    work = [value(result, f"work_per_visit[{each.where},round]") for each in (first, second)]
    # coz loses some samples of threads that wait often.
    assert work[0] > 2 * work[1]


def opportunities(result: Measured) -> list[str]:
    """The lines that count, if the result says something of both lines; none otherwise."""
    if len([name for name in result.scalars if name.startswith("slope[")]) < 2:
        return []
    return [finding.where for finding in result.findings if finding.what == "opportunity"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("flags", "reason", "fix"),
    [
        (("-gdwarf-5",), "DWARF 5", "-gdwarf-4"),
        (("-gz",), "compressed", "-gz=none"),
        (("-gz=zlib-gnu",), "compressed", "-gz=none"),
        (("-gvariable-location-views",), "location views", "-gno-variable-location-views"),
        (("-g0",), "no debug information", "-g "),
        (("-s",), "no debug information", "do not strip"),
        (("-static",), "linked statically", "without -static"),
        (("-UWITH_COZ",), "no program was started that has a progress point", "COZ_PROGRESS"),
    ],
    ids=[
        "dwarf-5",
        "gz",
        "zdebug",
        "location-views",
        "no-debug-info",
        "stripped",
        "static",
        "no-progress-point",
    ],
)
async def test_what_coz_passes_over_is_named_with_its_cause(
    tmp_path: Path, flags: tuple[str, ...], reason: str, fix: str
) -> None:
    """Without us coz exits with 0 and no experiments, but for the first two, where it aborts."""
    program = compiled("phases", tmp_path, "-DWITH_COZ", "-ldl", "-Wno-error", *flags)
    async with opened(tmp_path) as workspace:
        argv = (program, "compute=300", "work=100")
        result, printed = await profiled(Coz(), workspace, *argv)
    assert printed.numbers()["barrier_waits"] == 600
    assert isinstance(result, NotAvailable), result
    assert reason in result.reason
    assert fix in result.fix
    assert "phases" in result.reason


@pytest.mark.anyio
async def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    program = compiled("phases", tmp_path, "-DWITH_COZ", "-ldl")
    async with opened(tmp_path) as workspace:
        result, _ = await profiled(Coz(), workspace, program, "compute=100", "work=100")
    assert isinstance(result, Inconclusive)
    assert "run for longer" in result.reason


@pytest.mark.anyio
async def test_a_progress_point_that_is_not_reached_is_named(tmp_path: Path) -> None:
    program = compiled("phases", tmp_path, "-DWITH_COZ", "-ldl")
    async with opened(tmp_path) as workspace:
        result, _ = await profiled(Coz(), workspace, program)
    assert isinstance(result, Inconclusive)


@pytest.mark.anyio
async def test_a_program_without_progress_points_can_be_named(tmp_path: Path) -> None:
    """Where they are in a library; here there are none at all, but coz has looked."""
    program = compiled("phases", tmp_path)
    async with opened(tmp_path) as workspace:
        profiler = Coz(program="*/phases")
        argv = ("sh", "-c", '"$0" compute=300; true', program)
        result, _ = await profiled(profiler, workspace, *argv)
    assert isinstance(result, Inconclusive)
    assert result.reason.startswith("no experiments: no progress point was reached")


@pytest.mark.anyio
@pytest.mark.parametrize("reached", ["at once", "by a script"])
async def test_a_service_that_is_ended_leaves_its_experiments(tmp_path: Path, reached: str) -> None:
    """Also where a script chooses what coz runs on, as version managers of Python have it."""
    program = compiled("phases", tmp_path, "-DWITH_COZ", "-ldl")
    chooser = tmp_path / "chooser"
    chooser.write_text('#!/bin/bash\nexec coz "$@"\n')
    chooser.chmod(0o755)
    coz = Coz(coz="coz" if reached == "at once" else str(chooser))
    async with opened(tmp_path) as workspace:
        await need_coz(workspace)
        script = 'env A=1 "$0" compute=1000000'
        command = Command(argv=("sh", "-c", f"exec {script}", program))
        service = await workspace.start(coz.wrap(command, "{run}/out"), Printed())
        with anyio.fail_after(60):
            while await counted(workspace) < 3:  # noqa: ASYNC110  (there is no event)
                await anyio.sleep(0.1)
        done = await service.stop()
        # The exit code of coz for a program that TERM has ended.
        assert done.exit_code == 256 - 15
        assert done.strays_killed == 0
        await workspace.run(coz.finish("{run}/out"), Printed())
        await workspace.get("{run}/out", tmp_path / "out")
    result = parse((tmp_path / "out").read_bytes())
    assert isinstance(result, Inconclusive | Measured)
    assert not isinstance(result, Inconclusive) or "no experiments" not in result.reason


async def counted(workspace: Workspace) -> int:
    """How many experiments there are so far."""
    printed = Printed()
    script = "cat {run}/out.profile* 2>/dev/null | grep -c ^experiment"
    await workspace.run(Command(argv=("sh", "-c", script)), printed)
    return int(printed.texts["stdout"])


@pytest.mark.anyio
async def test_output_and_exit_code_are_the_programs(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        await need_coz(workspace)
        printed = Printed()
        script = 'read x; echo "$x $LD_PRELOAD" >&2; echo out; exit 7'
        command = Command(argv=("sh", "-c", script), stdin=b"given\n")
        done = await workspace.run(Coz().wrap(command, "{run}/out"), printed)
    assert done.exit_code == 7
    assert printed.texts["stdout"] == "out\n"
    assert "given" in printed.texts["stderr"]


@pytest.mark.anyio
async def test_where_there_is_no_coz_it_says_how_to_get_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        missing = await Coz(coz="/nowhere/coz").probe(workspace)
    assert missing is not None
    assert missing.reason == "/nowhere/coz is not installed"
    assert missing.fix.startswith("apt-get install coz-profiler")
