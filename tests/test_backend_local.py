"""The local backend keeps the promises of every backend, and some of its own."""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from aiopt.backends.local import LocalBackend, LocalWorkspace
from aiopt.backends.machine import landlock, processes, shared_memory
from aiopt.errors import BackendUnavailable, SessionLost
from aiopt.events import ProcessRef
from aiopt.protocols import Backend, Command, WorkspaceSpec
from aiopt.testing import CHECKS, Check, Recorder, check_backend, kill_controller

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="runs on Linux only"),
]

confined = pytest.mark.skipif(bool(landlock.missing()), reason=landlock.missing())
scoped = pytest.mark.skipif(landlock.abi() < 6, reason="needs Landlock interface 6")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def spec(tmp_path: Path) -> WorkspaceSpec:
    for name in ("source", "harness", "scratch"):
        (tmp_path / name).mkdir()
    return WorkspaceSpec(
        name="test",
        tree=tmp_path / "source",
        harness=tmp_path / "harness",
        scratch=tmp_path / "scratch",
        marker=f"test-{os.getpid()}-{time.monotonic_ns()}",
    )


def sh(script: str, **more: Any) -> Command:
    return Command(argv=("sh", "-c", script), **more)


def alive(token: str) -> list[int]:
    """The processes with this text among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if token.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def token() -> str:
    return f"3600.{time.monotonic_ns() % 10**9:09d}"


async def until_gone(token: str, seconds: float) -> None:
    with anyio.fail_after(seconds):
        while alive(token):  # noqa: ASYNC110  (there is no event)
            await anyio.sleep(0.01)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_promises(check: Check, tmp_path: Path) -> None:
    await check_backend(LocalBackend(), root=tmp_path, only=[check])


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_promises_without_landlock(check: Check, tmp_path: Path) -> None:
    """Without Landlock everything but confinement is the same."""
    await check_backend(LocalBackend(confine=False), root=tmp_path, only=[check])


async def test_says_how_it_confines() -> None:
    assert (await LocalBackend(confine=False).observe())["write confinement"].startswith("none (")


@pytest.mark.parametrize("confine", [True, False])
async def test_killed_controller_leaves_nothing(spec: WorkspaceSpec, confine: bool) -> None:
    """Without anybody's help, within two seconds."""
    name = token()
    await kill_controller(LocalBackend(confine=confine), spec, name)
    await until_gone(name, 2)


