"""The slot of a pipeline where it cannot be read on: why, and how to let it begin anew at the end of the log.

pgoutput looks for its publication as of the moment of each change. A slot that stands before the publication was made (dropped and made
again) fails at the first change, for ever, and the connector asks again and again without a word. What such a slot holds can only be left
out; so it is with a slot that is gone. Whoever lets it begin anew has to have every table read anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DBAPIError

from cdc_service.core.errors import Unavailable
from cdc_service.core.names import Names
from connectors.sources.postgresql.catalog import quoted

LOOK_SECONDS = 2.0
"""How long to try for a moment in which nobody reads the slot; one that flows is read always."""
SKIP_SECONDS = 25.0
"""How long to wait for transactions that are open."""
PEEK_ROWS = 100_000
_AGAIN_SECONDS = 0.1
T = TypeVar("T")

_STATE = """
SELECT s.slot_name::text, s.wal_status, p.oid AS publication, coalesce(age(p.xmin) <= age(s.catalog_xmin), false) AS younger
FROM (SELECT 1) AS one LEFT JOIN pg_replication_slots s ON s.slot_name = :slot LEFT JOIN pg_publication p ON p.pubname = :publication
"""
_PEEK = """
SELECT count(*) FROM pg_logical_slot_peek_binary_changes(
    CAST(:slot AS name), NULL, :rows, 'proto_version', '1', 'publication_names', :names)
"""
_OPEN = """
SELECT DISTINCT ON (x.pid, p.gid) x.pid, p.gid, coalesce(a.datname, p.database)::text AS database,
       coalesce(a.xact_start, p.prepared) AS begun,
       to_char(coalesce(a.xact_start, p.prepared) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since
FROM pg_locks x
LEFT JOIN pg_stat_activity a ON a.pid = x.pid
LEFT JOIN pg_prepared_xacts p ON x.pid IS NULL AND p.transaction = x.transactionid
WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.granted AND x.pid IS DISTINCT FROM pg_backend_pid()
  AND (CAST(:publication AS text) IS NULL
       OR age(x.transactionid) >= (SELECT age(q.xmin) FROM pg_publication q WHERE q.pubname = :publication))
ORDER BY x.pid, p.gid
"""
_IN_USE, _NO_SUCH, _CANCELLED = "55006", "42704", "57014"


def open_transactions(connection: Connection, names: Names | None = None, *, seconds: float = 0.0) -> list[tuple[str, str]]:
    """The transactions of the server that have written and are open for so long, the oldest first: who, and what ends it. With ``names``
    those alone that are as old as the publication."""
    found = connection.execute(text(_OPEN), {"publication": names and names.at_source}).mappings().all()
    now = connection.execute(text("SELECT now()")).scalar_one()
    # When a session's transaction began is told to its own role and to monitors alone.
    old = [row for row in found if not seconds or (row["begun"] and (now - row["begun"]).total_seconds() >= seconds)]
    return [_who(row) for row in sorted(old, key=lambda row: (row["begun"] is None, row["begun"]))]


def _who(row: RowMapping) -> tuple[str, str]:
    since = f", open since {row['since']}" if row["since"] else ""
    if row["pid"] is not None:
        return f"the session with pid {row['pid']} (database {row['database']}{since})", f"SELECT pg_terminate_backend({row['pid']});"
    gid = "'" + row["gid"].replace("'", "''") + "'"
    end = f"ROLLBACK PREPARED {gid};  -- or COMMIT PREPARED {gid}; in the database {row['database']}"
    return f"the prepared transaction {gid} (database {row['database']}{since})", end


def busy(what: str, found: list[tuple[str, str]]) -> Unavailable:
    """``what`` waits for these transactions."""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return Unavailable(
        f"{what} waits for {found[0][0]}{more}",
        hint=f"let it end, or end it: {found[0][1]}  then: cdc register",
        code="source_busy",
    )


def gap(connection: Connection, names: Names) -> str | None:
    state = connection.execute(text(_STATE), {"slot": names.at_source, "publication": names.at_source}).mappings().one()
    if state["slot_name"] is None:
        return f"slot {names.at_source} is gone"
    if state["wal_status"] == "lost":
        return f"slot {names.at_source} has lost the log that it needs"
    if state["publication"] is None:
        return f"publication {names.at_source} is gone, and with it what slot {names.at_source} holds"
    if state["younger"] and not _readable(connection, names):
        return (
            f"publication {names.at_source} was made anew after the position of slot {names.at_source}, which cannot be read on from there"
        )
    return None


def _readable(connection: Connection, names: Names) -> bool:
    """Whether the slot can be decoded from where it stands, as far as a look that consumes nothing tells."""
    values = {"slot": names.at_source, "rows": PEEK_ROWS, "names": quoted(names.at_source)}
    try:
        _when_free(lambda: connection.execute(text(_PEEK), values), LOOK_SECONDS)
    except DBAPIError as error:
        state = _sqlstate(error)
        if state == _NO_SUCH:
            return False
        if state not in (_IN_USE, _CANCELLED):
            raise
    return True


def skip(connection: Connection, names: Names) -> int:
    """Lets the slot begin at the end of the log, made anew where it is gone or lost; the position. The publication is there, the connector
    stands still. Raises Unavailable (source_busy) where transactions stand in the way for longer than SKIP_SECONDS."""
    state = connection.execute(text(_STATE), {"slot": names.at_source, "publication": names.at_source}).mappings().one()
    what, slot = f"slot {names.at_source}", {"slot": names.at_source}
    if state["slot_name"] is None or state["wal_status"] == "lost":
        if state["slot_name"] is not None:
            connection.execute(text("SELECT pg_drop_replication_slot(:slot)"), slot)
        connection.execute(text(f"SET statement_timeout = {round(SKIP_SECONDS * 1000)}"))
        try:
            made = "SELECT (lsn - '0/0'::pg_lsn)::bigint FROM pg_create_logical_replication_slot(CAST(:slot AS name), 'pgoutput')"
            return int(connection.execute(text(made), slot).scalar_one())
        except DBAPIError as error:
            if _sqlstate(error) == _CANCELLED and (found := open_transactions(connection)):
                raise busy(what, found) from None
            raise
    # What a transaction changed before the publication was there cannot be decoded when it commits.
    deadline = time.monotonic() + SKIP_SECONDS
    while found := open_transactions(connection, names):
        if time.monotonic() > deadline:
            raise busy(what, found)
        time.sleep(_AGAIN_SECONDS)
    moved = "SELECT (end_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slot_advance(CAST(:slot AS name), pg_current_wal_lsn())"
    return int(_when_free(lambda: connection.execute(text(moved), slot).scalar_one(), SKIP_SECONDS))


def _when_free(do: Callable[[], T], seconds: float) -> T:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return do()
        except DBAPIError as error:
            if _sqlstate(error) != _IN_USE or time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_SECONDS)


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""
