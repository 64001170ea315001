import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from sqlite_utils import Database

from aiopt import logfile
from aiopt.errors import (
    ConcurrentWriteError,
    CorruptLogError,
    LogError,
    LogFullError,
    LogVersionError,
    UnknownEventError,
)
from aiopt.events import Event, GatePassed, RunMeasured
from aiopt.log import Log, wal_bug_warning
from aiopt.logfile import INSERT, Row, canonical, create, genesis, row_hash, rows
from aiopt.verify import verify
from tests.factories import appends, make, ticking

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "kv" / "events.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    with Log.open(path, clock=ticking()) as log:
        yield log


def gates(*names: str) -> list[tuple[str, Event]]:
    return [("exp-0001~a", GatePassed(gate=name)) for name in names]


def raw(path: Path) -> sqlite3.Connection:
    """As somebody else's tool would open it: none of our PRAGMAs."""
    return sqlite3.connect(path, isolation_level=None)


# ---- what is appended is what is read ----


@settings(max_examples=50, deadline=None)
@given(appends())
def test_read_gives_what_was_appended(batches: list[list[tuple[str, Event]]]) -> None:
    """Reading gives back what append returned, whole, by stream, and from any place on."""
    with TemporaryDirectory() as folder, Log.open(Path(folder) / "events.db") as log:
        written = [recorded for batch in batches for recorded in log.append(batch)]
        assert [(r.stream, r.event) for r in written] == [item for b in batches for item in b]
        assert list(log.read()) == written
        assert [r.seq for r in written] == [r.wseq for r in written]
        assert [r.seq for r in written] == list(range(1, len(written) + 1))
        assert (log.count(), log.last_seq()) == (len(written), len(written))
        for after in range(len(written) + 2):
            assert list(log.read(after)) == written[after:]
        for stream, last in log.streams().items():
            mine = [r for r in written if r.stream == stream]
            assert list(log.read(stream=stream)) == mine
            assert list(log.read(1, stream)) == [r for r in mine if r.seq > 1]
            assert [r.version for r in mine] == list(range(1, last + 1))
        ends = {r.writer: (r.wseq, r.hash.hex()) for r in written}
        assert log.head() == ends
        assert verify(log.path).ok or written  # blobs of arbitrary events are not there
        assert {problem.kind for problem in verify(log.path).problems} <= {"blob"}


def test_a_long_log_is_read_in_pages(log: Log) -> None:
    """More events than fit a page come back in order, whole and by stream."""
    for _ in range(5):
        log.append([(f"s{n % 2}", GatePassed(gate=str(n))) for n in range(500)])
    assert [r.seq for r in log.read()] == list(range(1, 2501))
    assert [r.version for r in log.read(stream="s1")] == list(range(1, 1251))
    assert [r.seq for r in log.read(1990, "s1")] == list(range(1992, 2501, 2))


def test_reading_ends_where_the_log_ended_when_it_began(log: Log) -> None:
    """What is appended during a read is not chased."""
    log.append(gates("a", "b"))
    reading = log.read()
    next(reading)
    log.append(gates("c"))
    assert [r.event for r in reading] == [GatePassed(gate="b")]


def test_appending_nothing_writes_nothing(log: Log) -> None:
    """An empty append is no transaction and no event."""
    assert log.append([]) == []
    assert log.count() == 0
    assert log.head() == {}


def test_the_clock_is_asked_once_per_append(path: Path) -> None:
    """All events of one append have one time, in UTC, from the clock that was given."""
    zone = timezone(timedelta(hours=2))
    with Log.open(path, clock=lambda: datetime(2026, 5, 4, 3, 2, 1, tzinfo=zone)) as log:
        written = log.append(gates("a", "b"))
    assert {r.recorded_at for r in written} == {"2026-05-04T01:02:01.000000+00:00"}
    with Log.open(path) as log:
        (recorded,) = log.append(gates("c"))
    assert abs(datetime.fromisoformat(recorded.recorded_at) - datetime.now(UTC)).seconds < 60


