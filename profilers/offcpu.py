"""Where threads wait: the switches of the scheduler, recorded by perf with what led to them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Literal

from attrs import define, evolve, field, frozen

from aiopt.events import Finding, Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Workspace,
)

from ._perf_script import Frame, Lost, Sample, Script, Switch, code, folded_stack
from ._perf_text import printed
from ._reading import folded
from ._trial import missing

__all__ = ["OffCpu"]

Class = Literal["I", "L", "B", "S", "unclassified"]

_Z = 1.959963984540054
_BLOCKED: tuple[Class, ...] = ("I", "L", "B", "unclassified")
_MEANING: Mapping[Class, str] = {
    "I": "waits for block I/O",
    "L": "waits for a lock or another thread",
    "B": "waits (sleep, socket, pipe, timer, journal)",
    "S": "waits for a CPU",
    "unclassified": "waits",
}
_STATE = re.compile(r"\bprev_state=([A-Z])")
_LOCK = re.compile(
    r"_{0,2}futex_wait|futex_do_wait|futex_lock_pi|rwsem_down_|(?:__)?mutex_lock"
    r"|(?:__)?rt_mutex_|__down_"
)
_IO = frozenset({"io_schedule", "io_schedule_timeout"})

_MAX_THREADS = 1 << 16
_MAX_STACKS_SIZE = 64 << 20
_ENTRY = 300
"""Bytes that the sums of one stack of one thread take beside its characters, roughly."""
_FEW = 3
_ASLEEP = 0.99
_TOO_MANY_LOST = 0.05
_WORTH_A_NOTE = 0.05
_MOST = 0.5

# What needs the right to trace and what does not have the same output; which of them is possible
# only the place of the run can tell. TERM reaches perf and the program: perf writes its file.
_SCRIPT = """
out=$0; perf=$1; graph=$2; limit=$3; shift 3
command -v "$perf" >/dev/null || { echo "$perf is not installed" >&2; exit 127; }
record() { "$perf" record -q -N --switch-events "$@"; }
if record -c 1 -e sched:sched_switch --call-graph "$graph" -o "$out.trial" -- true \
    >/dev/null 2>&1
