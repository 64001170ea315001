"""Waiting has the class, the place and the duration that it has in truth."""

import re
from pathlib import Path

import pytest

from aiopt.profilers.offcpu import OffCpu
from aiopt.protocols import Command, Failed, Inconclusive, Measured, NotAvailable

from .hostile import check_total, contents
from .programs import Printed, compiled, opened, profiled, skip_without

DATA = Path(__file__).parents[1] / "data" / "profilers" / "offcpu"
STACKS = (DATA / "switch-stacks.txt").read_bytes()
EVENTS = (DATA / "switch-events-only.txt").read_bytes()
HIDDEN = "\tffffffff81441cf7 [unknown] ([kernel.kallsyms])\n\t10 work (/x)\n\n"
FUTEX = "\tffffffff81441cf7 futex_wait+0x67 ([kernel.kallsyms])\n\t 10 work (/x)\n\n"


def measured(*files: bytes) -> Measured:
    result = OffCpu().parse(contents(*files))
    assert isinstance(result, Measured), result
    return result


def value(result: Measured, name: str) -> float:
    return result.scalars[name].value


def switch(tid: int, ms: float, state: str, stack: str = FUTEX) -> str:
    """A thread leaves the CPU."""
    fields = f"prev_comm=t prev_pid={tid} prev_prio=120 prev_state={state} ==> next_comm=s"
    time = f"{100 + ms / 1000:.9f}"
    return (
        f"t {tid} [000] {time}:        sched:sched_switch: {fields}\n{stack}"
        f"t {tid} [000] {time}: PERF_RECORD_SWITCH OUT\n"
    )


def back(tid: int, ms: float) -> str:
    return f"t {tid} [000] {100 + ms / 1000:.9f}: PERF_RECORD_SWITCH IN\n"


def waits(tid: int, *durations: float, state: str = "S", stack: str = FUTEX) -> str:
    """After each millisecond of work, a wait."""
    text, now = back(tid, 0), 0.0
    for duration in durations:
        text += switch(tid, now + 1, state, stack)
        now += 1 + duration
        text += back(tid, now)
    return text


def test_classes_and_times_are_those_of_the_recorded_switches() -> None:
    result = measured(STACKS)
    classes = {"I": (22.201434, 76), "B": (113.672679, 48), "S": (121.375137, 99)}
    for kind, (ms, count) in classes.items():
        assert value(result, f"off_cpu_ms[{kind}]") == pytest.approx(ms, abs=1e-9)
        assert value(result, f"waits[{kind}]") == count
    # Main waits for its threads: that is idle, and all but 0.7 ms of class L.
    assert value(result, "idle_ms") == pytest.approx(152.272001)
    assert value(result, "off_cpu_ms[L]") == pytest.approx(152.940434 - 152.272001)
    # The program's own clock said 0.055 s, the samples of cpu-clock 0.0532.
    assert value(result, "on_cpu_ms") == pytest.approx(53.159477, rel=0.05)
    assert "off_cpu_ms[unclassified]" not in result.scalars
    assert [(f.where, f.what) for f in result.findings[:3]] == [
        ("worker", "waits (sleep, socket, pipe, timer, journal)"),
        ("worker", "waits for block I/O"),
        ("locked_section", "waits (sleep, socket, pipe, timer, journal)"),
    ]
    assert result.notes == ("1 threads made no progress; their waiting is in idle_ms alone",)
    total = sum(float(line.rpartition(" ")[2]) for line in result.stacks.splitlines())
    blocked = sum(value(result, f"off_cpu_ms[{kind}]") for kind in "ILB")
    assert total == pytest.approx(1000 * blocked)
    assert result.stacks_unit == "us"
    assert result.stacks.startswith("B;start_thread;worker;clock_nanosleep")


def test_microseconds_and_a_cut_end_are_read() -> None:
    microseconds = re.sub(rb"(\.[0-9]{6})[0-9]{3}: ", rb"\1: ", STACKS)
    result = measured(microseconds[: microseconds.index(b"do_syscall_64", 120_000)])
    assert "1 samples were cut in the middle and left out" in result.notes
    assert any("waits had not ended" in note for note in result.notes)
    whole = measured(STACKS)
    for kind in "ILB":
        name = f"off_cpu_ms[{kind}]"
        assert 0.3 * value(whole, name) < value(result, name) <= value(whole, name) + 0.1
        assert value(measured(microseconds), name) == pytest.approx(value(whole, name), abs=0.1)


