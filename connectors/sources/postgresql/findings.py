# ruff: noqa: S608  (names enter statements through quoted(); there are no values)
"""What the facts of a PostgreSQL server mean for a pipeline: pre-flight findings, each failure with its cure. Asks nothing itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sqlalchemy.engine import RowMapping

from cdc_service.core.errors import CdcError
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.ports.source import Finding, Identity, Level, SourceTable
from connectors.sources.postgresql.catalog import OLD, qualified, quoted, takes_null, written

VALUES_ROWS_MAX = 1_000_000
"""Rows of the largest table whose values are looked at."""


def server(facts: RowMapping, *, has_slot: bool) -> list[Finding]:
    slots, senders = facts["slots_max"] - facts["slots"], facts["senders_max"] - facts["senders"]
    found = [
        Finding("server", facts["version_number"] >= 140000, f"PostgreSQL {facts['version']}", "use PostgreSQL 14 or later"),
        Finding(
            "wal_level",
            facts["wal_level"] == "logical",
            f"wal_level is {facts['wal_level']}" + ("" if facts["wal_level"] == "logical" else "; the log holds no row changes"),
            "ALTER SYSTEM SET wal_level = logical;  -- then restart PostgreSQL",
        ),
        Finding(
            "replication slots",
            has_slot or slots > 0,
            f"{facts['slots']} of max_replication_slots = {facts['slots_max']} are taken",
            f"ALTER SYSTEM SET max_replication_slots = {facts['slots_max'] + 5};  -- then restart PostgreSQL",
        ),
        Finding(
            "wal senders",
            has_slot or senders > 0,
            f"{facts['senders']} of max_wal_senders = {facts['senders_max']} are taken",
            f"ALTER SYSTEM SET max_wal_senders = {facts['senders_max'] + 5};  -- then restart PostgreSQL",
        ),
        Finding(
            "log limit",
            facts["keep_size"] != "-1",
            "max_slot_wal_keep_size is "
            + (facts["keep_size"] if facts["keep_size"] != "-1" else "unlimited: a pipeline that is down for long fills the source's disk"),
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';  -- then SELECT pg_reload_conf(); a slot beyond it is lost",
            Level.WARNING,
        ),
    ]
    if facts["in_recovery"]:
        found.append(Finding("primary", ok=False, message="the server is a standby", cure="let source.url name the primary"))
    return found


def role_rights(facts: RowMapping, tables: Sequence[SourceTable]) -> list[Finding]:
    role = quoted(facts["role"])
    unreadable, narrowed = [t for t in tables if not t.readable], [t for t in tables if t.row_security]
    lacks = [f"may not read {_listed(unreadable)}"] if unreadable else []
    lacks += [f"may not see every row of {_listed(narrowed)}"] if narrowed else []
    return [
        Finding(
            "role may replicate",
            bool(facts["may_replicate"]),
            f"role {facts['role']} " + ("has" if facts["may_replicate"] else "lacks") + " REPLICATION",
            f"ALTER ROLE {role} REPLICATION;  -- Amazon RDS: GRANT rds_replication TO {role};",
        ),
        Finding(
            "role may read",
            not lacks,
            f"role {facts['role']} {', and '.join(lacks) or 'may read every table'}",
            "\n".join([*grants([t.table for t in unreadable], facts["role"]), *([f"ALTER ROLE {role} BYPASSRLS;"] if narrowed else [])]),
            names=tuple(str(t.table) for t in (*unreadable, *narrowed)),
        ),
        Finding(
            "heartbeat",
            bool(facts["may_emit"]),
            f"role {facts['role']} may {'' if facts['may_emit'] else 'not '}call pg_logical_emit_message, which keeps the slot moving",
            f"GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO {role};",
        ),
    ]


def grants(tables: Sequence[TableId], role: str) -> list[str]:
    """What lets the role read the tables."""
    made = [f"GRANT USAGE ON SCHEMA {quoted(s)} TO {quoted(role)};" for s in sorted({t.schema for t in tables})]
    return made + [f"GRANT SELECT ON {qualified(t)} TO {quoted(role)};" for t in tables]


def _listed(tables: Sequence[SourceTable]) -> str:
    return ", ".join(str(t.table) for t in tables)


def row_security(table: TableId, role: str) -> tuple[str, str]:
    """What is to be said of a table whose policies show the role some rows only, and the cure."""
    message = (
        f"row level security decides which rows role {role} sees: those that it hides could neither be loaded nor compared, and nobody can"
        " prove of a policy that it hides none"
    )
    return message, f"ALTER ROLE {quoted(role)} BYPASSRLS;  -- or ALTER TABLE {qualified(table)} DISABLE ROW LEVEL SECURITY;"


def refused_row_security(table: TableId, role: str) -> CdcError:
    """For a statement that the server refused: the session asks it to (row_security = off), rather than leave rows out."""
    message, cure = row_security(table, role)
    return CdcError(f"{table}: {message}", hint=cure, code="row_security")


def slot(slot: RowMapping, names: Names) -> Finding:
    lost = slot["wal_status"] == "lost"
    kept = f", keeps {slot['retained'] / 2**20:.0f} MiB of the log" if slot["retained"] is not None else ""
    return Finding(
        "slot",
        not lost and slot["plugin"] == "pgoutput",
        f"slot {names.at_source} is {slot['wal_status']}{kept}",
        ("cdc register, after which all tables are read anew; or begin anew: " if lost else "")
        + "cdc register --delete, then cdc register, then cdc resync each table",
    )


def snapshot_refusal(table: TableId, key: Sequence[RowMapping]) -> Finding | None:
    """``key`` are the types of the primary key's columns.

    While an incremental snapshot goes on, the connector keeps the names of its tables unquoted in its offsets, and parses them each time
    it commits. With Debezium 3.6 a blank within a name was seen to end its task so; by its parser a quote before a name does the same, and
    the next task reads the same offsets at its start. It keeps the last key read too, and ends where that holds an array. One of type money
    it compares with a number, which PostgreSQL refuses."""
    arrays = ", ".join(column["name"] for column in key if column["category"] == "A")
    money = ", ".join(column["name"] for column in key if column["base"] == "money")
    place, name = f"table {table}", qualified(table)
    if any(re.search(r"\S\s+\S|^\s*['`]", part) for part in (table.schema, table.name)):
        why, mend = (
            "has a blank within its name, or a quote before it: a snapshot of it beside the stream would end the connector for good",
            (f"ALTER TABLE {name} RENAME TO ...;"),
        )
    elif arrays:
        why = f"has an array in its primary key ({arrays}): a snapshot of it beside the stream would end the connector for good"
        mend = f"ALTER TABLE {name} DROP CONSTRAINT ..., ADD PRIMARY KEY (...);"
    elif money:
        why = f"has a column of type money in its primary key ({money}), by which the connector cannot read on beside the stream"
        changes = ", ".join(f"ALTER {quoted(column['name'])} TYPE numeric" for column in key if column["base"] == "money")
        mend = f"ALTER TABLE {name} {changes};"
    else:
        return None
    message = f"{why}, so it cannot be resynced, nor added to a pipeline that runs already"
    return Finding(place, False, message, mend, Level.WARNING)


def keyless_cure(table: SourceTable) -> str:
    """Both ways on for a table without a key; the second one has all that it takes."""
    name = qualified(table.table)
    log = f"in the configuration: tables: {table.table}: {{keyless: append}}"
    if table.identity is not Identity.FULL:
        log += f", and at the source:\nALTER TABLE {name} REPLICA IDENTITY FULL;"
    return f"ALTER TABLE {name} ADD PRIMARY KEY (...);\n-- or keep it as a log of its changes: {log}"


def of_table(table: SourceTable, refusal: Finding | None) -> Iterator[Finding]:
    """All there is to say of a table, its ``refusal`` first."""
    place = f"table {table.table}"
    if refusal is not None:
        yield refusal
    hazards = [column.hazard for column in table.columns if column.hazard is not None]
    for hazard in hazards:
        message = f"has a {hazard.message}" if hazard.blocking else hazard.message
        if refusal is None or message != refusal.message:
            yield Finding(place, False, message, hazard.cure, Level.ERROR if hazard.blocking else Level.WARNING)
    if table.generated:
        columns = ", ".join(table.generated)
        yield Finding(place, True, f"generated columns are left out, since the log does not carry them: {columns}", level=Level.INFO)


_IN_ARRAY = "EXISTS (SELECT FROM unnest({{0}}) AS e WHERE {})"
_LEAP = "(isfinite({0}) AND {0} < '0001-01-01' AND extract(month FROM {0}) = 2 AND extract(day FROM {0}) = 29)"
_UNTOLD = "(isfinite(e) AND e >= '2200-01-01 BC' AND e < '1582-01-01 BC')"
_STOPS = "the connector stops at it, and with it all tables"


def unreadable_type(row: RowMapping) -> Finding:
    kind = "a domain over an enum" if row["domain"] else "an enum without a label"
    if row["domain"]:
        cure = "\n".join([*row["uses"], f"DROP DOMAIN {row['name']};"])
    else:
        cure = (
            f"ALTER TYPE {row['name']} ADD VALUE 'none';  -- or the labels that it shall have"
            if row["uses"]
            else f"DROP TYPE {row['name']};"
        )
    return Finding("enums", False, f"{row['name']} is {kind}, at which the connector stops at its start, for all tables", cure)


def of_values(table: SourceTable) -> Iterator[tuple[str, Finding]]:
    """What the values of a table mean: each a question to ask, and the finding where its answer (``found``) is yes. None for a table that
    is too large to be asked."""
    if table.rows > VALUES_ROWS_MAX:
        return
    dates = [c.name for c in table.columns if c.base == "date"]
    arrays = [c for c in table.columns if c.base.endswith("[]")]
    of = {kind: [c.name for c in arrays if c.base in bases] for kind, bases in _ARRAYS.items()}
    nulls = [c.name for c in arrays if not takes_null(c.base.removesuffix("[]"))]
    parked = "" if table.key and not set(dates) & set(table.key) else "; in a log or a key its record is parked (snapshot_value)"
    yield from _asked(
        table, dates, OLD, "holds dates before the year 1, or in 1582-10-05..14 ({}): a snapshot changes them, so they are read again at"
        f" the source, one by one{parked}", "nothing; but in a log (mode: append) write these rows again: UPDATE ... SET d = d",
    )  # fmt: skip
    yield from _asked(
        table, [c.name for c in arrays], "array_ndims({0}) > 1 OR array_lower({0}, 1) <> 1", "holds arrays of more than one dimension, or"
        " that do not begin with element 1 ({}): a list holds neither. The first are parked (array_dimensions), of the second the bounds"
        " are lost", "make them plain arrays, keep them as jsonb, or leave the column out (column.exclude.list)",
    )  # fmt: skip
    yield from _asked(
        table, of["eras"], _IN_ARRAY.format(_UNTOLD), "holds arrays with dates of 2200 BC to 1583 BC ({}): events give them the years after"
        " Christ, and nothing tells", "leave the column out (column.exclude.list), or keep it as text[]",
    )  # fmt: skip
    leap = "keep such days out of the column, or keep it as text"
    yield from _asked(table, dates, _LEAP, f"holds a 29 February before Christ ({{}}): at a snapshot {_STOPS}", leap, Level.ERROR)
    found = _IN_ARRAY.format(_LEAP.format("e"))
    yield from _asked(table, of["eras"], found, f"holds a 29 February before Christ in an array ({{}}): {_STOPS}", leap, Level.ERROR)
    found = _IN_ARRAY.format("e IN ('NaN', 'Infinity', '-Infinity')")
    cure = "keep these out of the arrays, or leave the column out (column.exclude.list)"
    yield from _asked(table, of["numbers"], found, f"holds arrays with NaN or an infinity ({{}}): {_STOPS}", cure, Level.ERROR)
    cure = "keep NULL out of these arrays, or leave the column out (column.exclude.list)"
    found = _IN_ARRAY.format("e IS NULL")
    yield from _asked(table, nulls, found, f"holds arrays with a NULL that it cannot send ({{}}): {_STOPS}", cure, Level.ERROR)


_ARRAYS = {"eras": ("date[]", "timestamptz[]"), "numbers": ("numeric[]",)}


def _asked(
    table: SourceTable, columns: Sequence[str], condition: str, message: str, cure: str, level: Level = Level.WARNING
) -> Iterator[tuple[str, Finding]]:
    if columns:
        wrong = " OR ".join(f"({condition.format(written(column))})" for column in columns)
        finding = Finding(f"table {table.table}", False, message.format(", ".join(columns)), cure, level)
        yield f"SELECT EXISTS (SELECT FROM {written(table.table.schema, table.table.name)} WHERE {wrong}) AS found", finding
