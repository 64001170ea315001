import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from aiopt import logfile
from aiopt.blobs import BlobStore, blobs_beside
from aiopt.errors import CorruptLogError, LogError, LogVersionError
from aiopt.events import EvidenceCaptured, ExperimentStarted, GateFailed, GatePassed, PatchRef
from aiopt.log import Log
from aiopt.logfile import Row, row_hash, rows
from aiopt.verify import Report, verify
from tests.factories import make


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    store = BlobStore(tmp_path / "blobs")
    blobs = [store.put(name) for name in (b"patch", b"log", b"stacks", b"artifact")]
    with Log.open(tmp_path / "events.db") as log:
        genome = (PatchRef(name="p", digest=blobs[0]),)
        log.append([("exp-0001~a", make(ExperimentStarted, genome=genome))])
        log.append([("exp-0002~a", GatePassed(gate="one"))])
        log.append([("exp-0001~a", GateFailed(gate="two", detail="", log=blobs[1]))])
        evidence = make(EvidenceCaptured, stacks=blobs[2], artifacts=(blobs[3],))
        log.append([("exp-0001~a", evidence), ("exp-0002~a", GatePassed(gate="five"))])
        yield log


def edit(log: Log, *statements: str) -> None:
    """Change the file as whoever can write it might: without the triggers, which are put back."""
    log.close()
    with closing(sqlite3.connect(log.path, isolation_level=None)) as con:
        triggers = con.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        definitions = dict(triggers.fetchall())
        for name in definitions:
            con.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            con.execute(statement)
        for definition in definitions.values():
            con.execute(definition)


def found(report: Report) -> list[tuple[str, int | None]]:
    assert report.ok == (not report.problems)
    return [(problem.kind, problem.seq) for problem in report.problems]


def test_a_log_as_it_was_written_is_ok(log: Log) -> None:
    """An untouched log has no problems, and the report counts what it holds."""
    report = verify(log.path, blobs_beside(log.path), log.head())
    assert report.ok
    assert (report.events, report.streams, report.blobs) == (5, 2, 4)
    assert report.heads == log.head()
    assert report.unknown == {}
    assert verify(str(log.path)) == report


def test_an_empty_log_is_ok(tmp_path: Path) -> None:
    """A log without events has no problems."""
    with Log.open(tmp_path / "events.db"):
        assert found(verify(tmp_path / "events.db")) == []


def test_an_older_head_still_holds(log: Log) -> None:
    """A log that has grown fits the head that was published before."""
    head = log.head()
    log.append([("exp-0002~a", GatePassed(gate="six"))])
    assert verify(log.path, expect_head=head).ok


@pytest.mark.parametrize("column", ["stream", "type", "recorded_at", "payload"])
def test_a_changed_text_is_found(log: Log, column: str) -> None:
    """A text that was changed in any column shows in the chain, at its row and only there."""
    value = '{"gate":"ONE"}' if column == "payload" else "exp-0003~a"
    edit(log, f"UPDATE event SET {column} = '{value}' WHERE seq = 2")
    problems = found(verify(log.path))
    assert ("chain", 2) in problems
    assert [seq for kind, seq in problems if kind == "chain"] == [2]


@pytest.mark.parametrize("column", ["version", "schema_version", "writer", "wseq"])
def test_a_changed_number_is_found(log: Log, column: str) -> None:
    """A number that was changed in any column shows in the chain at its row."""
    edit(log, f"UPDATE event SET {column} = 77 WHERE seq = 2")
    assert ("chain", 2) in found(verify(log.path))


def test_a_changed_hash_is_found(log: Log) -> None:
    """A row whose hash was computed anew no longer fits the row after it."""
    changed = list(rows(log.path))[1]._replace(payload='{"gate":"ONE"}')
    previous = next(rows(log.path)).hash
    edit(
        log,
        f"UPDATE event SET payload = '{changed.payload}',"
        f" hash = x'{row_hash(previous, changed).hex()}' WHERE seq = 2",
    )
    assert found(verify(log.path)) == [("chain", 3)]


def test_a_log_written_anew_needs_its_head(log: Log) -> None:
    """Hashing all rows again deceives the chain, but not a head that was published."""
    head = log.head()
    previous = next(rows(log.path)).hash
    statements = []
    for row in list(rows(log.path))[1:]:
        new = row._replace(payload=row.payload.replace('"one"', '"ONE"'))
        previous = row_hash(previous, new)
        statements.append(
            f"UPDATE event SET payload = '{new.payload}', hash = x'{previous.hex()}'"
            f" WHERE seq = {row.seq}"
        )
    edit(log, *statements)
    assert verify(log.path).ok
    report = verify(log.path, expect_head=head)
    assert found(report) == [("head", 5)]
    assert "published head" in report.problems[0].text


