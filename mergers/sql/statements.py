"""What is said to a database about one target, written for any spelling: text and parameters, nothing runs here. What a target's mode
decides is said by the subclasses (mergers.sql.modes).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from cdc_service.core.logical import LogicalType
from cdc_service.core.types import Delta, LogId, TableSchema, Target
from mergers.sql.connection import Connection, Discard
from mergers.sql.meta import CHECKPOINT, QUARANTINE, SCHEMA_HISTORY, SCOPE, MetaTable
from mergers.sql.spelling import Spelling, Statement
from mergers.sql.staging import PARKED, STAGE, Metadata, stage_table

High = tuple[int | None, int | None]
"""The highest (commit, record) of a batch in one partition."""


@dataclass(frozen=True, slots=True)
class TargetSql(abc.ABC):
    """The statements for one target; each mode is a subclass. ``scope`` is (pipeline, source table, target table) as the meta tables hold
    it, ``table`` the target's own schema where rows are written."""

    spelling: Spelling
    meta_schema: str
    scope: tuple[str, str, str]
    target: Target
    table: TableSchema

    # What a mode decides

    by_key: ClassVar[bool]
    """Whether the target holds one row a key of the source."""

    @property
    @abc.abstractmethod
    def metadata(self) -> tuple[Metadata, ...]:
        """The columns of the target behind those of its source."""

    def live(self, alias: str) -> str:
        """The condition that a row of the target stands for one of the source; empty where all do."""
        return ""

    def stage(self, delta: Delta) -> tuple[pa.Table, list[LogicalType]]:
        """The delta as one Arrow table with the staged names, and the logical types its columns are staged as."""
        return stage_table(delta, self.table)

    @abc.abstractmethod
    def apply(self, c: Connection, delta: Delta, watermark: tuple[int, int] | None, discard: Discard) -> Mapping[int, int]:
        """Writes what is staged and new to the target, inside of the merge's transaction; how many changes that were of each partition."""

    @abc.abstractmethod
    def sweep(self, generation: int, record: int) -> Statement:
        """What the end of a resync, or a truncation, takes from the rows with a version below ``(generation, record)``."""

    @abc.abstractmethod
    def retire(self, c: Connection, generation: int) -> None:
        """Makes room for a new table of this name; ``generation`` is the last of the one that is there."""

    # Places and conditions

    def meta(self, table: MetaTable) -> str:
        return self.spelling.quote(self.meta_schema, table.name)

    @property
    def place(self) -> str:
        return self.spelling.quote(self.target.namespace, self.target.name)

    def temporary(self, name: str) -> str:
        return self.spelling.quote(self.spelling.temporary, name)

    def in_scope(self, alias: str = "") -> str:
        """A condition of three parameters: the scope."""
        prefix = f"{alias}." if alias else ""
        return " AND ".join(f"{prefix}{self.spelling.quote(name)} = {self.spelling.placeholder}" for name in SCOPE)

    def same_key(self, prefix: str = "c", alias: str = "t") -> str:
        """The join of a staged row with the target's row of its own key (c) or of its base row's (b)."""
        places = {name: i for i, name in enumerate(self.table.names)}
        pairs = ((f"{prefix}{places[name] if prefix == 'c' else j}", name) for j, name in enumerate(self.table.key))
        return " AND ".join(f"{alias}.{self.spelling.quote(name)} = s.{staged}" for staged, name in pairs)

    def staged(self, chosen: str, params: Sequence[object] = ()) -> Statement:
        """The ``n`` of the staged rows that the clauses ``chosen`` (JOIN, WHERE) leave."""
        return Statement(f"SELECT s.n FROM {self.temporary(STAGE)} AS s {chosen}", params)

    # Rows of the service's own tables

    def insert(self, table: MetaTable, rows: int, *, now: str = "") -> str:
        """An INSERT of ``rows`` rows of parameters, the scope first; the column ``now`` takes no parameter but the server's clock."""
        q, names = self.spelling.quote, table.names
        values = f"({', '.join('now()' if name == now else self.spelling.placeholder for name in names)})"
        return f"INSERT INTO {self.meta(table)} ({', '.join(map(q, names))}) VALUES {', '.join([values] * rows)}"

    def insert_once(self, table: MetaTable, values: Sequence[object], *, now: str = "") -> Statement:
        """An INSERT of one row where the scope has none yet; ``now`` as in ``insert``."""
        q, names = self.spelling.quote, table.names
        row = ", ".join("now()" if name == now else self.spelling.placeholder for name in names)
        sql = f"""INSERT INTO {self.meta(table)} ({", ".join(map(q, names))}) SELECT {row} FROM (SELECT 1 AS one) AS o
WHERE NOT EXISTS (SELECT 1 FROM {self.meta(table)} AS k WHERE {self.in_scope("k")})"""
        return Statement(sql, [*self.scope, *values, *self.scope])

    def park(self) -> Statement:
        """Rejected records out of the staged table PARKED, which has the quarantine's columns up to ``state``."""
        q, p = self.spelling.quote, self.spelling.placeholder
        names = QUARANTINE.names[len(SCOPE) : QUARANTINE.names.index("state")]
        into = ", ".join(map(q, (*SCOPE, *names, "state", "parked_at")))
        picked = ", ".join(f"r.{q(name)}" for name in names)
        rows = self.temporary(PARKED)
        sql = f"INSERT INTO {self.meta(QUARANTINE)} ({into}) SELECT {p}, {p}, {p}, {picked}, 'parked', now() FROM {rows} AS r"
        return Statement(sql, self.scope)

    # The checkpoint

    def swap(self, log: LogId, delta: Delta, epochs: Mapping[int, int], highs: Mapping[int, High]) -> Statement:
        """The compare-and-swap: one statement for all partitions; it must hit as many rows as there are spans. It hits none where another
        writer has given the target a newer schema."""
        p = self.spelling.placeholder
        longs = ("start", "stop", "epoch", "com", "rec", "snap", "last_rec", "last_ord", "last_seq")
        types = {"batch": "VARCHAR", "part": "INTEGER", **dict.fromkeys(longs, "BIGINT"), "mark": "VARCHAR"}
        # All parameters but those of WHERE are in here: some databases number them by clauses, and not as they stand in the text.
        row = "SELECT " + ", ".join(f"CAST({p} AS {type_}) AS {name}" for name, type_ in types.items())
        values: list[object] = []
        for span in delta.spans:
            commit, record = highs.get(span.partition, (None, None))
            values += [delta.batch_id, span.partition, span.start, span.stop, epochs.get(span.partition, -1)]
            values += [commit, record, delta.snapshot_record]
            tail = delta.tails.get(span.partition)
            values += [None, None, None] if tail is None else [tail.record, tail.order, tail.seq]
            values.append(delta.mark)
        sql = f"""UPDATE {self.meta(CHECKPOINT)} AS k SET next_offset = v.stop, batch_id = v.batch, committed_at = now(),
  high_commit = GREATEST(COALESCE(k.high_commit, v.com), COALESCE(v.com, k.high_commit)),
  high_record = GREATEST(COALESCE(k.high_record, v.rec), COALESCE(v.rec, k.high_record)),
  high_snapshot = GREATEST(COALESCE(k.high_snapshot, v.snap), COALESCE(v.snap, k.high_snapshot)),
  last_record = COALESCE(v.last_rec, k.last_record),
  last_order = CASE WHEN v.last_rec IS NULL THEN k.last_order ELSE v.last_ord END,
  last_seq = COALESCE(v.last_seq, k.last_seq), mark = COALESCE(v.mark, k.mark)
FROM ({" UNION ALL ".join([row] * len(delta.spans))}) AS v
WHERE k.{self.spelling.quote("partition")} = v.part AND k.next_offset = v.start AND k.epoch = v.epoch
  AND {self.in_scope("k")} AND k.cluster_id = {p} AND k.topic = {p} AND k.topic_id = {p} AND {self.newest()} = {p}"""
        where = [*self.scope, log.cluster_id, log.topic, log.topic_id, *self.scope, self.table.version]
        return Statement(sql, [*values, *where])

    def newest(self) -> str:
        """The number of the target's newest schema, an expression of three parameters."""
        return f"(SELECT COALESCE(MAX(h.version), 0) FROM {self.meta(SCHEMA_HISTORY)} AS h WHERE {self.in_scope('h')})"

    # Rows of the target

    def insert_rows(self, rows: str, where: str = "") -> str:
        """Writes the staged table ``rows`` as rows of the target, which are called t."""
        names = ", ".join(map(self.spelling.quote, (*self.table.names, *(name for name, *_ in self.metadata))))
        values = ", ".join([*(f"s.c{i}" for i in range(len(self.table.columns))), *(value for _, _, value, _ in self.metadata)])
        alias = " AS t" if self.spelling.upsert else ""
        return f"INSERT INTO {self.place}{alias} ({names}) SELECT {values} FROM {self.temporary(rows)} AS s{where}"
