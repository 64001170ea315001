"""What a ClickHouse server logged of its queries (columns of 26.9): query_log and trace_log.

A profile holds rows of query_log (JSONEachRow) and folded stacks of trace_log (TSV: stack and
samples, or stack, bytes allocated and net bytes), in any order. The server fills trace_log only
with `<trace_log>` in its config and `query_profiler_cpu_time_period_ns` (10 ms; the default of 1 s
misses short queries) and `memory_profiler_step` in the settings of the workload.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, cast

from attrs import define, field, frozen

from aiopt.events import Finding, Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Workspace,
)

from ._reading import Lines, folded, pooled, shares
from ._trial import asked

__all__ = ["ClickHouse", "columns_sql", "cpu_stacks_sql", "memory_stacks_sql", "query_log_sql"]

_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?")
_ERROR = re.compile(r"Code: (\d{1,6})\. (DB::Exception: .{0,300})")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}

_UNKNOWN_TABLE, _NO_INTROSPECTION = 60, 446
_MOST_STACKS = 1 << 17
"""How many different stacks of one kind are told apart."""

_EVENTS = {
    "OSCPUVirtualTimeMicroseconds": "cpu_seconds",
    "OSCPUWaitMicroseconds": "cpu_wait_seconds",
    "UserTimeMicroseconds": "user_seconds",
    "SystemTimeMicroseconds": "system_seconds",
}
"""ProfileEvents in microseconds, and what their sum is called here."""


# ---- SQL ----


def _table(name: str) -> str:
    if _TABLE.fullmatch(name) is None:
        raise ValueError(f"not the name of a table: {name!r}")
    return name


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _of_query(query_id: str | None) -> str:
    # Without a query a sample is of the server's own threads.
    return "query_id != ''" if query_id is None else f"query_id = {_literal(query_id)}"


def _stack(symbols: bool) -> str:
    # The trace has its leaf first; a semicolon in a name would look like another frame.
    names = "symbols" if symbols else "arrayMap(x -> demangle(addressToSymbol(x)), trace)"
    name = "if(s = '', '[unknown]', replaceAll(s, ';', ':'))"
    return f"arrayStringConcat(arrayMap(s -> {name}, arrayReverse({names})), ';')"


def columns_sql(table: str) -> str:
    """The names of a table's columns, which differ by version; one a line."""
    database, _, name = _table(table).rpartition(".")
    of = _literal(database) if database else "currentDatabase()"
    return (
        f"SELECT name FROM system.columns WHERE database = {of} AND table = {_literal(name)} "
        "ORDER BY position FORMAT TSV"
    )


def query_log_sql(table: str = "system.query_log", query_id: str | None = None) -> str:
    """Finished and failed queries as JSONEachRow; parts of distributed queries are left out."""
    return (
        "SELECT type, query_id, query_duration_ms, read_rows, memory_usage, ProfileEvents "
        f"FROM {_table(table)} WHERE type != 'QueryStart' AND is_initial_query "
        f"AND {_of_query(query_id)} ORDER BY event_time_microseconds, query_id FORMAT JSONEachRow"
    )


def cpu_stacks_sql(
    table: str = "system.trace_log", query_id: str | None = None, *, symbols: bool = False
) -> str:
    """Folded stacks and samples on the CPU as TSV.

    With `symbols` the names are the server's (it has to be configured for that), otherwise the
    introspection functions look them up.
    """
    return (
        f"SELECT {_stack(symbols)} AS stack, count() AS samples FROM {_table(table)} "
        f"WHERE trace_type = 'CPU' AND {_of_query(query_id)} "
        f"GROUP BY stack ORDER BY samples DESC, stack{_settings(symbols)} FORMAT TSV"
    )


def memory_stacks_sql(
    table: str = "system.trace_log", query_id: str | None = None, *, symbols: bool = False
) -> str:
    """Folded stacks, bytes allocated and net bytes as TSV; see `cpu_stacks_sql`."""
    return (
        f"SELECT {_stack(symbols)} AS stack, sumIf(size, size > 0) AS allocated, sum(size) AS net "
        f"FROM {_table(table)} WHERE trace_type = 'Memory' AND {_of_query(query_id)} "
        f"GROUP BY stack ORDER BY allocated DESC, stack{_settings(symbols)} FORMAT TSV"
    )


def _settings(symbols: bool) -> str:
    return "" if symbols else " SETTINGS allow_introspection_functions = 1"


# ---- reading ----


