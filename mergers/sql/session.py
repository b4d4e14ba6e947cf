"""What every part of the engine stands on: the connection, a transaction, the lock of a target, and the statements of a target.

Promises: two writers of one target are decided by the row that it has in WRITER, by statements that every warehouse has.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cdc_service.core.errors import Fenced
from cdc_service.core.types import TableSchema, Target
from mergers.sql import meta
from mergers.sql.connection import Connection, Mismatch, run
from mergers.sql.modes import MODES
from mergers.sql.spelling import Spelling
from mergers.sql.statements import TargetSql

PRUNE_SECONDS = 3600


class SqlSession(abc.ABC):
    spelling: Spelling

    def __init__(self, *, pipeline: str, meta_schema: str) -> None:
        self._pipeline = pipeline
        self._meta_schema = meta_schema
        self._pruned = float("-inf")
        self._enrolled: set[tuple[str, str, str]] = set()

    @abc.abstractmethod
    def connection(self) -> Connection:
        """The one connection of the line, opened when it is not."""

    def _sql(self, target: Target, table: TableSchema | None = None) -> TargetSql:
        empty = TableSchema(target.source, (), ())
        scope = (self._pipeline, str(target.source), str(target))
        return MODES[target.mode](self.spelling, self._meta_schema, scope, target, table or empty)

    # Transactions

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        c = self.connection()
        try:
            c.begin()
            yield c
            c.commit()
        except BaseException:
            c.rollback()
            raise

    @contextmanager
    def _locked(self, s: TargetSql) -> Iterator[Connection]:
        """A transaction in which no other writer changes the target: two that see each other's half would leave a row that one of them
        removed, or lose a column that one of them added."""
        self._enrol(s)
        with self._transaction() as c:
            lock = f"SELECT epoch FROM {s.meta(meta.WRITER)} WHERE {s.in_scope()}{self.spelling.row_lock}"
            if self.spelling.row_lock and not c.fetch(lock, s.scope):
                raise self._struck(s)
            yield c

    def _enrol(self, s: TargetSql) -> None:
        """Gives the target its row in WRITER, of which everything that two writers must not do at the same time begins with a lock or an
        update. The row is made before that, in a transaction of its own: an insert that a unique index refuses ends the transaction that
        it is in, and where nothing is unique two rows do no harm, because they are counted up together."""
        if s.scope in self._enrolled:
            return
        c = self.connection()
        try:
            run(c, s.insert_once(meta.WRITER, [0]))
        except (Fenced, Mismatch):
            if not c.fetch(f"SELECT epoch FROM {s.meta(meta.WRITER)} WHERE {s.in_scope()}", s.scope):
                raise
            # Another process was first.
        self._enrolled.add(s.scope)

    def _struck(self, s: TargetSql) -> Fenced:
        self._enrolled.discard(s.scope)
        return Fenced(f"{s.target}: somebody removed its row from {s.meta(meta.WRITER)}", hint="nothing to do: it is made again")

    def _next_epoch(self, c: Connection, s: TargetSql) -> int:
        """A number that no other transaction gets: the update makes whoever wants one too wait, or fail."""
        place = s.meta(meta.WRITER)
        if not c.execute(f"UPDATE {place} SET epoch = epoch + 1 WHERE {s.in_scope()}", s.scope):
            raise self._struck(s)
        return int(c.fetch(f"SELECT MAX(epoch) FROM {place} WHERE {s.in_scope()}", s.scope)[0][0])

    def _prune(self) -> None:
        if time.monotonic() - self._pruned >= PRUNE_SECONDS:
            for sql in meta.retention(self.spelling, self._meta_schema):
                self.connection().execute(sql)
            self._pruned = time.monotonic()
