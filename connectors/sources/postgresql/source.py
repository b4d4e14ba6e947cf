# ruff: noqa: S608  (names enter statements through quoted() and types through format_type; values are parameters)
"""PostgreSQL as a source, through pgoutput: catalog facts, pre-flight checks with the DDL that cures, and the connector's configuration.

Positions are LSNs as integers. Reads only, except for the statements of ``preparation`` and ``release``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL, RowMapping
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cdc_service.core.errors import CdcError, ConfigError, Unavailable
from cdc_service.core.identity import Identities, Judgement
from cdc_service.core.names import Names
from cdc_service.core.types import TableId, TableSchema
from cdc_service.core.wording import some
from cdc_service.ports.capture import ConnectorProgress, Failures, LogHold
from cdc_service.ports.events import EventModel
from cdc_service.ports.reader import Load, Scan, Snapshot
from cdc_service.ports.source import (
    UNKNOWN_FILL,
    ConnectorRequest,
    Fill,
    Finding,
    Identity,
    Level,
    Offsets,
    Preparation,
    Reread,
    SignalRecord,
    SilentPart,
    Source,
    SourceColumn,
    SourceTable,
    Statement,
)
from connectors.sources.postgresql import catalog as sql
from connectors.sources.postgresql import findings as findings_of
from connectors.sources.postgresql import identity, kept, reading
from connectors.sources.postgresql import schema as learned
from connectors.sources.postgresql import slot as slots
from connectors.sources.postgresql.catalog import column_alone, leave_out, pattern, qualified, quoted
from connectors.sources.postgresql.events import PostgresEvents
from connectors.sources.postgresql.failures import PostgresFailures
from connectors.sources.postgresql.settings import PINNED, SETTINGS, keyless_settings, sealed, session_options, signal_settings
from connectors.sources.postgresql.settle import settle
from connectors.sources.postgresql.statements import grants, publication_statements, signal_table

CONNECT_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 30
REREAD_KEYS_MAX = 10_000
AWAITED_SECONDS = 60.0
"""A transaction that is open for longer is told before a slot is made, which would wait for it."""
_TLS = {"sslmode": "database.sslmode", "sslrootcert": "database.sslrootcert", "sslcert": "database.sslcert", "sslkey": "database.sslkey"}


def open_source(url: URL) -> Source:
    return PostgresSource(url)


class PostgresSource:
    """Source of PostgreSQL 14 and later."""

    name = "postgresql"
    connector_class = SETTINGS["connector.class"]
    events: EventModel = PostgresEvents()
    failures: Failures = PostgresFailures()

    def __init__(self, url: URL) -> None:
        self._url = url
        self._told: identity.Cache = {}
        self._engine = self._engine_of(poolclass=NullPool)
        self._kept = kept.pooled(lambda pool: self._engine_of(*kept.SETTINGS, connect=kept.CONNECT, **pool))

    def _engine_of(self, *settings: str, connect: Mapping[str, Any] = MappingProxyType({}), **pool: Any) -> Engine:
        given = str(self._url.query.get("options", ""))
        options = session_options(given, f"statement_timeout={STATEMENT_TIMEOUT_SECONDS * 1000}", *settings)
        return create_engine(
            self._url.set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": "cdc", "options": options, **connect},
            **pool,
        )

    def close(self) -> None:
        self._engine.dispose()
        self._kept.dispose()

    # -- the catalog

    def tables(self, only: TableId | None = None) -> tuple[SourceTable, ...]:
        name = {"schema": only and only.schema, "table": only and only.name}
        with self._connected() as connection:
            columns: dict[int, list[RowMapping]] = {}
            for row in _rows(connection, sql.COLUMNS, **name):
                columns.setdefault(row["oid"], []).append(row)
            return tuple(_table(row, columns.get(row["oid"], ())) for row in _rows(connection, sql.TABLES, **name))

    def schema(self, table: SourceTable, options: Mapping[str, str]) -> TableSchema | None:
        if not learned.may_be_told(options, SETTINGS):
            return None
        name = {"schema": table.table.schema, "table": table.table.name}
        with self._connected() as connection:
            columns = _rows(connection, learned.COLUMNS, **name)
            types = {row["oid"]: row for row in _rows(connection, learned.TYPES, **name)}
        return learned.schema_of(table, columns, types)

    def position(self) -> int:
        with self._connected() as connection:
            return int(_row(connection, sql.POSITION)["position"])

    def parse_position(self, text: str) -> int:
        found = re.fullmatch(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", text.strip())
        if found:
            return int(found[1], 16) << 32 | int(found[2], 16)
        if re.fullmatch(r"[0-9]{1,20}", text.strip()) and int(text) < 2**64:
            return int(text)
        raise ConfigError(f"{text!r} is not a log position", hint="write an LSN such as 16/B374D848, or a decimal number")

    def format_position(self, position: int) -> str:
        return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"

    def hold(self, names: Names) -> LogHold | None:
        with self._connected() as connection:
            row = _row(connection, sql.SLOT, slot=names.at_source)
        if row["slot_name"] is None:
            return None
        return LogHold(row["slot_name"], bool(row["active"]), row["wal_status"] or "lost", row["retained"], row["safe_wal_size"])

    def identities(
        self, tables: Sequence[TableId], names: Names, connector: Mapping[str, str] | None, options: Mapping[str, str]
    ) -> Identities:
        with self._connected(kept=True) as connection:
            return identity.read(connection, tables, names, connector, options.get("column.exclude.list", ""), self._told)

    def judge(self, table: TableId, before: str | None, after: str | None) -> Judgement:
        return identity.judge(table, before, after)

    # -- values that events do not carry

    def fill_of_added_column(self, table: TableId, column: str) -> Fill:
        with self._connected(table) as connection:
            leaves = _rows(connection, sql.FILL, schema=table.schema, table=table.name, column=column)
            fills = {_fill(connection, leaf, column) for leaf in leaves}
        return fills.pop() if len(fills) == 1 else UNKNOWN_FILL

    def reread(self, table: TableId, keys: pa.Table, columns: Sequence[str]) -> Reread:
        if keys.num_rows > REREAD_KEYS_MAX:
            raise ValueError(f"at most {REREAD_KEYS_MAX} keys can be read again at once, not {keys.num_rows}")
        with self._connected(table) as connection:
            types = {row["name"]: row for row in _rows(connection, sql.COLUMN_TYPES, schema=table.schema, table=table.name)}
            missing = [name for name in keys.column_names if name not in types]
            if missing:
                raise CdcError(
                    f"{table}: the source has no key {', '.join(missing)} any more, so values that it did not send cannot be read again",
                    hint=f"load the table anew: cdc resync {table}",
                    code="reread_failed",
                )
            forms = {name: reading.form(types.get(name), f"t.{sql.written(name)}") for name in columns}
            key = [(sql.written(name), types[name]["type"]) for name in keys.column_names]
            statement = sql.reread(sql.written(table.schema, table.name), key, [forms[name] for name in columns])
            values = {f"k{i}": sql.key_parameter(keys.column(i)) for i in range(keys.num_columns)}
            position = self._settled(connection, table)
            rows = [tuple(row) for row in connection.execute(text(statement), values)]
        arrays = [pa.array([row[2 + i] for row in rows], pa.string()) for i in range(len(columns))]
        found = pa.array([bool(row[1]) for row in rows], pa.bool_())
        return reading.told(types, pa.table(arrays, names=list(columns)), found, position)

    def misread(self, table: TableId, key: Sequence[str], rows: pa.Table) -> pa.Int8Array | None:
        if not any(pa.types.is_date(field.type) for field in rows.schema):
            return None
        with self._connected() as connection:
            types = {row["name"]: row for row in _rows(connection, sql.COLUMN_TYPES, schema=table.schema, table=table.name)}
            return reading.misread(connection, table, types, key, rows)

    # -- whole tables, for reconciliation

    def scan(self, table: TableId) -> Scan:
        from connectors.sources.postgresql.scan import TableScan

        return TableScan(self._url, table, self._column_types([table]))

    def snapshot(self, tables: Sequence[TableId]) -> Snapshot:
        from connectors.sources.postgresql.scan import TablesSnapshot

        return TablesSnapshot(self._url, self._column_types(tables))

    def load(self, table: TableId) -> Load:
        from connectors.sources.postgresql.load import TableLoad

        return TableLoad(self._url, table, self._column_types([table]))

    def settled(self, table: TableId) -> int:
        with self._connected() as connection:
            return self._settled(connection, table)

    @staticmethod
    def _settled(connection: Connection, table: TableId) -> int:
        position, busy = settle(connection, [table])
        if busy:
            raise busy[table]
        return position

    def settle(self, tables: Sequence[TableId]) -> tuple[int, Mapping[TableId, Unavailable]]:
        with self._connected() as connection:
            return settle(connection, tables)

    def _column_types(self, tables: Sequence[TableId]) -> dict[TableId, dict[str, RowMapping]]:
        names = {"schemas": [t.schema for t in tables], "tables": [t.name for t in tables]}
        found: dict[TableId, dict[str, RowMapping]] = {}
        with self._connected() as connection:
            for row in _rows(connection, sql.TYPES_OF_TABLES, **names):
                found.setdefault(tables[row["place"]], {})[row["name"]] = row
        return found

    # -- what must be so before a connector may stream

    def refusal(self, table: SourceTable) -> Finding | None:
        place, name = f"table {table.table}", qualified(table.table)

        def refuse(message: str, cure: str) -> Finding:
            return Finding(place, ok=False, message=message, cure=cure)

        if table.root is not None:
            return refuse(f"is a partition of {table.root}; its changes arrive under that name", f"register {table.root} in its place")
        if '"' in table.table.schema + table.table.name:
            message = "has a double quote in its name, at which the connector fails for good with the first change"
            return refuse(message, f"ALTER TABLE {name} RENAME TO ...;")
        if table.alike:
            message = f"has columns whose names differ by case only ({', '.join(table.alike)}): the connector ends at it, for all tables"
            return refuse(message, f"ALTER TABLE {name} RENAME COLUMN {quoted(table.alike[-1])} TO ...;")
        if not table.logged:
            return refuse("is unlogged or temporary: its changes never reach the log", f"ALTER TABLE {name} SET LOGGED;")
        if table.silent:
            parts = ", ".join(f"{p.table} ({p.kind})" for p in table.silent)
            message = f"shows rows of other tables, whose changes never come with its own: {parts}"
            return refuse(message, "\n".join(p.cure for p in table.silent))
        if not table.readable:
            return refuse(f"may not be read by role {self._role}", "\n".join(findings_of.grants([table.table], self._role)))
        if table.row_security:
            return refuse(*findings_of.row_security(table.table, self._role))
        if not table.key and table.partitioned:
            message = "is partitioned and has no primary key: each partition, new ones too, would need REPLICA IDENTITY FULL by itself"
            return refuse(message, f"ALTER TABLE {name} ADD PRIMARY KEY (...);")
        if not table.key and not table.log:
            return refuse("has no primary key, so a change cannot be tied to a row", findings_of.keyless_cure(table))
        if not table.key and table.identity is not Identity.FULL:
            message = "has no primary key and no REPLICA IDENTITY FULL: its own UPDATE and DELETE would fail once it is published"
            return refuse(message, f"ALTER TABLE {name} REPLICA IDENTITY FULL;")
        if table.key_deferrable:
            key = ", ".join(quoted(c) for c in table.key)
            return refuse(
                "has a deferrable primary key: within a transaction two rows may share it, so the order of its changes is not known,"
                " and PostgreSQL refuses its updates once it is published",
                f"ALTER TABLE {name} DROP CONSTRAINT {quoted(table.key_name)}, ADD PRIMARY KEY ({key});",
            )
        if set(table.key) & set(table.generated):
            return refuse("has a generated column in its primary key, which the log does not carry", "choose another primary key")
        if table.identity is Identity.NOTHING or not table.identity_columns:
            message = "has no replica identity: its own UPDATE and DELETE would fail once it is published"
            return refuse(message, f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;")
        if not set(table.key) <= set(table.identity_columns):
            message = "has a replica identity without its primary key: a delete would not say which row went"
            return refuse(message, f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;")
        for column in table.columns:
            if column.hazard is not None and column.hazard.blocking and not column.generated:
                return refuse(f"has a {column.hazard.message}", column.hazard.cure)
        return None

    def avoid(self, table: SourceTable, column: str) -> str:
        renamed = f"ALTER TABLE {qualified(table.table)} RENAME COLUMN {quoted(column)} TO ...;"
        return renamed if column in table.key else f"{renamed}  -- or {leave_out(table.table, column)}"

    def snapshot_refusal(self, table: TableId) -> Finding | None:
        with self._connected() as connection:
            return findings_of.snapshot_refusal(table, _rows(connection, sql.KEY_TYPES, schema=table.schema, table=table.name))

    def obstacles(self) -> list[Finding]:
        with self._connected() as connection:
            return [findings_of.unreadable_type(row) for row in _rows(connection, sql.UNREADABLE_TYPES)]

    def check(self, tables: Sequence[SourceTable], names: Names) -> list[Finding]:
        with self._connected() as connection:
            facts = _row(connection, sql.FACTS)
            slot = _row(connection, sql.SLOT, slot=names.at_source)
            published = _published(connection, names, facts["version_number"])
            unreadable = [findings_of.unreadable_type(row) for row in _rows(connection, sql.UNREADABLE_TYPES)]
            asked = [one for table in tables if table.readable and not table.row_security for one in findings_of.of_values(table)]
            held = [finding for statement, finding in asked if _row(connection, statement)["found"]]
        findings = [*findings_of.server(facts, has_slot=slot["slot_name"] is not None), *findings_of.role_rights(facts, tables)]
        findings += [finding for table in tables for finding in findings_of.of_table(table, self.refusal(table))]
        findings += held
        findings += [refused for table in tables if (refused := self.snapshot_refusal(table.table)) is not None]
        findings += unreadable
        if slot["slot_name"] is not None:
            findings.append(findings_of.slot(slot, names))
            if not findings[-1].failed and (why := self.gap(names)) is not None:
                findings.append(Finding("log", False, why, "cdc register"))
        elif (waits := self.awaited(names)) is not None:
            findings.append(Finding("open transactions", False, waits.message, waits.hint, Level.WARNING))
        return [*findings, *(self._publication_findings(tables, names, published) if tables else ())]

    def _publication_findings(self, tables: Sequence[SourceTable], names: Names, published: Mapping[TableId, bool]) -> list[Finding]:
        preparation = self.preparation(tables, names)
        filters = [statement for statement in preparation.statements if statement.subject == "filter"]
        # The role's rights are told by themselves.
        needed = [statement for statement in preparation.statements if statement.subject not in ("grant", "filter")]
        findings = []
        if filters:
            narrowed = [str(t.table) for t in tables if published.get(t.table)]
            whom = "cdc register will do it" if all(s.allowed for s in filters) else f"{filters[0].by_whom} must run this"
            message = f"{names.at_source} has a row filter or a column list on {some(narrowed)}: rows would be missing; {whom}"
            cure = "\n".join(f"{s.sql};" for s in filters)
            findings.append(Finding("publication filters", ok=False, message=message, cure=cure, names=tuple(narrowed)))
        if preparation.signals is None:
            table = TableId(tables[0].table.schema, names.signal_table)
            by_hand = [f"{s.sql};" for s in signal_table(table, str(self._url.username), allowed=False)]
            cure = "\n".join([*by_hand, f"ALTER PUBLICATION {quoted(names.at_source)} ADD TABLE {qualified(table)};"])
            message = (
                "no table for signals: the snapshot of a table that is added later may fail under load, and its rows are not in order"
                " with the stream until it ends"
            )
            findings.append(Finding("signals", False, message, cure, Level.WARNING))
        if not needed:
            return [*findings, Finding("publication", ok=True, message=f"{names.at_source} covers the tables")]
        return findings + [
            Finding(
                "publication",
                ok=False,
                message=statement.why + ("; cdc register will do it" if statement.allowed else f"; {statement.by_whom} must run this"),
                cure=statement.sql + ";",
                level=Level.INFO if statement.allowed else Level.ERROR,
            )
            for statement in needed
        ]

    def preparation(self, tables: Sequence[SourceTable], names: Names) -> Preparation:
        wanted = [t for t in tables if self.refusal(t) is None]
        # The connector does not find a table for signals in a schema whose name is not a plain one.
        home = next((t.table.schema for t in wanted if re.fullmatch(r"\w+", t.table.schema)), "public")
        with self._connected() as connection:
            facts = _row(connection, sql.FACTS)
            head = _row(connection, sql.PUBLICATION, name=names.at_source)
            published = _published(connection, names, facts["version_number"])
            twins = {TableId(row["schema"], row["name"]) for row in _rows(connection, sql.TWINS)} if published else set()
            signals = _row(connection, sql.SIGNALS, name=names.signal_table, home=home)
        new = head["pubname"] is None
        foreign = any(not t.owned for t in wanted if t.table not in published)
        may_publish = bool(facts["superuser"] or (facts["may_create"] and not foreign if new else head["owned"]))
        made: list[Statement] = []
        table = TableId(signals["schema"], names.signal_table) if signals["usable"] else None
        # Where a person has to make the publication anyway, the table for signals comes along; else its lack stops nothing.
        if signals["schema"] is None and wanted and ((may_publish and signals["may_create"]) or (new and not may_publish)):
            table = TableId(home, names.signal_table)
            made += signal_table(table, facts["role"], allowed=may_publish and bool(signals["may_create"]))
        entries = {t.table: t.owned for t in wanted} | ({table: signals["schema"] is None or signals["owned"]} if table else {})
        made += grants(wanted, facts["role"], superuser=bool(facts["superuser"]))
        made += publication_statements(names, facts, head, published, entries, twins)
        return Preparation(tuple(made), table)

    def release(self, names: Names) -> list[Statement]:
        with self._connected() as connection:
            facts = _row(connection, sql.FACTS)
            slot = _row(connection, sql.SLOT, slot=names.at_source)
            head = _row(connection, sql.PUBLICATION, name=names.at_source)
            signals = _row(connection, sql.SIGNALS, name=names.signal_table, home="public")
        made = []
        if slot["slot_name"] is not None:
            literal = "'" + names.at_source.replace("'", "''") + "'"
            drop = f"SELECT pg_drop_replication_slot({literal})"
            made.append(Statement("slot", drop, "the slot keeps the log", bool(facts["may_replicate"]), "a role with REPLICATION"))
        if head["pubname"] is not None:
            allowed = bool(facts["superuser"] or head["owned"])
            drop = f"DROP PUBLICATION {quoted(names.at_source)}"
            made.append(Statement("publication", drop, "nothing reads it any more", allowed, "the owner of the publication or a superuser"))
        if signals["schema"] is not None:
            allowed = bool(facts["superuser"] or signals["owned"])
            drop = f"DROP TABLE {quoted(signals['schema'], names.signal_table)}"
            made.append(Statement("signals", drop, "nothing reads signals any more", allowed, "the owner of the table or a superuser"))
        return made

    def execute(self, statement: Statement) -> None:
        with self._connected() as connection:
            connection.exec_driver_sql(statement.sql.replace("%", "%%"))

    # -- the connector

    def connector_config(self, request: ConnectorRequest) -> dict[str, str]:
        pinned = sorted(PINNED & set(request.options))
        if pinned:
            raise ConfigError(
                f"connect.options may not set {', '.join(pinned)}: events or values would be lost without a trace",
                hint="remove it from connect.options",
            )
        names, url = request.names, self._url
        exclusions = set(_generated(request.tables))
        if "column.exclude.list" in request.options:
            exclusions.add(request.options["column.exclude.list"])
        placeholder = (request.existing or {}).get("unavailable.value.placeholder") or f"__cdc_unsent_{secrets.token_hex(12)}"
        query = {k: v if isinstance(v, str) else v[-1] for k, v in url.query.items()}
        config = {
            "name": names.connector,
            **SETTINGS,
            **({} if request.snapshot else {"snapshot.mode": "no_data"}),
            "database.hostname": request.host or url.host or query.get("host") or "localhost",
            "database.port": str(request.port or url.port or 5432),
            "database.user": url.username or "postgres",
            "database.dbname": url.database or url.username or "postgres",
            **{_TLS[k]: v for k, v in query.items() if k in _TLS},
            "topic.prefix": names.topic_prefix,
            "slot.name": names.at_source,
            "publication.name": names.at_source,
            "table.include.list": ",".join(sorted(_table_pattern(t.table, request.siblings) for t in request.tables)),
            "unavailable.value.placeholder": placeholder,
            "notification.sink.topic.name": names.notification_topic,
        }
        config |= signal_settings(request)
        if request.password is not None:
            config["database.password"] = request.password
        config |= {**keyless_settings(request), **request.options}
        if exclusions:
            config["column.exclude.list"] = ",".join(sorted(exclusions))
        return sealed(config)

    def registered(self, config: Mapping[str, str]) -> frozenset[TableId]:
        items = re.findall(r"((?:[^,\\]|\\.)+)", config.get("table.include.list", ""))
        # A dot between names is escaped and one within a name is in brackets, so these tokens leave the separators out.
        names = ["".join(t if t != r"\." else "\0" for t in re.findall(r"\\.|[^\\]", i.removeprefix("(?-i)"))).split("\0") for i in items]
        return frozenset(TableId(*map(_plain, parts)) for parts in names if len(parts) == 2)

    def collection(self, table: TableId) -> str:
        return f"{table.schema}.{table.name}"

    def names_collection(self, text: str, table: TableId) -> bool:
        return text == self.collection(table)

    def ask_snapshot(self, config: Mapping[str, str], tables: Sequence[TableId], signal_id: str) -> SignalRecord | None:
        data = json.dumps({"data-collections": [_collection(t) for t in tables], "type": "INCREMENTAL"})
        place = config.get("signal.data.collection")
        if place is None:
            value = json.dumps({"id": signal_id, "type": "execute-snapshot", "data": json.loads(data)}).encode()
            return SignalRecord(config["signal.kafka.topic"], config["topic.prefix"], value)
        table = quoted(*place.rsplit(".", 1))
        with self._connected(TableId(*place.rsplit(".", 1))) as connection:
            # Only inserts count as signals: what was read, and the marks that the connector left, may go.
            connection.execute(text(f"DELETE FROM {table}"))
            insert = text(f"INSERT INTO {table} (id, type, data) VALUES (:id, 'execute-snapshot', :data)")
            connection.execute(insert, {"id": signal_id, "data": data})
        return None

    def progress(self, offsets: Offsets) -> ConnectorProgress:
        offset = next((value for _, value in offsets if value), None)
        if offset is None:
            return ConnectorProgress(None, snapshot=True, incremental=False)
        position = offset.get("lsn_commit") or offset.get("lsn_proc") or offset.get("lsn")
        incremental = "incremental_snapshot_primary_key" in offset
        return ConnectorProgress(int(str(position)) if position is not None else None, _in_snapshot(offset), incremental)

    def set_back(self, offsets: Offsets) -> Offsets:
        """To the last commit. Rows of one COPY share a log position, and the connector goes on behind the position that it stored."""
        return [
            (partition, {**offset, "lsn": commit, "lsn_proc": commit})
            for partition, offset in offsets
            if offset and not _in_snapshot(offset) and (commit := offset.get("lsn_commit")) and offset.get("lsn_proc") != commit
        ]

    def gap(self, names: Names) -> str | None:
        with self._connected() as connection:
            return slots.gap(connection, names)

    def skip(self, names: Names, offsets: Offsets) -> tuple[int, Offsets]:
        with self._connected() as connection:
            position = slots.skip(connection, names)
        there = {"lsn": position, "lsn_proc": position, "lsn_commit": position}
        return position, [
            (partition, {**there, **{key: offset[key] for key in ("txId", "ts_usec") if key in offset}})
            for partition, offset in offsets
            if offset
        ]

    def awaited(self, names: Names) -> Unavailable | None:
        with self._connected() as connection:
            slot = _row(connection, sql.SLOT, slot=names.at_source)
            if slot["slot_name"] is not None and slot["confirmed"] is not None:
                return None
            found = slots.open_transactions(connection, seconds=0.0 if slot["slot_name"] is not None else AWAITED_SECONDS)
        return slots.busy(f"the making of slot {names.at_source}", found) if found else None

    @contextmanager
    def _connected(self, table: TableId | None = None, *, kept: bool = False) -> Iterator[Connection]:
        """``table`` is the one whose rows are read; ``kept`` is for what is asked all the time."""
        try:
            with (self._kept if kept else self._engine).connect() as connection:
                yield connection
        except DBAPIError as error:
            if table is not None and _narrowed(error):
                raise findings_of.refused_row_security(table, self._role) from None
            raise self._explained(error) from None

    @property
    def _role(self) -> str:
        return self._url.username or "postgres"

    def _explained(self, error: DBAPIError) -> CdcError:
        where = f"{self._url.host or 'localhost'}:{self._url.port or 5432}/{self._url.database or ''}"
        state = getattr(error.orig, "sqlstate", None) or ""
        lines = str(error.orig).splitlines() or [type(error.orig).__name__]
        first = next((line for line in lines if "FATAL:" in line), lines[0]).strip()
        if state.startswith("28") or any(t in first for t in _LOGIN):
            hint = "check the user and password of source.url, and pg_hba.conf"
            return ConfigError(f"PostgreSQL at {where} refused the login of {self._url.username}", hint=hint, code="source_auth")
        if state == "3D000" or ("database" in first and "does not exist" in first):
            hint = "check the database in source.url"
            return ConfigError(f"PostgreSQL at {where} has no such database", hint=hint, code="source_database")
        if state == "42501":
            hint = "grant what is missing: cdc check prints the statement"
            return ConfigError(f"PostgreSQL refused: {first}", hint=hint, code="source_rights")
        if state == "57014":
            message = f"a statement at PostgreSQL {where} took longer than {STATEMENT_TIMEOUT_SECONDS} s"
            return Unavailable(message, hint="another transaction may hold a lock: SELECT * FROM pg_stat_activity WHERE state <> 'idle'")
        if not state or state[:2] in {"08", "53", "57"} or state == "55P03":
            return Unavailable(f"PostgreSQL at {where} does not answer: {first}", hint="is it running, and is source.url right?")
        # The text of a data error may quote a value: only its class is passed on.
        detail = f": {first}" if state[:2] in {"42", "55", "25"} else ""
        message = f"PostgreSQL at {where} refused a statement (SQLSTATE {state}){detail}"
        return CdcError(message, hint="see the server's log", code="source_statement")


_LOGIN = ("authentication failed", "pg_hba.conf", "no password supplied")
"""What libpq says, without an SQLSTATE, where the login is wrong."""


def _narrowed(error: DBAPIError) -> bool:
    """Whether the server refused a statement since policies would have left rows out. Its message is in the server's language."""
    return getattr(getattr(error.orig, "diag", None), "source_function", None) == "check_enable_rls"


