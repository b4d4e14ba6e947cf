"""What is secret stays with who needs it, and the source's role needs no more than it is documented to: both on the whole stack."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line

TABLES = "public.planted: {}\n  public.other: {mode: append}"
SETUP = """
CREATE TABLE planted (id int PRIMARY KEY, v text); INSERT INTO planted SELECT i, 'v' || i FROM generate_series(1, 50) AS i;
CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other VALUES (1, 'a');
"""
CHANGES = "UPDATE planted SET v = v || '!' WHERE id > 25; DELETE FROM planted WHERE id = 3; UPDATE planted SET id = 99 WHERE id = 4"
RIGHTS = """
SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, has_database_privilege('cdc', current_database(), 'CREATE'),
  has_schema_privilege('cdc', 'public', 'CREATE'),
  (SELECT bool_or(has_table_privilege('cdc', oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') OR relowner = r.oid)
   FROM pg_class WHERE relkind = 'r' AND relname IN ('planted', 'other'))
FROM pg_roles AS r WHERE rolname = 'cdc'"""


def live(pipeline: Line) -> None:
    """Everything that the source's role is needed for: registration, snapshot, stream, resync, comparison and repair."""
    pipeline.execute(SETUP)
    pipeline.register()
    pipeline.start(arguments=["--log-level", "debug"])
    pipeline.await_complete()
    pipeline.execute(
        "UPDATE planted SET v = v || '!' WHERE id > 25; DELETE FROM planted WHERE id = 3; UPDATE planted SET id = 99 WHERE id = 4"
    )
    pipeline.call("resync", "public.planted", "--yes")
    pipeline.await_complete()
    assert pipeline.query("SELECT 1") is not None
    pipeline.warehouse.change("UPDATE public.planted SET v = 'wrong' WHERE id = 99")
    pipeline.call("reconcile", "public.planted", "--html", str(pipeline.folder / "report.html"), accept=(1,))
    pipeline.call("repair", "public.planted", "--yes")
    pipeline.call("explain", "public.planted", "99")


def test_no_secret_shows_anywhere_and_the_role_of_the_source_only_reads(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """The password of source and warehouse and the API's token: not in a log, a trace, a reply, a page, a table, a topic, nor in argv."""
    with line(stack, pg_database, tmp_path, TABLES, destination="postgresql") as pipeline:
        live(pipeline)
        with psycopg.connect(pg_database.url) as connection:
            assert connection.execute(RIGHTS).fetchone() == (False,) * 7
        # What goes wrong is told with its circumstances, in which a URL stands easily.
        stack.kill("postgres")
        pipeline.await_that("the service says that its servers are away", lambda: "connect" in told(pipeline, "service.log"), 60)
        wrong = pipeline.cdc.argv("check", "--json"), {**pipeline.cdc.env, "CDC_PASSWORD": f"{stack.password('cdc')}x"}
        failures = [subprocess.run(wrong[0], env=wrong[1], capture_output=True, text=True, check=False, timeout=120)]
        stack.start(["postgres"])
        pipeline.await_complete()
        failures += [subprocess.run(wrong[0], env=wrong[1], capture_output=True, text=True, check=False, timeout=120)]
        assert all(f.returncode for f in failures)

        token = json.loads((tmp_path / ".cdc" / "api.json").read_text())["token"]
        secrets = {"the password": stack.password("cdc"), "the API's token": token}
        said = {f"cdc check {n}": f.stdout + f.stderr for n, f in enumerate(failures)} | dict(everywhere(pipeline))
        found = [
            (where, what) for where, text in said.items() for what, secret in secrets.items() if secret in text or quote(secret) in text
        ]
        assert found == []


def told(pipeline: Line, name: str) -> str:
    return (pipeline.folder / name).read_text(errors="replace").lower()


def everywhere(pipeline: Line) -> Iterator[tuple[str, str]]:
    """Each place where somebody may look, and what stands there."""
    assert pipeline.process is not None
    for path in ("/health", "/ready", "/status", "/metrics", "/quarantine"):
        answer = pipeline.request("GET", path)
        assert answer is not None, path
        yield path, answer[1].decode()
    yield "argv", Path(f"/proc/{pipeline.process.pid}/cmdline").read_text()
    for command in ("status", "schema", "check"):
        yield f"cdc {command}", json.dumps(pipeline.call(command))
    for file in pipeline.folder.rglob("*"):
        if file.is_file() and file.name != "api.json":  # That one is for its owner's eyes.
            yield str(file.relative_to(pipeline.folder)), file.read_text(errors="replace")
    assert (pipeline.folder / ".cdc" / "api.json").stat().st_mode & 0o077 == 0
    for name in ("connect", "kafka", "postgres"):
        yield f"log of {name}", pipeline.stack.daemon(name).log.read_text(errors="replace")
    connector = f"{pipeline.stack.connect_url}/connectors/cdc_{pipeline.database.name}"
    for path in ("", "/status", "/config"):
        with urllib.request.urlopen(connector + path, timeout=20) as reply:
            yield f"Connect's {path or 'connector'}", reply.read().decode()
    yield from tables_of(pipeline).items()
    for topic in pipeline.kafka.topics():
        if "config" in topic or topic == pipeline.database.name or topic.startswith(f"{pipeline.database.name}."):
            yield f"topic {topic}", content(pipeline, topic)


def tables_of(pipeline: Line) -> Mapping[str, str]:
    names = pipeline.rows("SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN ('_cdc', 'public')")
    assert len(names) > 8
    return {f"{schema}.{name}": f"{pipeline.rows(f'SELECT * FROM {schema}.{name}')}" for schema, name in names}


def content(pipeline: Line, topic: str) -> str:
    """All records of a topic as text."""
    consumer = Consumer({"bootstrap.servers": pipeline.stack.kafka, "group.id": "look", "enable.partition.eof": True})
    try:
        partitions = consumer.list_topics(topic, 20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in partitions])
        texts, ended = [f"{topic}:"], 0
        while ended < len(partitions):
            message = consumer.poll(20)
            assert message is not None, f"{topic} cannot be read to its end"
            if message.error() is None:
                texts.append(f"{message.key()!r} {message.value()!r} {message.headers()!r}")
            else:
                ended += 1
        return "\n".join(texts)
    finally:
        consumer.close()
