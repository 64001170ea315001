"""Heap dumps say what jeprof says of them, and name who holds and who allocates."""

import json
import re
import shutil
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.events import Scalar
from aiopt.profilers import _heap_dumps, _heap_names
from aiopt.profilers._heap_dumps import unsampled
from aiopt.profilers._heap_places import place, without_allocator
from aiopt.profilers.jemalloc import Jemalloc
from aiopt.protocols import Command, Failed, Inconclusive, Measured, NotAvailable, ProfileResult

from .hostile import check_total, contents
from .programs import Printed, compiled, opened, profiled, skip_without

DATA = Path(__file__).parents[1] / "data" / "profilers" / "jemalloc"
ACCUMULATED = (DATA / "lgsample16-accum.heap").read_bytes()
LIVE = (DATA / "lgsample12.heap").read_bytes()
MIB = float(1 << 20)


def measured(*files: bytes) -> Measured:
    result = Jemalloc().parse(contents(*files))
    assert isinstance(result, Measured), result
    return result


def value(result: Measured, name: str) -> float:
    return result.scalars[name].value


def within(scalar: Scalar, truth: float, *, room: float = 0.02) -> bool:
    """With some room: one interval in twenty misses by a little."""
    assert scalar.low is not None
    assert scalar.high is not None
    return scalar.low * (1 - room) <= truth <= scalar.high * (1 + room)


def total_of(name: str) -> float:
    found = re.search(r"Total: ([0-9.]+) MB", (DATA / name).read_text())
    assert found is not None
    return float(found[1])


def test_the_figures_are_those_of_jeprof() -> None:
    result = measured(ACCUMULATED)
    text = "lgsample16-accum.jeprof-{}.txt".format
    assert value(result, "live_bytes") / MIB == pytest.approx(total_of(text("text")), abs=0.05)
    accumulated = total_of(text("alloc_space"))
    assert value(result, "allocated_bytes") / MIB == pytest.approx(accumulated, abs=0.05)
    # leak_path, main, and what libstdc++ allocates when it is loaded
    collapsed = (DATA / text("collapsed")).read_text().splitlines()
    theirs = sorted(int(size) for _, _, size in (row.rpartition(" ") for row in collapsed))
    ours = [float(row.rpartition(" ")[2]) for row in result.stacks.splitlines()]
    assert [0, *sorted(int(size) for size in ours)] == theirs
    live = measured(LIVE)
    total = total_of("lgsample12.jeprof-text.txt")
    assert value(live, "live_bytes") / MIB == pytest.approx(total, abs=0.05)
    assert "allocated_bytes" not in live.scalars


@pytest.mark.parametrize(
    ("file", "live", "allocated"),
    [
        ("lgsample19-accum.heap", 113.1, 1691.8),
        ("lgsample19-interval0.heap", 80.1, 1020.3),
        ("lgsample12-unbias-false.heap", 114.4, None),
    ],
)
def test_other_dumps_too(file: str, live: float, allocated: float | None) -> None:
    result = measured((DATA / file).read_bytes())
    assert value(result, "live_bytes") / MIB == pytest.approx(live, abs=0.05)
    if allocated is None:
        assert "allocated_bytes" not in result.scalars
    else:
        assert value(result, "allocated_bytes") / MIB == pytest.approx(allocated, abs=0.05)


def test_the_truth_is_in_the_intervals() -> None:
    """The program holds 102,400,000 bytes in blocks of 1024, and one of 16 MiB."""
    for file in (ACCUMULATED, LIVE, (DATA / "lgsample19-accum.heap").read_bytes()):
        blocks, large = (
            scalar for name, scalar in measured(file).scalars.items() if "live_bytes[alloc+" in name
        )
        assert within(blocks, 102_400_000)
        assert large.low == pytest.approx(16 * MIB, rel=1e-6)
        assert large.high == pytest.approx(16 * MIB, rel=1e-6)


