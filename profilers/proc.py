"""Memory, run time and waiting time of a command, read from /proc (format of Linux 4.14 to 6.18).

A small poller runs around the command and writes one JSON object per line. Its raw texts of /proc
are interpreted here, so that the poller stays small and the parsers can be tested without it.

A sample of one process: `t` (seconds, monotonic), `pid`, `start` (field 22 of stat: tells a process
from a later one of the same pid), `status` (raw), `schedstat` (`run wait slices` in ns and counts,
the latest of each thread added up), and now and then `smaps_rollup` (raw). The last line: `t`,
`exit` (negative: the signal), `usage` (figures of wait4) and `launcher` (status of the poller).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, cast

from attrs import define, evolve, field, frozen

from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Workspace,
)

from ._reading import Lines, pooled
from ._trial import asked

__all__ = ["Proc", "kilobytes", "schedstat", "unique_bytes"]

_BUSY = 0.9
"""Below this share of CPU, what was measured by wall clock is the host's doing."""

_MOST_PROCESSES = 1 << 16
"""How many processes of one profile are told apart; a longer file is not ours."""

# Without braces, which are placeholders in a command. Only modules that start fast.
_POLLER = r"""
import json, os, signal, sys, time
output, interval, argv = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
out = open(output, "w")
old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    # The whole group gets these; the command decides when it ends, and then so do we.
    if signal.getsignal(each) is not signal.SIG_IGN:
        signal.signal(each, lambda *_: None)
def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""
def tasks(pid):
    try:
        return os.listdir("/proc/%s/task" % pid)
    except OSError:
        return []
def stat(pid):
    return text("/proc/%s/stat" % pid).rpartition(")")[2].split()
def ident(pid):
    fields = stat(pid)
    return (pid, fields[19]) if len(fields) > 19 else None
def offspring():
    # Who was started by whom. Asking the known ones is cheap, but not every kernel can be asked.
    children = dict()
    if os.path.exists("/proc/thread-self/children"):
        todo = [pid for pid, _ in known]
        while todo:
            pid = todo.pop()
            for tid in tasks(pid):
                born = text("/proc/%s/task/%s/children" % (pid, tid)).split()
                children.setdefault(pid, []).extend(born)
                todo += born
        return children
    for pid in filter(str.isdigit, os.listdir("/proc")):
        fields = stat(pid)
        if len(fields) > 19:
            children.setdefault(fields[1], []).append(pid)
    return children
def tree():
    # What was known is kept while it lives: an orphan has another parent.
    children, found = offspring(), dict()
    todo = [one for one in known if ident(one[0]) == one]
    while todo:
        one = todo.pop()
        if one and one not in found:
            found[one] = 1
            todo += [ident(pid) for pid in children.get(one[0], [])]
    known.clear()
    known.update(found)
    return sorted(found)
def ran(one):
    # The latest of every thread that was ever seen, so that ended threads still count.
    mine = threads.setdefault(one, dict())
    for tid in tasks(one[0]):
        fields = text("/proc/%s/task/%s/schedstat" % (one[0], tid)).split()
        if len(fields) == 3:
            mine[tid] = [int(each) for each in fields]
    return " ".join(str(sum(each)) for each in zip(*mine.values()))
def resident(status):
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
def write(**record):
    json.dump(dict(t=time.monotonic(), **record), out)
    out.write("\n")
def sample():
    global rolled, rest
    seen = [(one, text("/proc/%s/status" % one[0])) for one in tree()]
    now = sum(resident(status) for _, status in seen)
    # The rollup is slow (72 ms of a 380 MB process), so only when the tree has grown: by a quarter,
    # or a little and the last one took less than a fiftieth of the time since.
    began = time.monotonic()
    roll = now > 1.25 * rolled or (now > 1.01 * rolled and began > rest)
    rollups = ["/proc/%s/smaps_rollup" % one[0] for one, _ in seen] if roll else []
    rollups = [text(path) for path in rollups]
    if roll:
        rolled, ended = now, time.monotonic()
        rest = ended + 50 * (ended - began)
    for number, (one, status) in enumerate(seen):
        more = dict(smaps_rollup=rollups[number]) if roll else dict()
        write(pid=int(one[0]), start=one[1], status=status, schedstat=ran(one), **more)
    out.flush()
try:
    # The command has been executed when this returns: its VmHWM is not ours.
    child = os.posix_spawnp(
        argv[0], argv, os.environ, setsigmask=old, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
    )
except OSError as error:
    print("%s: %s" % (argv[0], error.strerror), file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
threads, known, rolled, rest, pause = dict(), dict(), 0, 0.0, min(0.001, interval)
known[ident(str(child))] = 1
while True:
    # Before a zombie is reaped its run time can still be read.
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    sample()
    if ended:
        break
    signal.sigtimedwait([signal.SIGCHLD], pause)
    pause = min(2 * pause, interval)
_, how, usage = os.wait4(child, 0)
code = os.waitstatus_to_exitcode(how)
figures = dict(
    maxrss_kib=usage.ru_maxrss, minor_faults=usage.ru_minflt, major_faults=usage.ru_majflt,
    involuntary_switches=usage.ru_nivcsw,
)
write(exit=code, usage=figures, launcher=text("/proc/self/status"))
out.close()
if code < 0:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def kilobytes(text: str) -> dict[str, int]:
    """The `Key: n kB` lines of /proc/PID/status or smaps_rollup, in bytes.

    Kernels add keys, so all are kept. Zombies and kernel threads have no `Vm` lines.
    """
    found = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and (count := _number(words[0])) is not None:
            found[key] = count << 10
    return found


def unique_bytes(rollup: str) -> int | None:
    """Bytes that only this process maps, from smaps_rollup; None if the text does not say."""
    values = kilobytes(rollup)
    if "Private_Clean" not in values or "Private_Dirty" not in values:
        return None
    return values["Private_Clean"] + values["Private_Dirty"]


def schedstat(text: str) -> tuple[int, int, int] | None:
    """Run time (ns), time in the run queue (ns) and time slices, from /proc/PID/schedstat."""
    words = text.split()
    numbers = [number for word in words if (number := _number(word)) is not None]
    if len(words) != 3 or len(numbers) != 3:
        return None
    return numbers[0], numbers[1], numbers[2]


def _switches(status: str) -> int | None:
    for line in status.splitlines():
        key, _, rest = line.partition(":")
        if key == "nonvoluntary_ctxt_switches":
            return _number(rest.strip())
    return None


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


@define
class _Process:
    """The latest figures of one process; what it counts never falls."""

    run: int = 0
    wait: int = 0
    timed: bool = False
    switches: int | None = None


@define
class _Run:
    """What one file says."""

    processes: dict[tuple[int, str], _Process] = field(factory=dict)
    peak: int = 0
    pss: int = 0
    unique: int = 0
    usage: dict[str, int] = field(factory=dict)
    launcher: int = 0
    ended: bool = False
    unknown: int = 0
    rolled: set[tuple[int, str]] = field(factory=set)
    rolled_pss: int = 0
    rolled_unique: int = 0

    def read(self, file: BinaryIO) -> None:
        lines = Lines(file)
        for line in lines:
            if line.strip() and not self._record(line):
                self.unknown += 1
        self.unknown += lines.too_long
        self._moment_over()

    def _record(self, line: str) -> bool:
        try:
            loaded = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(loaded, dict):
            return False
        record = cast(dict[str, Any], loaded)
        return self._end(record) if "exit" in record else self._sample(record)

    def _end(self, record: Mapping[str, Any]) -> bool:
        usage = record.get("usage")
        if not isinstance(usage, dict):
            return False
        figures = cast(dict[str, Any], usage)
        self.usage = {
            key: value
            for key, value in figures.items()
            if type(value) is int and 0 <= value < 1 << 62
        }
        self.launcher = kilobytes(_text(record, "launcher")).get("VmHWM", 0)
        self.ended = True
        return True

    def _sample(self, record: Mapping[str, Any]) -> bool:
        pid = record.get("pid")
        if type(pid) is not int or len(self.processes) >= _MOST_PROCESSES:
            return False
        key = (pid, _text(record, "start"))
        status = _text(record, "status")
        ran = schedstat(_text(record, "schedstat"))
        rollup = _text(record, "smaps_rollup")
        process = self.processes.get(key, _Process())
        memory = kilobytes(status).get("VmHWM")
        switches = _switches(status)
        if memory is None and switches is None and ran is None and not rollup:
            return False
        self.processes[key] = process
        self.peak = max(self.peak, memory or 0)
        if switches is not None:
            process.switches = max(process.switches or 0, switches)
        if ran is not None:
            process.run, process.wait = max(process.run, ran[0]), max(process.wait, ran[1])
            process.timed = True
        if rollup:
            self._rollup(key, rollup)
        return True

    def _rollup(self, key: tuple[int, str], rollup: str) -> None:
        # All processes are read in one go; one that comes again begins the next moment.
        if key in self.rolled:
            self._moment_over()
        self.rolled.add(key)
        self.rolled_pss += kilobytes(rollup).get("Pss", 0)
        self.rolled_unique += unique_bytes(rollup) or 0

    def _moment_over(self) -> None:
        self.pss = max(self.pss, self.rolled_pss)
        self.unique = max(self.unique, self.rolled_unique)
        self.rolled.clear()
        self.rolled_pss = self.rolled_unique = 0

    def figures(self) -> dict[str, tuple[float, str]]:
        """Value and unit by name; what was not read is left out."""
        found: dict[str, tuple[float, str]] = {}
        peak = self.peak
        # ru_maxrss of a child begins at the RSS of what launched it: below that it says nothing.
        stated = self.usage.get("maxrss_kib", 0) << 10
        if self.launcher and stated > self.launcher:
            peak = max(peak, stated)
        for name, count in (
            ("peak_rss_bytes", peak),
            ("pss_bytes", self.pss),
            ("unique_bytes", self.unique),
        ):
            if count:
                found[name] = float(count), "bytes"
        timed = [each for each in self.processes.values() if each.timed]
        if timed:
            run, wait = sum(each.run for each in timed), sum(each.wait for each in timed)
            found["run_seconds"] = run / 1e9, "seconds"
            found["wait_seconds"] = wait / 1e9, "seconds"
            if run + wait:
                found["cpu_share"] = run / (run + wait), "ratio"
        seen = [each.switches for each in self.processes.values() if each.switches is not None]
        switches = self.usage.get("involuntary_switches", sum(seen) if seen else None)
        if switches is not None:
            found["involuntary_switches"] = float(switches), "switches"
        for name in ("major_faults", "minor_faults"):
            if name in self.usage:
                found[name] = float(self.usage[name]), "faults"
        return found


@frozen(kw_only=True)
class Proc:
    """Polls /proc for the command and everything under it; costs about a percent or two.

    `peak_rss_bytes` is of the largest single process: adding up resident sets counts shared pages
    twice. `pss_bytes` and `unique_bytes` are sums over the tree, the largest of a few moments while
    it grew: up to a quarter below a peak that lasts less than a second. Run and wait times are
    schedstat's, of all threads that a poll met. Faults and switches are wait4's. Of several runs
    the mean is given, with the least and the most as interval.
    """

    python: str = "python3"
    interval: float = 0.05
    """Seconds between two looks; the first ones follow each other faster."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        poller = self.wrap(Command(argv=("true",), timeout=20.0, label="polling"), "/dev/null")
        told = await asked(workspace, poller, "apt-get install python3")
        if isinstance(told, NotAvailable):
            return told
        has = Command(argv=("cat", "/proc/self/schedstat"), timeout=20.0, label="reading /proc")
        told = await asked(workspace, has, "")
        return told if isinstance(told, NotAvailable) else None

    def version(self) -> Command:
        return Command(argv=(self.python, "--version"), timeout=20.0, label="proc")

    def wrap(self, command: Command, output: str) -> Command:
        poller = (self.python, "-I", "-S", "-c", _POLLER, output, f"{self.interval:g}")
        return evolve(command, argv=(*poller, *command.argv))

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        if not profiles:
            return Failed(reason="no profile of /proc was written")
        values: dict[str, list[float]] = {}
        units: dict[str, str] = {}
        unknown, cut = 0, 0
        for number, file in enumerate(profiles, 1):
            run = _Run()
            run.read(file)
            figures = run.figures()
            if not figures:
                return Inconclusive(reason=f"profile {number}: no figure of /proc could be read")
            for name, (value, unit) in figures.items():
                values.setdefault(name, []).append(value)
                units[name] = unit
            unknown += run.unknown
            cut += not run.ended
        scalars = {name: pooled(values[name], units[name]) for name in values}
        notes = []
        if unknown:
            notes.append(f"{unknown} lines were not understood")
        if cut:
            notes.append(f"{cut} profiles have no end: the poller was killed")
        if missing := sorted(name for name in values if len(values[name]) < len(profiles)):
            notes.append(f"not in every run: {', '.join(missing)}")
        if "cpu_share" in scalars and scalars["cpu_share"].value < _BUSY:
            share = scalars["cpu_share"].value
            notes.append(f"host busy: the program had a CPU for {share:.0%} of the time it wanted")
        return Measured(scalars=scalars, notes=tuple(notes))
