"""Files by their content, so that of the next tree only what is new has to be sent.

The files of a store are shared by all controllers of one user. Trees are copies: what runs in them
cannot change what others get.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence

from . import trees

__all__ = ["Arrival", "Entry", "NotStored", "Store", "entries_of"]

Entry = Sequence[str]
"""`path`, `kind` and content of one file: `f` or `x` (executable) with the sha256 of the content as
hex, `l` (link) with its target."""

_HEAD_BYTES = 64 + 16
"""Of each file in an arrival: sha256 and length, both as hex."""


class NotStored(Exception):
    """A content that is needed and not in the store (any more)."""


def entries_of(tree: str) -> list[tuple[str, str, str]]:
    """The entries of all files in a folder, by path."""
    found = []
    for name in sorted(trees.names_in(tree)):
        path = os.path.join(tree, name)
        if os.path.islink(path):
            found.append((name, "l", os.readlink(path)))
        elif os.path.isfile(path):
            kind = "x" if os.stat(path).st_mode & 0o100 else "f"
            found.append((name, kind, trees.sha256_of(path).hex()))
    return found


class Store:
    """A folder of contents, each under its sha256."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def path_of(self, sha256: str) -> str:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError(f"not a sha256: {sha256!r}")
        return os.path.join(self.folder, sha256[:2], sha256)

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Those of `wanted` that are not here; the others count as used now."""
        absent = []
        for sha256 in wanted:
            try:
                os.utime(self.path_of(sha256))
            except FileNotFoundError:
                absent.append(sha256)
        return absent

    def make_tree(self, folder: str, entries: Sequence[Entry], exact: bool = False) -> bool:
        """Make `folder` hold these files; unless `exact`, what was built beside them may stay.

        Returns whether it already held them, unmodified; else it is made anew.

        Raises:
            NotStored: a content is missing.
        """
        record = folder + ".tree"
        wanted = hashlib.sha256(repr([tuple(entry) for entry in entries]).encode()).hexdigest()
        try:
            with open(record, encoding="ascii") as file:
                same = file.read() == wanted
        except FileNotFoundError:
            same = False
        same = same and (not exact or len(trees.names_in(folder)) == len(entries))
        if same and all(_is_there(folder, entry) for entry in entries):
            return True
        if os.path.lexists(record):
            os.unlink(record)
        trees.remove(folder)
        os.makedirs(folder)
        for path, kind, content in entries:
            self._put(trees.path_inside(folder, path), kind, content)
        with open(record, "w", encoding="ascii") as file:
            file.write(wanted)
        return False

    def _put(self, path: str, kind: str, content: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "l":
            os.symlink(content, path)
            return
        try:
            shutil.copyfile(self.path_of(content), path)
        except FileNotFoundError as error:
            raise NotStored(content) from error
        os.chmod(path, 0o755 if kind == "x" else 0o644)

    def shrink(self, most_bytes: int) -> None:
        """Remove what was not used for longest, until there are at most so many bytes."""
        found, total = [], 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    details = os.stat(path)
                except FileNotFoundError:
                    continue
                found.append((details.st_mtime, details.st_size, path))
                total += details.st_size
        for used, size, path in sorted(found):
            if total <= most_bytes:
                return
            if time.time() - used > 60:  # not from under somebody who is just making a tree
                os.unlink(path)
                total -= size


def _is_there(folder: str, entry: Entry) -> bool:
    path, kind, content = os.path.join(folder, entry[0]), entry[1], entry[2]
    try:
        if kind == "l":
            return os.readlink(path) == content
        if os.path.islink(path) or bool(os.stat(path).st_mode & 0o100) != (kind == "x"):
            return False
        return trees.sha256_of(path).hex() == content
    except OSError:
        return False


class Arrival:
    """Contents on their way into a store: compressed, one after the other, in pieces.

    Each is checked against its name, and is in the store only when it is complete, so what was cut
    off is simply sent again.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unpack = zlib.decompressobj()
        self._waiting = bytearray()
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._name, self._left = "", 0
        self._total = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ValueError: a content is not what its name says.
            OSError: it cannot be written.
        """
        self._waiting += self._unpack.decompress(data)
        while True:
            if self._file is None:
                if len(self._waiting) < _HEAD_BYTES:
                    return
                head = bytes(self._waiting[:_HEAD_BYTES]).decode("ascii")
                del self._waiting[:_HEAD_BYTES]
                self._name, self._left = head[:64], int(head[64:], 16)
                self._total = hashlib.sha256()
                self._store.path_of(self._name)
                self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115  (`_keep` closes it)
                    dir=self._store.folder, delete=False
                )
            piece = bytes(self._waiting[: self._left])
            del self._waiting[: len(piece)]
            self._file.write(piece)
            self._total.update(piece)
            self._left -= len(piece)
            if self._left:
                return
            self._keep(self._file)
            self._file = None

    def _keep(self, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        file.close()
        if self._total.hexdigest() != self._name:
            os.unlink(file.name)
            raise ValueError(f"what came as {self._name} is {self._total.hexdigest()}")
        path = self._store.path_of(self._name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(file.name, path)

    def close(self) -> None:
        """Forget what is not complete."""
        if self._file is not None:
            self._file.close()
            os.unlink(self._file.name)
            self._file = None
