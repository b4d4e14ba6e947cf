"""``cdc init``: writes a commented configuration, with the tables that the source has or as an example."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdc_service.cli import exits
from cdc_service.cli.output import printable
from cdc_service.cli.shared import Shared, command

if TYPE_CHECKING:
    from cdc_service.config import Url
    from cdc_service.ports.source import SourceTable

SourceOption = Annotated[
    str | None, typer.Option("--source", metavar="URL", help="The source, such as 'postgresql://cdc:${PGPASSWORD}@localhost:5432/shop'.")
]
PipelineOption = Annotated[str | None, typer.Option("--pipeline", metavar="NAME", help="Name of the pipeline; else the database's name.")]
KafkaOption = Annotated[str, typer.Option("--kafka", metavar="SERVERS", help="Kafka's bootstrap servers.")]
ConnectOption = Annotated[str, typer.Option("--connect", metavar="URL", help="Address of Kafka Connect's REST API.")]
DestinationOption = Annotated[str, typer.Option("--destination", metavar="URL", help="The warehouse: duckdb:///FILE or postgresql://...")]
ExampleOption = Annotated[bool, typer.Option("--example", help="Write an example; ask no source.")]

SIGNALS = re.compile(r"cdc_[a-z][a-z0-9_]*_signal")
"""Names that pipelines give to their signal tables (core.names)."""
_EXAMPLE_SOURCE = "postgresql://cdc:${SHOP_PASSWORD}@localhost:5432/shop"


@dataclass(frozen=True, slots=True)
class Line:
    """One table in the file. ``refused`` says why it is commented out, ``cure`` what would change that; ``note`` is about the table."""

    key: str
    note: str
    refused: str = ""
    cure: str = ""


def register(app: typer.Typer) -> None:
    @command(app)
    def init(
        shared: Shared,
        source: SourceOption = None,
        pipeline: PipelineOption = None,
        kafka: KafkaOption = "localhost:9092",
        connect: ConnectOption = "http://localhost:8083",
        destination: DestinationOption = "duckdb:///warehouse.duckdb",
        example: ExampleOption = False,
    ) -> int:
        """Write a commented configuration for the tables of a source.

        Tables that cannot be replicated stand in it as comments, with the reason. A password is never written into the file: give it as
        ${NAME}, a variable of the environment.
        """
        from cdc_service.config import find_config
        from cdc_service.config.patterns import PIPELINE, PIPELINE_RULE
        from cdc_service.core.errors import ConfigError

        file = find_config(shared.config_file)
        if file.exists() and not shared.yes:
            raise ConfigError(f"{file} exists already", hint="name another file with --config, or overwrite it with --yes", code="exists")
        if source is not None and not example and (loaded := _loaded(source, destination, pipeline)) is not None:
            _write(file, loaded)
            shared.out.say(f"wrote {file}: no log of this source is captured, so its tables are loaded by queries")
            shared.out.say("next: look over the cursors (does each move with every update?), then: cdc check, cdc load")
            if shared.json:
                shared.out.document({"file": str(file), "loaded": True})
            return exits.OK
        if example:
            url, name, tables = _EXAMPLE_SOURCE, pipeline or "shop", _EXAMPLE_TABLES
        else:
            url, name, tables = _ask(shared, source, pipeline)
        if not re.fullmatch(PIPELINE, name):
            raise ConfigError(f"the pipeline's name {PIPELINE_RULE}", hint="give another one with --pipeline")
        text = render(name, url, kafka, connect, _warehouse(destination, shared), tables)
        _write(file, text)
        included = [line for line in tables if not line.refused]
        shared.out.say(f"wrote {file}: pipeline {name}, {len(included)} tables, {len(tables) - len(included)} left out as comments")
        shared.out.say("next: look it over, then: cdc check" + (f" -c {file}" if shared.config_file else ""))
        if shared.json:
            found = [{"table": line.key, "included": not line.refused, "note": line.note, "reason": line.refused} for line in tables]
            shared.out.document({"file": str(file), "pipeline": name, "tables": found})
        return exits.OK


def _loaded(source: str, destination: str, pipeline: str | None) -> str | None:
    """The configuration for a source of which no log is captured: all of its tables are loaded. None where there is a log."""
    from cdc_service.runtime.wiring import load_proposal

    return load_proposal.for_file(source, destination, pipeline or "")


def _ask(shared: Shared, source: str | None, pipeline: str | None) -> tuple[str, str, list[Line]]:
    """The source's URL as the file is to hold it (never a password), the pipeline's name and the source's tables."""
    from cdc_service.config.document import read
    from cdc_service.config.secret import Url
    from cdc_service.core.errors import ConfigError
    from cdc_service.core.names import Names
    from connectors.sources import open_source

    if source is None:
        if not sys.stdin.isatty() or shared.json:
            raise ConfigError("init needs to know the source", hint="give it with --source URL, or use --example for a file to start from")
        source = input("URL of the source, such as postgresql://cdc:${PGPASSWORD}@localhost:5432/shop: ").strip()
    filled = read(Path("--source"), "'" + source.replace("'", "''") + "'", os.environ)
    if filled.problems:
        raise ConfigError(f"--source: {filled.problems[0].message}", hint="set the variable, or write the URL without it")
    try:
        url = Url.parse(filled.data)
    except ValueError as error:
        raise ConfigError(f"--source: {error}", hint="write it as 'postgresql://user:${PASSWORD}@host:5432/database'") from None
    name = pipeline or re.sub(r"[^a-z0-9_]+", "_", (url.database or "").lower()).strip("_")[:40] or "main"
    name = name if name[0].isalpha() else f"p_{name}"[:40]
    opened = open_source(url.reveal())
    try:
        own = Names(name, name).signal_table
        found = [table for table in opened.tables() if table.root is None and table.table.name != own]
        refusals = {table.table: opened.refusal(table) for table in found}
    finally:
        opened.close()
    lines = []
    for table in found:
        refusal = refusals[table.table]
        if SIGNALS.fullmatch(table.table.name):
            lines.append(Line(str(table.table), "signals", "belongs to another pipeline, which asks for snapshots through it"))
            continue
        about = [f"about {table.rows:,} rows"] if table.rows > 0 else []
        note = ", ".join([*about, f"key ({', '.join(table.key)})" if table.key else "no key"])
        key = str(table.table)
        cure = "" if refusal is None else "\n".join(filter(None, (refusal.cure, _other_way(url.reveal(), table))))
        lines.append(Line(key, note, refusal.message if refusal else "", cure))
    return _without_password(source, url, name, shared), name, lines


