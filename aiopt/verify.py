"""Is a log what was once written? Everything that contradicts itself, not just the first of it.

Three things are beyond what a file can say about itself: whoever can write it can drop triggers,
take rows off the end together with SQLite's own count of them, or write all of it anew. Against
these there is `expect_head`: the end of each writer's chain (`Log.head`), published elsewhere.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from attrs import field, frozen
from sqlite_utils import Database

from aiopt import codec
from aiopt.blobs import BlobStore, blobs_beside, referenced
from aiopt.errors import CorruptLogError, UnknownEventError
from aiopt.logfile import SCHEMA, Row, all_rows, connect, genesis, row_hash

__all__ = ["Problem", "Report", "verify"]

_NOWHERE = 1 << 40

ProblemKind = Literal[
    "sqlite", "schema", "seq", "writer", "chain", "version", "payload", "blob", "head", "decision"
]


@frozen(kw_only=True, slots=True)
class Problem:
    """One contradiction, and where it is."""

    kind: ProblemKind
    text: str
    seq: int | None = None
    stream: str | None = None
    blob: str | None = None


@frozen(kw_only=True, slots=True)
class Report:
    """What a log holds and what is wrong with it."""

    path: str
    events: int
    streams: int
    blobs: int
    """How many different blobs the events refer to."""
    heads: dict[int, tuple[int, str]]
    """writer -> (wseq, hash in hex) of the end of its chain, as stored."""
    unknown: dict[str, int] = field(factory=dict)
    """How often there was an event that this aiopt is too old for. Its chain was checked."""
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing contradicts itself."""
        return not self.problems


def verify(
    log_path: Path | str,
    blobs_root: Path | str | None = None,
    expect_head: Mapping[int, tuple[int, str]] | None = None,
) -> Report:
    """Check the log and the blobs that it refers to (by default those in the folder beside it).

    `expect_head` is an earlier `Log.head`: the log may have grown since, but not changed before it.
    Raise LogError if there is no log, LogVersionError if it is of a newer format, and
    CorruptLogError if it is none at all; what is wrong inside of it is in the report.
    """
    path = Path(log_path)
    check = _Check(path, expect_head or {})
    db, damage = connect(path, readonly=True)
    with closing(db):
        if damage is not None:
            check.report("sqlite", str(damage))
        with suppress(sqlite3.Error):
            db.conn.execute("BEGIN")  # one state of a log that may be growing
        check.sqlite(db)
        check.schema(db)
        end = check.rows(db)
        check.ends(db, end)
    check.blobs(BlobStore(blobs_root if blobs_root is not None else blobs_beside(path)))
    return Report(
        path=str(path),
        events=check.events,
        streams=len(check.versions),
        blobs=len(check.referenced),
        heads={writer: (wseq, hash_.hex()) for writer, (wseq, hash_) in check.chains.items()},
        unknown=dict(check.unknown),
        problems=tuple(check.problems),
    )


def _definitions(db: Database) -> dict[tuple[str, str], str | None]:
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    return {(kind, name): sql for kind, name, sql in db.execute(query)}


