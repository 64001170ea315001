import io
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from hypothesis import given, settings

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.errors import ConcurrentWriteError, CorruptLogError, LogError, LogVersionError
from aiopt.events import Event, GateFailed, GatePassed
from aiopt.lease import Lease
from aiopt.log import Log
from aiopt.logfile import INSERT, Row, row_hash, rows
from aiopt.merge import MergeReport, export_jsonl, import_jsonl, merge
from aiopt.verify import verify
from tests.factories import appends


def write(path: Path, *gates: str, stream: str | None = None) -> int:
    """Append a gate per transaction; return the number of the writer."""
    with Log.open(path) as log:
        name = stream or log.new_stream("exp")
        for gate in gates:
            log.append([(name, GatePassed(gate=gate))])
        return log.writer


def gates(path: Path) -> list[str]:
    with Log.open(path, readonly=True) as log:
        return [r.event.gate for r in log.read() if isinstance(r.event, GatePassed)]


def without_seq(path: Path) -> set[Row]:
    return {row._replace(seq=0) for row in rows(path)}


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%no%'"
        for (name,) in con.execute(triggers).fetchall():
            con.execute(f"DROP TRIGGER {name}")
        con.execute(statement)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here" / "events.db"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there" / "events.db"


# ---- merge ----


def test_two_logs_become_one(here: Path, there: Path) -> None:
    """Every row of both is there with its hash, in each writer's order; twice is like once."""
    write(here, "a", "b")
    write(there, "c", "d", "e")
    assert merge(here, [there]) == MergeReport(events=3, writers=1, blobs=0)
    assert gates(here) == ["a", "b", "c", "d", "e"]
    assert without_seq(there) < without_seq(here)
    assert verify(here).ok
    before = list(rows(here))
    assert merge(here, [there]) == MergeReport(events=0, writers=0, blobs=0)
    assert list(rows(here)) == before


@settings(max_examples=25, deadline=None)
@given(appends(), appends())
def test_merging_keeps_everything(
    mine: list[list[tuple[str, Event]]], yours: list[list[tuple[str, Event]]]
) -> None:
    """Whatever two logs hold, their merge holds it all and is whole, whichever is merged first."""
    with TemporaryDirectory() as folder:
        a, b = Path(folder) / "a" / "events.db", Path(folder) / "b" / "events.db"
        for path, batches in ((a, mine), (b, yours)):
            with Log.open(path) as log:
                for batch in batches:
                    log.append([(f"{stream}{path.parent.name}", event) for stream, event in batch])
        merged = [Path(folder) / name / "events.db" for name in ("ab", "ba")]
        merge(merged[0], [a, b])
        merge(merged[1], [b, a])
        for path in merged:
            assert without_seq(path) == without_seq(a) | without_seq(b)
            assert {problem.kind for problem in verify(path).problems} <= {"blob"}
            assert [row.seq for row in rows(path)] == list(range(1, len(list(rows(path))) + 1))


def test_only_what_is_new_is_taken(here: Path, there: Path) -> None:
    """A log that was merged before brings what its writers have added since."""
    write(there, "a", "b")
    merge(here, [there])
    write(there, "c")
    write(here, "mine")
    assert merge(here, [there]).events == 1
    assert gates(here) == ["a", "b", "mine", "c"]
    assert merge(there, [here]) == MergeReport(events=1, writers=1, blobs=0)
    assert without_seq(here) == without_seq(there)
    assert verify(here).ok
    assert verify(there).ok


def test_copies_that_went_on_are_joined(here: Path, there: Path) -> None:
    """A copy that went on, with streams of its own, is a writer of its own and merges."""
    write(here, "a")
    there.parent.mkdir()
    shutil.copy(here, there)
    write(here, "b")
    write(there, "c")
    assert merge(here, [there]) == MergeReport(events=1, writers=1, blobs=0)
    assert gates(here) == ["a", "b", "c"]
    assert verify(here).ok


def test_order_within_streams_is_kept(here: Path, there: Path) -> None:
    """A stream that one writer began and another went on with arrives in order."""
    write(here, "a", "b", stream="s")
    there.parent.mkdir()
    shutil.copy(here, there)
    write(there, "c", "d", stream="s")
    fresh = here.with_name("fresh.db")
    merge(fresh, [there])
    assert [row.version for row in rows(fresh)] == [1, 2, 3, 4]
    assert verify(fresh).ok


