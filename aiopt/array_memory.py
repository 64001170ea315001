"""Arrays on disk that were made of a log and can be made of it again; see `aiopt.columnar.Memo`.

One file an array, whose name says of what state of the log it is. Anybody may delete them at any
time. A file that is damaged, or of another state, is as good as none.
"""

import hashlib
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from attrs import frozen

__all__ = ["ArrayMemory"]

_HEAD = 256
"""Bytes before the numbers: what they are, and their checksum."""


@frozen
class ArrayMemory:
    """Arrays of one state of a log."""

    folder: Path
    state: str

    def __call__(self, name: str, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The array of this name; where it is not there it is made, and written if that is
        possible.
        """
        path = self.folder / f"{self.state}-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _read(path)
        found = make()
        with suppress(OSError):
            self._write(path, found)
        return found

    def _write(self, path: Path, array: npt.NDArray[Any]) -> None:
        """Under another name first, so that nobody sees a part of it."""
        self.folder.mkdir(exist_ok=True)
        for old in self.folder.iterdir():
            if not old.name.startswith(f"{self.state}-"):
                old.unlink(missing_ok=True)
        data = np.ascontiguousarray(array).tobytes()
        kind, shape = array.dtype.str, list(array.shape)
        head = {"dtype": kind, "shape": shape, "crc": _checksum(kind, shape, data)}
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            part.write_bytes(orjson.dumps(head).ljust(_HEAD) + data)
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def _read(path: Path) -> npt.NDArray[Any]:
    whole: Any = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    head, data = orjson.loads(bytes(whole[:_HEAD])), whole[_HEAD:]
    kind, shape = head["dtype"], head["shape"]
    if _checksum(kind, shape, data) != head["crc"]:
        raise ValueError(path)
    found: npt.NDArray[Any] = data.view(np.dtype(kind)).reshape(shape)
    return found


def _checksum(kind: str, shape: list[int], data: Any) -> int:
    return zlib.crc32(data, zlib.crc32(f"{kind} {shape}".encode()))