def test_stacks_without_symbols_are_named_by_object_and_offset() -> None:
    result = measured(ACCUMULATED)
    assert result.stacks_unit == "bytes"
    first = result.stacks.splitlines()[0]
    assert first.startswith("alloc+0x1091;libc.so.6+0x27305;libc.so.6+0x2724a;alloc+0x1232;alloc+")
    assert "jemalloc" not in result.stacks
    assert any("100.0% of the bytes are of stacks without any symbol" in n for n in result.notes)


SYMBOLS = """--- symbol
binary=/x
0x10 operator new(unsigned long)
0x1f outer (a.c:9)--inner<0000000000000020> (a.c:5)
0x30 main (a.c:20)
---
--- heap
heap_v2/1000
  t*: 3: 3000 [9: 9000]
@ 0x10 0x20 0x30
  t*: 2: 2000 [8: 8000]
  t3: 2: 2000 [8: 8000]
"""


def test_symbols_are_used_and_inlined_functions_seen() -> None:
    result = measured(SYMBOLS.encode())
    seen = 1 - 2.718281828459045**-1
    assert value(result, "live_bytes") == pytest.approx(2000 / seen)
    assert value(result, "live_objects") == pytest.approx(2 / seen)
    assert value(result, "allocated_bytes[inner (a.c)]") == pytest.approx(8000 / seen)
    assert result.stacks.startswith("main (a.c:20);outer (a.c:9);inner (a.c:5) ")
    assert result.notes == ()


def test_the_peak_is_where_most_was_live_and_runs_are_averaged() -> None:
    later = SYMBOLS.partition("--- heap\n")[2].replace("2: 2000 [8: 8000]", "0: 0 [9: 9000]")
    both = measured((SYMBOLS + later).encode())
    once = measured(SYMBOLS.encode())
    assert both.scalars["live_bytes"] == once.scalars["live_bytes"]
    ratio = value(both, "allocated_bytes") / value(once, "allocated_bytes")
    assert ratio == pytest.approx(9 / 8)
    twice = measured(SYMBOLS.encode(), SYMBOLS.encode())
    assert value(twice, "live_bytes") == value(once, "live_bytes")
    one, two = (each.scalars["allocated_bytes"] for each in (once, twice))
    assert None not in (one.low, two.low, one.high, two.high)
    assert (two.high or 0) - (two.low or 0) < 0.8 * ((one.high or 0) - (one.low or 0))


@pytest.mark.parametrize("seen", [0.02, 0.5])
@pytest.mark.parametrize("expected", [4, 8, 20, 100])
def test_of_twenty_intervals_one_misses_also_where_little_was_sampled(
    expected: int, seen: float
) -> None:
    """The normal interval would hold the truth in 85 % of the cases with 4 of 8 sampled."""
    size = 1024
    period = round(-size / np.log1p(-seen))
    there = round(expected / seen)
    chance = -np.expm1(-size / period)
    drawn = np.random.default_rng(7).binomial(there, chance, 1000)
    held = [
        within(measured(dump.encode()).scalars["live_bytes"], there * size, room=0)
        for dump in (
            f"heap_v2/{period}\n t*: 0: 0 [0: 0]\n@ 0x1\n t*: {n}: {n * size} [0: 0]\n"
            for n in drawn
            if n
        )
    ]
    assert 0.91 < np.mean(held) < 0.99


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (["main (a.c:1)", "grow (a.c:7)"], "grow (a.c)"),
        (
            ["main", "fill(Store&) (v.cc:8)", "std::vector<int>::push_back(int&&)"],
            "fill(Store&) (v.cc)",
        ),
        (["own<int>(int)", "long& std::vector<long>::emplace_back<long>(long&&)"], "own<int>(int)"),
        (
            ["std::vector<long> make_big<long>(int) (v.cc:9)", "void std::f<int>()"],
            "std::vector<long> make_big<long>(int) (v.cc)",
        ),
        (["x", "(anonymous namespace)::held(int)"], "(anonymous namespace)::held(int)"),
        (["app::load (l.rs:3)", "alloc::raw_vec::finish_grow (mod.rs:5)"], "app::load (l.rs)"),
        (["app::load", "<alloc::vec::Vec<T> as core::clone::Clone>::clone"], "app::load"),
        (["main", "core::Engine::grow(int)"], "core::Engine::grow(int)"),
        (["main", "core::Engine::grow (e.cc:5)"], "core::Engine::grow (e.cc)"),
        (["std::f()"], "std::f()"),
        (["f" * 300], "f" * 199 + "…"),
    ],
)
def test_what_a_standard_library_allocates_is_laid_to_who_calls_it(
    frames: list[str], expected: str
) -> None:
    assert place(frames) == expected


