"""Which lines of a Python program hold its memory at the peak: memray."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import orjson
from attrs import define, field, frozen

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

from ._injecting import OWN_SITE, injected
from ._reading import MAX_WHOLE, Lines, folded, largest, pooled, too_large, without_line
from ._trial import missing

__all__ = ["Memray"]

_FIX = "pip install memray"
_TRACK = """
def _aiopt_track():
    import os, sys
    try:
        try:
            import memray
        except ImportError:
            sys.path.append(%(site)r)
            import memray
        name = "%%s.%%d.bin" %% (_OUT, os.getpid())
        tracker = memray.Tracker(name, trace_python_allocators=%(python)r)
        tracker.__enter__()
        _aiopt_at_end(lambda: tracker.__exit__(None, None, None))
    except Exception as error:
        with open(_OUT + ".error", "a") as file:
            file.write("%%s: %%s\\n" %% (type(error).__name__, error))

_aiopt_track()
"""
# Of several processes, the one that allocated most is what was to be profiled.
_FINISH = """
import glob, json, os, re, subprocess, sys
LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|python3\\.[0-9]+)/")
SOURCE = os.getcwd() + "/"

def place(name):
    # The same in every candidate's tree, whatever that is called.
    return name[len(SOURCE):] if name.startswith(SOURCE) else LIBRARY.sub("", name)

out, most = sys.argv[1], int(sys.argv[2])
files = sorted(glob.glob(glob.escape(out) + ".*.bin"), key=os.path.getsize)
if not files:
    try:
        sys.exit(open(out + ".error").read())
    except OSError:
        sys.exit("no Python program ran, or it ignores PYTHONPATH")
from memray import FileReader
reader = FileReader(files[-1])
records = sorted(
    reader.get_high_watermark_allocation_records(merge_threads=True),
    key=lambda record: -record.size,
)
found = []
for record in records[:most]:
    frames = reversed(record.stack_trace(64))
    stack = ["%s (%s:%d)" % (name, place(file), line) for name, file, line in frames]
    found.append({"bytes": record.size, "count": record.n_allocations, "stack": stack})
stats = out + ".stats.json"
subprocess.run(
    [sys.executable, "-m", "memray", "stats", "--json", "-f", "-o", stats, files[-1]],
    check=True, stdout=subprocess.DEVNULL,
)
whole = json.load(open(stats))
result = {
    "aiopt": "memray 1",
    "peak_bytes": reader.metadata.peak_memory,
    "allocated_bytes": whole["total_bytes_allocated"],
    "allocations": whole["total_num_allocations"],
    "processes": len(files),
    "records": found,
    "left_out_bytes": sum(record.size for record in records[most:]),
}
with open(out, "w") as file:
    json.dump(result, file)
