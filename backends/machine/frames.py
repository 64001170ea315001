"""Messages between a controller and a keeper: a JSON object and bytes that belong to it.

    4 bytes   length of the JSON text, big endian
    4 bytes   length of the bytes
    JSON      UTF-8, one object
    bytes

It is not pickle or marshal, because the two sides may be different versions of Python, and because
the controller does not trust the other machine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["CHUNK", "BadFrame", "Frames", "frame"]

CHUNK = 1 << 18
"""Long contents go in frames of so many bytes, so that others get through between them."""

_HEAD = struct.Struct(">II")
_MOST_JSON = 1 << 26
_MOST_BYTES = 1 << 26


class BadFrame(Exception):
    """What came is not a frame: something else than the other side has written to the stream."""


def frame(message: dict[str, Any], body: bytes = b"") -> bytes:
    """A message as it is sent."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return _HEAD.pack(len(text), len(body)) + text + body


class Frames:
    """Takes bytes as they come, gives whole messages."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The messages that are complete with `data`.

        Raises:
            BadFrame: there is none in it.
        """
        self._waiting += data
        while len(self._waiting) >= _HEAD.size:
            json_bytes, body_bytes = _HEAD.unpack_from(self._waiting)
            if json_bytes > _MOST_JSON or body_bytes > _MOST_BYTES:
                raise BadFrame(f"not a message: {bytes(self._waiting[:200])!r}")
            begin, end = _HEAD.size + json_bytes, _HEAD.size + json_bytes + body_bytes
            if len(self._waiting) < end:
                return
            text, body = bytes(self._waiting[_HEAD.size : begin]), bytes(self._waiting[begin:end])
            del self._waiting[:end]
            try:
                message = json.loads(text)
            except ValueError as error:
                raise BadFrame(f"not a message: {text[:200]!r}") from error
            if not isinstance(message, dict):
                raise BadFrame(f"not a message: {text[:200]!r}")
            yield message, body
