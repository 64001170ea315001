"""What a backend promises, as checks that any backend, ours or a third party's, can be put through.

With pytest and anyio's plug-in:

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    async def test_promises(check: Check, tmp_path: Path) -> None:
        await check_backend(MyBackend(), root=tmp_path, only=[check])

The machine behind the backend needs sh, sleep, setsid, grep and python3. The backend must be
picklable, as a class whose fields are options is.
"""

import asyncio
import os
import pickle
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from attrs import evolve, field, frozen

from aiopt.errors import CommandTimeout
from aiopt.protocols import (
    Backend,
    Command,
    Completed,
    OutputStream,
    Service,
    Workspace,
    WorkspaceSpec,
)

__all__ = ["CHECKS", "BrokenPromise", "Check", "Recorder", "check_backend"]


_HOME = os.path.expanduser("~")


class BrokenPromise(AssertionError):
    """A backend does not do what `aiopt.protocols.Backend` says."""

    def __init__(self, check: str, promise: str, found: str) -> None:
        self.check = check
        self.promise = promise
        self.found = found
        super().__init__(f"{check}: {promise} Found: {found}")


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""

    def write(self, stream: OutputStream, data: bytes) -> None:
        if stream == "stdout":
            self.stdout += data
        else:
            self.stderr += data


class _Counter:
    """A sink that keeps sizes and the last bytes only."""

    def __init__(self) -> None:
        self.bytes = 0
        self.last = b""

    def write(self, stream: OutputStream, data: bytes) -> None:
        self.bytes += len(data)
        self.last = (self.last + data)[-100:]


class _Found(Exception):
    """What a check found instead."""


def _expect(holds: bool, found: object) -> None:
    if not holds:
        raise _Found(str(found))


def _sh(script: str, **more: Any) -> Command:
    return Command(argv=("sh", "-c", script), **more)


def _python(script: str, **more: Any) -> Command:
    return Command(argv=("python3", "-c", script), **more)


def _token() -> str:
    """An argument of `sleep` by which a process can be found: about an hour, to a nanosecond."""
    return f"3600.{secrets.randbelow(10**9):09d}"


@frozen(kw_only=True)
class _Bench:
    """Where a check runs."""

    backend: Backend
    """In a session."""
    unconnected: Backend
    spec: WorkspaceSpec

    @asynccontextmanager
    async def open(self, **changes: Any) -> AsyncIterator[Workspace]:
        async with self.backend.open(evolve(self.spec, **changes)) as workspace:
            await workspace.new_run("check")
            yield workspace

    async def alive(self, token: str) -> int:
        """How many processes there have `token` among their arguments."""
        pattern = token[:-1] + f"[{token[-1]}]"  # does not find the searcher itself
        sink = Recorder()
        async with self.backend.open(self.spec) as workspace:
            script = 'grep -l -e "$0" /proc/[0-9]*/cmdline 2>/dev/null; true'
            await workspace.run(Command(argv=("sh", "-c", script, pattern)), sink)
        return len(sink.stdout.split())

    async def gone(self, token: str, within: float = 0.0) -> None:
        """Expect that nothing with `token` is alive, at the latest `within` seconds from now."""
        deadline = anyio.current_time() + within
        while await self.alive(token):
            _expect(anyio.current_time() < deadline, f"{await self.alive(token)} still alive")
            await anyio.sleep(0.02)


async def _until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(10):
        while not condition():  # noqa: ASYNC110  (there is no event)
            await anyio.sleep(0.005)
        return
    raise _Found(f"{what}: not within 10 s")


async def _output(workspace: Workspace, command: Command) -> bytes:
    sink = Recorder()
    done = await workspace.run(command, sink)
    _expect(done.ok, f"{done} {sink.stderr!r}")
    return sink.stdout


# ---- how a command ends, and what it says ----


