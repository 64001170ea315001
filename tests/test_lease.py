import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from aiopt import lease as lease_module
from aiopt.errors import ConcurrentWriteError, LogError, LogFullError
from aiopt.lease import Lease

ROOT = Path(__file__).parents[1]

# A controller: takes the lease, starts what argv says, prints its pid and sleeps.
CONTROLLER = """
import os, subprocess, sys, time
from aiopt.lease import Lease
lease = Lease.acquire(sys.argv[1])
for kind in sys.argv[2].split(","):
    if kind == "supervisor":
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lease.fd,))
    elif kind == "stage":
        import fcntl
        fd = os.open(lease.stages_path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_SH)
        child = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
        os.close(fd)
    elif kind == "hostile":
        import fcntl
        fd = os.open(lease.stages_path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_SH)
        program = f"import fcntl, time; fcntl.flock({fd}, fcntl.LOCK_UN); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", program], pass_fds=(fd,))
        os.close(fd)
        time.sleep(0.3)
    elif kind == "stranger":
        child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
print("ready", flush=True)
time.sleep(60)
"""


class Controller:
    """A controller in a process of its own."""

    def __init__(self, log: Path, children: str) -> None:
        argv = [sys.executable, "-c", CONTROLLER, str(log), children, "--key", "secret"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        self.children: list[int] = []
        while (line := self.process.stdout.readline().strip()) not in ("ready", ""):
            self.children.append(int(line))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        for pid in self.children:
            kill(pid)
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[[str], Controller]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while Path(f"/proc/{pid}/fd").exists() and lease_module._start_ticks(pid) is not None:
        time.sleep(0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    started: list[Controller] = []

    def start(children: str) -> Controller:
        started.append(Controller(log, children))
        return started[-1]

    yield start
    for controller in started:
        controller.end()


def test_one_at_a_time(log: Path) -> None:
    """The lease is held once, and is free when it is closed; closing twice is no harm."""
    with Lease.acquire(log) as lease:
        assert lease.path == log.with_name("events.lock")
        assert lease.stages_path == log.with_name("stages.lock")
        with pytest.raises(ConcurrentWriteError):
            Lease.acquire(log)
        lease.close()
    with Lease.acquire(str(log)):
        pass


def test_the_holder_is_named(log: Path, start: Start) -> None:
    """Who is refused is told at once who holds the lease, and no secret is in the file."""
    holder = start("stranger")
    began = time.monotonic()
    with pytest.raises(ConcurrentWriteError) as caught:
        Lease.acquire(log, wait=30)
    assert time.monotonic() - began < 5
    text = str(caught.value)
    assert f"process {holder.process.pid} (-c " in text
    assert ", since 20" in text
    written = orjson.loads(log.with_name("events.lock").read_bytes())
    assert written["pid"] == holder.process.pid
    assert "secret" not in log.with_name("events.lock").read_text()


def test_options_are_left_out(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is written down up to its first option."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/aiopt", "run", "kv", "--key", "secret", "more"])
    with Lease.acquire(log) as lease:
        written = lease.path.read_text()
    assert orjson.loads(written)["command"] == "aiopt run kv"
    assert "secret" not in written
    assert written.count("\n") == 1


def test_a_killed_holder_without_children_frees_it(log: Path, start: Start) -> None:
    """kill -9 frees the lease when nothing that inherited it is alive."""
    start("stranger").kill()
    with Lease.acquire(log):
        pass


@pytest.mark.parametrize(
    ("children", "file"), [("supervisor", "events.lock"), ("stage", "stages.lock")]
)
def test_children_of_a_killed_holder_keep_it(
    log: Path, start: Start, children: str, file: str
) -> None:
    """After kill -9 of the holder its children keep the lease, are named, and are waited for."""
    holder = start(children)
    holder.kill()
    (child,) = holder.children
    told: list[str] = []
    with pytest.raises(ConcurrentWriteError, match=rf"{file}: .* \(process {child}\)"):
        Lease.acquire(log, wait=0.2, on_wait=told.append)
    assert len(told) == 1
    assert str(child) in told[0]

    def free(text: str) -> None:
        told.append(text)
        kill(child)

    with Lease.acquire(log, wait=20, on_wait=free):
        assert len(told) == 2


def test_a_hostile_stage_frees_only_its_own(log: Path, start: Start) -> None:
    """A stage that unlocks what it inherited frees neither the controller's nor another's lock."""
    holder = start("hostile,stage,hostile")
    with pytest.raises(ConcurrentWriteError, match=f"process {holder.process.pid}"):
        Lease.acquire(log)
    holder.kill()
    stage = holder.children[1]
    with pytest.raises(ConcurrentWriteError, match=rf"still running \(process {stage}\)"):
        Lease.acquire(log)
    kill(stage)
    with Lease.acquire(log):
        pass


def test_why_there_are_two_files(log: Path) -> None:
    """A child that inherits the first lock and unlocks it frees it for all: stages never get it."""
    with Lease.acquire(log) as lease:
        program = f"import fcntl; fcntl.flock({lease.fd}, fcntl.LOCK_UN)"
        subprocess.run([sys.executable, "-c", program], pass_fds=(lease.fd,), check=True)
        with Lease.acquire(log):
            pass


def test_an_unknown_holder_is_waited_for(log: Path) -> None:
    """A lock that is held by somebody who did not sign is refused without a guess."""
    path = log.with_name("events.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for content in (b"", b"[1]", b'{"pid": 1}'):
            path.write_bytes(content)
            with pytest.raises(ConcurrentWriteError, match="somebody unknown"):
                Lease.acquire(log, wait=0.1)
    finally:
        os.close(fd)


def test_a_reused_pid_is_not_the_holder(log: Path) -> None:
    """A process that merely has the number of the holder is not taken for it."""
    with Lease.acquire(log) as lease:
        signed = orjson.loads(lease.path.read_bytes())
        lease.path.write_bytes(orjson.dumps({**signed, "start_ticks": 1}))
        with pytest.raises(ConcurrentWriteError, match=r"is gone, but its children.*process \d+"):
            Lease.acquire(log)


def test_locks_are_not_inherited_by_accident(log: Path) -> None:
    """A child to which the lease was not passed does not hold it."""
    with Lease.acquire(log), subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        pass_on = Path(f"/proc/{child.pid}/fd")
        assert not any(entry.resolve().suffix == ".lock" for entry in pass_on.iterdir())
        child.kill()


def test_no_folder_no_lease(tmp_path: Path) -> None:
    """Where the files cannot be made, a LogError says so."""
    with pytest.raises(LogError, match=r"events\.lock: cannot be opened"):
        Lease.acquire(tmp_path / "nowhere" / "events.db")


def test_no_room_no_lease(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the lease is not taken, and is free afterwards."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(LogFullError, match="No space left"):
            Lease.acquire(log)
    with Lease.acquire(log):
        pass


def test_nothing_is_ever_unlocked() -> None:
    """The lease closes; it never unlocks."""
    assert "LOCK_UN" not in Path(lease_module.__file__).read_text()
