"""The configuration as it is after loading: typed, frozen, every key of the file and no other.

Field descriptions are what ``cdc schema`` and editors show. Names that are derived from the pipeline's name are ``Config.names``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from cdc_service.config import defaults as fallback
from cdc_service.config.patterns import PIPELINE, parse_pattern, render_target
from cdc_service.config.secret import Options, Url
from cdc_service.config.units import Count, Port, Seconds, SecondsOrNone, Share, Size
from cdc_service.core.errors import ConfigError
from cdc_service.core.names import Names
from cdc_service.core.types import Mode

Keyless = Literal["refuse", "append"]
Snapshot = Literal["connector", "direct"]
Metadata = Literal["full", "minimal"]
Secrets = Literal["env", "file", "inline"]
LoadBy = Literal["cursor", "full"]
Deletes = Literal["never", "compare"]
NullCursor = Literal["include", "skip", "refuse"]


class Section(BaseModel):
    """A part of the file. A section that is written and left empty means its fallback."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, json_schema_extra={"type": ["object", "null"]})

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: Any) -> Any:
        return {} if data is None else data


class Listen(NamedTuple):
    """Where the HTTP API listens; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _parse_listen(value: object) -> Listen:
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})", value) if isinstance(value, str) else None
    if found is None or int(found[3]) > 65535:
        raise ValueError("not an address such as 127.0.0.1:8080 (port 0 takes a free one)")
    return Listen(found[1] or found[2], int(found[3]))


def _beside_file(path: Path, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    return base / path


def _file_beside(url: Url, info: ValidationInfo) -> Url:
    """The URL of a database that is a file, beside the configuration where its path is relative."""
    if url.host or not url.database:
        raise ValueError(f"names no file: write {url.scheme}:///warehouse.{url.scheme} (three slashes)")
    return url if url.database == ":memory:" else url.with_database(str(_beside_file(Path(url.database), info)))


def _table_key(text: str) -> str:
    parse_pattern(text)
    return text


def _target(text: str) -> str:
    render_target(text, "p", "s", "t")
    return text


Address = Annotated[Listen, BeforeValidator(_parse_listen), PlainSerializer(str), WithJsonSchema({"type": "string"})]
FilePath = Annotated[Path, AfterValidator(_beside_file)]
Target = Annotated[str, AfterValidator(_target)]


class Flush(Section):
    """A batch of a table is merged when the first of these is reached."""

    rows: Count = Field(default=fallback.FLUSH_ROWS, description="Most change events in one batch.")
    bytes: Size = Field(default=fallback.FLUSH_BYTES, description="Most bytes in one batch, such as 64MiB.")
    seconds: Seconds = Field(
        default=fallback.FLUSH_SECONDS, description="Longest wait of an event for its batch to fill: seconds, or 500ms, 5min."
    )


def _cron(text: str) -> str:
    from apscheduler.triggers.cron import CronTrigger

    CronTrigger.from_crontab(text)  # Raises ValueError with what is wrong.
    return text


class Reconcile(Section):
    """How a table is compared with its source while the service runs."""

    schedule: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None, description="When, as a cron expression in UTC, such as '0 */6 * * *'; without one only 'cdc reconcile' compares it."
    )
    max_seconds: Seconds | None = Field(default=None, description="Longest time of a comparison: seconds, or 10min.")
    max_rows_per_second: Count | None = Field(default=None, description="Most rows read from the source in a second.")


class Load(Section):
    """How a table without a log is loaded: by queries."""

    by: LoadBy = Field(
        default=fallback.LOAD_BY,
        description="cursor: the rows whose cursor moved since the last load; full: all rows, of which those that differ are written.",
    )
    cursor: str | None = Field(default=None, min_length=1, description="Column that grows with every change of a row, such as updated_at.")
    key: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="Columns that name a row; the primary key where they are left out."
    )
    lookback: SecondsOrNone | None = Field(
        default=None,
        description="How far behind the last load's end the next one begins: seconds, or 5min; for cursors of time."
        " Left out, it is 0, and 2h for times without a zone.",
    )
    schedule: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description="When 'cdc run' loads it, as a cron expression in UTC, such as '*/10 * * * *'; without one only 'cdc load' does.",
    )
    deletes: Deletes = Field(
        default=fallback.LOAD_DELETES,
        description="What becomes of rows that are gone at the source: never found, or by comparing all keys.",
    )
    null_cursor: NullCursor = Field(
        default=fallback.LOAD_NULL_CURSOR,
        description="Rows without a cursor: include them in each load, skip them, or refuse to load while there are any.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Load:
        if self.by == "cursor" and self.cursor is None:
            raise ValueError("names no cursor: add cursor: COLUMN, or write by: full")
        if self.by == "full" and (self.cursor is not None or self.lookback is not None):
            raise ValueError("by: full reads all rows: it takes no cursor and no lookback")
        return self


class Source(Section):
    """The database whose changes are captured, or whose tables are loaded."""

    url: Url = Field(description="SQLAlchemy URL of the source, such as postgresql://cdc:${SHOP_PASSWORD}@localhost:5432/shop.")
    connect_host: str | None = Field(
        default=None, min_length=1, description="The source's host as Kafka Connect sees it, where it differs from the URL's."
    )
    connect_port: Port | None = Field(
        default=None, description="The source's port as Kafka Connect sees it, where it differs from the URL's."
    )
    replica_url: Url | None = Field(default=None, description="SQLAlchemy URL of a replica of the source; reconciliation reads there.")

    @field_validator("url", "replica_url")
    @classmethod
    def _names_a_place(cls, url: Url | None, info: ValidationInfo) -> Url | None:
        if url is not None and url.scheme in fallback.FILE_SCHEMES:
            return _file_beside(url, info)
        if url is not None and not ((url.host or "host" in dict(url.query)) and url.database):
            raise ValueError("names no host or no database: write scheme://user:${PASSWORD}@host:port/database")
        return url


class Kafka(Section):
    """The Kafka cluster that Debezium writes to."""

    bootstrap_servers: str = Field(min_length=1, description="Brokers to start from: host:port, or several with commas.")
    topic_prefix: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]+$", description="First part of each topic's name; the pipeline's name where it is left out."
    )
    options: Options = Field(default_factory=Options, description="Options of librdkafka under its own names, such as security.protocol.")


class Connect(Section):
    """The Kafka Connect worker that runs Debezium."""

    url: Url = Field(description="Address of the worker's REST API, such as http://localhost:8083.")
    secrets: Secrets = Field(
        default=fallback.CONNECT_SECRETS,
        description="How passwords reach the worker: env and file as references to a ConfigProvider of the worker, inline as text "
        "(which Connect then keeps in its configuration topic).",
    )
    options: Options = Field(
        default_factory=Options, description="Options of Debezium under its own names; ${provider:...} passes through to the worker."
    )


class SchemaRegistry(Section):
    """The registry that holds the schemas of events in Avro; without a url, events are JSON."""

    url: Url | None = Field(default=None, description="Address of a registry with Confluent's interface, such as http://localhost:8081.")
    connect_url: Url | None = Field(
        default=None, description="The registry's address as Kafka Connect sees it, where it differs from the URL's."
    )
    options: Options = Field(
        default_factory=Options,
        description="How to log in, under the names of Confluent's clients: basic.auth.user.info, bearer.auth.token, ssl.ca.location, ..",
    )


class Destination(Section):
    """The warehouse that tables are kept in."""

    url: Url = Field(description="SQLAlchemy URL of the warehouse, such as duckdb:///warehouse.duckdb (a file beside this one).")
    meta_schema: str = Field(default=fallback.META_SCHEMA, min_length=1, description="Schema of the service's own tables.")
    options: Options = Field(default_factory=Options, description="Options of the destination's driver under its own names.")

    @field_validator("url")
    @classmethod
    def _beside_file(cls, url: Url, info: ValidationInfo) -> Url:
        return _file_beside(url, info) if url.scheme in fallback.FILE_SCHEMES else url


class Defaults(Section):
    """What holds for each table that says nothing else."""

    mode: Mode = Field(
        default=Mode(fallback.MODE),
        description="How changes reach the target: upsert deletes rows, soft_delete marks them, append keeps each change as a row.",
    )
    target: Target = Field(default=fallback.TARGET, description="Name of the target, from {schema}, {table} and {pipeline}.")
    keyless: Keyless = Field(
        default=fallback.KEYLESS,
        description="What to do with a table that has no key: refuse it, or append its changes to a log (with REPLICA IDENTITY FULL).",
    )
    metadata: Metadata = Field(
        default=fallback.METADATA, description="Metadata columns of each row: full, or minimal (what ordering needs)."
    )
    snapshot: Snapshot = Field(
        default=fallback.SNAPSHOT,
        description="Who reads the rows that a table has at the beginning, or anew: the connector, event by event, or the service itself "
        "at the source (direct), which is many times faster; a table that is kept as a log of changes is always read by the connector.",
    )
    flush: Flush = Field(default_factory=Flush, description="When a batch is merged.")
    reconcile: Reconcile = Field(default_factory=Reconcile, description="When and how tables are compared with their source.")


class Columns(Section):
    """What of a table's columns is kept."""

    exclude: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Columns, by their names at the source, that the target never holds; the events of the connector still do.",
    )


