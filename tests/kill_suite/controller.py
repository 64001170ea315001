"""One life of a controller: a real campaign, watched, until it is finished or killed.

Runs in a process of its own, forked from a worker. Everything here that interferes with aiopt does
so from outside: it wraps methods in this process, and aiopt has no switches for it.
"""

import ctypes
import os
import pickle
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import anyio

from aiopt.backends.local import LocalBackend
from aiopt.backends.machine import command
from aiopt.campaign import open_campaign
from aiopt.errors import ConcurrentWriteError
from aiopt.events import ProcessRef, Recorded
from aiopt.lease import Lease
from aiopt.log import Log
from aiopt.replay import fold
from aiopt.settings import Environment, Settings
from aiopt.sources import SourceRepository

from .plans import Plan
from .target import NAME

__all__ = ["FAILED", "FINISHED", "OVERLAPPED", "REFUSED", "Folders", "run"]

FINISHED, FAILED, REFUSED, OVERLAPPED = 0, 1, 3, 4
"""Exit codes. Refused: somebody else held the lease. Overlapped: somebody else wrote to the log."""

_PAUSE_SECONDS = 0.01


class Folders:
    """Where the parts of one campaign are."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.target, self.results, self.side = base / "target", base / "results", base / "side"
        self.temporary, self.lock = base / "tmp", base / "lock" / "host"
        self.home = self.results / NAME
        self.log, self.work = self.home / "events.db", self.home / ".work"
        self.stages = self.side / "stages" / "log"
        self.told = self.side / "told"
        """`seq hash` of each event that the observer was told of, synced before it went on."""
        self.meant = self.side / "meant"
        """`first last` seq of each transaction, before it began."""
        self.moments, self.output = self.side / "moments", self.side / "output"
        self.supervisors = self.side / "supervisors"
        self.state = self.side / "state"


class _Watch:
    """What one controller writes down, and the moment at which it dies."""

    def __init__(self, folders: Folders, plan: Plan) -> None:
        self.plan = plan
        self._folders = folders
        self._files: dict[Path, int] = {}
        self._seen = 0

    def write(self, path: Path, text: str, *, sync: bool = False) -> None:
        if path not in self._files:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._files[path] = os.open(path, flags, 0o644)
        os.write(self._files[path], f"{text}\n".encode())
        if sync:
            os.fdatasync(self._files[path])

    def mark(self, what: str) -> None:
        """A line among those of the stages."""
        line = f"{self.plan.life} {os.getpid()} controller {what} {time.monotonic_ns()}"
        self.write(self._folders.stages, line)

    def die(self, moment: str) -> NoReturn:
        self.write(self._folders.moments, f"{self.plan.life} {moment}")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    def comes(self, kind: str, at: str) -> None:
        """Die now, or soon, if this is the moment."""
        plan = self.plan
        mine = "event" if plan.kind == "finish" else plan.kind
        if kind != mine or at not in plan.at.split("|"):
            return
        self._seen += 1
        if self._seen != plan.nth:
            return
        if plan.delay == 0:
            self.die(f"{plan.kind}: {at}")
        threading.Thread(target=self._die_later, args=[at], daemon=True).start()

    def _die_later(self, at: str) -> None:
        time.sleep(self.plan.delay)
        self.die(f"{self.plan.kind}: {at} + {self.plan.delay * 1000:.1f} ms")

    def tell(self, recorded: Recorded) -> None:
        """The observer of the campaign."""
        self.acknowledge(recorded.seq, recorded.hash)
        self.mark(type(recorded.event).__name__)
        self.comes("event", type(recorded.event).__name__)

    def acknowledge(self, seq: int, hash_: bytes) -> None:
        self.write(self._folders.told, f"{seq} {hash_.hex()}", sync=True)


class _Connection:
    """A connection to the log that says which statement comes next."""

    def __init__(self, real: Any, watch: _Watch, folders: Folders) -> None:
        self._real, self._watch, self._folders = real, watch, folders
        self._batch: list[tuple[Any, ...]] = []
        self._appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _comes(self, point: str) -> None:
        plan = self._watch.plan
        if (plan.kind, plan.at) == ("append", point) and self._appends >= plan.nth:
            self._watch.die(f"append: {point}")

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement not in ("BEGIN IMMEDIATE", "COMMIT"):
            return self._real.execute(statement, *arguments)
        control = self._watch.plan.control
        if statement == "BEGIN IMMEDIATE":
            self._appends += 1
            self._comes("before BEGIN")
        elif control == "acknowledge":
            for row in self._batch:
                self._watch.acknowledge(row[0], row[-1])
            self._comes("before COMMIT")
            time.sleep(_PAUSE_SECONDS)
        else:
            self._comes("before COMMIT")
        if control != "transaction":
            self._real.execute(statement)
        self._comes("after BEGIN" if statement == "BEGIN IMMEDIATE" else "after COMMIT")
        return None

    def executemany(self, statement: str, batch: Iterable[tuple[Any, ...]]) -> None:
        self._batch = list(batch)
        first, last = self._batch[0][0], self._batch[-1][0]
        self._watch.write(self._folders.meant, f"{first} {last}")
        if self._watch.plan.control == "transaction":
            for row in self._each():
                self._real.execute(statement, row)
                time.sleep(_PAUSE_SECONDS)
        else:
            self._real.executemany(statement, self._each())

    def _each(self) -> Iterator[tuple[Any, ...]]:
        for number, row in enumerate(self._batch):
            if number:
                self._comes("in INSERT")
            yield row


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a method by `wrapper(original, …)`."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        return wrapper(original, *arguments, **named)

    setattr(owner, name, wrapped)


def _watch_log(watch: _Watch, folders: Folders) -> None:
    def append(original: Any, log: Any, items: Any) -> Any:
        if not isinstance(log._db.conn, _Connection):
            log._db.conn = _Connection(log._db.conn, watch, folders)
        return original(log, items)

    _wrap(Log, "append", append)


def _watch_supervisors(watch: _Watch, folders: Folders) -> None:
    def start(original: Any, supervisor: Any, **named: Any) -> None:
        original(supervisor, **named)
        ref = supervisor.ref
        watch.write(folders.supervisors, f"{ref.pid} {ref.start_ticks}")
        watch.comes("spawn", "after start")

    def submit(original: Any, *arguments: Any, **named: Any) -> None:
        watch.comes("spawn", "before submit")
        original(*arguments, **named)
        watch.comes("spawn", "after submit")

    _wrap(command.Supervisor, "__init__", start)
    _wrap(command.Supervisor, "submit", submit)


def _watch_resume(watch: _Watch) -> None:
    async def kill_remains(
        original: Any,
        backend: LocalBackend,
        marker: str,
        supervisors: Sequence[ProcessRef],
        spared: Sequence[str] = (),
    ) -> int:
        if watch.plan.kind == "resume" and watch.plan.at == "before":
            watch.die("resume: before its remains are killed")
        watch.comes("resume", "during")
        killed: int = 0
        if watch.plan.control != "remains":
            killed = await original(backend, marker, supervisors, spared)
        watch.mark("cleared")
        if watch.plan.kind == "resume" and watch.plan.at == "after":
            watch.die("resume: after its remains were killed")
        return killed

    _wrap(LocalBackend, "kill_remains", kill_remains)


def _watch_git(watch: _Watch) -> None:
    async def git(original: Any, *arguments: Any, **named: Any) -> Any:
        watch.comes("git", "git")
        return await original(*arguments, **named)

    _wrap(SourceRepository, "_git", git)


def _watch_lease(watch: _Watch) -> None:
    real = Lease.acquire.__func__  # type: ignore[attr-defined]

    def acquire(kind: type[Lease], *arguments: Any, **named: Any) -> Lease:
        lease: Lease = real(kind, *arguments, **named)
        watch.mark("lease")
        return lease

    Lease.acquire = classmethod(acquire)  # type: ignore[method-assign, assignment]


# ---- the controls ----


def _without_lease(folders: Folders) -> None:
    """It locks nothing and passes nothing on that anybody else could wait for."""

    def acquire(kind: type[Lease], path: Path, wait: float = 0.0, on_wait: Any = None) -> Lease:
        nothing = folders.side / f"nothing-{os.getpid()}"
        nothing.touch()
        return kind(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), nothing, nothing)

    Lease.acquire = classmethod(acquire)  # type: ignore[method-assign, assignment]


_DEAF = """
import os
path = {path!r}
with open(path) as file:
    supervisor = {{"__name__": "supervisor", "__file__": path}}
    exec(compile(file.read(), path, "exec"), supervisor)
