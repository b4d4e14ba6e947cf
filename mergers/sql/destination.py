"""The destination that every SQL database is: rows and state in one database, so that one transaction holds both.

Each part is a class of its own: the state (mergers.sql.state), the tables (mergers.sql.tables), their rows (mergers.sql.writer). They
share the connection, its transaction and the lock of a target (mergers.sql.session). A database adds a spelling, a connection and what is
its own.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from cdc_service.core.errors import ConfigError
from cdc_service.core.types import LogId, TableSchema, Target
from cdc_service.ports.destination import Capabilities, Destination, TableState
from mergers.sql import meta, quarantine, table_states
from mergers.sql.connection import Connection, run
from mergers.sql.modes import kept_as
from mergers.sql.state import SqlState
from mergers.sql.writer import SqlWriter

if TYPE_CHECKING:
    from mergers.sql.view import View


class SqlDestination(SqlWriter, SqlState):
    """ports.destination.Destination; a subclass opens the connection, and says how to query and to let go."""

    capabilities: Capabilities

    @abc.abstractmethod
    def probe(self) -> str: ...

    @abc.abstractmethod
    def query(self, sql: str, *, rows_max: int) -> pa.Table: ...

    @abc.abstractmethod
    def release(self) -> None: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    def prepare(self) -> None:
        with self._transaction() as c:
            self._prepare(c)

    def _prepare(self, c: Connection) -> None:
        q = self.spelling.quote
        for sql in self._make_namespace(self._meta_schema):
            c.execute(sql)
        version_table = q(self._meta_schema, "migration")
        c.execute(f"CREATE TABLE IF NOT EXISTS {version_table} (version INTEGER, {q('at')} TIMESTAMP WITH TIME ZONE)")
        done = c.fetch(f"SELECT COALESCE(MAX(version), 0) FROM {version_table}")[0][0]
        for version, statements in enumerate(meta.migrations(self.spelling, self._meta_schema), start=1):
            if version > done:
                for sql in statements if version == 1 or done else ():
                    c.execute(sql)
                c.execute(f"INSERT INTO {version_table} VALUES ({self.spelling.placeholder}, now())", [version])
        self._prune()

    def begin_anew(
        self, target: Target, log: LogId, starts: Mapping[int, int], state: TableState, *, forget: bool = True, retire: bool = False
    ) -> TableState:
        s = self._sql(target)
        with self._locked(s) as c:
            kept = table_states.store(c, s, state)
            run(c, quarantine.settle_all(s, "the table was read anew (resync)"))
            gone = [meta.CHECKPOINT] if forget else []
            if retire:
                if self._history(target):
                    there = [name for name, _ in c.columns(target.namespace, target.name) or ()]
                    self._sql(replace(target, mode=kept_as(there))).retire(c, state.generation - 1)
                gone += [meta.DELETED_KEYS, meta.SCHEMA_HISTORY]
            for table in gone:
                c.execute(f"DELETE FROM {s.meta(table)} WHERE {s.in_scope()}", s.scope)
            self._claim(c, s, log, starts)
        return kept

    def view(self, target: Target, schema: TableSchema) -> View:
        raise ConfigError(f"{target}: this destination cannot be compared with its source yet", code="no_view")

    @contextmanager
    def views(self) -> Iterator[Callable[[Target, TableSchema], View]]:
        """Where a view costs nothing to open."""
        yield self.view


if TYPE_CHECKING:

    def _has_all(destination: SqlDestination) -> Destination:
        return destination
