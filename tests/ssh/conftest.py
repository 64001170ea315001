"""An OpenSSH server for all tests here."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiopt.backends.ssh import SshBackend

from .server import PROGRAM, Server, ordinary_user, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that lets an ordinary user in."""
    if not os.path.exists(PROGRAM) or shutil.which("ssh") is None:
        pytest.skip("needs an OpenSSH server: sudo apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    for parent in (folder, *folder.parents[:3]):
        if parent.owner() != "root" or os.getuid() == 0:
            parent.chmod(parent.stat().st_mode | 0o055)
    with ordinary_user() as user, running(folder / "server", user) as found:
        yield found


@pytest.fixture
def backend(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SshBackend:
    """The ordinary user there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return SshBackend(host="cslab-server", config=str(server.config), lock_path=str(server.folder))