def test_nobody_goes_on_as_somebody_else(here: Path, there: Path) -> None:
    """Writers that came by a merge are never the writer of this file, whatever inode it has."""
    theirs = write(there, "a")
    merge(here, [there])
    with closing(sqlite3.connect(here)) as con:
        assert con.execute("SELECT id, place FROM writer").fetchall() == [(theirs, "")]
    assert write(here, "b") != theirs


def test_blobs_come_along(here: Path, there: Path) -> None:
    """Missing blobs are copied, checked; those that are there are left."""
    digests = [BlobStore(blobs_beside(there)).put(text) for text in (b"one", b"two")]
    BlobStore(blobs_beside(here)).put(b"one")
    with Log.open(there) as log:
        log.append([("s", GateFailed(gate="x", detail="", log=d)) for d in digests])
    assert merge(here, [there]).blobs == 1
    assert verify(here).ok
    more = [BlobStore(here.parent / "more").put(text) for text in (b"three",)]
    elsewhere = here.parent / "elsewhere"
    assert merge(here, [there], elsewhere, [here.parent / "more"]).blobs == 1
    assert list(BlobStore(elsewhere)) == more
    with pytest.raises(ValueError, match="1 logs, but 2 folders"):
        merge(here, [there], source_blobs=["a", "b"])


def test_a_changed_blob_is_not_taken(here: Path, there: Path) -> None:
    """A blob that is not what it should be stops the merge before anything is written."""
    write(there, "a")
    store = BlobStore(blobs_beside(there))
    store.path(store.put(b"one")).write_bytes(b"other")
    with pytest.raises(CorruptLogError, match="expected content"):
        merge(here, [there])
    assert list(rows(here)) == []


def test_merging_nothing(here: Path) -> None:
    """A merge of no logs makes an empty one."""
    assert merge(here, []) == MergeReport(events=0, writers=0, blobs=0)
    assert list(rows(here)) == []


def test_empty_logs_bring_nothing(here: Path, there: Path) -> None:
    """A log without events is merged too; its writer has not written."""
    write(there)
    assert merge(here, [there, there]) == MergeReport(events=0, writers=0, blobs=0)


@pytest.mark.parametrize("at", [1, 3, 8])
def test_logs_that_have_diverged_are_named(here: Path, there: Path, at: int) -> None:
    """Two logs with different rows under one name are refused, with the first that differs."""
    write(there, *"abcdefgh", stream="s")
    merge(here, [there])
    write(there, *"ij", stream="s")
    edit(there, f"UPDATE event SET hash = zeroblob(32) WHERE wseq >= {at}")
    before = list(rows(here))
    with pytest.raises(CorruptLogError, match=rf"diverged at wseq {at} of writer"):
        merge(here, [there])
    assert list(rows(here)) == before


def test_a_copy_put_back_is_found(here: Path, there: Path) -> None:
    """An old copy that was put back in its place and went on has diverged from what was merged."""
    write(there, "a")
    old = there.read_bytes()
    write(there, "b", stream="s")
    merge(here, [there])
    there.write_bytes(old)
    write(there, "c", stream="s")
    with pytest.raises(CorruptLogError, match=r"diverged at wseq 2.*put back"):
        merge(here, [there])


def test_one_stream_two_writers(here: Path, there: Path) -> None:
    """Two copies that both went on with one stream cannot be joined, and nothing is."""
    write(here, "a", stream="s")
    there.parent.mkdir()
    shutil.copy(here, there)
    write(here, "b", stream="s")
    write(there, "x", stream="other")
    write(there, "c", stream="s")
    with pytest.raises(CorruptLogError, match=r"have diverged.*same version of one stream"):
        merge(here, [there])
    assert gates(here) == ["a", "b"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET payload = '{}' WHERE seq = 2",
        "DELETE FROM event WHERE seq = 2",
        "DELETE FROM writer",
    ],
)
def test_a_damaged_source_brings_nothing(here: Path, there: Path, statement: str) -> None:
    """A source that is not whole is refused as a whole, also if sound ones were before it."""
    good = there.parent.parent / "good" / "events.db"
    write(good, "x")
    write(there, "a", "b", "c")
    write(here, "mine")
    edit(there, statement)
    if statement == "DELETE FROM writer":
        edit(there, "INSERT INTO writer VALUES (77, '', '', '')")
        edit(there, "UPDATE event SET writer = 77, wseq = wseq WHERE seq < 2")
    with pytest.raises(CorruptLogError, match="nothing was taken over"):
        merge(here, [good, there])
    assert gates(here) == ["mine"]


