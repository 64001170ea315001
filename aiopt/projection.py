"""The columns of a log, kept beside it: two files that anybody may delete.

`projection/<log>.chunks` holds the full chunks, one after the other, as plain numbers that are
mapped into memory; `projection/<log>.index` is a small SQLite file of pages: the stamp (last
sequence number, and the hash of that row in the log), where each chunk is, the runs of the last
chunk that is not full, and the tables. A chunk is written and flushed before the transaction that
mentions it; what lies behind the last chunk that is mentioned is overwritten. Who reads keeps a
shared lock, for tables are read when they are asked for.

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
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from attrs import define, evolve, field, frozen

from aiopt import codec
from aiopt.array_memory import ArrayMemory
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
    Records,
    Tables,
    TablesInMemory,
    Unprojectable,
)
from aiopt.errors import LogError
from aiopt.events import Event
from aiopt.stats import Ints

__all__ = ["Projection", "folder_of"]

FORMAT = 2
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


_DAMAGED = (_Stale, sqlite3.Error, OSError, KeyError, ValueError, TypeError, MemoryError)
"""What reading files that are not right may lead to."""


def folder_of(log: Path) -> Path:
    """Where the files of the log at `log` are."""
    return log.parent / "projection"


class Projection:
    """A log that is open to be read by columns. Close it, or use it as a context manager."""

    def __init__(
        self, path: Path, con: sqlite3.Connection, columns: Columns, held: ExitStack
    ) -> None:
        self.path = path
        self.columns = columns
        """Their tables are read when they are asked for, so ask before closing; see `whole`."""
        self._con, self._held = con, held

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
        held = ExitStack()
        try:
            return cls(path, con, _caught_up(path, con, wait, held), held)
        except BaseException as error:
            held.close()
            con.close()
            if isinstance(error, sqlite3.Error | LogError | ValueError | TypeError):
                raise Unprojectable(f"{path}: {error}") from error
            raise

    def events(self, stream: str, types: Sequence[str] = ()) -> list[Event]:
        """The events of a stream, up to the last one that the columns know of; of all types, or of
        these.

        Raises:
            LogError: one of them cannot be read.
        """
        query = (
            "SELECT type, schema_version, payload FROM event WHERE stream = ? AND seq <= ?"
            f"{_IS_ONE_OF.format(', '.join('?' * len(types))) if types else ''} ORDER BY version"
        )
        found = self._con.execute(query, [stream, self.columns.last_seq, *types])
        return [codec.decode(*row) for row in found]

    def event(self, seq: int) -> Event:
        """The event of this number.

        Raises:
            LogError: it cannot be read.
        """
        query = "SELECT type, schema_version, payload FROM event WHERE seq = ?"
        return codec.decode(*self._con.execute(query, [seq]).fetchone())

    def whole(self) -> Columns:
        """The columns with all of their tables, which can be used after closing."""
        tables = self.columns.tables
        in_memory = TablesInMemory(
            candidates=tables.candidates, experiments=tables.experiments, texts=tables.texts
        )
        return evolve(self.columns, tables=in_memory)

    def close(self) -> None:
        """Let go of the log and of the files."""
        self._held.close()
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


_IS_ONE_OF = " AND type IN ({})"

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


def _caught_up(path: Path, con: sqlite3.Connection, wait: float, held: ExitStack) -> Columns:
    """What the columns need for as long as they are used, goes into `held`."""
    files = _Files(folder_of(path), path.name)
    with ExitStack() as stack:
        lock = stack.enter_context(files.locked(fcntl.LOCK_SH, wait))
        found = files.load(con, stack) if lock is not None else None
        if found is not None and found.up_to(con):
            held.push(stack.pop_all())
            return found.columns(con)
    with ExitStack() as stack:
        lock = stack.enter_context(files.locked(fcntl.LOCK_EX, wait))
        if lock is not None:
            with suppress(OSError, sqlite3.Error):
                files.bring_up(con)
                fcntl.flock(lock, fcntl.LOCK_SH)
                found = files.load(con, stack)
                if found is not None:
                    held.push(stack.pop_all())
                    return found.columns(con)
    _log.debug("%s: cannot be written or is in use; the columns stay in memory", files.index)
    gathering = Gathering()
    with files.locked(fcntl.LOCK_SH, 0.0) as lock:
        if lock is not None:
            gathering, _end_of_chunks = files.gathering(con)
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

    def load(self, con: sqlite3.Connection, held: ExitStack) -> "_Loaded | None":
        """What is there and fits the log; None if nothing does. The index stays open in `held`."""
        if not self.index.is_file():
            return None
        try:
            db = sqlite3.connect(self.index, isolation_level=None)
            held.callback(db.close)
            index = _Index(db)
            stamp = orjson.loads(index.page("stamp"))
            seq = stamp["seq"]
            if stamp["format"] != _VERSIONS or _hash_at(con, seq).hex() != stamp["hash"]:
                return None
            names = orjson.loads(index.page("names"))
            chunks, tail = self._mapped(index, stamp), _tail_of(index, stamp["tail"])
            voids = np.frombuffer(index.page("voids"), dtype=np.int64).reshape(-1, len(VOID))
            return _Loaded(self.index, index, stamp, names, chunks, tail, voids)
        except _DAMAGED:
            _log.debug("%s: damaged, or of another log; it is made anew", self.index)
            return None

    def gathering(self, con: sqlite3.Connection) -> tuple[Gathering, int]:
        """To go on from what is there, if it is right; and where the chunks end."""
        with ExitStack() as stack:
            found = self.load(con, stack)
            if found is not None:
                with suppress(*_DAMAGED):
                    return found.gathering(), found.end
        return Gathering(), 0

    def _mapped(self, index: "_Index", stamp: Mapping[str, Any]) -> list[Chunk]:
        places = [orjson.loads(page) for page in index.pages("chunk", stamp["chunks"])]
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

    def bring_up(self, con: sqlite3.Connection) -> None:
        """Make the files as the log is now; the lock is held."""
        gathering, end = self.gathering(con)
        if not gathering.last_seq:
            for path in (self.index, self.chunks, Path(f"{self.index}-journal")):
                path.unlink(missing_ok=True)
        written = len(gathering.sealed)
        gathering.sealed.clear()
        with (
            closing(sqlite3.connect(self.index, isolation_level=None)) as db,
            open(os.open(self.chunks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file,
        ):
            writer = _Writer(db, file.fileno(), con, end=end, written=written)
            for _ in _gather(con, gathering, _end(con)):
                if len(gathering.sealed) * CHUNK >= _SAVED:
                    writer.save(gathering)
            writer.save(gathering)


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_VERSIONS = [FORMAT, zlib.crc32(repr(sorted(SCHEMA_VERSIONS.items())).encode())]


def _identity(fd: int) -> list[int]:
    stat = os.fstat(fd)
    return [stat.st_ino, stat.st_size, stat.st_ctime_ns]


def _checksum(kind: str, number: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(f"{kind} {number}".encode()))


@frozen
class _Index:
    """Pages, each of which is compared with its checksum when it is read."""

    db: sqlite3.Connection

    def page(self, kind: str) -> bytes:
        """The only one of its kind."""
        return self.pages(kind, 1)[0]

    def pages(self, kind: str, count: int) -> list[bytes]:
        """So many, in order."""
        query = "SELECT number, data, crc FROM page WHERE kind = ? ORDER BY number LIMIT ?"
        found = self.db.execute(query, [kind, count]).fetchall()
        for place, (number, data, crc) in enumerate(found):
            if number != place or _checksum(kind, number, data) != crc:
                raise _Stale(kind)
        if len(found) < count:
            raise _Stale(kind)
        return [data for _, data, _ in found]


def _packed(chunk: Chunk) -> bytes:
    parts = [np.ascontiguousarray(chunk.values).tobytes()]
    parts += [chunk.runs[name].tobytes() for name in RUN]
    return b"".join(parts)


def _unpacked(metrics: Sequence[str], rows: int, data: Any) -> Chunk:
    """Views of these bytes, without a copy."""
    at = len(metrics) * rows * 8
    runs = _Runs(data[at : at + rows * _RUN_BYTES], rows)
    values = data[:at].view(np.float64).reshape(len(metrics), rows)
    return Chunk(metrics=tuple(metrics), values=values, runs=runs)


_RUN_BYTES = sum(dtype.itemsize for dtype in RUN.values())


class _Runs(Mapping[str, npt.NDArray[Any]]):
    """The columns RUN of a chunk, each a view that is made when it is asked for: a log may have
    thousands of chunks.
    """

    def __init__(self, data: npt.NDArray[np.uint8], rows: int) -> None:
        if data.size != rows * _RUN_BYTES:
            raise _Stale("a chunk is cut short")
        self._data, self._rows = data, rows

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        at = 0
        for column, dtype in RUN.items():
            if column == name:
                return self._data[at : at + self._rows * dtype.itemsize].view(dtype)
            at += self._rows * dtype.itemsize
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(RUN)

    def __len__(self) -> int:
        return len(RUN)


def _tail_of(index: _Index, head: Mapping[str, Any] | None) -> Chunk | None:
    if head is None:
        return None
    data = np.frombuffer(index.page("tail"), dtype=np.uint8)
    return _unpacked(head["metrics"], head["rows"], data)


@frozen
class _Loaded:
    """What is in both files, of which what is needed at once was read and found to be right."""

    path: Path
    index: _Index
    stamp: Mapping[str, Any]
    names: Mapping[str, Any]
    chunks: list[Chunk]
    tail: Chunk | None
    voids: Ints

    @property
    def end(self) -> int:
        """Where the next chunk begins."""
        return int(self.stamp["end"])

    def up_to(self, con: sqlite3.Connection) -> bool:
        """Whether the log has nothing more."""
        return _end(con) == int(self.stamp["seq"])

    def texts(self) -> list[list[str]]:
        """Streams, patches and reasons of all experiments."""
        found: list[list[str]] = [[], [], []]
        for page in self.index.pages("texts", self._experiment_pages):
            for texts, more in zip(found, orjson.loads(page), strict=True):
                texts += more
        return found

    def records(self) -> Records:
        """Of all experiments."""
        pages = self.index.pages("experiments", self._experiment_pages)
        return np.frombuffer(b"".join(pages), dtype=EXPERIMENT)

    def candidates(self) -> list[str]:
        """Ids, by number."""
        found: list[str] = orjson.loads(self.index.page("candidates"))
        return found

    @property
    def _experiment_pages(self) -> int:
        return -(-int(self.stamp["experiments"]) // _PAGE)

    def columns(self, con: sqlite3.Connection) -> Columns:
        """The columns; `con` is of the log, from which tables are made that are damaged."""
        return Columns(
            last_seq=self.stamp["seq"],
            chunks=(*self.chunks, *([self.tail] if self.tail is not None else [])),
            workloads=tuple(self.names["workloads"]),
            campaigns=tuple(self.names["campaigns"]),
            began=tuple(self.names["began"]),
            voids=self.voids,
            tables=_StoredTables(self, con),
            memo=ArrayMemory(
                self.path.with_suffix(".memo"),
                f"{self.stamp['seq']}-{self.stamp['hash'][:16]}-{_VERSIONS[0]}-{_VERSIONS[1]}",
            ),
        )

    def gathering(self) -> Gathering:
        """To go on from."""
        streams, patches, reasons = self.texts()
        return Gathering(
            last_seq=self.stamp["seq"],
            workloads=Names(self.names["workloads"]),
            answers=Names(orjson.loads(self.index.page("answers"))),
            campaigns=Names(self.names["campaigns"]),
            began=self.names["began"],
            candidates=Names(self.candidates()),
            streams=Names(streams),
            experiments=[list(row) for row in self.records().tolist()],
            patches=patches,
            genomes=orjson.loads(self.index.page("genomes")),
            reasons=reasons,
            voids=[tuple(row) for row in self.voids.tolist()],
            sealed=list(self.chunks),
            tail=self.tail,
        )


class _StoredTables:
    """Tables that are read when they are asked for."""

    def __init__(self, loaded: _Loaded, con: sqlite3.Connection) -> None:
        self._loaded, self._con = loaded, con

    @cached_property
    def candidates(self) -> Sequence[str]:
        """See `aiopt.columnar.Columns`, here and below."""
        try:
            return tuple(self._loaded.candidates())
        except _DAMAGED:
            return self._made_anew.candidates

    @cached_property
    def experiments(self) -> Records:
        try:
            return self._loaded.records()
        except _DAMAGED:
            return self._made_anew.experiments

    @cached_property
    def texts(self) -> Mapping[str, Sequence[str]]:
        try:
            return dict(zip(TEXTS, self._loaded.texts(), strict=True))
        except _DAMAGED:
            return self._made_anew.texts

    @cached_property
    def _made_anew(self) -> Tables:
        """From the log; whoever opens the files next makes them anew, too."""
        _log.debug("%s: damaged; its tables are made anew", self._loaded.path)
        with suppress(OSError):
            self._loaded.path.unlink()
        gathering = Gathering()
        for _ in _gather(self._con, gathering, int(self._loaded.stamp["seq"])):
            pass
        return gathering.columns().tables


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
            "campaigns": gathering.campaigns.texts,
            "began": gathering.began,
        }
        pages["names", 0] = orjson.dumps(names)
        pages["answers", 0] = orjson.dumps(gathering.answers.texts)
        pages["genomes", 0] = orjson.dumps(gathering.genomes)
        pages["candidates", 0] = orjson.dumps(gathering.candidates.texts)
        pages["voids", 0] = np.array(gathering.voids, dtype=np.int64).tobytes()
        return pages

    def _commit(self, pages: Mapping[tuple[str, int], bytes]) -> None:
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
