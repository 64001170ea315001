"""Logs that travel: several joined into one, and a log as lines of JSON.

Both keep every row as it is, hash included; only `seq` is given out anew by a merge. Each writer's
rows are one chain, so a merge needs to know only how far each chain has come here.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
from attrs import frozen
from sqlite_utils import Database

from aiopt import __version__
from aiopt.blobs import BlobStore, blobs_beside
from aiopt.errors import CorruptLogError, LogError, LogVersionError
from aiopt.lease import Lease
from aiopt.log import Log
from aiopt.logfile import (
    FORMAT,
    INSERT,
    Row,
    all_rows,
    connect,
    create,
    explain,
    genesis,
    row_hash,
    settle,
)

__all__ = ["MergeReport", "export_jsonl", "import_jsonl", "merge"]

_END = "SELECT wseq, hash FROM event WHERE writer = ? ORDER BY wseq DESC LIMIT 1"
_AT = "SELECT hash FROM event WHERE writer = ? AND wseq = ?"


@frozen(kw_only=True, slots=True)
class MergeReport:
    """What a merge has brought. All zero: there was nothing new."""

    events: int
    writers: int
    blobs: int


class _Joining:
    """A log that takes rows in, in a transaction, with the chain of each writer checked."""

    def __init__(self, path: Path, db: Database) -> None:
        self.path = path
        self.db = db
        self.seq: int = db.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0]
        self.writers = {writer for (writer,) in db.execute("SELECT id FROM writer")}
        self.ends: dict[int, tuple[int, bytes]] = {}

    def end(self, writer: int) -> tuple[int, bytes]:
        if writer not in self.ends:
            self.ends[writer] = self.db.execute(_END, [writer]).fetchone() or (0, genesis(writer))
        return self.ends[writer]

    def add(self, source: str, all_new: Iterable[Row]) -> int:
        def checked() -> Iterator[Row]:
            for row in all_new:
                wseq, previous = self.end(row.writer)
                right = row.wseq == wseq + 1 and row_hash(previous, row) == row.hash
                if not right or row.writer not in self.writers:
                    raise CorruptLogError(
                        f"{source}: seq {row.seq} ({row.stream} version {row.version}) is not what"
                        f" its writer {row.writer} wrote as wseq {wseq + 1}; nothing was taken over"
                    )
                self.ends[row.writer] = (row.wseq, row.hash)
                self.seq += 1
                yield row._replace(seq=self.seq)

        before = self.seq
        try:
            self.db.conn.executemany(INSERT, checked())
        except sqlite3.IntegrityError as error:
            raise CorruptLogError(
                f"{source} and {self.path} have diverged: both hold rows of the same version of one"
                f" stream by different writers ({error}); nothing was taken over"
            ) from error
        return self.seq - before

    def introduce(self, writers: Iterable[tuple[int, str, str, str]]) -> int:
        """Add the writers that are not known here. Nobody here goes on under their names."""
        new = [row for row in writers if row[0] not in self.writers]
        rows = [(id_, at, "", version) for id_, at, _, version in new]
        self.db.conn.executemany("INSERT INTO writer VALUES (?, ?, ?, ?)", rows)
        self.writers.update(row[0] for row in new)
        return len(new)


def merge(
    into: Path | str,
    sources: Sequence[Path | str],
    blobs: Path | str | None = None,
    source_blobs: Sequence[Path | str] | None = None,
) -> MergeReport:
    """Add to the log `into` what the logs `sources` have and it has not, with all their blobs.

    Blobs are in the folder beside each log unless said otherwise. The log is created if need be.
    All or nothing, and nothing the second time. Raise CorruptLogError where two logs hold different
    rows under one name or a source is damaged, LogVersionError for a newer format,
    ConcurrentWriteError if somebody is writing to `into`.
    """
    path = Path(into)
    froms = [Path(source) for source in sources]
    stores = [Path(root) for root in source_blobs or map(blobs_beside, froms)]
    if len(stores) != len(froms):
        raise ValueError(f"{len(froms)} logs, but {len(stores)} folders of blobs")
    store = BlobStore(blobs if blobs is not None else blobs_beside(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lease.acquire(path):
        create(path)
        copied = sum(_copy_blobs(store, BlobStore(root)) for root in stores)
        with _transaction(path) as db:
            joining = _Joining(path, db)
            new = [_take(joining, source) for source in froms]
    events, writers = (sum(counts) for counts in zip(*new, strict=True)) if new else (0, 0)
    return MergeReport(events=events, writers=writers, blobs=copied)


@contextmanager
def _transaction(path: Path) -> Iterator[Database]:
    db, _ = connect(path, readonly=False)
    with closing(db):  # which rolls back what was not committed
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise explain(path, error) from error


def _copy_blobs(into: BlobStore, source: BlobStore) -> int:
    missing = [digest for digest in source if not into.has(digest)]
    for digest in missing:
        into.copy_from(source, digest)
    return len(missing)


def _take(joining: _Joining, source: Path) -> tuple[int, int]:
    """How many rows and writers were new."""
    db, damage = connect(source, readonly=True)
    with closing(db):
        if damage is not None:
            raise damage
        try:
            db.execute("BEGIN")
            writers = {row[0]: row for row in db.execute("SELECT * FROM writer ORDER BY id")}
            marks = {writer: _common(joining, source, db, writer) for writer in writers}
            first = "SELECT seq FROM event WHERE writer = ? AND wseq = ?"
            starts = [db.execute(first, [w, mark + 1]).fetchone() for w, mark in marks.items()]
        except sqlite3.Error as error:
            raise explain(source, error) from error

        def new_rows() -> Iterator[Row]:
            try:
                for row in all_rows(db, min(start[0] for start in starts if start) - 1):
                    if row.wseq > marks.get(row.writer, 0):
                        yield row
            except sqlite3.Error as error:
                raise explain(source, error) from error

        introduced = joining.introduce(writers.values())
        events = joining.add(str(source), new_rows()) if any(starts) else 0
    return events, introduced


def _common(joining: _Joining, source: Path, db: Database, writer: int) -> int:
    """How far this writer's chain has come in `joining`; it must be the same chain in `db`."""
    here, _ = joining.end(writer)
    there = (db.execute(_END, [writer]).fetchone() or (0, b""))[0]

    def same(wseq: int) -> bool:
        hashes = {tuple(log.execute(_AT, [writer, wseq])) for log in (joining.db, db)}
        return len(hashes) == 1

    low, high = 0, min(here, there)
    if high and not same(high):
        while high - low > 1:  # equal at low, different at high
            middle = (low + high) // 2
            low, high = (middle, high) if same(middle) else (low, middle)
        raise CorruptLogError(
            f"{source} and {joining.path} have diverged at wseq {high} of writer {writer}: each"
            " holds another event under this number, so one of them was changed (`aiopt verify`"
            " both), or a copy was put back in place of its original; nothing was taken over"
        )
    return here


