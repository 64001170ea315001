"""The files of a workspace in which hostile code has run: no link leads out, all can be removed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from typing import IO

__all__ = [
    "check_inside",
    "digest_of",
    "names_in",
    "pack",
    "path_inside",
    "remove",
    "sha256_of",
    "unpack",
]


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
            content = sha256_of(path)
        total.update(b"%s\0%s\0%s" % (os.fsencode(name), kind, content))
    return total.hexdigest(), len(ordered)


def sha256_of(path: str) -> bytes:
    """Of the content of a file."""
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            total.update(data)
    return total.digest()


def path_inside(folder: str, name: str) -> str:
    """The path of a name that came from elsewhere.

    Raises:
        PermissionError: it would not be in the folder.
    """
    parts = name.split("/")
    if os.path.isabs(name) or ".." in parts or "\0" in name:
        raise PermissionError(f"{name!r} is not a path below a folder")
    return os.path.join(folder, name) if name else folder


def pack(path: str, into: IO[bytes]) -> None:
    """Write a file or a folder as a tar, in which it is called `x`. Sockets and such are left out.

    Raises:
        FileNotFoundError: nothing is there.
    """

    def known(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return info if info.isdir() or info.isreg() or info.issym() or info.islnk() else None

    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(path, "x", filter=known)


def unpack(packed: IO[bytes], path: str) -> None:
    """Put what `pack` wrote at `path`, into a folder that is there already as well.

    Links are made last, so nothing is written through one that is among them.

    Raises:
        PermissionError: a name in it leads elsewhere, or something there is a link.
    """
    links: list[tuple[str, str]] = []
    with tarfile.open(fileobj=packed, mode="r") as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            place = path_inside(path, name)
            if member.isdir():
                if os.path.islink(place):
                    raise PermissionError(f"{place} is a link")
                os.makedirs(place, exist_ok=True)
            elif member.issym():
                links.append((place, member.linkname))
            else:
                content = tar.extractfile(member)
                if content is not None:
                    with content:
                        _write(place, content, executable=bool(member.mode & 0o100))
    for place, target in links:
        if os.path.lexists(place):
            os.unlink(place)
        os.symlink(target, place)


def _write(path: str, content: IO[bytes], *, executable: bool) -> None:
    if os.path.lexists(path):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o755 if executable else 0o644)
    with open(descriptor, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


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
