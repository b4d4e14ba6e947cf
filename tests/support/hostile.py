"""A hostile load of a PostgreSQL source: concurrent sessions do to awkward tables whatever transactions can do.

Each session throws its own seeded dice; how the sessions interleave is left to the server. Keys are few, so that sessions meet: conflicts
and deadlocks undo a transaction and the session goes on. A server that goes away is waited for.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import psycopg
from psycopg import errors

from tests.support.wires import WIRE

ODD = '"Größe-Order"'
TABLES = ("public.doc", "public.pair", "public.whole", "public.Größe-Order", "public.part", "public.soft")
CONFIG = """
  public.doc: {}
  public.pair: {}
  public.whole: {}
  'public.Größe-Order': {}
  public.part: {}
  public.soft: {mode: soft_delete}
"""
"""The tables as a configuration names them."""
CONFLICTS = (errors.DeadlockDetected, errors.LockNotAvailable, errors.UniqueViolation, errors.SerializationFailure)
GONE_SECONDS = 60.0
ROLLBACK_SHARE = 0.07

_WORDS = (
    "plain",
    "it's",
    'say "x"',
    "back\\slash",
    "p|q",
    '","',
    "Ünïcödé",
    "日本",
    "😀",
    "tab\there",
    " lead",
    "trail ",
    "",
    "NULL",
    "{}",
    "null",
)


def word(number: int) -> str:
    """The text key of a number: distinct for distinct numbers, and awkward."""
    return f"{_WORDS[number % len(_WORDS)]}{number}" if number != 12 else ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Rows before the load (``docs`` of the table with large values), and the statements to commit."""

    rows: int = 2_000
    docs: int = 300
    operations: int = 20_000
    sessions: int = 4
    truncates: int = 3

    def times(self, factor: float) -> Scale:
        return Scale(int(self.rows * factor), int(self.docs * factor), int(self.operations * factor), self.sessions, self.truncates)


@dataclass(slots=True)
class Report:
    """What a load committed; ``unknown`` are transactions whose outcome was lost with the server."""

    statements: int = 0
    rows: int = 0
    transactions: int = 0
    rolled_back: int = 0
    conflicts: int = 0
    unknown: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        for name in ("statements", "rows", "transactions", "rolled_back", "conflicts", "unknown"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)
        self.kinds += other.kinds


def seed(url: str, scale: Scale) -> None:
    """Make the tables and their first rows in an empty database."""
    cases = " ".join(f"WHEN {place} THEN {_literal(text)}" for place, text in enumerate(_WORDS))
    body = f"SELECT CASE WHEN i = 12 THEN '' ELSE CASE i % {len(_WORDS)} {cases} END || i END"
    function = f"CREATE FUNCTION word(i int) RETURNS text IMMUTABLE LANGUAGE sql AS $word$ {body} $word$;"
    script = Path(__file__).with_suffix(".sql").read_text()
    for name in ("rows", "docs"):
        script = script.replace(f"{{{name}}}", str(getattr(scale, name)))
    with psycopg.connect(url) as connection:
        connection.execute((function + script).encode())
    if WIRE == "avro":
        without_defaults(url)


