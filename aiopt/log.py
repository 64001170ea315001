"""The event log: one SQLite file, to which rows are added and from which nothing is taken.

A row is an event in its place: `seq` in the file, (`stream`, `version`) among its own, (`writer`,
`wseq`) in the hash chain of whoever wrote it. `Log.append` is the only place where time, ids and
positions are given out. One process writes at a time (`aiopt.lease`), any number may read.

A writer is one file on one machine. A log that was copied or moved begins a new writer when it is
opened for writing, so that copies which both go on can be told apart and merged.
"""

import hashlib
import platform
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlite_utils import Database

from aiopt import __version__, codec, ids
from aiopt.errors import ConcurrentWriteError, CorruptLogError, LogError, UnknownEventError
from aiopt.events import Event, Recorded
from aiopt.logfile import INSERT, Row, canonical, connect, create, explain, genesis, rows

__all__ = ["Log", "recorded", "utc_now", "wal_bug_warning"]

_KIND = re.compile(r"[a-z][a-z0-9]*")
_NUMBERED = re.compile(r"([a-z][a-z0-9]*)-([0-9]+)~")


def utc_now() -> datetime:
    """The clock of a log that was given none."""
    return datetime.now(UTC)


def recorded(path: Path, row: Row) -> Recorded:
    """The event of a row in its place.

    Raise UnknownEventError or CorruptLogError that name the row.
    """
    try:
        event = codec.decode(row.type, row.schema_version, row.payload)
    except (UnknownEventError, CorruptLogError) as error:
        where = f"{path}: seq {row.seq} ({row.stream} version {row.version})"
        raise type(error)(f"{where}: {error}") from error
    return Recorded(
        seq=row.seq,
        stream=row.stream,
        version=row.version,
        writer=row.writer,
        wseq=row.wseq,
        recorded_at=row.recorded_at,
        hash=row.hash,
        event=event,
    )


