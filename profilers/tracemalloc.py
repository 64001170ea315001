"""What a Python program has allocated and kept: the interpreter's own tracemalloc."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import orjson
from attrs import frozen

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

from ._injecting import injected
from ._reading import folded, too_large, whole
from ._trial import missing

__all__ = ["TraceMalloc"]

_TRACE = """
def _aiopt_trace():
    import json, os, re, sys, tracemalloc
    library = re.compile(r".*/(?:site-packages|dist-packages|python3[.][0-9]+)/")
    source = os.getcwd() + "/"

    def place(name):
        return name[len(source):] if name.startswith(source) else library.sub("", name)

    def write():
        if not tracemalloc.is_tracing():
            return
        current, peak = tracemalloc.get_traced_memory()
        kept = tracemalloc.take_snapshot().statistics("traceback")
        tracemalloc.stop()
        most = %(most)d
        found = [
            {
                "bytes": each.size,
                "count": each.count,
                "stack": ["%%s:%%d" %% (place(f.filename), f.lineno) for f in each.traceback],
            }
            for each in kept[:most]
        ]
        result = {
            "aiopt": "tracemalloc 1",
            "peak_bytes": peak,
            "current_bytes": current,
            "blocks": sum(each.count for each in kept),
            "records": found,
            "left_out_bytes": sum(each.size for each in kept[most:]),
        }
        name = "%%s.%%d.traced" %% (_OUT, os.getpid())
        with open(name, "w") as file:
            json.dump(result, file)

    tracemalloc.start(%(frames)d)
    _aiopt_at_end(write)

_aiopt_trace()
"""
# Of several processes, the one with the largest peak is what was to be profiled.
_FINISH = """
import glob, json, sys
out = sys.argv[1]
found = [open(name).read() for name in sorted(glob.glob(glob.escape(out) + ".*.traced"))]
if not found:
    sys.exit("no Python program ran to its end, or it ignores PYTHONPATH")
open(out, "w").write(max(found, key=lambda text: json.loads(text)["peak_bytes"]))
"""
_PROGRAM = "kept = [bytearray(100_000) for _ in range(20)]"
_MOST = float(1 << 62)


@frozen(kw_only=True)
class TraceMalloc:
    """Traces each block of a Python program's own allocators, and says what is left at its end.

    Scalars: `peak_bytes` and `current_bytes` (what was traced at the peak and at the end), `blocks`
    at the end, and `kept_bytes[FILE:LINE]` for the lines that keep most. Of several profiles the
    mean, from the least to the largest. Stacks are what is kept at the end, in bytes: tracemalloc
    cannot say who held what at the peak.

    Needs nothing but the interpreter. The program takes some ten times as long.
    """

    frames: int = 10
    """How deep stacks are; deeper ones cost more."""
    top: int = 20
    """How many lines become scalars and findings."""
    most_stacks: int = 1000
    """How many of the largest stacks are kept."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        fix = "apt-get install python3"
        return await missing(self, workspace, ("python3", "-c", _PROGRAM), fix)

    def version(self) -> Command:
        return Command(argv=("python3", "--version"), timeout=20.0, label="tracemalloc")

    def wrap(self, command: Command, output: str) -> Command:
        code = _TRACE % {"frames": self.frames, "most": self.most_stacks}
        return injected(command, code, output)

    def finish(self, output: str) -> Command:
        return Command(argv=("python3", "-I", "-S", "-c", _FINISH, output), timeout=60.0)

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        documents = []
        for number, profile in enumerate(profiles, 1):
            data = whole(profile)
            if data is None:
                return Failed(reason=f"profile {number}: {too_large()}")
            if not data.strip():
                continue
            try:
                document = orjson.loads(data)
            except orjson.JSONDecodeError as error:
                return Failed(reason=f"profile {number} is no JSON: {error}")
            if not isinstance(document, dict) or document.get("aiopt") != "tracemalloc 1":
                return Failed(reason=f"profile {number} is not what `aiopt profile` writes")
            documents.append(document)
        return self._measured(documents)

    def _measured(self, documents: Sequence[Mapping[str, Any]]) -> ProfileResult:
        scalars: dict[str, Scalar] = {}
        for name, unit in (("peak_bytes", "bytes"), ("current_bytes", "bytes"), ("blocks", "1")):
            numbers = [n for d in documents if (n := _number(d.get(name))) is not None]
            if numbers:
                mean = sum(numbers) / len(numbers)
                several = len(numbers) > 1
                scalars[name] = Scalar(
                    value=mean,
                    unit=unit,
                    low=min(numbers) if several else None,
                    high=max(numbers) if several else None,
                )
        if not scalars:
            return Inconclusive(reason="nothing was traced")
        stacks: dict[str, float] = {}
        lines: dict[str, float] = {}
        ignored, left_out = 0, 0.0
        for document in documents:
            left_out += _number(document.get("left_out_bytes")) or 0.0
            records = document.get("records")
            for record in records if isinstance(records, list) else ():
                size = _number(record.get("bytes")) if isinstance(record, dict) else None
                stack = record.get("stack") if isinstance(record, dict) else None
                if size is None or not isinstance(stack, list) or not stack:
                    ignored += 1
                    continue
                frames = [str(frame).replace(";", ":").replace("\n", " ") for frame in stack]
                stacks[";".join(frames)] = stacks.get(";".join(frames), 0.0) + size
                lines[frames[-1]] = lines.get(frames[-1], 0.0) + size / len(documents)
        largest = sorted(lines, key=lambda line: (-lines[line], line))[: self.top]
        kept = {line: Scalar(value=lines[line], unit="bytes") for line in largest}
        notes = [f"{left_out / 1e6:.1f} MB are in stacks that were left out"] if left_out else []
        if ignored:
            notes.append(f"{ignored} records were not understood")
        return Measured(
            scalars={**scalars, **{f"kept_bytes[{line}]": kept[line] for line in largest}},
            stacks=folded(stacks),
            stacks_unit="bytes",
            findings=tuple(
                Finding(where=line, what="kept at the end", scalar=kept[line]) for line in largest
            ),
            notes=tuple(notes),
        )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < _MOST else None
