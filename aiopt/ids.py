"""Names that follow from content, so that the same thing has the same name everywhere.

Streams are called `<kind>-<number>~<writer>`: `exp-0007~3k9fa2c`. The number counts within a log,
the tag names the writer that began the stream, so that logs of several machines can be merged
without a clash. People see and type the short name, `exp-0007`.
"""

import hashlib
from collections.abc import Iterable

__all__ = [
    "candidate_id",
    "digest",
    "run_key",
    "short_name",
    "stream_name",
    "writer_tag",
]

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u


def digest(data: bytes) -> str:
    """The sha256 of `data`, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def candidate_id(base_commit: str, patch_digests: Iterable[str]) -> str:
    """The id of a candidate: 12 hex digits over base commit and ordered digests of its patches."""
    text = "\n".join(["aiopt candidate 1", base_commit, *patch_digests])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def writer_tag(writer: int) -> str:
    """A writer's number in Crockford's base 32."""
    if writer <= 0:
        raise ValueError(f"a writer's number is positive, not {writer}")
    digits = ""
    while writer:
        writer, rest = divmod(writer, 32)
        digits = _BASE32[rest] + digits
    return digits


def stream_name(kind: str, number: int, writer: int) -> str:
    """`exp-0007~3k9fa2c` for the seventh experiment begun in the log of this writer."""
    return f"{kind}-{number:04d}~{writer_tag(writer)}"


def short_name(stream: str) -> str:
    """`exp-0007`: a stream as people write it."""
    return stream.partition("~")[0]


def run_key(purpose: str, workload: str, index: int, attempt: int, arm: str) -> str:
    """One run of one pair, as stages and run folders are labelled: `screen:mixed:3:0:B`."""
    return f"{purpose}:{workload}:{index}:{attempt}:{arm}"