@pytest.mark.parametrize(
    ("frames", "gone", "left"),
    [
        ("main;arena_grow", True, "main;arena_grow"),  # the program has an arena of its own
        ("main;arena_grow;malloc;imalloc;prof_backtrace", False, "main;arena_grow"),
        ("main;_rjem_malloc;_rjem_je_prof_backtrace", False, "main"),
        ("main;prof_new;malloc", True, "main;prof_new"),
        ("main;f;operator new(unsigned long)", True, "main;f"),
        ("main;fallback_handler", True, "main;fallback_handler"),
        ("malloc", True, "malloc"),
    ],
)
def test_the_allocator_is_left_out_and_nothing_else(frames: str, gone: bool, left: str) -> None:
    assert ";".join(without_allocator(frames.split(";"), gone=gone)) == left


@given(
    objects=st.integers(1, 10**6),
    size=st.integers(1, 10**9),
    period=st.integers(1, 1 << 30),
)
def test_an_estimate_is_never_below_what_was_sampled(objects: int, size: int, period: int) -> None:
    estimate = unsampled(objects, size, period)
    assert estimate.bytes >= size * (1 - 1e-12)
    assert estimate.objects >= objects * (1 - 1e-12)
    assert estimate.bytes / estimate.objects == pytest.approx(size / objects)
    assert 0 <= estimate.noise <= 1 / objects


def test_nothing_is_never_a_measurement() -> None:
    assert isinstance(Jemalloc().parse([]), Failed)
    assert isinstance(Jemalloc().parse(contents(b"kept 100000\n")), Failed)
    header = b"heap_v2/65536\n  t*: 0: 0 [0: 0]\n"
    assert isinstance(Jemalloc().parse(contents(header)), Inconclusive)
    for line in (DATA / "failures.jsonl").read_text().splitlines():
        said = json.loads(line)
        text = said["stdout_tail"] + said["stderr_tail"]
        assert isinstance(Jemalloc().parse(contents(text.encode())), Failed)


@pytest.mark.parametrize("file", [ACCUMULATED, SYMBOLS.encode()], ids=["raw", "symbols"])
def test_whatever_the_file_holds_the_answer_is_a_value(file: bytes) -> None:
    check_total(Jemalloc().parse, file)


def dump(*stacks: str, program: str = "/p", whole: bool = True) -> str:
    text = "heap_v2/100000\n  t*: 0: 0 [0: 0]\n"
    for number, counts in enumerate(stacks, 1):
        text += f"@ 0x10{number}\n  t*: {counts}\n"
    end = f"\nMAPPED_LIBRARIES:\n100-200 r-xp 00000000 fe:00 1     {program}\n"
    return text + end if whole else text


def chosen(folder: Path, **dumps: str) -> Measured:
    """What is said of the dumps `PROCESS_NUMBER`."""
    for name, text in dumps.items():
        _, process, number = name.split("_")
        (folder / f"out.mine.{process}.{number}.i{number}.heap").write_text(text)
    _heap_names.main(str(folder / "out"), "")
    return measured((folder / "out").read_bytes())


def test_the_peak_is_of_estimates_not_of_what_was_sampled(tmp_path: Path) -> None:
    """60 MB in small blocks are a tenth of a percent of that when sampled."""
    small, large = "600: 60000 [600: 60000]", "1: 20000000 [601: 20060000]"
    result = chosen(tmp_path, d_1_0=dump(small), d_1_1=dump("0: 0 [600: 60000]", large))
    assert value(result, "live_bytes") == pytest.approx(60e6, rel=0.01)
    assert [row.rpartition(" ")[0] for row in result.stacks.splitlines()] == ["p+0x1"]