def test_without_stacks_there_are_times_by_thread_and_the_reason() -> None:
    result = measured(EVENTS)
    assert value(result, "off_cpu_ms[S]") == pytest.approx(1064.304071)
    assert value(result, "waits[S]") == 223
    unclassified = value(result, "off_cpu_ms[unclassified]") + value(result, "idle_ms")
    assert unclassified == pytest.approx(2261.349034)
    assert not any(f"off_cpu_ms[{kind}]" in result.scalars for kind in "ILB")
    assert any('"perfmon", "syslog"' in note for note in result.notes)


def test_several_runs_are_averaged() -> None:
    one, two = measured(STACKS), measured(STACKS, STACKS)
    for name, scalar in one.scalars.items():
        assert value(two, name) == pytest.approx(scalar.value), name
    widths = [
        (s.high or 0) - s.value for s in (each.scalars["off_cpu_ms[I]"] for each in (one, two))
    ]
    assert widths[1] == pytest.approx(widths[0] / 2**0.5)
    assert one.stacks.splitlines()[0] == two.stacks.splitlines()[0]


def test_a_profile_without_tracing_among_others_is_noted() -> None:
    assert "1 of 2 profiles have no switches" in measured(STACKS, b"").notes


@pytest.mark.parametrize(
    ("state", "stack", "kind"),
    [
        ("R+", FUTEX, "S"),
        ("S", FUTEX, "L"),
        ("D", "\tffffffff81441cf7 io_schedule+0x67 ([kernel.kallsyms])\n\n", "I"),
        ("D", "\tffffffff81441cf7 rwsem_down_read_slowpath ([kernel.kallsyms])\n\n", "L"),
        ("S", "\tffffffff81441cf7 ep_poll+0x67 ([kernel.kallsyms])\n\n", "B"),
        (
            "S",
            "\tffffffff81441cf7 [unknown] ([kernel.kallsyms])\n\t10 work (/x)\n\n",
            "unclassified",
        ),
        ("S", "\n", "unclassified"),
    ],
)
def test_the_class_is_that_of_state_and_stack(state: str, stack: str, kind: str) -> None:
    result = measured(waits(1, 2, 2, 2, 2, state=state, stack=stack).encode())
    assert value(result, f"off_cpu_ms[{kind}]") == pytest.approx(8)
    assert value(result, f"waits[{kind}]") == 4
    assert value(result, "on_cpu_ms") == pytest.approx(4)


def test_hidden_symbols_of_the_kernel_are_said_to_be_what_is_missing() -> None:
    result = measured(waits(1, 2, 2, 2, 2, stack=HIDDEN).encode())
    assert any("the kernel hides its symbols" in note for note in result.notes)
    assert result.findings[0].where == "work"


def test_idle_threads_do_not_hide_the_others() -> None:
    busy = waits(1, 2, 2, 2, 2)
    idle = back(2, 0) + switch(2, 0.001, "S") + back(2, 5000) + switch(2, 5000.001, "S")
    result = measured((busy + idle).encode())
    assert value(result, "off_cpu_ms[L]") == pytest.approx(8)
    assert value(result, "idle_ms") == pytest.approx(4999.999)
    alone = measured(idle.encode())
    assert value(alone, "off_cpu_ms[L]") == pytest.approx(4999.999)
    assert value(alone, "idle_ms") == 0


def test_the_number_of_an_ended_thread_may_be_used_again() -> None:
    first = waits(7, 2, 2, 2, 2) + switch(7, 13, "X")
    again = first + "".join(
        back(7, 10_000 + 3 * n) + switch(7, 10_001 + 3 * n, "S") for n in range(4)
    )
    result = measured(again.encode())
    assert value(result, "off_cpu_ms[L]") == pytest.approx(8 + 3 * 2)
    assert value(result, "idle_ms") == 0
    assert value(result, "on_cpu_ms") == pytest.approx(5 + 4)


def test_odd_sequences_add_nothing() -> None:
    once = waits(1, 2, 2, 2, 2)
    twice = "".join(
        line * (2 if "SWITCH" in line and "OUT" in line else 1)
        for line in once.splitlines(keepends=True)
    )
    assert measured(twice.encode()).scalars == measured(once.encode()).scalars
    assert measured((back(9, 0) + back(9, 1) + once).encode()).scalars["off_cpu_ms[L]"].value == 8


