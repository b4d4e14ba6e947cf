"""A log position up to which all changes of some tables are visible to whoever reads it now; without locks, with SELECT alone.

A transaction writes its changes into the log long before it commits, so a position alone says nothing about what a reader sees. Whoever
changes a table holds a lock on it (and on the partition) until it ends, and ends before it lets go: when all who held one after the
position was taken are gone, a new snapshot sees every change below it that was ever committed. Prepared transactions hold theirs too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text
from sqlalchemy.engine import RowMapping

from cdc_service.core.errors import Unavailable
from cdc_service.core.types import TableId
from connectors.sources.postgresql import catalog as sql

SETTLE_SECONDS = 2.0
_AGAIN_SECONDS = 0.02

_WRITERS = """
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted),
root AS (SELECT c.oid, t.place
    FROM unnest(CAST(:schemas AS text[]), CAST(:tables AS text[])) WITH ORDINALITY AS t(schema, name, place)
    JOIN pg_namespace n ON n.nspname = t.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name),
parts AS (SELECT oid, place FROM root UNION SELECT p.relid, place FROM root CROSS JOIN LATERAL pg_partition_tree(root.oid) p),
writing AS (SELECT DISTINCT parts.place, l.virtualtransaction, l.pid FROM locks l JOIN parts ON parts.oid = l.relation
    WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
SELECT w.place - 1 AS place, CAST(x.transactionid AS text) AS xid, x.pid, p.gid,
       to_char(coalesce(a.xact_start, p.prepared) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since
FROM locks x
JOIN writing w ON w.virtualtransaction = x.virtualtransaction AND w.pid IS NOT DISTINCT FROM x.pid
LEFT JOIN pg_stat_activity a ON a.pid = x.pid
LEFT JOIN pg_prepared_xacts p ON x.pid IS NULL AND p.transaction = x.transactionid
WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock'
ORDER BY since NULLS LAST, x.pid
"""


def settle(connection: Connection, tables: Sequence[TableId]) -> tuple[int, Mapping[TableId, Unavailable]]:
    """The position, and of which tables it does not hold, with who stands in the way: those that transactions changed which are open for
    longer than SETTLE_SECONDS. Read the rows after this returns, in a new snapshot. ``connection`` is in autocommit.

    A change at the position itself is not covered yet by the server's word for the end of its log, so the position is the one before.
    """
    position = int(connection.execute(text(sql.POSITION)).scalar_one())
    writers = _writers(connection, tables)
    waiting, deadline = set(writers), time.monotonic() + SETTLE_SECONDS
    while waiting and time.monotonic() <= deadline:
        time.sleep(_AGAIN_SECONDS)
        waiting &= set(_writers(connection, tables))
    left: dict[TableId, list[RowMapping]] = {}
    for place, xid in (one for one in writers if one in waiting):
        left.setdefault(tables[place], []).append(writers[place, xid])
    return position - 1, {table: _busy(table, rows[0], len(rows)) for table, rows in left.items()}


def _writers(connection: Connection, tables: Sequence[TableId]) -> dict[tuple[int, str], RowMapping]:
    """The transactions that are writing, each by the place of its table, the oldest first."""
    names = {"schemas": [t.schema for t in tables], "tables": [t.name for t in tables]}
    return {(row["place"], row["xid"]): row for row in connection.execute(text(_WRITERS), names).mappings()}


def _busy(table: TableId, first: RowMapping, count: int) -> Unavailable:
    since = f" (open since {first['since']})" if first["since"] else ""
    who = f"the session with pid {first['pid']}{since}" if first["pid"] else f"the prepared transaction {first['gid']!r}{since}"
    more = f" and {count - 1} more" if count > 1 else ""
    end = f"SELECT pg_terminate_backend({first['pid']})" if first["pid"] else "COMMIT PREPARED or ROLLBACK PREPARED"
    return Unavailable(
        f"{table}: values that the source did not send cannot be read again while {who}{more} has uncommitted changes of the table",
        hint=f"nothing to do where it ends soon, it is tried again; else end it: {end}",
        code="source_busy",
    )
