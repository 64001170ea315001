"""The file that a log is: its tables and triggers, its hash chain, its opening and its rows.

The hash of a row is sha256(hash of the writer's row before || `canonical(row)`); before the first
row it is `genesis(writer)`. `seq` is not part of it: a merge numbers anew. Triggers refuse UPDATE
and DELETE, but whoever can write the file can drop them: only the chain, and its head published
elsewhere, shows that.
"""

import errno
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from sqlite_utils import Database

from aiopt.errors import (
    ConcurrentWriteError,
    CorruptLogError,
    LogError,
    LogFullError,
    LogVersionError,
)

__all__ = [
    "APPLICATION_ID",
    "FORMAT",
    "INSERT",
    "SCHEMA",
    "Row",
    "all_rows",
    "canonical",
    "connect",
    "create",
    "explain",
    "genesis",
    "row_hash",
    "rows",
    "settle",
]

APPLICATION_ID = 0x61696F70  # "aiop"
FORMAT = 1
"""The log's format (`PRAGMA user_version`), apart from the version of the package."""

SCHEMA = (
    """CREATE TABLE event (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  stream TEXT NOT NULL,
  version INTEGER NOT NULL,
  type TEXT NOT NULL,
  schema_version INTEGER NOT NULL,
  writer INTEGER NOT NULL,
  wseq INTEGER NOT NULL,
  recorded_at TEXT NOT NULL,
  payload TEXT NOT NULL,
  hash BLOB NOT NULL
) STRICT""",
    "CREATE UNIQUE INDEX event_stream ON event (stream, version)",
    "CREATE UNIQUE INDEX event_writer ON event (writer, wseq)",
    """CREATE TABLE writer (
  id INTEGER PRIMARY KEY,
  began_at TEXT NOT NULL,
  place TEXT NOT NULL,
  aiopt_version TEXT NOT NULL
) STRICT""",
    """CREATE TRIGGER event_guard BEFORE INSERT ON event BEGIN
  SELECT RAISE(ABORT, 'event is append-only: this version of the stream is written') WHERE EXISTS
    (SELECT 1 FROM event WHERE stream = NEW.stream AND version = NEW.version);
  SELECT RAISE(ABORT, 'event is append-only: this wseq of the writer is written') WHERE EXISTS
    (SELECT 1 FROM event WHERE writer = NEW.writer AND wseq = NEW.wseq);
  SELECT RAISE(ABORT, 'event is append-only: this seq is written') WHERE EXISTS
    (SELECT 1 FROM event WHERE seq = NEW.seq);
END""",
    """CREATE TRIGGER event_no_update BEFORE UPDATE ON event BEGIN
  SELECT RAISE(ABORT, 'event is append-only: no UPDATE');
END""",
    """CREATE TRIGGER event_no_delete BEFORE DELETE ON event BEGIN
  SELECT RAISE(ABORT, 'event is append-only: no DELETE');
END""",
    """CREATE TRIGGER writer_guard BEFORE INSERT ON writer BEGIN
  SELECT RAISE(ABORT, 'writer is append-only: this id is taken') WHERE EXISTS
    (SELECT 1 FROM writer WHERE id = NEW.id);
END""",
    """CREATE TRIGGER writer_no_update BEFORE UPDATE ON writer BEGIN
  SELECT RAISE(ABORT, 'writer is append-only: no UPDATE');
END""",
    """CREATE TRIGGER writer_no_delete BEFORE DELETE ON writer BEGIN
  SELECT RAISE(ABORT, 'writer is append-only: no DELETE');
END""",
)

_COLUMNS = "seq, stream, version, type, schema_version, writer, wseq, recorded_at, payload, hash"
INSERT = f"INSERT INTO event ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PAGE = 1000
_BUSY_SECONDS = 30.0


class Row(NamedTuple):
    """One row of the table `event`, as it is stored."""

    seq: int
    stream: str
    version: int
    type: str
    schema_version: int
    writer: int
    wseq: int
    recorded_at: str
    payload: str
    hash: bytes


# ---- the chain ----


def genesis(writer: int) -> bytes:
    """What the first row of a writer hangs on."""
    return hashlib.sha256(f"aiopt log 1 {writer}".encode()).digest()


