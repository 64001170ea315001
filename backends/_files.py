"""Files in and out of a workspace in which hostile code has run.

No link leads out of it, and any tree can be removed.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread

from aiopt.errors import BackendError

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


def _git(tree: Path, home: str, *arguments: str) -> bytes:
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, cwd=tree, env=env)
    if done.returncode:
        raise BackendError(f"git {arguments[-1]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def digest(tree: Path, patterns: Sequence[str]) -> tuple[str, int]:
    """One sha256 over the files of `tree` that match, and how many they are.

    git itself interprets the patterns, as those of a .gitignore. Of each file, in the order of its
    path: path, whether it is executable, and content; of a link its target.

    Raises:
        BackendError: git failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".patterns") as file:
        file.write("".join(f"{pattern}\n" for pattern in patterns))
        file.flush()
        # An empty repository, so that neither an index nor .gitignore files of the tree have a say.
        with tempfile.TemporaryDirectory() as empty:
            ask = f"ls-files -z --others --ignored --exclude-from={file.name}".split()
            _git(tree, empty, "init", "--quiet", "--bare", "--template=", empty)
            listed = _git(tree, empty, "--git-dir", empty, "--work-tree", str(tree), *ask)
    names = sorted(name for name in listed.split(b"\0") if name)
    total = hashlib.sha256()
    for name in names:
        path = os.path.join(os.fsencode(tree), name)
        details = os.lstat(path)
        if stat.S_ISLNK(details.st_mode):
            kind, content = b"link", hashlib.sha256(os.readlink(path)).digest()
        else:
            kind = b"exec" if details.st_mode & 0o100 else b"file"
            with open(path, "rb") as opened:
                content = hashlib.file_digest(opened, "sha256").digest()
        total.update(b"%s\0%s\0%s" % (name, kind, content))
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
