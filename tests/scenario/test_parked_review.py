"""Records that cannot be applied, reviewed by the commands on the real stack: bytes that somebody broke, values that no warehouse holds,
and more of them than the limits allow. In the end source and warehouse are equal row by row, and the other tables never noticed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line

SOURCE = """
CREATE TABLE {0} (id int PRIMARY KEY, name text, d numeric(12,2), body text);
ALTER TABLE {0} ALTER body SET STORAGE EXTERNAL;
INSERT INTO {0} SELECT g, 'name ' || g, g, repeat('long ' || g, 2000) FROM generate_series(1, 20) g;
"""
LIMIT = 5


def found_in_kafka(pipeline: Line, topic: str, text: bytes) -> tuple[int, bytes]:
    """Partition and key bytes of the first record of the topic whose key holds ``text``."""
    reader = Consumer({"bootstrap.servers": pipeline.stack.kafka, "group.id": f"{topic}-look", "enable.auto.commit": False})
    try:
        parts = reader.list_topics(topic, 10).topics[topic].partitions
        reader.assign([TopicPartition(topic, p, 0) for p in parts])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = reader.poll(1.0)
            if message is not None and not message.error() and text in (message.key() or b""):
                return message.partition(), message.key()
    finally:
        reader.close()
    raise AssertionError(f"no record with {text!r} in its key in {topic}")


def send_broken(pipeline: Line, table: str, id_: int) -> None:
    """A record of the row's key whose value nobody can read, behind all that its partition holds."""
    topic = f"{pipeline.database.name}.public.{table}"
    partition, key = found_in_kafka(pipeline, topic, b'"payload":{"id":%d}' % id_)
    producer = Producer({"bootstrap.servers": pipeline.stack.kafka})
    producer.produce(topic, b'{"schema": \xff broken', key, partition)
    assert producer.flush(20) == 0


