"""The columns of a log, kept beside it: two files that anybody may delete.

`projection/<log>.chunks` holds the full chunks, one after the other, as plain numbers that are
mapped into memory; `projection/<log>.index` is a small SQLite file of pages: the stamp (last
sequence number, and the hash of that row in the log), where each chunk is, the runs of the last
chunk that is not full, and the tables. A chunk is written and flushed before the transaction that
mentions it; what lies behind the last chunk that is mentioned is overwritten.

The log is the only truth. If the stamp is the log's, what came later is added; if it is not, or
anything is damaged or of another version, both files are made anew. A process that cannot have them
to itself, or may not write there, keeps what it adds in memory.

A change of a file that the stamp does not know of shows in its inode, size or time of change;
the chunks are then compared with their checksums. Pages are compared with theirs at every opening.
"""

import fcntl
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from attrs import define, field, frozen

from aiopt import codec
from aiopt.codec import SCHEMA_VERSIONS
from aiopt.columnar import (
    CHUNK,
    EXPERIMENT,
    NEEDED,
    RUN,
    TEXTS,
    VOID,
    Chunk,
    Columns,
    Gathering,
    Names,
    Unprojectable,
)
from aiopt.errors import LogError
from aiopt.events import Event

__all__ = ["Projection", "folder_of"]

FORMAT = 1
"""Of the two files; another one is made anew."""

_PAGE = 1024
"""Experiments of a page."""
_ROWS = 4096
"""Events that are read at a time, so that no reader holds up whoever writes."""
_SAVED = 32 * CHUNK
"""Runs between two commits while much is added."""
_TICK = 0.02
"""Seconds within which two changes of a file may have the same time."""
_POLL = 0.05

_log = logging.getLogger(__name__)


class _Stale(Exception):
    """The files do not fit the log, or each other."""


def folder_of(log: Path) -> Path:
    """Where the files of the log at `log` are."""
    return log.parent / "projection"


class Projection:
    """A log that is open to be read by columns. Close it, or use it as a context manager."""

    def __init__(self, path: Path, con: sqlite3.Connection, columns: Columns) -> None:
        self.path = path
        self.columns = columns
        self._con = con

    @classmethod
    def open(cls, log: Path | str, *, wait: float = 1.0) -> Self:
        """The columns of the log as it is now.

        `wait` is for how many seconds another process may be at the files before this one does
        without them.

        Raises:
            Unprojectable: there is no log, it is damaged, or its events are not such as a campaign
                writes; reading it with `aiopt.log.Log` says what is wrong.
        """
        path = Path(log)
        try:
            con = _connected(path)
        except (sqlite3.Error, LogError, OSError, UnicodeDecodeError) as error:
            raise Unprojectable(f"{path}: {error}") from error
        try:
            return cls(path, con, _caught_up(path, con, wait))
        except BaseException as error:
            con.close()
            if isinstance(error, sqlite3.Error | LogError | ValueError | TypeError):
                raise Unprojectable(f"{path}: {error}") from error
            raise

    def events(self, stream: str) -> list[Event]:
        """The events of a stream, up to the last one that the columns know of.

        Raises:
            LogError: one of them cannot be read.
        """
        query = (
            "SELECT type, schema_version, payload FROM event WHERE stream = ? AND seq <= ?"
            " ORDER BY version"
        )
        found = self._con.execute(query, [stream, self.columns.last_seq])
        return [codec.decode(*row) for row in found]

    def event(self, seq: int) -> Event:
        """The event of this number.

        Raises:
            LogError: it cannot be read.
        """
        query = "SELECT type, schema_version, payload FROM event WHERE seq = ?"
        return codec.decode(*self._con.execute(query, [seq]).fetchone())

    def close(self) -> None:
        """Let go of the log. The columns can be used further."""
        self._con.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- the log ----


def _connected(path: Path) -> sqlite3.Connection:
    """Without what `aiopt.log` imports, which takes longer than all that is done here."""
    if not path.is_file():
        raise Unprojectable(f"{path}: there is no log here")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    con = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)
    try:
        (application,) = con.execute("PRAGMA application_id").fetchone()
        (version,) = con.execute("PRAGMA user_version").fetchone()
        con.execute("SELECT 1 FROM event LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        con.close()
        return _connected_at_length(path)
    except BaseException:
        con.close()
        raise
    if (application, version) != (_APPLICATION_ID, _LOG_FORMAT):
        con.close()
        raise Unprojectable(f"{path}: no log of format {_LOG_FORMAT}")
    return con


_APPLICATION_ID = 0x61696F70
_LOG_FORMAT = 1
"""As in `aiopt.logfile`, which a test compares."""


def _connected_at_length(path: Path) -> sqlite3.Connection:
    """Also where nobody may write beside the log."""
    from aiopt.logfile import connect

    db, damage = connect(path, readonly=True)
    if damage is not None:
        db.close()
        raise damage
    con: sqlite3.Connection = db.conn
    return con


def _end(con: sqlite3.Connection) -> int:
    return int(con.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0])


