"""Callgrind's figures are those of callgrind_annotate, and repeat to the digit."""

import json
import re
from pathlib import Path

import anyio
import pytest

from aiopt.profilers.callgrind import Callgrind
from aiopt.protocols import Command, Failed, Measured, NotAvailable, Service, Workspace

from .hostile import check_total, contents
from .programs import Printed, compiled, opened, profiled, skip_without

DATA = Path(__file__).parents[1] / "data" / "profilers" / "valgrind"
PROFILE = (DATA / "callgrind.out").read_bytes()


def measured(*files: bytes) -> Measured:
    result = Callgrind().parse(contents(*files))
    assert isinstance(result, Measured), result
    return result


def value(result: Measured, name: str) -> float:
    return result.scalars[name].value


def profile(body: str, total: int, pid: int = 1, command: str = "x") -> bytes:
    head = f"# callgrind format\nversion: 1\npid: {pid}\ncmd:  {command}\npart: 1\n"
    return f"{head}events: Ir\nsummary: {total}\n\n{body}\ntotals: {total}\n".encode()


def test_the_figures_are_those_of_callgrind_annotate() -> None:
    result = measured(PROFILE)
    assert value(result, "instructions") == 56_531_563
    assert result.notes == ()
    text = (DATA / "callgrind_annotate.txt").read_text()
    rows = re.findall(r"^ *([\d,]+) \([ \d.]+%\)  [^:\n]+:(\S+) \[", text, re.MULTILINE)
    assert len(rows) == 6
    counts: dict[str, int] = {}
    for count, name in rows:  # the levels of a recursion are apart there
        function = name.removesuffix("'2")
        counts[function] = counts.get(function, 0) + int(count.replace(",", ""))
    assert len(counts) == 5
    for name, own in counts.items():
        assert value(result, f"instructions[{name}]") == own
    assert {each.where for each in result.findings[:5]} == counts.keys()
    assert sum(int(line.rsplit(" ", 1)[1]) for line in result.stacks.splitlines()) == 56_531_563
    assert result.findings[0].detail.startswith("in msort.c; ")
    # As the file says of the one call of it: 11 instructions of its own, 56411235 of the call.
    assert value(result, "instructions_inclusive[(below main)]") >= 11 + 56_411_235


def test_costs_that_do_not_add_up_are_a_failure() -> None:
    result = Callgrind().parse(contents(PROFILE.replace(b"\n5 4610121", b"")))
    assert isinstance(result, Failed)
    assert "add up to" in result.reason


