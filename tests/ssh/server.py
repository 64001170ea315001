"""A real OpenSSH server of the tests' own, with its own keys, on a port of loopback."""

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

PROGRAM = "/usr/sbin/sshd"
USER = "aiopt-ssh-test"


@frozen
class Server:
    """One that runs; `config` is a client's configuration with the alias `cslab-server`."""

    folder: Path
    port: int
    user: str

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def home(self) -> Path:
        return Path(pwd.getpwnam(self.user).pw_dir)

    @property
    def pid(self) -> int:
        return int((self.folder / "sshd.pid").read_text())

    def start(self) -> None:
        """Start it (again)."""
        log = self.folder / "sshd.log"
        arguments = ["-f", str(self.folder / "sshd_config"), "-E", str(log)]
        subprocess.run([PROGRAM, *arguments], check=True)
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """End it and all its sessions."""
        with suppress(FileNotFoundError, ProcessLookupError):
            listener = self.pid
            sessions = _below(listener)
            for pid in (listener, *sessions):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        (self.folder / "sshd.pid").unlink(missing_ok=True)

    def cut(self) -> int:
        """End the sessions, and not the listener; how many processes that were."""
        sessions = _below(self.pid)
        for pid in sessions:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(sessions)


def _below(root: int) -> list[int]:
    """The processes named sshd below a process."""
    found, queue = [], [root]
    while queue:
        parent = queue.pop()
        done = subprocess.run(
            ["ps", "-o", "pid=,comm=", "--ppid", str(parent)], capture_output=True, text=True
        )
        for line in done.stdout.splitlines():
            pid, name = line.split(None, 1)
            if name.strip().startswith("sshd"):
                found.append(int(pid))
                queue.append(int(pid))
    return found


def _key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextmanager
def running(folder: Path, user: str) -> Iterator[Server]:
    """A server in a new folder that lets `user` in."""
    folder.mkdir(mode=0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host_key", "id_test"):
        _key(folder / name)
    shutil.copy(folder / "id_test.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"PidFile {folder}/sshd.pid\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\nSubsystem sftp internal-sftp\nMaxSessions 10\nUsePAM no\n"
        "PrintMotd no\nLogLevel VERBOSE\n"
    )
    host_key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (folder / "ssh_config").write_text(
        f"Host cslab-server\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n"
        f"  IdentityFile {folder}/id_test\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n"
    )
    server = Server(folder, port, user)
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def ordinary_user() -> Iterator[str]:
    """Who runs the tests, or if that is root, somebody for the time of the tests."""
    if os.getuid() != 0:
        yield getpass.getuser()
        return
    with suppress(KeyError):
        pwd.getpwnam(USER)
        _remove_user()  # the tests before were killed
    # A locked password would keep it out, one that no text has does not.
    add = ["useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", USER]
    subprocess.run(add, check=True)
    try:
        yield USER
    finally:
        _remove_user()


def _remove_user() -> None:
    deadline = time.monotonic() + 10
    while subprocess.run(["pkill", "-KILL", "-u", USER]).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    subprocess.run(["userdel", "--remove", USER], check=True, capture_output=True)