def _hash_at(con: sqlite3.Connection, seq: int) -> bytes:
    row = con.execute("SELECT hash FROM event WHERE seq = ?", [seq]).fetchone()
    return bytes(row[0]) if row is not None else b""


_SELECT = (
    "SELECT seq, stream, type, schema_version, payload FROM event WHERE seq > ? AND seq <= ?"
    f" AND (type NOT IN ({', '.join('?' * (len(SCHEMA_VERSIONS) - len(NEEDED)))})"
    f" OR schema_version > {max(SCHEMA_VERSIONS.values())}) ORDER BY seq LIMIT {_ROWS}"
)
_UNUSED = sorted(SCHEMA_VERSIONS.keys() - set(NEEDED))


def _gather(con: sqlite3.Connection, gathering: Gathering, until: int) -> Iterator[None]:
    """Add what the log has up to `until`; stops after every few thousand events."""
    query = "SELECT count(*) FROM event WHERE seq > ? AND seq <= ?"
    (count,) = con.execute(query, [gathering.last_seq, until]).fetchone()
    if count != until - gathering.last_seq:
        raise Unprojectable("rows are missing")
    add = gathering.add
    more = True
    while more:
        page = con.execute(_SELECT, [gathering.last_seq, until, *_UNUSED]).fetchall()
        for seq, stream, name, version, payload in page:
            if version != SCHEMA_VERSIONS.get(name):
                payload = codec.encode(codec.decode(name, version, payload))[2]
            add(seq, stream, name, payload)
            gathering.last_seq = seq
        more = bool(page)
        yield
    gathering.last_seq = until


# ---- the files ----


def _caught_up(path: Path, con: sqlite3.Connection, wait: float) -> Columns:
    files = _Files(folder_of(path), path.name)
    with files.locked(fcntl.LOCK_SH, wait) as lock:
        found = files.load(con) if lock is not None else None
        if found is not None and found.up_to(con):
            return found.columns()
    with files.locked(fcntl.LOCK_EX, wait) as lock:
        if lock is not None:
            with suppress(OSError, sqlite3.Error):
                return files.brought_up(con)
        _log.debug("%s: cannot be written or is in use; the columns stay in memory", files.index)
    gathering = found.gathering() if found is not None else Gathering()
    for _ in _gather(con, gathering, _end(con)):
        pass
    return gathering.columns()