real = supervisor["Supervisor"].obey


def obey(self):
    if real(self):
        return True
    if self.job is not None:
        os.waitpid(self.job.pid, 0)
    os._exit(0)


supervisor["Supervisor"].obey = obey
import sys
os._exit(supervisor["main"](sys.argv[1:]))
"""


def _deaf_supervisors(folders: Folders) -> None:
    """When the controller is gone they wait for the command to end, and clear nothing."""
    script = folders.side / "deaf.py"
    script.write_text(_DEAF.format(path=command._SCRIPT))
    command._SCRIPT = str(script)


# ---- a life ----


_ANY_MACHINE = {"steal": 0.0, "psi": 0.0, "throttle": False}
_FIXED = {"pairs": 4, "alpha": 0.1, "audit_pairs": 6, "ablation_pairs": 0, "warmup": 0}
_STAGED = {"ncal": 10, "ncal_guard": 6, "audit_pairs": 6, "ablation_pairs": 6}


def _settings(folders: Folders, seed: int, staged: bool) -> Settings:
    here = Environment(backend="local", options={"lock_path": str(folders.lock)})
    return Settings(
        environments={"local": here},
        seed=seed,
        rule="two-stage" if staged else "signed-rank",
        rule_options={**(_STAGED if staged else _FIXED), "void": _ANY_MACHINE},
    )


def _campaign_in(folders: Folders) -> str | None:
    """The campaign that there is to be resumed."""
    if not folders.log.exists():
        return None
    with Log.open(folders.log, readonly=True) as log:
        return next(iter(fold(log.read()).campaigns), None)


async def _live(folders: Folders, seed: int, watch: _Watch, staged: bool) -> None:
    async with open_campaign(
        folders.target,
        folders.results,
        _settings(folders, seed, staged),
        resume=_campaign_in(folders),
        observer=watch.tell,
        wait=30.0,
    ) as campaign:
        await campaign.run()
        state = campaign.state
    draft = folders.state.with_suffix(".new")
    draft.write_bytes(pickle.dumps(state))
    draft.rename(folders.state)


def _prepare(folders: Folders, plan: Plan) -> _Watch:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output = os.open(folders.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, output, output)):
        os.dup2(descriptor, number)
    os.environ["KILL_LIFE"] = str(plan.life)
    os.environ["TMPDIR"] = str(folders.temporary)
    tempfile.tempdir = None
    watch = _Watch(folders, plan)
    if plan.control == "lease":
        _without_lease(folders)
    if plan.control == "remains":
        _deaf_supervisors(folders)
    _watch_lease(watch)
    _watch_log(watch, folders)
    _watch_supervisors(watch, folders)
    _watch_resume(watch)
    _watch_git(watch)
    return watch


def run(base: Path, seed: int, plan: Plan, staged: bool) -> NoReturn:
    """Live until the campaign is finished; called in a process of its own, which it ends."""
    code = FAILED
    try:
        watch = _prepare(Folders(base), plan)
        try:
            anyio.run(_live, Folders(base), seed, watch, staged)
            code = FINISHED
        except ConcurrentWriteError as error:
            code = (
                REFUSED
                if "events.lock" in str(error) or "stages.lock" in str(error)
                else OVERLAPPED
            )
            print(f"life {plan.life}: {error}", file=sys.stderr)
        except sqlite3.Error:
            traceback.print_exc()
    except BaseException:
        print(f"life {plan.life}:", file=sys.stderr)
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