async def exit_codes(bench: _Bench) -> None:
    """An exit code is a value, and a signal is one too."""
    async with bench.open() as workspace:
        for code in (0, 1, 77, 255):
            done = await workspace.run(_sh(f"exit {code}"), Recorder())
            _expect((done.exit_code, done.signal) == (code, None), done)
        done = await workspace.run(_sh("kill -SEGV $$"), Recorder())
        _expect((done.exit_code, done.signal) == (None, signal.SIGSEGV), done)


async def missing_executable(bench: _Bench) -> None:
    """A missing executable ends with 127 and a line on stderr; the workspace works on."""
    async with bench.open() as workspace:
        for name in ("aiopt-no-such-program", "{source}/no/such/program"):
            sink = Recorder()
            done = await workspace.run(Command(argv=(name,)), sink)
            _expect(
                done.exit_code == 127 and sink.stderr.endswith(b"\n"), f"{done} {sink.stderr!r}"
            )
        _expect((await workspace.run(_sh("exit 0"), Recorder())).ok, "nothing runs after it")


async def streams(bench: _Bench) -> None:
    """stdout and stderr arrive apart, complete, byte for byte."""
    script = (
        "import os; b = bytes(range(256)) * 2000\n"
        "for i in range(0, len(b), 999): os.write(1, b[i:i+999]); os.write(2, b[i:i+999][::-1])"
    )
    data = bytes(range(256)) * 2000
    async with bench.open() as workspace:
        sink = Recorder()
        done = await workspace.run(_python(script), sink)
        turned = b"".join(data[i : i + 999][::-1] for i in range(0, len(data), 999))
        _expect(done.ok and sink.stdout == data, f"{done}, {len(sink.stdout)} bytes")
        _expect(sink.stderr == turned, f"stderr: {len(sink.stderr)} bytes")
        _expect(done.dropped_bytes == 0, done)


async def standard_input(bench: _Bench) -> None:
    """`stdin` arrives whole; without it, reading ends at once."""
    async with bench.open() as workspace:
        for data in (b"", b"\0\xff line\n" * 100_000):
            got = await _output(workspace, Command(argv=("cat",), stdin=data))
            _expect(got == data, f"{len(got)} of {len(data)} bytes")


async def folders(bench: _Bench) -> None:
    """Placeholders in arguments and folder are the workspace's; a command begins in the source."""
    async with bench.open() as workspace:
        names = (await _output(workspace, _sh("echo {source} {harness} {run}"))).decode().split()
        _expect(len({*names}) == 3 and all(name.startswith("/") for name in names), names)
        for cwd, folder in zip(("{source}", "{harness}", "{run}"), names, strict=True):
            got = await _output(workspace, Command(argv=("pwd", "-P"), cwd=cwd))
            _expect(got.decode().strip() == folder, f"{cwd}: {got!r}, not {folder}")
        got = await _output(workspace, _sh("pwd -P"))
        _expect(got.decode().strip() == names[0], got)
        got = await _output(workspace, Command(argv=("echo", "{other} {} {")))
        _expect(got == b"{other} {} {\n", got)
        text = await _output(workspace, _sh("cat {source}/file {harness}/file"))
        _expect(text == b"source\nharness\n", text)


async def run_folders(bench: _Bench) -> None:
    """`new_run` begins with an empty, writable folder; none of them stays."""
    folders = []
    async with bench.open() as workspace:
        for label in ("one", "two"):
            await workspace.new_run(label)
            script = 'echo {run}; test ! -e "{run}/left" && echo x > {run}/left'
            folders.append((await _output(workspace, _sh(script))).decode().strip())
    async with bench.open() as workspace:
        for folder in folders:
            done = await workspace.run(Command(argv=("test", "-e", folder)), Recorder())
            _expect(not done.ok, f"{folder} is still there")


