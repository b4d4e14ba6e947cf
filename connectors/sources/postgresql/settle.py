"""A log position up to which all changes of a table are visible to whoever reads it now; without locks, with SELECT alone.

A transaction writes its changes into the log long before it commits, so a position alone says nothing about what a reader sees. Whoever
changes a table holds a lock on it (and on the partition) until it ends, and ends before it lets go: when all who held one after the
position was taken are gone, a new snapshot sees every change below it that was ever committed. Prepared transactions hold theirs too.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, text
from sqlalchemy.engine import RowMapping

from cdc_service.core.errors import Unavailable
from cdc_service.core.types import TableId
from connectors.sources.postgresql import catalog as sql

SETTLE_SECONDS = 2.0
_AGAIN_SECONDS = 0.02

_WRITERS = """
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted),
root AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :table),
parts AS (SELECT oid FROM root UNION SELECT p.relid FROM root CROSS JOIN LATERAL pg_partition_tree(root.oid) p)
SELECT CAST(x.transactionid AS text) AS xid, x.pid, p.gid,
       to_char(coalesce(a.xact_start, p.prepared) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since
FROM locks x
LEFT JOIN pg_stat_activity a ON a.pid = x.pid
LEFT JOIN pg_prepared_xacts p ON x.pid IS NULL AND p.transaction = x.transactionid
WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND EXISTS (
    SELECT FROM locks l JOIN parts ON parts.oid = l.relation
    WHERE l.locktype = 'relation' AND l.virtualtransaction = x.virtualtransaction AND l.pid IS NOT DISTINCT FROM x.pid
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
ORDER BY since NULLS LAST, x.pid
"""


def settle(connection: Connection, table: TableId) -> int:
    """The position; read the rows after this returns, in a new snapshot. ``connection`` is in autocommit.

    A change at the position itself is not covered yet by the server's word for the end of its log, so the position is the one before.
    Raises Unavailable, with who stands in the way, when transactions that changed the table are open for longer than SETTLE_SECONDS.
    """
    position = int(connection.execute(text(sql.POSITION)).scalar_one())
    writers = _writers(connection, table)
    waiting, deadline = set(writers), time.monotonic() + SETTLE_SECONDS
    while waiting:
        if time.monotonic() > deadline:
            raise _busy(table, writers[min(waiting, key=list(writers).index)], len(waiting))
        time.sleep(_AGAIN_SECONDS)
        waiting &= set(_writers(connection, table))
    return position - 1


def _writers(connection: Connection, table: TableId) -> dict[str, RowMapping]:
    rows = connection.execute(text(_WRITERS), {"schema": table.schema, "table": table.name}).mappings()
    return {row["xid"]: row for row in rows}


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
