"""Folded stacks for other programs: speedscope's JSON, and flame graphs.

Folded stacks, `frame;frame;frame weight` a line with the root first, are the form that aiopt keeps;
they are what Brendan Gregg's and inferno's programs read.
"""

import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aiopt.errors import AiOptError, PrerequisiteError

__all__ = ["flame_graph", "read_folded", "speedscope", "top_stacks"]

_DEBIAN = Path("/usr/share/perl5/Devel/NYTProf/flamegraph.pl")
"""Brendan Gregg's program as Debian's libdevel-nytprof-perl brings it."""
_SPEEDSCOPE_UNITS = {"us": "microseconds", "bytes": "bytes", "s": "seconds", "ms": "milliseconds"}


def read_folded(stacks: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """Frames and weight of each line; what is no such line is passed over."""
    for line in stacks.splitlines():
        frames, _, number = line.rpartition(" ")
        try:
            weight = float(number)
        except ValueError:
            continue
        if frames and math.isfinite(weight) and weight >= 0:
            yield tuple(frames.split(";")), weight


def top_stacks(stacks: str, most: int) -> tuple[Mapping[str, Any], ...]:
    """The heaviest stacks, as JSON objects with `frames`, `weight` and `share`."""
    found = sorted(read_folded(stacks), key=lambda stack: (-stack[1], stack[0]))
    total = math.fsum(weight for _, weight in found) or 1.0
    return tuple(
        {"frames": list(frames), "weight": weight, "share": weight / total}
        for frames, weight in found[:most]
    )


def speedscope(stacks: str, unit: str, name: str) -> dict[str, Any]:
    """A sampled profile in the file format of speedscope.

    Source: https://www.speedscope.app/file-format-schema.json
    """
    numbers: dict[str, int] = {}
    samples, weights = [], []
    for frames, weight in read_folded(stacks):
        samples.append([numbers.setdefault(frame, len(numbers)) for frame in frames])
        weights.append(weight)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "aiopt",
        "name": name,
        "shared": {"frames": [{"name": frame} for frame in numbers]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": _SPEEDSCOPE_UNITS.get(unit, "none"),
                "startValue": 0,
                "endValue": math.fsum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }


def flame_graph(stacks: str, unit: str, title: str) -> bytes:
    """An SVG, drawn by inferno, or else by Brendan Gregg's flamegraph.pl.

    Raises:
        PrerequisiteError: neither is installed; says how to get one.
        AiOptError: it failed.
    """
    program = shutil.which("inferno-flamegraph") or shutil.which("flamegraph.pl")
    if program is None and _DEBIAN.is_file():
        program = str(_DEBIAN)
    if program is None:
        raise PrerequisiteError(
            "no program that draws flame graphs: neither inferno-flamegraph nor flamegraph.pl",
            fix="apt-get install libdevel-nytprof-perl   (or: cargo install inferno)",
        )
    argv = [program, "--title", title, "--countname", unit]
    argv = ["perl", *argv] if program.endswith(".pl") else argv
    try:
        done = subprocess.run(argv, input=stacks.encode(), capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AiOptError(f"{program} failed: {error}") from None
    if done.returncode != 0 or b"</svg>" not in done.stdout:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise AiOptError(f"{program} drew nothing (exit {done.returncode}): {said}")
    return done.stdout