class Table(Section):
    """Settings of one table or pattern; what is left out comes from ``defaults``."""

    mode: Mode | None = Field(
        default=None,
        description="How changes reach the target: upsert deletes rows, soft_delete marks them, append keeps each change as a row.",
    )
    target: Target | None = Field(default=None, description="Name of the target, from {schema}, {table} and {pipeline}.")
    keyless: Keyless | None = Field(
        default=None,
        description="What to do with a table that has no key: refuse it, or append its changes to a log (with REPLICA IDENTITY FULL).",
    )
    columns: Columns = Field(default_factory=Columns, description="What of its columns is kept.")
    metadata: Metadata | None = Field(default=None, description="Metadata columns of each row: full, or minimal (what ordering needs).")
    flush: Flush | None = Field(default=None, description="When a batch is merged; a key left out comes from defaults.flush.")
    reconcile: Reconcile | None = Field(
        default=None, description="When and how it is compared with its source; a key left out comes from defaults.reconcile."
    )
    load: Load | None = Field(default=None, description="Loads the table by queries; without it, its changes are captured from the log.")


class Limits(Section):
    """What the service may use, and how much may go wrong before a table stops."""

    memory: Size = Field(default=fallback.LIMIT_MEMORY, description="Most bytes of events held in memory; partitions pause above it.")
    quarantine_rows: Count = Field(
        default=fallback.LIMIT_QUARANTINE_ROWS, description="A table stops when more of its events wait in quarantine."
    )
    quarantine_share: Share = Field(
        default=fallback.LIMIT_QUARANTINE_SHARE,
        description="A table stops when a larger share of its recent events goes to quarantine (0 to 1).",
    )
    snapshot_seconds: Seconds = Field(
        default=fallback.LIMIT_SNAPSHOT_SECONDS,
        description="Longest transaction in which the service reads rows of a table to load it: as long, the source's vacuum keeps what it "
        "would clear away, and whoever alters the table waits.",
    )


