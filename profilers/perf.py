"""Where the CPU time goes: `perf record` of a clock or counter, read from `perf script`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import RawIOBase
from itertools import pairwise
from typing import Any, BinaryIO, cast

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
from aiopt.stats import wilson

from ._perf_script import UNKNOWN, Frame, Lost, Sample, Script, Stacks, folded_stack, frame_of
from ._perf_text import printed
from ._reading import folded, largest, shares, too_large, whole
from ._trial import missing

__all__ = ["Perf"]

_CLOCKS = ("cpu-clock", "task-clock")
_MAX_EVENTS = 16
_MAX_NAMES = 1 << 17
_WORTH_A_NOTE = 0.05
_JSON_EVENT = "an event whose name the format does not keep"

_ROOT = re.compile(
    r"_start|_start_c|_dl_start.*|__libc_start.*|start_thread|thread_start|__?clone3?|clone3"
    r"|runtime\.(?:goexit|mstart|rt0_go|systemstack|mcall|morestack).*|ret_from_fork.*"
)
"""Where the stack of a program or thread begins, by glibc, musl and Go."""

_MODIFIERS = re.compile(r"(?:/[^/]*/|:)([ukhpPGHSDWe]{0,9})$")

_SPIN = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"


@define
class _Recorded:
    """All samples of one event."""

    count: int = 0
    weight: float = 0.0
    squares: float = 0.0
    kernel: float = 0.0
    broken: float = 0.0
    stacks: Stacks = field(factory=Stacks)
    objects: dict[str, str] = field(factory=dict)
    """By function, where it was seen first."""
    nameless: dict[str, float] = field(factory=dict)
    """Weight of samples in code without a symbol, by object."""

    def add(self, frames: tuple[Frame, ...], period: int) -> None:
        weight = float(period)
        self.count += 1
        self.weight += weight
        self.squares += weight * weight
        self.stacks.add(folded_stack(frames) or UNKNOWN, weight)
        if not frames:
            self._nameless(UNKNOWN, weight)
            return
        leaf, root = frames[0], frames[-1]
        if leaf.kernel:
            self.kernel += weight
        if not leaf.known:
            self._nameless("the kernel" if leaf.kernel else leaf.object, weight)
        if leaf.name not in self.objects and len(self.objects) < _MAX_NAMES:
            self.objects[leaf.name] = leaf.object
        if not root.kernel and not _ROOT.fullmatch(root.symbol):
            self.broken += weight

    def _nameless(self, object: str, weight: float) -> None:
        if object in self.nameless or len(self.nameless) < _MAX_NAMES:
            self.nameless[object] = self.nameless.get(object, 0.0) + weight

    @property
    def effective(self) -> float:
        """How many samples of equal weight would know as much (Kish, Survey Sampling, 1965)."""
        return self.weight * (self.weight / self.squares)

    def share(self, weight: float) -> Scalar:
        value = min(1.0, weight / self.weight)
        low, high = wilson(value, self.effective)
        return Scalar(value=value, unit="ratio", low=low, high=high)


@define
class _Reading:
    """What was found in all the files."""

    events: dict[str, _Recorded] = field(factory=dict)
    periods_known: bool = True
    unknown: int = 0
    cut: int = 0
    lost: int = 0
    crowded_out: int = 0
    empty: int = 0
    profiles: int = 0

    def read(self, file: BinaryIO) -> str:
        """Add a profile. What is wrong with it; empty if nothing is."""
        before = self._samples
        peeked = _Peeked(file)
        start = cast(BinaryIO, peeked)
        problem = self.json(start) if peeked.first == b"{" else self.text(start)
        self.profiles += 1
        self.empty += self._samples == before
        return problem

    @property
    def _samples(self) -> int:
        return sum(event.count for event in self.events.values())

    def text(self, file: BinaryIO) -> str:
        script = Script(file)
        for record in script:
            if isinstance(record, Sample):
                self._sample(record.event, record.frames, record.period)
            elif isinstance(record, Lost):
                self.lost += record.records
        self.unknown += script.unknown
        self.cut += script.cut
        return ""

    def json(self, file: BinaryIO) -> str:
        """What is wrong with it; empty if nothing is."""
        data = whole(file)
        if data is None:
            return too_large()
        try:
            document: Any = json.loads(data)
        except (ValueError, RecursionError) as error:
            return f"no JSON: {str(error)[:200] or type(error).__name__}"
        if not isinstance(document, dict) or not isinstance(document.get("samples"), list):
            return "no `samples` in it"
        event, period = _asked(document.get("headers"))
        self.periods_known &= period is not None
        for sample in document["samples"]:
            chain = sample.get("callchain") if isinstance(sample, dict) else None
            if isinstance(chain, list):
                frames = tuple(_frames(chain))
                self.unknown += len(frames) < min(len(chain), 1024)
                self._sample(event, frames, period or 1)
            else:
                self.unknown += 1
        return ""

    def _sample(self, event: str, frames: tuple[Frame, ...], period: int) -> None:
        if period < 1:  # what perf makes up at the beginning of a file
            self.unknown += 1
        elif event in self.events or len(self.events) < _MAX_EVENTS:
            self.events.setdefault(event, _Recorded()).add(frames, period)
        else:
            self.crowded_out += 1

    def notes(self) -> Iterator[str]:
        if 0 < self.empty < self.profiles:
            yield f"{self.empty} of {self.profiles} profiles have no samples"
        if self.unknown:
            yield f"{self.unknown} lines or samples were not understood"
        if self.cut:
            yield f"{self.cut} samples were cut in the middle and left out"
        if self.lost:
            yield f"perf lost {self.lost} records: sample less often"
        if self.crowded_out:
            yield f"{self.crowded_out} samples of further events were left out"


def _frames(chain: Sequence[Any]) -> Iterator[Frame]:
    for link in chain[:1024]:
        if isinstance(link, dict):
            address, symbol, object = (
                text if isinstance(text := link.get(key), str) else ""
                for key in ("ip", "symbol", "dso")
            )
            yield frame_of(address.removeprefix("0x"), symbol, object or UNKNOWN)


def _asked(headers: object) -> tuple[str, int | None]:
    """Event and period by the command line that perf kept: the samples have neither."""
    line = headers.get("cmdline") if isinstance(headers, Mapping) else None
    words = [str(word)[:100] for word in line[:1000]] if isinstance(line, list) else []
    given = dict(pairwise(words))
    event, rate = given.get("-e", _JSON_EVENT), given.get("-F", "")
    if _base(event) in _CLOCKS and re.fullmatch(r"[1-9][0-9]{0,6}", rate):
        return event, 10**9 // int(rate)
    return event, None


def _base(event: str) -> str:
    """The event without modifiers and terms."""
    return _MODIFIERS.sub("", event)


def _user_only(event: str) -> bool:
    modifiers = _MODIFIERS.search(event)
    return modifiers is not None and "u" in modifiers[1] and "k" not in modifiers[1]


@frozen(kw_only=True)
class Perf:
    """On-CPU time by function, from samples of a clock; 3 to 8 % slower at 997 Hz.

    Scalars, of all profiles together (samples and seconds add up):
    `samples`; `on_cpu_seconds` (s; only of clock events, samples times period);
    `self_share[function]` and `total_share[function]` (ratio): the share of the samples in the
    function itself, and in it or what it calls, for the `top` of each;
    `kernel_share` (ratio): of the samples in the kernel, only if it was sampled.

    Shares weigh samples by their period. Their intervals are Wilson's, 95 %, for as many samples as
    would count if all periods were equal; they take samples for independent, which phases of a
    program are not.

    The stacks are of samples, or weighted so that they add up to them where periods differ. A
    function without a symbol goes by its object in brackets.

    It is `perf script` that makes the profile readable, and not `perf data convert --to-json`,
    which takes as long for twice the bytes (0.55 s each for 200,000 samples; 46 and 84 MB), has
    neither event names nor periods, has to be read as a whole, and dies of SIGSEGV on a truncated
    file, where script says what is wrong. `parse` reads both: JSON begins with `{`.
    """

    perf: str = "perf"
    frequency: int = 499
    """Samples a second and thread; odd, so that it keeps no step with anything periodic."""
    event: str = "cpu-clock"
    """`cycles` is finer, where the machine has the counter; perf falls back silently."""
    call_graph: str = "fp"
    """`fp` needs programs with frame pointers; `dwarf,8192` does not, for ten times the data."""
    python: str = "python3"
    """Helps perf to unwind; see `_perf_maps`."""
    top: int = 20
    """How many functions become scalars and findings."""
    least_samples: int = 50
    """With fewer, a share may be off by more than 0.14."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        eager = evolve(self, least_samples=1)
        return await missing(eager, workspace, _SPIN, "apt-get install linux-perf")

    def version(self) -> Command:
        return Command(argv=(self.perf, "--version"), timeout=20.0, label="perf")

    def wrap(self, command: Command, output: str) -> Command:
        graph = ("-g",) if self.call_graph == "fp" else ("--call-graph", self.call_graph)
        record = (self.perf, "record", "-q", "-N", "-F", str(self.frequency), "-e", self.event)
        return evolve(command, argv=(*record, *graph, "-o", f"{output}.data", "--", *command.argv))

    def finish(self, output: str) -> Command:
        fields = ("-F", "comm,pid,tid,time,period,event,ip,sym,dso")
        return printed(output, self.perf, self.python, self.call_graph, *fields, label="perf")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        reading = _Reading()
        for number, file in enumerate(profiles, 1):
            if problem := reading.read(file):
                return Failed(reason=f"profile {number}: {problem}")
        if not profiles:
            return Failed(reason="no perf profile was written")
        if not reading.events:
            why = "; ".join(reading.notes()) or "too short, or asleep all the time"
            return Inconclusive(reason=f"no samples ({why})")
        event, recorded = max(reading.events.items(), key=lambda each: each[1].count)
        if recorded.count < self.least_samples:
            return Inconclusive(
                reason=f"{recorded.count} samples, fewer than {self.least_samples}: "
                "profile a longer workload, or sample more often"
            )
        return self._measured(event, recorded, reading)

    def _measured(self, event: str, recorded: _Recorded, reading: _Reading) -> Measured:
        own, total = shares(recorded.stacks.weights.items())
        scalars = {"samples": Scalar(value=float(recorded.count), unit="samples")}
        if _base(event) in _CLOCKS and reading.periods_known:
            scalars["on_cpu_seconds"] = Scalar(value=recorded.weight / 1e9, unit="s")
        if recorded.kernel or not (_user_only(event) or event == _JSON_EVENT):
            scalars["kernel_share"] = recorded.share(recorded.kernel)
        for kind, weights in (("self", own), ("total", total)):
            for name in largest(weights, self.top):
                scalars[f"{kind}_share[{name}]"] = recorded.share(weights[name])
        findings = []
        for name in largest(own, min(self.top, 30)):
            object = recorded.objects.get(name, UNKNOWN)
            below = f", {total[name] / recorded.weight:.1%} with what it calls"
            findings.append(
                Finding(
                    where=name,
                    what="on-CPU",
                    scalar=recorded.share(own[name]),
                    detail=f"in {object}; {own[name] / recorded.weight:.1%} itself{below}",
                )
            )
        scale = recorded.count / recorded.weight
        notes = (*self._about(event, recorded, reading), *reading.notes())
        return Measured(
            scalars=scalars,
            stacks=folded({stack: w * scale for stack, w in recorded.stacks.weights.items()}),
            findings=tuple(findings),
            notes=notes,
        )

    def _about(self, event: str, recorded: _Recorded, reading: _Reading) -> Iterator[str]:
        yield f"recorded: {event}"
        if _user_only(event):
            yield (
                "only user space was sampled, no time in the kernel: that needs the capability "
                'perfmon (capabilities = ["perfmon"]) or kernel.perf_event_paranoid <= 1'
            )
        if _base(self.event) not in event and event != _JSON_EVENT:
            yield f"{self.event} was asked for and is not there, perf fell back to {event}"
        if len(reading.events) > 1:
            others = {name: each.count for name, each in reading.events.items() if name != event}
            yield f"other events were left out: {others}"
        nameless = sum(recorded.nameless.values()) / recorded.weight
        if nameless > _WORTH_A_NOTE:
            worst = largest(recorded.nameless, 3)
            parts = [f"{name} {recorded.nameless[name] / recorded.weight:.1%}" for name in worst]
            flag = "build with -g and do not strip, or install the debug symbols"
            if worst[0] == "the kernel":
                flag = 'the kernel hides its symbols: capabilities = ["perfmon", "syslog"]'
            yield f"{nameless:.1%} of the samples have no symbol ({', '.join(parts)}): {flag}"
        broken = recorded.broken / recorded.weight
        if broken > _WORTH_A_NOTE:
            yield (
                f"{broken:.1%} of the stacks do not reach the start of their thread: total_share "
                "is too low; build with -fno-omit-frame-pointer, or set call_graph to dwarf,8192"
            )
        if recorded.stacks.left_out:
            part = recorded.stacks.left_out / recorded.weight
            yield f"{part:.1%} of the samples found no room among so many different stacks"


class _Peeked(RawIOBase):
    """A file whose first byte is known."""

    def __init__(self, file: BinaryIO) -> None:
        self.first = file.read(1)
        self._rest, self._file = self.first, file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        begun, self._rest = self._rest, b""
        return begun + self._file.read(size - len(begun) if size > 0 else size)
