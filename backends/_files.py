"""Files in and out of a workspace in which hostile code has run.

No link leads out of it, and any tree can be removed.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread
from pathspec import GitIgnoreSpec

from .machine import trees
from .machine.trees import check_inside, digest_of, names_in

__all__ = ["digest", "get", "put", "remove"]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def put(local: Path, remote: Path, roots: Sequence[str]) -> None:
    """Copy a file or folder in; folders on the way are made, a link in its place is replaced.

    Raises:
        FileNotFoundError: `local` does not exist.
        PermissionError: `remote` would be outside of the folders that it is written to be in.
    """
    check_inside(str(remote.parent), roots)
    remote.parent.mkdir(parents=True, exist_ok=True)
    if remote.is_symlink():
        remote.unlink()
    _copy(local, remote)


def get(remote: Path, local: Path, roots: Sequence[str]) -> None:
    """Copy a file or folder out; folders on the way are made.

    Raises:
        FileNotFoundError: nothing is at `remote`.
        PermissionError: `remote` is outside of the folders that it is written to be in.
    """
    check_inside(str(remote), roots)
    local.parent.mkdir(parents=True, exist_ok=True)
    _copy(remote, local)


def digest(tree: Path, patterns: Sequence[str]) -> tuple[str, int]:
    """One sha256 over the files of `tree` that match patterns as in a .gitignore, and how many."""
    spec = GitIgnoreSpec.from_lines(patterns)
    return digest_of(str(tree), spec.match_files(names_in(str(tree))))


async def remove(folder: str) -> None:
    """Remove a run folder, however deep it is and whatever rights it has.

    Raises:
        OSError: something could not be removed.
    """
    try:
        for name in ("home", "tmp"):
            os.rmdir(os.path.join(folder, name))
        os.rmdir(folder)
    except OSError:
        await to_thread.run_sync(trees.remove, folder)
