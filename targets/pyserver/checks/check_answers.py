"""Every endpoint gives the answers that were written down, and those of the reference."""

# ruff: noqa: PT009 - the standard library alone runs these, and its plain assert shows no values

import json
import random
import unittest
from pathlib import Path
from typing import Any

import reference
from service import Service

GOLDEN = Path(__file__).with_name("golden.json")

# Asked in this order of a fresh server. To write golden.json anew, after a deliberate change of
# what the service promises: python3 check_answers.py --write
SCRIPT: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/settings", {"key": "currency"}),
    ("GET", "/settings", {"key": "shipping"}),
    ("GET", "/settings", {"key": "nothing"}),
    ("GET", "/orders", {"customer": 0}),
    ("GET", "/orders", {"customer": 17}),
    ("GET", "/orders", {"customer": 100000}),
    ("GET", "/orders", {"customer": "x"}),
    ("GET", "/orders", {}),
    ("GET", "/report", {"region": "region-00", "quarter": 1}),
    ("GET", "/report", {"region": "region-07", "quarter": 4}),
    ("GET", "/report", {"region": "region-00", "quarter": 5}),
    ("GET", "/report", {"region": "nowhere", "quarter": 1}),
    ("GET", "/timeline", {"region": "region-03"}),
    ("GET", "/timeline", {"region": "region-39"}),
    ("GET", "/timeline", {"region": "nowhere"}),
    ("GET", "/search", {"q": "ka"}),
    ("GET", "/search", {"q": "KALO"}),
    ("GET", "/search", {"q": "barvo"}),
    ("GET", "/search", {"q": "nothing"}),
    ("GET", "/search", {"q": "a.*b"}),
    ("GET", "/catalogue", {"category": "category-00", "page": 0}),
    ("POST", "/price", {"sku": "category-00/03", "cents": 1}),
    ("GET", "/catalogue", {"category": "category-00", "page": 0}),
    ("GET", "/catalogue", {"category": "category-15", "page": 3}),
    ("GET", "/catalogue", {"category": "category-15", "page": 99}),
    ("GET", "/catalogue", {"category": "nowhere", "page": 0}),
    ("POST", "/price", {"sku": "nothing", "cents": 1}),
    ("GET", "/stats", {"source": "a"}),
    ("POST", "/ingest", {"source": "a", "readings": []}),
    ("GET", "/stats", {"source": "a"}),
    ("POST", "/ingest", {"source": "a", "readings": [["x", 1, 5], ["y", 2, 7], ["x", 9, 9]]}),
    ("POST", "/ingest", {"source": "a", "readings": [["y", 3, 8], ["z", 2, -4]]}),
    ("POST", "/ingest", {"source": "a", "readings": [["w", 1, 1]] * 201}),
    ("GET", "/stats", {"source": "a"}),
    ("GET", "/history", {"source": "a", "version": 0}),
    ("GET", "/history", {"source": "a", "version": 2}),
    ("GET", "/history", {"source": "a", "version": 3}),
    ("GET", "/history", {"source": "a", "version": 4}),
    ("GET", "/history", {"source": "a", "version": -1}),
    ("GET", "/nothing", {}),
]


def ask(service: Service) -> list[dict[str, Any]]:
    client = service.client()
    answers = []
    for method, path, content in SCRIPT:
        body, query = (content, {}) if method == "POST" else (None, content)
        status, data = client.exchange(method, path, body, query)
        answers.append({"asked": f"{method} {path} {content}", "status": status, "data": data})
    return answers


class Answers(unittest.TestCase):
    def test_every_endpoint_answers_as_written_down(self) -> None:
        with Service() as service:
            for expected, found in zip(json.loads(GOLDEN.read_text()), ask(service), strict=True):
                self.assertEqual(expected, found)

    def test_readings_agree_with_the_reference(self) -> None:
        rng = random.Random(2024)
        with Service() as service:
            client = service.client()
            shown = client.get("/settings", key="buckets_shown")["value"]
            for number in range(3):
                source = reference.ReferenceSource(f"source {number}")
                identifiers = rng.choice((5, 60, 1000))
                for _ in range(25):
                    batch = [
                        (
                            f"id-{rng.randrange(identifiers)}",
                            rng.randrange(9),
                            rng.randrange(-50, 1000),
                        )
                        for _ in range(rng.randrange(0, 12))
                    ]
                    answer = client.post("/ingest", {"source": source.name, "readings": batch})
                    self.assertEqual(answer, source.ingest(batch))
                    if rng.random() < 0.5:
                        answer = client.get("/stats", source=source.name)
                        self.assertEqual(answer, source.statistics())
                    version = rng.randrange(len(source.versions))
                    answer = client.get("/history", source=source.name, version=version)
                    self.assertEqual(answer, source.history(version, shown))

    def test_search_agrees_with_the_reference(self) -> None:
        documents = reference.documents()
        rng = random.Random(5)
        with Service() as service:
            client = service.client()
            for _ in range(25):
                word = rng.choice(rng.choice(documents).split(" "))
                typed = word[: rng.randint(1, len(word))]
                typed = rng.choice((typed, typed.upper(), typed.lower()))
                answer = client.get("/search", q=typed)
                self.assertEqual(answer, reference.search(documents, typed, 10))


if __name__ == "__main__":
    import sys

    if sys.argv[1:] == ["--write"]:
        with Service() as writing:
            lines = ",\n".join(json.dumps(answer) for answer in ask(writing))
        GOLDEN.write_text(f"[\n{lines}\n]\n")
    else:
        unittest.main()
