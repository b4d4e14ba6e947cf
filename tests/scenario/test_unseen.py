"""Nothing at the source changes unseen (I28): what the log does not carry is carried by the catalog, read anew, or stops its table with a
cure that heals, on the real stack; and whenever the warehouse says that a table is complete through a position, it is.

All tests share one pipeline, and each has a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from deploy.local.stack import Stack
from tests.support.line import EACH, Line, database, line

ANEW = {
    "added_under_the_old_name": "ALTER TABLE {t} RENAME n TO m; ALTER TABLE {t} ADD n int DEFAULT 0",
    "swapped": "ALTER TABLE {t} RENAME n TO x; ALTER TABLE {t} RENAME k TO n; ALTER TABLE {t} RENAME x TO k",
    "made_again": "ALTER TABLE {t} DROP n; ALTER TABLE {t} ADD n int DEFAULT 7",
    "scaled": "ALTER TABLE {t} ALTER c TYPE numeric(12,2)",
    "multiplied": "ALTER TABLE {t} ALTER n TYPE int USING n * 100",
    "relabelled": "ALTER TYPE mood_{t} RENAME VALUE 'sad' TO 'blue'",
    "dice": "ALTER TABLE {t} ADD x text DEFAULT md5(random()::text)",
    "replaced": "CREATE TABLE {t}_new (LIKE {t} INCLUDING ALL); INSERT INTO {t}_new(id, n, u) VALUES (1, 100, 1), (77, 7, 2);"
    " ALTER PUBLICATION {p} ADD TABLE {t}_new; ALTER TABLE {t} RENAME TO {t}_old; ALTER TABLE {t}_new RENAME TO {t}",
    "away": "ALTER PUBLICATION {p} DROP TABLE {t}; UPDATE {t} SET n = -1 WHERE id = 2; ALTER PUBLICATION {p} ADD TABLE {t}",
    "attached": "CREATE TABLE {t}_p3 (LIKE {t} INCLUDING ALL); INSERT INTO {t}_p3(id, n) VALUES (2001, 1);"
    " ALTER TABLE {t} ATTACH PARTITION {t}_p3 FOR VALUES FROM (2000) TO (3000)",
    "detached": "ALTER TABLE {t} DETACH PARTITION {t}_p1",
    "emptied": "TRUNCATE {t}_p1",
}
"""Each with statements after which only reading the rows tells what they hold."""
CARRIED = {
    "renamed": "ALTER TABLE {t} RENAME n TO m",
    "renamed_key": "ALTER TABLE {t} RENAME id TO ident",
    "added": "ALTER TABLE {t} ADD x int DEFAULT 5, ADD y text",
    "vacuumed": "VACUUM FULL {t}",
    "granted": "GRANT SELECT ON {t} TO PUBLIC",
    "born": "CREATE TABLE {t}_p3 PARTITION OF {t} FOR VALUES FROM (2000) TO (3000)",
}
"""Each with statements after which the target follows and nothing is read."""
STOPPED = {
    "taken_out": ("not_published", "ALTER PUBLICATION {p} DROP TABLE {t}"),
    "filtered": ("published_in_part", "ALTER PUBLICATION {p} DROP TABLE {t}; ALTER PUBLICATION {p} ADD TABLE {t} WHERE (id > 3)"),
    "elsewhere_identified": ("identity_lacks_key", "ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_u_key"),
    "fathered": ("inherited", "CREATE TABLE {t}_kid () INHERITS ({t}); INSERT INTO {t}_kid(id, n, u) VALUES (500, 5, 500)"),
    "secured": ("row_security", "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY"),
    "expressed": ("columns_left_out", "ALTER TABLE {t} ALTER g DROP EXPRESSION"),
}
"""Each with the code of what stops it, and the statements that bring it about."""
PARTS = {"attached", "detached", "emptied", "born"}
TABLES = (*ANEW, *CARRIED, *STOPPED)


@pytest.fixture(scope="module", params=EACH)
def pipeline(stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Line]:
    """One pipeline with all tables of five rows each, in the stream."""
    with database(stack) as source:
        configured = "\n  ".join(f"public.{name}: {{}}" for name in TABLES)
        with line(stack, source, tmp_path_factory.mktemp("unseen"), configured, destination=request.param) as made:
            made.execute("ALTER ROLE cdc NOBYPASSRLS")  # The role is the server's, and a cure gives it that right.
            for name in TABLES:
                columns = "id int PRIMARY KEY, n int, k int, c numeric(12,4)"
                if name in PARTS:
                    made.execute(f"CREATE TABLE {name}({columns}) PARTITION BY RANGE (id)")
                    made.execute(f"CREATE TABLE {name}_p1 PARTITION OF {name} FOR VALUES FROM (0) TO (1000)")
                    made.execute(f"CREATE TABLE {name}_p2 PARTITION OF {name} FOR VALUES FROM (1000) TO (2000)")
                else:
                    made.execute(f"CREATE TYPE mood_{name} AS ENUM ('sad', 'glad')")
                    generated = ", g int GENERATED ALWAYS AS (n + 1) STORED" if name == "expressed" else ""
                    made.execute(f"CREATE TABLE {name}({columns}, e mood_{name} DEFAULT 'sad', u int NOT NULL UNIQUE{generated})")
                more = "" if name in PARTS else ", u"
                numbers = "" if name in PARTS else ", g"
                made.execute(f"INSERT INTO {name}(id, n, k, c{more}) SELECT g, g, -g, g / 7.0{numbers} FROM generate_series(1, 5) g")
            made.register()
            made.start()
            made.await_complete(limit_seconds=120)
            yield made
            made.execute("ALTER ROLE cdc NOBYPASSRLS")


@pytest.fixture(scope="module")
def changed(pipeline: Line) -> dict[str, dict[str, Any]]:
    """What each table said before its source was changed, all of them at once; ``fence`` is a position behind all changes. What is known to
    be complete is written down every ten seconds, so one wait serves for all."""
    before = {name: claim(pipeline, name) for name in TABLES}
    for name, statements in {**ANEW, **CARRIED, **{name: said for name, (_, said) in STOPPED.items()}}.items():
        # In one transaction, so that no look comes between the statements.
        pipeline.execute(statements.format(t=name, p=f"cdc_{pipeline.database.name}"))
        before[name]["changed"] = pipeline.fence()
        if name != "emptied" and name not in CARRIED:
            insert(pipeline, name, 1500)
        if name in STOPPED:
            pipeline.execute(f"DELETE FROM {name} WHERE id = 3")
    fence = pipeline.fence()
    return {name: {**said, "fence": fence} for name, said in before.items()}


def insert(pipeline: Line, name: str, id_: int) -> None:
    key = "ident" if name == "renamed_key" else "id"
    more, number = ("", "") if name in PARTS else (", u", f", {id_}")
    pipeline.execute(f"INSERT INTO {name}({key}, k{more}) VALUES ({id_}, {id_}{number})")


def claim(pipeline: Line, name: str) -> dict[str, Any]:
    """What the warehouse says of the table to whoever reads it."""
    found = pipeline.query(
        "SELECT state, is_complete, complete_through, freshness_seconds, error_code, error_message, error_hint, generation"
        f" FROM _cdc.table_status WHERE source_table = 'public.{name}'"
    )
    return {} if found is None else dict(found.to_pylist()[0])


def await_right(pipeline: Line, name: str, fence: int) -> None:
    """Returns when the table says that it is complete through the fence; then it has to be."""
    pipeline.await_that(
        f"{name} is complete through {fence}: {claim(pipeline, name)}",
        lambda: (said := claim(pipeline, name)) and said["is_complete"] and (said["complete_through"] or 0) >= fence,
        90,
    )
    with psycopg.connect(pipeline.database.url) as connection:
        cursor = connection.execute(f"SELECT * FROM {name}".encode())  # Values, since 0.14 is 0.1400.
        names = [column.name for column in cursor.description or ()]
        here = sorted(cursor.fetchall(), key=str)
    found = pipeline.query(f"SELECT {', '.join(names)} FROM public.{name}")
    assert found is not None
    assert sorted(zip(*(found.column(name).to_pylist() for name in names), strict=True), key=str) == here


@pytest.mark.parametrize("name", ANEW)
def test_i28_what_only_reading_tells_is_read_anew(pipeline: Line, changed: dict[str, dict[str, Any]], name: str) -> None:
    await_right(pipeline, name, changed[name]["fence"])
    assert claim(pipeline, name)["generation"] > changed[name]["generation"]


@pytest.mark.parametrize("name", CARRIED)
def test_i28_what_the_catalog_tells_is_carried_and_nothing_is_read(pipeline: Line, changed: dict[str, dict[str, Any]], name: str) -> None:
    await_right(pipeline, name, changed[name]["fence"])  # Without any event of the table.
    insert(pipeline, name, 1500)  # What becomes of it is seen at the end.
    assert claim(pipeline, name)["generation"] == changed[name]["generation"]


@pytest.mark.parametrize("name", STOPPED)
def test_i28_what_does_not_arrive_stops_its_table_and_the_cure_heals(pipeline: Line, changed: dict[str, dict[str, Any]], name: str) -> None:
    code, _ = STOPPED[name]
    pipeline.await_that(f"{name} says {code}", lambda: claim(pipeline, name).get("error_code") == code, 60)
    said = claim(pipeline, name)
    assert (said["is_complete"], said["state"]) == (False, "error")
    assert changed[name]["complete_through"] <= said["complete_through"] <= changed[name]["changed"]
    assert f"public.{name}" in said["error_message"]
    for cure in said["error_hint"].splitlines():
        if cure.startswith("cdc "):
            pipeline.call(*cure.split()[1:], "--yes")
        else:
            pipeline.execute(cure)
    await_right(pipeline, name, pipeline.fence())
    pipeline.execute(f"UPDATE {name} SET n = 12 WHERE id = 2")  # As above.


def test_the_neighbours_went_on(pipeline: Line, changed: dict[str, dict[str, Any]]) -> None:
    """At the end all is equal, over a restart of the service too, and nothing unforeseen happened; a table that is gone stops alone."""
    pipeline.stop()
    pipeline.execute("DROP TABLE away")
    pipeline.start()
    pipeline.await_that("away says that it is gone", lambda: claim(pipeline, "away").get("error_code") == "table_gone", 60)
    assert claim(pipeline, "away")["is_complete"] is False
    fence = pipeline.fence()
    for name in set(TABLES) - {"away"}:
        await_right(pipeline, name, fence)
    assert {name: claim(pipeline, name)["generation"] for name in CARRIED} == {name: changed[name]["generation"] for name in CARRIED}
    assert "Traceback" not in pipeline.log.read_text()
    assert "unexpected" not in pipeline.log.read_text()
