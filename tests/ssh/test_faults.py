"""What becomes of commands when the connection, the server or the controller goes away."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from aiopt.backends.ssh import SshBackend
from aiopt.errors import SessionLost
from aiopt.protocols import Command, Workspace, WorkspaceSpec
from aiopt.testing import Recorder, kill_controller

from .server import Server

pytestmark = pytest.mark.anyio


@pytest.fixture
def spec(tmp_path: Path) -> WorkspaceSpec:
    for name in ("source", "harness", "scratch"):
        (tmp_path / name).mkdir()
    return WorkspaceSpec(
        name="candidate",
        tree=tmp_path / "source",
        harness=tmp_path / "harness",
        scratch=tmp_path / "scratch",
        marker=f"test-{os.getpid()}-{time.monotonic_ns()}",
    )


@asynccontextmanager
async def opened(backend: SshBackend, spec: WorkspaceSpec) -> AsyncIterator[Workspace]:
    async with backend.session(spec.marker) as session, session.open(spec) as workspace:
        await workspace.new_run("test")
        yield workspace


def sh(script: str, seconds: float = 60.0) -> Command:
    return Command(argv=("sh", "-c", script), timeout=seconds)


COUNT = """
echo begun >> "$RUN_DIR/begun"
i=0
while [ $i -lt 30 ]; do echo $i; i=$((i+1)); sleep 0.1; done
exit 7
"""


async def counted(workspace: Workspace, sink: Recorder) -> None:
    """A command of three seconds has run once, and all that it printed is here."""
    done = await workspace.run(sh(COUNT), sink)
    assert done.exit_code == 7
    assert sink.stdout.decode().split() == [str(i) for i in range(30)]
    once = Recorder()
    await workspace.run(sh('cat "$RUN_DIR/begun"'), once)
    assert once.stdout == b"begun\n"


async def printed(sink: Recorder) -> None:
    with anyio.fail_after(20):
        while b"5\n" not in sink.stdout:  # noqa: ASYNC110  (there is no event)
            await anyio.sleep(0.02)


async def test_a_command_outlives_its_connection(
    backend: SshBackend, server: Server, spec: WorkspaceSpec
) -> None:
    async with opened(backend, spec) as workspace:
        for _ in range(3):
            await workspace.new_run("again")
            sink = Recorder()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(counted, workspace, sink)
                await printed(sink)
                assert server.cut() > 0


async def test_a_command_outlives_the_server(
    backend: SshBackend, server: Server, spec: WorkspaceSpec
) -> None:
    async with opened(backend, spec) as workspace:
        sink = Recorder()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(counted, workspace, sink)
            await printed(sink)
            server.stop()
            await anyio.sleep(4)  # longer than the command takes
            server.start()


async def test_what_does_not_come_back_is_a_lost_session(
    backend: SshBackend, server: Server, spec: WorkspaceSpec
) -> None:
    impatient = evolve(backend, patience_seconds=1.0)
    try:
        async with opened(impatient, spec) as workspace:
            server.stop()
            with pytest.raises(SessionLost, match=r"cslab-server: .*within 1 s"):
                await workspace.run(sh("sleep 100"), Recorder())
    finally:
        server.start()
    assert await backend.kill_remains(spec.marker, ()) == 0


async def test_a_killed_keeper_is_a_lost_session(
    backend: SshBackend, server: Server, spec: WorkspaceSpec
) -> None:
    async with opened(backend, spec) as workspace:
        sink = Recorder()

        async def kill() -> None:
            while not sink.stdout:  # noqa: ASYNC110
                await anyio.sleep(0.02)
            os.kill(keeper_of(sink.stdout.decode().split()[0]), signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with pytest.raises(SessionLost, match="gone"):
                await workspace.run(sh("echo $PPID; sleep 100"), sink)
    await nothing_left(server, spec)


def keeper_of(supervisor: str) -> int:
    """The parent of the process that supervises a command."""
    stat = Path(f"/proc/{supervisor}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


async def test_what_a_dead_controller_leaves_ends_with_its_lease(
    backend: SshBackend, server: Server, spec: WorkspaceSpec
) -> None:
    await kill_controller(evolve(backend, lease_seconds=2.0), spec, "3600.25")
    assert processes(server, spec)
    await nothing_left(server, spec)


def processes(server: Server, spec: WorkspaceSpec) -> list[str]:
    """Those there that carry the marker, and keepers."""
    done = subprocess.run(["ps", "-e", "-o", "pid=,user:32=,args="], capture_output=True, text=True)
    lines = [line.split(None, 2) for line in done.stdout.splitlines()]
    return [
        args
        for _, user, args in (line for line in lines if len(line) == 3)
        if user == server.user and ("3600.25" in args or "keeper" in args)
    ]


async def nothing_left(server: Server, spec: WorkspaceSpec) -> None:
    """No process and no session's folder, after a while."""
    sessions = server.home / ".cache" / "aiopt" / "s"
    with anyio.move_on_after(15):
        while processes(server, spec):  # noqa: ASYNC110
            await anyio.sleep(0.1)
    assert processes(server, spec) == []
    assert [path.read_text() for path in sessions.glob("*/keeper.log")] == []
