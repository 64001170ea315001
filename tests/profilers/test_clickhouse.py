"""Rows of query_log are real ones of chDB; the stacks are what SQL gave for synthetic samples."""

import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest

from aiopt.errors import CommandTimeout
from aiopt.profilers.clickhouse import (
    ClickHouse,
    columns_sql,
    cpu_stacks_sql,
    memory_stacks_sql,
    query_log_sql,
)
from aiopt.protocols import (
    Command,
    Completed,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Querying,
    Sink,
    Usage,
)

from .hostile import check_total, contents

DATA = Path(__file__).parents[1] / "data" / "profilers" / "clickhouse"
LOG = (DATA / "query_log.jsonl").read_bytes()
CPU = (DATA / "SYNTHETIC-cpu-folded-q-base.tsv").read_bytes()
MEMORY = (DATA / "SYNTHETIC-memory-folded-q-base.tsv").read_bytes()
UNKNOWN_TABLE, NO_INTROSPECTION = (
    next(line for line in (DATA / "error-messages.txt").read_bytes().split(b"\n") if code in line)
    for code in (b"Code: 60.", b"Code: 446.")
)
PROFILE = LOG + CPU + MEMORY


def _parse(*files: bytes) -> ProfileResult:
    return ClickHouse().parse(contents(*files))


def _measured(*files: bytes) -> Measured:
    result = _parse(*files)
    assert isinstance(result, Measured)
    return result


def _values(*files: bytes) -> dict[str, float]:
    return {name: scalar.value for name, scalar in _measured(*files).scalars.items()}


def test_the_finished_queries_add_up() -> None:
    assert _values(LOG) == pytest.approx(
        {
            "queries": 3,
            "failed_queries": 1,
            "query_seconds": 0.056,
            "read_rows": 7_500_000,
            "peak_memory_bytes": 71_452_336,
            "cpu_seconds": 0.083795,
            "cpu_wait_seconds": 0.000725,
            "user_seconds": 0.051348,
            "system_seconds": 0.032513,
            "cpu_share": 83_795 / 84_520,
        }
    )


def test_the_stacks_are_those_of_the_cpu_and_memory_has_totals() -> None:
    result = _measured(PROFILE)
    assert result.stacks == CPU.decode().replace("\t", " ")
    assert result.stacks_unit == "samples"
    assert result.scalars["cpu_samples"].value == 38
    assert result.scalars["allocated_bytes"].value == 37_748_736 + 33_554_432
    assert result.scalars["net_bytes"].value == 20_971_520 + 25_165_824
    assert [(each.what, each.where) for each in result.findings] == [
        ("on-CPU", "DB::HashTable::emplace"),
        ("on-CPU", "memcpy"),
        ("on-CPU", "LZ4::decompress"),
        ("allocated", "Allocator::alloc"),
        ("allocated", "Allocator::realloc"),
    ]
    assert result.notes == ()


def test_without_samples_of_the_cpu_the_stacks_are_of_memory() -> None:
    result = _measured(MEMORY)
    assert result.stacks_unit == "bytes"
    assert result.stacks.splitlines()[0].endswith("Allocator::alloc 37748736")


def test_several_runs_give_a_mean_and_an_interval() -> None:
    result = _measured(PROFILE, CPU)
    samples = result.scalars["cpu_samples"]
    assert (samples.low, samples.value, samples.high) == (38, 38, 38)
    assert result.stacks == CPU.decode().replace("\t", " ")
    assert any("not in every run" in each and "queries" in each for each in result.notes)


def test_events_may_be_absent_and_numbers_quoted() -> None:
    row = b'{"type":"QueryFinish","query_duration_ms":"20","read_rows":1e3,"ProfileEvents":{}}\n'
    result = _measured(row)
    assert {name: scalar.value for name, scalar in result.scalars.items()} == {
        "queries": 1,
        "failed_queries": 0,
        "query_seconds": 0.02,
        "read_rows": 1000,
    }
    assert "cpu_seconds: 1 queries do not say" in result.notes


def test_names_are_unescaped_and_stay_on_their_line() -> None:
    assert _measured(b"main;operator\\'\\t\\n\\\\x\t5\n").stacks == "main;operator' \\x 5\n"


@pytest.mark.parametrize("line", [b"main\tx", b"main\t-1", b"main", b"\t5", b"a\t1\t2\t3", b"{"])
def test_what_is_not_understood_is_counted(line: bytes) -> None:
    assert _measured(CPU + line + b"\n").notes == ("1 lines were not understood",)


