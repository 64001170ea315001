"""Answers that never change while the service runs, kept for the next caller."""

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

CAPACITY = 1024


class ReplyCache:
    """At most CAPACITY payloads; the oldest goes first."""

    def __init__(self) -> None:
        self._payloads: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._payloads)

    def key(self, path: str, query: dict[str, str]) -> str:
        """What tells one answer from another."""
        return path + "?" + urlencode(sorted(query.items()))

    def get_or_make(self, path: str, query: dict[str, str], make: Callable[[], Any]) -> Any:
        key = self.key(path, query)
        with self._lock:
            if key in self._payloads:
                return self._payloads[key]
        payload = make()
        with self._lock:
            self._payloads[key] = payload
            while len(self._payloads) > CAPACITY:
                del self._payloads[next(iter(self._payloads))]
        return payload
