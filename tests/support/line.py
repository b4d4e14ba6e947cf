"""A pipeline as its user runs it: a configuration file, the `cdc` command, the service as a process of its own, on the real stack.

Every wait has a limit and says what it waited for, how each table stood and what the service and Connect said last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import psycopg
import pyarrow as pa
from psycopg import sql

from cdc_service.config import load
from cdc_service.core.errors import CdcError
from cdc_service.kafka.admin import Admin
from cdc_service.runtime.wiring import registration as app
from connectors.debezium.connect import KafkaConnect
from connectors.debezium.register import unregister
from connectors.sources import open_source
from deploy.local.compare import Comparison
from deploy.local.process import tail
from deploy.local.service import Cdc
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.replica import quoted, quoted_column
from tests.support.warehouses import DESTINATION, DuckDbFile, Warehouse, warehouse
from tests.support.wires import WIRE, avro

START_SECONDS = 40.0
COMPLETE_SECONDS = 120.0
END_SECONDS = 60.0
FACTOR = float(os.environ.get("CDC_TEST_LOAD", "1"))
"""How much larger than usual the loads of these tests are."""
EACH = ("duckdb", "postgresql") if FACTOR >= 1 else ("duckdb",)
"""Destinations for what hangs on the source or on what reconcile does with it; with less than the whole load one will do."""


class Line:
    """One pipeline on one database; ``owner`` is the superuser's connection to it."""

    def __init__(
        self,
        stack: Stack,
        database: PgDatabase,
        folder: Path,
        tables: str,
        *,
        options: str = "",
        sections: str = "",
        warehouse: Warehouse | None = None,
    ) -> None:
        self.stack, self.database, self.folder = stack, database, folder
        self.cdc = Cdc(folder / "cdc.yaml", {"CDC_PASSWORD": stack.password("cdc")})
        self.warehouse = warehouse or DuckDbFile(folder)
        self.log = folder / "service.log"
        self.kafka = Admin(stack.kafka, {})
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.stopped_before: set[str] = set()
        self.configure(tables, options=options, sections=sections)

    # ---- the source --------------------------------------------------------------

    def execute(self, statements: str) -> None:
        """SQL at the source as the owner of everything, each call a transaction of its own."""
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            connection.execute(statements.encode())

    def fence(self) -> int:
        """A log position behind everything that is committed now."""
        with psycopg.connect(self.database.url) as connection:
            row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        assert row is not None
        return int(row[0])

    # ---- the commands --------------------------------------------------------------

    def configure(self, tables: str, *, options: str = "", sections: str = "") -> None:
        """The file as a user writes it; ``tables`` are the lines below that key, ``options`` those of the connector, ``sections`` more."""
        if WIRE == "avro" and not (options or sections):
            self.stack.start(["registry"])
            options, sections = avro(self.stack).values()
        port = self.stack.port("postgres")
        self.cdc.config.write_text(
            f"pipeline: {self.database.name}\n"
            f'source: {{url: "postgresql://cdc:${{CDC_PASSWORD}}@127.0.0.1:{port}/{self.database.name}"}}\n'
            f'kafka: {{bootstrap_servers: "{self.stack.kafka}"}}\n'
            f'connect: {{url: "{self.stack.connect_url}", options: {{{options}}}}}\n'
            f"destination: {{url: '{self.warehouse.url}'}}\n{sections}\n"
            f"tables:\n  {tables.strip()}\n"
        )

    def prepare(self) -> None:
        """The owner runs what the plan asks for. The plan is made in this process, which saves seconds; other tests ask the command."""
        with patch.dict(os.environ, self.cdc.variables):
            steps = app.plan(load(self.cdc.config)).steps
        for step in steps:
            if step.by_hand:
                self.execute("\n".join(step.detail))

    def register(self, *, prepare: bool = True) -> dict[str, Any]:
        """What a user does: prepare, then `cdc register`."""
        if prepare:
            self.prepare()
        done: dict[str, Any] = self.cdc.call("register", "--json", "--yes")
        return done

    def call(self, *arguments: str, accept: Sequence[int] = (0,)) -> Any:
        return self.cdc.call(*arguments, "--json", accept=accept)

    def start(self, *, failpoints: str = "", arguments: Sequence[str] = (), ready: bool = True) -> None:
        """Start `cdc run`; with ``ready`` return when its API answers."""
        assert self.process is None or self.process.poll() is not None, "the service runs already"
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"---- start {self.starts} {failpoints}\n".encode())
            log.flush()
            environment = {**self.cdc.env, "CDC_FAILPOINTS": failpoints}
            command = self.cdc.argv("run", *arguments)
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.stack.guard_process(self.process.pid)
        if ready:
            self.await_that("the service's API answers", lambda: self.status() is not None, START_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As by kill -9; returns when it is gone. One that has ended already counts too."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)

    def wait(self, limit_seconds: float = END_SECONDS) -> int:
        """The exit code of the service once it has ended."""
        assert self.process is not None
        try:
            return self.process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the service did not end within {limit_seconds:.0f} s\n{self.report()}") from None

    def stop(self) -> None:
        """SIGTERM, and the service has to end well."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"the service ended with {code} after SIGTERM\n{self.report()}"

    def catch_up(self) -> None:
        """`cdc run --until-caught-up` as a command of its own."""
        self.start(arguments=["--until-caught-up", "--timeout", "100"], ready=False)
        code = self.wait(COMPLETE_SECONDS)
        assert code == 0, f"cdc run --until-caught-up ended with {code}\n{self.report()}"

    def close(self) -> None:
        """End the service, take back the registration, delete the topics."""
        self.kill()
        with patch.dict(os.environ, {"CDC_PASSWORD": self.stack.password("cdc")}):
            config = load(self.cdc.config)
        opened = open_source(config.source.url.reveal())
        connect = KafkaConnect(self.stack.connect_url, opened.failures)
        try:
            with contextlib.suppress(CdcError):  # What a role may not drop goes with the database.
                unregister(config, opened, connect)
            with contextlib.suppress(CdcError):
                connect.delete(f"cdc_{self.database.name}")
            name = self.database.name
            topics = [
                topic for topic in self.kafka.topics() if topic == name or topic.startswith((f"{name}.", f"__debezium-heartbeat.{name}"))
            ]
            self.kafka.delete_topics(topics)
        finally:
            connect.close()
            opened.close()

    # ---- the running service --------------------------------------------------------------

    def request(self, method: str, path: str, body: object = None, *, seconds: float = 20.0) -> tuple[str, bytes] | None:
        """Content type and body of an answer of the service's API; None where it does not answer."""
        try:
            api = json.loads((self.folder / ".cdc" / "api.json").read_text())
            if self.process is None or int(api["pid"]) != self.process.pid:
                return None  # Left by one that was killed.
            headers = {"Authorization": f"Bearer {api['token']}", "Content-Type": "application/json"}
            data = None if body is None else json.dumps(body).encode()
            asked = urllib.request.Request(f"{api['url']}{path}", data=data, headers=headers, method=method)
            with urllib.request.urlopen(asked, timeout=seconds) as answer:
                return answer.headers.get("Content-Type", ""), answer.read()
        except urllib.error.HTTPError as error:
            try:
                text = error.read().decode(errors="replace")[:2000]
            except (OSError, HTTPException):
                return None  # It was killed within its answer.
            if error.code >= 500:
                return None
            raise AssertionError(f"{method} {path}: {error.code} {text}") from error
        except (OSError, HTTPException, ValueError, KeyError):
            return None

    def status(self) -> dict[str, Any] | None:
        """The status document of the running service, or None."""
        answer = self.request("GET", "/status")
        document: dict[str, Any] | None = None if answer is None else json.loads(answer[1])
        return document

    def tables(self) -> dict[str, dict[str, Any]]:
        """Each table's part of the status, by source; empty while the service does not answer."""
        return {table["source"]: table for table in (self.status() or {}).get("tables", [])}

    def query(self, statement: str, rows_max: int = 1_000_000) -> pa.Table | None:
        """Rows as the running service gives them, or None while it does not answer."""
        answer = self.request("POST", "/query", {"sql": statement, "rows_max": rows_max})
        return None if answer is None else pa.ipc.open_stream(answer[1]).read_all()

    def act(self, action: str, table: str, **body: object) -> dict[str, Any]:
        """pause, resume, resync or adopt through the API. A service that is opening all anew (its connector was registered anew, say) takes
        no orders for a moment."""
        found: dict[str, Any] = {}

        def answered() -> bool:
            answer = self.request("POST", f"/tables/{quote(table, safe='')}/{action}", body)
            found.update(json.loads(answer[1]) if answer is not None else {})
            return answer is not None

        self.await_that(f"{action} {table} is answered", answered, START_SECONDS)
        return found

    def differences(self, table: str) -> list[str]:
        """The rows that source and running service do not share, for columns of numbers and texts: each as its text, + for the service's.
        Both sides are asked one after the other, so nothing may write meanwhile."""
        schema, name = table.split(".", 1)
        with psycopg.connect(self.database.url) as connection:
            shape = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(schema, name))).description or []
            names = [column.name for column in shape]
            texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
            here = set(connection.execute(sql.SQL("SELECT {} FROM {}").format(texts, sql.Identifier(schema, name))).fetchall())
        wanted = ", ".join(f"{quoted_column(name)}::VARCHAR" for name in names)
        found = self.query(f"SELECT {wanted} FROM {quoted(self.warehouse.target_of(table))}")
        if found is None:
            return ["the service does not answer"]
        rows = Counter(zip(*(column.to_pylist() for column in found.columns), strict=True))
        twice = [f"+ {row} {times} times" for row, times in rows.items() if times > 1]
        missing, extra = here - rows.keys(), rows.keys() - here
        return [*(f"- {row}" for row in sorted(missing, key=str)), *(f"+ {row}" for row in sorted(extra, key=str)), *twice]

    def await_that(
        self, what: str, condition: Callable[[], object], limit_seconds: float = COMPLETE_SECONDS, *, alive: bool = True
    ) -> None:
        """Returns when the condition holds. With ``alive`` a service that has ended fails at once."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            if alive and (self.process is None or self.process.poll() is not None):
                code = None if self.process is None else self.process.returncode
                raise AssertionError(f"the service ended with {code} while waiting: {what}\n{self.report()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {limit_seconds:.0f} s: {what}\n{self.report()}")
            time.sleep(0.1)

    def await_state(self, table: str, *states: str, limit_seconds: float = 60.0) -> dict[str, Any]:
        """The table's status once it is in one of the states."""
        found: dict[str, Any] = {}

        def reached() -> bool:
            found.clear()
            found.update(self.tables().get(table) or {})
            return found.get("state") in states

        self.await_that(f"{table} is {' or '.join(states)}", reached, limit_seconds)
        return found

    def await_complete(self, *tables: str, limit_seconds: float = COMPLETE_SECONDS, fence: int | None = None) -> int:
        """Returns when the tables hold everything that is committed now (or up to ``fence``); that position."""
        position = self.fence() if fence is None else fence
        wanted = [self.source(name) for name in tables]

        def reached() -> bool:
            found = self.tables()
            return bool(found) and all(_complete(found.get(name), position) for name in wanted or found)

        self.await_that(f"complete through {position}: {', '.join(wanted) or 'every table'}", reached, limit_seconds)
        return position

    @staticmethod
    def source(name: str) -> str:
        """schema.table as the service spells a source table: a part with a dot or a quote in it stands in quotes."""
        schema, table = name.split(".", 1)
        return f'{schema}."{table}"' if set('."') & set(table) else name

    def report(self) -> str:
        """How everything stands, for a message."""
        wanted = ("state", "rows", "applied", "parked", "lag_events", "complete_through", "position", "error")
        tables = "\n".join(f"  {name}: { ({key: table.get(key) for key in wanted}) }" for name, table in self.tables().items())
        try:
            path = f"{self.stack.connect_url}/connectors/cdc_{self.database.name}/status"
            connector = json.dumps(json.loads(urllib.request.urlopen(path, timeout=5).read()))[:1500]
        except (OSError, ValueError) as error:
            connector = str(error)
        return f"tables:\n{tables or '  (no status)'}\nconnector: {connector}\nthe end of the service's log:\n{tail(self.log, 40)}"

    # ---- judgement: the service must not have the warehouse open --------------------------------------------------------------

    def compare(self, tables: Collection[str]) -> list[Comparison]:
        """Source against warehouse, row by row and column by column."""
        return self.warehouse.compare(self.database.url, tables)

    def assert_equal(self, tables: Collection[str]) -> None:
        found = self.compare(tables)
        assert [str(one) for one in found if not one.equal] == [], f"{[str(one) for one in found]}\n{tail(self.log, 25)}"

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the warehouse."""
        return self.warehouse.rows(statement)

    def assert_ledger(self, tables: Collection[str], *, parked: Mapping[str, int] | None = None) -> None:
        """I12, I21: per partition the ledger's batches meet without gap or overlap from the log's start to the checkpoint, every record in
        them has one fate, the checkpoint stands at the log's end, and only the expected records are parked (number by table). A table that
        was read anew skips what lies before the reading: it may have as many gaps in a partition as it has later generations."""
        generations = dict(self.rows("SELECT source_table, generation FROM _cdc.table_state"))
        gaps: Counter[tuple[str, str, int]] = Counter()

        def follows(place: tuple[str, str, int], start: int) -> bool:
            gaps[place] += at.get(place, 0) < start
            return at.get(place, 0) == start or (at.get(place, 0) < start and gaps[place] <= generations.get(place[0], 0))

        wanted = {self.source(name) for name in tables}
        batches = self.rows(
            """SELECT source_table, topic_id, "partition", start_offset, stop_offset, applied, folded, duplicate, parked, filtered, batch_id
               FROM _cdc.batch ORDER BY source_table, topic_id, "partition", start_offset, stop_offset"""
        )
        at: dict[tuple[str, str, int], int] = {}
        seen: set[tuple[str, str, int, str]] = set()
        for table, topic_id, partition, start, stop, applied, folded, duplicate, parked_here, filtered, batch_id in batches:
            if table not in wanted:
                continue
            place = (table, topic_id, partition)
            assert follows(place, start), f"{place}: a batch begins at {start}, the one before ended at {at.get(place, 0)}"
            fates = applied + folded + duplicate + parked_here + filtered
            assert fates == stop - start, f"{place}: {fates} fates of {stop - start} records in [{start}, {stop})"
            assert (*place, batch_id) not in seen, f"{place}: batch {batch_id} stands twice in the ledger"
            seen.add((*place, batch_id))
            at[place] = stop
        checkpoints = self.rows('SELECT source_table, topic, topic_id, "partition", next_offset FROM _cdc.checkpoint')
        facts = self.kafka.describe(sorted({row[1] for row in checkpoints}))
        for table, topic, topic_id, partition, next_offset in checkpoints:
            if table in wanted:
                assert follows((table, topic_id, partition), next_offset), (
                    f"{table}[{partition}]: checkpoint {next_offset}, ledger otherwise"
                )
                assert str(facts[topic].log.topic_id) == topic_id
                assert facts[topic].ends[partition][1] == next_offset, f"{table}[{partition}]: the log ends elsewhere than the checkpoint"
        assert {row[0] for row in checkpoints} >= wanted
        quarantine = self.rows("SELECT source_table, stage, code, message, count(*) FROM _cdc.quarantine GROUP BY 1, 2, 3, 4")
        found: dict[str, int] = {}
        for table, _, _, _, count in quarantine:
            found[table] = found.get(table, 0) + count
        expected = {self.source(name): count for name, count in (parked or {}).items()}
        assert {name: count for name, count in found.items() if name in wanted} == expected, quarantine


def _complete(table: Mapping[str, Any] | None, position: int) -> bool:
    return (
        table is not None
        and table["state"] == "streaming"
        and int(table.get("complete_through") or 0) >= position
        and int(table.get("lag_events") or 0) == 0
    )


class Versions:
    """I4: samples the versions of rows while the service runs; the visible version of a key never goes back, whatever happens.

    ``tables``: target -> key columns. Start it with `with`; at its end it says what went back.
    """

    def __init__(self, line: Line, tables: Mapping[str, Sequence[str]], *, share: int = 8) -> None:
        self.line, self.samples, self.wrong = line, 0, []
        self.seen: dict[tuple[Any, ...], tuple[int, int]] = {}
        self.wrong: list[str]
        self._queries = {}
        for target, keys in tables.items():
            names = [quoted_column(key) for key in keys]
            where = line.warehouse.one_in(share, names)
            self._queries[target] = f"SELECT {', '.join(names)}, _cdc_gen, _cdc_record FROM {quoted(target)} WHERE {where}"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Versions:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._done.wait(0.15):
            for target, statement in self._queries.items():
                with contextlib.suppress(AssertionError):  # The table is not there yet.
                    if (found := self.line.query(statement)) is not None:
                        self._take(target, found)

    def _take(self, target: str, found: pa.Table) -> None:
        self.samples += 1
        for row in zip(*(column.to_pylist() for column in found.columns), strict=True):
            key, version = (target, *map(str, row[:-2])), (row[-2], row[-1])
            before = self.seen.get(key)
            if before is not None and version < before:
                self.wrong.append(f"{key} went back from {before} to {version}")
            self.seen[key] = max(version, before or version)

    def check(self, samples: int = 3) -> None:
        assert self.wrong == []
        assert self.samples >= samples, f"only {self.samples} samples were taken"
        assert self.seen


@contextmanager
def database(stack: Stack) -> Iterator[PgDatabase]:
    """A fresh database; dropped with its slots."""
    stack.start()
    name = f"l_{uuid.uuid4().hex[:12]}"
    url = stack.create_database(name)
    try:
        yield PgDatabase(name, url, stack.pg_url_for(name, "cdc"))
    finally:
        stack.start(["postgres"])
        stack.drop_database(name)


@contextmanager
def line(
    stack: Stack, source: PgDatabase, folder: Path, tables: str, *, options: str = "", sections: str = "", destination: str = DESTINATION
) -> Iterator[Line]:
    """A pipeline that is taken back at the end, whatever happened; ``destination`` is the kind of its warehouse."""
    with warehouse(destination, stack, folder) as into:
        made = Line(stack, source, folder, tables, options=options, sections=sections, warehouse=into)
        try:
            yield made
        finally:
            made.kill()
            stack.start()
            made.close()


@contextmanager
def beside(first: Line, folder: Path, tables: str) -> Iterator[Line]:
    """A second process of the same pipeline, with a state_dir of its own."""
    folder.mkdir()
    second = Line(first.stack, first.database, folder, tables, warehouse=first.warehouse)
    try:
        yield second
    finally:
        second.kill()