# ---- lines ----


def export_jsonl(log: Log | Path | str, out: IO[str]) -> int:
    """Write the log as lines of JSON: a header, then an object per event; return how many.

    Every column is there, the hash in hex. Of a damaged log, raise CorruptLogError after all that
    could be read.
    """
    path = log.path if isinstance(log, Log) else Path(log)
    db, damage = connect(path, readonly=True)
    count = 0
    with closing(db):
        try:
            db.execute("BEGIN")
            header = {
                "aiopt_log": FORMAT,
                "aiopt": __version__,
                "events": None if damage else db.table("event").count,
                "writers": [
                    {"id": id_, "began_at": began_at, "aiopt": version}
                    for id_, began_at, version in db.execute(
                        "SELECT id, began_at, aiopt_version FROM writer ORDER BY id"
                    )
                ],
            }
            out.write(orjson.dumps(header).decode() + "\n")
            for row in all_rows(db):
                line = {**row._asdict(), "hash": row.hash.hex(), "payload": _payload(path, row)}
                out.write(orjson.dumps(line).decode() + "\n")
                count += 1
        except sqlite3.Error as error:
            raise explain(path, error) from error
    if damage is not None:
        raise damage
    return count


def _payload(path: Path, row: Row) -> Any:
    try:
        return orjson.loads(row.payload)
    except ValueError as error:
        raise CorruptLogError(
            f"{path}: the payload of seq {row.seq} is no JSON: {error}"
        ) from error


def import_jsonl(lines: Iterable[str], into: Path | str) -> int:
    """Make a new log of what `export_jsonl` wrote: the same rows with the same hashes.

    All or nothing; return the number of events. Raise LogError if there is a log already (import
    beside it, then merge), LogVersionError for a newer format, and CorruptLogError, naming the
    line, for what does not fit its chain.
    """
    path = Path(into)
    if path.exists():
        raise LogError(f"{path}: there is a log already; import to another place, then merge")
    numbered = enumerate(lines, 1)
    events, writers = _header(numbered)
    draft = path.with_name(f".{path.name}.import")
    draft.unlink(missing_ok=True)
    try:
        create(draft)
        with _transaction(draft) as db:
            joining = _Joining(draft, db)
            joining.introduce(writers)
            count = joining.add("the import", _parsed(numbered))
            if events not in (None, count):
                raise CorruptLogError(
                    f"the import ends after {count} events, but its header says {events}:"
                    " the file was cut short or lines were taken out"
                )
        if not settle(draft, path):
            raise LogError(f"{path}: somebody else has made a log here meanwhile; merge instead")
    finally:
        for suffix in ("", "-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    return count


def _header(numbered: Iterator[tuple[int, str]]) -> tuple[Any, list[tuple[int, str, str, str]]]:
    """How many events there should be, and the writers."""
    _, first = next(numbered, (1, ""))
    try:
        header = orjson.loads(first)
        if header["aiopt_log"] > FORMAT:
            raise LogVersionError(
                f"line 1: log format {header['aiopt_log']}, but this aiopt knows 1 to {FORMAT};"
                " upgrade aiopt"
            )
        writers = [(w["id"], w["began_at"], "", w["aiopt"]) for w in header["writers"]]
        return header["events"], writers
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptLogError(
            f"line 1: expected the header of an exported log, found {first[:80]!r}"
        ) from error


def _parsed(numbered: Iterator[tuple[int, str]]) -> Iterator[Row]:
    for expected, (number, line) in enumerate(numbered, 1):
        try:
            found = orjson.loads(line)
            found["hash"] = bytes.fromhex(found["hash"])
            found["payload"] = orjson.dumps(found["payload"], option=orjson.OPT_SORT_KEYS).decode()
            row = Row(**found)
            for name, kind in Row.__annotations__.items():
                if type(getattr(row, name)) is not kind:
                    raise TypeError(f"{name} is {getattr(row, name)!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptLogError(f"line {number}: no event of a log: {error}") from error
        if row.seq != expected:
            raise CorruptLogError(f"line {number}: expected seq {expected}, found {row.seq}")
        yield row
