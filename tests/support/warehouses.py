"""The warehouses that tests of the line run with: where each is, what it holds, and what somebody else does to it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import duckdb
import psycopg
from psycopg import sql

from deploy.local.compare import Comparison, compare
from deploy.local.stack import HOST, Stack
from tests.support.replica import target_of

DESTINATION = os.environ.get("CDC_TEST_DESTINATION", "duckdb")
"""Where the tests that name no destination replicate to."""


class Warehouse(Protocol):
    """``url`` is as a configuration has it. An embedded warehouse is read and changed here while nobody has it open."""

    url: str
    types: dict[str, str]
    """Its names for a few types, by PostgreSQL's."""

    def rows(self, statement: str) -> list[tuple[Any, ...]]: ...
    def change(self, *statements: str) -> None:
        """As somebody does who should not."""
        ...

    def target_of(self, table: str) -> str:
        """The target of a source table under the default pattern of targets."""
        ...

    def compare(self, source_url: str, tables: Collection[str]) -> list[Comparison]:
        """Each source table with its target, row by row and column by column."""
        ...

    def one_in(self, share: int, columns: Sequence[str]) -> str:
        """A condition that holds for about one of ``share`` keys, always the same ones."""
        ...


class DuckDbFile:
    types: dict[str, str] = {  # noqa: RUF012
        "integer": "INTEGER", "text": "VARCHAR", "numeric(10,2)": "DECIMAL(10,2)", "timestamptz": "TIMESTAMP WITH TIME ZONE"
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.path = folder / "warehouse.duckdb"
        self.url = f"duckdb:///{self.path}"

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.execute(statement).fetchall()

    def change(self, *statements: str) -> None:
        with duckdb.connect(str(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)

    def target_of(self, table: str) -> str:
        return target_of(table)

    def compare(self, source_url: str, tables: Collection[str]) -> list[Comparison]:
        return compare(source_url, self.path, {table: self.target_of(table) for table in tables})

    def one_in(self, share: int, columns: Sequence[str]) -> str:
        return f"hash({', '.join(columns)}) % {share} = 0"


class PostgreSqlDatabase:
    """A database of its own on the stack's server, which the role `cdc` owns."""

    types: dict[str, str] = {  # noqa: RUF012
        "integer": "integer", "text": "text", "numeric(10,2)": "numeric", "timestamptz": "timestamp with time zone"
    }  # fmt: skip

    def __init__(self, stack: Stack, name: str) -> None:
        self._real_url = stack.pg_url_for(name, "cdc")
        self.url = f"postgresql://cdc:${{CDC_PASSWORD}}@{HOST}:{stack.port('postgres')}/{name}"

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._real_url) as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.execute(statement.encode()).fetchall()

    def change(self, *statements: str) -> None:
        with psycopg.connect(self._real_url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def target_of(self, table: str) -> str:
        return table

    def compare(self, source_url: str, tables: Collection[str]) -> list[Comparison]:
        return compare(source_url, self._real_url, {table: table for table in tables})

    def one_in(self, share: int, columns: Sequence[str]) -> str:
        return f"hashtext(CAST(ROW({', '.join(columns)}) AS TEXT)) % {share} = 0"


@contextmanager
def warehouse(destination: str, stack: Stack, folder: Path) -> Iterator[Warehouse]:
    """A new one, duckdb or postgresql; what it needs of a server is taken away at the end."""
    if destination == "duckdb":
        yield DuckDbFile(folder)
        return
    name = f"w_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(stack.pg_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER cdc").format(sql.Identifier(name)))
    try:
        yield PostgreSqlDatabase(stack, name)
    finally:
        stack.start(["postgres"])
        stack.drop_database(name)
