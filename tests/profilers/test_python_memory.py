"""memray and tracemalloc: captured profiles, hostile ones, and real programs that keep memory."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from aiopt.profilers.memray import Memray
from aiopt.profilers.tracemalloc import TraceMalloc
from aiopt.protocols import Command, Failed, Inconclusive, Measured
from tests.profilers.hostile import check_total, contents
from tests.profilers.programs import Printed, opened, profiled

DATA = Path(__file__).parent.parent / "data" / "profilers" / "python"
CSV = (DATA / "mem.csv").read_bytes()
STATS = (DATA / "mem_stats.json").read_bytes()

PROGRAM = """\
kept = []
def keep():
    for _ in range(50):
        kept.append(bytearray(100_000))
def pass_on():
    return bytearray(10_000_000)
keep()
for _ in range(3):
    pass_on()
"""
SERVICE = (
    PROGRAM
    + """
import time
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
)


def memray() -> Memray:
    if importlib.util.find_spec("memray") is None:
        pytest.skip("needs memray: pip install memray")
    return Memray()


Makers = pytest.mark.parametrize("make", [memray, TraceMalloc], ids=["memray", "tracemalloc"])
Profilers = Memray | TraceMalloc


# ---- captured profiles ----


def test_statistics_have_their_figures() -> None:
    result = Memray().parse(contents(STATS))
    assert isinstance(result, Measured)
    assert result.scalars["peak_bytes"].value == 20_579_580
    assert result.scalars["allocations"].value == 20_405
    assert result.scalars["allocated_bytes"].value == 33_860_904
    assert result.findings[0].where.startswith("leak:")
    assert result.notes == ()


def test_a_table_says_who_held_what_at_the_peak() -> None:
    result = Memray().parse(contents(CSV))
    assert isinstance(result, Measured)
    assert result.scalars["peak_bytes"].value == pytest.approx(20_579_580, rel=0.01)
    assert "leak (" in result.findings[0].where
    assert result.stacks_unit == "bytes"
    held = sum(float(line.rpartition(" ")[2]) for line in result.stacks.splitlines())
    assert held == result.scalars["peak_bytes"].value


def test_several_profiles_give_a_mean_and_a_range() -> None:
    other = orjson.loads(STATS)
    other["metadata"]["peak_memory"] = 10_579_580
    result = Memray().parse(contents(STATS, orjson.dumps(other)))
    assert isinstance(result, Measured)
    peak = result.scalars["peak_bytes"]
    assert (peak.low, peak.value, peak.high) == (10_579_580, 15_579_580, 20_579_580)


@pytest.mark.parametrize(
    ("profile", "kind"),
    [
        (b"garbage", Failed),
        (b"{", Failed),
        (b"{}", Failed),
        (b"allocator,num_allocations,size,tid,thread_name,stack_trace\n", Inconclusive),
        (b"allocator,num_allocations,size,tid,thread_name,stack_trace\nx\n", Failed),
        (b'{"aiopt": "memray 1"}', Inconclusive),
        (b'{"aiopt": "memray 1", "records": [3, {}, {"bytes": -1}]}', Inconclusive),
    ],
)
def test_what_is_no_profile_of_memray(profile: bytes, kind: type[Any]) -> None:
    assert isinstance(Memray().parse(contents(profile)), kind)


@pytest.mark.parametrize(
    ("profile", "kind"),
    [(b"garbage", Failed), (b"{}", Failed), (b'{"aiopt": "tracemalloc 1"}', Inconclusive)],
)
def test_what_is_no_profile_of_tracemalloc(profile: bytes, kind: type[Any]) -> None:
    assert isinstance(TraceMalloc().parse(contents(profile)), kind)


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(Memray().parse, CSV)
    check_total(Memray().parse, STATS)
    traced = {
        "aiopt": "tracemalloc 1",
        "peak_bytes": 7,
        "current_bytes": 5,
        "blocks": 1,
        "records": [{"bytes": 5, "count": 1, "stack": ["a.py:1", "b;c.py:2"]}, {"bytes": None}],
        "left_out_bytes": 2_000_000,
    }
    check_total(TraceMalloc().parse, orjson.dumps(traced))
    result = TraceMalloc().parse(contents(orjson.dumps(traced)))
    assert isinstance(result, Measured)
    assert result.stacks == "a.py:1;b:c.py:2 5\n"
    assert result.notes == (
        "2.0 MB are in stacks that were left out",
        "1 records were not understood",
    )


# ---- real programs ----


@pytest.mark.slow
@Makers
async def test_who_keeps_memory_is_found(make: Callable[[], Profilers], tmp_path: Path) -> None:
    profiler = make()
    async with opened(tmp_path) as workspace:
        (tmp_path / "source" / "app.py").write_text(PROGRAM)
        result, _ = await profiled(profiler, workspace, sys.executable, "app.py")
    assert isinstance(result, Measured)
    kept = {finding.where: finding.scalar.value for finding in result.findings}
    (where,) = {"keep (app.py)", "app.py:4"} & kept.keys()
    assert kept[where] == pytest.approx(5e6, rel=0.1)
    peak = result.scalars["peak_bytes"].value
    assert peak == pytest.approx(15e6, rel=0.1)  # while the large block was there, too


@pytest.mark.slow
@Makers
async def test_a_service_that_is_ended_leaves_its_profile(
    make: Callable[[], Profilers], tmp_path: Path
) -> None:
    """Behind a shell script, beside a sitecustomize of its own, and ended by TERM."""
    profiler = make()
    async with opened(tmp_path) as workspace:
        tree = tmp_path / "source"
        (tree / "app.py").write_text(SERVICE)
        (tree / "own").mkdir()
        (tree / "own" / "sitecustomize.py").write_text("print('its own', flush=True)\n")
        script = 'PYTHONPATH="$PYTHONPATH:own" exec "$0" app.py'
        command = Command(argv=("sh", "-c", script, sys.executable))
        printed, output = Printed(), "{run}/out"
        service = await workspace.start(profiler.wrap(command, output), printed)
        for _ in range(200):
            if "ready" in printed.texts["stdout"]:
                break
            await anyio.sleep(0.05)
        done = await service.stop(30.0)
        assert done.signal == 15
        assert "its own" in printed.texts["stdout"]
        finished = await workspace.run(profiler.finish(output), printed)
        assert finished.ok, printed.texts
        await workspace.get(output, tmp_path / "out")
    result = profiler.parse(contents((tmp_path / "out").read_bytes()))
    assert isinstance(result, Measured)
    assert result.scalars["peak_bytes"].value == pytest.approx(15e6, rel=0.2)


@pytest.mark.slow
@Makers
async def test_the_probe_is_honest(make: Callable[[], Profilers], tmp_path: Path) -> None:
    profiler = make()
    async with opened(tmp_path) as workspace:
        assert await profiler.probe(workspace) is None


async def test_a_program_without_python_has_no_profile(tmp_path: Path) -> None:
    printed = Printed()
    async with opened(tmp_path) as workspace:
        await workspace.run(TraceMalloc().wrap(Command(argv=("true",)), "{run}/out"), printed)
        done = await workspace.run(TraceMalloc().finish("{run}/out"), printed)
    assert not done.ok
    assert "no Python program" in printed.texts["stderr"]