"""
_PROGRAM = "kept = [bytearray(100_000) for _ in range(20)]"
_COLUMNS = ["allocator", "num_allocations", "size", "tid", "thread_name", "stack_trace"]
_MOST = float(1 << 62)
_MAX_STACKS = 1 << 17


@define
class _Reading:
    """What one or more profiles add up to."""

    figures: dict[str, list[float]] = field(factory=dict)
    located: dict[str, float] = field(factory=dict)
    stacks: dict[str, float] = field(factory=dict)
    peaks: list[float] = field(factory=list)
    notes: list[str] = field(factory=list)
    ignored: int = 0

    def figure(self, name: str, value: object) -> None:
        number = _number(value)
        if number is not None:
            self.figures.setdefault(name, []).append(number)

    def hold(self, frames: Sequence[str], size: float) -> None:
        stack = ";".join(frame.replace(";", ":").replace("\n", " ") for frame in frames)
        if stack in self.stacks or len(self.stacks) < _MAX_STACKS:
            self.stacks[stack] = self.stacks.get(stack, 0.0) + size


@frozen(kw_only=True)
class Memray:
    """Records every allocation of a Python program, and who held what when memory was at its peak.

    Scalars: `peak_bytes` and `allocated_bytes` (bytes), `allocations`, and for the largest holders
    at the peak `peak_bytes[NAME (FILE)]`. Of several profiles the mean, from the least to the
    largest. Stacks are what was held at the peak, in bytes.

    It reads what its own `wrap` and `finish` write, `memray stats --json` (where
    `allocated_bytes[NAME:FILE:LINE]` are the largest of all allocations) and `memray transform
    csv`. The program takes two to four times as long: nothing but memory is to be read from it.
    A program that is killed loses its last allocations.
    """

    python_allocators: bool = False
    """Whether to see each small object, which pymalloc takes from larger blocks; slower."""
    python: str = ""
    """The interpreter that has memray, to read what was recorded; by default aiopt's own."""
    top: int = 20
    """How many functions become scalars and findings."""
    most_stacks: int = 1000
    """How many of the largest stacks are kept."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return await missing(self, workspace, ("python3", "-c", _PROGRAM), _FIX)

    def version(self) -> Command:
        python = self.python or sys.executable
        code = "import memray; print('memray', memray.__version__)"
        return Command(argv=(python, "-c", code), timeout=20.0, label="memray")

    def wrap(self, command: Command, output: str) -> Command:
        code = _TRACK % {"site": OWN_SITE, "python": self.python_allocators}
        return injected(command, code, output)

    def finish(self, output: str) -> Command:
        python = self.python or sys.executable
        argv = (python, "-c", _FINISH, output, str(self.most_stacks))
        return Command(argv=argv, timeout=300.0)

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        reading = _Reading()
        for number, profile in enumerate(profiles, 1):
            trouble = _read(profile, reading)
            if trouble:
                return Failed(reason=f"profile {number}: {trouble}")
        if not reading.figures and not reading.stacks:
            return Inconclusive(reason="no allocations were recorded")
        return self._measured(reading)

    def _measured(self, reading: _Reading) -> Measured:
        scalars = {
            name: pooled(values, "allocations" if name == "allocations" else "bytes")
            for name, values in reading.figures.items()
        }
        runs = max(1, *(len(values) for values in reading.figures.values()), 1)
        holders: dict[str, float] = {}
        lines: dict[str, dict[str, float]] = {}
        for stack, size in reading.stacks.items():
            name, line = without_line(stack.rpartition(";")[2])
            holders[name] = holders.get(name, 0.0) + size / runs
            found = lines.setdefault(name, {})
            found[line] = found.get(line, 0.0) + size
        findings = []
        for name in largest(holders, self.top):
            scalars[f"peak_bytes[{name}]"] = Scalar(value=holders[name], unit="bytes")
            line = max(lines[name], key=lambda line: lines[name][line])
            detail = f"most in line {line}"
            findings.append(
                Finding(
                    where=name,
                    what="held at the peak",
                    scalar=scalars[f"peak_bytes[{name}]"],
                    detail=detail,
                )
            )
        for location in largest(reading.located, self.top):
            located = Scalar(value=reading.located[location] / runs, unit="bytes")
            scalars[f"allocated_bytes[{location}]"] = located
            if not holders:
                findings.append(Finding(where=location, what="allocated", scalar=located))
        notes = reading.notes
        if reading.ignored:
            notes = [*notes, f"{reading.ignored} lines were not understood"]
        return Measured(
            scalars=scalars,
            stacks=folded(reading.stacks),
            stacks_unit="bytes",
            findings=tuple(findings),
            notes=tuple(notes),
        )


def _read(file: BinaryIO, reading: _Reading) -> str:
    """Add one profile; the trouble if it is none."""
    first = file.read(1)
    if not first:
        return ""
    if first == b"{":
        rest = file.read(MAX_WHOLE)
        if file.read(1):
            return too_large()
        try:
            document = orjson.loads(first + rest)
        except orjson.JSONDecodeError as error:
            return f"no JSON: {error}"
        return _document(document, reading)
    return _table(first, file, reading)


def _document(document: Mapping[str, Any], reading: _Reading) -> str:
    if document.get("aiopt") == "memray 1":
        for name in ("peak_bytes", "allocated_bytes", "allocations"):
            reading.figure(name, document.get(name))
        for record in _objects(document.get("records")):
            size, stack = _number(record.get("bytes")), record.get("stack")
            if size is not None and isinstance(stack, list):
                reading.hold([str(frame) for frame in stack] or ["[unknown]"], size)
            else:
                reading.ignored += 1
        left_out = _number(document.get("left_out_bytes"))
        if left_out:
            reading.notes.append(f"{left_out / 1e6:.1f} MB are in stacks that were left out")
        return ""
    if "total_num_allocations" not in document:
        return "neither memray's statistics nor what `aiopt profile` keeps of it"
    reading.figure("allocations", document["total_num_allocations"])
    reading.figure("allocated_bytes", document.get("total_bytes_allocated"))
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        reading.figure("peak_bytes", metadata.get("peak_memory"))
    for each in _objects(document.get("top_allocations_by_size")):
        size, location = _number(each.get("size")), each.get("location")
        if size is not None and isinstance(location, str):
            reading.located[location] = reading.located.get(location, 0.0) + size
        else:
            reading.ignored += 1
    return ""


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    for each in value if isinstance(value, list) else ():
        yield each if isinstance(each, dict) else {}


def _table(first: bytes, file: BinaryIO, reading: _Reading) -> str:
    """`memray transform csv`: one row for what a stack holds at the peak."""
    lines = Lines(file)
    texts = iter(lines)
    head = first.decode(errors="replace") + next(texts, "")
    if head.split(",") != _COLUMNS:
        return f"expected the columns {','.join(_COLUMNS)}, found {head[:80]!r}"
    peak = count = 0.0
    for text in texts:
        try:
            (row,) = csv.reader([text])
            _, number, size, _, _, trace = row
        except (ValueError, csv.Error):
            reading.ignored += 1
            continue
        held, allocated = _number(size), _number(number)
        frames = [_frame(part) for part in reversed(trace.split("|"))]
        if held is None or allocated is None:
            reading.ignored += 1
            continue
        peak, count = peak + held, count + allocated
        reading.hold(frames, held)
    reading.ignored += lines.too_long
    if not peak:
        return "no row of the table was understood" if reading.ignored else ""
    reading.figure("peak_bytes", peak)
    reading.figure("allocations", count)
    return ""


def _frame(text: str) -> str:
    parts = text.split(";")
    return f"{parts[0]} ({parts[1]}:{parts[2]})" if len(parts) == 3 else text or "[unknown]"


def _number(value: object) -> float | None:
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < _MOST else None