def test_of_several_processes_the_one_that_allocates_most_is_told_of(tmp_path: Path) -> None:
    most, less = (dump(f"9: {n} [9: {n}]") for n in (90_000_000, 45_000_000))
    result = chosen(tmp_path, d_1_0=less, d_2_0=most, d_2_1=dump("9: 9 [9: 9]", whole=False))
    assert value(result, "live_bytes") == pytest.approx(90e6)
    assert any("of 2 processes" in n and "allocated 50% of that" in n for n in result.notes)
    (shell := tmp_path / "before-exec").mkdir()
    before = dump("9: 999 [9: 999]", program="/bin/sh")
    assert value(chosen(shell, d_1_0=most, d_1_9=before), "allocated_bytes") == pytest.approx(90e6)


def test_of_endless_stacks_and_names_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heap_dumps, "_MAX_TEXT", 5_000)
    rows = "".join(f"@ {n:#x}{' 0x1' * 99}\n t*: 1: 1000000 [0: 0]\n" for n in range(50, 90))
    names = "".join(f"{n:#x} {'a' * 3000}--{'b' * 3000}\n" for n in range(50, 90))
    text = f"--- symbol\n{names}---\n--- heap\nheap_v2/9\n t*: 0: 0 [0: 0]\n{rows}"
    result = measured(text.encode())
    assert any("stacks of profile 1 were left out" in note for note in result.notes)
    assert any("lines of profile 1 were not understood" in note for note in result.notes)
    assert "b" * 9 not in result.stacks
    deep = f"heap_v2/9\n t*: 0: 0 [0: 0]\n@{' 0x1' * 9000}\n t*: 1: 10 [0: 0]\n"
    assert measured(deep.encode()).stacks.count("0x1") == 256


def test_settings_of_the_target_are_kept() -> None:
    env = {"MALLOC_CONF": "background_thread:true", "LD_PRELOAD": "libx.so"}
    wrapped = Jemalloc(lg_sample=12).wrap(Command(argv=("./p",), env=env), "/o/p")
    assert wrapped.env["LD_PRELOAD"] == "libjemalloc.so.2:libx.so"
    assert wrapped.env["MALLOC_CONF"].startswith("background_thread:true,prof:true,")
    assert wrapped.env["MALLOC_CONF"].endswith("prof_prefix:/o/p.mine")
    assert wrapped.env["_RJEM_MALLOC_CONF"].startswith("prof:true,")
    assert "lg_prof_sample:12" in wrapped.env["_RJEM_MALLOC_CONF"]
    assert wrapped.argv == ("./p",)
    assert "LD_PRELOAD" not in Jemalloc(library="").wrap(Command(argv=("./p",)), "/o/p").env


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["", "free"])
async def test_a_real_program_holds_what_it_says(tmp_path: Path, how: str) -> None:
    """Also where all is freed before the end: then an earlier dump tells."""
    program = compiled("holding", tmp_path)
    async with opened(tmp_path) as workspace:
        script = 'x=$(cat /dev/null); exec "$@"'
        profiler = Jemalloc(lg_sample=12, lg_interval=25)
        argv = ("sh", "-c", script, "sh", program, how)
        result, printed = await profiled(profiler, workspace, *argv)
    assert isinstance(result, Measured)
    assert printed.texts["stdout"] == "held\n"
    much, little = (
        result.scalars[f"live_bytes[{name} (holding.c)]"] for name in ("hold_much", "hold_little")
    )
    # Beside the interval, so that chance alone fails less than once in 100,000 runs; and where all
    # is freed, a dump comes only every 32 MiB.
    room = 0.08 if not how else 0.2
    assert within(much, 20_000 * 2048, room=room)
    assert within(little, 2_000 * 2048, room=room)
    assert within(result.scalars["allocated_bytes[pass_on (holding.c)]"], 50_000 * 4096, room=room)
    assert result.findings[0].where == "hold_much (holding.c)"
    assert "main (holding.c:" in result.stacks


