"""Figures of /proc are those of the captures, and the poller measures real commands."""

import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest

from aiopt.errors import CommandTimeout
from aiopt.profilers.proc import Proc, kilobytes, schedstat, unique_bytes
from aiopt.protocols import (
    Command,
    Completed,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    Sink,
    Usage,
)

from .hostile import check_total, contents

DATA = Path(__file__).parents[1] / "data" / "profilers" / "procfs"
STATUS = (DATA / "status.txt").read_text()
ROLLUP = (DATA / "smaps_rollup.txt").read_text()
SCHEDSTAT = (DATA / "schedstat.txt").read_text()


def _sample(pid: int = 7, **more: str) -> bytes:
    return json.dumps({"t": 1.0, "pid": pid, "start": "1", **more}).encode() + b"\n"


def _end(launcher: int = 9000, **usage: int) -> bytes:
    record = {"t": 2.0, "exit": 0, "usage": usage, "launcher": f"VmHWM:\t{launcher} kB\n"}
    return json.dumps(record).encode() + b"\n"


SAMPLE = _sample(status=STATUS, schedstat=SCHEDSTAT, smaps_rollup=ROLLUP)
PROFILE = SAMPLE + _end(maxrss_kib=500, minor_faults=20, major_faults=3, involuntary_switches=44)


def _values(*files: bytes) -> dict[str, float]:
    result = Proc().parse(contents(*files))
    assert isinstance(result, Measured)
    return {name: scalar.value for name, scalar in result.scalars.items()}


def test_the_texts_of_the_kernel_say_what_the_captures_say() -> None:
    assert kilobytes(STATUS)["VmHWM"] == 66648 << 10
    assert kilobytes(STATUS)["VmRSS"] == kilobytes(ROLLUP)["Rss"] == 37192 << 10
    assert kilobytes(ROLLUP)["Pss"] == 36001 << 10
    assert unique_bytes(ROLLUP) == 35960 << 10
    assert schedstat(SCHEDSTAT) == (47_926_100, 82_756_114, 43)


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "1 2 x", "-1 2 3", f"{'9' * 40} 1 1"])
def test_what_is_no_schedstat_is_none(text: str) -> None:
    assert schedstat(text) is None


def test_a_rollup_that_is_cut_has_no_unique_bytes() -> None:
    assert unique_bytes(ROLLUP[: ROLLUP.index("Private_Dirty")]) is None


def test_a_sample_of_the_captures_has_their_figures() -> None:
    assert _values(SAMPLE) == {
        "peak_rss_bytes": 66648 << 10,
        "pss_bytes": 36001 << 10,
        "unique_bytes": 35960 << 10,
        "run_seconds": 0.0479261,
        "wait_seconds": 0.082756114,
        "cpu_share": pytest.approx(47_926_100 / 130_682_214),
        "involuntary_switches": 42,
    }


def test_what_wait4_says_is_more_than_what_a_poll_saw() -> None:
    values = _values(PROFILE)
    assert (values["minor_faults"], values["major_faults"]) == (20, 3)
    assert values["involuntary_switches"] == 44


@pytest.mark.parametrize(("stated", "peak"), [(8000, 66648), (9000, 66648), (70000, 70000)])
def test_the_peak_of_wait4_counts_only_above_that_of_the_launcher(stated: int, peak: int) -> None:
    assert _values(SAMPLE + _end(maxrss_kib=stated))["peak_rss_bytes"] == peak << 10
    assert "peak_rss_bytes" not in _values(_end(launcher=stated, maxrss_kib=stated, major_faults=0))


def test_processes_add_up_but_the_peak_is_of_one() -> None:
    second = _sample(8, status="VmHWM:\t100 kB\n", schedstat="1000 2000 1", smaps_rollup=ROLLUP)
    values = _values(SAMPLE + second + SAMPLE + second)
    assert values["peak_rss_bytes"] == 66648 << 10
    assert values["pss_bytes"] == 2 * 36001 << 10
    assert values["run_seconds"] == pytest.approx(0.0479271)


def test_several_runs_give_a_mean_and_an_interval() -> None:
    other = PROFILE.replace(b"66648 kB", b"66600 kB")
    result = Proc().parse(contents(PROFILE, other))
    assert isinstance(result, Measured)
    peak = result.scalars["peak_rss_bytes"]
    assert (peak.low, peak.value, peak.high) == (66600 << 10, 66624 << 10, 66648 << 10)


