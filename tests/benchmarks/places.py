"""Where the logs of the benchmarks lie for a while: in memory, and on a disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

__all__ = ["Places", "places"]

_IN_MEMORY = ("tmpfs", "ramfs")


@frozen
class Places:
    """Two folders that go when the benchmarks end."""

    memory: Path
    """On tmpfs if there is one, else on the disk."""
    disk: Path
    memory_kind: str
    disk_kind: str

    @property
    def has_tmpfs(self) -> bool:
        return self.memory_kind in _IN_MEMORY

    @property
    def has_disk(self) -> bool:
        return self.disk_kind not in _IN_MEMORY


@contextmanager
def places(bytes_needed: int) -> Iterator[Places]:
    """Make both; `bytes_needed` is what has to be free in memory."""
    memory, memory_kind = _find(_memory_candidates(), True, bytes_needed)
    disk, disk_kind = _find(
        [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.home(), Path.cwd()], False, 0
    )
    folders: list[Path] = []
    held: list[int] = []
    try:
        for parent in (memory, disk):
            folders.append(Path(tempfile.mkdtemp(prefix="aiopt-bench-", dir=parent)))
            # Open, so that whoever tidies /dev/shm up sees that they are in use.
            held.append(os.open(folders[-1], os.O_RDONLY))
        yield Places(folders[0], folders[1], memory_kind, disk_kind)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for descriptor in held:
            os.close(descriptor)


def _mounts() -> list[tuple[Path, str]]:
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [(Path(point.replace("\\040", " ")), kind) for _, point, kind, *_ in fields]


def _memory_candidates() -> list[Path]:
    found = [point for point, kind in _mounts() if kind in _IN_MEMORY]
    return [Path("/dev/shm"), Path(tempfile.gettempdir()), *found]


def _kind(path: Path) -> str:
    path = path.resolve()
    above = [(point, kind) for point, kind in _mounts() if path.is_relative_to(point)]
    best = max(above, key=lambda pair: len(pair[0].parts), default=(Path("/"), "unknown"))
    return next(kind for point, kind in reversed([*above, best]) if point == best[0])


def _find(candidates: list[Path], in_memory: bool, bytes_needed: int) -> tuple[Path, str]:
    for path in candidates:
        if (
            path.is_dir()
            and os.access(path, os.W_OK | os.X_OK)
            and (_kind(path) in _IN_MEMORY) == in_memory
            and shutil.disk_usage(path).free >= bytes_needed
        ):
            return path, _kind(path)
    fallback = Path(tempfile.gettempdir())
    return fallback, _kind(fallback)
