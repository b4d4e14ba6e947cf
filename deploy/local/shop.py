"""The shop: a schema with the types of real shops, 100,000 rows of it in seconds, and a seeded load of concurrent sessions.

The seed gives the same rows each time; the load gives each session the same statements each time, while the sessions interleave freely.
Run it as `python -m deploy.local.shop seed|load URL`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event

import psycopg
from psycopg import errors, sql

TABLES = ("customers", "addresses", "products", "orders", "order_items")
STATUSES = ("cart", "placed", "paid", "shipped", "delivered", "returned")
ROLLBACK_SHARE = 0.06
CONFLICTS = (errors.DeadlockDetected, errors.LockNotAvailable, errors.UniqueViolation, errors.ForeignKeyViolation)


@dataclass(frozen=True, slots=True)
class Scale:
    """Rows that the seed writes into each table."""

    customers: int = 10_000
    addresses: int = 15_000
    products: int = 3_000
    orders: int = 25_000
    order_items: int = 60_000

    def times(self, factor: float) -> Scale:
        """The same proportions, larger or smaller; at least ten rows of each."""
        return Scale(*(max(10, int(getattr(self, table) * factor)) for table in TABLES))

    @property
    def rows(self) -> int:
        """All rows of all tables."""
        return sum(getattr(self, table) for table in TABLES)


@dataclass(slots=True)
class LoadReport:
    """What a load committed. `rows` are those the statements named; cascades of foreign keys come on top."""

    statements: int = 0
    rows: int = 0
    transactions: int = 0
    rolled_back: int = 0
    conflicts: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: LoadReport) -> None:
        """Take in what another session did; the time is the longest one."""
        for name in ("statements", "rows", "transactions", "rolled_back", "conflicts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)
        self.kinds += other.kinds


def seed(url: str, scale: Scale | None = None, *, publication: str | None = None) -> int:
    """Make the tables and their rows in an empty database; returns the number of rows. With a name, a publication of them too."""
    chosen = scale or Scale()
    script = Path(__file__).with_name("shop.sql").read_text()
    for table in TABLES:
        script = script.replace(f"{{{table}}}", str(getattr(chosen, table)))
    with psycopg.connect(url, autocommit=True) as connection:
        with connection.transaction():
            connection.execute(script.encode())
        if publication is not None:
            names = sql.SQL(", ").join(map(sql.Identifier, TABLES))
            connection.execute(sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(publication), names))
        connection.execute("ANALYZE")
    return chosen.rows


class _Session:
    """One connection with its own dice. A method named after a kind of change executes its statements in the open transaction."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]], number: int, dice: Random, scale: Scale) -> None:
        self.connection, self.number, self.dice, self.scale = connection, number, dice, scale
        self.born = (number + 1) * 10_000_000
        self.statements = self.rows = 0

    def run(self, statement: str, **values: object) -> int:
        done = self.connection.execute(statement.encode(), values)
        self.statements += 1
        self.rows += max(done.rowcount, 0)
        return done.rowcount

    def customer(self) -> str:
        return f"customer{self.dice.randint(1, self.scale.customers)}"

    def sku(self) -> str:
        return f"SKU-{self.dice.randint(1, self.scale.products):06d}"

    def order(self) -> int:
        return self.dice.randint(1, self.scale.orders)

    def cents(self) -> str:
        return f"{self.dice.randint(-99999, 9999999) / 100:.2f}"

    def update_order(self) -> None:
        values = {"id": self.order(), "status": self.dice.choice(STATUSES), "total": self.cents()}
        self.run("UPDATE orders SET status = %(status)s, total = %(total)s WHERE order_id = %(id)s", **values)

    def update_product(self) -> None:
        statement = "UPDATE products SET price = %(p)s, in_stock = in_stock - 1 WHERE sku = %(sku)s"
        self.run(statement, p=abs(float(self.cents())), sku=self.sku())

    def rewrite_product(self) -> None:
        text = None if self.dice.random() < 0.2 else self.dice.randbytes(self.dice.choice((10, 2500))).hex()
        attributes = json.dumps({"colour": self.dice.choice(("noir", "weiß")), "n": self.dice.random()})
        statement = "UPDATE products SET description = %(t)s, attributes = %(a)s::jsonb WHERE sku = %(sku)s"
        self.run(statement, t=text, a=attributes, sku=self.sku())

    def update_customer(self) -> None:
        statement = """UPDATE customers SET balance = %(b)s, tags = %(tags)s, profile = %(p)s::jsonb,
                       updated_at = clock_timestamp(), is_active = NOT is_active WHERE customer_id = md5(%(c)s)::uuid"""
        tags = self.dice.choice((None, [], ["neu", "ünï"], ["x"] * 5))
        self.run(statement, b=self.cents(), tags=tags, p=json.dumps({"visits": self.dice.randint(0, 9)}), c=self.customer())

    def new_customer(self) -> None:
        self.born += 1
        name = f"customer{self.born}"
        self.run(
            """INSERT INTO customers VALUES (md5(%(n)s)::uuid, %(n)s || '@example.org', 'Neu ' || %(n)s, 'bronze', 0, '{}', NULL,
               '2001:db8::1', '1999-12-31', true, %(a)s, NULL, clock_timestamp(), NULL)""",
            n=name,
            a=self.dice.randbytes(20),
        )
        statement = "INSERT INTO addresses VALUES (md5(%(n)s)::uuid, 1, 'Neue Straße', 'Köln', 'DE', NULL, 50.9, NULL, localtimestamp)"
        self.run(statement, n=name)

    def place_order(self) -> None:
        statement = """INSERT INTO orders (customer_id, status, total, currency, note, placed_at)
                       VALUES ((SELECT customer_id FROM customers WHERE customer_id = md5(%(c)s)::uuid),
                               'placed', %(t)s, 'EUR', NULL, clock_timestamp())"""
        self.run(statement, c=self.customer(), t=self.cents())
        for line in range(1, self.dice.randint(2, 5)):
            sku = self.sku()
            self.run(
                """INSERT INTO order_items VALUES (currval(pg_get_serial_sequence('orders', 'order_id')), %(line)s,
                   (SELECT sku FROM products WHERE sku = %(sku)s), %(q)s, 9.99, 0.05, NULL)""",
                line=line,
                sku=sku,
                q=self.dice.randint(1, 5),
            )
            self.run("UPDATE products SET in_stock = in_stock - 1 WHERE sku = %(sku)s", sku=sku)

    def delete_order(self) -> None:
        self.run("DELETE FROM orders WHERE order_id = %(id)s", id=self.order())

    def delete_item(self) -> None:
        self.run("DELETE FROM order_items WHERE order_id = %(id)s AND line_no = 1", id=self.order())

    def delete_customer(self) -> None:
        self.run("DELETE FROM customers WHERE customer_id = md5(%(c)s)::uuid", c=self.customer())

    def replace_address(self) -> None:
        """The same key goes and comes back in one transaction."""
        values = {"c": self.customer(), "street": f"Umzug {self.dice.randint(1, 999)}"}
        self.run("DELETE FROM addresses WHERE customer_id = md5(%(c)s)::uuid AND address_no = 1", **values)
        self.run(
            """INSERT INTO addresses SELECT customer_id, 1, %(street)s, '東京', 'JP', '100', NULL, 139.7, localtimestamp
               FROM customers WHERE customer_id = md5(%(c)s)::uuid""",
            **values,
        )

    def rename_sku(self) -> None:
        """A primary key changes, on a row whose long text is not sent; the items follow by cascade."""
        old, new = self.sku(), f"SKU-N{self.number}-{self.dice.randint(1, 999)}"
        back = self.dice.random() < 0.5
        self.run("UPDATE products SET sku = %(new)s WHERE sku = %(old)s", old=new if back else old, new=old if back else new)

    def change_customer_key(self) -> None:
        self.born += 1
        statement = "UPDATE customers SET customer_id = md5(%(new)s)::uuid WHERE customer_id = md5(%(old)s)::uuid"
        self.run(statement, old=self.customer(), new=f"customer{self.born}")

    def swap_items(self) -> None:
        """Two rows exchange their keys through a third: three key changes in one transaction."""
        order = self.order()
        for old, new in ((1, -1), (2, 1), (-1, 2)):
            self.run("UPDATE order_items SET line_no = %(new)s WHERE order_id = %(o)s AND line_no = %(old)s", new=new, old=old, o=order)

    def bulk_update(self) -> None:
        first = self.order()
        statement = "UPDATE orders SET note = 'bulk', deliver_on = deliver_on + 1 WHERE order_id BETWEEN %(a)s AND %(b)s"
        self.run(statement, a=first, b=first + 40)

    def half_undone(self) -> None:
        """Some statements of a transaction that commits are undone by a savepoint."""
        self.run("SAVEPOINT half")
        self.delete_order()
        self.rewrite_product()
        self.run("ROLLBACK TO SAVEPOINT half")
        self.update_order()

    def truncate_addresses(self) -> None:
        self.run("TRUNCATE addresses")


