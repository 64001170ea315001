"""The files beside a log: what they hold is the log's, whatever happens to them."""

import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from aiopt import codec, logfile, projection
from aiopt.codec import SCHEMA_VERSIONS
from aiopt.columnar import NEEDED, Columns, Gathering, Unprojectable
from aiopt.events import CampaignResumed, RunMeasured
from aiopt.log import Log
from aiopt.logfile import rows
from aiopt.projection import Projection, folder_of
from tests.benchmarks import large_log
from tests.factories import make
from tests.test_columnar import BEGIN, same

RUNS = 9_000


def slowly(log: Path) -> Columns:
    """The columns by the plain way: every row, in memory."""
    gathering = Gathering()
    for row in rows(log):
        if row.type in NEEDED:
            gathering.add(row.seq, row.stream, row.type, row.payload)
        gathering.last_seq = row.seq
    return gathering.columns()


def columns_of(log: Path, wait: float = 1.0) -> Columns:
    with Projection.open(log, wait=wait) as opened:
        return opened.whole()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Columns]:
    """A log with two full chunks and a tail, and a projection that is right."""
    log = tmp_path_factory.mktemp("origin") / "events.db"
    large_log.write(log, RUNS, campaigns=2)
    columns_of(log)
    return log, slowly(log)


@pytest.fixture
def log(origin: tuple[Path, Columns], tmp_path: Path) -> Path:
    shutil.copytree(origin[0].parent, tmp_path / "log")
    return tmp_path / "log" / "events.db"


@pytest.fixture
def expected(origin: tuple[Path, Columns]) -> Columns:
    return origin[1]


def files(log: Path) -> list[Path]:
    return sorted(p for p in folder_of(log).iterdir() if p.suffix in (".chunks", ".index"))


def contents(log: Path) -> list[bytes]:
    return [path.read_bytes() for path in files(log)]


def test_what_is_written_is_what_the_log_says(log: Path, expected: Columns) -> None:
    assert len(expected.chunks) == 3
    shutil.rmtree(folder_of(log))
    assert same(columns_of(log), expected)
    assert [path.name for path in files(log)] == ["events.db.chunks", "events.db.index"]