async def environment(bench: _Bench) -> None:
    """Only a whitelist of variables reaches a command: no secret does, what is named does."""
    secret, named = "AIOPT_CHECK_API_KEY", "AIOPT_CHECK_NAMED"
    os.environ[secret] = os.environ[named] = "value"
    try:
        async with bench.open(pass_env=(named,)) as workspace:
            command = Command(argv=("env", "-0"), env={"EXTRA": "a=b\nc", "LANG": "C"})
            entries = (await _output(workspace, command)).decode().split("\0")
            env = dict(entry.split("=", 1) for entry in entries if entry)
            names = (await _output(workspace, _sh("echo {source} {harness} {run}"))).decode()
    finally:
        del os.environ[secret], os.environ[named]
    source, harness, run = names.split()
    _expect(secret not in env, "the secret")
    _expect(env.get(named) == "value", f"{named}: {env.get(named)!r}")
    _expect((env.get("EXTRA"), env.get("LANG")) == ("a=b\nc", "C"), env)
    given = tuple(env.get(name) for name in ("SOURCE_DIR", "TARGET_DIR", "RUN_DIR"))
    _expect(given == (source, harness, run), given)
    _expect(env.get("AIOPT_JOB", "").startswith(bench.spec.marker), env.get("AIOPT_JOB"))
    for name in ("HOME", "TMPDIR"):
        _expect(env.get(name, "").startswith(run), f"{name}: {env.get(name)!r}")


async def output_cap(bench: _Bench) -> None:
    """Endless output is cut, quickly: the end of it arrives, and what is missing is counted."""
    size = 200_000_000
    script = (
        f"import os\nb = b'x' * 1000000\nfor _ in range({size // 10**6}): os.write(1, b)\n"
        "os.write(1, b'the end')"
    )
    async with bench.open() as workspace:
        sink = _Counter()
        began = anyio.current_time()
        done = await workspace.run(_python(script), sink)
        seconds = anyio.current_time() - began
    _expect(done.ok and done.dropped_bytes > 0, done)
    _expect(size <= sink.bytes + done.dropped_bytes < size + 1000, f"{sink.bytes}, {done}")
    _expect(sink.bytes < size / 4, f"{sink.bytes} bytes reached the sink")
    _expect(sink.last.endswith(b"the end"), sink.last)
    _expect(seconds < 20, f"{seconds:.1f} s")


# ---- nothing stays ----

_DAEMON = """
import os, sys
keep = sys.argv[2] == "keep"
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir("/")
if not keep: os.closerange(0, 1000)
os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
"""


async def timeouts(bench: _Bench) -> None:
    """A timeout raises CommandTimeout, and a tree that ignores TERM is gone then."""
    token = _token()
    script = f"trap '' TERM HUP; (sleep {token}) & setsid sleep {token} & echo up; sleep {token}"
    async with bench.open() as workspace:
        sink = Recorder()
        began = anyio.current_time()
        try:
            done = await workspace.run(_sh(script, timeout=0.5), sink)
        except CommandTimeout:
            seconds = anyio.current_time() - began
        else:
            raise _Found(str(done))
        await bench.gone(token)
        _expect(sink.stdout == b"up\n", sink.stdout)
        _expect(seconds < 20, f"{seconds:.1f} s")
        _expect((await workspace.run(_sh("exit 0"), Recorder())).ok, "nothing runs after it")


async def daemons(bench: _Bench) -> None:
    """A daemon (own session, no environment, no open files) is gone after `run`, and counted."""
    token = _token()
    async with bench.open() as workspace:
        command = Command(argv=("python3", "-c", _DAEMON, token, "close"))
        done = await workspace.run(command, Recorder())
        await bench.gone(token)
        _expect(done.ok and done.strays_killed == 1, done)


