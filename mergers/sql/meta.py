"""The service's own tables in the warehouse (schema ``_cdc`` by default): what they hold, how they are made, how long rows stay.

Each begins with the scope of its rows: pipeline, source_table, target_table. A migration is a step that is safe to run twice; the table
``migration`` records the steps that ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergers.sql.spelling import Spelling

SCOPE = ("pipeline", "source_table", "target_table")

DELETED_KEYS_DAYS = 7
"""The redelivery window: how long a deleted key's version is kept against late duplicates."""
BATCH_DAYS = 30
QUARANTINE_DECIDED_DAYS = 90
RECONCILE_DAYS = 90

_TEXT, _INT, _LONG, _TIME, _BYTES = "VARCHAR", "INTEGER", "BIGINT", "TIMESTAMP WITH TIME ZONE", "{blob}"


@dataclass(frozen=True, slots=True)
class MetaTable:
    """``columns`` without the scope, as (name, type); ``{blob}`` and ``{image}`` are the spelling's."""

    name: str
    columns: tuple[tuple[str, str], ...]
    unique: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (*SCOPE, *(name for name, _ in self.columns))


CHECKPOINT = MetaTable(
    "checkpoint",
    (
        ("cluster_id", _TEXT),
        ("topic", _TEXT),
        ("topic_id", _TEXT),
        ("partition", _INT),
        ("next_offset", _LONG),
        ("epoch", _LONG),
        ("high_commit", _LONG),
        ("high_record", _LONG),
        ("high_snapshot", _LONG),
        ("truncate_gen", _INT),
        ("truncate_commit", _LONG),
        ("batch_id", _TEXT),
        ("committed_at", _TIME),
        ("last_record", _LONG),
        ("last_order", _LONG),
        ("last_seq", _LONG),
        ("mark", _TEXT),
    ),
)
"""``last_*`` are the last change of the partition where the table has no key (core.types.Tail), ``mark`` is where the reading of a loaded
table stands."""
BATCH = MetaTable(
    "batch",
    (
        ("batch_id", _TEXT),
        ("topic_id", _TEXT),
        ("partition", _INT),
        ("start_offset", _LONG),
        ("stop_offset", _LONG),
        ("applied", _LONG),
        ("folded", _LONG),
        ("duplicate", _LONG),
        ("parked", _LONG),
        ("filtered", _LONG),
        ("committed_at", _TIME),
    ),
)
QUARANTINE = MetaTable(
    "quarantine",
    (
        ("id", _TEXT),
        ("batch_id", _TEXT),
        ("topic_id", _TEXT),
        ("partition", _INT),
        ("offset", _LONG),
        ("key", _BYTES),
        ("value", _BYTES),
        ("headers", _TEXT),
        ("key_text", _TEXT),
        ("key_hash", _TEXT),
        ("stage", _TEXT),
        ("code", _TEXT),
        ("message", _TEXT),
        ("state", _TEXT),
        ("parked_at", _TIME),
        ("decided_by", _TEXT),
        ("decided_at", _TIME),
        ("reason", _TEXT),
    ),
)
DELETED_KEYS = MetaTable(
    "deleted_keys",
    (
        ("key_hash", _TEXT),
        ("key", _TEXT),
        ("partition", _INT),
        ("offset", _LONG),
        ("gen", _INT),
        ("commit", _LONG),
        ("record", _LONG),
        ("deleted_at", _TIME),
        ("row", "{image}"),
        ("minor", _LONG),
    ),
)
SCHEMA_HISTORY = MetaTable(
    "schema_history", (("version", _INT), ("at", _TIME), ("change", _TEXT), ("sql", _TEXT), ("fingerprint", _TEXT), ("schema", _TEXT))
)
TABLE_STATE = MetaTable(
    "table_state",
    (
        ("state", _TEXT),
        ("generation", _INT),
        ("opened_record", _LONG),
        ("opened_at", _TEXT),
        ("resync", "BOOLEAN"),
        ("complete_through", _LONG),
        ("complete_at_us", _LONG),
        ("error_code", _TEXT),
        ("error_message", _TEXT),
        ("error_hint", _TEXT),
        ("error_at_us", _LONG),
        ("identity", _TEXT),
        ("identity_at", _LONG),
        ("columns_at", _LONG),
        ("version", _LONG),
        ("updated_at", _TIME),
    ),
    unique=True,
)
WRITER = MetaTable("writer", (("epoch", _LONG),), unique=True)
"""The counter of epochs; it outlives the checkpoint rows, so that a writer from before a resync stays fenced."""

