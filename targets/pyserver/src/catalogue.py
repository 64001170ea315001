"""The catalogue: pages of products with related ones, and prices that change now and then."""

import random
import threading
from typing import Any

from messages import BadRequest

CATEGORIES = [f"category-{number:02d}" for number in range(16)]
PRODUCTS_PER_CATEGORY = 40
PAGES_KEPT = 48


class Catalogue:
    def __init__(self) -> None:
        uniform = random.Random(99).random
        self._products: dict[str, dict[str, Any]] = {}
        for category in CATEGORIES:
            for number in range(PRODUCTS_PER_CATEGORY):
                sku = f"{category}/{number:02d}"
                self._products[sku] = {
                    "sku": sku,
                    "category": category,
                    "cents": 100 + int(uniform() * 9900),
                    "tags": frozenset(int(uniform() * 60) for _ in range(8)),
                }
        self._pages: dict[str, tuple[int, dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._ticks = 0
        self._changes = 0

    def page(self, category: str, number: int, size: int, rid: str) -> dict[str, Any]:
        """One page of a category, by price; a page that is still valid is not drawn again."""
        with self._lock:
            self._ticks += 1
            key = self._page_key(category, number, size, rid)
            drawn_at, page = self._pages.get(key, (-1, {}))
            if drawn_at == self._revision():
                return page
            page = self._draw(category, number, size)
            self._pages[key] = (self._revision(), page)
            while len(self._pages) > PAGES_KEPT:
                del self._pages[next(iter(self._pages))]
            return page

    def set_price(self, sku: str, cents: int) -> dict[str, Any]:
        with self._lock:
            if sku not in self._products:
                raise BadRequest(f"there is no product {sku!r}")
            before = self._products[sku]["cents"]
            self._products[sku]["cents"] = cents
            self._ticks += 1
            self._changes += 1
            return {"sku": sku, "before": before, "cents": cents}

    def _page_key(self, category: str, number: int, size: int, rid: str) -> str:
        """What tells one drawn page from another."""
        return f"{category}/{number}/{size}/{rid}"

    def _revision(self) -> int:
        """Pages of an earlier revision are no longer valid."""
        return self._ticks

    def _draw(self, category: str, number: int, size: int) -> dict[str, Any]:
        if category not in CATEGORIES:
            raise BadRequest(f"there is no category {category!r}")
        products = [p for p in self._products.values() if p["category"] == category]
        products.sort(key=lambda p: (p["cents"], p["sku"]))
        shown = products[number * size : (number + 1) * size]
        return {
            "category": category,
            "page": number,
            "pages": -(-len(products) // size),
            "products": [
                {"sku": p["sku"], "cents": p["cents"], "related": self._related(p)} for p in shown
            ],
        }

    def _related(self, product: dict[str, Any]) -> list[str]:
        """The three other products that share most tags."""
        tags = product["tags"]
        ranked = [
            (-len(tags & other["tags"]), other["sku"])
            for other in self._products.values()
            if other is not product
        ]
        ranked.sort()
        return [sku for _, sku in ranked[:3]]
