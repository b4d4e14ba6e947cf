"""Targets as tables: whether one can be there, how it is made and changed, what somebody else did to it.

Promises: the history of a target's schemas says which version it has; each step of a change is left out where it is done already.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cdc_service.core.errors import CdcError, Fenced, TableStopped
from cdc_service.core.evolve import AddColumn, Change, CreateTable, DropColumn, RenameColumn, RestoreColumn, WidenType
from cdc_service.core.types import Column, TableSchema, Target
from cdc_service.ports.destination import Misfit
from mergers.sql import meta, table_states
from mergers.sql.connection import Connection
from mergers.sql.modes import RESERVED
from mergers.sql.schema_text import schema_from_json, schema_to_json
from mergers.sql.session import SqlSession
from mergers.sql.staging import STAGE
from mergers.sql.statements import TargetSql

ANOTHER_TARGET = "give the table another target in the configuration"


class SqlTables(SqlSession):
    @abc.abstractmethod
    def fold(self, identifier: str) -> str: ...

    def misfit(self, target: Target, schema: TableSchema) -> Misfit | None:
        if self.fold(target.namespace) == self.fold(self._meta_schema) and self.fold(target.name) in map(self.fold, meta.NAMES):
            return Misfit(f"{target.source}: {target} is a table of this service's own", hint=ANOTHER_TARGET)
        seen = {self.fold(name): "a column of this service" for name in RESERVED}
        for column in schema.columns:
            folded = self.fold(column.name)
            if folded in seen:
                message = f"{schema.table}: the column {column.name} has the same name as {seen[folded]} at the destination"
                return Misfit(message, hint="rename the column at the source, or let the connector leave it out", column=column.name)
            seen[folded] = f"the column {column.name}"
        return None

    def lacking(self, targets: Sequence[Target]) -> Sequence[CdcError]:
        """Targets that are there and were never this service's: a first load would stop at them."""
        found: list[CdcError] = []
        for target in targets:
            there = self.connection().columns(target.namespace, target.name)
            if there is not None and self.fold("_cdc_gen") not in {self.fold(name) for name, _ in there}:
                message = f"{target} is there already and is not the table that {target.source} needs: it has no column _cdc_gen"
                cure = f"{ANOTHER_TARGET}, or move away what is there"
                found.append(CdcError(message, hint=cure, code="drift"))
        return found

    def table_rows(self, target: Target) -> int | None:
        s = self._sql(target)
        if self.connection().columns(target.namespace, target.name) is None:
            return None
        where = f" WHERE {live}" if (live := s.live("t")) else ""
        return int(self.connection().fetch(f"SELECT COUNT(*) FROM {s.place} AS t{where}")[0][0])

    def schemas(self, target: Target) -> Sequence[TableSchema]:
        return [replace(schema_from_json(text), version=version) for version, text in self._history(target)]

    def _history(self, target: Target) -> list[tuple[Any, ...]]:
        s = self._sql(target)
        sql = f'SELECT version, "schema" FROM {s.meta(meta.SCHEMA_HISTORY)} WHERE {s.in_scope()} ORDER BY version'
        return self.connection().fetch(sql, s.scope)

    # Changes

    def evolve(self, target: Target, changes: Sequence[Change], schema: TableSchema, generation: int | None = None) -> None:
        if (misfit := self.misfit(target, schema)) is not None:
            raise misfit
        s = self._sql(target, schema)
        with self._locked(s) as c:
            table_states.expect(c, s, generation)
            self._evolve(c, s, changes, schema)

    def _evolve(self, c: Connection, s: TargetSql, changes: Sequence[Change], schema: TableSchema) -> None:
        target, ran = s.target, list[str]()
        history, text = self._history(target), schema_to_json(schema)
        newest = history[-1] if history else (0, "")
        if newest[0] != schema.version and newest[1] != text:
            raise Fenced(f"{target}: another process changed its schema meanwhile", hint="nothing to do: it is read again")
        if newest[1] == text:
            return  # It was done before, and only the reply was lost.
        for change in changes:
            for sql in self._ddl(c, s, target, change):
                c.execute(sql)
                ran.append(sql)
        if any(isinstance(change, CreateTable) for change in changes) and (found := self.drift(target, schema)):
            raise TableStopped(
                f"{target} is there already and is not the table that {target.source} needs: {'; '.join(found)}",
                state="drift",
                hint="name another target for the table in the configuration, or move the existing one away",
            )
        change_text = ", ".join(map(_describe, changes))
        row = [*s.scope, newest[0] + 1, change_text, ";\n".join(ran), schema.fingerprint, text]
        c.execute(s.insert(meta.SCHEMA_HISTORY, 1, now="at"), row)

    def _ddl(self, c: Connection, s: TargetSql, target: Target, change: Change) -> Iterator[str]:
        """What is done already is left out: some databases end the transaction at each of these."""
        q, type_of = self.spelling.quote, self.spelling.column_type
        there = {self.fold(name): type_ for name, type_ in c.columns(target.namespace, target.name) or ()}
        match change:
            case CreateTable(schema):
                columns = [*((col.name, col.type) for col in schema.columns), *((name, t) for name, t, *_ in s.metadata)]
                parts = [*(f"{q(name)} {type_of(type_)}" for name, type_ in columns), *self._constraints(s, schema)]
                yield from self._make_namespace(target.namespace)
                yield f"CREATE TABLE IF NOT EXISTS {s.place} ({', '.join(parts)})"
            case AddColumn(column):
                # The default stays on the column: it is harmless, because every row that is written names all columns.
                if self.fold(column.name) not in there:
                    yield f"ALTER TABLE {s.place} ADD COLUMN {q(column.name)} {type_of(column.type)}{self._default(c, column)}"
            case WidenType(column, _):
                if there.get(self.fold(column.name)) != type_of(column.type):
                    for sql in self.spelling.widen:
                        yield sql.format(place=s.place, column=q(column.name), type=type_of(column.type))
            case RenameColumn(before, column):
                if self.fold(column.name) not in there:
                    yield f"ALTER TABLE {s.place} RENAME COLUMN {q(before)} TO {q(column.name)}"
            case DropColumn() | RestoreColumn():
                pass

    def _make_namespace(self, namespace: str) -> Sequence[str]:
        """The statements that make a namespace which may be there already."""
        return [f"CREATE SCHEMA IF NOT EXISTS {self.spelling.quote(namespace)}"] if self.spelling.namespaces else []

    def _constraints(self, s: TargetSql, schema: TableSchema) -> Sequence[str]:
        """What stands behind the columns where a target is made, such as its key."""
        return ()

    def _default(self, c: Connection, column: Column) -> str:
        """A DEFAULT clause that gives existing rows exactly the column's default; empty where that is NULL."""
        if column.default is None:
            return ""
        type_ = self.spelling.column_type(column.type)
        refused = TableStopped(
            f"the default of the new column {column.name} ({column.type}) cannot be written exactly into existing rows",
            state="schema_stopped",
            hint="load the table anew: cdc resync",
        )
        try:
            value = pa.array([column.default], column.type.arrow)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise refused from None
        c.stage(STAGE, pa.table({"x": value}), [type_])
        stage = self.spelling.quote(self.spelling.temporary, STAGE)
        test = self.spelling.text_exact.format(c="x", t=type_) or "TRUE"
        ((text, exact),) = c.fetch(f"SELECT CAST(x AS VARCHAR), {test} FROM {stage}")
        c.unstage(STAGE)
        if not exact:
            raise refused
        return f" DEFAULT {self.spelling.literal(text)}"

    def drift(self, target: Target, schema: TableSchema) -> Sequence[str]:
        there = self.connection().columns(target.namespace, target.name)
        if there is None:
            return [f"the table {target} is gone"]
        found = {self.fold(name): (name, type_) for name, type_ in there}
        expected = [(c.name, c.type) for c in schema.columns] + [(name, t) for name, t, *_ in self._sql(target).metadata]
        sentences = []
        for name, type_ in expected:
            _, actual = found.pop(self.fold(name), ("", None))
            wanted = self.spelling.column_type(type_)
            if actual is None:
                sentences.append(f"column {name} is gone")
            elif actual != wanted:
                sentences.append(f"column {name} is {actual} and was {wanted}")
        return [*sentences, *(f"column {name} was added" for name, _ in found.values())]


def _describe(change: Change) -> str:
    match change:
        case CreateTable():
            return "create table"
        case AddColumn(column):
            return f"add column {column.name} {column.type}"
        case WidenType(column, before):
            return f"widen column {column.name} from {before} to {column.type}"
        case DropColumn(column):
            return f"drop column {column.name} (kept, NULL from now on)"
        case RestoreColumn(column):
            return f"column {column.name} is there again"
        case RenameColumn(before, column):
            return f"rename column {before} to {column.name}"