def _rows(connection: Connection, statement: str, **values: object) -> Sequence[RowMapping]:
    return connection.execute(text(statement), values).mappings().all()


def _row(connection: Connection, statement: str, **values: object) -> RowMapping:
    return _rows(connection, statement, **values)[0]


def _in_snapshot(offset: Mapping[str, object]) -> bool:
    """Whether the initial snapshot is under way. A task that begins anew within an incremental one writes ``snapshot_completed: false`` to
    rows of that, whose offsets say INCREMENTAL; their positions are the stream's."""
    return "snapshot" in offset and offset["snapshot"] != "INCREMENTAL" and offset.get("snapshot_completed") is not True


def _table_pattern(table: TableId, siblings: Iterable[TableId]) -> str:
    """Debezium compares without case unless it is told otherwise, which it is where another table's name only differs so."""
    folded = str(table).casefold()
    return f"(?-i){pattern(table)}" if any(s != table and str(s).casefold() == folded for s in siblings) else pattern(table)


def _generated(tables: Sequence[SourceTable]) -> Iterator[str]:
    """The expressions of the generated columns; they match no column that only differs by case."""
    columns = [(t.table, c.name, c.generated) for t in tables for c in t.columns]
    alike = Counter(f"{table}.{name}".casefold() for table, name, _ in columns)
    for table, name, generated in columns:
        if generated:
            yield pattern(table, name) if alike[f"{table}.{name}".casefold()] == 1 else column_alone(table, name)


