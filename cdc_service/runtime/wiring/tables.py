"""Which tables the pipeline has, and what reads their events: out of the source's catalog, of what the destination knows already and of
the connector's settings.

Promises: where the source is away, the tables that the destination knows stand in for its catalog; what is not known for certain is left
out, never guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence

from cdc_service import transforms
from cdc_service.config import TableConfig, resolve
from cdc_service.config.patterns import parse_pattern
from cdc_service.core.clock import RealClock
from cdc_service.core.errors import ConfigError, Unavailable
from cdc_service.core.types import Mode, TableId, TableSchema
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.destination import Destination, Writer
from cdc_service.ports.events import Decoder, EventModel
from cdc_service.ports.source import Identity, SourceTable, without_columns
from cdc_service.runtime.wiring.parts import Parts
from cdc_service.transforms import transformed_schema
from connectors.debezium.wires import is_avro, writes_defaults_for_null
from connectors.formats.avro import DebeziumAvroDecoder, Schemas
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.formats.schemaless import SchemalessJsonDecoder


def table_tasks(p: Parts, destination: Destination, connector: Mapping[str, str] | None) -> list[TableTask]:
    """The pipeline's tables."""
    configs, decoder = resolved_tables(p, destination, connector)
    by_source = {c.source: c for c in configs}

    def told(table: TableId) -> TableSchema | None:
        return _told(p, connector or {}, [table]).get(table)

    def columns(table: TableId) -> Sequence[str]:
        schema = told(table)
        if schema is not None:
            return schema.names
        # Whatever form events give them: those that they leave out may be among these.
        return [c.name for one in _as_sent(p, connector or {}, only=table) for c in one.columns if not c.generated]

    def kept(table: TableId) -> TableSchema | None:
        schema = told(table)
        return None if schema is None else transformed_schema(transforms.of(by_source[table]), schema)

    def kept_columns(table: TableId) -> Sequence[str]:
        apart = by_source[table].exclude
        return [name for name in columns(table) if name not in apart]

    context = Context(destination, p.kafka, decoder(), p.source, kept, kept_columns, p.identities, RealClock(), p.config.limits)
    return [TableTask(c, context) for c in configs]


def resolved_tables(
    p: Parts, destination: Destination, connector: Mapping[str, str] | None
) -> tuple[list[TableConfig], Callable[[], Decoder]]:
    """The tables to replicate, and what makes a decoder of their events."""
    known = [TableId(*parse_pattern(text).exact) for text, _ in destination.states()]  # type: ignore[misc]
    whole: set[TableId] = set()
    try:
        catalog = p.source.tables()
        there = {t.table for t in catalog}
        found = p.resolved(catalog, destination.fold, known)
        configs = [c if c.source in there else _as_kept(c, destination) for c in found]
        whole = {t.table for t in catalog if t.identity is Identity.FULL}
    except Unavailable:
        if not known:
            raise
        ordering = p.source.events.ordering
        configs = [_as_kept(c, destination) for c in resolve(p.config, known, destination.fold, ordering=ordering)]
        whole = {c.source for c in configs if not c.keyed and c.target.mode is Mode.APPEND}  # No other is taken.

    def told(tables: Collection[TableId]) -> Mapping[TableId, TableSchema]:
        return _told(p, connector or {}, tables)

    schemas = None if p.registry is None else Schemas(p.registry, RealClock().monotonic)
    logs = {c.topic for c in configs if c.source in whole}
    return configs, lambda: _decoder(p.source.events, connector or {}, configs, destination, logs, told, schemas)


def _as_kept(config: TableConfig, destination: Writer) -> TableConfig:
    """The table as the destination knows it, where the source cannot say whether it has a key."""
    known = destination.schemas(config.target)
    return config.without_key() if known and not known[-1].key else config


def _told(p: Parts, connector: Mapping[str, str], tables: Collection[TableId]) -> Mapping[TableId, TableSchema]:
    """The schemas of tables that had no event yet, as the source's catalog tells them; those that it does not tell for certain are left
    out."""
    options = _options(p, connector)
    options.pop("unavailable.value.placeholder", None)
    catalog = _as_sent(p, connector, only=next(iter(tables)) if len(tables) == 1 else None)
    return {t.table: schema for t in catalog if t.table in tables and (schema := p.source.schema(t, options)) is not None}


def _as_sent(p: Parts, connector: Mapping[str, str], *, only: TableId | None) -> Sequence[SourceTable]:
    """The source's tables, without the columns that the connector leaves out."""
    return without_columns(p.source.tables(only), _options(p, connector).get("column.exclude.list", ""))


def _options(p: Parts, connector: Mapping[str, str]) -> dict[str, str]:
    return {**p.options, **connector}


def _decoder(
    model: EventModel,
    connector: Mapping[str, str],
    configs: Sequence[TableConfig],
    destination: Writer,
    whole: Collection[str],
    told: Callable[[Collection[TableId]], Mapping[TableId, TableSchema]],
    schemas: Schemas | None,
) -> Decoder:
    known = {c.topic: found[-1] for c in configs if (found := destination.schemas(c.target))}
    logs = {c.topic for c in configs if c.target.mode is Mode.APPEND}
    left_out = {c.topic: unread for c in configs if (unread := transforms.unread(transforms.of(c)))}
    new = {c.source: c.topic for c in configs if c.topic not in known}
    by_catalog: dict[TableId, TableSchema] = {}
    with contextlib.suppress(Unavailable):
        # A topic may begin with a TRUNCATE, which has no key to tell the table's by.
        by_catalog = dict(told(new)) if new else {}
    known |= {new[table]: schema for table, schema in by_catalog.items()}
    unavailable = connector.get("unavailable.value.placeholder", "__debezium_unavailable_value")
    with_schemas = connector.get("value.converter.schemas.enable", "true") != "false"
    if is_avro(connector) or (with_schemas and schemas is not None):
        if schemas is None:
            raise ConfigError("the connector writes Avro", hint="add at the top:  schema_registry: {url: http://localhost:8081}")
        doubtful = writes_defaults_for_null(connector)
        return DebeziumAvroDecoder(
            *(model, schemas),
            unavailable=unavailable,
            known=known,
            whole=whole,
            logs=logs,
            left_out=left_out,
            defaults_for_null=doubtful,
        )
    if with_schemas:
        return DebeziumJsonDecoder(model, unavailable=unavailable, known=known, whole=whole, logs=logs, left_out=left_out)
    # A record without schemas is read by all columns that it has, those that are left out too.
    new |= {c.source: c.topic for c in configs if c.topic in left_out}
    by_catalog = {table: schema for table, schema in by_catalog.items() if table in new}
    if new and not by_catalog:
        by_catalog = dict(told(new))
    missing = [str(table) for table in new if table not in by_catalog]
    if missing:
        raise ConfigError(
            f"the connector writes JSON without schemas, and the catalog does not tell how it writes the columns of {', '.join(missing)}",
            hint="set value.converter.schemas.enable=true in connect.options, at least until each table was loaded once",
        )
    known |= {new[table]: schema for table, schema in by_catalog.items()}
    return SchemalessJsonDecoder(model, known, connector, whole, logs, left_out)