RECONCILE_RUN = MetaTable(
    "reconcile_run",
    (
        ("run_id", _TEXT),
        ("at", _TIME),
        ("status", _TEXT),
        ("reason", _TEXT),
        ("method", _TEXT),
        ("fence", _TEXT),
        ("position", _LONG),
        ("batch_id", _TEXT),
        ("rows_source", _LONG),
        ("rows_destination", _LONG),
        ("digest_source", _TEXT),
        ("digest_destination", _TEXT),
        ("buckets_total", _INT),
        ("buckets_dirty", _INT),
        ("missing", _LONG),
        ("extra", _LONG),
        ("different", _LONG),
        ("representation", _LONG),
        ("late", _LONG),
        ("in_flight", _LONG),
        ("columns_compared", _INT),
        ("left_out", _TEXT),
        ("by_value", _TEXT),
        ("condition", _TEXT),
        ("seconds", "DOUBLE PRECISION"),
        ("bytes", _LONG),
    ),
)
"""What each comparison of the target with its source came to; ``left_out`` and ``by_value`` are JSON."""
RECONCILE_DIFFERENCE = MetaTable(
    "reconcile_difference",
    (
        ("run_id", _TEXT),
        ("key", _TEXT),
        ("kind", _TEXT),
        ("columns", _TEXT),
        ("source", _TEXT),
        ("destination", _TEXT),
        ("position", _LONG),
        ("topic", _TEXT),
        ("partition", _INT),
        ("offset", _LONG),
        ("op", _TEXT),
        ("cause", _TEXT),
        ("repaired_at", _TIME),
    ),
)
"""``key``, ``source`` and ``destination`` are JSON objects of texts, ``columns`` a JSON array of names."""
_DIGESTS = (("rows_source", _LONG), ("rows_destination", _LONG), ("digest_source", _TEXT), ("digest_destination", _TEXT))
RECONCILE_BUCKET = MetaTable("reconcile_bucket", (("run_id", _TEXT), ("bucket", _INT), *_DIGESTS))
"""The dirty buckets of a run, with what each side came to; in the others both came to the same."""

LOAD_RANGE = MetaTable(
    "load_range",
    (
        ("generation", _INT),
        ("number", _INT),
        ("low", _TEXT),
        ("high", _TEXT),
        ("storage", _TEXT),
        ("rows", _LONG),
        ("position", _LONG),
        ("done", "BOOLEAN"),
        ("loaded_at", _TIME),
    ),
)
"""The parts of a table that is read at the source itself (core.types.LoadRange), those of the last generation that was."""

TABLES = (
    *(CHECKPOINT, BATCH, QUARANTINE, DELETED_KEYS, SCHEMA_HISTORY, TABLE_STATE, WRITER),
    *(RECONCILE_RUN, RECONCILE_DIFFERENCE, RECONCILE_BUCKET, LOAD_RANGE),
)

NAMES = (*(table.name for table in TABLES), "migration", "table_status")
"""All that the meta schema holds."""


def migrations(spelling: Spelling, schema: str) -> tuple[tuple[str, ...], ...]:
    """The statements of each version, in order; version n is the n-th. The first makes all tables as they are now, and the later ones
    bring those up that an older version of the service made."""
    return tuple(tuple(step(spelling, schema)) for step in (_first, _second, _third, _fourth, _fifth, _sixth, _seventh, _eighth))


def _first(spelling: Spelling, schema: str) -> Iterator[str]:
    yield from _made(spelling, schema, TABLES)
    yield from _viewed(spelling, schema)


def _made(spelling: Spelling, schema: str, tables: Sequence[MetaTable]) -> Iterator[str]:
    for table in tables:
        columns = [f"{spelling.quote(name)} {_TEXT} NOT NULL" for name in SCOPE]
        columns += [f"{spelling.quote(name)} {type_.format(blob=spelling.blob, image=spelling.image)}" for name, type_ in table.columns]
        if table.unique:
            columns.append(f"PRIMARY KEY ({', '.join(map(spelling.quote, SCOPE))})")
        yield f"CREATE TABLE IF NOT EXISTS {spelling.quote(schema, table.name)} ({', '.join(columns)})"


def _viewed(spelling: Spelling, schema: str) -> Iterator[str]:
    yield f"DROP VIEW IF EXISTS {spelling.quote(schema, 'table_status')}"
    yield _status_view(spelling, schema)


def _second(spelling: Spelling, schema: str) -> Iterator[str]:
    for name in ("last_record", "last_order", "last_seq"):
        yield f"ALTER TABLE {spelling.quote(schema, CHECKPOINT.name)} ADD COLUMN {name} {_LONG}"


def _third(spelling: Spelling, schema: str) -> Iterator[str]:
    yield from _made(spelling, schema, (RECONCILE_RUN, RECONCILE_DIFFERENCE, RECONCILE_BUCKET))
    yield from _viewed(spelling, schema)


def _fourth(spelling: Spelling, schema: str) -> Iterator[str]:
    for table, columns in ((RECONCILE_BUCKET, _DIGESTS), (RECONCILE_RUN, (("by_value", _TEXT),))):
        for name, type_ in columns:
            yield f"ALTER TABLE {spelling.quote(schema, table.name)} ADD COLUMN IF NOT EXISTS {name} {type_}"


def _fifth(spelling: Spelling, schema: str) -> Iterator[str]:
    for name, type_ in (("identity", _TEXT), ("identity_at", _LONG), ("columns_at", _LONG)):
        yield f"ALTER TABLE {spelling.quote(schema, TABLE_STATE.name)} ADD COLUMN IF NOT EXISTS {name} {type_}"
    yield from _viewed(spelling, schema)


