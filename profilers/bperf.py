"""On-CPU and off-CPU shares by function, from the report of bperf (BCOZ's perf of Linux 5.3.7).

Written against the source of s3yonsei/blocked_samples at e056e8260890 and the layout of stock
`perf report --stdio`; it was never run, because it needs that kernel. There is no JSON: a row is
percent, command, object and `[c] symbol`, separated by `|` or in columns.
"""

import re
from collections.abc import Sequence
from typing import BinaryIO

from attrs import define, evolve, field, frozen

from aiopt.errors import CommandTimeout
from aiopt.events import Finding, Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    OutputStream,
    ProfileResult,
    Workspace,
)

from ._reading import Lines, folded, pooled

__all__ = ["Bperf"]

_KERNEL = "5.3.7"
_FIX = (
    "boot the patched Linux 5.3.7 of https://github.com/s3yonsei/blocked_samples, with its bperf "
    "and its glibc 2.30 rebuilt with frame pointers"
)

_OFF_CPU = {
    "I": "waiting for I/O",
    "L": "waiting for a lock",
    "S": "runnable but not running",
    "B": "otherwise blocked",
}
_ON_CPU = {".": "in user space", "k": "in the kernel"}
_CLASSES = _OFF_CPU | _ON_CPU

_NAMES = {"I": "io", "L": "lock", "S": "scheduling", "B": "blocked", ".": "user", "k": "kernel"}
"""How the scalars call the classes: `io_share` and so on."""

_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)%\s*(?:\|\s*)?(\S.*)")
_SYMBOL = re.compile(r"\[(.)\]\s+(\S.*)")
_COLUMNS = re.compile(r" {2,}")

_MOST_PERCENT = 101.0
"""Rows are rounded to 0.01 each, so that those of one event add up to about 100."""

_MOST_ROWS = 1 << 18
"""How many different rows of one profile are told apart."""


@frozen
class _Row:
    command: str
    object: str
    kind: str
    symbol: str


def _row(line: str) -> tuple[float, _Row] | None:
    """Percent and the rest of a row; None if this is none."""
    match = _PERCENT.fullmatch(line)
    if match is None:
        return None
    # A symbol may contain either separator (`operator||`), the columns before it do not.
    parts = match[2].split("|", 2) if "|" in line[: match.start(2)] else _COLUMNS.split(match[2], 2)
    symbol = _SYMBOL.fullmatch(parts[2].strip()) if len(parts) == 3 else None
    if symbol is None or symbol[1] not in _CLASSES or _PERCENT.fullmatch(f"{parts[0].strip()} x"):
        return None
    command, library = parts[0].strip(), parts[1].strip()
    return float(match[1]), _Row(command, library, symbol[1], symbol[2])


@define
class _Report:
    """The rows of one file, in percent."""

    rows: dict[_Row, float] = field(factory=dict)
    unknown: int = 0

    def read(self, file: BinaryIO) -> None:
        lines = Lines(file)
        for line in lines:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            found = _row(line)
            if found is None or len(self.rows) >= _MOST_ROWS:
                self.unknown += 1
                continue
            percent, row = found
            self.rows[row] = self.rows.get(row, 0.0) + percent
        self.unknown += lines.too_long

    def of(self, kinds: str) -> float:
        return sum(percent for row, percent in self.rows.items() if row.kind in kinds)

    def problem(self) -> Inconclusive | Failed | None:
        """Why this report carries no statement, if it does not."""
        total = self.of("".join(_CLASSES))
        if not total:
            return Inconclusive(reason="no samples: no row of a report has a percentage")
        if total > _MOST_PERCENT:
            return Failed(reason=f"the rows add up to {total:.2f} %: not one report of one event")
        if not self.of("".join(_OFF_CPU)):
            return Inconclusive(
                reason="no off-CPU rows: a stock kernel records none, and says nothing about it"
            )
        return None


@define
class _Kept:
    """The beginning of what a command printed on stdout."""

    text: bytes = b""

    def write(self, stream: OutputStream, data: bytes) -> None:
        if stream == "stdout":
            self.text = (self.text + data)[: 1 << 20]


