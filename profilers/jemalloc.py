"""Who holds and who allocates a program's memory: jemalloc's sampling heap profiler."""

import math
import re
from collections.abc import Iterator, Sequence
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

from ._heap_dumps import Dump, Estimate, Heap, heap_of, unsampled
from ._perf_trial import trial
from ._reading import folded

__all__ = ["Jemalloc"]

_Z = 1.959963984540054
_FIX = "apt-get install libjemalloc2 binutils"
_ALLOCATOR = re.compile(
    r"(?:_?rjem_)?(?:je_)?(?:prof_\w+|imalloc\w*|irallocx\w*|tcache_\w+|arena_\w+|malloc_default"
    r"|do_rallocx|\w*fallback\w*|malloc|calloc|realloc|aligned_alloc|memalign|posix_memalign"
    r"|valloc|[mrsx]allocx|reallocarray)(?:\W.*)?"
    r"|operator new.*|_Zn[wa].*|newImpl.*|handleOOM.*|__rust_\w*alloc\w*|__rdl_\w*|__rg_\w*"
    r"|alloc::alloc::.*|<tikv_jemallocator::.*"
)
_WORTH_A_NOTE = 0.05

# Of the processes, the one that allocated most is the program. Of its dumps, the one with the most
# live bytes tells of the peak, and the last one of all allocations. What comes out is the form of
# `pprof --raw`, which jeprof reads too. A symbol's address in the file
# is that of the segment, which need not be its offset.
_FINISH = r"""
import glob, os, re, shutil, struct, subprocess, sys
out, library = sys.argv[1:3]
groups = {}
for name in glob.glob(glob.escape(out) + ".*.heap"):
    found = re.search(r"\.(mine|rust)\.(\d+)\.(\d+)\.[a-z]\d*\.heap$", name)
    if not found:
        continue
    with open(name, errors="replace") as file:
        file.readline()
        counts = [int(n) for n in re.findall(r"\d+", file.readline().partition("*")[2])]
    if len(counts) == 4:
        groups.setdefault(found.group(1, 2), []).append((int(found[3]), counts, name))
if not groups:
    said = ""
    if library:
        said = subprocess.run(
            ["sh", "-c", ":"], env={"LD_PRELOAD": library}, stderr=subprocess.PIPE, text=True
        ).stderr.strip()
    sys.exit(said or "no heap dump was written: the program has no jemalloc with profiling in it, "
             "or it was killed before it had allocated enough for a first dump")
dumps = max(groups.values(), key=lambda each: max(counts[3] or counts[1] for _, counts, _ in each))
peak = max(dumps, key=lambda each: (each[1][1], each[0]))[2]
last = max(dumps)[2]
texts = [open(name, errors="replace").read() for name in dict.fromkeys([peak, last])]
addresses, maps = set(), {}
for text in texts:
    for line in text.splitlines():
        if line.startswith("@ "):
            addresses.update(int(word, 16) for word in line.split()[1:])
        elif found := re.match(r"(\w+)-(\w+) ..x. (\w+) \S+ \d+ +(/.*)", line):
            maps[int(found[1], 16)] = (int(found[2], 16), int(found[3], 16), found[4])

def segments(path):
    with open(path, "rb") as file:
        head = file.read(64)
        wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
        at, = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        file.seek(at)
        table = file.read(size * count)
    for number in range(count):
        row = table[number * size :]
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(order + "IIQQQQ", row)
        else:
            kind, offset, address, _, length = struct.unpack_from(order + "IIIII", row)
        if kind == 1:
            yield offset, length, address

wanted = {}
for address in addresses:
    for start, (end, offset, path) in maps.items():
        if start <= address < end:
            wanted.setdefault(path, []).append((address, address - start + offset))
source = os.getcwd() + "/"
names = {}
tool = shutil.which("addr2line")
for path, places in wanted.items():
    try:
        parts = list(segments(path))
    except (OSError, struct.error, IndexError):
        continue
    asked = {}
    for address, place in places:
        for offset, length, virtual in parts:
            if offset <= place < offset + length:
                # A return address is after its call; the byte before it is in the call.
                asked.setdefault(place - offset + virtual - 1, []).append(address)
    if not tool or not asked:
        continue
    try:
        told = subprocess.run(
            [tool, "-a", "-f", "-i", "-C", "-e", path], text=True, errors="replace", timeout=240,
            input="".join("%x\n" % each for each in asked), stdout=subprocess.PIPE,
        ).stdout.splitlines()
    except subprocess.TimeoutExpired:
        continue
    key, lines = None, {}
    for line in told:
        if re.fullmatch(r"0x[0-9a-f]+", line):
            key = int(line, 16)
            lines[key] = []
        elif key is not None:
            lines[key].append(line)
    for key, pairs in lines.items():
        chain = []
        for function, place in zip(pairs[::2], pairs[1::2]):
            if function == "??":
                continue
            place = re.sub(r" \(discriminator \d+\)$", "", place)
            file, _, line = place.rpartition(":")
            file = file[len(source):] if file.startswith(source) else file.rpartition("/")[2]
            chain.append(function + (" (%s:%s)" % (file, line) if file.strip("?") else ""))
        for address in asked.get(key, ()):
            if chain:
                names[address] = "--".join(reversed(chain))
with open(out, "w") as file:
    file.write("--- symbol\nbinary=program\n")
    file.writelines("0x%x %s\n" % (each - 1, name) for each, name in sorted(names.items()))
    file.write("---\n--- heap\n")
    file.writelines(texts)
"""
_PROGRAM = "kept = [bytearray(4000) for _ in range(5000)]"


