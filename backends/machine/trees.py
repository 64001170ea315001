"""The files of a workspace in which hostile code has run: no link leads out, all can be removed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Sequence

__all__ = ["check_inside", "digest_of", "names_in", "remove"]


def _inside(path: str, roots: Sequence[str]) -> bool:
    return any(os.path.commonpath([root, path]) == root for root in roots)


def check_inside(path: str, roots: Sequence[str]) -> None:
    """A path that is written as being in one of these folders must be there.

    Raises:
        PermissionError: it is not.
    """
    plain = os.path.normpath(path)
    if _inside(plain, roots) and not _inside(
        os.path.realpath(path), [os.path.realpath(root) for root in roots]
    ):
        raise PermissionError(f"{path} is a link that leads out of the workspace")


def names_in(tree: str) -> list[str]:
    """The paths of all files below `tree`, relative to it, links as files."""
    found: list[str] = []
    queue = [""]
    while queue:
        prefix = queue.pop()
        try:
            entries = list(os.scandir(os.path.join(tree, prefix)))
        except (FileNotFoundError, PermissionError):
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                queue.append(name + "/")
            else:
                found.append(name)
    return found


def digest_of(tree: str, names: Iterable[str]) -> tuple[str, int]:
    """One sha256 over these files of `tree`, and how many they are.

    Of each file, in the order of its path: path, whether it is executable, and content; of a link
    its target.
    """
    ordered = sorted(names, key=os.fsencode)
    total = hashlib.sha256(b"aiopt artifact 1")
    for name in ordered:
        path = os.path.join(tree, name)
        details = os.lstat(path)
        if stat.S_ISLNK(details.st_mode):
            kind, content = b"link", hashlib.sha256(os.fsencode(os.readlink(path))).digest()
        else:
            kind = b"exec" if details.st_mode & 0o100 else b"file"
            content = _sha256(path)
        total.update(b"%s\0%s\0%s" % (os.fsencode(name), kind, content))
    return total.hexdigest(), len(ordered)


def _sha256(path: str) -> bytes:
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            total.update(data)
    return total.digest()


def remove(folder: str) -> None:
    """Remove a folder, however deep it is and whatever rights it has, if it is there.

    Raises:
        OSError: something could not be removed.
    """
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