def _sixth(spelling: Spelling, schema: str) -> Iterator[str]:
    yield f"ALTER TABLE {spelling.quote(schema, DELETED_KEYS.name)} ADD COLUMN IF NOT EXISTS minor {_LONG} DEFAULT 0"


def _seventh(spelling: Spelling, schema: str) -> Iterator[str]:
    yield from _made(spelling, schema, (LOAD_RANGE,))


def _eighth(spelling: Spelling, schema: str) -> Iterator[str]:
    yield f"ALTER TABLE {spelling.quote(schema, CHECKPOINT.name)} ADD COLUMN IF NOT EXISTS mark {_TEXT}"


def _status_view(spelling: Spelling, schema: str) -> str:
    """Freshness is computed when it is read, so that a stopped service looks stale and not fresh."""
    q = spelling.quote
    scope = ", ".join(map(q, SCOPE))

    def joined(alias: str) -> str:
        return " AND ".join(f"{alias}.{q(name)} = s.{q(name)}" for name in SCOPE)

    counts = ("applied", "folded", "duplicate", "parked", "filtered")
    counted = ", ".join(f"CAST(COALESCE(b.{name}, 0) AS BIGINT) AS {name}" for name in counts)
    summed = ", ".join(f"SUM({name}) AS {name}" for name in counts)
    now_us = spelling.us_of_time.format(time="now()")
    return f"""CREATE VIEW {q(schema, "table_status")} AS
SELECT {", ".join(f"s.{q(name)}" for name in SCOPE)}, s.state, s.generation, s.resync, s.complete_through,
  {spelling.time_of_us.format(us="s.complete_at_us")} AS complete_at,
  CASE WHEN s.complete_at_us < {now_us} THEN ({now_us} - s.complete_at_us) / 1000000.0
       WHEN s.complete_at_us IS NOT NULL THEN 0 END AS freshness_seconds,
  c.synced_at, c.high_commit, c.high_record,
  {counted}, COALESCE(p.parked_open, 0) AS parked_open,
  v.verified_at, v.verified_position,
  s.state IN ('streaming', 'paused') AND NOT s.resync AND s.complete_through IS NOT NULL
    AND s.complete_through >= COALESCE(s.columns_at, 0) AND COALESCE(p.parked_open, 0) = 0 AS is_complete,
  s.error_code, s.error_message, s.error_hint, {spelling.time_of_us.format(us="s.error_at_us")} AS error_at
FROM {q(schema, "table_state")} AS s
LEFT JOIN (SELECT {scope}, MAX(committed_at) AS synced_at, MAX(high_commit) AS high_commit, MAX(high_record) AS high_record
  FROM {q(schema, "checkpoint")} GROUP BY {scope}) AS c ON {joined("c")}
LEFT JOIN (SELECT {scope}, {summed} FROM {q(schema, "batch")} GROUP BY {scope}) AS b ON {joined("b")}
LEFT JOIN (SELECT {scope}, COUNT(*) AS parked_open FROM {q(schema, "quarantine")} WHERE state = 'parked' GROUP BY {scope}) AS p
  ON {joined("p")}
LEFT JOIN (SELECT {scope}, MAX({q("at")}) AS verified_at, MAX({q("position")}) AS verified_position
  FROM {q(schema, "reconcile_run")} WHERE {proves(spelling)} GROUP BY {scope}) AS v
  ON {joined("v")}"""


def proves(spelling: Spelling) -> str:
    """The condition on RECONCILE_RUN that a run found all rows and values equal."""
    return f"status = 'match' AND method IN ('stream', 'pushdown', 'multiset') AND {spelling.quote('condition')} IS NULL"


def retention(spelling: Spelling, schema: str) -> tuple[str, ...]:
    """The statements that remove what nobody needs any more."""

    now_us, q = spelling.us_of_time.format(time="now()"), spelling.quote

    def older(table: str, column: str, days: int) -> str:
        then = spelling.time_of_us.format(us=f"({now_us} - {days * 86_400_000_000})")
        return f"DELETE FROM {spelling.quote(schema, table)} AS k WHERE {column} < {then}"

    # A record whose key could not be read may be of one that was deleted since: replayed, it must not bring the row back.
    same = " AND ".join(f"r.{spelling.quote(name)} = k.{spelling.quote(name)}" for name in SCOPE)
    unread = f"SELECT 1 FROM {spelling.quote(schema, 'quarantine')} AS r WHERE r.state = 'parked' AND r.key_text IS NULL AND {same}"
    return (
        f"{older('deleted_keys', 'deleted_at', DELETED_KEYS_DAYS)} AND NOT EXISTS ({unread})",
        older("batch", "committed_at", BATCH_DAYS),
        # What was discarded says for good from which rows no unsent value may be taken.
        older("quarantine", "decided_at", QUARANTINE_DECIDED_DAYS) + " AND state IN ('replayed', 'superseded')",
        older("reconcile_run", spelling.quote("at"), RECONCILE_DAYS),
        *(
            f"DELETE FROM {q(schema, table)} WHERE run_id NOT IN (SELECT run_id FROM {q(schema, 'reconcile_run')})"
            for table in ("reconcile_difference", "reconcile_bucket")
        ),
    )
