"""The empty destinations that arms write to, and whether they hold what they should at the end, row for row and value for value."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import psycopg
from psycopg import sql

from deploy.local.stack import HOST, Stack
from tests.bench.filled import Filled
from tests.bench.workload import Shape


class DuckDbFile:
    kind = "duckdb"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"duckdb:///{path}"

    def rows(self, table: str) -> int:
        with duckdb.connect(str(self.path), read_only=True) as found:
            row = found.execute(f"SELECT count(*) FROM public.{table}").fetchone()
            return row[0] if row else 0

    def right(self, filled: Filled, where: str = "") -> bool:
        """``where`` leaves out rows that no change of the workload wrote."""
        with duckdb.connect(str(self.path), read_only=True) as found:
            found.execute("SET timezone = 'UTC'")
            return all(
                same(filled, place, found.sql(f"SELECT {_names(filled.workload.shape)} FROM public.{table}{where}").to_arrow_table())
                for place, table in enumerate(filled.workload.names())
            )


class PostgreSqlDatabase:
    """A database that the role `cdc` owns."""

    kind = "postgresql"

    def __init__(self, stack: Stack, name: str, folder: Path) -> None:
        self.name, self.stack, self._folder = name, stack, folder
        self.admin_url = stack.pg_url_for(name)
        self.url = f"postgresql://cdc:${{CDC_PASSWORD}}@{HOST}:{stack.port('postgres')}/{name}"

    def rows(self, table: str) -> int:
        with psycopg.connect(self.admin_url) as connection:
            row = connection.execute(f"SELECT count(*) FROM public.{table}".encode()).fetchone()
            return row[0] if row else 0

    def right(self, filled: Filled, where: str = "", prefix: str = "") -> bool:
        """``prefix`` is what the names of the tables begin with where it is not the source's name alone."""
        for place, table in enumerate(filled.workload.names()):
            file = self._folder / "found.csv"
            with psycopg.connect(self.admin_url) as connection, connection.cursor() as cursor, file.open("wb") as out:
                cursor.execute("SET timezone = 'UTC'")
                select = f"SELECT {_names(filled.workload.shape)} FROM public.{prefix}{table}{where}"
                statement = f"COPY ({select}) TO STDOUT (FORMAT csv, NULL '\\N', FORCE_QUOTE *)"
                with cursor.copy(statement.encode()) as copied:
                    for block in copied:
                        out.write(block)
            columns = {c.name: "VARCHAR" for c in filled.workload.shape.columns}
            with duckdb.connect() as reader:
                reader.execute("SET timezone = 'UTC'")
                form = "auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"', nullstr = '\\N'"
                read = f"SELECT * FROM read_csv(?, columns = ?, {form}, max_line_size = 10000000)"
                if not same(filled, place, reader.sql(read, params=[str(file), columns]).to_arrow_table()):
                    return False
            file.unlink()
        return True


def _names(shape: Shape) -> str:
    return ", ".join(c.name for c in shape.columns)


def same(filled: Filled, place: int, found: object) -> bool:
    """Whether these are the rows of the table, each once, each value equal."""
    shape = filled.workload.shape
    wanted = filled.workload.final(filled.changes, place)
    typed = ", ".join(f"CAST({c.name} AS {c.duckdb}) AS {c.name}" for c in shape.columns)
    with duckdb.connect() as judge:
        judge.execute("SET timezone = 'UTC'")
        judge.register("wanted", wanted)
        judge.register("found", found)
        judge.execute(f"CREATE TABLE w AS SELECT {typed} FROM wanted; CREATE TABLE f AS SELECT {typed} FROM found")
        counts = judge.execute("SELECT (SELECT count(*) FROM w), (SELECT count(*) FROM f)").fetchone()
        missing = judge.execute("SELECT count(*) FROM (SELECT * FROM w EXCEPT ALL SELECT * FROM f)").fetchone()
        assert counts is not None
        assert missing is not None
        return bool(counts[0] == counts[1] and missing[0] == 0)


@contextmanager
def destination(kind: str, stack: Stack, folder: Path) -> Iterator[DuckDbFile | PostgreSqlDatabase]:
    """A new one; taken away at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "duckdb":
        path = folder / "warehouse.duckdb"
        try:
            yield DuckDbFile(path)
        finally:
            for file in folder.glob("warehouse.duckdb*"):
                file.unlink()
        return
    name = f"w_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(stack.pg_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER cdc").format(sql.Identifier(name)))
        admin.execute("CHECKPOINT")
    try:
        yield PostgreSqlDatabase(stack, name, folder)
    finally:
        stack.drop_database(name)
