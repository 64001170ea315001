"""Heap dumps say what jeprof says of them, and name who holds and who allocates."""

import json
import re
import shutil
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.events import Scalar
from aiopt.profilers._heap_dumps import unsampled
from aiopt.profilers.jemalloc import Jemalloc
from aiopt.protocols import Command, Failed, Inconclusive, Measured, NotAvailable

from .hostile import check_total, contents
from .programs import Printed, compiled, opened, profiled

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
    [("lgsample19-accum.heap", 113.1, 1691.8), ("lgsample19-interval0.heap", 80.1, 1020.3)],
)
def test_other_dumps_too(file: str, live: float, allocated: float) -> None:
    result = measured((DATA / file).read_bytes())
    assert value(result, "live_bytes") / MIB == pytest.approx(live, abs=0.05)
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
    widths = [
        (s.high or 0) - s.value for s in (each.scalars["allocated_bytes"] for each in (once, twice))
    ]
    assert widths[1] == pytest.approx(widths[0] / 2**0.5)


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
    assert estimate.variance >= 0


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
        profiler = Jemalloc(lg_sample=15, lg_interval=25)
        argv = ("sh", "-c", script, "sh", program, how)
        result, printed = await profiled(profiler, workspace, *argv)
    assert isinstance(result, Measured)
    assert printed.texts["stdout"] == "held\n"
    much, little = (
        result.scalars[f"live_bytes[{name} (holding.c)]"] for name in ("hold_much", "hold_little")
    )
    room = 0.05 if not how else 0.2  # a dump comes only every 32 MiB
    assert within(much, 20_000 * 2048, room=room)
    assert within(little, 2_000 * 2048, room=room)
    assert within(result.scalars["allocated_bytes[pass_on (holding.c)]"], 50_000 * 4096, room=room)
    assert result.findings[0].where == "hold_much (holding.c)"
    assert "main (holding.c:" in result.stacks


@pytest.mark.anyio
async def test_of_a_service_that_is_ended_the_last_dump_tells(tmp_path: Path) -> None:
    program = compiled("holding", tmp_path)
    profiler = Jemalloc(lg_sample=15, lg_interval=24)
    async with opened(tmp_path) as workspace:
        if (missing := await profiler.probe(workspace)) is not None:
            pytest.skip(f"needs jemalloc: {missing.reason}; {missing.fix}")
        printed = Printed()
        command = profiler.wrap(Command(argv=(program, "serve")), "{run}/out")
        service = await workspace.start(command, printed)
        with anyio.fail_after(20):
            while "held" not in printed.texts["stdout"]:  # noqa: ASYNC110  (there is no event)
                await anyio.sleep(0.01)
        await service.stop()
        assert (await workspace.run(profiler.finish("{run}/out"), printed)).ok
        await workspace.get("{run}/out", tmp_path / "out")
    result = measured((tmp_path / "out").read_bytes())
    assert within(result.scalars["live_bytes[hold_much (holding.c)]"], 20_000 * 2048, room=0.05)


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
        await workspace.run(
            Jemalloc(library="").wrap(Command(argv=("true",)), "{run}/out"), Printed()
        )
        printed = Printed()
        done = await workspace.run(Jemalloc(library="").finish("{run}/out"), printed)
    assert not done.ok
    assert "no heap dump was written: the program has no jemalloc" in printed.texts["stderr"]