def test_a_row_removed_from_the_middle_is_found(log: Log) -> None:
    """A removed row leaves gaps in the log, in its writer's chain and in its stream."""
    edit(log, "DELETE FROM event WHERE seq = 3")
    assert found(verify(log.path)) == [("seq", 4), ("chain", 4), ("version", 4)]


def test_a_closed_gap_is_found(log: Log) -> None:
    """Numbering anew what comes after a removed row does not hide it."""
    edit(
        log,
        "DELETE FROM event WHERE seq = 3",
        "UPDATE event SET seq = seq - 1, wseq = wseq - 1 WHERE seq > 3",
        "UPDATE event SET version = 2 WHERE seq = 3",
        "UPDATE sqlite_sequence SET seq = 4",
    )
    assert [kind for kind, _ in found(verify(log.path))] == ["chain", "chain"]


def test_a_removed_last_row_is_found(log: Log) -> None:
    """SQLite's own count shows that rows are missing at the end."""
    edit(log, "DELETE FROM event WHERE seq = 5")
    report = verify(log.path)
    assert found(report) == [("seq", None)]
    assert "last row is seq 4, but SQLite has counted to 5" in report.problems[0].text


def test_a_removed_end_needs_its_head(log: Log) -> None:
    """Whoever mends SQLite's count as well is found out by a head that was published."""
    head = log.head()
    edit(log, "DELETE FROM event WHERE seq = 5", "UPDATE sqlite_sequence SET seq = 4")
    assert verify(log.path).ok
    report = verify(log.path, expect_head=head)
    assert found(report) == [("head", None)]
    assert "is wseq 5, but it ends at 4" in report.problems[0].text


def test_a_head_of_another_log_is_found(log: Log) -> None:
    """A head of a writer that is not there does not fit."""
    assert found(verify(log.path, expect_head={1: (3, "00")})) == [("head", None)]


def test_a_lost_count_is_found(log: Log) -> None:
    """Removing SQLite's count is found."""
    edit(log, "DELETE FROM sqlite_sequence")
    assert found(verify(log.path)) == [("seq", None)]


def test_altered_definitions_are_found(log: Log) -> None:
    """Triggers and tables that were dropped, altered or added are found, each of them."""
    edit(log, "DROP INDEX event_writer")
    with closing(sqlite3.connect(log.path)) as con:
        con.execute("DROP TRIGGER event_no_update")
        con.execute("DROP TRIGGER writer_guard")
        con.execute("CREATE TRIGGER writer_guard BEFORE INSERT ON writer BEGIN SELECT 1; END")
        con.execute("CREATE TRIGGER mine AFTER INSERT ON event BEGIN SELECT 1; END")
        con.execute("ALTER TABLE writer ADD COLUMN more TEXT")
    report = verify(log.path)
    texts = sorted(problem.text.partition(":")[0] for problem in report.problems)
    assert texts == [
        "index event_writer is missing",
        "table writer was altered",
        "trigger event_no_update is missing",
        "trigger mine was not made by aiopt",
        "trigger writer_guard was altered",
    ]


def test_unknown_writers_are_found(log: Log) -> None:
    """Rows of a writer that the log does not know are found."""
    edit(log, "DELETE FROM writer")
    assert found(verify(log.path)) == [("writer", seq) for seq in range(1, 6)]


def test_undecodable_payloads_are_found(log: Log) -> None:
    """A payload that cannot be read shows beside its broken chain; the rest is still checked."""
    edit(
        log,
        "UPDATE event SET payload = '{' WHERE seq = 2",
        "UPDATE event SET payload = CAST(x'7bff7d' AS TEXT) WHERE seq = 4",
    )
    assert found(verify(log.path)) == [
        ("chain", 2),
        ("payload", 2),
        ("chain", 4),
        ("payload", 4),
    ]


def test_unknown_events_are_not_corrupt(log: Log) -> None:
    """Events of a newer aiopt are counted as unknown, and their chain is checked all the same."""
    end = list(rows(log.path))[-1]
    at = end._replace(seq=6, wseq=6, version=3, type="ThingHappened", payload="[]", hash=b"")
    new = at._replace(hash=row_hash(end.hash, at))
    newer = new._replace(seq=7, wseq=7, version=4, type="GatePassed", schema_version=2, hash=b"")
    newer = newer._replace(hash=row_hash(new.hash, newer))
    log._db.conn.executemany(logfile.INSERT, [new, newer])
    report = verify(log.path)
    assert report.ok
    assert report.unknown == {"ThingHappened.v1": 1, "GatePassed.v2": 1}
    edit(log, "UPDATE event SET payload = '[1]' WHERE seq = 6")
    assert found(verify(log.path)) == [("chain", 6)]