def canonical(
    stream: str,
    version: int,
    type_name: str,
    schema_version: int,
    writer: int,
    wseq: int,
    recorded_at: str,
    payload: str,
) -> bytes:
    """The bytes of a row that are hashed.

    Four numbers and three lengths (in characters), each followed by a blank, then the four texts
    without anything between them: two different rows never have the same bytes.
    """
    return (
        f"{writer} {wseq} {version} {schema_version} {len(stream)} {len(type_name)}"
        f" {len(recorded_at)} {stream}{type_name}{recorded_at}{payload}"
    ).encode()


def row_hash(previous: bytes, row: Row) -> bytes:
    """The hash that `row` must have after a row of the same writer whose hash is `previous`."""
    return hashlib.sha256(previous + canonical(*row[1:9])).digest()


# ---- opening ----


def explain(path: Path, error: sqlite3.Error | OSError | UnicodeDecodeError) -> LogError:
    """The exception of ours that says what SQLite or the system meant.

    A UnicodeDecodeError is what the sqlite3 module makes of a message about broken definitions.
    """
    code = getattr(error, "sqlite_errorcode", None) or 0
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_CANTOPEN
    elif isinstance(error, UnicodeDecodeError):
        code = sqlite3.SQLITE_CORRUPT
    elif code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
        code = sqlite3.SQLITE_FULL  # a quota, a limit on file size
    elif code == sqlite3.SQLITE_IOERR_SHORT_READ or (code == 0 and "UTF-8" in str(error)):
        code = sqlite3.SQLITE_CORRUPT
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return LogFullError(
                f"{path}: no room to write ({error}); nothing of this step was written and all that"
                " was there before is intact: free some space and go on"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
            return CorruptLogError(
                f"{path}: damaged ({error}); `aiopt verify` says what is left of it, and what can"
                " be read can be exported from it as it stands"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return ConcurrentWriteError(
                f"{path}: another process has kept it locked for {_BUSY_SECONDS:g} s ({error});"
                " one process at a time may write to a log: end the other one"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return LogError(
                f"{path}: cannot be opened or written ({error}); the file and its folder must be"
                " writable to add to a log: see `ls -ld` of both, or only read it"
            )
    return LogError(f"{path}: SQLite failed: {type(error).__name__}: {error}")


def _no_log(path: Path, what: str) -> CorruptLogError:
    return CorruptLogError(
        f"{path}: not a log, {what} where a SQLite file was expected;"
        " restore it from a copy, or move it away to begin a new log"
    )


def connect(path: Path, *, readonly: bool) -> tuple[Database, CorruptLogError | None]:
    """Open the log at `path` and check that it is one.

    Second of the pair: the damage that was found. Only a reader gets it, to read what is readable;
    a writer is refused with it.

    Nothing but SQLite may open the file, here or anywhere in a process that writes to it: closing
    any descriptor of a file drops all POSIX locks that the process has on it, SQLite's too
    (https://sqlite.org/howtocorrupt.html, section 2.2). The next stranger who closes the log then
    takes himself for the last one and removes the WAL under the writer.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise LogError(f"{path}: there is no log here") from None
    except OSError as error:
        raise explain(path, error) from error
    if size == 0:
        raise _no_log(path, "it is empty")
    uri = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rw'}"
    try:
        return _connect(path, uri, readonly)
    except sqlite3.OperationalError as error:
        # WAL wants to write beside the file, even to read. Where nobody can, nobody does.
        wal = path.with_name(f"{path.name}-wal")
        writable = os.access(path.parent, os.W_OK, effective_ids=True)
        if readonly and not writable and not wal.exists():
            with suppress(sqlite3.Error):
                return _connect(path, f"{uri}&immutable=1", readonly)
        raise explain(path, error) from error
    except sqlite3.Error as error:
        raise explain(path, error) from error


def _connect(path: Path, uri: str, readonly: bool) -> tuple[Database, CorruptLogError | None]:
    con = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    db = Database(con)
    try:
        damage = None
        try:
            con.execute("SELECT 1 FROM sqlite_master LIMIT 0")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise _no_log(path, "it begins with other bytes") from error
            found = explain(path, error)
            if not isinstance(found, CorruptLogError):
                raise
            if not readonly:
                raise found from error
            damage = found
            con.execute("PRAGMA writable_schema = ON")  # reads what is too short or half broken
        (application,) = con.execute("PRAGMA application_id").fetchone()
        (version,) = con.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise CorruptLogError(
                f"{path}: a SQLite file, but no aiopt log (application_id is {application},"
                f" expected {APPLICATION_ID}); was another file put in its place?"
            )
        if version < 1:
            raise CorruptLogError(
                f"{path}: damaged (its format is {version}, expected 1 to {FORMAT});"
                " restore it from a copy"
            )
        if version > FORMAT:
            raise LogVersionError(
                f"{path}: written in log format {version}, but this aiopt knows formats 1 to"
                f" {FORMAT}; upgrade aiopt"
            )
        if readonly:
            con.execute("PRAGMA query_only = ON")
        else:
            con.execute("PRAGMA synchronous = FULL")
            con.execute("PRAGMA recursive_triggers = ON")
            _migrate(con, version)
    except BaseException:
        db.close()
        raise
    return db, damage


MIGRATIONS: dict[int, Sequence[str]] = {}
"""format -> the statements that make the next format of it."""


def _migrate(con: sqlite3.Connection, version: int) -> None:
    while version < FORMAT:
        con.execute("BEGIN IMMEDIATE")
        for statement in MIGRATIONS[version]:
            con.execute(statement)
        version += 1
        con.execute(f"PRAGMA user_version = {version}")
        con.execute("COMMIT")


def settle(draft: Path, path: Path) -> bool:
    """Give a finished log its name, unless there is one by then; say whether it was given."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        draft.rename(path)
    return True


def create(path: Path) -> None:
    """Make an empty log at `path` if nothing is there: whole, or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return
        with closing(sqlite3.connect(draft, isolation_level=None)) as con:
            con.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            con.execute(f"PRAGMA user_version = {FORMAT}")
            con.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                con.execute(statement)
            con.execute("COMMIT")
            (mode,) = con.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise LogError(
                    f"{path}: this file system does not carry a write-ahead log (journal_mode is"
                    f" {mode}); keep the log on a local disk"
                )
        settle(draft, path)  # if somebody was faster, theirs is as good
    except (sqlite3.Error, OSError) as error:
        raise explain(path, error) from error
    finally:
        for name in (draft.name, f"{draft.name}-journal", f"{draft.name}-wal", f"{draft.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)


# ---- reading ----


def all_rows(db: Database, after_seq: int = 0) -> Iterator[Row]:
    """Yield the rows in the order of `seq`, in one transaction, up to what SQLite cannot read."""
    query = f"SELECT {_COLUMNS} FROM event WHERE seq > ? ORDER BY seq"
    return map(Row._make, db.execute(query, [after_seq]))


def rows(path: Path, after_seq: int = 0, stream: str | None = None) -> Iterator[Row]:
    """Yield the rows after `after_seq` that were there when the reading began, as they are stored.

    Reads in small transactions of its own: a slow reader holds nobody up, and never checkpoints.
    Raise CorruptLogError at the first row that cannot be read or is missing, after all before it.
    """
    db, damage = connect(path, readonly=True)
    with closing(db):
        until, last = 2**63 - 1, after_seq if stream is None else 0
        try:
            (until,) = db.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()
        except sqlite3.Error as error:
            damage = damage or _damage(path, error)
        key = "seq" if stream is None else "version"
        query = (
            f"SELECT {_COLUMNS} FROM event WHERE {key} > :last AND seq > :after AND seq <= :until"
            f"{'' if stream is None else ' AND stream = :stream'} ORDER BY {key} LIMIT {_PAGE}"
        )
        bound = {"after": after_seq, "until": until, "stream": stream}
        page: list[Row] | None = None
        while page is None or len(page) == _PAGE:
            page = []
            trouble: LogError | None = None
            try:
                page.extend(map(Row._make, db.execute(query, {**bound, "last": last})))
            except sqlite3.Error as error:
                trouble = _damage(path, error)
            for row in page:
                if stream is None and row.seq != last + 1:
                    raise CorruptLogError(
                        f"{path}: after seq {last} comes {row.seq}: rows are missing;"
                        " `aiopt verify` lists all that is wrong"
                    )
                yield row
                last = row.seq if stream is None else row.version
            if trouble is not None:
                raise trouble
        if damage is not None:
            raise damage


def _damage(path: Path, error: sqlite3.Error) -> CorruptLogError:
    found = explain(path, error)
    if not isinstance(found, CorruptLogError):
        raise found from error
    return found