@define
class _Place:
    """Sums of a function over the stacks that it allocates in."""

    bytes: float = 0.0
    variance: float = 0.0

    def add(self, estimate: Estimate) -> None:
        self.bytes += estimate.bytes
        self.variance += estimate.variance

    def scalar(self, runs: int) -> Scalar:
        value, reach = self.bytes / runs, _Z * math.sqrt(self.variance) / runs
        return Scalar(value=value, unit="bytes", low=max(0.0, value - reach), high=value + reach)


@define
class _Sums:
    all: _Place = field(factory=_Place)
    objects: float = 0.0
    places: dict[str, _Place] = field(factory=dict)
    stacks: dict[str, float] = field(factory=dict)
    nameless: float = 0.0


@frozen(kw_only=True)
class Jemalloc:
    """Samples allocations, with their stacks, in a program that uses jemalloc or is made to.

    Scalars: `live_bytes` and `live_objects`, what was held when most was, as far as dumps show it
    (there is one every `2^lg_interval` bytes allocated, and one at the end);
    `allocated_bytes` and `allocated_objects`, all that was ever allocated;
    `live_bytes[function]` and `allocated_bytes[function]` for the functions that allocate most.
    Bytes are those of size classes: 1000 count as 1024. Estimates follow jeprof, stack by stack;
    their intervals, 95 %, are of the sampling alone. Of several runs the mean is given.

    The stacks are of live bytes; of allocated ones if nothing was live. Functions without a symbol
    go by their object and offset.

    Sampled objects take whole pages: never read the resident set of a profiled run. What a program
    had allocated after its last dump is lost if a signal ends it.
    """

    library: str = "libjemalloc.so.2"
    """What is preloaded; empty for a program that is linked with a jemalloc (built with
    `--enable-prof`, and for Rust with tikv-jemallocator's feature `profiling`)."""
    lg_sample: int = 17
    """Base 2 logarithm of the mean number of bytes between samples; 19 costs nothing measurable, 12
    doubles a small program's CPU time."""
    lg_interval: int = 28
    """Base 2 logarithm of the number of allocated bytes after which there is another dump."""
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
        argv = (self.python, "-I", "-c", _FINISH, output, self.library)
        return Command(argv=argv, timeout=600.0, label="reading the heap dumps")

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        """A file holds the dumps of one run."""
        if not profiles:
            return Failed(reason="no heap dump was written")
        live, allocated = _Sums(), _Sums()
        notes: list[str] = []
        for number, file in enumerate(profiles, 1):
            heap = heap_of(file)
            if not heap.dumps:
                return Failed(reason=f"profile {number}: no line `heap_v2/PERIOD`")
            if heap.unknown:
                notes.append(f"{heap.unknown} lines of profile {number} were not understood")
            if left_out := sum(dump.left_out for dump in heap.dumps):
                notes.append(f"{left_out} stacks of profile {number} were left out")
            _add(live, heap, max(heap.dumps, key=lambda dump: dump.live), accumulated=False)
            most = max(heap.dumps, key=lambda dump: dump.accumulated)
            _add(allocated, heap, most, accumulated=True)
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
            scalars[f"{kind}_bytes"] = sums.all.scalar(runs)
            scalars[f"{kind}_objects"] = Scalar(value=sums.objects / runs, unit="objects")
            for name in _largest(sums.places, self.top):
                scalar = scalars[f"{kind}_bytes[{name}]"] = sums.places[name].scalar(runs)
                share = sums.places[name].bytes / (sums.all.bytes or 1)
                findings.append(
                    Finding(where=name, what=what, scalar=scalar, detail=f"{share:.1%} of all")
                )
        shown = live if live.stacks else allocated
        if shown.nameless > _WORTH_A_NOTE * shown.all.bytes:
            notes.append(
                f"{shown.nameless / shown.all.bytes:.1%} of the bytes are of stacks without any "
                "symbol: build with -g and do not strip; apt-get install binutils"
            )
        return Measured(
            scalars=scalars,
            stacks=folded({stack: size / runs for stack, size in shown.stacks.items()}),
            stacks_unit="bytes",
            findings=tuple(findings[:30]),
            notes=tuple(notes),
        )


def _add(sums: _Sums, heap: Heap, dump: Dump, *, accumulated: bool) -> None:
    for addresses, counts in dump.stacks.items():
        objects, size = counts[2:] if accumulated else counts[:2]
        if not objects:
            continue
        estimate = unsampled(objects, size, dump.period)
        frames = [*_without_allocator(heap.frames(addresses))]
        stack = ";".join(frames)
        sums.stacks[stack] = sums.stacks.get(stack, 0.0) + estimate.bytes
        sums.objects += estimate.objects
        sums.all.add(estimate)
        where = _function(frames[-1])
        sums.places.setdefault(where, _Place()).add(estimate)
        if not heap.is_known(addresses):
            sums.nameless += estimate.bytes


def _without_allocator(frames: list[str]) -> Iterator[str]:
    """The stack as far as what calls the allocator; all of it if there is nothing else."""
    last = len(frames)
    while last > 1 and _ALLOCATOR.fullmatch(frames[last - 1]):
        last -= 1
    yield from frames[:last]


def _function(frame: str) -> str:
    """`name (file:line)` as `name (file)`: lines move with every patch."""
    place, colon, line = frame.rpartition(":")
    return f"{place})" if colon and line.endswith(")") and line[:-1].isdigit() else frame


def _largest(places: dict[str, _Place], count: int) -> list[str]:
    return sorted(places, key=lambda name: (-places[name].bytes, name))[:count]