def _other_way(source: str, table: SourceTable) -> str:
    """How a table that no log serves could be loaded, as a comment behind its cure."""
    from cdc_service.core.errors import CdcError
    from cdc_service.runtime.wiring.load_proposal import line

    try:
        found = line(source, table.table) if table.readable and table.root is None else ""
    except CdcError:
        return ""
    return f"or load it by queries: {found}" if found else ""


def _without_password(source: str, url: Url, name: str, shared: Shared) -> str:
    """The URL for the file: a password that was typed becomes a variable."""
    if url.password is None or "${" in source:
        return source
    variable = f"{name.upper()}_PASSWORD"
    shared.out.say(f"the password is not written into the file: set it in the environment as {variable}")
    return re.sub(r"(://[^:/@]*:)[^@]*@", lambda m: f"{m[1]}${{{variable}}}@", source, count=1)


def _warehouse(destination: str, shared: Shared) -> str:
    """The destination's URL as the file is to hold it."""
    from cdc_service.config.secret import Url
    from cdc_service.core.errors import ConfigError

    try:
        return _without_password(destination, Url.parse(destination), "warehouse", shared)
    except ValueError as error:
        cure = "write it as duckdb:///FILE or 'postgresql://user:${PASSWORD}@host:5432/database'"
        raise ConfigError(f"--destination: {error}", hint=cure) from None


def _write(file: Path, text: str) -> None:
    from cdc_service.core.errors import ConfigError

    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", hint="name another file with --config") from None


