"""What every parser has to stand: truncated, shuffled and random input, and a line without end."""

import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO, RawIOBase
from typing import Any, BinaryIO, cast

from aiopt.protocols import Failed, Inconclusive, Measured, ProfileResult

__all__ = ["check_total", "contents"]

Parse = Callable[[Sequence[BinaryIO]], ProfileResult]

_LONG = 1 << 30


def contents(*files: bytes) -> list[BinaryIO]:
    return [BytesIO(file) for file in files]


class _OneLine(RawIOBase):
    """A gigabyte without a newline, after a given beginning, that is never in memory as a whole."""

    def __init__(self, beginning: bytes) -> None:
        self._rest, self._left = beginning, _LONG

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            raise AssertionError("a parser read a whole file without a limit")
        if self._rest:
            given, self._rest = self._rest[:size], self._rest[size:]
            return given
        given = b"x" * min(size, self._left)
        self._left -= len(given)
        return given


def _damaged(profile: bytes, count: int) -> Iterator[bytes]:
    coin = random.Random(7)
    for _ in range(count):
        yield profile[: coin.randrange(len(profile) + 1)]
    for _ in range(count // 5):
        lines = profile.splitlines(keepends=True)
        coin.shuffle(lines)
        yield b"".join(lines)
        bent = bytearray(profile)
        for _ in range(20):
            bent[coin.randrange(len(bent))] = coin.randrange(256)
        yield bytes(bent)
        yield coin.randbytes(coin.randrange(4000))
    yield from (b"", b"\n", b"\0" * 100, b"{}", b"[]", b"null", b"1e999", b"[" * 100_000)


def check_total(parse: Parse, profile: bytes, *, long_line_mib: int = 600) -> None:
    """Whatever becomes of `profile`: a typed answer, nothing raised, and memory that is bounded.

    Nothing at all is never `Measured`.
    """
    assert isinstance(parse(contents(profile)), Measured)
    for damaged in _damaged(profile, 50):
        result = parse(contents(damaged))
        assert isinstance(result, Measured | Inconclusive | Failed)
        if isinstance(result, Measured):
            assert result.scalars or result.stacks
        else:
            assert result.reason
    for nothing in ([], contents(b""), contents(b"", b"\n")):
        assert not isinstance(parse(nothing), Measured)
    tracemalloc.start()
    try:
        endless = cast(Any, _OneLine(profile[:200]))
        assert isinstance(parse([endless]), Measured | Inconclusive | Failed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < long_line_mib << 20
