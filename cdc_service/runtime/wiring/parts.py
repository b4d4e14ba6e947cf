"""The outside world of one pipeline, opened as its configuration says: source, Connect, Kafka, schema registry, destination.

Promises: nothing is connected before it is asked; what is opened here is closed where its ``with`` ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdc_service.config import Config, TableConfig, resolve
from cdc_service.config.patterns import parse_pattern
from cdc_service.config.problems import InvalidConfig, Problem, dotted
from cdc_service.config.resolve import excluded_keys
from cdc_service.core.errors import Unavailable
from cdc_service.core.identity import Identities
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.kafka.admin import Admin
from cdc_service.ports.destination import Destination
from cdc_service.ports.source import Source, SourceTable
from cdc_service.runtime.monitor import meaning
from connectors.debezium.check import selectable
from connectors.debezium.connect import KafkaConnect
from connectors.debezium.register import names_of
from connectors.debezium.schema_registry import SchemaRegistry
from connectors.sources import open_source
from mergers.destinations import open_destination

CONNECTOR_FILE = "connector.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """The outside world of one pipeline, opened lazily: nothing is connected before it is asked."""

    config: Config
    names: Names
    source: Source
    connect: KafkaConnect
    kafka: Admin
    registry: SchemaRegistry | None

    def tables(self, fold: Callable[[str], str]) -> list[TableConfig]:
        """The tables to replicate, by the source's catalog."""
        return self.resolved(self.source.tables(), fold)

    @property
    def options(self) -> dict[str, str]:
        """What the configuration itself says of the connector."""
        return self.config.connect.options.reveal()

    def identities(self, tables: Sequence[TableId]) -> Identities:
        """What the source says of the tables now, and of how the connector gets their changes; of that nothing where Connect is away."""
        connector = None
        with contextlib.suppress(Unavailable):
            connector = self.connect.config(self.names.connector)
        return self.source.identities(tables, self.names, connector, self.options)

    def resolved(self, catalog: Sequence[SourceTable], fold: Callable[[str], str], known: Collection[TableId] = ()) -> list[TableConfig]:
        """``known`` are tables that the destination has. One of them that the source has no more, and that the configuration names, stays:
        it stops by itself, and keeps no other from going on."""
        exact = {TableId(*p.exact) for p in map(parse_pattern, self.config.tables) if p.exact is not None}
        gone = exact & set(known) - {t.table for t in catalog}
        keyless = {t.table for t in catalog if not t.key}
        tables = resolve(self.config, [*selectable(self.config, catalog), *gone], fold, keyless, self.source.events.ordering)
        if problems := excluded_keys(self.config, tables, {t.table: t.key for t in catalog}):
            raise InvalidConfig(self.config.file, problems, hint="leave the key's columns in")
        return tables


@contextmanager
def open_parts(config: Config, *, retry_seconds: float | None = None) -> Iterator[Parts]:
    url = config.connect.url.reveal()  # Raises where nothing is captured, before anything is opened.
    with ExitStack() as stack:
        source = open_source(config.source.url.reveal())
        stack.callback(source.close)
        patience = {} if retry_seconds is None else {"retry_seconds": retry_seconds}
        connect = KafkaConnect(url, source.failures, **patience)
        stack.callback(connect.close)
        registry = None
        if config.schema_registry.url is not None:
            registry = SchemaRegistry(config.schema_registry.url.reveal(), config.schema_registry.options.reveal())
            stack.callback(registry.close)
        yield Parts(config, names_of(config), source, connect, open_admin(config), registry)


def open_admin(config: Config) -> Admin:
    return Admin(config.kafka.bootstrap_servers, config.kafka.options.reveal())


def open_configured(config: Config) -> Destination:
    d = config.destination
    opened = open_destination(d.url.reveal(), pipeline=config.pipeline, meta_schema=d.meta_schema, options=d.options.reveal())
    can, default = opened.capabilities, (("defaults", "mode"), config.defaults.mode)
    wanted = dict(default if t.mode is None else (("tables", key, "mode"), t.mode) for key, t in config.tables.items())
    if lacking := {where: mode for where, mode in wanted.items() if mode not in can.modes}:
        message = f"the destination keeps no table so; it has: {', '.join(sorted(can.modes))}"
        problems = [Problem(config.line(*where), dotted(where), f"{mode}: {message}") for where, mode in lacking.items()]
        raise InvalidConfig(config.file, problems, hint=can.gaps.get("modes", ""))
    return opened


@contextmanager
def prepared_destination(config: Config) -> Iterator[Destination]:
    destination = open_configured(config)
    try:
        destination.prepare()
        yield destination
    finally:
        destination.close()


def connector_settings(p: Parts) -> Mapping[str, str]:
    """The settings of the connector that decide what its events mean; remembered, so that the service starts while Connect is away."""
    path = p.config.state_dir / CONNECTOR_FILE
    try:
        found = p.connect.config(p.names.connector)
    except Unavailable:
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        raise
    if found is None:
        raise Unavailable(f"connector {p.names.connector} does not exist", hint="cdc register", code="not_registered")
    kept = meaning(found, p.source.events)
    write_whole(path, json.dumps(kept, indent=1))
    return kept


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
