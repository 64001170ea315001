"""What the service promises, written to be read: slow, obvious, and shares no code with it.

Only the help pages are made as the service makes them, since they are data.
"""

import math
import random
from collections.abc import Iterable
from typing import Any


class ReferenceSource:
    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: list[list[tuple[str, int, int]]] = [[]]

    def ingest(self, batch: Iterable[tuple[str, int, int]]) -> dict[str, Any]:
        readings = list(self.versions[-1])
        accepted = duplicates = 0
        for reading in batch:
            if any(reading[0] == known[0] for known in readings):
                duplicates += 1
            else:
                readings.append(reading)
                accepted += 1
        self.versions.append(readings)
        return {
            "source": self.name,
            "accepted": accepted,
            "duplicates": duplicates,
            "total": len(readings),
            "version": len(self.versions) - 1,
        }

    def statistics(self) -> dict[str, Any]:
        values = sorted(value for _, _, value in self.versions[-1])
        count = len(values)
        if not count:
            return {"source": self.name, "count": 0}

        def percentile(percent: int) -> int:
            return values[max(math.ceil(percent * count / 100), 1) - 1]

        answer: dict[str, Any] = {
            "source": self.name,
            "count": count,
            "sum": sum(values),
            "variance": (count * sum(v * v for v in values) - sum(values) ** 2) / count**2,
            "minimum": values[0],
            "maximum": values[-1],
        }
        for percent in (5, 25, 50, 75, 90, 95, 99):
            answer[f"p{percent}"] = percentile(percent)
        return answer

    def history(self, version: int, shown: int) -> dict[str, Any]:
        readings = self.versions[version]
        buckets = []
        for bucket in {bucket for _, bucket, _ in readings}:
            values = [v for _, b, v in readings if b == bucket]
            buckets.append({"bucket": bucket, "count": len(values), "sum": sum(values)})
        buckets.sort(key=lambda b: (-b["sum"], b["bucket"]))
        return {
            "source": self.name,
            "version": version,
            "count": len(readings),
            "sum": sum(value for _, _, value in readings),
            "largest": buckets[:shown],
        }


def documents() -> list[str]:
    rng = random.Random(42)
    syllables = ["ka", "lo", "mi", "ne", "ru", "sa", "ti", "vo", "ze", "bar", "den", "fil", "gor"]
    words = ["".join(rng.choices(syllables, k=rng.choice((2, 3, 4)))) for _ in range(900)]
    words += [word.capitalize() for word in words[:300]]
    return [" ".join(rng.choices(words, k=45)) for _ in range(280)]


def search(documents: list[str], typed: str, shown: int) -> dict[str, Any]:
    """A word begins where a letter follows none; documents hold nothing but letters and blanks."""
    matches = []
    for number, document in enumerate(documents):
        starts = []
        position = 0
        for word in document.split(" "):
            if word.lower().startswith(typed.lower()):
                starts.append(position)
            position += len(word) + 1
        if starts:
            matches.append({"document": number, "hits": len(starts), "first": starts[0]})
    matches.sort(key=lambda match: (-match["hits"], match["document"]))
    return {"typed": typed, "documents": len(matches), "best": matches[:shown]}
