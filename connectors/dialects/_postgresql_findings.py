# ruff: noqa: S608  (names enter statements through quoted(); there are no values)
"""What the facts of a PostgreSQL server mean for a pipeline: pre-flight findings, each failure with its cure. Asks nothing itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sqlalchemy.engine import RowMapping

from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from connectors.dialects._postgresql_catalog import qualified, quoted
from connectors.protocol import Finding, Level, SourceTable

OLD_DATES_ROWS_MAX = 1_000_000


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
    unreadable = [t for t in tables if not t.readable]
    grants = [f"GRANT USAGE ON SCHEMA {quoted(s)} TO {role};" for s in sorted({t.table.schema for t in unreadable})]
    grants += [f"GRANT SELECT ON {qualified(t.table)} TO {role};" for t in unreadable]
    return [
        Finding(
            "role may replicate",
            bool(facts["may_replicate"]),
            f"role {facts['role']} " + ("has" if facts["may_replicate"] else "lacks") + " REPLICATION",
            f"ALTER ROLE {role} REPLICATION;  -- Amazon RDS: GRANT rds_replication TO {role};",
        ),
        Finding(
            "role may read",
            not unreadable,
            f"role {facts['role']} may read every table"
            if not unreadable
            else f"role {facts['role']} may not read {', '.join(str(t.table) for t in unreadable)}",
            "\n".join(grants),
        ),
        Finding(
            "heartbeat",
            bool(facts["may_emit"]),
            f"role {facts['role']} may {'' if facts['may_emit'] else 'not '}call pg_logical_emit_message, which keeps the slot moving",
            f"GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO {role};",
        ),
    ]


def slot(slot: RowMapping, names: Names) -> Finding:
    lost = slot["wal_status"] == "lost"
    kept = f", keeps {slot['retained'] / 2**20:.0f} MiB of the log" if slot["retained"] is not None else ""
    return Finding(
        "slot",
        not lost and slot["plugin"] == "pgoutput",
        f"slot {names.slot} is {slot['wal_status']}{kept}",
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


def notes(table: SourceTable) -> Iterator[Finding]:
    place = f"table {table.table}"
    if table.generated:
        columns = ", ".join(table.generated)
        yield Finding(place, True, f"generated columns are left out, since the log does not carry them: {columns}", level=Level.INFO)
    for column in table.columns:
        if column.hazard is not None and not column.hazard.blocking:
            yield Finding(place, False, column.hazard.message, column.hazard.cure, Level.WARNING)


def old_dates(table: SourceTable) -> tuple[str, Finding] | None:
    """Snapshots carry dates through java.sql.Date: a year before Christ loses that, and ten days of 1582 move. The stream is exact.

    Returns the question to ask and the finding where its answer (``found``) is yes; None for a table without dates, or too large."""
    dates = [column.name for column in table.columns if column.type == "date"]
    if not dates or table.rows > OLD_DATES_ROWS_MAX:
        return None
    wrong = " OR ".join(f"({q} < '0001-01-01' AND isfinite({q})) OR {q} BETWEEN '1582-10-05' AND '1582-10-14'" for q in map(quoted, dates))
    finding = Finding(
        f"table {table.table}",
        ok=False,
        message=f"holds dates before the year 1, or in 1582-10-05..14 ({', '.join(dates)}): a snapshot changes them, the stream does not",
        cure="write these rows again after the snapshot (UPDATE ... SET d = d), or keep them as timestamp",
        level=Level.WARNING,
    )
    return f"SELECT EXISTS (SELECT FROM {qualified(table.table)} WHERE {wrong}) AS found", finding


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
