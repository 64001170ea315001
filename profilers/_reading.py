"""What the parsers of profiles share: reading untrusted files in bounded memory, and folding.

Profiles come from programs that crash and from tools that cut lines in the middle, so nothing here
raises for what is in a file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from attrs import define

from aiopt.events import Scalar

__all__ = [
    "MAX_LINE",
    "MAX_WHOLE",
    "Lines",
    "folded",
    "largest",
    "pooled",
    "shares",
    "too_large",
    "whole",
    "without_line",
]

MAX_LINE = 1 << 16
"""Bytes of a line; of a longer one nothing is kept, and it is counted."""

MAX_WHOLE = 256 << 20
"""Bytes of a file that has to be read as one piece (JSON)."""

_CHUNK = 1 << 20


@define
class Lines:
    """The lines of a file as text, without their ends; iterate once.

    Undecodable bytes become U+FFFD. `too_long` counts the lines that were passed over, `complete`
    says whether the last line ended with a newline; both are known when the iteration is over.
    """

    file: BinaryIO
    too_long: int = 0
    complete: bool = True

    def __iter__(self) -> Iterator[str]:
        rest, skipping = b"", False
        while chunk := self.file.read(_CHUNK):
            *lines, rest_of_chunk = chunk.split(b"\n")
            for line in lines:
                if not skipping and len(rest) + len(line) <= MAX_LINE:
                    yield (rest + line).rstrip(b"\r").decode(errors="replace")
                else:
                    self.too_long += 1
                rest, skipping = b"", False
            if skipping or len(rest) + len(rest_of_chunk) > MAX_LINE:
                rest, skipping = b"", True
            else:
                rest += rest_of_chunk
        self.complete = not rest and not skipping
        if skipping:
            self.too_long += 1
        elif rest:
            yield rest.rstrip(b"\r").decode(errors="replace")


def whole(file: BinaryIO) -> bytes | None:
    """All of a file, or None if it is larger than `MAX_WHOLE`."""
    data = file.read(MAX_WHOLE + 1)
    return None if len(data) > MAX_WHOLE else data


def too_large() -> str:
    """The reason to give where `whole` found None."""
    return f"the file is larger than {MAX_WHOLE >> 20} MiB; profile a shorter run"


def folded(stacks: Mapping[str, float]) -> str:
    """The canonical text of folded stacks: most first, ties by name, whole numbers without a point.

    A stack is its frames, root first, joined by `;`. Stacks without weight are left out.
    """
    ordered = sorted(stacks.items(), key=lambda item: (-item[1], item[0]))
    return "".join(f"{stack} {weight:.15g}\n" for stack, weight in ordered if weight > 0)


def shares(stacks: Iterable[tuple[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Weight by function: of its own (self), and of all stacks that it is in (total).

    A function that is in a stack more than once is counted once for it.
    """
    own: dict[str, float] = {}
    total: dict[str, float] = {}
    for stack, weight in stacks:
        frames = stack.split(";")
        own[frames[-1]] = own.get(frames[-1], 0.0) + weight
        for frame in set(frames):
            total[frame] = total.get(frame, 0.0) + weight
    return own, total


def largest(weights: Mapping[str, float], count: int) -> list[str]:
    """The names that weigh most, ties by name."""
    return sorted(weights, key=lambda name: (-weights[name], name))[:count]


def pooled(values: Sequence[float], unit: str) -> Scalar:
    """The mean of several runs, from the least to the largest; of one run, no interval."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Scalar(value=mean, unit=unit)
    return Scalar(value=mean, unit=unit, low=min(values), high=max(values))


def without_line(frame: str) -> tuple[str, str]:
    """`name (file:line)` as `name (file)` and the line, `?` if there is none.

    Functions are compared without their lines, which move with every patch.
    """
    place, colon, line = frame.rpartition(":")
    if colon and line.endswith(")") and line[:-1].isdigit():
        return f"{place})", line[:-1]
    return frame, "?"
