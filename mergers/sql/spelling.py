"""A SQL spelling is data: types, quoting and the few expressions that databases spell differently. Nothing here runs a statement.

Values reach SQL as parameters or staged columns only; ``literal`` exists for the defaults in DDL, which take no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import Kind, LogicalType


@dataclass(frozen=True, slots=True)
class Spelling:
    """One database's spelling.

    ``name`` is sqlglot's name of it (tests parse what we emit), ``types`` maps each kind but DECIMAL and ARRAY to a column type, spelled
    as the database's own catalog prints it, so that drift is a comparison of text. ``temporary`` qualifies temporary tables.
    ``image`` is a type that holds a row as text by column name: ``image_of`` builds one from {names} (one parameter, a list of texts) and
    {values} (expressions, with ``image_join`` between), ``image_value`` and ``image_has`` read it by one parameter each.
    ``text_exact`` tests that column {c} of type {t} comes back from text as it was (empty: every type does).
    ``upsert``: the target has a unique index on its key, and INSERT ... ON CONFLICT DO UPDATE replaces rows (PostgreSQL, where it is faster
    than delete + insert and leaves less behind); else what is replaced is deleted first.
    ``row_lock`` ends a SELECT that locks its row until the transaction ends (" FOR UPDATE"); empty where one process writes at a time.
    ``us_of_time`` is an instant {time} in microseconds since 1970, ``time_of_us`` makes an instant of such a number {us}.
    ``namespaces`` is false where tables do not live in schemas: the table b of the namespace a is called "a.b" then.
    ``widen`` are the statements that give the column {column} of the table {place} the wider type {type} and keep its values.
    The engine also calls now() (an instant, type TIMESTAMPTZ), md5(text) (hex) and greatest(a, b); a connection that lacks them adds them.
    """

    name: str
    types: Mapping[Kind, str]
    decimal: str = "DECIMAL({precision},{scale})"
    array: str = "{element}[]"
    placeholder: str = "?"
    quote_mark: str = '"'
    temporary: str = "temp"
    image: str = "JSONB"
    image_of: str = ""
    image_join: str = ", "
    image_value: str = ""
    image_has: str = ""
    text_exact: str = ""
    row_lock: str = ""
    us_of_time: str = ""
    time_of_us: str = ""
    namespaces: bool = True
    widen: Sequence[str] = ("ALTER TABLE {place} ALTER COLUMN {column} SET DATA TYPE {type}",)
    blob: str = "BLOB"
    upsert: bool = False

    def quote(self, *path: str) -> str:
        """An identifier of one or more parts, quoted; the only way by which a name reaches SQL text."""
        if not all(path):
            raise ValueError("an identifier has an empty part")
        if not self.namespaces:
            if any("." in part for part in path[:-1]):
                raise ConfigError(f"{path[0]!r} cannot be a namespace at this destination", hint="name a target without a dot there")
            path = (".".join(path),)
        mark = self.quote_mark
        return ".".join(f"{mark}{part.replace(mark, mark * 2)}{mark}" for part in path)

    def column_type(self, type_: LogicalType) -> str:
        if type_.kind is Kind.DECIMAL:
            return self.decimal.format(precision=type_.precision, scale=type_.scale)
        if type_.element is not None:
            return self.array.format(element=self.column_type(type_.element))
        return self.types[type_.kind]

    def literal(self, text: str) -> str:
        """``text`` as a constant, for a DEFAULT clause; the column's type reads it."""
        quoted = text.replace("'", "''")
        return f"'{quoted}'"


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text and its parameters in order."""

    sql: str
    params: Sequence[object] = ()
