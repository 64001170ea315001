"""Artifacts by the sha256 of their content: patches, stage logs, profiles, stacks.

A blob lies in `blobs/ab/abcdef….zst` (the digest in full), compressed by zstd, so that
`zstd -dc FILE` shows it without aiopt. It is written beside the others under another name, synced
and then renamed: a blob is there whole or not at all, and never changes.
"""

import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from aiopt import ids
from aiopt.errors import CorruptLogError, LogFullError
from aiopt.events import Event

__all__ = ["BlobStore", "blobs_beside", "referenced"]

LEVEL = 3
_CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def blobs_beside(log_path: Path) -> Path:
    """Where the artifacts of the log at `log_path` are."""
    return log_path.parent / "blobs"


def referenced(event: Event) -> Iterator[str]:
    """The digest of every blob that an event refers to."""
    for name in ("log", "stacks", "harness"):
        digest = getattr(event, name, None)
        if digest is not None:
            yield digest
    yield from getattr(event, "artifacts", ())
    for patch in getattr(event, "genome", ()):
        yield patch.digest


class BlobStore:
    """The blobs in one folder, which is made when the first of them is put."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, digest: str) -> Path:
        """Where this blob is or would be. Raise ValueError for what is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no sha256 in hex")
        return self.root / digest[:2] / f"{digest}.zst"

    def has(self, digest: str) -> bool:
        """Whether there is a file for it; `verify` says whether it is right."""
        return self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Store `data` and return its digest; what is there already is not written again.

        Raise LogFullError if there is no room.
        """
        digest = ids.digest(data)
        return digest if self.has(digest) else self._write(io.BytesIO(data), len(data))

    def put_file(self, path: Path | str) -> str:
        """`put` for a file of any size, which is read once and in pieces."""
        with Path(path).open("rb") as source:
            return self._write(source, -1)

    def copy_from(self, other: "BlobStore", digest: str) -> None:
        """Take over a blob of another store. Raise CorruptLogError if it is not right there."""
        if not self.has(digest):
            with other._open(digest) as source:
                found = self._write(source, -1, digest)
            _compare(other.path(digest), digest, found)

    def _write(self, source: "BinaryIO | _Unpacked", size: int, only: str | None = None) -> str:
        """Store what `source` yields, but if its digest is not `only`, then nothing."""
        draft = self.root / f".{secrets.token_hex(8)}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                hash_ = hashlib.sha256()
                with draft.open("xb") as file:
                    packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
                    frame = packer.compressobj(size=size)
                    while chunk := source.read(_CHUNK):
                        hash_.update(chunk)
                        file.write(frame.compress(chunk))
                    file.write(frame.flush())
                    file.flush()
                    os.fsync(file.fileno())
                digest = hash_.hexdigest()
                if only in (None, digest) and not self.has(digest):
                    self._settle(draft, self.path(digest))
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise LogFullError(
                    f"{self.root}: no room for a blob ({error}); nothing of it was kept and all"
                    " that was there before is intact: free some space and go on"
                ) from error
            raise
        return digest

    def _settle(self, draft: Path, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        draft.rename(path)
        for folder in (path.parent, self.root):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def get(self, digest: str) -> bytes:
        """The content. Raise CorruptLogError if it is missing or not what it should be."""
        path = self.path(digest)
        with self._open(digest) as source:
            data = source.read()
        _compare(path, digest, ids.digest(data))
        return data

    def verify(self, digest: str) -> None:
        """Raise CorruptLogError if `get` would; holds little of it in memory."""
        hash_ = hashlib.sha256()
        with self._open(digest) as source:
            while chunk := source.read(_CHUNK):
                hash_.update(chunk)
        _compare(self.path(digest), digest, hash_.hexdigest())

    def _open(self, digest: str) -> "_Unpacked":
        path = self.path(digest)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise CorruptLogError(
                f"{path}: missing; the log refers to this blob, so restore it from a copy of"
                f" {self.root} (`aiopt merge` brings the blobs of other logs)"
            ) from None
        return _Unpacked(path, file, digest)

    def __iter__(self) -> Iterator[str]:
        """Every digest in the store, in order."""
        for path in sorted(self.root.glob("[0-9a-f][0-9a-f]/*.zst")):
            if _DIGEST.fullmatch(path.stem):
                yield path.stem


def _compare(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise CorruptLogError(
            f"{path}: expected content with sha256 {expected}, found {found};"
            " restore it from a copy"
        )


class _Unpacked(io.RawIOBase):
    """The content of a blob as a file; what is no zstd becomes a CorruptLogError."""

    def __init__(self, path: Path, file: BinaryIO, digest: str) -> None:
        self._path, self._file, self._digest = path, file, digest
        self._reader = zstandard.ZstdDecompressor().stream_reader(file)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._reader.read(size)
        except zstandard.ZstdError as error:
            raise CorruptLogError(
                f"{self._path}: expected content with sha256 {self._digest}, found what is no whole"
                f" zstd file ({error}); restore it from a copy"
            ) from error

    def close(self) -> None:
        self._file.close()
        super().close()
