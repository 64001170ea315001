"""Last year's sales, loaded once and never changed."""

import datetime
import random
import threading
from typing import Any

REGIONS = [f"region-{number:02d}" for number in range(40)]
SALES_PER_REGION = 650
FIRST_DAY = datetime.date(2023, 1, 1)


class Sale:
    region: str
    day: str
    month: int
    sku: str
    units: int
    cents: int

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def load_sales() -> list[Sale]:
    """The same sales on every start."""
    uniform = random.Random(20230101).random
    days = [(FIRST_DAY + datetime.timedelta(days=number)) for number in range(365)]
    calendar = [(day.isoformat(), day.month) for day in days]
    skus = [f"sku-{number:03d}" for number in range(120)]
    sales = []
    for _ in range(SALES_PER_REGION):
        for region in REGIONS:
            day, month = calendar[int(uniform() * 365)]
            sales.append(
                Sale(
                    region=region,
                    day=day,
                    month=month,
                    sku=skus[int(uniform() * 120)],
                    units=1 + int(uniform() * 9),
                    cents=100 + int(uniform() * 9900),
                )
            )
    return sales


class Archive:
    def __init__(self) -> None:
        self._sales = load_sales()
        self._lock = threading.Lock()

    def in_region(self, region: str) -> list[Any]:
        """The sales of one region, in the order in which they were loaded."""
        return [sale for sale in self._sales if sale.region == region]

    def report(self, region: str, quarter: int) -> dict[str, Any]:
        """The quarter as text, month after month, each month by product and day."""
        sales = self.in_region(region)
        first = 3 * quarter - 2
        text = ""
        for month in range(first, first + 3):
            text += f"== {region} month {month}\n"
            cents = 0
            for sale in sorted(sales, key=lambda s: (s.month, s.sku, s.day, s.units, s.cents)):
                if sale.month == month:
                    text += f"{sale.sku} {sale.day} {sale.units:3d} x {sale.cents:6d}\n"
                    cents += sale.units * sale.cents
            text += f"-- {cents}\n"
        return {"region": region, "quarter": quarter, "text": text}

    def timeline(self, region: str) -> dict[str, Any]:
        """Revenue by ISO week."""
        with self._lock:
            weeks: dict[str, int] = {}
            for sale in self.in_region(region):
                day = datetime.datetime.strptime(sale.day, "%Y-%m-%d")
                year, week, _ = day.isocalendar()
                label = f"{year}-W{week:02d}"
                weeks[label] = weeks.get(label, 0) + sale.units * sale.cents
            return {"region": region, "weeks": weeks}
