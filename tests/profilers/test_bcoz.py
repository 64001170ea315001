"""Profiles of BCOZ; it needs a kernel of its own, so they are written by hand from its source."""

import random
from pathlib import Path
from typing import Any, cast

import pytest

from aiopt.profilers.bcoz import BCoz
from aiopt.protocols import (
    Command,
    Completed,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Sink,
    Usage,
)

from .hostile import check_total, contents

DATA = Path(__file__).parents[1] / "data" / "profilers" / "bcoz-bperf"
SYNTHETIC = (DATA / "SYNTHETIC-bcoz-profile.coz").read_bytes()


def parse(*files: bytes) -> ProfileResult:
    return BCoz().parse(contents(*files))


def profile(*selected: str, gain: float = 0.4, clamped: int = 0) -> bytes:
    """As BCOZ writes one: speeding up what is selected by a share saves `gain` times as much."""
    coin = random.Random(5)
    lines = ["startup\ttime=1700000000000000000"]
    for line in selected:
        percents = [0, 0, 25, 50, 75, 100] * 8
        for number, percent in enumerate(percents):
            duration = int(5e7 * (1 - gain * percent / 100) * coin.uniform(0.98, 1.02))
            delay = int(5e7 - duration)
            if number < clamped:
                duration, delay = 0, int(5.1e7)
            lines.append(
                f"experiment\tselected={line}\tspeedup={percent / 100:.2f}\tduration={duration}\t"
                f"selected-samples=30\tdelay={delay}"
            )
            lines.append("throughput-point\tname=test_io_coz.c:87\tdelta=30")
    lines += ["runtime\ttime=5000000000", "samples\tlocation=/src/test_io_coz.c:55\tcount=812"]
    # The last experiment is dropped.
    return "\n".join(lines).encode() + b"\n"


def measured(*files: bytes) -> Measured:
    result = parse(*files)
    assert isinstance(result, Measured), result
    return result


def test_the_records_of_the_synthetic_profile_are_understood() -> None:
    result = parse(SYNTHETIC)
    assert isinstance(result, Inconclusive)
    assert "too few experiments" in result.reason


def test_what_the_synthetic_profile_holds_is_beside_what_others_say() -> None:
    result = measured(profile("LOCK"), SYNTHETIC)
    names = {name for name in result.scalars if name.startswith("experiments[")}
    assert names == {
        f"experiments[{line},test_io_coz.c:87]" for line in ("test_io_coz.c:55", "IO", "LOCK")
    }
    # The last experiment of a run is dropped, that one as the other.
    assert "2 experiments dropped that the end of a run cut short" in result.notes
    assert not any("not understood" in note for note in result.notes)


def test_classes_of_waiting_are_lines_with_a_meaning() -> None:
    result = measured(profile("IO"))
    (finding,) = result.findings
    assert (finding.where, finding.what) == ("IO", "opportunity")
    assert finding.detail.startswith("all waiting for block I/O; throughput of test_io_coz.c:87")
    assert finding.scalar.value == pytest.approx(0.4, abs=0.02)
    assert result.scalars["slope[IO,test_io_coz.c:87]"] == finding.scalar
    assert result.stacks == "test_io_coz.c:55 812\n"


def test_what_is_on_top_of_another_speed_up_is_apart_from_it() -> None:
    plain, based = "OFF_CPU", "OFF_CPU(IO,0.25%|)"
    code = "/src/test_io_coz.c:55(c_heavy,1.00%|)"
    result = measured(profile(plain, based, code))
    names = ("OFF_CPU", "OFF_CPU (IO 25% faster)", "test_io_coz.c:55 (c_heavy 100% faster)")
    assert {each.where for each in result.findings} == set(names)
    assert all(f"slope[{name},test_io_coz.c:87]" in result.scalars for name in names)
    details = {each.where: each.detail for each in result.findings}
    assert details[names[1]].startswith("all that does not run on a CPU; ")
    assert details[names[2]].startswith("throughput of ")


def test_durations_of_zero_are_no_experiments() -> None:
    clamped = measured(profile("LOCK", clamped=6))
    assert (
        "6 experiments rejected for their duration (LOCK at 0 %: 2, LOCK at 25 %: 1, "
        "LOCK at 50 %: 1, LOCK at 75 %: 1, LOCK at 100 %: 1)"
    ) in clamped.notes
    assert clamped.scalars["slope[LOCK,test_io_coz.c:87]"].value == pytest.approx(0.4, abs=0.02)


def test_delays_are_added_up_also_below_zero() -> None:
    text = profile("IO")
    share = measured(text).scalars["delay_share"].value
    assert share == pytest.approx(0.4 * (25 + 50 + 75 + 100) / 6 / 100, abs=0.01)
    below = text.replace(b"delay=", b"delay=-") + profile("IO")
    below = below.replace(b"delay=--", b"delay=")
    assert measured(below).scalars["delay_share"].value == pytest.approx(0, abs=0.01)


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(BCoz().parse, profile("IO", "/src/a.c:5(c_heavy,0.25%|)"))
    assert isinstance(parse(), Failed)


def test_the_command_has_the_class() -> None:
    wrapped = BCoz(blocked_scope="lock", source_scope=("%a.c",)).wrap(
        Command(argv=("./a",)), "/o/p"
    )
    assert "bcoz" in wrapped.argv
    options = ("--source-scope", "%a.c", "--blocked-scope", "l", "---", "./a")
    assert wrapped.argv[-len(options) :] == options
    with pytest.raises(ValueError, match="blocked_scope"):
        BCoz(blocked_scope="x")


# ---- the probe ----

REPORT = b"    90.00%  sleep  [kernel]  [B] schedule\n"


class _Machine:
    """A workspace with this kernel, where bperf reports waiting and bcoz writes this."""

    def __init__(self, kernel: str, profile: bytes = SYNTHETIC, code: int = 0) -> None:
        self._kernel, self._profile, self._code = kernel, profile, code

    async def run(self, command: Command, sink: Sink) -> Completed:
        code = 0
        if command.argv[0] == "uname":
            sink.write("stdout", f"{self._kernel}\n".encode())
        elif command.argv[0] == "cat":
            sink.write("stdout", REPORT if "bperf" in command.argv[1] else self._profile)
        elif "bcoz" in command.argv:
            sink.write("stderr", b"bcoz is not installed" if self._code == 127 else b"")
            code = self._code
        usage = Usage(wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0)
        return Completed(exit_code=code, signal=None, usage=usage)


async def probe(machine: _Machine) -> NotAvailable | None:
    return await BCoz().probe(cast(Any, machine))


@pytest.mark.parametrize("kernel", ["Linux 6.18.0", "Linux 5.3.70", ""])
async def test_a_stock_kernel_is_refused(kernel: str) -> None:
    answer = await probe(_Machine(kernel))
    assert answer is not None
    assert "patched Linux 5.3.7" in answer.reason
    assert "blocked_samples" in answer.fix


async def test_the_patched_kernel_is_accepted_where_bcoz_works() -> None:
    assert await probe(_Machine("Linux 5.3.7")) is None
    absent = await probe(_Machine("Linux 5.3.7", code=127))
    assert absent is not None
    assert absent.reason == "bcoz is not installed"
    assert "paranoid=1" in absent.fix
    empty = await probe(_Machine("Linux 5.3.7", b""))
    assert empty is not None
    assert "of a small program" in empty.reason
