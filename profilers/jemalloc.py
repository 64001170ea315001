"""Who holds and who allocates a program's memory: jemalloc's sampling heap profiler."""

import inspect
import math
from collections.abc import Sequence
from typing import BinaryIO

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

from . import _heap_names
from ._heap_dumps import Dump, Heap, heap_of, unsampled
from ._heap_places import place, without_allocator
from ._reading import folded
from ._trial import trial

__all__ = ["Jemalloc"]

_Z = 1.959963984540054
_FIX = "apt-get install libjemalloc2 binutils"
_WORTH_A_NOTE = 0.05
_MAX_TEXT = 128 << 20
_OTHERS = "[other stacks]"
_VERSION = """
from ctypes import CDLL, byref, c_char_p, c_size_t, sizeof
text = c_char_p()
if hasattr(CDLL(None), "mallctl"):
    CDLL(None).mallctl(b"version", byref(text), byref(c_size_t(sizeof(text))), None, c_size_t(0))
    print("jemalloc", text.value.decode())
"""
_PROGRAM = "kept = [bytearray(4000) for _ in range(5000)]"


@define
class _Sum:
    """An estimate over stacks whose samples are independent of each other."""

    value: float = 0.0
    variance: float = 0.0

    def add(self, value: float, noise: float) -> None:
        self.value += value
        self.variance += value * value * noise

    def scalar(self, unit: str, runs: int) -> Scalar:
        """The mean of the runs, with the score interval of a Poisson mean (Wilson, JASA 22 (1927)
        209), which holds for small counts too; the count is the one with this relative variance.
        """
        if not self.value:
            return Scalar(value=0.0, unit=unit)
        shift = _Z * _Z * self.variance / (2 * self.value)
        reach = math.hypot(_Z * math.sqrt(self.variance), shift)
        low, high = max(0.0, self.value + shift - reach), self.value + shift + reach
        return Scalar(value=self.value / runs, unit=unit, low=low / runs, high=high / runs)


@define
class _Sums:
    bytes: _Sum = field(factory=_Sum)
    objects: _Sum = field(factory=_Sum)
    places: dict[str, _Sum] = field(factory=dict)
    stacks: dict[str, float] = field(factory=dict)
    text: int = 0
    """Characters of the stacks."""
    nameless: float = 0.0

    def add(self, heap: Heap, dump: Dump, *, accumulated: bool) -> None:
        for addresses, counts in dump.stacks.items():
            objects, size = counts[2:] if accumulated else counts[:2]
            if not objects:
                continue
            estimate = unsampled(objects, size, dump.period)
            names, gone = heap.frames(addresses)
            frames = without_allocator(names, gone=gone)
            self._stack(";".join(frames), estimate.bytes)
            self.objects.add(estimate.objects, estimate.noise)
            self.bytes.add(estimate.bytes, estimate.noise)
            self.places.setdefault(place(frames), _Sum()).add(estimate.bytes, estimate.noise)
            if not heap.is_known(addresses):
                self.nameless += estimate.bytes

    def _stack(self, stack: str, size: float) -> None:
        if stack not in self.stacks:
            self.text += len(stack)
            if self.text > _MAX_TEXT:
                stack = _OTHERS
        self.stacks[stack] = self.stacks.get(stack, 0.0) + size