async def held_pipes(bench: _Bench) -> None:
    """A daemon that keeps the output open does not hold up `run`."""
    token = _token()
    async with bench.open() as workspace:
        command = Command(argv=("python3", "-c", _DAEMON, token, "keep"), timeout=30)
        with anyio.move_on_after(10) as late:
            done = await workspace.run(command, Recorder())
        _expect(not late.cancelled_caught, "still waiting after 10 s")
        await bench.gone(token)
        _expect(done.ok and done.strays_killed == 1, done)


async def respawning(bench: _Bench) -> None:
    """Children that replace themselves as fast as they can end too."""
    token = _token()
    script = (
        "import os, sys, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        while True:\n"
        "            if os.fork(): os._exit(0)\n"
        "            time.sleep(0.001)\n"
        "time.sleep(0.1)"
    )
    async with bench.open() as workspace:
        command = Command(argv=("python3", "-c", script, token), timeout=30)
        with anyio.move_on_after(20) as late:
            done = await workspace.run(command, Recorder())
        _expect(not late.cancelled_caught, "still waiting after 20 s")
        await bench.gone(token)
        _expect(done.ok, done)


async def cancellation(bench: _Bench) -> None:
    """A cancelled `run` leaves nothing, and the workspace works on."""
    token = _token()
    async with bench.open() as workspace:
        sink = Recorder()
        async with anyio.create_task_group() as tasks:
            script = f"setsid sleep {token} & echo up; sleep {token}"
            tasks.start_soon(workspace.run, _sh(script), sink)
            await _until(lambda: sink.stdout == b"up\n", "output")
            tasks.cancel_scope.cancel()
        await bench.gone(token)
        _expect((await workspace.run(_sh("exit 0"), Recorder())).ok, "nothing runs after it")


async def controller_killed(bench: _Bench) -> None:
    """`kill_remains` kills what a controller that died by kill -9 has left."""
    token = _token()
    spec = evolve(bench.spec, marker=f"{bench.spec.marker}-killed", lease_fd=None)
    await kill_controller(bench.unconnected, spec, token)
    with anyio.move_on_after(30) as late:
        await bench.unconnected.kill_remains(spec.marker, ())
    _expect(not late.cancelled_caught, "kill_remains takes more than 30 s")
    await bench.gone(token, within=2)
    again = await bench.unconnected.kill_remains(spec.marker, ())
    _expect(again == 0, f"{again} more to kill the second time")


async def kill_controller(backend: Backend, spec: WorkspaceSpec, token: str) -> None:
    """Run a tree of `sleep token` under the backend in a process of its own; kill -9 that."""
    work = pickle.dumps((backend, spec, token))
    argv = [sys.executable, "-c", "from aiopt.testing import _doomed; _doomed()", work.hex()]
    async with await anyio.open_process(argv, stderr=None) as process:
        assert process.stdout is not None
        said = b""
        with anyio.move_on_after(20):
            while not said.endswith(b"up\n"):
                said += await process.stdout.receive()
        process.kill()
        _expect(said == b"up\n", said)


def _doomed() -> None:
    backend, spec, token = pickle.loads(bytes.fromhex(sys.argv[1]))

    class Out:
        def write(self, stream: OutputStream, data: bytes) -> None:
            os.write(1, data)

    async def run() -> None:
        async with backend.open(spec) as workspace:
            script = f"setsid sleep {token} & sleep {token} & echo up; sleep {token}"
            await workspace.run(_sh(script), Out())

    asyncio.run(run())


# ---- services ----


async def services(bench: _Bench) -> None:
    """A service runs beside commands, its output arrives as it comes, and `stop` ends it all."""
    token = _token()
    async with bench.open() as workspace:
        sink = Recorder()
        script = f"setsid sh -c 'echo up; exec sleep {token}' & exec sleep {token}"
        service = await workspace.start(_sh(script, timeout=0.05), sink)
        await _until(lambda: sink.stdout == b"up\n", "output of the service")
        _expect((await workspace.run(_sh("exit 3"), Recorder())).exit_code == 3, "a command beside")
        wait = f"until grep -q sleep /proc/{service.pid}/comm; do sleep 0.01; done"
        _expect((await workspace.run(_sh(wait, timeout=10), Recorder())).ok, "pid")
        _expect(not service.exited(), "exited() while it runs")
        done = await service.stop(grace=1)
        await bench.gone(token)
        _expect((done.signal, done.strays_killed) == (signal.SIGTERM, 1), done)
        _expect(await service.stop() == done, "a second stop() says something else")
        _expect(not service.exited(), "exited() although it was asked to")


