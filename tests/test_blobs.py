import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import attrs
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from aiopt.blobs import BlobStore, blobs_beside, referenced
from aiopt.errors import CorruptLogError, LogFullError
from aiopt.events import EVENT_TYPES, PatchRef
from tests.factories import make

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def drafts(store: BlobStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".zst"]


@given(st.binary())
def test_get_gives_what_was_put(data: bytes) -> None:
    """Whatever bytes are put come back under their sha256, from memory and from a file."""
    with TemporaryDirectory() as folder:
        store = BlobStore(Path(folder) / "blobs")
        digest = store.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert store.get(digest) == data
        store.verify(digest)
        assert list(store) == [digest]
        source = Path(folder) / "file"
        source.write_bytes(data)
        assert BlobStore(Path(folder) / "more").put_file(source) == digest
        assert BlobStore(Path(folder) / "more").get(digest) == data


def test_what_is_there_is_not_written_again(store: BlobStore) -> None:
    """Putting the same content twice leaves one file, untouched."""
    digest = store.put(b"content")
    before = store.path(digest).stat()
    assert store.put(b"content") == digest
    assert store.path(digest).stat() == before
    assert drafts(store) == []


def test_blobs_are_in_order(store: BlobStore) -> None:
    """Iteration gives every digest, sorted, and nothing else that lies about."""
    assert list(store) == []
    digests = sorted(store.put(bytes([n])) for n in range(20))
    (store.root / "ab").mkdir(exist_ok=True)
    (store.root / "ab" / "notes.zst").write_text("mine")
    assert list(store) == digests


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the zstd tool")
def test_other_tools_read_blobs(store: BlobStore) -> None:
    """A blob is an ordinary zstd file in a folder named by its first two digits."""
    digest = store.put(b"frame;frame 12\n" * 1000)
    path = store.root / digest[:2] / f"{digest}.zst"
    shown = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    assert shown == b"frame;frame 12\n" * 1000
    assert path.stat().st_size < 1000


def test_a_missing_blob_says_so(store: BlobStore) -> None:
    """What is not there is CorruptLogError with the name of the file."""
    digest = "ab" * 32
    assert not store.has(digest)
    for ask in (store.get, store.verify):
        with pytest.raises(CorruptLogError, match=f"{store.path(digest)}: missing"):
            ask(digest)


def test_a_changed_blob_says_what_it_is(store: BlobStore) -> None:
    """Other content is CorruptLogError with the digests that were expected and found."""
    digest, other = store.put(b"content"), store.put(b"other")
    store.path(digest).write_bytes(store.path(other).read_bytes())
    for ask in (store.get, store.verify):
        with pytest.raises(CorruptLogError, match=f"expected .*{digest}, found {other}"):
            ask(digest)


def test_every_flipped_byte_is_found(store: BlobStore) -> None:
    """Flipping any byte of a blob, or cutting it anywhere, never gives wrong content."""
    digest = store.put(b"some content of a patch")
    whole = store.path(digest).read_bytes()
    for n in range(len(whole)):
        for damaged in (whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :], whole[:n]):
            store.path(digest).write_bytes(damaged)
            with suppress(CorruptLogError):
                assert store.get(digest) == b"some content of a patch"
    store.path(digest).write_bytes(b"no zstd at all")
    with pytest.raises(CorruptLogError, match="no whole zstd file"):
        store.verify(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_only_digests_are_names(store: BlobStore, digest: str) -> None:
    """What is no sha256 in hex is a ValueError and never a path."""
    for ask in (store.get, store.has, store.verify):
        with pytest.raises(ValueError, match="no sha256"):
            ask(digest)


def test_large_files_pass_in_pieces(store: BlobStore, tmp_path: Path) -> None:
    """A file that is larger than a piece comes back whole."""
    source = tmp_path / "profile"
    source.write_bytes(os.urandom(3_000_000))
    digest = store.put_file(source)
    store.verify(digest)
    assert store.get(digest) == source.read_bytes()


def test_blobs_are_taken_over(store: BlobStore, tmp_path: Path) -> None:
    """A blob of another store is checked while it is copied; what is there already is left."""
    other = BlobStore(tmp_path / "other")
    digest = other.put(b"content")
    store.copy_from(other, digest)
    assert store.get(digest) == b"content"
    other.path(digest).unlink()
    store.copy_from(other, digest)
    bad = other.put(b"good")
    other.path(bad).write_bytes(zstandard.compress(b"bad"))
    with pytest.raises(CorruptLogError, match="expected"):
        store.copy_from(other, bad)
    assert list(store) == [digest]
    assert drafts(store) == []


def test_no_room_is_told_apart(store: BlobStore) -> None:
    """A limit on file size is LogFullError; no draft is left, and there is room again later."""
    program = (
        "import os, resource, sys\n"
        "from aiopt.blobs import BlobStore\n"
        "from aiopt.errors import LogFullError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "store = BlobStore(sys.argv[1])\n"
        "small = store.put(b'small')\n"
        "try:\n"
        "    store.put(os.urandom(3_000_000))\n"
        "except LogFullError as error:\n"
        "    assert 'no room for a blob' in str(error)\n"
        "    assert store.get(small) == b'small'\n"
        "    sys.exit(7)\n"
    )
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("file size is limited already")
    argv = [sys.executable, "-c", program, str(store.root)]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == 7
    assert len(list(store)) == 1
    assert drafts(store) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_other_failures_stay_what_they_are(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Only a lack of room is LogFullError; a draft is left in no case."""

    def fail(_: int) -> None:
        raise OSError(number, "failed")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError if number == errno.EIO else LogFullError, match="failed"):
        store.put(b"content")
    assert list(store) == []
    assert drafts(store) == []


def test_what_events_refer_to_is_known() -> None:
    """Every blob in every event is found: in fields of four names, and patches."""
    for cls in EVENT_TYPES:
        event = make(cls)
        expected: list[Any] = []
        for field in attrs.fields(cls):
            value = getattr(event, field.name)
            if field.name in ("log", "stacks", "harness"):
                expected.append(value)
            elif field.name == "artifacts":
                expected.extend(value)
            elif PatchRef in get_args(field.type):
                expected.extend(patch.digest for patch in value)
        assert list(referenced(event)) == expected


def test_blobs_lie_beside_the_log(tmp_path: Path) -> None:
    """The blobs of a log are in the folder beside it."""
    assert blobs_beside(tmp_path / "events.db") == tmp_path / "blobs"
