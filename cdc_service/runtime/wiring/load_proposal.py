"""How tables could be loaded, out of their catalog: the key and the cursor of each, what speaks against a cursor, and a whole configuration
for ``cdc load --from URL --to URL``.

A cursor has to move with every update, which no catalog says: a name that promises it (updated_at) is proposed, and a person looks it over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cdc_service.config import Config, parse
from cdc_service.config.models import Load
from cdc_service.config.problems import unknown_table
from cdc_service.config.secret import Url
from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import Kind
from cdc_service.core.types import TableId
from cdc_service.ports.load import ORDERED, TIMES, LoadedColumn, LoadedTable
from cdc_service.ports.source import Finding, Level
from connectors.sources import open_loadable, source_name

_WHEN = r"(_?(at|on|ts|time|date|timestamp|utc))?"
_MOVES = re.compile(f"(last_?)?(update|updated|modif|modified|modification|change|changed|mtime|touched){_WHEN}", re.IGNORECASE)
_STAYS = re.compile(f"(create|created|creation|insert|inserted|registered|birth){_WHEN}", re.IGNORECASE)
_COARSE = re.compile(r"\(0\)|^datetime$", re.IGNORECASE)
PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*@")


def key_of(table: LoadedTable) -> tuple[str, ...]:
    """What names a row: the primary key, else the narrowest set of unique columns."""
    return table.key or min(table.unique, key=len, default=())


def cursor_of(table: LoadedTable) -> LoadedColumn | None:
    """A column of time whose name says that it moves with updates; one with an index before others."""
    found = [c for c in table.columns if c.type is not None and c.type.kind in TIMES and _MOVES.fullmatch(c.name)]
    return min(
        found, key=lambda c: (c.name not in table.indexed, c.nullable, c.type is not None and c.type.kind is Kind.DATE), default=None
    )


def settings(table: LoadedTable) -> dict[str, Any] | None:
    """The ``load`` of a table, as the file has it; None where no row has a name."""
    key, cursor = key_of(table), cursor_of(table)
    if not key or any(found is None or found.type is None or found.type.kind not in ORDERED for found in map(table.column, key)):
        return None
    own: dict[str, Any] = {} if key == table.key else {"key": list(key)}
    if cursor is None:
        return {"by": "full", **own}
    return {"cursor": cursor.name, **own, **({"null_cursor": "include"} if cursor.nullable else {})}


def warnings(table: LoadedTable, load: Load) -> Iterator[Finding]:
    """What speaks against the cursor of a loaded table."""
    where, cursor = f"load {table.table}", table.column(load.cursor or "")

    def warn(message: str, cure: str) -> Finding:
        return Finding(where, ok=False, message=message, cure=cure, level=Level.WARNING)

    if cursor is None or cursor.type is None:
        return
    name, key = cursor.name, tuple(load.key) or table.key
    if name not in table.indexed:
        yield warn(f"its cursor {name} begins no index: each load reads the whole table", f"CREATE INDEX ON {table.table} ({name}, ...key)")
    if cursor.nullable:
        yield warn(f"its cursor {name} may be NULL", f"null_cursor is {load.null_cursor}; or make the column NOT NULL")
    if cursor.type.kind is Kind.DATE or _COARSE.search(cursor.source_type):
        cure = "rows of its last unit are read again with each load, so nothing is lost; a finer column makes that less"
        yield warn(f"its cursor {name} is coarse ({cursor.source_type})", cure)
    if name in key or _STAYS.fullmatch(name):
        why = "is part of its key, and" if name in key else "by its name"
        yield warn(f"its cursor {name} {why} does not move with updates: changed rows are not seen", "name another one, or by: full")
    if cursor.type.kind is Kind.TIMESTAMP and load.lookback is not None and load.lookback < 3600:
        yield warn(f"its cursor {name} has no time zone and its lookback is below the hour by which clocks are set back", "lookback: 2h")
    if not any(set(names) <= set(key) for names in table.unique):
        yield warn(f"nothing keeps its key ({', '.join(key)}) unique: each load looks for rows that share one", "a UNIQUE constraint")


def line(source: str, table: TableId) -> str:
    """How one table of ``source`` could be loaded, as a line of the configuration; empty where it cannot be."""
    opened = open_loadable(source)
    try:
        found = opened.table(table)
    finally:
        opened.close()
    own = None if found is None or any(c.type is None for c in found.columns) else settings(found)
    return "" if own is None else f"{table}: {_flow({'load': own})}"


# A configuration out of nothing


def for_file(source: str, destination: str, pipeline: str) -> str | None:
    """A whole configuration for a source without a log, its passwords as variables; None where the source has one, or cannot be told."""
    try:
        has_log = bool(source_name(os.path.expandvars(source)))
    except ConfigError as error:
        if error.code != "no_source":
            raise
        has_log = False
    return None if has_log else shown(proposed(os.path.expandvars(source), os.path.expandvars(destination), (), pipeline)) + "\n"


def proposed(source: str, destination: str, only: Sequence[str], pipeline: str = "") -> str:
    """The text of a configuration that loads ``only`` these tables of ``source``, or all that can be, into ``destination``."""
    try:
        place = Url.parse(source)
    except ValueError as error:
        raise ConfigError(f"--from: {error}", hint="write it as sqlite:///FILE or scheme://user:PASSWORD@host/database") from None
    opened = open_loadable(source)
    try:
        tables = opened.tables()
        wanted = [t for t in tables if not only or str(t) in only or t.name in only]
        for text in only:
            if not any(text in (str(t), t.name) for t in wanted):
                raise unknown_table(text, tables)
        found = [t for t in map(opened.table, wanted) if t is not None]
    finally:
        opened.close()
    lines = []
    for table in found:
        load = settings(table)
        unreadable = [c.name for c in table.columns if c.type is None]
        if load is None:
            lines.append(f"  # {table.table}: nothing names a row of it (no key)")
            continue
        own: dict[str, Any] = {"load": load, **({"columns": {"exclude": unreadable}} if unreadable else {})}
        lines.append(f"  {json.dumps(str(table.table))}: {_flow(own)}")
    if not any(not line.startswith("  #") for line in lines):
        raise ConfigError("the source has no table with a key that could be loaded", hint="\n".join(lines).strip(), code="nothing_loaded")
    name = pipeline or re.sub(r"[^a-z0-9_]+", "_", Path(place.database or "main").stem.lower()).strip("_")[:40] or "main"
    return "\n".join(
        (
            f"pipeline: {name if name[0].isalpha() else f'p_{name}'[:40]}",
            f"source: {{url: {_quoted(source)}}}",
            f"destination: {{url: {_quoted(destination)}}}",
            "tables:",
            *lines,
            "",
        )
    )


def configured(text: str) -> Config:
    """The configuration that ``proposed`` gave, as if it stood in this folder."""
    return parse(Path("cdc.yaml"), text)


def shown(text: str) -> str:
    """The same for a file: passwords become variables."""
    lines = []
    for line in text.splitlines():
        name = {"source": "SOURCE_PASSWORD", "destination": "WAREHOUSE_PASSWORD"}.get(line.partition(":")[0])
        lines.append(PASSWORD.sub(lambda m, name=name: f"{m[1]}${{{name}}}@", line) if name else line)  # type: ignore[misc]
    return "\n".join(lines)


def _quoted(url: str) -> str:
    return json.dumps(url.replace("$", "$$"), ensure_ascii=False)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z_]\w*", text) else json.dumps(text.replace("$", "$$"), ensure_ascii=False)