async def services_that_end(bench: _Bench) -> None:
    """A service that ends by itself says so, and `stop` still tells how."""
    async with bench.open() as workspace:
        service = await workspace.start(_sh("echo bye; exit 9"), sink := Recorder())
        await _until(service.exited, "exited()")
        done = await service.stop()
        _expect(done.exit_code == 9 and sink.stdout == b"bye\n", f"{done} {sink.stdout!r}")
        _expect(service.exited(), "exited() forgets")


async def services_left_running(bench: _Bench) -> None:
    """What still runs when the workspace is left is gone then, even if the body raises."""
    token = _token()
    services: list[Service] = []
    try:
        async with bench.open() as workspace:
            script = f"trap '' TERM; setsid sleep {token} & sleep {token}"
            services.append(await workspace.start(_sh(script), Recorder()))
            raise LookupError(token)
    except LookupError:
        pass
    else:
        raise _Found("the exception of the body got lost")
    await bench.gone(token)


# ---- figures ----


async def usage(bench: _Bench) -> None:
    """CPU time and peak memory are those of the command and all that is under it."""
    burn = "t = time.process_time()\nwhile time.process_time() < t + 0.2: pass\n"
    async with bench.open() as workspace:
        script = (
            "import os, subprocess, sys, time\n"
            f"child = 'import time\\n' + {burn!r}\n"
            "if os.fork() == 0:\n"  # never waited for
            f"    exec({burn!r})\n"
            "    os._exit(0)\n"
            "subprocess.run([sys.executable, '-c', child])\n"
            f"{burn}time.sleep(0.2)"
        )
        used = (await _finish(workspace, _python(script))).usage
        _expect(0.6 <= used.cpu_seconds < 2, f"{used.cpu_seconds:.2f} s CPU of 0.6 s burnt")
        base = (await _finish(workspace, _python("pass"))).usage.peak_rss_bytes
        script = "b = bytearray(64 << 20); b[::4096] = b'x' * (len(b) // 4096)"
        size = (await _finish(workspace, _python(script))).usage.peak_rss_bytes - base
        _expect(0.8 < size / (64 << 20) < 1.2, f"{size} more bytes for 64 MiB touched")
        wall = (await _finish(workspace, Command(argv=("sleep", "0.3")))).usage.wall_seconds
        _expect(0.29 <= wall < 2, f"{wall:.2f} s for 0.3 s of sleep")


async def _finish(workspace: Workspace, command: Command) -> Completed:
    sink = Recorder()
    done = await workspace.run(command, sink)
    _expect(done.ok, f"{done} {sink.stderr!r}")
    return done


async def figures(bench: _Bench) -> None:
    """`observe` names the kernel and the processors; `covariates` are numbers."""
    seen = await bench.backend.observe()
    _expect(all(seen.get(name) for name in ("kernel", "cpu_count")), seen)
    async with bench.open() as workspace:
        now = await workspace.covariates()
        _expect("load1" in now and all(isinstance(x, float) for x in now.values()), now)


# ---- files ----