def test_losses_forbid_a_statement() -> None:
    lost = "t 1 [000] 100.5: PERF_RECORD_LOST lost 12\n".replace("100.5", "100.500000")
    result = OffCpu().parse(contents((waits(1, 2, 2, 2) + lost).encode()))
    assert isinstance(result, Inconclusive)
    assert "perf lost 12 records beside 7 switches" in result.reason
    assert (
        "1 records were lost by perf" in measured(STACKS + lost.replace("12", "1").encode()).notes
    )


def test_nothing_is_never_a_measurement() -> None:
    assert isinstance(OffCpu().parse([]), Failed)
    assert isinstance(OffCpu().parse(contents(b"")), Inconclusive)
    assert isinstance(OffCpu().parse(contents(b"what is this\n")), Failed)
    assert isinstance(OffCpu().parse(contents(back(1, 0).encode())), Inconclusive)


@pytest.mark.parametrize("file", [STACKS, EVENTS], ids=["stacks", "events"])
def test_whatever_the_file_holds_the_answer_is_a_value(file: bytes) -> None:
    check_total(OffCpu().parse, file)


def test_stacks_that_end_in_a_library_are_told() -> None:
    library = FUTEX.replace("work (/x)", "pthread_cond_wait (/usr/lib/libc.so.6)")
    lonely = waits(1, *[5] * 9, stack=library)
    result = measured((waits(2, *[5] * 5) + lonely).encode())
    assert value(result, "off_cpu_ms[L,pthread_cond_wait]") == pytest.approx(45)
    assert any(note.startswith("64% of the waiting is in no function") for note in result.notes)
    result = measured((waits(2, *[5] * 10) + lonely).encode())
    assert not any("no function" in note for note in result.notes)


@pytest.mark.anyio
async def test_a_real_program_waits_where_and_as_long_as_it_says(tmp_path: Path) -> None:
    program = compiled("phases", tmp_path)
    async with opened(tmp_path, "perfmon", "syslog") as workspace:
        arguments = ("compute=300", "lock=300", "io=3000", "sleep=300", "file={run}/data")
        result, printed = await profiled(OffCpu(), workspace, program, *arguments)
    assert isinstance(result, Measured)
    if "off_cpu_ms[L]" not in result.scalars:
        pytest.skip(f"no right to trace here: {result.notes}")
    counted = printed.numbers()
    # Where the machine is busy, the program's own waiting includes the wait for a CPU. And what a
    # traced switch costs, some microseconds, is CPU time to the kernel but waiting to perf.
    load = value(result, "off_cpu_ms[S]")
    for kind, names in {"L": ("barrier", "lock", "join"), "I": ("io",), "B": ("sleep",)}.items():
        truth = sum(counted[f"{name}_wait_ns"] for name in names) / 1e6
        tracing = sum(counted[f"{name}_waits"] for name in names) * 0.01
        found = value(result, f"off_cpu_ms[{kind}]")
        assert found == pytest.approx(truth, abs=truth / 10 + load + tracing)
    places = {(f.where, f.what.partition(" (")[0]) for f in result.findings}
    assert places >= {
        ("wait_at_barrier", "waits for a lock or another thread"),
        ("take_lock", "waits for a lock or another thread"),
        ("write_block", "waits for block I/O"),
    }
    assert value(result, "idle_ms") >= counted["idle_wait_ns"] / 1e6 * 0.9


@pytest.mark.anyio
async def test_without_the_right_to_trace_times_are_still_right(tmp_path: Path) -> None:
    program = compiled("phases", tmp_path)
    async with opened(tmp_path) as workspace:
        result, printed = await profiled(OffCpu(), workspace, program, "sleep=300", "work=1")
    assert isinstance(result, Measured)
    assert any("without the right to trace" in note for note in result.notes)
    truth = printed.numbers()["sleep_wait_ns"] / 1e6
    load = value(result, "off_cpu_ms[S]")
    found = value(result, "off_cpu_ms[unclassified]")
    assert found == pytest.approx(truth, abs=truth / 10 + load)


@pytest.mark.anyio
async def test_the_exit_code_is_the_programs(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        if (missing := await OffCpu().probe(workspace)) is not None:
            skip_without(missing)
        command = Command(argv=("sh", "-c", "exit 7"))
        done = await workspace.run(OffCpu().wrap(command, "{run}/out"), Printed())
    assert done.exit_code == 7


@pytest.mark.anyio
async def test_where_there_is_no_perf_it_says_how_to_get_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        missing = await OffCpu(perf="/nowhere/perf").probe(workspace)
    assert isinstance(missing, NotAvailable)
    assert missing.fix == "apt-get install linux-perf"