@define
class _Files:
    """Both files of one log."""

    folder: Path
    name: str

    @property
    def index(self) -> Path:
        return self.folder / f"{self.name}.index"

    @property
    def chunks(self) -> Path:
        return self.folder / f"{self.name}.chunks"

    @contextmanager
    def locked(self, how: int, wait: float) -> Iterator[int | None]:
        """The files to oneself, or to all who read; None where that cannot be had."""
        fd = self._lock_file()
        if fd is None:
            yield None
            return
        try:
            deadline = time.monotonic() + wait
            while not _locked(fd, how):
                if time.monotonic() >= deadline:
                    yield None
                    return
                time.sleep(_POLL)
            yield fd
        finally:
            os.close(fd)

    def _lock_file(self) -> int | None:
        path = self.folder / f"{self.name}.lock"
        try:
            self.folder.mkdir(exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            with suppress(OSError):  # what is there may be read where nothing can be written
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return None

    def load(self, con: sqlite3.Connection) -> "_Loaded | None":
        """What is there and fits the log; None if nothing does."""
        if not self.index.is_file():
            return None
        try:
            with closing(sqlite3.connect(self.index, isolation_level=None)) as db:
                pages = _pages(db)
            stamp = orjson.loads(pages["stamp", 0])
            seq = stamp["seq"]
            if stamp["format"] != _VERSIONS or _hash_at(con, seq).hex() != stamp["hash"]:
                return None
            return _Loaded(pages, stamp, self._mapped(pages, stamp))
        except (_Stale, sqlite3.Error, OSError, KeyError, ValueError, TypeError, MemoryError):
            _log.debug("%s: damaged, or of another log; it is made anew", self.index)
            return None

    def _mapped(self, pages: "_Pages", stamp: Mapping[str, Any]) -> list[Chunk]:
        places = [orjson.loads(pages["chunk", n]) for n in range(stamp["chunks"])]
        if not places:
            return []
        with open(self.chunks, "rb") as file:
            now = _identity(file.fileno())
        data: Any = np.memmap(self.chunks, dtype=np.uint8, mode="r").view(np.ndarray)
        if now != stamp["file"]:
            for place in places:
                if zlib.crc32(data[place["at"] : place["at"] + place["bytes"]]) != place["crc"]:
                    raise _Stale(self.chunks)
        return [_unpacked(place["metrics"], place["rows"], data[place["at"] :]) for place in places]

    def brought_up(self, con: sqlite3.Connection) -> Columns:
        """The files as the log is now; the lock is held."""
        found = self.load(con)
        if found is None:
            for path in (self.index, self.chunks, Path(f"{self.index}-journal")):
                path.unlink(missing_ok=True)
        gathering = found.gathering() if found is not None else Gathering()
        gathering.sealed.clear()
        with (
            closing(sqlite3.connect(self.index, isolation_level=None)) as db,
            open(os.open(self.chunks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file,
        ):
            writer = _Writer(db, file.fileno(), con)
            if found is not None:
                writer.end, writer.written = found.end, len(found.chunks)
            for _ in _gather(con, gathering, _end(con)):
                if len(gathering.sealed) * CHUNK >= _SAVED:
                    writer.save(gathering)
            writer.save(gathering)
        again = self.load(con)
        if again is None:
            raise OSError(f"{self.index}: what was written cannot be read")
        return again.columns()


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_Pages = Mapping[tuple[str, int], bytes]

_VERSIONS = [FORMAT, zlib.crc32(repr(sorted(SCHEMA_VERSIONS.items())).encode())]


def _identity(fd: int) -> list[int]:
    stat = os.fstat(fd)
    return [stat.st_ino, stat.st_size, stat.st_ctime_ns]


def _checksum(kind: str, number: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(f"{kind} {number}".encode()))


def _pages(db: sqlite3.Connection) -> _Pages:
    found = {}
    for kind, number, data, crc in db.execute("SELECT kind, number, data, crc FROM page"):
        if _checksum(kind, number, data) != crc:
            raise _Stale(kind)
        found[kind, number] = data
    return found


def _packed(chunk: Chunk) -> bytes:
    parts = [np.ascontiguousarray(chunk.values).tobytes()]
    parts += [chunk.runs[name].tobytes() for name in RUN]
    return b"".join(parts)


def _unpacked(metrics: Sequence[str], rows: int, data: Any) -> Chunk:
    """Views of these bytes, without a copy."""
    at = len(metrics) * rows * 8
    values = data[:at].view(np.float64).reshape(len(metrics), rows)
    runs = {}
    for name, dtype in RUN.items():
        size = rows * dtype.itemsize
        runs[name] = data[at : at + size].view(dtype)
        at += size
    if runs[name].size != rows:
        raise _Stale("a chunk is cut short")
    return Chunk(metrics=tuple(metrics), values=values, runs=runs)


@frozen
class _Loaded:
    """What was read of both files, once it was found to be right."""

    pages: _Pages
    stamp: Mapping[str, Any]
    chunks: list[Chunk]

    @property
    def end(self) -> int:
        """Where the next chunk begins."""
        return int(self.stamp["end"])

    def up_to(self, con: sqlite3.Connection) -> bool:
        """Whether the log has nothing more."""
        return _end(con) == int(self.stamp["seq"])

    def _tail(self) -> Chunk | None:
        head = self.stamp["tail"]
        if head is None:
            return None
        data = np.frombuffer(self.pages["tail", 0], dtype=np.uint8)
        return _unpacked(head["metrics"], head["rows"], data)

    def _texts(self) -> list[list[str]]:
        """Streams, patches and reasons of all experiments."""
        found: list[list[str]] = [[], [], []]
        for number in range(self._experiment_pages):
            for texts, more in zip(found, orjson.loads(self.pages["texts", number]), strict=True):
                texts += more
        return found

    def _records(self) -> Any:
        pages = [self.pages["experiments", n] for n in range(self._experiment_pages)]
        return np.frombuffer(b"".join(pages), dtype=EXPERIMENT)

    @property
    def _experiment_pages(self) -> int:
        return -(-int(self.stamp["experiments"]) // _PAGE)

    def _names(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.pages["names", 0])
        return found

    def _voids(self) -> Any:
        return np.frombuffer(self.pages["voids", 0], dtype=np.int64).reshape(-1, len(VOID))

    def columns(self) -> Columns:
        names, tail = self._names(), self._tail()
        return Columns(
            last_seq=self.stamp["seq"],
            chunks=(*self.chunks, *([tail] if tail is not None else [])),
            workloads=tuple(names["workloads"]),
            campaigns=tuple(names["campaigns"]),
            began=tuple(names["began"]),
            candidates=tuple(names["candidates"]),
            experiments=self._records(),
            texts=dict(zip(TEXTS, self._texts(), strict=True)),
            voids=self._voids(),
        )

    def gathering(self) -> Gathering:
        """To go on from."""
        names = self._names()
        streams, patches, reasons = self._texts()
        return Gathering(
            last_seq=self.stamp["seq"],
            workloads=Names(names["workloads"]),
            answers=Names(names["answers"]),
            campaigns=Names(names["campaigns"]),
            began=names["began"],
            candidates=Names(names["candidates"]),
            streams=Names(streams),
            experiments=[list(row) for row in self._records().tolist()],
            patches=patches,
            genomes=names["genomes"],
            reasons=reasons,
            voids=[tuple(row) for row in self._voids().tolist()],
            sealed=list(self.chunks),
            tail=self._tail(),
        )


@define
class _Writer:
    """Writes what a gathering has gathered."""

    db: sqlite3.Connection
    fd: int
    log: sqlite3.Connection
    end: int = 0
    written: int = 0
    """Chunks that are in the file, up to the byte `end`."""
    _made: bool = field(init=False, default=False)

    def save(self, gathering: Gathering) -> None:
        """Chunks first, then one transaction with all the rest."""
        gathering.settle()
        pages: dict[tuple[str, int], bytes] = {}
        for number, chunk in enumerate(gathering.sealed, self.written):
            data = _packed(chunk)
            _write(self.fd, data, self.end)
            place = {
                "at": self.end,
                "bytes": len(data),
                "crc": zlib.crc32(data),
                "metrics": chunk.metrics,
                "rows": len(chunk),
            }
            pages["chunk", number] = orjson.dumps(place)
            self.end += len(data)
        if gathering.sealed:
            os.fdatasync(self.fd)
            time.sleep(_TICK)  # so that whoever changes the file later leaves another time
        self.written += len(gathering.sealed)
        gathering.sealed.clear()
        pages |= self._tables(gathering)
        tail = gathering.tail
        if tail is not None:
            pages["tail", 0] = _packed(tail)
        stamp = {
            "format": _VERSIONS,
            "seq": gathering.last_seq,
            "hash": _hash_at(self.log, gathering.last_seq).hex(),
            "chunks": self.written,
            "end": self.end,
            "experiments": len(gathering.experiments),
            "tail": None if tail is None else {"metrics": tail.metrics, "rows": len(tail)},
            "file": _identity(self.fd),
        }
        pages["stamp", 0] = orjson.dumps(stamp)
        self._commit(pages)

    def _tables(self, gathering: Gathering) -> dict[tuple[str, int], bytes]:
        pages = {}
        for number in sorted({place // _PAGE for place in gathering.touched}):
            part = slice(number * _PAGE, (number + 1) * _PAGE)
            texts = (gathering.streams.texts, gathering.patches, gathering.reasons)
            pages["experiments", number] = gathering.records(part).tobytes()
            pages["texts", number] = orjson.dumps([each[part] for each in texts])
        gathering.touched.clear()
        names = {
            "workloads": gathering.workloads.texts,
            "answers": gathering.answers.texts,
            "campaigns": gathering.campaigns.texts,
            "began": gathering.began,
            "genomes": gathering.genomes,
            "candidates": gathering.candidates.texts,
        }
        pages["names", 0] = orjson.dumps(names)
        pages["voids", 0] = np.array(gathering.voids, dtype=np.int64).tobytes()
        return pages

    def _commit(self, pages: _Pages) -> None:
        if not self._made:
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.execute(_TABLE)
            self._made = True
        rows = [
            (kind, number, data, _checksum(kind, number, data))
            for (kind, number), data in pages.items()
        ]
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?)", rows)
        self.db.execute("COMMIT")


_TABLE = """CREATE TABLE IF NOT EXISTS page (
  kind TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY (kind, number)
) STRICT"""


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