KINDS: dict[str, int] = {
    "update_order": 30,
    "update_product": 20,
    "update_customer": 15,
    "rewrite_product": 5,
    "new_customer": 6,
    "place_order": 10,
    "delete_order": 4,
    "delete_item": 3,
    "delete_customer": 1,
    "replace_address": 4,
    "rename_sku": 2,
    "change_customer_key": 1,
    "swap_items": 1,
    "bulk_update": 1,
    "half_undone": 2,
}


def load(
    url: str,
    operations: int,
    *,
    sessions: int = 4,
    seed: int = 1,
    rate: float | None = None,
    truncates: int = 0,
    scale: Scale | None = None,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> LoadReport:
    """Execute `operations` statements (a few more: transactions end whole) at `rate` per second, or as fast as it goes.

    `truncates` empties addresses that many times along the way. `progress` gets the number just committed, from several threads.
    `stop` ends the load early, after the open transactions. Raises psycopg.Error when the server goes away.
    """
    halt = stop or Event()
    quota = -(-operations // sessions)

    def one(number: int) -> LoadReport:
        pace = rate / sessions if rate else None
        dice = Random(f"{seed}/{number}")
        empties = {quota * (turn + 1) // (truncates + 1) for turn in range(truncates)} if number == 0 else set()
        with psycopg.connect(url, autocommit=True) as connection:
            session = _Session(connection, number, dice, scale or Scale())
            return _run_session(session, quota, pace, empties, halt, progress or (lambda _count: None))

    total = LoadReport()
    with ThreadPoolExecutor(sessions) as pool:
        futures = [pool.submit(one, number) for number in range(sessions)]
        try:
            for future in as_completed(futures):
                total.add(future.result())
        except BaseException:
            halt.set()
            raise
    return total


def _run_session(
    session: _Session, quota: int, pace: float | None, empties: set[int], halt: Event, progress: Callable[[int], None]
) -> LoadReport:
    report, began = LoadReport(), time.monotonic()
    names, weights = list(KINDS), list(KINDS.values())
    session.connection.execute("SET lock_timeout = '5s'")
    while report.statements < quota and not halt.is_set():
        kinds = session.dice.choices(names, weights, k=session.dice.choice((1, 1, 1, 2, 3, 8)))
        due = [mark for mark in empties if mark <= report.statements]
        if due:
            kinds.append("truncate_addresses")
        undo = not due and session.dice.random() < ROLLBACK_SHARE
        if _transaction(session, kinds, undo, report, progress):
            empties.difference_update(due)
        if pace:
            halt.wait(max(0.0, began + report.statements / pace - time.monotonic()))
    report.seconds = time.monotonic() - began
    return report


def _transaction(session: _Session, kinds: Sequence[str], undo: bool, report: LoadReport, progress: Callable[[int], None]) -> bool:
    """One transaction, and whether it was committed; a conflict with another session undoes it, and the load goes on with the next."""
    session.statements = session.rows = 0
    try:
        with session.connection.transaction(force_rollback=undo):
            for kind in kinds:
                getattr(session, kind)()
    except CONFLICTS:
        report.conflicts += 1
        report.rolled_back += 1
        return False
    if undo:
        report.rolled_back += 1
        return False
    report.transactions += 1
    report.statements += session.statements
    report.rows += session.rows
    report.kinds.update(kinds)
    progress(session.statements)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.shop", description=__doc__)
    parser.add_argument("verb", choices=["seed", "load"])
    parser.add_argument("url", nargs="?", default="", help="of an empty database (seed) or a seeded one (load); else as libpq finds it")
    parser.add_argument("--factor", type=float, default=1.0, help="times the usual 113,000 rows")
    parser.add_argument("--publication", help="seed: make a publication of the tables with this name")
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--rate", type=float, help="statements a second (default: as fast as it goes)")
    parser.add_argument("--truncates", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    scale = Scale().times(options.factor)
    began = time.monotonic()
    if options.verb == "seed":
        rows = seed(options.url, scale, publication=options.publication)
        print(json.dumps({"rows": rows, "seconds": round(time.monotonic() - began, 2)}))
        return 0
    report = load(
        options.url,
        options.operations,
        sessions=options.sessions,
        seed=options.seed,
        rate=options.rate,
        truncates=options.truncates,
        scale=scale,
    )
    names = ("statements", "rows", "transactions", "rolled_back", "conflicts", "kinds")
    print(json.dumps({name: getattr(report, name) for name in names} | {"seconds": round(report.seconds, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
