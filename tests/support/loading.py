"""What tests of loaded tables share: a source database with one table, a warehouse, and loads between them."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from sqlalchemy.engine import make_url

from cdc_service.config import Config, load, resolve
from cdc_service.core.clock import RealClock, Stop
from cdc_service.core.types import Checkpoint, TableId
from cdc_service.pipeline.load_task import LoadTask, Window
from cdc_service.ports.destination import Destination
from cdc_service.ports.load import Loadable
from cdc_service.runtime.wiring.loading import Outcome, load_one
from connectors.sources import open_loadable
from connectors.sources.sql.loadable import SqlLoadable
from deploy.local.stack import Stack
from mergers.destinations import open_destination

TYPES = {
    "sqlite": {"timestamptz": "timestamp", "uuid": "text", "numeric": "integer"},
    "postgresql": {},
}
"""By engine what a type of the tests is called there, where it is not called so."""


@dataclass
class Database:
    """A source: ``engine`` is sqlite or postgresql, ``url`` as the configuration has it; ``generic`` is read as any database is."""

    engine: str
    url: str
    generic: bool = False
    schema: str = "main"
    _open: list[Any] = field(default_factory=list)

    def session(self) -> Any:
        """A connection of its own, in autocommit."""
        if self.engine == "sqlite":
            made: Any = sqlite3.connect(str(make_url(self.url).database), isolation_level=None, timeout=20)
        else:
            made = psycopg.connect(self.url, autocommit=True)
        self._open.append(made)
        return made

    def run(self, *statements: str) -> None:
        with contextlib.closing(self.session()) as session:
            for sql in statements:
                session.execute(self.spelled(sql))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.session()) as session:
            return list(session.execute(sql).fetchall())

    def spelled(self, sql: str) -> str:
        for name, own in TYPES[self.engine].items():
            sql = sql.replace(f" {name}", f" {own}")
        return sql

    def open(self) -> Loadable:
        return SqlLoadable(make_url(self.url).set(drivername="postgresql+psycopg")) if self.generic else open_loadable(self.url)

    def close(self) -> None:
        for session in self._open:
            session.close()


@contextlib.contextmanager
def database(name: str, folder: Path, stack: Stack | None) -> Iterator[Database]:
    if name == "sqlite":
        made = Database("sqlite", f"sqlite:///{folder}/shop.db")
        made.run("PRAGMA journal_mode=WAL")
        yield made
        made.close()
        return
    assert stack is not None
    of = f"l_{uuid.uuid4().hex[:12]}"
    made = Database("postgresql", stack.create_database(of), generic=name == "any", schema="public")
    yield made
    made.close()
    stack.drop_database(of)


@dataclass
class Loads:
    """Loads of one table of a source, ``items``, into a warehouse in ``folder``."""

    source: Database
    folder: Path
    destination: Destination
    config: Config
    opened: Loadable

    def task(self) -> LoadTask:
        (config,) = resolve(self.config, [TableId(self.source.schema, "items")], self.destination.fold, loaded=True)
        return LoadTask(config, self.destination, self.opened, RealClock(), self.config.limits)

    def load(self, **window: Any) -> Outcome:
        """Whatever comes of it."""
        return load_one(self.task(), Window(**window), RealClock(), lambda task: None, Stop())

    def loaded(self, **window: Any) -> LoadTask:
        """One that comes to its end."""
        outcome = self.load(**window)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.outcome == "loaded"
        return outcome.task

    def kept(self, columns: str = "*", where: str = "TRUE") -> list[tuple[Any, ...]]:
        table = self.destination.query(
            f'SELECT {columns} FROM "{self.source.schema}"."items" WHERE {where} ORDER BY ALL', rows_max=1_000_000
        )
        return [tuple(row.values()) for row in table.to_pylist()]

    def ids(self) -> list[int]:
        return [row[0] for row in self.kept("id")]

    def checkpoint(self) -> Checkpoint:
        (found,) = self.destination.checkpoints(self.task().target)
        return found

    def everything(self) -> list[Any]:
        """All that a load may change, but for clocks and the epoch."""
        columns = "* EXCLUDE (_cdc_synced_at)"
        meta = [("batch", "* EXCLUDE (committed_at)"), ("quarantine", "id, state"), ("schema_history", "version, change")]
        asked = [f"SELECT {what} FROM _cdc.{name} ORDER BY ALL" for name, what in meta]
        found = [self.destination.query(sql, rows_max=100_000).to_pylist() for sql in asked]
        c = self.checkpoint()
        return [self.kept(columns), (c.next_offset, c.mark), *found]


@contextlib.contextmanager
def loads(
    source: Database, folder: Path, load_: dict[str, Any], *, mode: str = "upsert", rows: int = 1000, **table: Any
) -> Iterator[Loads]:
    """``load_`` is the table's ``load``, ``rows`` the size of a page."""
    config = write(source, folder, load_, mode=mode, rows=rows, **table)
    destination = open_destination(config.destination.url.reveal(), pipeline="shop", meta_schema="_cdc", options={})
    destination.prepare()
    opened = source.open()
    try:
        yield Loads(source, folder, destination, config, opened)
    finally:
        opened.close()
        destination.close()


def write(source: Database, folder: Path, load_: dict[str, Any], *, mode: str = "upsert", rows: int = 1000, **table: Any) -> Config:
    own = {"load": load_, "mode": mode, "flush": {"rows": rows}, **table}
    text = {
        "pipeline": "shop",
        "source": {"url": source.url},
        "destination": {"url": "duckdb:///warehouse.duckdb"},
        "tables": {f"{source.schema}.items": own},
    }
    (folder / "cdc.yaml").write_text(yaml.safe_dump(text))
    return load(folder / "cdc.yaml")


def values(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a list of SQL."""

    def one(value: Any) -> str:
        return "NULL" if value is None else repr(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"

    return ", ".join(f"({', '.join(map(one, row))})" for row in rows)