@pytest.mark.parametrize("confine", [True, False])
async def test_killed_supervisor_is_a_lost_session(spec: WorkspaceSpec, confine: bool) -> None:
    name = token()
    async with LocalBackend(confine=confine).open(spec) as workspace:
        supervisor = workspace.supervisor
        assert supervisor is not None
        sink = Recorder()

        async def kill() -> None:
            while sink.stdout != b"up\n":  # noqa: ASYNC110
                await anyio.sleep(0.005)
            os.kill(supervisor.pid, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with pytest.raises(SessionLost, match="signal 9"):
                await workspace.run(sh(f"setsid sleep {name} & echo up; sleep {name}"), sink)
        await until_gone(name, 2)
        assert (await workspace.run(sh("exit 4"), Recorder())).exit_code == 4


async def test_supervisor_is_the_one_that_runs_the_next_command(spec: WorkspaceSpec) -> None:
    async with LocalBackend().open(spec) as workspace:
        for _ in range(2):
            ref = workspace.supervisor
            assert ref is not None
            assert (ref.pid, ref.start_ticks, ref.boot_id) == processes.process_ref(ref.pid)
            sink = Recorder()
            await workspace.run(sh("echo $PPID"), sink)
            assert int(sink.stdout) == ref.pid


async def test_supervisor_serves_one_workspace_after_the_other(spec: WorkspaceSpec) -> None:
    backend = LocalBackend()
    seen = set()
    for _ in range(3):
        async with backend.open(spec) as workspace:
            seen.add(workspace.supervisor)
    assert len(seen) == 1


async def test_supervisor_that_died_while_it_waited_is_replaced(spec: WorkspaceSpec) -> None:
    backend = LocalBackend()
    async with backend.open(spec) as workspace:
        first = workspace.supervisor
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    while processes.process_ref(first.pid):  # noqa: ASYNC110
        await anyio.sleep(0.001)
    async with backend.open(spec) as workspace:
        assert workspace.supervisor != first
        assert (await workspace.run(sh("exit 0"), Recorder())).ok


async def test_process_that_was_forked_ahead_is_replaced(spec: WorkspaceSpec) -> None:
    async with LocalBackend().open(spec) as workspace:
        assert workspace.supervisor is not None
        while not (ahead := processes.process_tree(workspace.supervisor.pid)):  # noqa: ASYNC110
            await anyio.sleep(0.001)
        killed = ahead.pop()
        os.kill(killed, signal.SIGKILL)
        while killed in processes.process_tree(workspace.supervisor.pid):  # noqa: ASYNC110
            await anyio.sleep(0.001)
        done = await workspace.run(sh("exit 0"), Recorder())
        assert done.ok
        assert done.strays_killed == 0


# ---- hostile commands ----


@scoped
@pytest.mark.parametrize(
    "attack",
    [
        "kill -9 $PPID",
        "kill -9 -1",
        "kill -STOP $PPID",
        "cat /proc/$PPID/environ",
        "cat /proc/$PPID/maps",
        "cat /proc/$PPID/mem",
        "cat /proc/$PPID/cwd/etc/passwd",
        "cat /proc/$PPID/fd/*",
        "echo x > /proc/$PPID/root/tmp/escaped",
        f"cat /proc/{os.getpid()}/environ",
        f"kill -9 {os.getpid()}",
    ],
)
async def test_nothing_outside_is_in_reach(spec: WorkspaceSpec, attack: str) -> None:
    """A command can neither signal supervisor and controller nor read what is theirs."""
    async with LocalBackend().open(spec) as workspace:
        before = workspace.supervisor
        sink = Recorder()
        await workspace.run(sh(attack), sink)
        assert sink.stdout == b""
        assert workspace.supervisor == before


async def test_command_cannot_free_the_lease(spec: WorkspaceSpec, tmp_path: Path) -> None:
    """Not by LOCK_UN on any descriptor that it has, and the shared lock lives in a daemon."""
    lease_path, stages = tmp_path / "lease", tmp_path / "stages"
    lease_path.touch()
    lease = os.open(lease_path, os.O_RDWR)
    fcntl.flock(lease, fcntl.LOCK_EX)
    attack = (
        "import fcntl, os\n"
        "for fd in range(3, 300):\n"
        "    try: fcntl.flock(fd, fcntl.LOCK_UN); print(os.readlink(f'/proc/self/fd/{fd}'))\n"
        "    except OSError: pass\n"
    )
    changed = evolve(spec, lease_fd=lease, stages_lock=stages)
    async with LocalBackend().open(changed) as workspace:
        sink = Recorder()
        await workspace.run(Command(argv=("python3", "-c", attack)), sink)
        assert sink.stdout.decode().split() == [str(stages)]
        assert not _free(lease_path)
        service = await workspace.start(sh("exec 3>&-; sleep 100 & wait"), Recorder())
        assert not _free(stages)
        os.close(lease)
        assert not _free(lease_path)  # the supervisor holds it, as long as the service lives
        await service.stop()
        assert _free(stages)
        assert _free(lease_path)


def _free(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@scoped
async def test_session_changing_chain_ends(spec: WorkspaceSpec) -> None:
    """Children that respawn in a new session each time, faster than /proc can be read."""
    script = (
        "import os\n"
        "if os.fork(): os._exit(0)\n"
        "while True:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
    )
    name = token()
    async with LocalBackend().open(spec) as workspace:
        with anyio.fail_after(10):
            done = await workspace.run(Command(argv=("python3", "-c", script, name)), Recorder())
        assert done.ok
        assert not alive(name)


async def test_multiprocessing_works(spec: WorkspaceSpec) -> None:
    script = "import multiprocessing as m; m.Lock(); print(m.Pool(2).map(abs, [-1, -2]))"
    async with LocalBackend().open(spec) as workspace:
        sink = Recorder()
        await workspace.run(Command(argv=("python3", "-c", script)), sink)
        assert sink.stdout == b"[1, 2]\n"


async def test_semaphores_that_are_left_go_and_nothing_else(spec: WorkspaceSpec) -> None:
    """Only what can be nobody's: files of other programs live in the same folder."""
    name = f"aiopt-test-{time.monotonic_ns()}"
    own = anyio.Path(shared_memory.FOLDER, name)
    try:
        async with LocalBackend().open(spec) as workspace:
            script = f"cd {shared_memory.FOLDER}; echo x > sem.{name}; echo x > {name}"
            assert (await workspace.run(sh(script), Recorder())).ok
            assert await own.exists()
            assert f"sem.{name}" not in shared_memory.entries()
    finally:
        await own.unlink()


async def test_semaphores_in_use_stay(spec: WorkspaceSpec) -> None:
    name = f"sem.aiopt-test-{time.monotonic_ns()}"
    path = f"{shared_memory.FOLDER}/{name}"
    async with LocalBackend().open(spec) as workspace:
        before = shared_memory.entries()
        sink = Recorder()
        service = await workspace.start(sh(f"exec 5> {path}; echo up; sleep 100"), sink)
        while sink.stdout != b"up\n":  # noqa: ASYNC110
            await anyio.sleep(0.005)
        await workspace.run(sh("exit 0"), Recorder())
        shared_memory.remove_leftovers(before)
        assert name in shared_memory.entries()
        await service.stop()
        assert name not in shared_memory.entries()


@confined
async def test_shared_memory_can_be_refused(spec: WorkspaceSpec) -> None:
    async with LocalBackend(shared_memory=False).open(spec) as workspace:
        assert not (await workspace.run(sh("echo x > /dev/shm/aiopt-test"), Recorder())).ok


async def test_folders_that_cannot_be_entered_are_removed(spec: WorkspaceSpec) -> None:
    script = (
        "import os\nfor _ in range(1500): os.mkdir('d' * 50); os.chdir('d' * 50)\nos.chmod('.', 0)"
    )
    async with LocalBackend().open(spec) as workspace:
        done = await workspace.run(Command(argv=("python3", "-c", script), cwd="{run}"), Recorder())
        assert done.ok
    assert not list(spec.scratch.iterdir())


async def test_put_does_not_follow_planted_links(spec: WorkspaceSpec, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "file").write_text("new")
    (outside / "victim").write_text("old")
    async with LocalBackend().open(spec) as workspace:
        plant = f"ln -s {outside} {{run}}/folder; ln -s {outside}/victim {{run}}/file"
        assert (await workspace.run(sh(plant), Recorder())).ok
        await workspace.put(tmp_path / "file", "{run}/file")
        with pytest.raises(PermissionError):
            await workspace.put(tmp_path / "file", "{run}/folder/victim")
        with pytest.raises(PermissionError):
            await workspace.get("{run}/folder/victim", tmp_path / "stolen")
    assert (outside / "victim").read_text() == "old"


# ---- machinery ----


async def test_pair_has_equally_long_names(spec: WorkspaceSpec) -> None:
    backend = LocalBackend()
    async with backend.open(spec) as one, backend.open(spec) as two:
        assert isinstance(one, LocalWorkspace)
        assert isinstance(two, LocalWorkspace)
        assert len(one.run_folder) == len(two.run_folder)
        assert one.run_folder != two.run_folder


async def test_unusable_folder(spec: WorkspaceSpec) -> None:
    with pytest.raises(BackendUnavailable, match="harness"):
        async with LocalBackend().open(evolve(spec, harness=Path("/nowhere"))):
            pass


async def test_sink_that_raises_ends_the_command(spec: WorkspaceSpec) -> None:
    class Full:
        def write(self, stream: str, data: bytes) -> None:
            raise OSError("disk full")

    name = token()
    async with LocalBackend().open(spec) as workspace:
        with pytest.raises(OSError, match="disk full"):
            await workspace.run(sh(f"echo x; sleep {name}"), Full())
        assert not alive(name)
        assert (await workspace.run(sh("exit 0"), Recorder())).ok


async def test_nul_in_an_argument(spec: WorkspaceSpec) -> None:
    async with LocalBackend().open(spec) as workspace:
        with pytest.raises(ValueError, match="NUL"):
            await workspace.run(Command(argv=("echo", "\0")), Recorder())
        assert (await workspace.run(sh("exit 0"), Recorder())).ok


async def test_large_environment(spec: WorkspaceSpec) -> None:
    env = {f"NAME{number}": "x" * 100_000 for number in range(10)}
    async with LocalBackend().open(spec) as workspace:
        assert (await workspace.run(Command(argv=("true",), env=env), Recorder())).ok
        huge = await workspace.run(Command(argv=("true", "x" * 5_000_000)), sink := Recorder())
        assert huge.exit_code == 126
        assert b"too long" in sink.stderr


async def test_kill_remains_knows_a_reused_number(spec: WorkspaceSpec) -> None:
    backend = LocalBackend()
    async with backend.open(spec) as workspace:
        service = await workspace.start(sh("sleep 100"), Recorder())
        found = processes.process_ref(service.pid)
        assert found is not None
        real = ProcessRef(**found._asdict())
        for other in (
            evolve(real, start_ticks=real.start_ticks + 1),
            evolve(real, boot_id="another"),
            ProcessRef(pid=os.getpid(), start_ticks=0, boot_id=real.boot_id),
        ):
            assert await backend.kill_remains("", [other]) == 0
        assert not service.exited()
        assert await backend.kill_remains("no-such-marker", ()) == 0
        with anyio.fail_after(10):
            # What was forked has its marker only once it has executed.
            while await backend.kill_remains(spec.marker, ()) < 1:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            while not service.exited():  # noqa: ASYNC110
                await anyio.sleep(0.005)


async def test_waiting_measurement_is_not_starved(tmp_path: Path) -> None:
    """Builders that overlap without a gap do not keep a measurement out."""
    (tmp_path / "lock").mkdir()
    backend: Backend = LocalBackend(lock_path=str(tmp_path / "lock"))
    measured = anyio.Event()

    async def build() -> None:
        while not measured.is_set():
            async with backend.building():
                await anyio.sleep(0.05)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(build)
                await anyio.sleep(0.012)
            async with backend.measuring():
                measured.set()
