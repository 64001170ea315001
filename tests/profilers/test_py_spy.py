"""py-spy: a captured profile, hostile ones, and a real program as a command and as a service."""

import shutil
import sys
from pathlib import Path

import anyio
import pytest

from aiopt.profilers.py_spy import PySpy
from aiopt.protocols import Command, Failed, Inconclusive, Measured
from tests.profilers.hostile import check_total, contents
from tests.profilers.programs import Printed, opened

DATA = Path(__file__).parent.parent / "data" / "profilers" / "python"
PROFILE = (DATA / "pyspy.raw.txt").read_bytes()

PROGRAM = """\
import time
def hot(until):
    while time.monotonic() < until:
        sum(range(1000))
def cold(until):
    while time.monotonic() < until:
        sum(range(1000))
hot(time.monotonic() + 1.2)
cold(time.monotonic() + 0.3)
print("done")
raise SystemExit(7)
"""
SERVICE = """\
def hot():
    sum(range(1000))
print("ready", flush=True)
while True:
    hot()
"""


def py_spy() -> PySpy:
    if shutil.which("py-spy") is None and not Path(sys.executable).with_name("py-spy").is_file():
        pytest.skip("needs py-spy: pip install py-spy")
    return PySpy()


def test_a_captured_profile_has_its_samples() -> None:
    result = PySpy().parse(contents(PROFILE))
    assert isinstance(result, Measured)
    assert result.scalars["samples"].value == 84
    first = result.findings[0]
    share = result.scalars[f"self_share[{first.where}]"]
    assert share == first.scalar
    assert share.low is not None
    assert share.high is not None
    assert share.low < share.value < share.high
    assert result.scalars["total_share[main (pyt.py)]"].value > share.value
    assert result.notes == ()


def test_several_profiles_add_up() -> None:
    result = PySpy().parse(contents(PROFILE, PROFILE))
    assert isinstance(result, Measured)
    assert result.scalars["samples"].value == 168


def test_the_process_is_no_frame() -> None:
    """Its command line may hold anything, newlines too."""
    text = b'process 7:"sh -c a; b\nwhile 1 2\nx";main (a.py:1);f (a.py:2) 3\nmain (a.py:9) 4\n'
    result = PySpy().parse(contents(text))
    assert isinstance(result, Measured)
    assert result.stacks.splitlines()[0] == "main (a.py:9) 4"
    assert "main (a.py:1);f (a.py:2) 3" in result.stacks
    assert result.scalars["self_share[f (a.py)]"].value == pytest.approx(3 / 7)
    nested = PySpy().parse(contents(b'process 7:"a";process 8:"b c" 3\n' + text))
    assert isinstance(nested, Measured)
    assert "[unknown] 3" in nested.stacks.splitlines()


def test_what_is_no_profile() -> None:
    assert isinstance(PySpy().parse(contents(b"Error: no such thing\n")), Failed)
    assert isinstance(PySpy().parse(contents(b"")), Inconclusive)
    check_total(PySpy().parse, PROFILE)


@pytest.mark.slow
async def test_the_hot_function_is_found(tmp_path: Path) -> None:
    profiler = py_spy()
    async with opened(tmp_path) as workspace:
        assert await profiler.probe(workspace) is None
        command = Command(argv=(sys.executable, "-c", PROGRAM), timeout=60)
        output, printed = "{run}/out", Printed()
        done = await workspace.run(profiler.wrap(command, output), printed)
        assert done.exit_code == 7, printed.texts
        assert printed.texts["stdout"] == "done\n"  # and nothing of py-spy's
        await workspace.get(output, tmp_path / "out")
    result = profiler.parse(contents((tmp_path / "out").read_bytes()))
    assert isinstance(result, Measured)
    hot, cold = (result.scalars[f"self_share[{name} (<string>)]"] for name in ("hot", "cold"))
    assert hot.value > 2 * cold.value
    assert result.findings[0].where == "hot (<string>)"


@pytest.mark.slow
async def test_a_service_that_is_ended_leaves_its_profile(tmp_path: Path) -> None:
    profiler = py_spy()
    async with opened(tmp_path) as workspace:
        argv = ("sh", "-c", 'exec "$0" -c "$1"', sys.executable, SERVICE)
        printed = Printed()
        service = await workspace.start(profiler.wrap(Command(argv=argv), "{run}/out"), printed)
        await anyio.sleep(1.5)  # samples take time
        assert "ready" in printed.texts["stdout"]
        done = await service.stop(30.0)
        assert done.exit_code == 143
        assert done.strays_killed == 0
        await workspace.get("{run}/out", tmp_path / "out")
    result = profiler.parse(contents((tmp_path / "out").read_bytes()))
    assert isinstance(result, Measured)
    assert result.findings[0].where == "hot (<string>)"
