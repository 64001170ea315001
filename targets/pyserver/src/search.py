"""Search over the help pages: words that begin with what was typed, capitals or not."""

import random
import re
from typing import Any

DOCUMENTS = 280
WORDS_PER_DOCUMENT = 45
SYLLABLES = ["ka", "lo", "mi", "ne", "ru", "sa", "ti", "vo", "ze", "bar", "den", "fil", "gor"]


def load_documents() -> list[str]:
    """The same pages on every start."""
    rng = random.Random(42)
    words = ["".join(rng.choices(SYLLABLES, k=rng.choice((2, 3, 4)))) for _ in range(900)]
    words += [word.capitalize() for word in words[:300]]
    return [" ".join(rng.choices(words, k=WORDS_PER_DOCUMENT)) for _ in range(DOCUMENTS)]


class Search:
    def __init__(self) -> None:
        self._documents = load_documents()

    def find(self, typed: str, shown: int) -> dict[str, Any]:
        """The documents with most matching words; where the first one starts."""
        matches = []
        for number, document in enumerate(self._documents):
            hits = 0
            first = -1
            for match in re.finditer(r"\b" + re.escape(typed) + r"\w*", document, re.IGNORECASE):
                if hits == 0:
                    first = match.start()
                hits += 1
            if hits:
                matches.append({"document": number, "hits": hits, "first": first})
        matches.sort(key=lambda match: (-match["hits"], match["document"]))
        return {"typed": typed, "documents": len(matches), "best": matches[:shown]}
