"""columns.exclude on the real stack: the values reach neither the target nor anything that the service keeps beside it, whatever becomes of
the columns at the source; everything else stays equal, and a slip of the pen is told before the first event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from tests.support.line import EACH, Line, database, line
from tests.support.replica import quoted

SECRET = "s3cr3t-word"
SETUP = f"""CREATE TABLE t (id int PRIMARY KEY, n int, secret text, odd varbit(5), body text);
ALTER TABLE t ALTER secret SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;
INSERT INTO t SELECT g, g, repeat('{SECRET}', 500), B'101', repeat('long', 1000) FROM generate_series(1, 20) g;
CREATE TABLE log (id int PRIMARY KEY, n int, secret text); ALTER TABLE log REPLICA IDENTITY FULL;
INSERT INTO log VALUES (1, 1, '{SECRET}')"""
CHANGES = f"""UPDATE t SET n = n + 1; UPDATE t SET secret = '{SECRET}-again' WHERE id <= 5; UPDATE t SET id = id + 100 WHERE id = 7;
DELETE FROM t WHERE id = 8; INSERT INTO t VALUES (30, 30, '{SECRET}', NULL, 'b'); UPDATE t SET body = 'short' WHERE id = 9;
UPDATE log SET n = 2, secret = '{SECRET}-2'; DELETE FROM log"""


def tables(t: str) -> str:
    return f"public.t: {{columns: {{exclude: [{t}]}}}}\n  public.log: {{mode: append, columns: {{exclude: [secret]}}}}"


def holds_the_secret(pipeline: Line) -> list[str]:
    """The files of the pipeline's folder in which the word stands; the service must not run."""
    return [str(path) for path in sorted(pipeline.folder.rglob("*")) if path.is_file() and SECRET.encode() in path.read_bytes()]


def compared(pipeline: Line, name: str) -> dict[str, Any]:
    (table,) = pipeline.call("reconcile", name)["tables"]
    return dict(table)


@pytest.mark.parametrize("destination", EACH)
def test_what_is_left_out_is_kept_nowhere(stack: Stack, tmp_path: Path, destination: str) -> None:
    with database(stack) as made, line(stack, made, tmp_path, tables("secret, odd"), destination=destination) as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        pipeline.execute(CHANGES)
        pipeline.await_complete()
        found = compared(pipeline, "public.t")
        assert (found["status"], found["coverage"]["columns"]) == ("match", ["id", "n", "body"])
        why = {c["column"]: c["reason"] for c in found["coverage"]["left_out"]}
        assert why == dict.fromkeys(("secret", "odd"), "the configuration leaves it out (columns.exclude)")
        log = pipeline.query(f"SELECT _cdc_op, id, n, _cdc_before FROM {quoted(pipeline.warehouse.target_of('public.log'))} ORDER BY 1")
        assert log is not None
        assert [tuple(row.values()) for row in log.to_pylist()] == [
            ("d", 1, 2, '{"id":1,"n":2}'),
            ("r", 1, 1, None),
            ("u", 1, 2, '{"id":1,"n":1}'),
        ]
        assert pipeline.tables()["public.t"]["parked"] == 0
        # The source goes on to change what nobody wants, and the column by itself.
        pipeline.execute("ALTER TABLE t ALTER odd TYPE text USING odd::text; ALTER TABLE t DROP COLUMN odd; UPDATE t SET n = n + 1")
        pipeline.await_complete()
        assert compared(pipeline, "public.t")["status"] == "match"
        pipeline.act("resync", "public.t", confirm="public.t")
        pipeline.await_state("public.t", "streaming", limit_seconds=120)
        pipeline.await_complete()
        assert compared(pipeline, "public.t")["coverage"]["columns"] == ["id", "n", "body"]
        pipeline.stop()
        assert holds_the_secret(pipeline) == []


def test_what_cannot_be_left_out_is_told_with_its_place(stack: Stack, tmp_path: Path) -> None:
    """A column of the key, and one that is not there: check and plan say so, and the cure that they tell heals."""
    with database(stack) as made, line(stack, made, tmp_path, tables("id, sekret"), destination="duckdb") as pipeline:
        pipeline.execute(SETUP)
        told = json.dumps([one for one in pipeline.call("check", accept=(1,))["findings"] if one["name"] == "tables"])
        assert "id belongs to the key of public.t: a change finds its row by it" in told
        assert "the source has no column sekret there" in told
        assert "write it as secret" in told
        pipeline.call("plan", accept=(1,))
        pipeline.configure(tables("secret, odd"))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        assert compared(pipeline, "public.t")["status"] == "match"