def _number(value: object) -> float | None:
    """A count of a row; servers may be configured to quote 64-bit numbers."""
    if isinstance(value, str) and len(value) < 24 and value.isascii() and value.isdigit():
        return float(value)
    if type(value) is int:
        return float(value) if 0 <= value < 1 << 64 else None
    if type(value) is float and math.isfinite(value) and 0 <= value < 2.0**64:
        return value
    return None


def _whole(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text)


@define
class _Log:
    """What one file says."""

    sums: dict[str, float] = field(factory=dict)
    finished: int = 0
    failed: int = 0
    lacking: dict[str, int] = field(factory=dict)
    cpu: dict[str, float] = field(factory=dict)
    allocated: dict[str, float] = field(factory=dict)
    net: int = 0
    errors: dict[int, str] = field(factory=dict)
    unknown: int = 0

    def read(self, file: BinaryIO) -> None:
        lines = Lines(file)
        for line in lines:
            if not line:
                continue
            if (error := _ERROR.search(line)) and not line.startswith("{"):
                if len(self.errors) < 20:
                    self.errors.setdefault(int(error[1]), f"Code {error[1]}: {error[2]}")
            elif not (self._row(line) if line.startswith("{") else self._stack(line)):
                self.unknown += 1
        self.unknown += lines.too_long

    def _row(self, line: str) -> bool:
        try:
            row = cast(dict[str, Any], json.loads(line))
        except (ValueError, RecursionError):
            return False
        kind = row.get("type")
        if kind in ("ExceptionBeforeStart", "ExceptionWhileProcessing"):
            self.failed += 1
            return True
        duration = _number(row.get("query_duration_ms"))
        if kind != "QueryFinish" or duration is None:
            return kind == "QueryStart"
        self.finished += 1
        self._add("query_seconds", duration / 1e3)
        self._add("read_rows", _number(row.get("read_rows")))
        memory = _number(row.get("memory_usage"))
        if memory is not None:
            self.sums["peak_memory_bytes"] = max(self.sums.get("peak_memory_bytes", 0.0), memory)
        given = row.get("ProfileEvents")
        events = cast(Mapping[str, Any], given) if isinstance(given, dict) else {}
        for event, name in _EVENTS.items():
            value = _number(events.get(event))
            self._add(name, None if value is None else value / 1e6)
        return True

    def _add(self, name: str, value: float | None) -> None:
        if value is None:
            self.lacking[name] = self.lacking.get(name, 0) + 1
        else:
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _stack(self, line: str) -> bool:
        stack, *columns = line.split("\t")
        counts = [count for each in columns if (count := _whole(each)) is not None]
        if not stack or len(counts) != len(columns) or len(counts) not in (1, 2) or counts[0] < 0:
            return False
        # Lines of the canonical text end with the weight, so a name must not break one.
        stack = " ".join(_unescaped(stack).split())
        stacks = self.cpu if len(counts) == 1 else self.allocated
        if not stack or (stack not in stacks and len(stacks) >= _MOST_STACKS):
            return False
        stacks[stack] = stacks.get(stack, 0.0) + counts[0]
        self.net += counts[1] if len(counts) == 2 else 0
        return True

    def figures(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.finished:
            found["queries"] = float(self.finished)
            found["failed_queries"] = float(self.failed)
            found |= self.sums
            run, wait = found.get("cpu_seconds"), found.get("cpu_wait_seconds")
            if run is not None and wait is not None and run + wait > 0:
                found["cpu_share"] = run / (run + wait)
        if samples := sum(self.cpu.values()):
            found["cpu_samples"] = samples
        if allocated := sum(self.allocated.values()):
            found["allocated_bytes"] = allocated
            found["net_bytes"] = float(self.net)
        return found

    def problem(self) -> ProfileResult:
        """Why there is no figure."""
        if _NO_INTROSPECTION in self.errors:
            return NotAvailable(
                reason=self.errors[_NO_INTROSPECTION], fix="SET allow_introspection_functions = 1"
            )
        if _UNKNOWN_TABLE in self.errors:
            return NotAvailable(
                reason=self.errors[_UNKNOWN_TABLE],
                fix="put <query_log> and <trace_log> into the server's config",
            )
        if self.errors:
            return Failed(reason="; ".join(self.errors.values()))
        if self.failed:
            return Inconclusive(reason=f"no query finished, {self.failed} failed")
        return Inconclusive(reason="the server logged no query and no sample")


def _unit(name: str) -> str:
    units = {"cpu_samples": "samples", "cpu_share": "ratio", "read_rows": "rows"}
    ending = name.rpartition("_")[2]
    return units.get(name, ending if ending in ("seconds", "bytes", "queries") else "")


@frozen(kw_only=True)
class ClickHouse:
    """Asks the profiled server for its query_log and trace_log when the workload is over.

    Times and rows are sums over the finished queries, `peak_memory_bytes` is of the hungriest one.
    Memory is sampled: one stack per step, or for an allocation that is larger. Of several runs the
    mean is given, with the least and the most as interval.
    """

    client: str = "clickhouse-client"
    query_log: str = "system.query_log"
    trace_log: str = "system.trace_log"
    query_id: str | None = None
    """Of one query only."""
    symbols: bool = False
    """Whether the server writes names into trace_log."""
    top: int = 10
    """How many functions become findings, of CPU and of memory each."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        asks = Command(argv=(self.client, "--version"), timeout=20.0, label="clickhouse-client")
        told = await asked(workspace, asks, "apt-get install clickhouse-client")
        return told if isinstance(told, NotAvailable) else None

    def version(self) -> Command:
        return Command(argv=(self.client, "--version"), timeout=20.0, label="clickhouse")

    def wrap(self, command: Command, output: str) -> Command:
        """The command itself: the server takes the profile."""
        return command

    def query(self, output: str, env: Mapping[str, str]) -> Command:
        """Flush the logs and read them; see `aiopt.protocols.Querying`.

        SERVICE_PORT has to be that of the native protocol.
        """
        ask = (
            'out=$1; shift; a=$1 b=$2 c=$3; shift 3; { "$@" --query "SYSTEM FLUSH LOGS" 2>&1; '
            'for q in "$a" "$b" "$c"; do "$@" --query "$q" 2>&1; done; } >"$out"'
        )
        argv = (
            *("sh", "-c", ask, "sh", output),
            query_log_sql(self.query_log, self.query_id),
            cpu_stacks_sql(self.trace_log, self.query_id, symbols=self.symbols),
            memory_stacks_sql(self.trace_log, self.query_id, symbols=self.symbols),
            *(self.client, "--host", env.get("SERVICE_HOST", "127.0.0.1")),
            *("--port", env.get("SERVICE_PORT", "9000"), "--log_queries", "0"),
        )
        return Command(argv=argv, timeout=120.0, label="ask clickhouse")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        if not profiles:
            return Failed(reason="the server was not asked: no profile was written")
        runs = len(profiles)
        values: dict[str, list[float]] = {}
        cpu: dict[str, float] = {}
        allocated: dict[str, float] = {}
        unknown = 0
        lacking: dict[str, int] = {}
        errors: dict[str, None] = {}
        for file in profiles:
            log = _Log()
            log.read(file)
            figures = log.figures()
            if not figures:
                return log.problem()
            for name, value in figures.items():
                values.setdefault(name, []).append(value)
            for stacks, more in ((cpu, log.cpu), (allocated, log.allocated)):
                for stack, weight in more.items():
                    stacks[stack] = stacks.get(stack, 0.0) + weight / runs
            for name, count in log.lacking.items():
                lacking[name] = lacking.get(name, 0) + count
            errors |= dict.fromkeys(log.errors.values())
            unknown += log.unknown
        notes = list(errors)[:10]
        if unknown:
            notes.append(f"{unknown} lines were not understood")
        notes += [f"{name}: {count} queries do not say" for name, count in sorted(lacking.items())]
        if missing := sorted(name for name in values if len(values[name]) < runs):
            notes.append(f"not in every run: {', '.join(missing)}")
        on_cpu = any(weight > 0 for weight in cpu.values())
        return Measured(
            scalars={name: pooled(values[name], _unit(name)) for name in values},
            stacks=folded(cpu if on_cpu else allocated),
            stacks_unit="samples" if on_cpu else "bytes",
            findings=(
                *_findings(cpu.items(), "on-CPU", "samples", self.top),
                *_findings(allocated.items(), "allocated", "bytes", self.top),
            ),
            notes=tuple(notes),
        )


def _findings(
    stacks: Iterable[tuple[str, float]], what: str, unit: str, top: int
) -> tuple[Finding, ...]:
    own, total = shares(stacks)
    everything = sum(own.values())
    ordered = sorted(own.items(), key=lambda each: (-each[1], each[0]))[:top]
    return tuple(
        Finding(
            where=name,
            what=what,
            scalar=Scalar(value=weight, unit=unit),
            detail=f"{weight / everything:.1%} its own, {total[name] / everything:.1%} in all",
        )
        for name, weight in ordered
        if weight > 0
    )
