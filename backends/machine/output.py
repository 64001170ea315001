"""Output of a command on its way to the sink, with a cap.

The head passes as it comes, the tail at the end; what is between is counted.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["CappedStream"]

_PIPE_BYTES = 1 << 20
_SMALL_PIPE_BYTES = 1 << 16


class CappedStream:
    """One of the two output pipes: its read end, and what of it the sink gets to see.

    `cap` is in bytes. Its first half is passed on at once; of what follows the last half is kept in
    memory and passed on when the command has ended, after a line that says how much is missing
    between them. A silent program costs nothing, and one that writes without end costs `cap / 2` of
    memory.
    """

    def __init__(self, write: Callable[[bytes], None], cap: int) -> None:
        self._to_sink = write
        self._head_room = cap - cap // 2
        self._tail_room = cap // 2
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._silenced = False
        self._grown = False
        self.dropped_bytes = 0
        self.recent = b""
        """The last 2000 bytes."""
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    def handed_over(self) -> None:
        """The command has its end of the pipe now; close ours."""
        os.close(self.write_end)
        self.write_end = -1

    def take(self) -> int:
        """Pass on what one read gives.

        Returns its size; 0 at the end; -1 when nothing is there yet.

        Raises whatever the sink raises; it is not asked again.
        """
        try:
            data = os.read(self.read_end, _PIPE_BYTES)
        except BlockingIOError:
            return -1
        if len(data) == _SMALL_PIPE_BYTES and not self._grown:
            # Much to come: fewer, larger reads keep the controller off the processor.
            self._grown = True
            with suppress(OSError):  # more than this user may have
                fcntl.fcntl(self.read_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        if data:
            self.recent = (self.recent + data[-2000:])[-2000:]
            self._feed(data)
        return len(data)

    def finish(self) -> None:
        """Pass on what is still in the pipe, then the tail.

        Does not wait for whoever may still hold the pipe.
        """
        for _ in range(64):
            if self.take() <= 0:
                break
        if self.dropped_bytes:
            self._write(b"\n[aiopt: %d bytes of output dropped here]\n" % self.dropped_bytes)
        while self._tail:
            self._write(self._tail.popleft())
        self._tail_bytes = 0

    def close(self) -> None:
        for descriptor in (self.read_end, self.write_end):
            if descriptor >= 0:
                os.close(descriptor)
        self.read_end = self.write_end = -1

    def _feed(self, data: bytes) -> None:
        if self._head_room:
            head, data = data[: self._head_room], data[self._head_room :]
            self._head_room -= len(head)
            self._write(head)
        if not data:
            return
        self._tail.append(data)
        self._tail_bytes += len(data)
        excess = self._tail_bytes - self._tail_room
        while excess > 0:
            oldest = self._tail.popleft()
            if len(oldest) > excess:
                self._tail.appendleft(oldest[excess:])
                oldest = oldest[:excess]
            self._tail_bytes -= len(oldest)
            self.dropped_bytes += len(oldest)
            excess -= len(oldest)

    def _write(self, data: bytes) -> None:
        if self._silenced:
            return
        self._silenced = True  # should the sink raise, this was its last chance
        self._to_sink(data)
        self._silenced = False