def without_defaults(url: str) -> None:
    """For Apicurio's converter, which writes a default where the value is NULL: what may be either is refused."""
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE doc ALTER big DROP DEFAULT, ALTER m DROP DEFAULT")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Session:
    """One connection and its dice. Each public method is a kind of change: it runs its statements in the open transaction."""

    def __init__(self, number: int, dice: Random, scale: Scale, elsewhere: Callable[[], int]) -> None:
        self.number, self.dice, self.scale, self.elsewhere = number, dice, scale, elsewhere
        self.connection: psycopg.Connection[Any] | None = None
        self.born = (number + 1) * 10_000_000
        self.statements = self.rows = 0

    def run(self, statement: str, **values: object) -> int:
        assert self.connection is not None
        done = self.connection.execute(statement.encode(), values)
        self.statements += 1
        self.rows += max(done.rowcount, 0)
        return done.rowcount

    # ---- values ----------------------------------------------------------------

    def new(self) -> int:
        self.born += 1
        return self.born

    def doc(self) -> str:
        return word(self.dice.randint(1, self.scale.docs + 30))

    def pair(self) -> dict[str, object]:
        return {"a": self.dice.randint(0, 44), "b": word(self.dice.randint(0, self.scale.rows // 40))}

    def soft(self) -> dict[str, object]:
        # 1.5 and 1.50 are one key of a numeric column.
        k = f"{self.dice.randint(0, 49) / 10:.{self.dice.choice((1, 2))}f}"
        return {"k": k, "t": self.dice.randint(0, self.scale.rows // 50)}

    def large(self, low: int = 8_200, high: int = 20_000) -> str:
        return self.dice.choice(("é", "x", '"\\')) + self.dice.randbytes(self.dice.randint(low, high) // 2).hex()

    def document(self) -> dict[str, object]:
        """New values of all columns of doc."""
        dice, some = self.dice, self.dice.random()
        return {
            "n": dice.randint(-(2**31), 2**31 - 1),
            "big": None if some < 0.1 else self.large() if some < 0.7 else "",
            "bin": dice.randbytes(dice.choice((0, 10, 9000))),
            "js": json.dumps({"k": dice.choice((None, 1.50, "ü", [1, {"x": []}])), "big": self.large() if some < 0.5 else 0}),
            "words": dice.choice((None, [], ["a", None, 'q"', "NULL", "ünï"], [dice.randbytes(20).hex()] * 260)),
            "nums": dice.choice((None, [], [1, None, -(2**31)], [dice.randint(0, 2**31 - 1)] * 2500)),
            "amount": dice.choice((None, "NaN", "1.10", "-0.000000000000000000000000000001", "9" * 60, "Infinity", "-Infinity")),
            "price": f"{dice.randint(-(10**11), 10**11) / 100:.2f}",
            "m": dice.choice((None, "sad", "ok", 'happy, "quoted"')),
            "at": dice.choice(
                (None, "infinity", "-infinity", "0001-12-31 23:59:59.5+00 BC", "2024-02-29 23:59:59.999999+00", "9999-12-31 00:00+14")
            ),
            "ts": dice.choice((None, "infinity", "-infinity", "4713-01-01 00:00:00 BC", "2024-03-10 02:30:00.000001")),
            "d": dice.choice((None, "infinity", "-infinity", "1970-01-01", "9999-12-31", "1969-12-31")),
            "u": dice.randbytes(16).hex(),
            "flag": dice.choice((None, True, False)),
            "span": dice.choice((None, "1 year -2 mons 3 days -00:00:00.000001", "0", "-178000000 years", "25:00:00")),
        }

    # ---- doc: unsent values ------------------------------------------------------

    def doc_touch(self) -> None:
        self.run("UPDATE doc SET n = n # %(x)s, flag = NOT flag WHERE id = %(id)s", id=self.doc(), x=self.dice.randint(0, 9999))

    def doc_one_large(self) -> None:
        column, value = self.dice.choice((("big", self.large()), ("bin", self.dice.randbytes(9000)), ("words", [self.large(40, 80)] * 120)))
        self.run(f"UPDATE doc SET {column} = %(v)s WHERE id = %(id)s", v=value, id=self.doc())

    def doc_rewrite(self) -> None:
        values = self.document()
        self.run(f"UPDATE doc SET {', '.join(f'{c} = %({c})s' for c in values)} WHERE id = %(id)s", id=self.doc(), **values)

    def doc_upsert(self) -> None:
        values = {"id": self.doc(), **self.document()}
        names, marks = ", ".join(values), ", ".join(f"%({c})s" for c in values)
        then = self.dice.choice(("NOTHING", "UPDATE SET n = excluded.n", "UPDATE SET big = excluded.big, js = excluded.js, m = excluded.m"))
        self.run(f"INSERT INTO doc ({names}) VALUES ({marks}) ON CONFLICT {'' if then == 'NOTHING' else '(id) '}DO {then}", **values)

    def doc_move(self) -> None:
        """The key of a row with unsent values changes; before and after, sometimes, an update in the same transaction."""
        old, new = self.doc(), self.dice.choice((self.doc(), word(self.new())))
        if self.dice.random() < 0.3:
            self.run("UPDATE doc SET n = n + 1, big = %(v)s WHERE id = %(id)s", id=old, v=self.large())
        self.run("DELETE FROM doc WHERE id = %(new)s AND id <> %(old)s", new=new, old=old)
        self.run("UPDATE doc SET id = %(new)s WHERE id = %(old)s", new=new, old=old)
        if self.dice.random() < 0.3:
            self.run("UPDATE doc SET flag = true WHERE id = %(id)s", id=new)

    def doc_chain(self) -> None:
        """One row goes through several keys, and often back to its first."""
        stops = [self.doc(), *(word(self.new()) for _ in range(self.dice.randint(1, 3)))]
        for old, new in pairwise([*stops, stops[0]] if self.dice.random() < 0.6 else stops):
            self.run("UPDATE doc SET id = %(new)s, n = n / 2 WHERE id = %(old)s", old=old, new=new)

    def doc_replace(self) -> None:
        """The same key goes and comes back in one transaction."""
        values = {"id": self.doc(), **self.document()}
        self.run("DELETE FROM doc WHERE id = %(id)s", id=values["id"])
        self.run(f"INSERT INTO doc ({', '.join(values)}) VALUES ({', '.join(f'%({c})s' for c in values)})", **values)

    def doc_delete(self) -> None:
        self.run("DELETE FROM doc WHERE id = %(id)s", id=self.doc())

    # ---- pair: keys that change ----------------------------------------------------

    def pair_update(self) -> None:
        values = {
            **self.pair(),
            "v": self.dice.randint(0, 10**6),
            "f": self.dice.choice((0.1, -0.0, 1e300, float("nan"), float("inf"), 5e-324)),
        }
        self.run("UPDATE pair SET v = %(v)s, f8 = %(f)s, f4 = 0.1, seen = clock_timestamp() WHERE (a, b) = (%(a)s, %(b)s)", **values)

    def pair_many(self) -> None:
        self.run("UPDATE pair SET v = v + 1, price = -price WHERE b = %(b)s", b=self.pair()["b"])

    def pair_mirror(self) -> None:
        """Many keys change in one statement."""
        self.run("UPDATE pair SET a = -1 - a WHERE b = %(b)s", b=self.pair()["b"])

    def pair_swap(self) -> None:
        """Two rows exchange their keys through a third."""
        one, two, third = self.pair(), self.pair(), {"a": self.new(), "b": "third"}
        for old, new in ((one, third), (two, one), (third, two)):
            self.run(
                "UPDATE pair SET a = %(na)s, b = %(nb)s WHERE (a, b) = (%(a)s, %(b)s)", a=old["a"], b=old["b"], na=new["a"], nb=new["b"]
            )

    def pair_upsert(self) -> None:
        self.run(
            "INSERT INTO pair (a, b, v) VALUES (%(a)s, %(b)s, 1) ON CONFLICT (b, a) DO UPDATE SET v = pair.v + 1, seen = NULL",
            **self.pair(),
        )

    def pair_insert(self) -> None:
        self.run(
            "INSERT INTO pair (a, b, v, price) SELECT i, %(b)s, i, i FROM generate_series(100, 100 + %(n)s) i ON CONFLICT DO NOTHING",
            b=self.pair()["b"],
            n=self.dice.randint(1, 40),
        )

    def pair_delete(self) -> None:
        self.run("DELETE FROM pair WHERE b = %(b)s AND a %% 3 = %(r)s", b=self.pair()["b"], r=self.dice.randint(0, 2))

    def pair_fleeting(self) -> None:
        """A row that is born, changed, moved and gone within one transaction."""
        key = {"a": self.new(), "b": "fleeting"}
        self.run("INSERT INTO pair (a, b) VALUES (%(a)s, %(b)s)", **key)
        self.run("UPDATE pair SET v = 1 WHERE (a, b) = (%(a)s, %(b)s)", **key)
        self.run("UPDATE pair SET a = -a WHERE (a, b) = (%(a)s, %(b)s)", **key)
        if self.dice.random() < 0.8:
            self.run("DELETE FROM pair WHERE (a, b) = (-%(a)s, %(b)s)", **key)

    # ---- the others ------------------------------------------------------------------

    def whole_update(self) -> None:
        values = {
            "id": self.dice.randint(1, self.scale.rows),
            "v": self.dice.randint(0, 9),
            "m": self.dice.choice((None, [], ["sad", "ok"])),
        }
        self.run("UPDATE whole SET v = %(v)s, moods = %(m)s::mood[], flags = ARRAY[v > 3, NULL] WHERE id = %(id)s", **values)

    def whole_large(self) -> None:
        values = {"id": self.dice.randint(1, self.scale.rows), "big": self.large(), "n": self.dice.choice((None, ["1.10", None], []))}
        self.run("UPDATE whole SET big = %(big)s, amounts = %(n)s::numeric[], addr = '{10.0.0.1/8,NULL}' WHERE id = %(id)s", **values)

    def whole_move(self) -> None:
        self.run("UPDATE whole SET id = %(new)s WHERE id = %(id)s", id=self.dice.randint(1, self.scale.rows), new=self.new())

    def whole_copy(self) -> None:
        """Rows of one COPY share a log position."""
        assert self.connection is not None
        with self.connection.cursor().copy("COPY whole (id, v, big) FROM STDIN") as copy:
            for _ in range(self.dice.randint(2, 30)):
                copy.write_row((self.new(), 1, None))
        self.statements += 1

    def whole_delete(self) -> None:
        self.run("DELETE FROM whole WHERE id = %(id)s", id=self.dice.randint(1, self.scale.rows))

    def odd_update(self) -> None:
        values = {
            "k": self.dice.randint(0, 29),
            "w": word(self.dice.randint(0, self.scale.rows // 30)),
            "q": f"{self.dice.random() * 1e9:.10f}",
        }
        self.run(
            f'UPDATE {ODD} SET "A" = %(k)s, "sömé ""q""" = %(q)s, "_time" = localtime WHERE ("Select", "пример") = (%(k)s, %(w)s)', **values
        )

    def odd_move(self) -> None:
        values = {"w": word(self.dice.randint(0, self.scale.rows // 30)), "k": self.dice.randint(0, 29), "new": self.new()}
        self.run(f'UPDATE {ODD} SET "Select" = %(new)s WHERE ("Select", "пример") = (%(k)s, %(w)s)', **values)

    def odd_upsert(self) -> None:
        values = {"k": self.dice.randint(0, 35), "w": word(self.dice.randint(0, self.scale.rows // 30))}
        self.run(
            f'INSERT INTO {ODD} AS o ("Select", "пример", "from where") VALUES (%(k)s, %(w)s, 1)'
            ' ON CONFLICT ("пример", "Select") DO UPDATE SET "from where" = o."from where" + 1',
            **values,
        )

    def odd_delete(self) -> None:
        self.run(f'DELETE FROM {ODD} WHERE "Select" = %(k)s AND "A" %% 7 = 0', k=self.dice.randint(0, 29))

    def part_move(self) -> None:
        values = {"id": self.dice.randint(1, self.scale.rows), "r": self.dice.choice(("eu", "us", "jp", "br"))}
        self.run("UPDATE part SET region = %(r)s, v = v + 1 WHERE id = %(id)s", **values)

    def part_update(self) -> None:
        first = self.dice.randint(1, self.scale.rows)
        self.run(
            "UPDATE part SET note = note || '.', v = NULL WHERE id BETWEEN %(a)s AND %(b)s", a=first, b=first + self.dice.choice((0, 0, 9))
        )

    def part_insert(self) -> None:
        self.run("INSERT INTO part VALUES (%(r)s, %(id)s, 0, NULL)", r=self.dice.choice(("eu", "us", "zz")), id=self.new())

    def part_delete(self) -> None:
        self.run("DELETE FROM part WHERE id = %(id)s", id=self.dice.randint(1, self.scale.rows))

    def soft_update(self) -> None:
        self.run(f"UPDATE soft SET v = v + 1 WHERE {_SOFT}", **self.soft())

    def soft_large(self) -> None:
        self.run(f"UPDATE soft SET big = %(big)s WHERE {_SOFT}", big=self.large(), **self.soft())

    def soft_delete(self) -> None:
        self.run(f"DELETE FROM soft WHERE {_SOFT}", **self.soft())

    def soft_back(self) -> None:
        """A key that was deleted, perhaps long ago, comes back."""
        self.run(
            "INSERT INTO soft VALUES (%(k)s, TIMESTAMPTZ '2024-06-01 12:00+00' + %(t)s * INTERVAL '1 h', 0)"
            " ON CONFLICT (k, t) DO UPDATE SET v = 0",
            **self.soft(),
        )

    def soft_move(self) -> None:
        self.run(f"UPDATE soft SET k = k + 100 WHERE {_SOFT}", **self.soft())

    def soft_spell(self) -> None:
        """The key stays equal and becomes another to Kafka."""
        self.run(f"UPDATE soft SET k = CASE WHEN scale(k) > 20 THEN trim_scale(k) ELSE round(k, 25) END WHERE {_SOFT}", **self.soft())

    # ---- transactions ----------------------------------------------------------------

    def undone_half(self) -> None:
        """Part of a transaction that commits is undone by a savepoint, then done otherwise."""
        self.run("SAVEPOINT half")
        self.doc_rewrite()
        self.pair_many()
        self.soft_delete()
        self.run("ROLLBACK TO SAVEPOINT half")
        self.pair_update()
        self.run("SAVEPOINT half")
        self.soft_update()
        self.run("RELEASE SAVEPOINT half")

    def transfer(self) -> None:
        """Rows are locked first, in an order that invites deadlocks."""
        one, two = self.dice.randint(1, 20), self.dice.randint(1, 20)
        for each in (one, two):
            self.run("SELECT v FROM whole WHERE id = %(id)s FOR UPDATE", id=each)
        self.run("UPDATE whole SET v = coalesce(v, 0) - 1 WHERE id = %(id)s", id=one)
        self.run("UPDATE whole SET v = coalesce(v, 0) + 1 WHERE id = %(id)s", id=two)

    def long_one(self) -> None:
        """The others commit many transactions between this one's statements: its changes are older than its commit."""
        for step in (self.doc_touch, self.pair_swap, self.soft_update, self.doc_move):
            step()
            start, deadline = self.elsewhere(), time.monotonic() + 0.3
            while self.elsewhere() - start < 100 and time.monotonic() < deadline:
                time.sleep(0.005)

    def truncate(self) -> None:
        self.run("TRUNCATE " + self.dice.choice(("pair", "soft, pair", "part", "doc", f"whole, {ODD}")))


_SOFT = "(k, t) = (%(k)s::numeric, TIMESTAMPTZ '2024-06-01 12:00+00' + %(t)s * INTERVAL '1 h')"

KINDS: dict[str, int] = {
    "doc_touch": 14, "doc_one_large": 4, "doc_rewrite": 3, "doc_upsert": 5, "doc_move": 4, "doc_chain": 2, "doc_replace": 2,
    "doc_delete": 1, "pair_update": 14, "pair_many": 1, "pair_mirror": 1, "pair_swap": 3, "pair_upsert": 6, "pair_insert": 2,
    "pair_delete": 1, "pair_fleeting": 2, "whole_update": 10, "whole_large": 2, "whole_move": 1, "whole_copy": 1, "whole_delete": 1,
    "transfer": 3, "odd_update": 8, "odd_move": 2, "odd_upsert": 5, "odd_delete": 1, "part_move": 4, "part_update": 6,
    "part_insert": 4, "part_delete": 1, "soft_update": 8, "soft_large": 2, "soft_delete": 4, "soft_back": 6, "soft_move": 1,
    "soft_spell": 3, "undone_half": 2,
}  # fmt: skip
LONG_SHARE = 0.004


class Load:
    """A load under way or done. ``run`` blocks; ``committed`` may be read meanwhile, ``stop`` ends it after the open transactions."""

    def __init__(self, url: str, scale: Scale, *, seed: int) -> None:
        self.url, self.scale, self.seed = url, scale, seed
        self.stop = Event()
        self._counts = [0] * scale.sessions

    @property
    def committed(self) -> int:
        """Statements committed so far."""
        return sum(self._counts)

    def run(self) -> Report:
        total = Report()
        with ThreadPoolExecutor(self.scale.sessions) as pool:
            futures = [pool.submit(self._session, number) for number in range(self.scale.sessions)]
            try:
                for future in as_completed(futures):
                    total.add(future.result())
            except BaseException:
                self.stop.set()
                raise
        return total

    def _session(self, number: int) -> Report:
        report, began = Report(), time.monotonic()
        session = Session(number, Random(f"{self.seed}/{number}"), self.scale, lambda: self.committed)
        quota = -(-self.scale.operations // self.scale.sessions)
        times = self.scale.truncates if number == 0 else 0
        empties = [quota * (turn + 1) // (times + 1) for turn in range(times)]
        try:
            while report.statements < quota and not self.stop.is_set():
                kinds = session.dice.choices(list(KINDS), list(KINDS.values()), k=session.dice.choice((1, 1, 1, 2, 3, 8)))
                if session.dice.random() < LONG_SHARE:
                    kinds.append("long_one")
                if empties and empties[0] <= report.statements:
                    kinds = ["truncate", *kinds[:1]]
                done = self._transaction(session, kinds, report)
                self._counts[number] = report.statements
                if done and kinds[0] == "truncate":
                    empties.pop(0)
        finally:
            if session.connection is not None:
                session.connection.close()
        report.seconds = time.monotonic() - began
        return report

    def _transaction(self, session: Session, kinds: Sequence[str], report: Report) -> bool:
        """One transaction; a conflict with another session undoes it. Whether it committed for sure."""
        undo = kinds[0] != "truncate" and session.dice.random() < ROLLBACK_SHARE
        session.statements = session.rows = 0
        try:
            if session.connection is None:
                session.connection = connect(self.url, self.stop)
            with session.connection.transaction(force_rollback=undo):
                for kind in kinds:
                    getattr(session, kind)()
        except CONFLICTS:
            report.conflicts += 1
            return False
        except psycopg.OperationalError:
            report.unknown += 1
            if session.connection is not None:
                session.connection.close()
            session.connection = None
            return False
        if undo:
            report.rolled_back += 1
            return False
        report.transactions += 1
        report.statements += session.statements
        report.rows += session.rows
        report.kinds.update(kinds)
        return True


def connect(url: str, stop: Event) -> psycopg.Connection[Any]:
    """A session, also where the server is coming up again. Raises the last error after a limit."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        try:
            connection = psycopg.connect(url, autocommit=True, connect_timeout=5)
            connection.execute("SET lock_timeout = '3s'; SET deadlock_timeout = '50ms'; SET timezone = 'UTC'")
            return connection
        except psycopg.OperationalError:
            if time.monotonic() > deadline or stop.is_set():
                raise
            time.sleep(0.2)


@contextmanager
def loading(load: Load) -> Iterator[Future[Report]]:
    """The load at work in a thread; it ends with the block."""
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(load.run)
        try:
            yield work
        finally:
            load.stop.set()