def _collection(table: TableId) -> str:
    """The table as a signal names it: an expression, of which Debezium then reads the matching name as if it were SQL, and so loses one
    with a blank or a dot in it. A quoted name matches nothing, and is read as it stands."""
    return qualified(table) if re.search(r"[.\s]", table.schema + table.name) else f"(?-i){pattern(table)}"


def _plain(pattern: str) -> str:
    return re.sub(r"\\(.)|\[([.\s])\]", lambda m: m[1] or m[2], pattern, flags=re.DOTALL)


def _table(row: RowMapping, found: Sequence[RowMapping]) -> SourceTable:
    key = tuple(row["key"])
    identity = {"d": Identity.KEY, "f": Identity.FULL, "i": Identity.INDEX, "n": Identity.NOTHING}[row["identity"]]
    full = identity is Identity.FULL
    name = TableId(row["schema"], row["name"])
    columns = tuple(
        SourceColumn(
            *(c["name"], c["type"], c["nullable"], c["generated"], sql.hazard(c, name, full_identity=full)),
            carried=not sql.never_sent(c),
            json=sql.is_json(c),
            base=sql.base_of(c),
        )
        for c in found
    )
    folded = Counter(c.name.lower() for c in columns)
    by = {
        # A deferrable key is no replica identity.
        Identity.KEY: () if row["key_deferrable"] else key,
        Identity.FULL: tuple(column.name for column in columns),
        Identity.INDEX: tuple(row["identity_index"]),
        Identity.NOTHING: (),
    }
    return SourceTable(
        name,
        columns,
        key=key,
        key_name=row["key_name"],
        key_deferrable=row["key_deferrable"],
        identity=identity,
        identity_columns=by[identity],
        partitioned=row["partitioned"],
        root=TableId(row["root_schema"], row["root_name"]) if row["root_name"] is not None else None,
        logged=row["logged"],
        rows=row["rows"],
        readable=row["readable"],
        owned=row["owned"],
        row_security=row["row_security"],
        silent=tuple(_silent(kind, TableId(*names[:2]), TableId(*names[2:])) for kind, *names in row["silent"] or ()),
        alike=tuple(c.name for c in columns if folded[c.name.lower()] > 1),
    )