def test_a_cut_profile_is_a_failure() -> None:
    for end in (PROFILE.index(b"events:"), len(PROFILE) // 2):
        for rest in (b"", b"\n" + PROFILE):
            result = Callgrind().parse(contents(PROFILE[:end] + rest))
            assert isinstance(result, Failed)
            assert "it was cut" in result.reason
            assert "process 2149 (/srv/demo/bin/det)" in result.reason


def test_a_process_that_was_killed_is_a_failure() -> None:
    result = Callgrind().parse(contents(b"# empty: 4711\n" + PROFILE))
    assert isinstance(result, Failed)
    assert "process 4711 wrote nothing" in result.reason


def test_no_profile_is_a_failure() -> None:
    assert isinstance(Callgrind().parse([]), Failed)
    assert isinstance(Callgrind().parse(contents(b"")), Failed)


def test_circles_of_calls_are_counted_once() -> None:
    body = """fn=(1) main
1 10
cfn=(2) even
calls=1 9
1 900
fn=(2)
5 100
cfn=(3) odd
calls=9 8
5 2500
fn=(3)
8 200
cfn=(2)
calls=9 5
8 2400
cfn=(4) leaf
calls=9 2
8 600
fn=(4)
2 600
fn=(5) deep
1 50
cfn=(6) deep'2
calls=1 1
1 40
fn=(6)
1 40"""
    result = measured(profile(body, 1000))
    inclusive = {
        name.removeprefix("instructions_inclusive[")[:-1]: scalar.value
        for name, scalar in result.scalars.items()
        if "inclusive" in name
    }
    assert inclusive == {"main": 910, "even": 900, "odd": 900, "leaf": 600, "deep": 90}
    assert value(result, "instructions[deep]") == 90


def test_addresses_jumps_and_several_events_are_read() -> None:
    body = (
        "ob=/bin/x\nfl=(1) a.c\nfn=(1) f\n0x10 3 7\njump=5 0x20 9\n0x14 4\njcnd=3/5 +3 *\n+4 *\n"
        "+8 * 5\nfi=(2) b.h\n* +1 2 9\nfe=(1)\n-4 -1 1"
    )
    text = profile(body, 15).replace(b"events: Ir", b"positions: instr line\nevents: Dr Ir")
    text = text.replace(b"summary: 15", b"summary: 9 16").replace(b"totals: 15", b"totals: 9 16")
    result = measured(text.replace(b"\n0x10 3 7", b"\n0x10 3 2 7").replace(b" * 5", b" * 5 0"))
    assert value(result, "instructions") == 16
    assert result.notes == ()


def test_the_processes_of_a_run_add_up() -> None:
    script = profile("fn=(1) sh\n1 28", 28, 1, "sh -c x") + profile("", 0, 1, "sh -c x")
    # By exec, as the same process; a forked child; and names of one are not those of another.
    program = profile("fn=(1) work\n1 70", 70, 1, "/a/x 5") + profile("fn=f\n1 2", 2, 2, "/a/x 5")
    result = measured(script + program)
    assert value(result, "instructions") == 100
    assert value(result, "instructions[work]") == 70
    assert result.notes == ("3 processes; of the instructions: x 72.0%, sh 28.0%",)


def test_the_parts_of_a_process_add_up() -> None:
    first = profile("fn=(1) main\n1 5\ncfn=(2) work\ncalls=1 9\n1 60\nfn=(2)\n9 60", 65)
    second = profile("fn=(1) main\n1 3\ncfn=(2) work\ncalls=1 9\n1 10\nfn=(2)\n9 10", 13)
    result = measured(first + second)
    assert value(result, "instructions") == 78
    assert value(result, "instructions[work]") == 70
    assert value(result, "instructions_inclusive[main]") == 78
    assert value(result, "instructions_inclusive[work]") == 70
    assert result.notes == ()


def test_of_several_runs_the_mean_is_given() -> None:
    result = measured(profile("fn=f\n1 30", 30), profile("fn=f\n1 40\nfn=g\n1 2", 42))
    assert result.scalars["instructions"].value == 36
    assert (result.scalars["instructions"].low, result.scalars["instructions"].high) == (30, 42)
    assert (result.scalars["instructions[g]"].low, value(result, "instructions[g]")) == (0, 1)


def test_no_failure_of_the_tool_is_a_measurement() -> None:
    cases = [json.loads(line) for line in (DATA / "failures.jsonl").read_text().splitlines()]
    assert len(cases) >= 3
    for case in cases:
        text = case["output_text"] or case["stdout_tail"]
        if case["expected_result"] == "failed":
            assert isinstance(Callgrind().parse(contents(text.encode())), Failed)


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(Callgrind().parse, PROFILE)


@pytest.mark.anyio
async def test_counts_repeat_to_the_digit(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        async with opened(tmp_path / name) as workspace:
            result, printed = await profiled(Callgrind(), workspace, program)
        assert isinstance(result, Measured)
        assert printed.texts["stdout"] == "done\n"
        results.append(result)
    assert results[0] == results[1]
    assert value(results[0], "instructions[first]") > 3 * 300_000
    ratio = value(results[0], "instructions[first]") / value(results[0], "instructions[second]")
    assert ratio == pytest.approx(3, rel=0.01)
    inclusive = {
        name: value(results[0], f"instructions_inclusive[{name}]")
        for name in ("main", "middle", "first", "fibonacci")
    }
    assert 0 < inclusive["middle"] - inclusive["first"] - inclusive["fibonacci"] < 100
    assert value(results[0], "instructions") >= inclusive["main"] > inclusive["middle"]


@pytest.mark.anyio
async def test_the_counts_of_threads_repeat_too(tmp_path: Path) -> None:
    """What the threads themselves do; how often they meet and what they print differs."""
    program = compiled("phases", tmp_path)
    counts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        async with opened(tmp_path / name) as workspace:
            result, _ = await profiled(Callgrind(), workspace, program, "compute=5", "work=10")
        assert isinstance(result, Measured)
        names = ("critical", "irrelevant")
        counts.append([value(result, f"instructions[{name}]") for name in names])
    assert counts[0] == counts[1]
    assert counts[0][0] == pytest.approx(2 * counts[0][1], rel=0.001)


@pytest.mark.anyio
async def test_a_script_and_what_the_program_forks_are_counted_once(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        alone, _ = await profiled(Callgrind(), workspace, program)
        await workspace.new_run("script")
        script = 'x=$(cat /dev/null); (:); /nowhere; "$0" fork; true'
        result, _ = await profiled(Callgrind(), workspace, "sh", "-c", script, program)
    assert isinstance(alone, Measured)
    assert isinstance(result, Measured)
    assert result.findings[0].where == "first"
    for name in ("instructions[first]", "instructions[fibonacci]", "instructions_inclusive[first]"):
        assert value(result, name) == value(alone, name)
    # The child's loop is half as long as the parent's.
    half = (value(alone, "instructions[second]") - 5) / 2
    assert value(result, "instructions[second]") == value(alone, "instructions[second]") + half + 5
    assert value(result, "instructions_inclusive[main]") < 1.2 * value(alone, "instructions")
    (note,) = result.notes
    assert re.fullmatch(r"6 processes; .*: counted 8\d\.\d%, cat .*, sh .*", note), note


async def available(workspace: Workspace) -> None:
    if (missing := await Callgrind().probe(workspace)) is not None:
        skip_without(missing)


async def until_done(service: Service, printed: Printed) -> None:
    with anyio.fail_after(30):
        while "done" not in printed.texts["stdout"]:
            assert not service.exited(), printed
            await anyio.sleep(0.05)


@pytest.mark.anyio
@pytest.mark.parametrize("script", ['exec "$0" serve', '"$0" serve; true', '"$0" serve & wait'])
async def test_a_service_that_is_ended_leaves_its_profile(tmp_path: Path, script: str) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        await available(workspace)
        printed = Printed()
        command = Command(argv=("sh", "-c", script, program))
        service = await workspace.start(Callgrind().wrap(command, "{run}/out"), printed)
        await until_done(service, printed)
        done = await service.stop(20.0)
        assert done.signal == 15 or done.exit_code == 143
        assert (await workspace.run(Callgrind().finish("{run}/out"), printed)).ok
        await workspace.get("{run}/out", tmp_path / "out")
    result = measured((tmp_path / "out").read_bytes())
    assert value(result, "instructions[first]") > 3 * 300_000


@pytest.mark.anyio
async def test_what_a_script_leaves_running_is_counted_too(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        script = '"$0" serve >"$TMPDIR/out" & while [ ! -s "$TMPDIR/out" ]; do sleep 0.1; done'
        result, _ = await profiled(Callgrind(), workspace, "sh", "-c", script, program)
    assert isinstance(result, Measured)
    assert value(result, "instructions[first]") > 3 * 300_000


@pytest.mark.anyio
async def test_a_service_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        await available(workspace)
        printed = Printed()
        command = Callgrind().wrap(Command(argv=(program, "serve")), "{run}/out")
        service = await workspace.start(command, printed)
        await until_done(service, printed)
        await service.stop(0.0)
        assert (await workspace.run(Callgrind().finish("{run}/out"), printed)).ok
        await workspace.get("{run}/out", tmp_path / "out")
    result = Callgrind().parse(contents((tmp_path / "out").read_bytes()))
    assert isinstance(result, Failed)
    assert "wrote nothing" in result.reason


@pytest.mark.anyio
async def test_the_exit_code_is_the_programs(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        await available(workspace)
        for argv in ((program, "fail"), ("sh", "-c", '"$0" fail', program)):
            done = await workspace.run(Callgrind().wrap(Command(argv=argv), "{run}/out"), Printed())
            assert done.exit_code == 7


@pytest.mark.anyio
async def test_a_run_that_failed_ends_with_what_to_do(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        await available(workspace)
        for script, hint in (
            ("kill -ILL $$", "build without -march=native"),
            ('ulimit -v 60000; exec "$0"', "out of memory"),
        ):
            printed, command = Printed(), Command(argv=("sh", "-c", script, program))
            done = await workspace.run(Callgrind().wrap(command, "{run}/out"), printed)
            assert not done.ok
            assert hint in printed.texts["stderr"].splitlines()[-1]


@pytest.mark.anyio
async def test_the_version_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        await available(workspace)
        printed = Printed()
        await workspace.run(Callgrind().version(), printed)
    assert printed.texts["stdout"].startswith("valgrind-")


@pytest.mark.anyio
async def test_the_source_has_no_say_in_what_is_counted(tmp_path: Path) -> None:
    program = compiled("counted", tmp_path)
    async with opened(tmp_path) as workspace:
        (tmp_path / "source" / ".valgrindrc").write_text("--callgrind:zero-before=second\n")
        result, _ = await profiled(Callgrind(), workspace, program)
    assert isinstance(result, Measured)
    assert value(result, "instructions[first]") > 3 * 300_000


@pytest.mark.anyio
async def test_where_there_is_no_valgrind_it_says_how_to_get_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        missing = await Callgrind(valgrind="/nowhere/valgrind").probe(workspace)
    assert isinstance(missing, NotAvailable)
    assert missing.fix == "apt-get install valgrind"