def test_what_is_there_is_read_and_not_written_again(
    log: Path, expected: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns_of(log)  # a copy has other inodes
    before = contents(log)
    monkeypatch.setattr(projection, "_gather", None)  # nobody may call it
    assert same(columns_of(log), expected)
    assert contents(log) == before


def test_a_log_that_grows_is_caught_up_with(tmp_path: Path) -> None:
    """Also while somebody has it open for writing, and across full chunks."""
    log = tmp_path / "events.db"
    for number in range(4):
        large_log.write(log, 2_500, seed=number)
        with Log.open(log):
            found = columns_of(log)
        assert same(found, slowly(log))
    kept = contents(log)
    shutil.rmtree(folder_of(log))
    assert same(found, columns_of(log))
    assert contents(log)[0] == kept[0]  # the same chunks, byte for byte


def test_one_more_event_is_enough(log: Path) -> None:
    before = columns_of(log)
    with Log.open(log) as opened:
        opened.append([(before.texts["stream"][-1], make(RunMeasured, workload="new"))])
    found = columns_of(log)
    assert same(found, slowly(log))
    assert (len(found), found.workloads[-1]) == (len(before) + 1, "new")
    with Log.open(log) as opened:
        opened.append([(found.campaigns[0], make(CampaignResumed))])
    assert columns_of(log).last_seq == found.last_seq + 1


def test_the_events_of_a_stream_and_of_a_place(log: Path, expected: Columns) -> None:
    stream = expected.texts["stream"][3]
    with Projection.open(log) as opened, Log.open(log, readonly=True) as reference:
        recorded = list(reference.read(stream=stream))
        assert opened.events(stream) == [each.event for each in recorded]
        assert opened.event(recorded[0].seq) == recorded[0].event
        with Log.open(log) as writer:
            writer.append([(stream, make(RunMeasured))])
        assert opened.events(stream) == [each.event for each in recorded]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_cut_or_bent_is_made_anew(log: Path, expected: Columns, seed: int) -> None:
    coin = random.Random(seed)
    path = coin.choice(files(log))
    data = bytearray(path.read_bytes())
    match coin.choice(("cut", "bent", "hole", "gone", "empty")):
        case "cut":
            del data[coin.randrange(len(data)) :]
        case "bent":
            for _ in range(coin.choice([1, 1, 50])):
                data[coin.randrange(len(data))] ^= 1 << coin.randrange(8)
        case "hole":
            at = coin.randrange(len(data))
            data[at : at + 5000] = bytes(len(data[at : at + 5000]))
        case "gone":
            path.unlink()
            data = bytearray()
        case "empty":
            data = bytearray()
    if path.exists():
        path.write_bytes(data)
    assert same(columns_of(log), expected)
    assert same(columns_of(log), expected)


def test_every_bent_bit_of_a_chunk_would_be_seen(log: Path, expected: Columns) -> None:
    """Without the checksums the columns would be wrong: what the test above bends, matters."""
    path = files(log)[0]
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    found = projection._Files(folder_of(log), log.name)
    with closing(sqlite3.connect(log)) as con, ExitStack() as held:
        assert found.load(con, held) is None
    data[1000] ^= 1
    path.write_bytes(data)
    with closing(sqlite3.connect(log)) as con, ExitStack() as held:
        assert found.load(con, held) is not None


def test_what_lies_behind_the_last_chunk_does_not_matter(log: Path, expected: Columns) -> None:
    with files(log)[0].open("ab") as file:
        file.write(b"half a chunk" * 1000)
    assert same(columns_of(log), expected)
    large_log.write(log, 5_000, seed=3)
    assert same(columns_of(log), slowly(log))


def test_the_files_of_another_log_are_made_anew(log: Path, tmp_path: Path) -> None:
    """Of the same length, too."""
    other = tmp_path / "other" / "events.db"
    large_log.write(other, RUNS, campaigns=2)
    shutil.copytree(folder_of(log), folder_of(other))
    with Log.open(other, readonly=True) as opened:
        assert opened.last_seq() == columns_of(log).last_seq
    assert same(columns_of(other), slowly(other))


def test_files_of_another_version_are_made_anew(
    log: Path, expected: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns_of(log)
    before = contents(log)
    monkeypatch.setattr(projection, "_VERSIONS", [99, 99])
    assert same(columns_of(log), expected)
    assert contents(log)[1] != before[1]


def test_where_nothing_can_be_written_it_stays_in_memory(log: Path, expected: Columns) -> None:
    shutil.rmtree(folder_of(log))
    folder_of(log).write_text("no folder")
    assert same(columns_of(log), expected)
    assert folder_of(log).read_text() == "no folder"


def test_with_no_room_it_stays_in_memory(
    log: Path, expected: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder_of(log))

    def full(fd: int, data: bytes, at: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(projection, "_write", full)
    assert same(columns_of(log), expected)


def test_while_another_process_has_the_files_it_stays_in_memory(
    log: Path, expected: Columns
) -> None:
    large_log.write(log, 100, seed=5)
    before = contents(log)
    with (folder_of(log) / "events.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # it may read them, and catches up in memory
        assert same(columns_of(log, wait=0), slowly(log))
    with (folder_of(log) / "events.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert same(columns_of(log, wait=0), slowly(log))
        assert contents(log) == before


BUILD = """
import sys
from pathlib import Path
from aiopt import projection
projection._SAVED = projection.CHUNK
print("begun", flush=True)
with projection.Projection.open(Path(sys.argv[1]), wait=float(sys.argv[2])) as opened:
    print(len(opened.columns), flush=True)
"""


def building(log: Path, wait: float = 5.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(log), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_at_any_moment_the_next_opening_is_right(
    log: Path, expected: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder_of(log))
    coin, caught, parts = random.Random(4), 0, 0
    for number in range(25):
        with building(log) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(coin.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
            caught += process.wait() == -signal.SIGKILL
        parts += folder_of(log).exists() and (folder_of(log) / "events.db.index").exists()
        if number % 3 == 2:  # else the next one goes on with what this one left
            assert same(columns_of(log), expected)
            shutil.rmtree(folder_of(log))
    assert caught
    assert parts


@pytest.mark.slow
def test_many_at_once_while_a_campaign_writes(log: Path) -> None:
    """Each gets columns that were right at some moment, and the files end up right."""
    shutil.rmtree(folder_of(log))

    def read(number: int) -> int:
        with building(log, wait=0.3 * number) as process:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            return int(output.split()[-1])

    with ThreadPoolExecutor(5) as pool:
        found = pool.map(read, range(5))
        for seed in range(5, 8):
            large_log.write(log, 1_500, seed=seed)
        counts = list(found)
    end = slowly(log)
    assert all(RUNS <= count <= len(end) for count in counts)
    assert same(columns_of(log), end)


# ---- what cannot be made columns of ----


def broken(log: Path, *statements: str) -> None:
    with closing(sqlite3.connect(log, isolation_level=None)) as con:
        for trigger in ("event_no_update", "event_no_delete"):
            con.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            con.execute(statement)


def small(folder: Path) -> Path:
    with Log.open(folder / "events.db") as opened:
        opened.append(BEGIN)
    return folder / "events.db"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM event WHERE seq = 2",
        "UPDATE event SET type = 'WindBlew' WHERE seq = 3",
        "UPDATE event SET schema_version = 99 WHERE seq = 3",
        "UPDATE event SET payload = '{}' WHERE seq = 3",
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 7",
    ],
)
def test_a_log_that_the_fold_would_refuse_is_refused(statement: str, tmp_path: Path) -> None:
    log = small(tmp_path)
    broken(log, statement)
    with pytest.raises(Unprojectable):
        Projection.open(log)


@pytest.mark.parametrize("text", ["", "no log", "SQLite format 3\0" + "x" * 5000])
def test_what_is_no_log_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with pytest.raises(Unprojectable):
        Projection.open(path)
    path.write_text(text)
    with pytest.raises(Unprojectable):
        Projection.open(path)


def test_it_opens_what_a_log_is() -> None:
    assert projection._APPLICATION_ID == logfile.APPLICATION_ID
    assert projection._LOG_FORMAT == logfile.FORMAT


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    log = small(tmp_path / "frozen")
    os.chmod(log.parent, 0o555)
    yield log
    os.chmod(log.parent, 0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_nobody_may_write_to(frozen: Path) -> None:
    assert len(columns_of(frozen).experiments) == 2
    assert not folder_of(frozen).exists()


def test_old_versions_go_through_the_upcasters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of an older schema are read by the codec."""
    log = small(tmp_path)
    seen = []
    decode = codec.decode

    def decoded(name: str, version: int, payload: str | bytes) -> object:
        seen.append((name, version))
        return decode(name, 1, payload)

    monkeypatch.setattr(codec, "decode", decoded)
    versions = {**SCHEMA_VERSIONS, "ExperimentStarted": 2}
    monkeypatch.setattr(projection, "SCHEMA_VERSIONS", versions)
    assert len(columns_of(log).experiments) == 2
    assert seen == [("ExperimentStarted", 1)] * 2