def _scalar(text: str) -> str:
    """The text as a YAML scalar."""
    plain = re.fullmatch(r"[A-Za-z_/][\w./:@${}-]*", text) and ": " not in text and not text.endswith(":")
    if plain:
        return text
    return "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)


def render(pipeline: str, source: str, kafka: str, connect: str, destination: str, tables: list[Line]) -> str:
    """The text of a configuration file, commented."""
    from cdc_service.config import defaults

    width = max((len(_scalar(line.key)) for line in tables if not line.refused), default=0)
    body = "\n".join(_table(line, width) for line in tables)
    if not any(not line.refused for line in tables):
        body = "  # The source has no table that can be replicated yet; name one here.\n" + body
    return _TEMPLATE.format(
        pipeline=pipeline,
        source=_scalar(source),
        kafka=_scalar(kafka),
        connect=_scalar(connect),
        destination=_scalar(destination),
        tables=body,
        rows=defaults.FLUSH_ROWS,
        size=f"{defaults.FLUSH_BYTES // 2**20}MiB",
        seconds=f"{defaults.FLUSH_SECONDS:g}",
        memory=f"{defaults.LIMIT_MEMORY // 2**20}MiB",
        quarantine=defaults.LIMIT_QUARANTINE_ROWS,
        share=defaults.LIMIT_QUARANTINE_SHARE,
        meta=defaults.META_SCHEMA,
        listen=defaults.API_LISTEN,
        state=defaults.STATE_DIR,
        target=defaults.TARGET,
        mode=defaults.MODE,
    )


def _table(line: Line, width: int) -> str:
    if not line.refused:
        entry = f"{_scalar(line.key)}: {{}}"
        return f"  {entry:{width + 4}}  # {printable(line.note)}" if line.note else f"  {entry}"
    first, *rest = line.cure.splitlines() or [""]
    reasons = [*line.refused.splitlines(), *([f"cure: {first}", *(f"      {text}" for text in rest)] if first else [])]
    return f"  # {_scalar(line.key)}: {{}}  # {printable(line.note)}\n" + "\n".join(f"  #   {printable(text)}" for text in reasons)


_EXAMPLE_TABLES = [
    Line("public.customers", "one table by its name"),
    Line("public.order*", "every table that a pattern matches; an exact name beats a pattern"),
]

_TEMPLATE = """\
# Configuration of cdc. 'cdc schema' prints its JSON Schema for editors; 'cdc check' says whether it works.
# ${{NAME}} is an environment variable, $$ a dollar sign. Relative paths are relative to this file.

# Connector, replication slot, publication and consumer group are called cdc_<pipeline>.
pipeline: {pipeline}

source:
  url: {source}
  # How Kafka Connect reaches the same server, where that differs:
  # connect_host: postgres
  # connect_port: 5432

kafka:
  bootstrap_servers: {kafka}
  # topic_prefix: {pipeline}      # topics are called <topic_prefix>.<schema>.<table>
  # options: {{}}                 # librdkafka's own names, such as security.protocol

connect:
  url: {connect}
  # How the source's password reaches the worker: env and file as references to a ConfigProvider of the worker;
  # inline as text, which Connect then keeps in its configuration topic.
  secrets: env
  # options: {{}}                 # Debezium's own names

destination:
  url: {destination}
  # meta_schema: {meta}           # checkpoints, ledger and quarantine are kept here

# What holds for each table that says nothing else.
defaults:
  mode: {mode}                  # or soft_delete: deleted rows stay, marked; or append: each change is a row
  target: "{target}"
  flush: {{rows: {rows}, bytes: {size}, seconds: {seconds}}}   # a batch is merged when the first of these is reached

# schema.table or a pattern. A part with a dot in it stands in double quotes.
tables:
{tables}

# limits: {{memory: {memory}, quarantine_rows: {quarantine}, quarantine_share: {share}}}
# api: {{listen: "{listen}"}}      # the running service is found through <state_dir>/api.json
# state_dir: {state}
"""