@frozen(kw_only=True)
class Bperf:
    """Where time goes on and off the CPU, by class: I (I/O), L (lock), S (run queue), B (blocked).

    `off_cpu_share` is the share of I, L, S and B in all samples. A share alone says little: a main
    thread that joins its workers is off-CPU all the time, and S is the machine's load. Of several
    runs the mean is given, with the least and the most as interval.
    """

    bperf: str = "bperf"
    period: int = 1_000_000
    """Nanoseconds of task-clock between two samples."""
    top: int = 20
    """How many rows become findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        kept = _Kept()
        asks = Command(argv=("uname", "-sr"), timeout=20.0, label="probe bperf")
        await workspace.run(asks, kept)
        system = kept.text.decode(errors="replace").strip()
        if not re.match(rf"Linux {re.escape(_KERNEL)}(?!\d)", system):
            reason = f"bperf needs the patched Linux {_KERNEL}; this is {system or 'unknown'}"
            return NotAvailable(reason=reason, fix=_FIX)
        # The number of the kernel does not tell whether it is patched; a sleeper's samples do.
        output = "{run}/bperf-probe"
        sleeper = Command(argv=("sleep", "1"), timeout=20.0, label="probe bperf")
        try:
            recorded = await workspace.run(self.wrap(sleeper, output), _Kept())
            reported = await workspace.run(self.finish(output), _Kept())
            kept = _Kept()
            shows = Command(argv=("cat", output), timeout=20.0, label="probe bperf")
            await workspace.run(shows, kept)
        except CommandTimeout:
            return NotAvailable(reason="bperf did not end on `sleep 1` within 20 s", fix=_FIX)
        if not recorded.ok or not reported.ok:
            codes = f"exit {recorded.exit_code}, of its report {reported.exit_code}"
            return NotAvailable(reason=f"bperf of `sleep 1`: {codes}", fix=_FIX)
        report = _Report()
        for line in kept.text.decode(errors="replace").splitlines():
            if (found := _row(line)) is not None:
                report.rows[found[1]] = report.rows.get(found[1], 0.0) + found[0]
        if report.of("".join(_OFF_CPU)) < 50:
            reason = f"`sleep 1` has no off-CPU samples: not the patched Linux {_KERNEL}"
            return NotAvailable(reason=reason, fix=_FIX)
        return None

    def version(self) -> Command:
        return Command(argv=(self.bperf, "--version"), timeout=20.0, label="bperf")

    def wrap(self, command: Command, output: str) -> Command:
        record = (self.bperf, "record", "-g", "-e", "task-clock", "-c", str(self.period))
        argv = (*record, "--weight", "-o", f"{output}.data", "--", *command.argv)
        return evolve(command, argv=argv)

    def finish(self, output: str) -> Command:
        """The report of what was recorded; see `aiopt.protocols.Finishing`."""
        report = 'exec "$1" report -i "$2.data" --no-children --stdio -g none -t "|" >"$2"'
        argv = ("sh", "-c", report, "sh", self.bperf, output)
        return Command(argv=argv, timeout=300.0, label="bperf report")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        if not profiles:
            return Failed(reason="no bperf report was written")
        runs = len(profiles)
        shares: dict[str, list[float]] = {name: [] for name in ("off_cpu", *_NAMES.values())}
        rows: dict[_Row, float] = {}
        stacks: dict[str, float] = {}
        unknown, covered = 0, 0.0
        for number, file in enumerate(profiles, 1):
            report = _Report()
            report.read(file)
            if problem := report.problem():
                return evolve(problem, reason=f"profile {number}: {problem.reason}")
            # Reports leave out rows below a limit: shares are of what is there.
            total = report.of("".join(_CLASSES))
            covered += total / runs
            shares["off_cpu"].append(report.of("".join(_OFF_CPU)) / total)
            for kind, name in _NAMES.items():
                shares[name].append(report.of(kind) / total)
            for row, percent in report.rows.items():
                rows[row] = rows.get(row, 0.0) + percent / runs
                symbol = row.symbol.replace(";", ":")
                stack = f"{row.command.replace(';', ':')};[{row.kind}];{symbol}"
                stacks[stack] = stacks.get(stack, 0.0) + percent / runs
            unknown += report.unknown
        ordered = sorted(rows.items(), key=lambda each: (-each[1], str(each[0])))
        notes = []
        if unknown:
            notes.append(f"{unknown} lines were not understood")
        if covered < 99:
            notes.append(f"the rows cover {covered:.1f} % of the samples")
        return Measured(
            scalars={f"{name}_share": pooled(values, "ratio") for name, values in shares.items()},
            stacks=folded(stacks),
            stacks_unit="percent",
            findings=tuple(_finding(row, percent) for row, percent in ordered[: self.top]),
            notes=tuple(notes),
        )


def _finding(row: _Row, percent: float) -> Finding:
    return Finding(
        where=row.symbol,
        what=f"off-CPU {row.kind}" if row.kind in _OFF_CPU else "on-CPU",
        scalar=Scalar(value=percent / 100, unit="ratio"),
        detail=f"{row.command}, {row.object}: {_CLASSES[row.kind]}",
    )