def _silent(kind: str, part: TableId, parent: TableId) -> SilentPart:
    what, cure = {
        "child": ("a child by inheritance", f"ALTER TABLE {qualified(part)} NO INHERIT {qualified(parent)};"),
        "foreign": ("a foreign table", f"ALTER TABLE {qualified(parent)} DETACH PARTITION {qualified(part)};"),
        "unlogged": ("an unlogged partition", f"ALTER TABLE {qualified(part)} SET LOGGED;"),
    }[kind]
    return SilentPart(part, what, cure)


def _published(connection: Connection, names: Names, version: int) -> dict[TableId, bool]:
    """Each published table, and whether only a part of it is."""
    statement = sql.PUBLISHED if version >= 150000 else sql.PUBLISHED_14
    return {TableId(r["schema"], r["name"]): r["narrow"] for r in _rows(connection, statement, name=names.at_source)}


def _fill(connection: Connection, leaf: RowMapping, column: str) -> Fill:
    if leaf["missing"] is not None:
        form = sql.event_text(leaf["base"], leaf["category"], "v", leaf["type_schema"])
        if form is None:
            return UNKNOWN_FILL
        # The type's text comes from format_type, which quotes what it must; the value is a parameter.
        statement = f"SELECT {form} AS fill FROM (SELECT CAST(CAST(:missing AS text) AS {leaf['type']}) AS v) AS one"
        fill = _row(connection, statement, missing=leaf["missing"])["fill"]
        return UNKNOWN_FILL if fill is None else Fill(known=True, text=fill)
    if leaf["required"]:
        return UNKNOWN_FILL
    if leaf["hidden"]:
        return UNKNOWN_FILL
    # Without a stored value, old rows hold NULL, unless the table was written anew since: a volatile default makes PostgreSQL do that.
    if leaf["as_created"]:
        return Fill(known=True)
    place = quoted(leaf["schema"], leaf["name"])
    holds = _row(connection, f"SELECT EXISTS (SELECT FROM {place} WHERE {quoted(column)} IS NOT NULL) AS holds")["holds"]
    return UNKNOWN_FILL if holds else Fill(known=True)