class Log:
    """An open log. Close it, or use it as a context manager.

    May be used from several threads; every append is one transaction.
    """

    def __init__(self, path: Path, db: Database, clock: Callable[[], datetime]) -> None:
        self.path = path
        self.writer = 0
        """The number under which this log appends; 0: it was opened to be read."""
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._new_writer: tuple[int, str, str, str] | None = None

    @classmethod
    def open(
        cls, path: Path | str, *, readonly: bool = False, clock: Callable[[], datetime] = utc_now
    ) -> Self:
        """Open the log at `path`; one that is opened for writing is created if it is not there.

        Raise CorruptLogError (no log, or damaged beyond what may be added to), LogVersionError (a
        newer format), LogFullError, or LogError (nothing there to be read; not writable).
        """
        path = Path(path)
        if not readonly:
            create(path)
        db, _ = connect(path, readonly=readonly)
        log = cls(path, db, clock)
        if not readonly:
            try:
                log.writer = log._find_writer()
                log._refresh()
            except sqlite3.Error as error:
                db.close()
                raise explain(path, error) from error
        return log

    def _find_writer(self) -> int:
        """The writer of this file on this machine. A new one is written down with its first event,
        so that a log to which nothing is added stays as it is.
        """
        place = _place(self.path)
        found = self._db.execute("SELECT id FROM writer WHERE place = ?", [place]).fetchone()
        if found is None:
            found = (secrets.randbelow(2**31 - 1) + 1,)
            self._new_writer = (*found, _stamp(self._clock()), place, __version__)
        return int(found[0])

    def _refresh(self) -> None:
        """Learn from the file where it ends."""
        self._versions = self.streams()
        for stream in self._versions:
            self._count(stream)
        end = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
        self._seq = end[0] if end else 0
        self._wseq, self._hash = self._end(self.writer) or (0, genesis(self.writer))

    def _count(self, stream: str) -> None:
        """Remember the highest number of each kind of stream."""
        match = _NUMBERED.match(stream)
        if match:
            self._numbers[match[1]] = max(self._numbers.get(match[1], 0), int(match[2]))

    def _end(self, writer: int) -> tuple[int, bytes] | None:
        query = "SELECT wseq, hash FROM event WHERE writer = ? ORDER BY wseq DESC LIMIT 1"
        end: tuple[int, bytes] | None = self._db.execute(query, [writer]).fetchone()
        return end

    def _must_be_writer(self) -> None:
        if not self.writer:
            raise LogError(f"{self.path}: was opened to be read; open it for writing to add to it")

    def append(self, items: Sequence[tuple[str, Event]]) -> list[Recorded]:
        """Write the events, each to its stream, in one transaction: all of them or none.

        Raise ConcurrentWriteError if somebody else has written since, LogFullError if there is no
        room, ValueError if an event holds what JSON cannot. The log is then as it was before.
        """
        with self._lock:
            self._must_be_writer()
            at = _stamp(self._clock())
            writer, seq, wseq, previous = self.writer, self._seq, self._wseq, self._hash
            versions: dict[str, int] = {}
            batch: list[tuple[Any, ...]] = []
            result: list[Recorded] = []
            encode, sha256, known = codec.encode, hashlib.sha256, self._versions
            new = tuple.__new__
            for stream, event in items:
                name, schema_version, payload = encode(event)
                seq += 1
                wseq += 1
                version = (versions.get(stream) or known.get(stream, 0)) + 1
                versions[stream] = version
                text = canonical(stream, version, name, schema_version, writer, wseq, at, payload)
                previous = sha256(previous + text).digest()
                place = (seq, stream, version, writer, wseq, at, previous, event)
                result.append(new(Recorded, place))
                batch.append(
                    (
                        seq,
                        stream,
                        version,
                        name,
                        schema_version,
                        writer,
                        wseq,
                        at,
                        payload,
                        previous,
                    )
                )
            if not batch:
                return result
            con = self._db.conn
            try:
                con.execute("BEGIN IMMEDIATE")
                if self._new_writer is not None:
                    con.execute("INSERT INTO writer VALUES (?, ?, ?, ?)", self._new_writer)
                con.executemany(INSERT, batch)
                con.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    if con.in_transaction:
                        con.execute("ROLLBACK")
                if isinstance(error, sqlite3.IntegrityError):
                    raise self._overtaken(batch) from error
                if isinstance(error, sqlite3.Error):
                    raise explain(self.path, error) from error
                raise
            self._seq, self._wseq, self._hash = seq, wseq, previous
            self._new_writer = None
            for stream in versions:
                if stream not in known:
                    self._count(stream)
            known.update(versions)
            return result

    def _overtaken(self, batch: Sequence[tuple[Any, ...]]) -> ConcurrentWriteError:
        before = self._seq
        self._refresh()
        stream, version = batch[0][1:3]
        for _, name, number, *_ in batch:
            if number <= self._versions.get(name, 0):
                stream, version = name, number
                break
        return ConcurrentWriteError(
            f"{self.path}: {stream} version {version} was not written: another process has added"
            f" seq {before + 1} to {self._seq} meanwhile; end it (one process at a time may write),"
            " read what it wrote, and try again"
        )

    def read(self, after_seq: int = 0, stream: str | None = None) -> Iterator[Recorded]:
        """Yield what was recorded after `after_seq`, in order, up to now; see `rows`.

        Safe while a writer is active. Raise CorruptLogError or UnknownEventError in their place,
        after all the events before.
        """
        for row in rows(self.path, after_seq, stream):
            yield recorded(self.path, row)

    def count(self) -> int:
        """How many events there are."""
        return int(self._value("SELECT count(*) FROM event"))

    def last_seq(self) -> int:
        """The `seq` of the last event, 0 in an empty log."""
        return int(self._value("SELECT coalesce(max(seq), 0) FROM event"))

    def head(self) -> dict[int, tuple[int, str]]:
        """The end of each writer's chain, (wseq, hash in hex): publish it to make it binding."""
        try:
            writers = [id for (id,) in self._db.execute("SELECT id FROM writer ORDER BY id")]
            ends = {writer: self._end(writer) for writer in writers}
        except sqlite3.Error as error:
            raise explain(self.path, error) from error
        return {writer: (end[0], end[1].hex()) for writer, end in ends.items() if end}

    def streams(self) -> dict[str, int]:
        """Every stream with its last version, in the order of names."""
        query = "SELECT stream, max(version) FROM event GROUP BY stream ORDER BY stream"
        try:
            return dict(self._db.execute(query))
        except sqlite3.Error as error:
            raise explain(self.path, error) from error

    def _value(self, query: str) -> Any:
        try:
            return self._db.execute(query).fetchone()[0]
        except sqlite3.Error as error:
            raise explain(self.path, error) from error

    def new_stream(self, kind: str) -> str:
        """A name for a stream that begins now: `exp-0008~3k9fa2c` after seven of `exp` here.

        The streams of all writers count, and so do names that were given out but not yet used.
        """
        if not _KIND.fullmatch(kind):
            raise ValueError(f"{kind!r} is no kind of stream: small letters and digits only")
        with self._lock:
            self._must_be_writer()
            number = self._numbers.get(kind, 0) + 1
            self._numbers[kind] = number
        return ids.stream_name(kind, number, self.writer)

    def close(self) -> None:
        """Let go of the file. What was appended is on disk already."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _place(path: Path) -> str:
    """Says whether this is still the same file on the same machine, and nothing else."""
    machine = platform.node()
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError):
            machine = Path(name).read_text().strip() or machine
            break
    stat = path.stat()
    text = f"aiopt writer 1 {machine} {stat.st_dev}:{stat.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def wal_bug_warning(version: str = sqlite3.sqlite_version) -> str | None:
    """What to tell about SQLite's WAL-reset bug in this version of SQLite, or None if it is fixed.

    Versions 3.7.0 to 3.51.2 have it, except 3.44.6 and later in 3.44 and 3.50.7 and later in 3.50.
    """
    found = tuple(map(int, version.split(".")))
    fixed = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}.get((found[0], found[1]), (3, 51, 3))
    if found < (3, 7, 0) or found >= fixed:
        return None
    return (
        f"SQLite {version} may damage a log when two processes write to it at the same instant"
        " (sqlite.org/wal.html#walresetbug; your distribution may have fixed it under the same"
        " number). aiopt lets only one process write; do not write to the file with other tools."
        " Fixed in SQLite 3.51.3, 3.50.7 and 3.44.6"
    )
