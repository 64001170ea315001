"""What a connection runs on the machine: it finds or starts the keeper, and passes bytes on.

The controller sends this file and all others of the folder; see `_link` there. What they are
written to is a folder named after their content, which later connections use again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any

__all__ = ["run"]

_PACKAGE = "aiopt_machine"
_START_SECONDS = 20.0
_KEPT_SECONDS = 7 * 86400.0
_KEEP = (
    "import sys, json; sys.path.insert(0, {place!r}); import aiopt_machine.keeper as k;"
    " sys.exit(k.main({folder!r}, json.load(sys.stdin)))"
)


def run(given: dict[str, Any]) -> None:
    """Connect standard input and output with the keeper of a session, for as long as they last.

    `given`: the `root` of all files, the `session`, its `options`, the `modules` by name with the
    sha256 of all as `version`, and the line that says that the connection is `ready`.
    """
    root = os.path.expanduser(given["root"])
    os.umask(0o077)
    os.makedirs(root, exist_ok=True)
    place = _install(root, given["version"], given["modules"])
    folder = os.path.join(root, "s", given["session"])
    link = _connect(folder)
    if link is None:
        _sweep(os.path.dirname(folder))
        options = {**given["options"], "store": os.path.join(root, "store")}
        link = _start(place, folder, options)
    _write(1, given["ready"].encode())
    threading.Thread(target=_pump_in, args=(link,), daemon=True).start()
    while data := link.recv(1 << 18):
        _write(1, data)
    os._exit(0)


def _pump_in(link: socket.socket) -> None:
    with suppress(OSError):
        while data := os.read(0, 1 << 18):
            link.sendall(data)
    os._exit(0)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _install(root: str, version: str, modules: dict[str, str]) -> str:
    """The folder with the package, complete and unmodified."""
    place = os.path.join(root, f"code-{version[:16]}")
    package = os.path.join(place, _PACKAGE)
    if all(_content(os.path.join(package, name)) == text for name, text in modules.items()):
        return place
    half = tempfile.mkdtemp(dir=root)
    os.mkdir(os.path.join(half, _PACKAGE))
    for name, text in modules.items():
        with open(os.path.join(half, _PACKAGE, name), "w", encoding="utf-8") as file:
            file.write(text)
    shutil.rmtree(place, ignore_errors=True)
    try:
        os.rename(half, place)
    except OSError:  # another one was faster
        shutil.rmtree(half, ignore_errors=True)
    return place


def _content(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


def _connect(folder: str) -> socket.socket | None:
    link = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(folder)  # a path of a socket must be short
        link.connect("socket")
    except OSError:
        link.close()
        return None
    return link


def _start(place: str, folder: str, options: dict[str, Any]) -> socket.socket:
    """Start the keeper and connect to it."""
    os.makedirs(folder, exist_ok=True)
    errors = os.path.join(folder, "keeper.log")
    with open(errors, "ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _KEEP.format(place=place, folder=folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    assert keeper.stdin is not None
    with suppress(BrokenPipeError), keeper.stdin:
        keeper.stdin.write(json.dumps(options).encode())
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        link = _connect(folder)
        if link is not None:
            return link
        if keeper.poll() not in (None, 3):
            break
        time.sleep(0.01)
    said = (_content(errors) or "").strip().splitlines()[-3:]
    sys.exit(f"the keeper in {folder} did not start: {' | '.join(said)}")


def _sweep(sessions: str) -> None:
    """Remove what is left of sessions that nobody has come back to: their keepers are gone."""
    with suppress(FileNotFoundError):
        for name in os.listdir(sessions):
            folder = os.path.join(sessions, name)
            with suppress(OSError):
                guard = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(guard).st_mtime > _KEPT_SECONDS:
                        shutil.rmtree(folder)
                finally:
                    os.close(guard)
