"""Readings by source: ingest, statistics, and what a source looked like at any earlier version."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

from audit import AuditLog
from messages import BadRequest

Reading = tuple[str, int, int]  # identifier, bucket, value


def percentile(values: Sequence[int], percent: int) -> int:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    rank = -(-percent * len(ordered) // 100)
    return ordered[max(rank, 1) - 1]


class Source:
    """All readings of one source. An identifier counts once: the first reading wins."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.totals: dict[int, dict[str, int]] = {}
        self.start_history()
        self.start_identifiers()

    # Identifiers.

    def start_identifiers(self) -> None:
        self.identifiers: list[str] = []

    def is_new(self, identifier: str) -> bool:
        if identifier in self.identifiers:
            return False
        self.identifiers.append(identifier)
        return True

    # Readings.

    def add(self, batch: Sequence[Reading]) -> list[Reading]:
        """Take in a batch and return the readings that were new."""
        accepted = []
        for reading in batch:
            identifier, bucket, value = reading
            if not self.is_new(identifier):
                continue
            accepted.append(reading)
            total = self.totals.setdefault(bucket, {"count": 0, "sum": 0})
            total["count"] += 1
            total["sum"] += value
        self.readings.extend(accepted)
        return accepted

    # Statistics.

    def statistics(self) -> dict[str, Any]:
        values = [value for _, _, value in self.readings]
        squares = [value * value for value in values]
        count = len(values)
        if count == 0:
            return {"count": 0}
        variance = (count * sum(squares) - sum(values) ** 2) / (count * count)
        return {
            "count": count,
            "sum": sum(values),
            "variance": variance,
            "minimum": percentile(values, 0),
            "p5": percentile(values, 5),
            "p25": percentile(values, 25),
            "p50": percentile(values, 50),
            "p75": percentile(values, 75),
            "p90": percentile(values, 90),
            "p95": percentile(values, 95),
            "p99": percentile(values, 99),
            "maximum": percentile(values, 100),
        }

    # History: version n is the state after the n-th batch, version 0 the empty source.

    def start_history(self) -> None:
        self.snapshots: list[dict[int, dict[str, int]]] = [{}]

    def remember(self) -> int:
        """Make the present state a version, and return its number."""
        self.snapshots.append(copy.deepcopy(self.totals))
        return len(self.snapshots) - 1

    def totals_at(self, version: int) -> dict[int, dict[str, int]]:
        if not 0 <= version < len(self.snapshots):
            raise BadRequest(f"there is no version {version}")
        return self.snapshots[version]


class Ledger:
    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._sources: dict[str, Source] = {}
        self._lock = threading.Lock()

    def ingest(self, name: str, batch: Sequence[Reading]) -> dict[str, Any]:
        with self._lock:
            source = self._sources.setdefault(name, Source())
            accepted = source.add(batch)
            version = source.remember()
            self._audit.readings(name, accepted)
            return {
                "source": name,
                "accepted": len(accepted),
                "duplicates": len(batch) - len(accepted),
                "total": len(source.readings),
                "version": version,
            }

    def statistics(self, name: str) -> dict[str, Any]:
        with self._lock:
            source = self._find(name)
            return {"source": name, **source.statistics()}

    def history(self, name: str, version: int, shown: int) -> dict[str, Any]:
        """The state of a source at a version: its sums, and the buckets with the largest ones."""
        with self._lock:
            totals = self._find(name).totals_at(version)
            largest = sorted(totals.items(), key=lambda item: (-item[1]["sum"], item[0]))
            return {
                "source": name,
                "version": version,
                "count": sum(total["count"] for total in totals.values()),
                "sum": sum(total["sum"] for total in totals.values()),
                "largest": [{"bucket": bucket, **total} for bucket, total in largest[:shown]],
            }

    def _find(self, name: str) -> Source:
        try:
            return self._sources[name]
        except KeyError:
            raise BadRequest(f"there is no source {name!r}") from None