async def confinement(bench: _Bench) -> None:
    """Writing works in source and run folder, and is refused elsewhere (where that is offered)."""
    offered = str((await bench.backend.observe()).get("write confinement", "none"))
    if offered.startswith("none"):
        return
    outside = Path(_HOME, f".aiopt-check-{secrets.token_hex(4)}")
    async with bench.open() as workspace:
        refused = [
            "echo x > {source}/../escaped",
            "echo x > {harness}/escaped",
            "echo x >> {harness}/file",
            "ln -s .. {source}/up && echo x > {source}/up/escaped",
            f"echo x > /tmp/{outside.name}",
            f"echo x > {outside}",
            "mv {source}/file {source}/../escaped",
            "ln {harness}/file {run}/linked && echo x > {run}/linked",
            "chmod 777 {harness}/file && : > {harness}/file",
        ]
        for script in refused:
            done = await workspace.run(_sh(script), Recorder())
            _expect(not done.ok, f"not refused: {script}")
        allowed = (
            "echo x > {source}/new && mkdir {source}/d && mv {source}/new {source}/d/ &&"
            " rm -r {source}/d && echo x > {run}/x && ln {run}/x {run}/y && echo x > /dev/null &&"
            ' echo x > "$HOME/x" && echo x > "$TMPDIR/x" && echo x > /dev/stdout &&'
            " cat {harness}/file"
        )
        done = await workspace.run(_sh(allowed), sink := Recorder())
        _expect(done.ok, f"refused: {sink.stderr!r}")


async def put_and_get(bench: _Bench) -> None:
    """`put` and `get` copy files and folders, with executable bits and links."""
    folder = bench.spec.scratch / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "data").write_bytes(bytes(range(256)))
    (folder / "script").write_text("#!/bin/sh\necho ran\n")
    (folder / "script").chmod(0o755)
    (folder / "link").symlink_to("sub/data")
    back = bench.spec.scratch / "back"
    async with bench.open() as workspace:
        await workspace.put(folder, "{run}/deep/files")
        got = await _output(workspace, Command(argv=("{run}/deep/files/script",)))
        _expect(got == b"ran\n", got)
        await workspace.get("{run}/deep/files", back)
        _expect((back / "sub" / "data").read_bytes() == bytes(range(256)), "other content")
        _expect(os.access(back / "script", os.X_OK), "script is no longer executable")
        _expect(not os.access(back / "sub" / "data", os.X_OK), "data is executable")
        _expect((back / "link").is_symlink(), "link is no longer a link")
        await workspace.put(folder / "script", "{run}/one")
        await workspace.get("{run}/one", bench.spec.scratch / "one")
        _expect((bench.spec.scratch / "one").read_text().endswith("ran\n"), "one file")
        try:
            await workspace.get("{run}/nothing", bench.spec.scratch / "nothing")
        except FileNotFoundError:
            return
        raise _Found("no FileNotFoundError for what is not there")


async def digests(bench: _Bench) -> None:
    """`digest` depends on names and content of the files that match, and on nothing else."""
    async with bench.open() as workspace:
        write = (
            "mkdir -p {source}/out/sub; echo a > {source}/out/sub/a.bin; echo b > {source}/b.bin"
        )
        await _output(workspace, _sh(write))
        first, count = await workspace.digest(["*.bin"])
        _expect(count == 2, f"{count} files")
        await _output(workspace, _sh("echo c > {source}/c.txt; touch {source}/b.bin"))
        _expect(await workspace.digest(["*.bin"]) == (first, 2), "another digest, same files")
        _expect((await workspace.digest(["/out/", "!*.bin"]))[1] <= 1, "a folder")
        _expect((await workspace.digest(["nothing"]))[1] == 0, "files that do not match")
        await _output(workspace, _sh("echo d > {source}/b.bin"))
        _expect((await workspace.digest(["*.bin"]))[0] != first, "same digest, other content")
        _expect((await workspace.digest(["*"], "{harness}"))[1] == 1, "files of the harness")


# ---- together ----