def test_a_source_that_cannot_be_read(here: Path, there: Path) -> None:
    """Missing, truncated, half-broken and newer sources are errors, and nothing is taken over."""
    with pytest.raises(LogError, match="no log here"):
        merge(here, [there])
    with Log.open(there) as log:
        for n in range(50):
            log.append([("s", GatePassed(gate=f"{n} {'x' * 200}"))] * 20)
    whole = there.read_bytes()
    start = whole.index(b'{"gate":"30 x') // 4096 * 4096
    there.write_bytes(whole[:start] + b"\xff" * 4096 + whole[start + 4096 :])
    with pytest.raises(CorruptLogError, match=r"there/events\.db: damaged"):
        merge(here, [there])
    there.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptLogError, match=r"there/events\.db: damaged"):
        merge(here, [there])
    there.write_bytes(whole)
    edit(there, "PRAGMA user_version = 2")
    with pytest.raises(LogVersionError, match="upgrade"):
        merge(here, [there])
    edit(there, "PRAGMA user_version = 1")
    edit(there, "DROP TABLE writer")
    with pytest.raises(LogError, match="no such table"):
        merge(here, [there])
    assert list(rows(here)) == []


def test_a_merge_takes_the_lease(here: Path, there: Path) -> None:
    """Nobody merges into a log that is being written."""
    write(here, "a")
    write(there, "b")
    with Lease.acquire(here), pytest.raises(ConcurrentWriteError, match="being written"):
        merge(here, [there])
    merge(here, [there])


# ---- lines ----


def export(path: Path) -> list[str]:
    out = io.StringIO()
    count = export_jsonl(path, out)
    lines = out.getvalue().splitlines(keepends=True)
    assert len(lines) == count + 1
    return lines


@settings(max_examples=50, deadline=None)
@given(appends())
def test_lines_become_the_same_log(batches: list[list[tuple[str, Event]]]) -> None:
    """Export and import give the same rows with the same hashes, and the same lines again."""
    with TemporaryDirectory() as folder:
        path, copy = Path(folder) / "events.db", Path(folder) / "copy" / "events.db"
        with Log.open(path) as log:
            for batch in batches:
                log.append(batch)
            out = io.StringIO(newline="\n")
            export_jsonl(log, out)
        lines = [line + "\n" for line in out.getvalue().split("\n")[:-1]]
        assert import_jsonl(lines, copy) == len(lines) - 1
        assert [p.name for p in copy.parent.iterdir()] == ["events.db"]
        assert list(rows(copy)) == list(rows(path))
        again = io.StringIO(newline="\n")
        export_jsonl(str(copy), again)
        assert again.getvalue() == out.getvalue()
        assert {problem.kind for problem in verify(copy).problems} <= {"blob"}


def test_lines_are_objects(here: Path) -> None:
    """The first line is a header; every other is an event with all its columns."""
    writer = write(here, "a", stream="s")
    header, line = map(orjson.loads, export(here))
    assert (header["aiopt_log"], header["events"], header["writers"][0]["id"]) == (1, 1, writer)
    (row,) = rows(here)
    assert line == {**row._asdict(), "hash": row.hash.hex(), "payload": {"gate": "a"}}


def test_an_import_begins_a_new_writer(here: Path, there: Path) -> None:
    """An imported log is written under a number of its own."""
    writer = write(here, "a")
    import_jsonl(export(here), there)
    assert write(there, "b") != writer
    assert verify(there).ok


def change(**columns: object) -> Callable[[list[str]], None]:
    def work(lines: list[str]) -> None:
        lines[2] = orjson.dumps({**orjson.loads(lines[2]), **columns}).decode()

    return work


def replace(number: int, text: str) -> Callable[[list[str]], None]:
    def work(lines: list[str]) -> None:
        lines[number] = text

    return work


def header(**fields: object) -> Callable[[list[str]], None]:
    def work(lines: list[str]) -> None:
        lines[0] = orjson.dumps({**orjson.loads(lines[0]), **fields}).decode()

    return work