def test_a_busy_host_a_killed_poller_and_odd_lines_are_noted() -> None:
    result = Proc().parse(contents(SAMPLE + b"nonsense\n[]\n"))
    assert isinstance(result, Measured)
    unknown, cut, busy = result.notes
    assert unknown.startswith("2 lines")
    assert "no end" in cut
    assert busy.startswith("host busy")


@pytest.mark.parametrize(
    "profile",
    [b"", b"\n", b"{}\n", b'{"pid": 1, "status": ""}\n', b'{"exit": 0, "usage": {}}\n', b"\xff"],
)
def test_a_profile_without_figures_is_inconclusive(profile: bytes) -> None:
    assert isinstance(Proc().parse([BytesIO(profile)]), Inconclusive)


def test_a_zombie_and_a_kernel_thread_have_no_memory() -> None:
    values = _values(_sample(status="State:\tZ (zombie)\n", schedstat="5 5 1"))
    assert set(values) == {"run_seconds", "wait_seconds", "cpu_share"}


def test_no_profile_is_a_failure() -> None:
    assert isinstance(Proc().parse([]), Failed)


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(Proc().parse, PROFILE)


# ---- the probe ----


class _Machine:
    """A workspace where commands of the given names fail."""

    def __init__(self, *missing: str) -> None:
        self._missing = missing

    async def run(self, command: Command, sink: Sink) -> Completed:
        if "hangs" in self._missing:
            raise CommandTimeout(command.argv, command.timeout)
        usage = Usage(wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0)
        code = 127 if command.argv[0] in self._missing else 0
        return Completed(exit_code=code, signal=None, usage=usage)


async def _probe(*missing: str) -> NotAvailable | None:
    return await Proc().probe(cast(Any, _Machine(*missing)))


async def test_the_probe_wants_a_poller_that_ends_and_proc() -> None:
    assert await _probe() is None
    for missing, reason in (
        ("python3", "python3 is not installed"),
        ("cat", "cat"),
        ("hangs", "20 s"),
    ):
        answer = await _probe(missing)
        assert answer is not None
        assert reason in answer.reason


# ---- the poller, on real commands ----

_linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's /proc")


def _poll(path: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    wrapped = Proc(python=sys.executable).wrap(Command(argv=argv), str(path))
    assert not any("{" in each for each in wrapped.argv[: -len(argv)])
    return subprocess.run(wrapped.argv, capture_output=True, timeout=60, check=False)


@_linux
def test_the_peak_of_a_child_of_the_command_is_seen(tmp_path: Path) -> None:
    hog = "b = b'x' * (80 << 20); import time; time.sleep(2); sum(range(3000000)); print(len(b))"
    inner = f'{sys.executable} -I -S -c "{hog}"; exit 3'
    done = _poll(tmp_path / "out", "sh", "-c", inner)
    assert (done.returncode, done.stdout.strip()) == (3, b"83886080")
    values = _values((tmp_path / "out").read_bytes())
    assert 80 << 20 < values["peak_rss_bytes"] < 120 << 20
    assert 80 << 20 < values["unique_bytes"] <= values["pss_bytes"]
    assert values["run_seconds"] > 0.02
    assert values["minor_faults"] > 1000


@_linux
def test_a_small_command_is_not_charged_for_the_poller(tmp_path: Path) -> None:
    assert _poll(tmp_path / "out", "sleep", "0.2").returncode == 0
    assert _values((tmp_path / "out").read_bytes())["peak_rss_bytes"] < 5 << 20


@_linux
def test_the_signal_that_ended_the_command_is_kept(tmp_path: Path) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        done = _poll(tmp_path / "out", "sh", "-c", f"kill -{int(number)} $$")
        assert done.returncode == -number


@_linux
def test_a_command_that_is_not_there_is_127(tmp_path: Path) -> None:
    done = _poll(tmp_path / "out", "/no/such/program")
    assert done.returncode == 127
    assert isinstance(Proc().parse([BytesIO((tmp_path / "out").read_bytes())]), Inconclusive)


@_linux
def test_a_service_ends_itself_when_its_group_is_asked_to(tmp_path: Path) -> None:
    service = "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"
    command = Proc(python=sys.executable).wrap(
        Command(argv=("sh", "-c", service)), str(tmp_path / "out")
    )
    with subprocess.Popen(command.argv, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(20) == 5
    result = Proc().parse([BytesIO((tmp_path / "out").read_bytes())])
    assert isinstance(result, Measured)
    assert not any("no end" in each for each in result.notes)
