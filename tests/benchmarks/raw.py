"""The floor under a log: SQLite by itself, the same file, and rows that are finished already."""

import hashlib
import sqlite3
from collections import deque
from pathlib import Path
from typing import Any

from aiopt.logfile import INSERT, create

__all__ = ["Raw", "contents"]

Rows = list[tuple[Any, ...]]


class Raw:
    """Writes again what a log has been given, with the same commits and nothing else.

    The file has the same table, triggers and guards, the connection the same PRAGMAs.
    """

    def __init__(self, path: Path, like: Path) -> None:
        create(path)
        self._con = sqlite3.connect(path, isolation_level=None)
        self._con.execute("PRAGMA synchronous = FULL")
        self._con.execute("PRAGMA recursive_triggers = ON")
        self._source = sqlite3.connect(like, isolation_level=None)
        self._last = 0
        self._waiting: deque[list[Rows]] = deque()

    def fetch(self, sizes: list[int]) -> None:
        """Take over the rows that are new, as transactions of these sizes: work for one round."""
        query = "SELECT * FROM event WHERE seq > ? ORDER BY seq"
        new = self._source.execute(query, [self._last]).fetchall()
        if sum(sizes) != len(new):
            raise ValueError(f"{len(new)} new rows are no transactions of {sizes}")
        batch, start = [], 0
        for size in sizes:
            batch.append(new[start : start + size])
            start += size
        self._last += len(new)
        self._waiting.append(batch)

    def next(self) -> list[Rows]:
        """The transactions of the next round."""
        return self._waiting.popleft()

    def write(self, rows: Rows) -> None:
        """One transaction."""
        con = self._con
        con.execute("BEGIN IMMEDIATE")
        con.executemany(INSERT, rows)
        con.execute("COMMIT")

    def finish(self) -> None:
        """Write what is still waiting, and let go of both files."""
        while self._waiting:
            for rows in self.next():
                self.write(rows)
        self._con.close()
        self._source.close()


def contents(path: Path) -> tuple[int, str]:
    """How many events there are, and one hash over all that is stored of them."""
    found = hashlib.sha256()
    count = 0
    con = sqlite3.connect(path)
    for row in con.execute("SELECT * FROM event ORDER BY seq"):
        found.update(repr(row).encode())
        count += 1
    con.close()
    return count, found.hexdigest()
