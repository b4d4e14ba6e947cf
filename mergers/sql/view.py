"""A read of one target as it stands at one moment, with the offsets up to which the log is in it; what reconciliation compares.

Promises: everything that one ``View`` reads belongs to one state of the warehouse, taken when it was opened; it never holds up the merges
and writes nothing. A soft-deleted row counts as no row. It may be used by one thread beside the line's.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

import pyarrow as pa

from cdc_service.core.canonical import Canonical, digests
from cdc_service.core.types import Column, LogId
from mergers.sql import meta
from mergers.sql.statements import TargetSql

TEXTS_AT_ONCE = 500


class View(abc.ABC):
    """reconcile.protocol.View over SQL. A destination says how its rows become Arrow, and how keys come into a statement."""

    native = False
    canonical: Canonical

    def __init__(self, statements: TargetSql) -> None:
        self._s = statements
        self._checkpoints = self._read_checkpoints()  # First, so that the state is this moment's.

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None: ...

    @abc.abstractmethod
    def read(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows of a statement, in the Arrow types of the columns' logical types."""

    @abc.abstractmethod
    def matching(self, key: Sequence[Column], keys: pa.Table) -> str:
        """A condition on the target's rows: their key is one of ``keys``."""

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        return [row for batch in self.read(sql) for row in batch.to_pylist()]

    def _scope(self) -> str:
        d = self._s.spelling
        return " AND ".join(f"{d.quote(n)} = {d.literal(v)}" for n, v in zip(meta.SCOPE, self._s.scope, strict=True))

    def _read_checkpoints(self) -> list[dict[str, Any]]:
        q = self._s.spelling.quote
        return self._rows(
            f"SELECT cluster_id, topic, topic_id, {q('partition')} AS part, next_offset, batch_id, committed_at"
            f" FROM {self._s.meta(meta.CHECKPOINT)} WHERE {self._scope()}"
        )

    @property
    def batch_id(self) -> str | None:
        """The last batch that is in it."""
        known = [row for row in self._checkpoints if row["batch_id"] is not None]
        return max(known, key=lambda row: row["committed_at"])["batch_id"] if known else None

    def checkpoints(self, log: LogId) -> Mapping[int, int]:
        own = (log.cluster_id, log.topic, log.topic_id)
        return {r["part"]: r["next_offset"] for r in self._checkpoints if (r["cluster_id"], r["topic"], r["topic_id"]) == own}

    def _live(self, *conditions: str | None) -> str:
        said = [f"({c})" for c in (self._s.live("t"), *conditions) if c]
        return f"{self._s.place} AS t" + (f" WHERE {' AND '.join(said)}" if said else "")

    def count(self, where: str | None = None) -> int:
        return int(self._rows(f"SELECT COUNT(*) AS n FROM {self._live(where)}")[0]["n"])

    def forms(self, columns: Sequence[Column]) -> Mapping[str, str]:
        return {c.name: self._form(c.name) for c in columns}

    def texts(self, columns: Sequence[Column]) -> Mapping[str, str]:
        known = {c.name: self.canonical.text(c.type, self._form(c.name)) for c in columns}
        return {name: text for name, text in known.items() if text is not None}

    def select(self, expressions: Mapping[str, str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        named = ", ".join(f"{sql} AS {self._s.spelling.quote(name)}" for name, sql in expressions.items())
        return self.read(f"SELECT {named} FROM {self._live(where)}")

    def digests(self, bucket: str, place: str, hash_: str, where: str | None = None, most: int | None = None) -> Iterator[pa.RecordBatch]:
        tail = "" if most is None else f" LIMIT {most}"
        return self.read(digests(self._live(where) + tail, bucket, place, hash_))

    def fetch(self, key: Sequence[Column], columns: Sequence[str], keys: pa.Table) -> pa.Table:
        q, kept = self._s.spelling.quote, {name for name, *_ in self._s.metadata}
        named = [f"{'CAST(NULL AS BIGINT)' if n.startswith('_cdc_') and n not in kept else self._form(n)} AS {q(n)}" for n in columns]
        batches = list(self.read(f"SELECT {', '.join(named)} FROM {self._live(self.matching(key, keys))}"))
        return pa.Table.from_batches(batches) if batches else pa.table({n: pa.nulls(0) for n in columns})

    def _form(self, name: str) -> str:
        """The expression by which a column is read."""
        return self._s.spelling.quote(name)

    def parked(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int, str]]:
        """Of canonical key texts those with a record in quarantine that nobody decided on: partition, offset, message."""
        table = self._s.meta(meta.QUARANTINE)
        return {r["k"]: (r["p"], r["o"], r["message"]) for r in self._of_keys(table, "key_text", keys, "state = 'parked'", "message")}

    def batches(self, places: Collection[tuple[int, int]]) -> Mapping[tuple[int, int], tuple[str, datetime]]:
        """The batch in which the record at each (partition, offset) was merged, and when; as far back as the ledger reaches."""
        q, found, wanted = self._s.spelling.quote, dict[tuple[int, int], tuple[str, datetime]](), sorted(places)
        for first in range(0, len(wanted), TEXTS_AT_ONCE):
            listed = ", ".join(f"({p:d}, {o:d})" for p, o in wanted[first : first + TEXTS_AT_ONCE])
            rows = self._rows(
                f"SELECT w.p, w.o, b.batch_id, b.committed_at FROM (VALUES {listed}) AS w(p, o) JOIN {self._s.meta(meta.BATCH)} AS b"
                f" ON b.{q('partition')} = w.p AND b.start_offset <= w.o AND b.stop_offset > w.o"
                f" WHERE {self._scope()} ORDER BY b.committed_at"
            )
            found |= {(r["p"], r["o"]): (r["batch_id"], r["committed_at"]) for r in rows}
        return found

    def deleted(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Of canonical key texts those whose delete is remembered: its partition and offset."""
        return {r["k"]: (r["p"], r["o"]) for r in self._of_keys(self._s.meta(meta.DELETED_KEYS), self._s.spelling.quote("key"), keys)}

    def _of_keys(self, table: str, column: str, keys: Sequence[str], condition: str = "", *more: str) -> Iterator[dict[str, Any]]:
        d = self._s.spelling
        for first in range(0, len(keys), TEXTS_AT_ONCE):
            listed = ", ".join(map(d.literal, keys[first : first + TEXTS_AT_ONCE]))
            also = f" AND {condition}" if condition else ""
            yield from self._rows(
                f"SELECT {', '.join([f'{column} AS k', d.quote('partition') + ' AS p', d.quote('offset') + ' AS o', *more])} FROM {table}"
                f" WHERE {self._scope()} AND {column} IN ({listed}){also}"
            )
