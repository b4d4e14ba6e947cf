"""Logs of changes (mode append) on the real stack: tables with a key and without one, killed connectors, equal to what triggers wrote.

Triggers at the source write each change of each table into a journal, in the same transaction; nothing replicates the journal.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line

TABLES = ("keyed", "whole", "bare")
CONFIG = "public.keyed: {mode: append}\n  public.whole: {mode: append, metadata: minimal}\n  public.bare: {keyless: append}"
SCHEMA = """
CREATE TABLE keyed(id int PRIMARY KEY, n int, big text);
CREATE TABLE whole(id int PRIMARY KEY, n int, big text);
CREATE TABLE bare(id int, n int, big text);
ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL; ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
ALTER TABLE bare ALTER big SET STORAGE EXTERNAL;
ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE bare REPLICA IDENTITY FULL;
INSERT INTO keyed SELECT g, 0, repeat('k', 3000) FROM generate_series(1, 20) g;
INSERT INTO whole SELECT g, 0, repeat('w', 3000) FROM generate_series(1, 20) g;
INSERT INTO bare SELECT g / 2, 0, repeat('b', 3000) FROM generate_series(1, 20) g;
CREATE TABLE journal(n bigserial, name text, op text, old jsonb, new jsonb);
INSERT INTO journal(name, op, new) SELECT 'keyed', 'r', to_jsonb(t) FROM keyed t;
INSERT INTO journal(name, op, new) SELECT 'whole', 'r', to_jsonb(t) FROM whole t;
INSERT INTO journal(name, op, new) SELECT 'bare', 'r', to_jsonb(t) FROM bare t;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO journal(name, op, old, new) VALUES (TG_TABLE_NAME, lower(left(TG_OP, 1)), to_jsonb(OLD), to_jsonb(NEW)); RETURN NULL; END $$;
CREATE FUNCTION emptied() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO journal(name, op) VALUES (TG_TABLE_NAME, 't'); RETURN NULL; END $$;
"""
TRIGGERS = """
CREATE TRIGGER each_row AFTER INSERT OR UPDATE OR DELETE ON {0} FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER whole_table AFTER TRUNCATE ON {0} FOR EACH STATEMENT EXECUTE FUNCTION emptied();
"""

Change = tuple[str, Any, Any, Any, tuple[str, ...], str]


def write(url: str, dice: Random, transactions: int) -> None:
    """Changes of every kind, one writer."""
    with psycopg.connect(url) as connection:
        for _ in range(transactions):
            for _ in range(dice.choice([1, 1, 3])):
                name = dice.choice(TABLES)
                low, high = sorted(dice.sample(range(1, 120), 2))
                what = dice.choices(["insert", "rows", "update", "big", "delete", "move", "truncate"], [4, 2, 5, 3, 2, 2, 0.2])[0]
                conflict = "" if name == "bare" else "ON CONFLICT DO NOTHING"
                statement = {
                    "insert": f"INSERT INTO {name} VALUES ({low}, {high}, repeat('x', {high * 40})) {conflict}",
                    "rows": f"INSERT INTO {name} SELECT g % 7 + {low}, 1, 'same' FROM generate_series(1, 9) g {conflict}",
                    "update": f"UPDATE {name} SET n = n + 1 WHERE id BETWEEN {low} AND {high}",
                    "big": f"UPDATE {name} SET big = repeat('y', {low * 50}) WHERE id = {low}",
                    "delete": f"DELETE FROM {name} WHERE id BETWEEN {low} AND {low + 3}",
                    "move": f"UPDATE {name} SET id = -id, n = n + 1 WHERE id BETWEEN {low} AND {low + 4} AND NOT id = ANY "
                    f"(SELECT -id FROM {name})",
                    "truncate": f"TRUNCATE {name}",
                }[what]
                connection.execute(statement.encode())
            connection.commit()


def copy(url: str, name: str, rows: int, first: int) -> None:
    """Rows that share log positions; without a key many are alike."""
    with psycopg.connect(url) as connection, connection.cursor().copy(f"COPY {name} FROM STDIN".encode()) as into:
        for i in range(rows):
            into.write_row((first + i if name != "bare" else i // 1000, 7, "copied"))


def expected(url: str, name: str) -> list[Change]:
    """The rows that the log must have, in the order in which they were made: (op, id, n, big, unsent, before)."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT op, old, new FROM journal WHERE name = %s ORDER BY n", [name]).fetchall()
    found: list[Change] = []
    for op, old, new in rows:
        before = "" if old is None or (op == "u" and name == "keyed") else text(old if name != "keyed" else {"id": old["id"]})
        gone: tuple[Any, ...] = (None, None) if name == "keyed" else (old and old["n"], old and old["big"])
        lacking = ("n", "big") if name == "keyed" else ()
        if op == "t":
            found.append(("t", None, None, None, (), ""))
        elif op == "d":
            found.append(("d", old["id"], *gone, lacking, before))
        elif op == "u" and old["id"] != new["id"] and name != "bare":
            found.append(("d", old["id"], *gone, lacking, text({"id": old["id"]} if name == "keyed" else old)))
            found.append(("c", new["id"], *sent(name, old, new), ""))
        elif op == "u":
            found.append(("u", new["id"], *sent(name, old, new), before))
        else:
            found.append(("r" if op == "r" else "c", new["id"], new["n"], new["big"], (), ""))
    return found