async def side_by_side(bench: _Bench) -> None:
    """Two commands run at the same time, each with its own output and result."""
    done: dict[str, tuple[Completed, bytes]] = {}
    async with bench.open() as workspace:

        async def run(name: str, other: str) -> None:
            script = (
                f"touch {{run}}/{name}; i=0; until [ -e {{run}}/{other} ]; do"
                " sleep 0.01; i=$((i+1)); [ $i -lt 1000 ] || exit 1; done;"
                f" echo {name}; exit {len(name)}"
            )
            sink = Recorder()
            done[name] = (await workspace.run(_sh(script), sink), sink.stdout)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "one", "three")
            tasks.start_soon(run, "three", "one")
    for name, (completed, output) in done.items():
        _expect(completed.exit_code == len(name), completed)
        _expect(output.decode().strip() == name, output)


async def locks(bench: _Bench) -> None:
    """Measuring excludes building and measuring; building does not exclude building."""
    backend = bench.backend
    inside: list[str] = []

    async def enter(kind: str) -> None:
        async with backend.building() if kind == "build" else backend.measuring():
            inside.append(kind)

    async def tried(kind: str) -> bool:
        with anyio.move_on_after(0.3):
            await enter(kind)
            return True
        return False

    async with backend.measuring():
        for kind in ("build", "measure"):
            _expect(not await tried(kind), f"{kind} while measuring")
    with anyio.fail_after(60):
        async with backend.building():
            _expect(not await tried("measure"), "measure while building")
            await enter("build")
        await enter("measure")


async def ports(bench: _Bench) -> None:
    """`connect` reaches what listens on a `free_port` of that machine, and fails before."""
    script = (
        "import socket, sys\n"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print('up', flush=True)\n"
        "c, _ = s.accept(); c.sendall(c.recv(100)[::-1])"
    )
    async with bench.open() as workspace:
        port = await workspace.free_port()
        try:
            await (await workspace.connect(port)).aclose()
        except OSError:
            pass
        else:
            raise _Found(f"something listens on {port}")
        command = Command(argv=("python3", "-c", script, str(port)))
        service = await workspace.start(command, sink := Recorder())
        await _until(lambda: b"up" in sink.stdout, "the server")
        async with await workspace.connect(port) as stream:
            await stream.send(b"abc")
            _expect(await stream.receive() == b"cba", "another answer")
        await service.stop()


# ---- all of it ----


@frozen(kw_only=True)
class Check:
    """One promise of a backend."""

    name: str
    promise: str
    run: Callable[[_Bench], Awaitable[None]] = field(repr=False)

    def __str__(self) -> str:
        return self.name


def _check(function: Callable[[_Bench], Awaitable[None]]) -> Check:
    name: str = function.__name__
    return Check(name=name, promise=function.__doc__ or "", run=function)


# fmt: off
CHECKS: tuple[Check, ...] = tuple(map(_check, (
    exit_codes, missing_executable, streams, standard_input, folders, run_folders, environment,
    output_cap, timeouts, daemons, held_pipes, respawning, cancellation, controller_killed,
    services, services_that_end, services_left_running, usage, figures, confinement, put_and_get,
    digests, side_by_side, locks, ports,
)))
# fmt: on


async def check_backend(backend: Backend, *, root: Path, only: Iterable[Check] = CHECKS) -> None:
    """Put a backend through the checks, one after the other, each in a fresh folder below `root`.

    Takes about 20 s for a backend on the same machine.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    for check in only:
        place = root / f"{check.name}-{secrets.token_hex(3)}"
        for name in ("source", "harness", "scratch"):
            (place / name).mkdir(parents=True)
            (place / name / "file").write_text(f"{name}\n")
        spec = WorkspaceSpec(
            name=check.name,
            tree=place / "source",
            harness=place / "harness",
            scratch=place / "scratch",
            marker=f"check-{secrets.token_hex(6)}",
        )
        try:
            async with backend.session(spec.marker) as connected:
                await check.run(_Bench(backend=connected, unconnected=backend, spec=spec))
        except _Found as found:
            raise BrokenPromise(check.name, check.promise, str(found)) from None