async def of_a_service(profiler: Jemalloc, folder: Path) -> ProfileResult:
    """What is said of a program that TERM ends, which it does not handle."""
    program = compiled("holding", folder)
    async with opened(folder) as workspace:
        if (missing := await profiler.probe(workspace)) is not None:
            skip_without(missing)
        await workspace.new_run("service")
        printed = Printed()
        command = profiler.wrap(Command(argv=(program, "serve")), "{run}/out")
        service = await workspace.start(command, printed)
        with anyio.fail_after(20):
            while "held" not in printed.texts["stdout"]:  # noqa: ASYNC110  (there is no event)
                await anyio.sleep(0.01)
        await service.stop()
        assert (await workspace.run(profiler.finish("{run}/out"), printed)).ok
        await workspace.get("{run}/out", folder / "out")
    return profiler.parse(contents((folder / "out").read_bytes()))


@pytest.mark.anyio
async def test_of_a_service_that_is_ended_the_last_dump_tells(tmp_path: Path) -> None:
    result = await of_a_service(Jemalloc(lg_sample=13, lg_interval=24), tmp_path)
    assert isinstance(result, Measured)
    assert within(result.scalars["live_bytes[hold_much (holding.c)]"], 20_000 * 2048, room=0.05)


@pytest.mark.anyio
async def test_of_a_service_that_never_came_to_a_dump_nothing_is_said(tmp_path: Path) -> None:
    result = await of_a_service(Jemalloc(lg_interval=40), tmp_path)
    assert isinstance(result, Inconclusive)
    assert "ended by a signal that it does not handle" in result.reason
    assert "a smaller lg_interval" in result.reason


@pytest.mark.anyio
async def test_jeprof_reads_the_same_of_a_fresh_dump(tmp_path: Path) -> None:
    if shutil.which("jeprof") is None:
        pytest.skip("needs jeprof: apt-get install libjemalloc-dev")
    program = compiled("holding", tmp_path)
    async with opened(tmp_path) as workspace:
        result, _ = await profiled(Jemalloc(lg_sample=15), workspace, program)
        assert isinstance(result, Measured)
        done = await workspace.run(
            Command(argv=("sh", "-c", 'cat "$0".mine.*.f.heap', "{run}/out")), dump := Printed()
        )
        assert done.ok
    (tmp_path / "dump").write_text(dump.texts["stdout"])
    ran = await anyio.run_process(
        ["jeprof", "--text", "--show_bytes", program, str(tmp_path / "dump")]
    )
    found = re.search(rb"Total: ([0-9]+) B", ran.stdout)
    assert found is not None, ran
    assert value(result, "live_bytes") == pytest.approx(int(found[1]), abs=2)


@pytest.mark.anyio
async def test_what_is_missing_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        missing = await Jemalloc(library="libnowhere.so").probe(workspace)
        assert isinstance(missing, NotAvailable)
        assert "libnowhere.so" in missing.reason
        assert missing.fix == "apt-get install libjemalloc2 binutils"
        # No jemalloc in it, and none preloaded.
        result, _ = await profiled(Jemalloc(library=""), workspace, "true")
    assert isinstance(result, Inconclusive)
    assert "no heap dump was written: the program has no jemalloc" in result.reason


@pytest.mark.anyio
async def test_a_library_without_profiling_in_it_is_told(tmp_path: Path) -> None:
    """It says what a jemalloc without `--enable-prof` says, and allocates nothing."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt-get install gcc")
    library = tmp_path / "libplain.so"
    code = r"""
    #include <unistd.h>
    __attribute__((constructor)) static void start(void) {
        write(2, "<jemalloc>: Invalid conf pair: prof:true\n", 41);
    }
    """
    command = ["gcc", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    await anyio.run_process(command, input=code.encode())
    async with opened(tmp_path) as workspace:
        missing = await Jemalloc(library=str(library)).probe(workspace)
    assert isinstance(missing, NotAvailable)
    assert missing.reason == f"{library} was built without --enable-prof"
    assert missing.fix == "apt-get install libjemalloc2 binutils"