def remove(number: int) -> Callable[[list[str]], None]:
    def work(lines: list[str]) -> None:
        del lines[number]

    return work


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (change(payload={"gate": "x"}), "is not what its writer"),
        (change(type="GateParsed"), "is not what its writer"),
        (change(hash="00" * 32), "is not what its writer"),
        (change(writer=5), "is not what its writer"),
        (change(wseq=3), "is not what its writer"),
        (change(seq=3), "line 3: expected seq 2, found 3"),
        (change(version="2"), "line 3: no event.*version is '2'"),
        (change(stream=7), "line 3: no event.*stream is 7"),
        (change(hash="no hex"), "line 3: no event"),
        (change(more=1), "line 3: no event"),
        (replace(2, "{"), "line 3: no event"),
        (replace(2, "[]"), "line 3: no event"),
        (replace(2, "{}"), "line 3: no event"),
        (remove(1), "line 2: expected seq 1, found 2"),
        (remove(3), "ends after 2 events, but its header says 3"),
        (remove(0), "line 1: expected the header"),
        (replace(0, "nothing"), "line 1: expected the header"),
        (replace(0, '{"aiopt_log": "1"}'), "line 1: expected the header"),
        (header(writers=[{}]), "line 1: expected the header"),
        (header(writers=[]), "is not what its writer"),
        (list.clear, "line 1: expected the header"),
    ],
)
def test_lines_that_do_not_fit_are_refused(
    here: Path, there: Path, spoil: Callable[[list[str]], None], match: str
) -> None:
    """Whatever was changed in an exported log, its import says what and leaves nothing."""
    write(here, "a", "b", "c", stream="s")
    lines = export(here)
    spoil(lines)
    with pytest.raises(CorruptLogError, match=match):
        import_jsonl(lines, there)
    assert not there.parent.exists() or list(there.parent.iterdir()) == []


def test_newer_lines_are_refused(here: Path, there: Path) -> None:
    """Lines of a newer format are LogVersionError."""
    write(here, "a")
    lines = export(here)
    header(aiopt_log=2)(lines)
    with pytest.raises(LogVersionError, match=r"log format 2.*1 to 1.*upgrade"):
        import_jsonl(lines, there)


def test_an_import_never_overwrites(here: Path) -> None:
    """An import beside a log that is there is refused."""
    write(here, "a")
    with pytest.raises(LogError, match="there is a log already"):
        import_jsonl(export(here), here)
    assert gates(here) == ["a"]


def test_an_import_that_was_overtaken(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that finds a log in its place at the end leaves that one as it is."""
    write(here, "a")
    lines = export(here)
    monkeypatch.setattr("aiopt.merge.settle", lambda draft, path: False)
    with pytest.raises(LogError, match="meanwhile"):
        import_jsonl(lines, there)
    assert list(there.parent.iterdir()) == []


def test_a_damaged_log_is_exported_as_far_as_it_goes(here: Path, there: Path) -> None:
    """Of a log that was cut short all that can be read is exported, and can be imported."""
    with Log.open(here) as log:
        for n in range(50):
            log.append([("s", GatePassed(gate=f"{n} {'x' * 200}"))] * 20)
    whole = here.read_bytes()
    start = whole.index(b'{"gate":"30 x') // 4096 * 4096
    for damaged in (
        whole[: len(whole) // 2],
        whole[:start] + b"\xff" * 4096 + whole[start + 4096 :],
    ):
        here.write_bytes(damaged)
        out = io.StringIO()
        with pytest.raises(CorruptLogError, match="damaged"):
            export_jsonl(here, out)
        lines = out.getvalue().splitlines()
        if orjson.loads(lines[0])["events"] is not None:
            header(events=None)(lines)
        assert import_jsonl(lines, there) == len(lines) - 1 > 200
        assert verify(there).ok
        there.unlink()


def test_a_payload_that_is_no_json_stops_the_export(here: Path) -> None:
    """A payload that was damaged is named."""
    write(here, "a", "b")
    edit(here, "UPDATE event SET payload = '{' WHERE seq = 2")
    with pytest.raises(CorruptLogError, match="the payload of seq 2 is no JSON"):
        export(here)


def test_unknown_events_travel(here: Path, there: Path) -> None:
    """Events of a newer aiopt are merged, exported and imported as they are."""
    write(here, "a", stream="s")
    (row,) = rows(here)
    new = row._replace(seq=2, wseq=2, version=2, type="ThingHappened", payload='{"x":[1,null]}')
    new = new._replace(hash=row_hash(row.hash, new))
    with closing(sqlite3.connect(here, isolation_level=None)) as con:
        con.execute(INSERT, new)
    merge(there, [here])
    assert list(rows(there)) == [row, new]
    copy = there.with_name("copy.db")
    assert import_jsonl(export(here), copy) == 2
    assert list(rows(copy)) == [row, new]
    assert verify(copy).unknown == {"ThingHappened.v1": 1}