@pytest.mark.parametrize("profile", [b"", b"\n", b"x\t0\n", b'{"type":"QueryStart"}\n'])
def test_a_server_that_logged_nothing_is_inconclusive(profile: bytes) -> None:
    assert isinstance(_parse(profile), Inconclusive)


def test_queries_that_all_failed_are_inconclusive() -> None:
    result = _parse(b"".join(line + b"\n" for line in LOG.split(b"\n") if b"Exception" in line))
    assert isinstance(result, Inconclusive)
    assert "1 failed" in result.reason


def test_what_the_server_refuses_is_not_available_and_has_a_fix() -> None:
    table, introspection = _parse(UNKNOWN_TABLE), _parse(UNKNOWN_TABLE + b"\n" + NO_INTROSPECTION)
    assert isinstance(table, NotAvailable)
    assert "<trace_log>" in table.fix
    assert isinstance(introspection, NotAvailable)
    assert "allow_introspection_functions" in introspection.fix


def test_another_error_is_a_failure() -> None:
    assert isinstance(_parse(b"Code: 210. DB::Exception: Connection refused.\n"), Failed)


def test_an_error_beside_rows_is_noted() -> None:
    notes = _measured(LOG + UNKNOWN_TABLE + b"\n").notes
    assert len(notes) == 1
    assert notes[0].startswith("Code 60: DB::Exception: Unknown table")


def test_no_profile_is_a_failure() -> None:
    assert isinstance(ClickHouse().parse([]), Failed)


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(ClickHouse().parse, PROFILE)
    assert isinstance(ClickHouse().parse([BytesIO(b'{"type":' + b"[" * 60_000)]), Inconclusive)


# ---- SQL ----


def test_tables_and_query_ids_are_parameters() -> None:
    for build in (query_log_sql, cpu_stacks_sql, memory_stacks_sql):
        text = build("mine.samples", "it's \\ 1")
        assert " FROM mine.samples WHERE " in text
        assert "query_id = 'it\\'s \\\\ 1'" in text
        assert "query_id != ''" in build("samples")
        with pytest.raises(ValueError, match="name of a table"):
            build("samples; DROP TABLE samples")
    assert "database = 'system' AND table = 'trace_log'" in columns_sql("system.trace_log")
    assert "database = currentDatabase()" in columns_sql("samples")


def test_introspection_is_only_for_tables_without_names() -> None:
    for build in (cpu_stacks_sql, memory_stacks_sql):
        assert "allow_introspection_functions" in build()
        assert "addressToSymbol" in build()
        assert "introspection" not in build(symbols=True)
        assert "addressToSymbol" not in build(symbols=True)


# ---- running ----


def test_the_command_runs_as_it_is() -> None:
    command = Command(argv=("./server",))
    assert ClickHouse().wrap(command, "/o/p") == command


def test_the_server_is_asked_for_everything(tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.write_text('#!/bin/sh\necho "$@"\necho problem >&2\n')
    client.chmod(0o755)
    profiler = ClickHouse(client=str(client), query_id="q 1")
    assert isinstance(profiler, Querying)
    command = profiler.query(str(tmp_path / "out"), {"SERVICE_HOST": "h", "SERVICE_PORT": "9"})
    subprocess.run(command.argv, check=True, timeout=20)
    asked = (tmp_path / "out").read_text().splitlines()
    assert len(asked) == 8
    assert asked[1::2] == ["problem"] * 4
    head = "--host h --port 9 --log_queries 0 --query"
    assert asked[0] == f"{head} SYSTEM FLUSH LOGS"
    assert asked[2] == f"{head} {query_log_sql(query_id='q 1')}"
    assert asked[4] == f"{head} {cpu_stacks_sql(query_id='q 1')}"
    assert asked[6] == f"{head} {memory_stacks_sql(query_id='q 1')}"


class _Machine:
    """A workspace where every command ends with this code, or not in time."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    async def run(self, command: Command, sink: Sink) -> Completed:
        if self._code is None:
            raise CommandTimeout(command.argv, command.timeout)
        usage = Usage(wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0)
        return Completed(exit_code=self._code, signal=None, usage=usage)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, None), (127, "clickhouse-client is not installed"), (210, "exit 210"), (None, "20 s")],
)
async def test_the_probe_wants_a_client(code: int | None, reason: str | None) -> None:
    answer = await ClickHouse().probe(cast(Any, _Machine(code)))
    assert (answer is None) == (reason is None)
    assert answer is None or str(reason) in answer.reason
