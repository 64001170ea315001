"""Rows of bperf's report; it needs a kernel of its own, so the report is written by hand."""

from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest

from aiopt.errors import CommandTimeout
from aiopt.profilers.bperf import Bperf
from aiopt.protocols import (
    Command,
    Completed,
    Failed,
    Finishing,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Sink,
    Usage,
)

from .hostile import check_total, contents

DATA = Path(__file__).parents[1] / "data" / "profilers" / "bcoz-bperf"
REPORT = (DATA / "SYNTHETIC-bperf-report.txt").read_bytes()
SHARES = {
    "off_cpu_share": 0.8025,
    "lock_share": 0.4150,
    "io_share": 0.1725,
    "blocked_share": 0.12,
    "scheduling_share": 0.095,
    "user_share": 0.1075,
    "kernel_share": 0.09,
}
SEPARATED = b"""\
# Samples: 2K of event 'task-clock'
 60.00% |wal 0 sync|libc-2.30.so    |[I] fsync
 30.00% |wal 0 sync|[kernel.vmlinux]|[k] do_sync
 10.00% |wal 0 sync|a.out           |[.] operator|| (T; U)
"""


def _parse(*files: bytes) -> ProfileResult:
    return Bperf().parse(contents(*files))


def test_the_classes_add_up_to_the_figures_of_the_report() -> None:
    result = _parse(REPORT)
    assert isinstance(result, Measured)
    shares = {name: scalar.value for name, scalar in result.scalars.items()}
    assert shares == pytest.approx(SHARES)
    assert result.notes == ()
    first, *_, last = result.findings
    assert (first.where, first.what) == ("__GI___pthread_timedjoin_ex", "off-CPU L")
    assert (last.where, last.what) == ("ext4_file_write_iter", "on-CPU")
    lines = result.stacks.splitlines()
    assert lines[0] == "writer;[L];__GI___pthread_timedjoin_ex 41.5"
    assert "writer;[S];encode 9.5" in lines
    assert "writer;[.];encode 10.75" in lines


def test_rows_with_a_separator_are_the_same() -> None:
    result = _parse(SEPARATED)
    assert isinstance(result, Measured)
    assert result.scalars["off_cpu_share"].value == pytest.approx(0.6)
    assert result.stacks.splitlines()[2] == "wal 0 sync;[.];operator|| (T: U) 10"


def test_several_runs_give_a_mean_and_an_interval() -> None:
    result = _parse(REPORT, SEPARATED)
    assert isinstance(result, Measured)
    share = result.scalars["off_cpu_share"]
    assert (share.low, share.value, share.high) == pytest.approx((0.6, 0.70125, 0.8025))


def test_what_is_left_out_or_odd_is_noted() -> None:
    cut = REPORT.replace(b"17.25%", b"      ") + b"    99.00%  50.00%  writer  [L] x\nnonsense\n"
    result = _parse(cut)
    assert isinstance(result, Measured)
    assert result.notes == ("3 lines were not understood", "the rows cover 82.8 % of the samples")


@pytest.mark.parametrize("report", [b"", b"#\n", b"    0.00%  a  b  [L] c\n", b"   9.00%  a  b\n"])
def test_a_report_without_samples_is_inconclusive(report: bytes) -> None:
    assert isinstance(_parse(report), Inconclusive)


def test_a_report_of_a_stock_kernel_is_inconclusive() -> None:
    result = _parse(b"    90.00%  a  a.out  [.] work\n     9.00%  a  [kernel]  [k] read\n")
    assert isinstance(result, Inconclusive)
    assert "stock kernel" in result.reason


def test_rows_of_several_reports_in_one_file_are_a_failure() -> None:
    assert isinstance(_parse(REPORT + REPORT), Failed)


def test_no_profile_is_a_failure() -> None:
    assert isinstance(Bperf().parse([]), Failed)


def test_one_run_without_samples_spoils_the_statement() -> None:
    result = _parse(REPORT, b"")
    assert isinstance(result, Inconclusive)
    assert result.reason.startswith("profile 2")


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(Bperf().parse, REPORT)
    check_total(Bperf().parse, SEPARATED)
    assert isinstance(Bperf().parse([BytesIO(b"9" * 60_000 + b"%")]), Inconclusive)


def test_the_command_is_recorded_and_reported() -> None:
    profiler = Bperf()
    assert profiler.wrap(Command(argv=("./w", "1")), "/o/p").argv == (
        *("bperf", "record", "-g", "-e", "task-clock", "-c", "1000000", "--weight"),
        *("-o", "/o/p.data", "--", "./w", "1"),
    )
    assert isinstance(profiler, Finishing)
    assert profiler.finish("/o/p").argv[-2:] == ("bperf", "/o/p")


# ---- the probe ----


class _Machine:
    """A workspace with this kernel, where bperf ends so and reports this."""

    def __init__(self, kernel: str, report: bytes = REPORT, code: int | None = 0) -> None:
        self._kernel, self._report, self._code = kernel, report, code

    async def run(self, command: Command, sink: Sink) -> Completed:
        code = 0
        if command.argv[0] == "uname":
            sink.write("stdout", f"{self._kernel}\n".encode())
        elif command.argv[0] == "cat":
            sink.write("stderr", b"noise")
            sink.write("stdout", self._report)
        elif self._code is None:
            raise CommandTimeout(command.argv, command.timeout)
        else:
            code = self._code
        usage = Usage(wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0)
        return Completed(exit_code=code, signal=None, usage=usage)


async def _probe(machine: _Machine) -> NotAvailable | None:
    return await Bperf().probe(cast(Any, machine))


@pytest.mark.parametrize("kernel", ["Linux 6.18.0", "Linux 5.3.70", "Darwin 5.3.7", ""])
async def test_a_stock_kernel_is_refused(kernel: str) -> None:
    answer = await _probe(_Machine(kernel))
    assert answer is not None
    assert "patched Linux 5.3.7" in answer.reason
    assert "blocked_samples" in answer.fix


async def test_the_number_of_the_kernel_is_not_enough() -> None:
    stock = _Machine("Linux 5.3.7", b"  99.00%  sleep  sleep  [.] main\n")
    answer = await _probe(stock)
    assert answer is not None
    assert "no off-CPU samples" in answer.reason


async def test_the_patched_kernel_is_accepted() -> None:
    assert await _probe(_Machine("Linux 5.3.7-bcoz+")) is None


@pytest.mark.parametrize(("code", "reason"), [(127, "exit 127"), (None, "20 s")])
async def test_a_bperf_that_does_not_work_is_not_available(code: int | None, reason: str) -> None:
    answer = await _probe(_Machine("Linux 5.3.7", code=code))
    assert answer is not None
    assert reason in answer.reason
