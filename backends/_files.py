"""Files in and out of a workspace in which hostile code has run.

No link leads out of it, and any tree can be removed.
"""

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread
from pathspec import GitIgnoreSpec

__all__ = ["digest", "get", "put", "remove"]


def _inside(path: str, roots: Sequence[str]) -> bool:
    return any(os.path.commonpath([root, path]) == root for root in roots)


def _check(path: Path, roots: Sequence[str]) -> None:
    """A path that is written as being in the workspace must be there."""
    plain = os.path.normpath(path)
    if _inside(plain, roots) and not _inside(
        os.path.realpath(path), [os.path.realpath(root) for root in roots]
    ):
        raise PermissionError(f"{path} is a link that leads out of the workspace")


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
    _check(remote.parent, roots)
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
    _check(remote, roots)
    local.parent.mkdir(parents=True, exist_ok=True)
    _copy(remote, local)


def digest(tree: Path, patterns: Sequence[str]) -> tuple[str, int]:
    """One sha256 over the files of `tree` that match, and how many they are.

    The patterns are those of a .gitignore. Of each file, in the order of its path: path, whether it
    is executable, and content; of a link its target.
    """
    spec = GitIgnoreSpec.from_lines(patterns)
    names = sorted(spec.match_tree_files(tree, follow_links=False), key=os.fsencode)
    total = hashlib.sha256(b"aiopt artifact 1")
    for name in names:
        path = tree / name
        details = path.lstat()
        if stat.S_ISLNK(details.st_mode):
            kind, content = b"link", hashlib.sha256(os.fsencode(os.readlink(path))).digest()
        else:
            kind = b"exec" if details.st_mode & 0o100 else b"file"
            with path.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").digest()
        total.update(b"%s\0%s\0%s" % (os.fsencode(name), kind, content))
    return total.hexdigest(), len(names)


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
        await to_thread.run_sync(_remove_tree, folder)


def _remove_tree(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError):
        # Folders without rights, or deeper than Python recurses: the tools of the system manage
        # both.
        subprocess.run(["chmod", "-R", "u+rwX", "--", folder], check=False, capture_output=True)
        done = subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
        if done.returncode:
            raise OSError(
                f"cannot remove {folder}: {done.stderr.decode(errors='replace').strip()}"
            ) from None
