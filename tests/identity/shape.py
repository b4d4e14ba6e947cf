"""What a table of the source looks like now, and values that fit its columns."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg

WIDE = 6000
"""Hexadecimal digits that PostgreSQL keeps beside the row, so that an UPDATE of something else does not send them."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    """As PostgreSQL writes it, with its modifier."""
    base: str
    """The type's own name below domains; ``enum`` or ``composite`` for those."""
    parts: tuple[str, ...]
    """Labels of an enum, base types of a composite type's attributes."""
    not_null: bool
    default: bool
    generated: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """``key`` is the primary key's columns; ``ids`` are the values of its first one, smallest first; ``partitions`` are the attached ones;
    ``beside`` are tables of our own that stand beside it (partitions taken off, children, copies)."""

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    ids: tuple[int, ...]
    partitions: tuple[str, ...]
    beside: tuple[str, ...]
    publication: str

    def plain(self, *bases: str) -> list[Column]:
        """The columns outside the key that are written, of these types (of any, where none is named)."""
        return [c for c in self.columns if c.name not in self.key and not c.generated and (not bases or c.base in bases)]


_COLUMNS = """
WITH RECURSIVE below AS (
  SELECT oid AS top, oid, typbasetype, typtype, typname, typrelid FROM pg_type
  UNION ALL SELECT b.top, t.oid, t.typbasetype, t.typtype, t.typname, t.typrelid FROM below b JOIN pg_type t ON t.oid = b.typbasetype)
SELECT a.attname, format_type(a.atttypid, a.atttypmod),
  CASE b.typtype WHEN 'e' THEN 'enum' WHEN 'c' THEN 'composite' ELSE b.typname::text END,
  CASE b.typtype WHEN 'e' THEN (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum e WHERE e.enumtypid = b.oid)
    WHEN 'c' THEN (SELECT array_agg(t.typname::text ORDER BY p.attnum) FROM pg_attribute p JOIN pg_type t ON t.oid = p.atttypid
                   WHERE p.attrelid = b.typrelid AND p.attnum > 0 AND NOT p.attisdropped) END,
  a.attnotnull, a.atthasdef, a.attgenerated <> '',
  a.attnum = ANY ((SELECT i.indkey FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary)::smallint[])
FROM pg_attribute a JOIN below b ON b.top = a.atttypid AND b.typbasetype = 0
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""


def look(connection: psycopg.Connection[Any], table: str, publication: str) -> Shape | None:
    """None where there is no table of this name."""
    rows = connection.execute(_COLUMNS, (table,)).fetchall()
    if not rows:
        return None
    columns = tuple(Column(row[0], row[1], row[2], tuple(row[3] or ()), row[4], row[5], row[6]) for row in rows)
    key = tuple(row[0] for row in rows if row[7])
    ids = connection.execute(f'SELECT "{key[0]}" FROM {table} ORDER BY 1').fetchall() if key else []
    partitions = connection.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = %s::regclass"
        " AND c.relispartition ORDER BY 1",
        (table,),
    ).fetchall()
    beside = connection.execute(
        r"SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND NOT relispartition AND relname LIKE %s ORDER BY 1",
        (table.replace("_", r"\_") + r"\_%",),
    ).fetchall()
    return Shape(
        table, columns, key, tuple(int(r[0]) for r in ids), tuple(r[0] for r in partitions), tuple(r[0] for r in beside), publication
    )


def literal(column: Column, dice: Random) -> str:
    """SQL of a value that the column is likely to take."""
    if not column.not_null and dice.random() < 0.15:
        return "NULL"
    if column.base == "enum":
        return f"'{dice.choice(column.parts)}'"
    if column.base == "composite":
        values = [str(dice.randrange(100)) if part.startswith("int") else f"'{dice.choice('abcd')}'" for part in column.parts]
        return f"ROW({', '.join(values)})::{column.type}"
    return _plain(column, dice)


def _plain(column: Column, dice: Random) -> str:
    number = dice.randrange(1, 10_000)
    if column.base in ("int4", "int8"):
        return str(number % 1000)
    if column.base == "numeric":
        return f"{number / 100 + dice.randrange(100) / 10_000:.4f}"
    if column.base == "varchar":
        most = column.type.partition("(")[2].rstrip(")")
        return f"'{f'v{number % 100}'[: int(most or 9)]}'"
    if column.base == "text":
        return f"'{dice.getrandbits(WIDE * 4):0{WIDE}x}'" if dice.random() < 0.1 else f"'text {number}'"
    if column.base == "timestamptz":
        return f"'2024-01-01 00:00:00+00'::timestamptz + interval '{number} seconds'"
    if column.base == "uuid":
        return f"'{dice.getrandbits(128):032x}'"
    if column.base == "bool":
        return dice.choice(("true", "false"))
    return "DEFAULT"
