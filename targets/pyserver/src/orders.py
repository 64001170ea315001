"""Orders, kept in SQLite."""

import random
import sqlite3
import threading
from typing import Any

CUSTOMERS = 120
PRODUCTS = 300
SUPPLIERS = 30
COUNTRIES = 20
KINDS = 25
ORDERS_PER_CUSTOMER = 28

SCHEMA = """
create table country (id integer primary key, duty integer);
create table supplier (id integer primary key, country integer, name text);
create table kind (id integer primary key, tax integer);
create table product (
    id integer primary key, supplier integer, kind integer, name text, cents integer
);
create table purchase (id integer primary key, customer integer, placed text);
create table item (purchase integer, product integer, units integer);
create index purchase_customer on purchase (customer);
create index item_purchase on item (purchase);
"""


def fill(connection: sqlite3.Connection) -> None:
    """The same orders on every start; about one in eight has no items (it was cancelled)."""
    uniform = random.Random(7).random
    connection.executescript(SCHEMA)
    countries = [(number, int(uniform() * 12)) for number in range(COUNTRIES)]
    suppliers = [
        (number, int(uniform() * COUNTRIES), f"supplier {number:02d}")
        for number in range(SUPPLIERS)
    ]
    kinds = [(number, (0, 7, 19)[number % 3]) for number in range(KINDS)]
    products = [
        (
            number,
            int(uniform() * SUPPLIERS),
            int(uniform() * KINDS),
            f"product {number:03d}",
            50 + int(uniform() * 5000),
        )
        for number in range(PRODUCTS)
    ]
    purchases = []
    items = []
    for number in range(ORDERS_PER_CUSTOMER * CUSTOMERS):
        placed = f"2024-{1 + int(uniform() * 12):02d}-{1 + int(uniform() * 28):02d}"
        purchases.append((number, number % CUSTOMERS, placed))
        if uniform() < 0.125:
            continue
        for _ in range(1 + int(uniform() * 7)):
            items.append((number, int(uniform() * PRODUCTS), 1 + int(uniform() * 4)))
    connection.executemany("insert into country values (?, ?)", countries)
    connection.executemany("insert into supplier values (?, ?, ?)", suppliers)
    connection.executemany("insert into kind values (?, ?)", kinds)
    connection.executemany("insert into product values (?, ?, ?, ?, ?)", products)
    connection.executemany("insert into purchase values (?, ?, ?)", purchases)
    connection.executemany("insert into item values (?, ?, ?)", items)
    connection.commit()


class Orders:
    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        fill(self._connection)

    def of_customer(self, customer: int) -> dict[str, Any]:
        """A customer's orders by number; the items of an order in the order they were added."""
        orders = []
        with self._lock:
            execute = self._connection.execute
            purchases = execute(
                "select id, placed from purchase where customer = ? order by id", (customer,)
            ).fetchall()
            for number, placed in purchases:
                items = []
                lines = execute(
                    "select product, units from item where purchase = ? order by rowid", (number,)
                ).fetchall()
                for product, units in lines:
                    supplier, kind, name, cents = execute(
                        "select supplier, kind, name, cents from product where id = ?", (product,)
                    ).fetchone()
                    country, by = execute(
                        "select country, name from supplier where id = ?", (supplier,)
                    ).fetchone()
                    (tax,) = execute("select tax from kind where id = ?", (kind,)).fetchone()
                    (duty,) = execute(
                        "select duty from country where id = ?", (country,)
                    ).fetchone()
                    cost = units * cents * (100 + tax + duty) // 100
                    items.append({"product": name, "by": by, "cents": cost})
                orders.append({"order": number, "placed": placed, "items": items})
        return {"customer": customer, "orders": orders}