class Api(Section):
    """The HTTP API of the running service."""

    listen: Address = Field(
        default=fallback.API_LISTEN,
        validate_default=True,
        description="Address to listen on; port 0 takes a free one (see <state_dir>/api.json).",
    )
    token_file: FilePath | None = Field(default=None, description="File that holds the bearer token; without one, each run makes its own.")


class Config(Section):
    """The whole file. ``file`` is where it was read from; relative paths in it are already resolved against its folder."""

    pipeline: str = Field(
        pattern=PIPELINE, description="Name of the pipeline; connector, slot, publication, consumer group: cdc_<pipeline>."
    )
    source: Source = Field(description="The database whose changes are captured, or whose tables are loaded.")
    kafka_section: Kafka | None = Field(
        default=None, alias="kafka", description="The Kafka cluster that Debezium writes to; not needed where all tables are loaded."
    )
    connect_section: Connect | None = Field(
        default=None, alias="connect", description="The Kafka Connect worker that runs Debezium; not needed where all tables are loaded."
    )
    schema_registry: SchemaRegistry = Field(
        default_factory=SchemaRegistry, description="The registry that holds the schemas of events in Avro; without a url, events are JSON."
    )
    destination: Destination = Field(description="The warehouse that tables are kept in.")
    defaults: Defaults = Field(default_factory=Defaults, description="What holds for each table that says nothing else.")
    tables: dict[Annotated[str, AfterValidator(_table_key)], Table] = Field(
        min_length=1,
        description="Tables to replicate: schema.table, or a pattern with * and ?. An exact name beats a pattern. "
        'A part with a dot in it is written "in quotes".',
    )
    limits: Limits = Field(default_factory=Limits, description="What the service may use, and how much may go wrong before a table stops.")
    api: Api = Field(default_factory=Api, description="The HTTP API of the running service.")
    state_dir: FilePath = Field(
        default=Path(fallback.STATE_DIR), validate_default=True, description="Folder of the running service's own files."
    )

    _file: Path = PrivateAttr(Path("config"))
    _lines: dict[tuple[str, ...], int] = PrivateAttr(default_factory=dict)

    @property
    def file(self) -> Path:
        return self._file

    def line(self, *path: str) -> int:
        """The line of a key in the file, or of the nearest part around it that is written there."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    @property
    def captures(self) -> bool:
        """Whether some table's changes are captured from the source's log, so that Kafka and Connect have to be there."""
        return any(table.load is None for table in self.tables.values())

    @property
    def kafka(self) -> Kafka:
        """Raises ConfigError where the file has no such section: all of its tables are loaded by queries."""
        if self.kafka_section is None:
            raise self._nothing_captured("kafka")
        return self.kafka_section

    @property
    def connect(self) -> Connect:
        """Raises as ``kafka`` does."""
        if self.connect_section is None:
            raise self._nothing_captured("connect")
        return self.connect_section

    def _nothing_captured(self, section: str) -> ConfigError:
        return ConfigError(
            f"{self.file} has no section '{section}': none of its tables is captured from a log, so there is nothing of the kind to do",
            hint="loaded tables need: cdc load, cdc run, cdc status",
            code="nothing_captured",
        )

    @property
    def topic_prefix(self) -> str:
        return (self.kafka_section.topic_prefix if self.kafka_section else None) or self.pipeline

    @property
    def names(self) -> Names:
        return Names(self.pipeline, self.topic_prefix)