def records(pipeline: Line, *arguments: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = pipeline.call("quarantine", "list", *arguments)["records"]
    return listed


def crash(pipeline: Line, failpoint: str, *arguments: str) -> None:
    """A command that ends as by kill -9 where the failpoint is."""
    environment = {**pipeline.cdc.env, "CDC_FAILPOINTS": f"{failpoint}=crash"}
    done = subprocess.run(pipeline.cdc.argv(*arguments), env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, f"{failpoint} was not passed: {done.stderr.decode()}"


def await_parked(pipeline: Line, table: str, waiting: int) -> None:
    pipeline.await_that(
        f"{waiting} records of {table} wait", lambda: pipeline.tables().get(f"public.{table}", {}).get("parked_waiting") == waiting, 60
    )


def test_i19_i20_i21_parked_records_are_reviewed_and_the_row_is_right_again(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    limits = f"limits: {{quarantine_rows: {LIMIT}, quarantine_share: 1}}"
    with line(stack, pg_database, tmp_path, "public.t: {}\n  public.flood: {}\n  public.calm: {}", sections=limits) as pipeline:
        for name in ("t", "flood", "calm"):
            pipeline.execute(SOURCE.format(name))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(limit_seconds=90)
        broken_bytes(pipeline)
        a_value_that_no_warehouse_holds(pipeline)
        more_than_the_limit(pipeline)
        pipeline.await_complete()
        pipeline.stop()
        # It is decided where no service runs, too.
        assert records(pipeline, "--state", "parked") == []
        pipeline.assert_equal(["public.t", "public.flood", "public.calm"])
        pipeline.assert_ledger(["public.t", "public.flood", "public.calm"], parked={"public.t": 5, "public.flood": 9})


def broken_bytes(pipeline: Line) -> None:
    """The head is discarded, what waits behind it is replayed by a second command, while no service runs."""
    send_broken(pipeline, "t", 7)
    await_parked(pipeline, "t", 1)
    pipeline.execute("UPDATE t SET name = 'after' WHERE id IN (7, 8)")
    await_parked(pipeline, "t", 2)
    pipeline.await_that("the other key went on", lambda: not [d for d in pipeline.differences("public.t") if "'8'" in d], 60)
    head, behind = records(pipeline, "public.t")
    assert (head["code"], behind["code"], head["key"], behind["key"]) == ("not_schema_json", "behind_parked", '["7"]', '["7"]')
    shown = pipeline.call("quarantine", "show", head["id"])
    assert (shown["topic"], shown["value"][:2]) == (f"{pipeline.database.name}.public.t", "0x")
    assert [r["id"] for r in shown["behind"]] == [behind["id"]]
    assert shown["now"].startswith("not_schema_json")
    assert pipeline.call("quarantine", "show", behind["id"])["now"] == "it can be applied"
    again = pipeline.call("quarantine", "replay", "public.t", "--key", "7", accept=[1])
    assert (again["replayed"], [s["code"] for s in again["still"]]) == (0, ["behind_parked", "not_schema_json"])
    pipeline.stop()
    done = pipeline.call("quarantine", "discard", "public.t", "--id", head["id"], "--reason", "broken by hand", "--yes")
    assert (done["discarded"], done["replayed"], done["waiting"]) == (1, 0, 1)
    # I12: the process dies within the transaction, and then behind it, before it could say so.
    for failpoint in ("merge.swapped", "merge.recorded", "merge.committed"):
        assert [r["state"] for r in records(pipeline, "public.t", "--key", "7")] == ["parked"], failpoint
        crash(pipeline, failpoint, "quarantine", "replay", "public.t", "--key", "7", "--reason", "the head is gone")
    assert records(pipeline, "public.t", "--key", "7") == []
    pipeline.call("quarantine", "replay", "public.t", "--key", "7", accept=[4])
    pipeline.start()
    pipeline.await_complete()
    assert pipeline.differences("public.t") == []
    decided = {r["state"]: (r["decided_by"], r["reason"]) for r in records(pipeline, "public.t", "--state", "all")}
    assert decided["discarded"] == (decided["replayed"][0], "broken by hand")
    assert "@" in decided["replayed"][0]


def a_value_that_no_warehouse_holds(pipeline: Line) -> None:
    """It stands in an update that also sent the long text; the updates behind it did not send it, so it has to be read at the source."""
    pipeline.execute("UPDATE t SET d = 'NaN', body = repeat('new ', 3000) WHERE id = 9")
    pipeline.execute("UPDATE t SET d = 1.5 WHERE id = 9; UPDATE t SET name = 'good again' WHERE id = 9")
    await_parked(pipeline, "t", 3)
    head, *behind = records(pipeline, "public.t")
    assert (head["code"], [r["code"] for r in behind]) == ("inexact_value", ["behind_parked"] * 2)
    done = pipeline.call("quarantine", "discard", "public.t", "--code", head["code"], "--reason", "NaN", "--and-replay-rest", "--yes")
    assert (done["discarded"], done["replayed"], done["waiting"]) == (1, 2, 0)
    pipeline.await_complete()
    assert pipeline.differences("public.t") == []
    # Later updates do not take the long text from before, either.
    pipeline.execute("UPDATE t SET name = 'and later' WHERE id = 9")
    pipeline.await_complete()
    assert pipeline.differences("public.t") == []


def more_than_the_limit(pipeline: Line) -> None:
    """The table stops before it parks more than it may; the others go on; after a look it goes on as well."""
    for id_ in range(1, LIMIT + 1):
        send_broken(pipeline, "flood", id_)
    await_parked(pipeline, "flood", LIMIT)
    for id_ in (6, 7):
        send_broken(pipeline, "flood", id_)
    stopped = pipeline.await_state("public.flood", "quarantine_stopped")
    assert stopped["error"]["code"] == "quarantine_stopped"
    assert stopped["quarantine"]["waiting"] == {"not_schema_json": LIMIT}
    pipeline.execute("UPDATE calm SET name = 'calm'; UPDATE flood SET name = 'flood'")
    pipeline.await_that("calm follows", lambda: pipeline.differences("public.calm") == [], 60)
    assert pipeline.tables()["public.flood"]["state"] == "quarantine_stopped"
    reason = ("--reason", "a test sent them", "--yes")
    done = pipeline.call("quarantine", "discard", "public.flood", "--code", "not_schema_json", *reason)
    assert (done["discarded"], done["state"]) == (LIMIT, "quarantine_stopped")
    pipeline.call("resume", "public.flood")
    await_parked(pipeline, "flood", 4)  # 6 and 7, and the updates of both
    done = pipeline.call("quarantine", "discard", "public.flood", "--code", "not_schema_json", "--and-replay-rest", *reason)
    assert (done["discarded"], done["replayed"], done["waiting"]) == (2, 2, 0)
    pipeline.await_complete()
    assert pipeline.differences("public.flood") == []