def test_it_goes_on_where_it_ended(path: Path) -> None:
    """A log that is opened again in its place goes on with the same writer and the same chain."""
    with Log.open(path) as log:
        (first,) = log.append(gates("a"))
    with Log.open(str(path)) as log:
        (second,) = log.append(gates("b"))
    assert (second.seq, second.version, second.wseq) == (2, 2, 2)
    assert second.writer == first.writer
    assert verify(path).ok


def test_a_reader_reads(path: Path) -> None:
    """A log can be opened to be read while it is written, and refuses to be written then."""
    with Log.open(path) as log, Log.open(path, readonly=True) as reader:
        log.append(gates("a"))
        assert list(reader.read()) == list(log.read())
        assert (reader.count(), reader.head(), reader.writer) == (1, log.head(), 0)
        with pytest.raises(LogError, match="opened to be read"):
            reader.append(gates("b"))
        with pytest.raises(LogError, match="opened to be read"):
            reader.new_stream("exp")


def test_threads_take_turns(log: Log) -> None:
    """Appends from several threads are in order and complete."""
    threads = [
        threading.Thread(
            target=lambda n=n: [log.append([(f"s{n}", GatePassed(gate="x"))]) for _ in range(20)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.streams() == {f"s{n}": 20 for n in range(4)}
    assert verify(log.path).ok


# ---- the chain ----


def test_the_hash_is_as_documented(log: Log) -> None:
    """Anybody can compute the chain from the rows and a sha256."""
    import hashlib

    a, b = log.append(gates("a", "ü"))
    start = hashlib.sha256(f"aiopt log 1 {log.writer}".encode()).digest()
    at = a.recorded_at
    assert len(at) == 32
    text = f"{log.writer} 1 1 1 10 10 32 exp-0001~aGatePassed{at}" + '{"gate":"a"}'
    assert a.hash == hashlib.sha256(start + text.encode()).digest()
    text = f"{log.writer} 2 2 1 10 10 32 exp-0001~aGatePassed{at}" + '{"gate":"ü"}'
    assert b.hash == hashlib.sha256(a.hash + text.encode()).digest()
    first, second = rows(log.path)
    assert (row_hash(genesis(log.writer), first), row_hash(first.hash, second)) == (a.hash, b.hash)


def test_the_hashed_bytes_are_unambiguous() -> None:
    """Moving a character or a digit from one column to its neighbour changes the bytes."""
    base = ("ab", 1, "cd", 1, 11, 1, "ef", "gh")
    others = [
        ("abc", 1, "d", 1, 11, 1, "ef", "gh"),
        ("ab", 1, "cde", 1, 11, 1, "f", "gh"),
        ("ab", 1, "cd", 1, 11, 1, "efg", "h"),
        ("ab", 1, "cd", 1, 1, 11, "ef", "gh"),
        ("ab", 11, "cd", 1, 11, 1, "ef", "gh"),
        ("ab", 1, "cd", 11, 1, 1, "ef", "gh"),
        ("2 ab", 1, "cd", 1, 11, 1, "ef", "gh"),
    ]
    assert len({canonical(*row) for row in [base, *others]}) == len(others) + 1


# ---- writers ----


def test_a_copy_is_another_writer(path: Path, tmp_path: Path) -> None:
    """A copied log goes on under a new number; the original keeps its own."""
    with Log.open(path) as log:
        log.append(gates("a"))
        original = log.writer
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    with Log.open(copy) as log:
        assert log.writer != original
        (recorded,) = log.append(gates("b"))
        assert (recorded.seq, recorded.version, recorded.wseq) == (2, 2, 1)
    with Log.open(path) as log:
        assert log.writer == original
    assert verify(copy).ok


def test_a_log_to_which_nothing_is_added_stays_as_it_is(path: Path) -> None:
    """Also a copy, whose writer is another one from its first event on."""
    with Log.open(path) as log:
        log.append([("exp-0001~a", GatePassed(gate="test"))])
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    before = copy.read_bytes()
    with Log.open(copy) as log:
        other = log.writer
    assert copy.read_bytes() == before
    with Log.open(copy) as log:
        assert log.writer != other
        (recorded,) = log.append([("exp-0001~a", GatePassed(gate="test"))])
        assert recorded.writer == log.writer
    with Log.open(copy) as log:
        assert log.writer == recorded.writer


def test_a_renamed_log_is_the_same_writer(path: Path) -> None:
    """Moving a log within its file system changes nothing."""
    with Log.open(path) as log:
        writer = log.writer
        log.append([("exp-0001~a", GatePassed(gate="test"))])
    with Log.open(path.rename(path.with_name("other.db"))) as log:
        assert log.writer == writer


def test_another_machine_is_another_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same inode on another machine is another place, and so it is without a machine id."""
    with Log.open(path) as log:
        writer = log.writer
    monkeypatch.setattr(Path, "read_text", lambda self: "another machine\n")
    with Log.open(path) as log:
        second = log.writer

    def nothing(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nothing)
    with Log.open(path) as log:
        assert len({writer, second, log.writer}) == 3


def test_the_place_is_not_told(path: Path) -> None:
    """The log tells neither the machine's id nor its name."""
    with Log.open(path) as log:
        log.append(gates("a"))
    with closing(raw(path)) as con:
        ((_, began_at, place, version),) = con.execute("SELECT * FROM writer")
    assert len(place) == 32
    assert int(place, 16)
    assert began_at.endswith("+00:00")
    assert version


# ---- names of streams ----


def test_streams_are_numbered(path: Path) -> None:
    """Numbers go up per kind, over what was given out and what any writer has written."""
    with Log.open(path) as log:
        first, second, other = log.new_stream("exp"), log.new_stream("exp"), log.new_stream("run")
        assert [name.partition("~")[0] for name in (first, second, other)] == [
            "exp-0001",
            "exp-0002",
            "run-0001",
        ]
        log.append([("exp-0041~other", GatePassed(gate="x")), ("exp-odd", GatePassed(gate="x"))])
        assert log.new_stream("exp").startswith("exp-0042~")
    with Log.open(path) as log:
        assert log.new_stream("exp").startswith("exp-0042~")
        with pytest.raises(ValueError, match="no kind of stream"):
            log.new_stream("exp-1~")


# ---- two writers at once ----


def test_a_second_writer_is_told_apart(path: Path) -> None:
    """Whoever was overtaken is told by whom, writes nothing, and can go on after reading."""
    with Log.open(path) as one, Log.open(path) as two:
        one.append(gates("a", "b"))
        with pytest.raises(ConcurrentWriteError, match=r"exp-0001~a version 1 .*seq 1 to 2.*again"):
            two.append(gates("c"))
        two.append(gates("c"))
        with pytest.raises(ConcurrentWriteError, match=r"other version 1 .*seq 3 to 3"):
            one.append([("other", GatePassed(gate="d"))])
        one.append(gates("d"))
        assert [r.event for r in one.read()] == [GatePassed(gate=g) for g in "abcd"]
    assert verify(path).ok


def test_two_processes_append(path: Path) -> None:
    """Two processes that append as fast as they can lose nothing and never interleave a step."""
    program = (
        "import sys\n"
        "from aiopt.errors import ConcurrentWriteError\n"
        "from aiopt.events import GatePassed\n"
        "from aiopt.log import Log\n"
        "with Log.open(sys.argv[1]) as log:\n"
        "    done = 0\n"
        "    while done < 100:\n"
        "        try:\n"
        "            gate = f'{sys.argv[2]} {done}'\n"
        "            log.append([(s, GatePassed(gate=gate)) for s in ('x', 'y', 'x')])\n"
        "            done += 1\n"
        "        except ConcurrentWriteError:\n"
        "            pass\n"
    )
    create(path)
    argv = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen([*argv, name], cwd=ROOT) for name in ("one", "two")]
    assert [process.wait(60) for process in processes] == [0, 0]
    with Log.open(path, readonly=True) as log:
        found = [recorded.event for recorded in log.read()]
    steps = [found[n : n + 3] for n in range(0, len(found), 3)]
    assert all(len(set(step)) == 1 for step in steps)
    names = {step[0].gate for step in steps if isinstance(step[0], GatePassed)}
    assert names == {f"{name} {n}" for name in ("one", "two") for n in range(100)}
    assert verify(path).ok


def test_a_lock_that_stays_is_reported(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that another program keeps locked is a ConcurrentWriteError, and passes."""
    log._db.execute("PRAGMA busy_timeout = 10")
    with closing(raw(log.path)) as con:
        con.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConcurrentWriteError, match="locked"):
            log.append(gates("a"))
    log.append(gates("a"))


# ---- attacks with another tool ----


ATTACKS = {
    "update": "UPDATE event SET payload = '{}' WHERE seq = 1",
    "update or ignore": "UPDATE OR IGNORE event SET seq = 2 WHERE seq = 1",
    "update or replace": "UPDATE OR REPLACE event SET seq = 2 WHERE seq = 1",
    "delete": "DELETE FROM event WHERE seq = 2",
    "delete all": "DELETE FROM event",
    "upsert": "INSERT INTO event VALUES (1,'s',9,'t',1,1,9,'','{}',x'00')"
    " ON CONFLICT DO UPDATE SET payload = 'x'",
    "upsert nothing": "INSERT INTO event VALUES (1,'s',9,'t',1,1,9,'','{}',x'00')"
    " ON CONFLICT DO NOTHING",
    "replace seq": "INSERT OR REPLACE INTO event VALUES (1,'s',9,'t',1,1,9,'','{}',x'00')",
    "replace version": "INSERT OR REPLACE INTO event"
    " VALUES (NULL,'exp-0001~a',1,'t',1,1,9,'','{}',x'00')",
    "replace wseq": "INSERT OR REPLACE INTO event"
    " SELECT NULL,'s',9,'t',1,id,1,'','{}',x'00' FROM writer",
    "ignore seq": "INSERT OR IGNORE INTO event VALUES (1,'s',9,'t',1,1,9,'','{}',x'00')",
    "ignore version": "INSERT OR IGNORE INTO event"
    " VALUES (NULL,'exp-0001~a',1,'t',1,1,9,'','{}',x'00')",
    "ignore wseq": "INSERT OR IGNORE INTO event"
    " SELECT NULL,'s',9,'t',1,id,1,'','{}',x'00' FROM writer",
    "update writer": "UPDATE writer SET place = ''",
    "delete writer": "DELETE FROM writer",
    "replace writer": "INSERT OR REPLACE INTO writer SELECT id, '', '', '' FROM writer",
    "ignore writer": "INSERT OR IGNORE INTO writer SELECT id, '', '', '' FROM writer",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_is_changed_by_other_tools(log: Log, attack: str) -> None:
    """Every way to change or replace a row is refused on a connection that is not ours."""
    log.append(gates("a", "b"))
    with closing(raw(log.path)) as con:
        before = list(con.execute("SELECT * FROM event"))
        writers = list(con.execute("SELECT * FROM writer"))
        with pytest.raises(sqlite3.IntegrityError, match="is append-only"):
            con.execute(attack)
        assert list(con.execute("SELECT * FROM event")) == before
        assert list(con.execute("SELECT * FROM writer")) == writers


def test_every_refusal_says_which(log: Log) -> None:
    """Each trigger has a text of its own."""
    log.append(gates("a", "b"))
    texts = set()
    with closing(raw(log.path)) as con:
        for attack in ATTACKS.values():
            with pytest.raises(sqlite3.IntegrityError) as caught:
                con.execute(attack)
            assert caught.value.sqlite_errorname == "SQLITE_CONSTRAINT_TRIGGER"
            texts.add(str(caught.value))
    assert len(texts) == 8


# ---- killed ----


APPENDER = """
import sys
from aiopt.events import GatePassed
from aiopt.log import Log
with Log.open(sys.argv[1]) as log:
    if sys.argv[2] == "control":
        class NoTransaction:
            in_transaction = False
            def __init__(self, con): self.con = con
            def execute(self, sql, *rest):
                if sql not in ("BEGIN IMMEDIATE", "COMMIT"): return self.con.execute(sql, *rest)
            def executemany(self, sql, rows):
                for row in rows: self.con.execute(sql, row)
        class Db:
            conn = NoTransaction(log._db.conn)
        log._db = Db
    step = 0
    while True:
        written = log.append([("s", GatePassed(gate=str(n))) for n in range(12)])
        print(written[-1].seq, flush=True)
"""


def kill_while_appending(path: Path, mode: str, delay: float) -> tuple[int, int]:
    """Return (last acknowledged seq, last seq in the log)."""
    argv = [sys.executable, "-c", APPENDER, str(path), mode]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        rest = process.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else 12
        assert process.wait() == -signal.SIGKILL
    with Log.open(path, readonly=True) as log:
        return acknowledged, log.last_seq()


@pytest.mark.slow
def test_killed_while_appending(tmp_path: Path) -> None:
    """kill -9 loses nothing that was acknowledged and leaves no half of a step.

    The control without a transaction must leave halves, or this test has no power.
    """
    path = tmp_path / "events.db"
    delays = [0.0007 * n for n in range(15)]
    for delay in delays:
        acknowledged, last = kill_while_appending(path, "real", delay)
        assert acknowledged <= last
        assert last % 12 == 0
        assert verify(path).ok
    torn = 0
    for n, delay in enumerate(delays):
        _, last = kill_while_appending(tmp_path / f"{n}.db", "control", delay)
        torn += last % 12 != 0
    assert torn


def test_a_reader_after_a_kill_never_checkpoints(path: Path) -> None:
    """Reading a log whose writer was killed gives everything and does not touch the file."""
    program = (
        "import os, sys\n"
        "from aiopt.events import GatePassed\n"
        "from aiopt.log import Log\n"
        "Log.open(sys.argv[1]).append([('s', GatePassed(gate='x'))] * 100)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    wal = path.with_name("events.db-wal")
    before = path.read_bytes(), wal.read_bytes()
    assert before[1]
    with Log.open(path, readonly=True) as log:
        assert len(list(log.read())) == 100
        assert log.count() == 100
    assert verify(path).ok
    assert (path.read_bytes(), wal.read_bytes()) == before


# ---- no room ----


def test_a_full_log_is_as_it_was(log: Log) -> None:
    """Without room an append fails as a whole; with room again the log goes on."""
    log.append(gates("a"))
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages}")
    big = [("big", make(RunMeasured, texts={"x": "y" * 1000})) for _ in range(100)]
    with pytest.raises(LogFullError, match="no room to write"):
        log.append(big)
    assert log.count() == 1
    log._db.execute("PRAGMA max_page_count = 1000000")
    assert [r.seq for r in log.append(gates("b"))] == [2]
    assert verify(log.path).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    """On a disk that is really full an append fails as a whole, and goes on when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("may not mount")
    try:
        with Log.open(disk / "events.db") as log:
            log.append(gates("a"))
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
            with pytest.raises(LogFullError, match="no room to write"):
                log.append([("big", make(RunMeasured, texts={"x": "y" * 9000}))] * 20)
            with pytest.raises(LogFullError):
                Log.open(disk / "other.db")
            assert sorted(p.name for p in disk.iterdir() if "other" in p.name) == []
            ballast.unlink()
            log.append(gates("b"))
            assert log.count() == 2
        assert verify(disk / "events.db").ok
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_limit_on_file_size_is_no_room(path: Path) -> None:
    """RLIMIT_FSIZE (a quota is alike) is LogFullError too, and leaves the log intact."""
    program = (
        "import resource, sys\n"
        "from aiopt.errors import LogFullError\n"
        "from aiopt.events import GatePassed\n"
        "from aiopt.log import Log\n"
        "with Log.open(sys.argv[1]) as log:\n"
        "    log.append([('s', GatePassed(gate='x'))])\n"
        "    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))\n"
        "    try:\n"
        "        log.append([('s', GatePassed(gate='x' * 9000))] * 50)\n"
        "    except LogFullError:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "        log.append([('s', GatePassed(gate='y'))])\n"
        "        sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert done.returncode == 7
    with Log.open(path, readonly=True) as log:
        assert [r.event for r in log.read()] == [GatePassed(gate="x"), GatePassed(gate="y")]
    assert verify(path).ok


def test_an_event_that_json_cannot_hold_writes_nothing(log: Log) -> None:
    """A bad event in the middle of a step leaves the log as it was."""
    with pytest.raises(ValueError, match="finite"):
        log.append([*gates("a"), ("s", make(RunMeasured, covariates={"x": float("nan")}))])
    assert [r.seq for r in log.append(gates("b"))] == [1]


def test_an_interrupted_append_writes_nothing(log: Log) -> None:
    """Whatever breaks an append in the middle, nothing of it is kept and the log goes on."""
    steps = iter([0] * 20 + [1])
    log._db.conn.set_progress_handler(lambda: next(steps, 0), 10)
    with pytest.raises(LogError, match="interrupted"):
        log.append(gates("a", "b", "c", "d"))
    assert next(steps, None) is None
    assert [r.seq for r in log.append(gates("b"))] == [1]


def test_an_append_that_is_not_ours_to_explain(log: Log) -> None:
    """Ctrl-C in the middle of an append stays Ctrl-C, and nothing of the step is kept."""

    def stop() -> None:
        raise KeyboardInterrupt

    class Items(list[tuple[str, Event]]):
        def __iter__(self) -> Iterator[tuple[str, Event]]:
            yield from gates("a")
            stop()

    with pytest.raises(KeyboardInterrupt):
        log.append(Items())
    assert [r.seq for r in log.append(gates("b"))] == [1]


# ---- what is no log, or damaged ----


def test_nothing_to_read(path: Path) -> None:
    """Reading where there is no log says so and makes none."""
    with pytest.raises(LogError, match="there is no log here"):
        Log.open(path, readonly=True)
    assert not path.exists()


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("content", [b"", b"SQLite", b"\0" * 4096, b"# a text\n" * 100])
def test_what_is_no_sqlite_file_is_refused(path: Path, content: bytes, readonly: bool) -> None:
    """A file that is empty, zeroed or something else is CorruptLogError, and stays as it is."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(CorruptLogError, match="not a log, it "):
        Log.open(path, readonly=readonly)
    assert path.read_bytes() == content


def test_another_database_is_refused(path: Path) -> None:
    """A SQLite file of another program is CorruptLogError that says so."""
    path.parent.mkdir(parents=True)
    with closing(raw(path)) as con:
        con.execute("CREATE TABLE t (x)")
    with pytest.raises(CorruptLogError, match="no aiopt log"):
        Log.open(path)


def test_a_newer_log_is_refused(log: Log) -> None:
    """A log of a newer format is LogVersionError that says what to do, also for a reader."""
    log.close()
    with closing(raw(log.path)) as con:
        con.execute("PRAGMA user_version = 2")
    for readonly in (True, False):
        with pytest.raises(LogVersionError, match=r"log format 2.*1 to 1.*upgrade"):
            Log.open(log.path, readonly=readonly)


def test_an_older_log_is_migrated(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of an older format is brought to the current one by a writer, step by step."""
    log.append(gates("a"))
    log.close()
    monkeypatch.setattr(logfile, "FORMAT", 3)
    monkeypatch.setattr(
        logfile, "MIGRATIONS", {1: ["CREATE TABLE a (x)"], 2: ["ALTER TABLE a RENAME TO b"]}
    )
    with Log.open(log.path, readonly=True) as reader:
        assert reader.count() == 1
    with Log.open(log.path) as writer:
        assert writer._db.execute("PRAGMA user_version").fetchone() == (3,)
        assert writer._db.execute("SELECT count(*) FROM b").fetchone() == (0,)
        assert writer.count() == 1


def test_a_truncated_log_gives_what_is_left(path: Path) -> None:
    """A log that was cut short is not written to; a reader gets all rows before the damage."""
    with Log.open(path) as log:
        for n in range(50):
            log.append([("s", GatePassed(gate=f"{n} {'x' * 200}"))] * 20)
    size = path.stat().st_size
    os.truncate(path, size // 2 // 4096 * 4096)
    with pytest.raises(CorruptLogError, match="damaged"):
        Log.open(path)
    with Log.open(path, readonly=True) as log:
        read: list[int] = []
        with pytest.raises(CorruptLogError, match="damaged"):
            read.extend(recorded.seq for recorded in log.read())
        assert 200 < len(read) < 1000
        assert read == list(range(1, len(read) + 1))
        with pytest.raises(CorruptLogError):
            log.count()


def test_a_broken_page_gives_what_is_before_it(path: Path) -> None:
    """Reading stops at the damage with CorruptLogError, after everything before it."""
    with Log.open(path) as log:
        for n in range(50):
            log.append([("s", GatePassed(gate=f"{n} {'x' * 200}"))] * 20)
    data = bytearray(path.read_bytes())
    place = data.index(b'{"gate":"30 x')
    start = place // 4096 * 4096
    data[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    read: list[int] = []
    with Log.open(path, readonly=True) as log, pytest.raises(CorruptLogError, match="damaged"):
        read.extend(recorded.seq for recorded in log.read())
    assert 500 < len(read) <= 600
    assert read == list(range(1, len(read) + 1))


@pytest.mark.parametrize(
    ("new", "match"),
    [
        (b'{"gate":"b\xffb"}', "UTF-8"),
        (b'{"gate":"bbb" ]', r"seq 2 \(exp-0001~a version 2\): the payload is no GatePassed"),
    ],
)
def test_a_flipped_byte_is_found_where_it_is(log: Log, new: bytes, match: str) -> None:
    """An event that cannot be read names its place, after the events before it."""
    log.append([*gates("aaa"), *gates("bbb ")])
    log.close()
    data = log.path.read_bytes()
    old = b'{"gate":"bbb "}'
    assert data.count(old) == 1
    log.path.write_bytes(data.replace(old, new.ljust(len(old))))
    reading = log.read()
    assert next(reading).event == GatePassed(gate="aaa")
    with pytest.raises(CorruptLogError, match=match):
        next(reading)


def test_an_unknown_event_names_its_place(log: Log) -> None:
    """An event of a newer aiopt is UnknownEventError in its place, after the events before it."""
    log.append(gates("a", "b"))
    with closing(raw(log.path)) as con:
        con.execute("DROP TRIGGER event_no_update")
        con.execute("UPDATE event SET type = 'GateParsed' WHERE seq = 2")
    reading = log.read()
    assert next(reading).event == GatePassed(gate="a")
    with pytest.raises(UnknownEventError, match=r"seq 2 \(exp.* 2\): .*GateParsed.*upgrade"):
        next(reading)


def test_missing_rows_stop_the_reading(log: Log) -> None:
    """A hole in the log is not read over."""
    log.append(gates("a", "b", "c"))
    with closing(raw(log.path)) as con:
        con.execute("DROP TRIGGER event_no_delete")
        con.execute("DELETE FROM event WHERE seq = 2")
    reading = log.read()
    assert next(reading).seq == 1
    with pytest.raises(CorruptLogError, match="after seq 1 comes 3"):
        next(reading)
    with pytest.raises(CorruptLogError, match="after seq 1 comes 3"):
        list(log.read(1))


# ---- where nobody may write ----


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_is_read_only(as_nobody: None) -> None:
    """A log in a folder that is read-only can be read, and says why it cannot be written."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with Log.open(folder / "events.db") as log:
            log.append(gates("a"))
        (folder / "events.db").chmod(0o444)
        folder.chmod(0o555)
        try:
            with Log.open(folder / "events.db", readonly=True) as log:
                assert log.count() == 1
                assert len(list(log.read())) == 1
            with pytest.raises(LogError, match="must be writable"):
                Log.open(folder / "events.db")
            with pytest.raises(LogError, match="must be writable"):
                Log.open(folder / "new.db")
            with pytest.raises(LogError, match="must be writable"):
                Log.open(folder / "more" / "new.db")
        finally:
            folder.chmod(0o755)


def test_a_file_that_may_not_be_read(as_nobody: None) -> None:
    """A log that may not be read says so."""
    with TemporaryDirectory() as name:
        path = Path(name) / "events.db"
        create(path)
        path.chmod(0)
        with pytest.raises(LogError, match="cannot be opened"):
            Log.open(path, readonly=True)


# ---- creating ----


def test_a_log_is_there_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while a log is made leaves nothing behind."""
    monkeypatch.setattr(logfile, "SCHEMA", (*logfile.SCHEMA, "CREATE NONSENSE"))
    with pytest.raises(LogError, match="SQLite failed"):
        Log.open(path)
    assert list(path.parent.iterdir()) == []


def test_the_faster_one_wins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that make a log at once, the second uses what the first has made."""
    real = os.link

    def link(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", real)
        with Log.open(path) as log:
            log.append(gates("first"))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with Log.open(path) as log:
        assert log.count() == 1
    assert [p.name for p in path.parent.iterdir()] == ["events.db"]


@pytest.mark.parametrize("late", [True, False])
def test_a_file_system_without_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Where there are no hard links a log is made all the same, and none is overwritten."""

    def link(*_: object) -> None:
        if late:
            path.write_bytes(b"")
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    create(path)
    assert [p.name for p in path.parent.iterdir()] == ["events.db"]
    assert (path.stat().st_size == 0) == late


def test_a_file_system_without_shared_memory_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLite cannot keep a write-ahead log, no log is made."""

    class Refusing(sqlite3.Connection):
        def execute(self, sql: str, *rest: object) -> sqlite3.Cursor:
            return super().execute("SELECT 'delete'" if "journal_mode" in sql else sql)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=Refusing))
    with pytest.raises(LogError, match="does not carry a write-ahead log"):
        create(path)
    assert list(path.parent.iterdir()) == []


def test_the_file_says_what_it_is(log: Log) -> None:
    """Format, application, journal and definitions are as promised."""
    log.append(gates("a"))
    with closing(raw(log.path)) as con:
        found = {
            name: con.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "journal_mode")
        }
        assert found == {"application_id": 0x61696F70, "user_version": 1, "journal_mode": "wal"}
        assert con.execute("SELECT seq FROM sqlite_sequence WHERE name='event'").fetchone() == (1,)
    synchronous, recursive = (
        log._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "recursive_triggers")
    )
    assert (synchronous, recursive) == (2, 1)


def test_the_insert_fits_the_row() -> None:
    """Rows are stored in the order in which they are read."""
    columns = INSERT.partition("(")[2].partition(")")[0].split(", ")
    assert tuple(columns) == Row._fields
    with closing(Database(memory=True)) as db:
        for statement in logfile.SCHEMA:
            db.execute(statement)
        assert tuple(column.name for column in db.table("event").columns) == Row._fields


def test_errors_on_closed_logs(log: Log) -> None:
    """A log that was closed fails as a LogError, whatever is asked of it."""
    log.close()
    for ask in (log.count, log.last_seq, log.head, log.streams, lambda: log.append(gates("a"))):
        with pytest.raises(LogError, match="SQLite failed"):
            ask()


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ("3.6.23", False),
        ("3.7.0", True),
        ("3.40.1", True),
        ("3.44.5", True),
        ("3.44.6", False),
        ("3.45.0", True),
        ("3.50.6", True),
        ("3.50.7", False),
        ("3.51.2", True),
        ("3.51.3", False),
        ("3.52.0", False),
        ("4.0.0", False),
    ],
)
def test_the_wal_bug_is_known_by_version(version: str, warned: bool) -> None:
    """Exactly the versions with the WAL-reset bug are warned of, and the text says "may"."""
    warning = wal_bug_warning(version)
    assert (warning is not None) == warned
    if warning is not None:
        assert f"SQLite {version} may" in warning