def sent(name: str, old: Any, new: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """n, big and what was not sent: a large value that did not change, unless the whole row before was."""
    if name == "keyed" and old["big"] == new["big"] and len(new["big"]) > 1990:
        return new["n"], None, ("big",)
    return new["n"], new["big"], ()


def text(row: Any) -> str:
    return json.dumps(row, sort_keys=True)


def held(pipeline: Line, name: str) -> list[Change]:
    rows = pipeline.rows(f"SELECT _cdc_op, id, n, big, _cdc_unsent, _cdc_before FROM public.{name} ORDER BY _cdc_gen, _cdc_offset")
    return [
        (op, id_, n, big, tuple(json.loads(unsent)) if unsent else (), text(json.loads(before)) if before else "")
        for op, id_, n, big, unsent, before in rows
    ]


def assert_equal(pipeline: Line, url: str) -> None:
    for name in TABLES:
        wanted, found = expected(url, name), held(pipeline, name)
        missing, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
        assert not missing, f"{name}: {missing.total()} of {len(wanted)} changes are missing: {list(missing)[:3]}"
        assert not extra, f"{name}: {extra.total()} changes too many: {list(extra)[:3]}"
    streamed = [change for change in held(pipeline, "bare") if change[0] != "r"]
    assert streamed == [change for change in expected(url, "bare") if change[0] != "r"], "the order of a log without a key"


@pytest.mark.timeout(420)
def test_i1_i8_i11_i12_i16_i21_logs_of_changes_equal_what_triggers_wrote(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    url, dice = pg_database.url, Random("append")
    with line(stack, pg_database, tmp_path, CONFIG) as pipeline:
        pipeline.execute(SCHEMA)
        for name in TABLES:
            pipeline.execute(TRIGGERS.format(name))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(limit_seconds=60)
        for turn in range(4):
            write(url, dice, 60)
            for name in TABLES:
                copy(url, name, 5000, 1000 + 5000 * turn)
            write(url, dice, 20)
            await_more(pipeline, "public.bare", 2000)
            if turn % 2 == 0:
                stack.kill("connect")
                pipeline.kill()
                stack.start(["connect"])
                pipeline.start()
            else:
                pipeline.kill()
                pipeline.start()
        pipeline.await_complete(limit_seconds=180)
        repeated = sum(table["duplicate"] for table in pipeline.tables().values())
        pipeline.stop()
        assert_equal(pipeline, url)
        pipeline.assert_ledger([f"public.{name}" for name in TABLES])
        assert repeated > 0, "nothing came twice, so nothing was tried"


def await_more(pipeline: Line, table: str, events: int) -> None:
    """Until so many more events of the table are in Kafka than were."""
    topic = f"{pipeline.database.name}.{table}"

    def end() -> int:
        return sum(high for _, high in pipeline.kafka.describe([topic])[topic].ends.values())

    first = end()
    pipeline.await_that(f"{events} more events of {table} in Kafka", lambda: end() >= first + events, 60)


def test_i23_a_table_without_a_key_joins_a_running_connector_when_it_names_its_rows(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    """Refused without REPLICA IDENTITY FULL; its log then begins with its next change, and a resync begins a generation."""
    with line(stack, pg_database, tmp_path, "public.first: {}") as pipeline:
        pipeline.execute("CREATE TABLE first(id int PRIMARY KEY); CREATE TABLE late(v int); INSERT INTO late VALUES (1), (1)")
        pipeline.register()
        pipeline.configure("public.first: {}\n  public.late: {keyless: append}")
        found = {f["name"]: f for f in pipeline.call("check", accept=(1,))["findings"]}
        assert found["table public.late"]["cure"] == 'ALTER TABLE "public"."late" REPLICA IDENTITY FULL;'
        pipeline.call("register", "--yes", accept=(3,))
        with psycopg.connect(pg_database.url) as connection:
            published = connection.execute("SELECT 1 FROM pg_publication_tables WHERE tablename = 'late'").fetchall()
        assert published == [], "the source's own updates of it would fail"
        pipeline.execute("ALTER TABLE late REPLICA IDENTITY FULL")
        pipeline.register()
        topic = f"{pipeline.database.name}.public.late"
        assert len(pipeline.kafka.describe([topic])[topic].ends) == 1
        pipeline.start()
        pipeline.await_complete(limit_seconds=60)
        pipeline.execute("INSERT INTO late VALUES (2), (2), (2)")
        pipeline.await_complete(limit_seconds=60)
        assert "stays" in pipeline.act("resync", "public.late")["message"]
        pipeline.await_complete(limit_seconds=60)
        pipeline.execute("DELETE FROM late WHERE v = 1")
        pipeline.await_complete(limit_seconds=60)
        assert pipeline.tables()["public.late"]["mode"] == "append"
        pipeline.stop()
        rows = pipeline.rows("SELECT _cdc_op, v, _cdc_gen, _cdc_before FROM public.late ORDER BY _cdc_gen, _cdc_record, _cdc_seq")
        assert rows == [*[("c", 2, 0, None)] * 3, *[("d", 1, 1, '{"v":1}')] * 2]
        assert pipeline.rows("SELECT count(*) FROM public.first") == [(0,)]


def test_a_topic_of_several_partitions_stops_a_table_without_a_key(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    with line(stack, pg_database, tmp_path, "public.bare: {mode: append}") as pipeline:
        pipeline.execute("CREATE TABLE bare(v int); ALTER TABLE bare REPLICA IDENTITY FULL")
        pipeline.kafka.create_topics([f"{pipeline.database.name}.public.bare"], partitions=3, config={})
        pipeline.register()
        found = [f for f in pipeline.call("check", accept=(1,))["findings"] if f["status"] == "failed"]
        assert [f["message"] for f in found] == ["has 3 partitions; events of public.bare, which has no key, need exactly one"]
        pipeline.start()
        stopped = pipeline.await_state("public.bare", "error")
        assert stopped["error"]["code"] == "keyless_partitions"