then set -- -c 1 -e sched:sched_switch --call-graph "$graph" -o "$out.data" -- "$@"
else set -- -e dummy:u -o "$out.data" -- "$@"
fi
exec "$perf" record -q -N --switch-events --max-size "$limit" "$@"
"""
_WAITER = "for i in 1 2 3 4 5 6 7 8; do sleep 0.005; done"


@define
class _Waits:
    """Times off the CPU that have something in common."""

    ns: int = 0
    count: int = 0
    squares: float = 0.0
    longest: int = 0

    def add(self, ns: int) -> None:
        self.merge(_Waits(ns, 1, float(ns) * ns, ns))

    def merge(self, other: "_Waits") -> None:
        self.ns += other.ns
        self.count += other.count
        self.squares += other.squares
        self.longest = max(self.longest, other.longest)

    def per_run(self, runs: int) -> Scalar:
        """Milliseconds. The interval takes waits for independent of each other: then the variance
        of a sum of a random number of them is about the sum of their squares (compound Poisson).
        """
        value = self.ns / runs / 1e6
        if not self.count:
            return Scalar(value=value, unit="ms")
        reach = _Z * math.sqrt(self.squares) / runs / 1e6
        return Scalar(value=value, unit="ms", low=max(0.0, value - reach), high=value + reach)


@frozen
class _Cause:
    """What a thread waited for, and where."""

    kind: Class
    stack: str
    where: str
    own: bool = False
    """Whether `where` is a function of the program, and not of a library or the kernel."""


@define
class _Thread:
    name: str
    first: int
    last: int
    out_since: int | None = None
    preempted: bool = False
    pending: _Cause | None = None
    over: bool = False
    waits: dict[_Cause, _Waits] = field(factory=dict)

    @property
    def off(self) -> int:
        return sum(waits.ns for waits in self.waits.values())

    @property
    def on(self) -> int:
        """ns; only waits that have ended are in `waits`, and `last` is no later than their end."""
        end = self.last if self.out_since is None else self.out_since
        return max(0, end - self.first - self.off)

    @property
    def without_progress(self) -> bool:
        """A waiting pool thread, a join, or a shell that waits for what it has started."""
        blocked = sum(w.count for cause, w in self.waits.items() if cause.kind != "S")
        lifetime = self.last - self.first
        return blocked <= _FEW and self.on <= (1 - _ASLEEP) * lifetime


@define
class _Recording:
    """One profile."""

    threads: dict[int, _Thread] = field(factory=dict)
    switches: int = 0
    classified: bool = False
    """Whether there are samples of sched_switch."""
    lost: int = 0
    unknown: int = 0
    cut: int = 0
    _size: int = 0

    def read(self, file: BinaryIO) -> None:
        script = Script(file)
        for record in script:
            if isinstance(record, Lost):
                self.lost += record.records
                continue
            thread = self._thread(record)
            if thread is None:
                self.unknown += 1
            elif isinstance(record, Switch):
                self.switches += 1
                self._switch(thread, record)
            elif record.event.partition("/")[0].removesuffix(":") == "sched:sched_switch":
                self.classified = True
                self._about_to_leave(thread, record)
        self.unknown += script.unknown
        self.cut += script.cut

    def _thread(self, record: Sample | Switch) -> _Thread | None:
        time = record.time
        thread = self.threads.get(record.tid)
        if thread is None:
            if len(self.threads) >= _MAX_THREADS:
                return None
            thread = self.threads[record.tid] = _Thread(record.comm, time, time)
        if thread.over and not (isinstance(record, Switch) and record.out):
            # A new thread was given the number: its life goes on where that of the first ended.
            thread.first, thread.over = time - thread.on - thread.off, False
        thread.name, thread.last = record.comm, max(thread.last, time)
        return thread

    def _about_to_leave(self, thread: _Thread, sample: Sample) -> None:
        found = _STATE.search(sample.detail)
        state = found[1] if found else ""
        if state in ("X", "Z"):
            thread.pending, thread.over = None, True
        else:
            thread.pending = _cause(state, sample.frames)

    def _switch(self, thread: _Thread, switch: Switch) -> None:
        if switch.out:
            if thread.out_since is None and not thread.over:
                thread.out_since, thread.preempted = switch.time, switch.preempt
            return
        if thread.out_since is not None and switch.time >= thread.out_since:
            cause = thread.pending or _Cause("S" if thread.preempted else "unclassified", "", "")
            self._waits(thread, cause).add(switch.time - thread.out_since)
        thread.out_since = thread.pending = None

    def _waits(self, thread: _Thread, cause: _Cause) -> _Waits:
        waits = thread.waits.get(cause)
        if waits is None:
            size = len(cause.stack) + _ENTRY
            if self._size + size > _MAX_STACKS_SIZE and cause.stack:
                return self._waits(thread, _Cause(cause.kind, "", ""))
            self._size += size
            waits = thread.waits[cause] = _Waits()
        return waits

    def working(self) -> list[_Thread]:
        """The threads whose waiting counts: all of them if none makes progress."""
        found = [thread for thread in self.threads.values() if not thread.without_progress]
        return found or list(self.threads.values())


def _class(state: str, frames: tuple[Frame, ...]) -> Class:
    """As bperf does: of a thread that is to leave the CPU in this state with this call chain."""
    if state == "R":
        return "S"
    kernel = [frame.symbol for frame in frames if frame.kernel and frame.known]
    if not kernel:
        return "unclassified"
    if not _IO.isdisjoint(kernel):
        return "I"
    return "L" if any(_LOCK.match(symbol) for symbol in kernel) else "B"


def _cause(state: str, frames: tuple[Frame, ...]) -> _Cause:
    """Where it waits is the function of the program, else what is nearest to it."""
    own = code(frames)
    named = [frame for frame in frames if frame.known]
    user = [frame for frame in named if not frame.kernel]
    nearest = own or user or named
    where = nearest[0].name if nearest else ""
    return _Cause(_class(state, frames), folded_stack(frames), where, bool(own))


@frozen(kw_only=True)
class OffCpu:
    """Time that threads are off the CPU, by what they wait for and where.

    Every switch is recorded with its stack: `sched:sched_switch` tells why a thread leaves, perf's
    switch events when it leaves and comes back. That needs the right to trace: the capabilities
    perfmon and syslog, and a readable /sys/kernel/tracing. Where it is missing, there are switch
    events alone, which anybody may record: milliseconds by thread, without classes.

    Scalars, all of them of one run (of several, the mean): `off_cpu_ms[CLASS]` (ms) for the classes
    I (block I/O), L (a futex or kernel lock: mutexes, condition variables, joins), B (everything
    else: sleep, sockets, pipes, a journal), S (ready, but no CPU was free: the load of the machine,
    not the program's doing) and `unclassified`; `off_cpu_ms[CLASS,FUNCTION]` for where most of it
    is; `waits[CLASS]`, how often; `on_cpu_ms`; `idle_ms`, what is in none of the others.
    A run does the same work every time, so these are times per unit of work.

    I, L and B include the wait for a free CPU after the wake-up. Threads that have waited at most
    three times, and nearly all of their life, make no progress (a pool's idle threads, a join, a
    shell that waits): their waiting is `idle_ms`. Waits that had not ended are not counted.
    Intervals, 95 %, take waits for independent of each other.

    The stacks are of microseconds in I, L, B and unclassified, with the class as their root.
    Classes are those of bperf (Ahn et al., Identifying On-/Off-CPU Bottlenecks Together With
    Blocked Samples, OSDI 2024), found without its kernel.
    """

    perf: str = "perf"
    call_graph: str = "dwarf,4096"
    """`fp` is cheaper where there are very many switches; it misses the function that waits, for
    the C library's waiting functions have no frame pointer."""
    python: str = "python3"
    """Helps perf to unwind; see `_perf_maps`."""
    max_size: str = "900M"
    """Of perf's file; perf ends the program where it grows larger."""
    top: int = 20
    """How many places become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return await missing(self, workspace, _WAITER, "apt-get install linux-perf")

    def version(self) -> Command:
        return Command(argv=(self.perf, "--version"), timeout=20.0, label="offcpu")

    def wrap(self, command: Command, output: str) -> Command:
        words = (output, self.perf, self.call_graph, self.max_size)
        return evolve(command, argv=("sh", "-c", _SCRIPT, *words, *command.argv))

    def finish(self, output: str) -> Command:
        options = ("--ns", "--show-switch-events")
        return printed(output, self.perf, self.python, self.call_graph, *options, label="offcpu")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        recordings = []
        for file in profiles:
            recording = _Recording()
            recording.read(file)
            recordings.append(recording)
        if not recordings:
            return Failed(reason="no profile of switches was written")
        switches = sum(each.switches for each in recordings)
        lost = sum(each.lost for each in recordings)
        if not switches:
            unknown = sum(each.unknown for each in recordings)
            if unknown:
                return Failed(reason=f"no switches, and {unknown} lines were not understood")
            return Inconclusive(reason="no switches: it never left its CPU, or was too short")
        if lost > _TOO_MANY_LOST * (switches + lost):
            return Inconclusive(
                reason=f"perf lost {lost} records beside {switches} switches: waits cannot be told "
                'apart; set call_graph = "fp", or profile a workload that switches less often'
            )
        return self._measured(recordings)

    def _measured(self, recordings: list[_Recording]) -> ProfileResult:
        runs = len(recordings)
        classes = {kind: _Waits() for kind in (*_BLOCKED, "S")}
        stacks: dict[str, int] = {}
        places: dict[tuple[Class, str], _Waits] = {}
        threads: dict[tuple[Class, str], set[str]] = {}
        idle, on, foreign = _Waits(), 0, 0
        for recording in recordings:
            working = recording.working()
            counted = {id(thread) for thread in working}
            for thread in recording.threads.values():
                on += thread.on
                for cause, waits in thread.waits.items():
                    if id(thread) not in counted and cause.kind != "S":
                        idle.merge(waits)
                        continue
                    classes[cause.kind].merge(waits)
                    if cause.kind == "S":
                        continue
                    where = cause.where or thread.name
                    stack = f"{cause.kind};{cause.stack or thread.name.replace(';', ':')}"
                    stacks[stack] = stacks.get(stack, 0) + waits.ns
                    foreign += 0 if cause.own else waits.ns
                    places.setdefault((cause.kind, where), _Waits()).merge(waits)
                    threads.setdefault((cause.kind, where), set()).add(thread.name)
        if not any(waits.count for waits in classes.values()) and not idle.count:
            return Inconclusive(reason="no wait has begun and ended while it was recorded")
        scalars = dict(_totals(classes, runs, any(each.classified for each in recordings)))
        scalars["on_cpu_ms"] = Scalar(value=on / runs / 1e6, unit="ms")
        scalars["idle_ms"] = Scalar(value=idle.ns / runs / 1e6, unit="ms")
        blocked = sum(classes[kind].ns for kind in _BLOCKED)
        findings = []
        for (kind, where), waits in sorted(places.items(), key=_most_first)[: self.top]:
            scalar = waits.per_run(runs)
            scalars[f"off_cpu_ms[{kind},{where}]"] = scalar
            names = sorted(threads[kind, where])
            mean, longest = waits.ns / waits.count / 1e6, waits.longest / 1e6
            findings.append(
                Finding(
                    where=where,
                    what=_MEANING[kind],
                    scalar=scalar,
                    detail=f"class {kind}, {waits.ns / (blocked or 1):.1%} of all waiting: "
                    f"{waits.count / runs:.6g} waits of {mean:.3g} ms, the longest {longest:.3g}; "
                    f"in {', '.join(names[:3])}{', …' if len(names) > 3 else ''}",
                )
            )
        return Measured(
            scalars=scalars,
            stacks=folded({stack: ns / runs / 1e3 for stack, ns in stacks.items()}),
            stacks_unit="us",
            findings=tuple(findings[:30]),
            notes=tuple(_notes(recordings, classes, blocked, foreign)),
        )


def _totals(
    classes: Mapping[Class, _Waits], runs: int, classified: bool
) -> Iterator[tuple[str, Scalar]]:
    """A class that was looked for and not found is a zero; one that was not looked for is none."""
    for kind, waits in classes.items():
        if waits.count or kind == "S" or classified == (kind != "unclassified"):
            yield f"off_cpu_ms[{kind}]", waits.per_run(runs)
            yield f"waits[{kind}]", Scalar(value=waits.count / runs, unit="waits")


def _most_first(place: tuple[tuple[Class, str], _Waits]) -> tuple[int, Class, str]:
    (kind, where), waits = place
    return -waits.ns, kind, where


def _notes(
    recordings: list[_Recording], classes: Mapping[Class, _Waits], blocked: int, foreign: int
) -> Iterator[str]:
    without = sum(not each.classified for each in recordings)
    if without:
        yield (
            "without the right to trace there are no classes and no stacks: give the backend "
            'capabilities = ["perfmon", "syslog"], and mount -t tracefs nodev /sys/kernel/tracing'
        )
    elif classes["unclassified"].ns > _WORTH_A_NOTE * (blocked or 1):
        yield (
            f"{classes['unclassified'].ns / blocked:.1%} of the waiting has no class: where the "
            'kernel hides its symbols, capabilities = ["perfmon", "syslog"] shows them'
        )
    if any(each.classified for each in recordings) and foreign > _MOST * (blocked or 1):
        yield (
            f"{foreign / blocked:.0%} of the waiting is in no function of the program: its call "
            "stacks end in a library, or it has no symbols; call_graph = "
            '"dwarf,16384" copies more of each stack'
        )
    idle = sum(len(each.threads) - len(each.working()) for each in recordings)
    if idle:
        yield f"{idle} threads made no progress; their waiting is in idle_ms alone"
    unfinished = sum(
        thread.out_since is not None and not thread.over
        for each in recordings
        for thread in each.threads.values()
    )
    if unfinished:
        yield f"{unfinished} waits had not ended, and are not counted"
    if none := sum(not each.switches for each in recordings):
        yield f"{none} of {len(recordings)} profiles have no switches"
    for count, what in (
        (sum(each.unknown for each in recordings), "lines or samples were not understood"),
        (sum(each.cut for each in recordings), "samples were cut in the middle and left out"),
        (sum(each.lost for each in recordings), "records were lost by perf"),
    ):
        if count:
            yield f"{count} {what}"