class _Check:
    """What was seen so far."""

    def __init__(self, path: Path, expect_head: Mapping[int, tuple[int, str]]) -> None:
        self.path = path
        self.expected = dict(expect_head)
        self.problems: list[Problem] = []
        self.events = 0
        self.chains: dict[int, tuple[int, bytes]] = {}
        self.versions: dict[str, int] = {}
        self.unknown: Counter[str] = Counter()
        self.referenced: dict[str, int] = {}

    def report(
        self, kind: ProblemKind, text: str, row: Row | None = None, blob: str | None = None
    ) -> None:
        seq, stream = (None, None) if row is None else (row.seq, row.stream)
        where = "" if row is None else f"seq {row.seq} ({row.stream} version {row.version}): "
        text = where + text
        self.problems.append(Problem(kind=kind, text=text, seq=seq, stream=stream, blob=blob))

    def sqlite(self, db: Database) -> None:
        try:
            found = [text for (text,) in db.execute("PRAGMA integrity_check")]
        except sqlite3.Error as error:
            found = [str(error)]
        for text in found:
            if text != "ok":
                self.report("sqlite", f"SQLite's integrity check: {text}")

    def schema(self, db: Database) -> None:
        with closing(Database(memory=True)) as model:
            for statement in SCHEMA:
                model.execute(statement)
            expected = _definitions(model)
        try:
            found = _definitions(db)
        except sqlite3.Error as error:
            self.report("sqlite", f"the definitions cannot be read: {error}")
            return
        for key in sorted(expected.keys() | found.keys(), key=str):
            kind, name = key
            if key not in found:
                self.report("schema", f"{kind} {name} is missing: was it dropped?")
            elif key not in expected:
                self.report("schema", f"{kind} {name} was not made by aiopt: {found[key]}")
            elif found[key] != expected[key]:
                text = f"{kind} {name} was altered: expected {expected[key]}, found {found[key]}"
                self.report("schema", text)

    def rows(self, db: Database) -> int:
        """Return the last seq. Damage is stepped over, as far as SQLite lets us."""
        db.conn.text_factory = lambda data: data.decode(errors="replace")
        last, start, step = 0, 0, 1
        writers: set[int] | None = None
        while start < _NOWHERE:
            try:
                if writers is None:
                    writers = {writer for (writer,) in db.execute("SELECT id FROM writer")}
                for row in all_rows(db, start):
                    if row.seq != last + 1:
                        text = f"rows are missing: the row before it is seq {last}"
                        self.report("seq", text, row)
                    last, step = row.seq, 1
                    self.row(row, row.writer in writers)
                break
            except sqlite3.Error as error:
                if step == 1:
                    self.report("sqlite", f"what follows seq {last} cannot be read: {error}")
                start = last + step
                step *= 2
        return last

    def row(self, row: Row, known: bool) -> None:
        self.events += 1
        kinds = Row.__annotations__
        odd = [name for name, kind in kinds.items() if type(getattr(row, name)) is not kind]
        if odd:
            self.report("sqlite", f"seq {row.seq}: of the wrong type: {', '.join(odd)}")
            return
        if not known:
            self.report("writer", f"its writer {row.writer} is not in the table writer", row)
        wseq, previous = self.chains.get(row.writer, (0, genesis(row.writer)))
        if row.wseq != wseq + 1:
            text = f"wseq {row.wseq} of writer {row.writer} comes after {wseq}: rows are missing"
            self.report("chain", text, row)
        elif row_hash(previous, row) != row.hash:
            text = "its hash does not fit: it, or the row of its writer before it, was changed"
            self.report("chain", text, row)
        self.chains[row.writer] = (row.wseq, row.hash)
        if row.version != self.versions.get(row.stream, 0) + 1:
            text = f"the version of the stream before it is {self.versions.get(row.stream, 0)}"
            self.report("version", text, row)
        self.versions[row.stream] = row.version
        expected = self.expected.get(row.writer)
        if expected is not None and expected[0] == row.wseq:
            del self.expected[row.writer]
            if expected[1] != row.hash.hex():
                text = f"hash {row.hash.hex()} is not that of the published head, {expected[1]}"
                self.report("head", text, row)
        try:
            event = codec.decode(row.type, row.schema_version, row.payload)
        except UnknownEventError:
            self.unknown[f"{row.type}.v{row.schema_version}"] += 1
        except CorruptLogError as error:
            self.report("payload", str(error), row)
        else:
            for digest in referenced(event):
                self.referenced.setdefault(digest, row.seq)

    def ends(self, db: Database, last: int) -> None:
        """What rows that are no longer there have left behind."""
        try:
            query = "SELECT seq FROM sqlite_sequence WHERE name = 'event'"
            end = next(iter(db.execute(query)), (0,))[0]
        except sqlite3.Error as error:
            self.report("sqlite", f"the count of rows cannot be read: {error}")
        else:
            if end != last:
                self.report("seq", f"the last row is seq {last}, but SQLite has counted to {end}")
        for writer, (wseq, _) in sorted(self.expected.items()):
            found = self.chains.get(writer, (0, b""))[0]
            text = f"the published head of writer {writer} is wseq {wseq}, but it ends at {found}"
            self.report("head", text)

    def blobs(self, store: BlobStore) -> None:
        for digest, seq in self.referenced.items():
            try:
                store.verify(digest)
            except (CorruptLogError, ValueError) as error:
                self.report("blob", f"first referred to by seq {seq}: {error}", blob=digest)
