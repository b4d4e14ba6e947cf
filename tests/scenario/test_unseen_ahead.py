"""Rows of after a change that the log does not carry, and that come before the next look at the catalog: as soon as such a row shows, its
table says that it is not complete. Seen from outside, with the row and what the table says of itself in one statement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.line import Line, database, line
from tests.support.registration import eventually

TABLES = "public.a: {}\n  public.b: {}\n  public.c: {}\n  public.calm: {}"
SETUP = """CREATE TABLE a (id int PRIMARY KEY, n int, long text); ALTER TABLE a ALTER long SET STORAGE EXTERNAL;
INSERT INTO a SELECT g, 0, repeat('a', 9000) FROM generate_series(1, 5) g;
CREATE TABLE b (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO b SELECT g, 0 FROM generate_series(1, 5) g;
CREATE TABLE c (id int PRIMARY KEY, n int); INSERT INTO c SELECT g, 0 FROM generate_series(1, 5) g;
CREATE TABLE calm (id int PRIMARY KEY, n int, long text); INSERT INTO calm SELECT g, 0, 'a' FROM generate_series(1, 5) g"""


@pytest.fixture(scope="module")
def pipeline(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder: Path = tmp_path_factory.mktemp("ahead")
    with database(stack) as made, line(stack, made, folder, TABLES, destination="postgresql") as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        yield pipeline


def shown(pipeline: Line, table: str, n: int) -> bool:
    """Whether the table said that it was complete at the first sight of the row that has ``n``."""
    there = f"EXISTS (SELECT FROM public.{table} WHERE n = {n})"
    sql = f"SELECT is_complete FROM _cdc.table_status WHERE source_table = 'public.{table}' AND {there}"
    found = eventually(f"the row of {table} with n = {n} shows", lambda: pipeline.rows(sql), rest=pipeline.report)
    return bool(found[0][0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_i30_a_value_that_an_event_leaves_out_was_written_anew(pipeline: Line, n: int) -> None:
    pipeline.execute(f"ALTER TABLE a ALTER long TYPE text USING long || '{n}'; UPDATE a SET n = {n} WHERE id = {n}")
    assert not shown(pipeline, "a", n)
    pipeline.await_complete("public.a")
    assert pipeline.rows(f"SELECT right(long, {n}) FROM public.a WHERE id = {n}") == [("123"[:n],)]


def test_i30_a_column_is_generated_no_more(pipeline: Line) -> None:
    pipeline.execute("ALTER TABLE b ALTER twice DROP EXPRESSION; INSERT INTO b VALUES (6, 1, 17)")
    stopped = pipeline.await_state("public.b", "error")
    assert stopped["error"]["code"] == "columns_left_out"
    assert pipeline.rows("SELECT FROM public.b WHERE n = 1") == [], "the row was merged without the column"


def test_i30_a_column_comes_that_the_publication_does_not_list(pipeline: Line) -> None:
    name = f"cdc_{pipeline.database.name}"
    pipeline.execute(
        f"ALTER PUBLICATION {name} DROP TABLE c; ALTER PUBLICATION {name} ADD TABLE c (id, n);"
        "ALTER TABLE c ADD more int DEFAULT 5; INSERT INTO c VALUES (6, 1, 17)"
    )
    stopped = pipeline.await_state("public.c", "error")
    assert stopped["error"]["code"] == "published_in_part"
    assert pipeline.rows("SELECT FROM public.c WHERE n = 1") == [], "the row was merged without the column"


def test_a_row_of_a_table_that_nobody_alters_shows_while_it_is_complete(pipeline: Line) -> None:
    """Else what stands above would prove nothing."""
    pipeline.await_complete("public.calm")
    pipeline.execute("UPDATE calm SET n = 1 WHERE id = 1")
    assert shown(pipeline, "calm", 1)