def test_missing_and_changed_blobs_are_found(log: Log) -> None:
    """Each blob that is missing, changed or no digest is found, with an event that refers to it."""
    store = BlobStore(blobs_beside(log.path))
    patch, output, *_ = (store.put(name) for name in (b"patch", b"log"))
    store.path(patch).unlink()
    store.path(output).write_bytes(b"nonsense")
    log.append([("exp-0001~a", GateFailed(gate="x", detail="", log="no digest"))])
    report = verify(log.path)
    assert [problem.blob for problem in report.problems] == [patch, output, "no digest"]
    assert [problem.kind for problem in report.problems] == ["blob"] * 3
    assert "first referred to by seq 1: " in report.problems[0].text
    assert "missing" in report.problems[0].text
    assert verify(log.path, log.path.parent / "nowhere").problems[3].kind == "blob"


def test_all_problems_are_reported(log: Log) -> None:
    """One problem does not hide another."""
    store = BlobStore(blobs_beside(log.path))
    store.path(store.put(b"log")).unlink()
    edit(
        log,
        "UPDATE event SET payload = '{}' WHERE seq = 2",
        "DELETE FROM event WHERE seq = 5",
        "CREATE VIEW v AS SELECT 1",
    )
    kinds = {problem.kind for problem in verify(log.path, expect_head={1: (1, "")}).problems}
    assert kinds == {"chain", "payload", "seq", "schema", "blob", "head"}


def test_problems_say_where(log: Log) -> None:
    """A problem names its row in words and in fields."""
    edit(log, 'UPDATE event SET payload = \'{"gate":"x"}\' WHERE seq = 2')
    (problem,) = verify(log.path).problems
    assert (problem.seq, problem.stream, problem.blob) == (2, "exp-0002~a", None)
    assert problem.text.startswith("seq 2 (exp-0002~a version 1): its hash does not fit")


# ---- damage ----


def long_log(path: Path) -> None:
    with Log.open(path) as log:
        for n in range(50):
            log.append([("s", GatePassed(gate=f"{n} {'x' * 200}"))] * 20)


def test_a_broken_page_is_stepped_over(tmp_path: Path) -> None:
    """Damage in the middle is reported, and what comes after it is still checked."""
    path = tmp_path / "events.db"
    long_log(path)
    data = bytearray(path.read_bytes())
    start = data.index(b'{"gate":"30 x') // 4096 * 4096
    data[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    report = verify(path)
    assert 900 < report.events < 1000
    assert {"sqlite", "seq", "chain"} <= {problem.kind for problem in report.problems}
    assert report.heads.keys()


def test_a_truncated_log_is_reported(tmp_path: Path) -> None:
    """A log that was cut short is reported as far as it can be read."""
    path = tmp_path / "events.db"
    long_log(path)
    os.truncate(path, path.stat().st_size // 2)
    report = verify(path)
    assert 200 < report.events < 1000
    assert "sqlite" in {problem.kind for problem in report.problems}


@pytest.mark.parametrize("part", range(0, 4096, 97))
def test_any_flipped_byte_of_the_definitions_is_survived(log: Log, part: int) -> None:
    """Whatever byte of the first page is flipped, the answer is a report or an error of ours."""
    log.close()
    data = bytearray(log.path.read_bytes())
    data[part] ^= 0xFF
    log.path.write_bytes(data)
    with suppress(LogError):
        assert verify(log.path).events <= 5
    for readonly in (True, False):
        with suppress(LogError), Log.open(log.path, readonly=readonly) as opened:
            assert len(list(opened.read())) <= 5


def test_every_flipped_byte_of_an_event_is_found(log: Log) -> None:
    """No byte of a stored event can change without a problem being reported."""
    log.close()
    data = log.path.read_bytes()
    start = data.index(b"exp-0002~aGatePassed") - 16  # from the head of its record on
    end = data.index(b'{"gate":"one"}') + len(b'{"gate":"one"}') + 32
    for place in range(start, end, 3):
        changed = bytearray(data)
        changed[place] ^= 0x01
        log.path.write_bytes(changed)
        assert not verify(log.path).ok, place


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.unlink(), LogError),
        (lambda path: path.write_bytes(b""), CorruptLogError),
        (lambda path: path.write_bytes(b"no SQLite here"), CorruptLogError),
        (lambda path: newer(path), LogVersionError),
    ],
)
def test_what_is_no_log_is_an_error(
    log: Log, spoil: Callable[[Path], None], error: type[Exception]
) -> None:
    """Where there is nothing to check, an error says so."""
    log.close()
    spoil(log.path)
    with pytest.raises(error, match=r"events\.db: "):
        verify(log.path)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as con:
        con.execute("PRAGMA user_version = 2")


def test_rows_are_rows(log: Log) -> None:
    """What is checked are the rows as they are stored."""
    assert all(isinstance(row, Row) for row in rows(log.path))