@frozen(kw_only=True)
class Jemalloc:
    """Samples allocations, with their stacks, in a program that uses jemalloc or is made to.

    Scalars: `live_bytes` and `live_objects`, what was held when most was, as far as dumps show it
    (there is one every `2^lg_interval` bytes allocated, and one at the end); being the largest of
    several estimates it is a little too large rather than too small.
    `allocated_bytes` and `allocated_objects`, all that was allocated until the last dump;
    `live_bytes[function (file)]` and `allocated_bytes[function (file)]` for the functions that
    allocate most; what the C++ and Rust standard libraries allocate is laid to who calls them.
    Bytes are those of size classes: 1000 count as 1024. Estimates follow jeprof, stack by stack;
    their intervals, 95 %, are of the sampling alone. Of several runs the mean is given. Of several
    processes only the one that allocated most is looked at, and a note says if that is not nearly
    all.

    The stacks are of live bytes; of allocated ones if nothing was live. Functions without a symbol
    go by their object and offset.

    Sampled objects take whole pages: never read the resident set of a profiled run. What a program
    had allocated after its last dump is lost if a signal ends it that it does not handle: for a
    service like that, `lg_interval` is how old the last dump may be. A start script that sets
    MALLOC_CONF itself has to keep what is in it.
    """

    library: str = "libjemalloc.so.2"
    """What is preloaded; empty for a program that is linked with a jemalloc (built with
    `--enable-prof`, and for Rust with tikv-jemallocator's feature `profiling`)."""
    lg_sample: int = 17
    """Base 2 logarithm of the mean number of bytes between samples; 19 costs nothing measurable, 12
    doubles a small program's CPU time."""
    lg_interval: int = 28
    """Base 2 logarithm of the number of allocated bytes after which there is another dump.
    Each stays on the disk until the end: take more for what allocates terabytes."""
    python: str = "python3"
    """Reads the dumps; addr2line names the addresses."""
    top: int = 15
    """How many functions become scalars and findings, of live and of allocated bytes each."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        if not self.library:  # that there is one in the program only the program can show
            return None
        result = await trial(self, workspace, (self.python, "-c", _PROGRAM), _FIX)
        match result:
            case Measured():
                return None
            case NotAvailable():
                return evolve(result, fix=result.fix or _FIX)
            case _:
                return NotAvailable(reason=f"of a small program: {result.reason}", fix=_FIX)

    def version(self) -> Command:
        argv = (self.python, "-I", "-c", _VERSION)
        env = {"LD_PRELOAD": self.library} if self.library else {}
        return Command(argv=argv, env=env, timeout=20.0, label="jemalloc")

    def wrap(self, command: Command, output: str) -> Command:
        options = (
            "prof:true,prof_active:true,prof_accum:true,prof_final:true,"
            f"lg_prof_sample:{self.lg_sample},lg_prof_interval:{self.lg_interval}"
        )
        env = dict(command.env)
        for variable, kind in (("MALLOC_CONF", "mine"), ("_RJEM_MALLOC_CONF", "rust")):
            own = f"{env[variable]}," if env.get(variable) else ""  # what comes later counts
            env[variable] = f"{own}{options},prof_prefix:{output}.{kind}"
        if self.library:
            before = env.get("LD_PRELOAD", "")
            env["LD_PRELOAD"] = f"{self.library}:{before}" if before else self.library
        return evolve(command, env=env)

    def finish(self, output: str) -> Command:
        argv = (self.python, "-I", "-c", inspect.getsource(_heap_names), output, self.library)
        return Command(argv=argv, timeout=600.0, label="reading the heap dumps")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        """A file holds the dumps of one run; their order does not matter, and nothing is added up
        over them. Files are runs, whose mean is taken. Dumps as jemalloc writes them can be read
        too, as can what `jeprof --raw` makes of them.
        """
        if not profiles:
            return Failed(reason="no heap dump was written")
        live, allocated = _Sums(), _Sums()
        notes: list[str] = []
        for number, file in enumerate(profiles, 1):
            heap = heap_of(file)
            if heap.peak is None or heap.most is None:
                return _nothing(heap, number)
            notes += heap.notes
            if heap.unknown:
                notes.append(f"{heap.unknown} lines of profile {number} were not understood")
            if left_out := max(heap.peak.left_out, heap.most.left_out):
                notes.append(f"{left_out} stacks of profile {number} were left out")
            live.add(heap, heap.peak, accumulated=False)
            allocated.add(heap, heap.most, accumulated=True)
        if not live.stacks and not allocated.stacks:
            return Inconclusive(
                reason="no allocation was sampled: sample more often (a smaller lg_sample), or "
                "dump before everything is freed"
            )
        if not allocated.stacks:
            notes.append("without prof_accum there is nothing about what was freed again")
        return self._measured(live, allocated, len(profiles), notes)

    def _measured(self, live: _Sums, allocated: _Sums, runs: int, notes: list[str]) -> Measured:
        scalars: dict[str, Scalar] = {}
        findings: list[Finding] = []
        for kind, sums, what in (
            ("live", live, "held at the peak"),
            ("allocated", allocated, "allocated in all"),
        ):
            if kind == "allocated" and not sums.stacks:
                continue
            scalars[f"{kind}_bytes"] = sums.bytes.scalar("bytes", runs)
            scalars[f"{kind}_objects"] = sums.objects.scalar("objects", runs)
            for name in _largest(sums.places, self.top):
                scalar = scalars[f"{kind}_bytes[{name}]"] = sums.places[name].scalar("bytes", runs)
                share = sums.places[name].value / (sums.bytes.value or 1)
                findings.append(
                    Finding(where=name, what=what, scalar=scalar, detail=f"{share:.1%} of all")
                )
        shown = live if live.stacks else allocated
        if shown.nameless > _WORTH_A_NOTE * shown.bytes.value:
            notes.append(
                f"{shown.nameless / shown.bytes.value:.1%} of the bytes are of stacks without any "
                "symbol: build with -g and do not strip; apt-get install binutils"
            )
        return Measured(
            scalars=scalars,
            stacks=folded({stack: size / runs for stack, size in shown.stacks.items()}),
            stacks_unit="bytes",
            findings=tuple(findings[:30]),
            notes=tuple(notes),
        )


def _nothing(heap: Heap, number: int) -> NotAvailable | Inconclusive | Failed:
    match heap.nothing:
        case ("not available", reason):
            return NotAvailable(reason=reason, fix=_FIX)
        case (_, reason):
            return Inconclusive(reason=reason)
        case _:
            return Failed(reason=f"profile {number}: no line `heap_v2/PERIOD`")


def _largest(places: dict[str, _Sum], count: int) -> list[str]:
    return sorted(places, key=lambda name: (-places[name].value, name))[:count]
