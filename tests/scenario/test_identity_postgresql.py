"""What PostgreSQL's catalog tells of a table (connectors.sources.postgresql.identity), on a real server: each thing that the log does not
carry has its judgement, what changes no value has none, and what was changed and changed back is noticed too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from cdc_service.core.errors import Unavailable
from cdc_service.core.identity import Judgement, Outcome
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.ports.source import Source
from connectors.sources import open_source
from connectors.sources.postgresql import kept
from deploy.local.stack import Stack

NAMES = Names("who", "who")
PUBLICATION = "cdc_who"


@dataclass
class Observed:
    """A database with the publication of a pipeline, and what its role sees of a table."""

    owner: psycopg.Connection[tuple[object, ...]]
    source: Source

    def execute(self, statements: str) -> None:
        self.owner.execute(statements.encode())

    def identity(self, table: str, **connector: str) -> str | None:
        found = self.source.identities([TableId("public", table)], NAMES, connector or None, {})
        return found.tables.get(TableId("public", table))

    def judged(self, table: str, statements: str) -> Judgement:
        """What the statements, each committed by itself, mean for rows that were read before them."""
        before = self.identity(table)
        assert before is not None
        for statement in statements.split(";"):
            if statement.strip():
                self.execute(statement)
        return self.source.judge(TableId("public", table), before, self.identity(table))


@pytest.fixture(scope="module")
def observed(stack_home: Stack) -> Iterator[Observed]:
    stack_home.start(["postgres"])
    url = stack_home.create_database("identities")
    source = open_source(stack_home.pg_url_for("identities", "cdc"))
    try:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TYPE pair AS (a int, b int); CREATE DOMAIN short AS varchar(9)")
            owner.execute(f"CREATE PUBLICATION {PUBLICATION} WITH (publish_via_partition_root = true)".encode())
            yield Observed(owner, source)
    finally:
        source.close()
        stack_home.drop_database("identities")


@pytest.fixture
def table(observed: Observed) -> Iterator[str]:
    observed.execute(
        "CREATE TABLE t(id int PRIMARY KEY, n int, m int, c numeric(12,4), v varchar(10), w text, e mood, p pair, s short,"
        " u int NOT NULL UNIQUE, g int GENERATED ALWAYS AS (n + 1) STORED)"
    )
    observed.execute("INSERT INTO t(id, n, m, c, v, w, e, u) SELECT g, g, -g, g, g, g, 'sad', g FROM generate_series(1, 5) g")
    observed.execute(f"ALTER TABLE t ADD k int DEFAULT 7; ALTER PUBLICATION {PUBLICATION} ADD TABLE t")
    yield "t"
    observed.execute("DROP TABLE IF EXISTS t, t2, kid CASCADE")
    observed.execute(f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert, update, delete, truncate')")


@pytest.mark.parametrize(
    "statements",
    [
        "VACUUM FULL t",
        "ALTER TABLE t ADD x int DEFAULT 7; ALTER TABLE t ADD y text DEFAULT 'y'; VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "TRUNCATE t",
        "INSERT INTO t(id, u) VALUES (9, 9); VACUUM t; ANALYZE t",
        "CREATE INDEX ON t(n); REINDEX TABLE t",
        "GRANT SELECT ON t TO PUBLIC",
        "GRANT SELECT (n) ON t TO PUBLIC",
        "ALTER TABLE t ALTER n SET DEFAULT 5; ALTER TABLE t ALTER n SET NOT NULL; ALTER TABLE t ALTER n SET STATISTICS 5",
        "ALTER TABLE t ALTER n SET DEFAULT 5; ALTER TABLE t ALTER n SET DEFAULT 6; ALTER TABLE t ALTER k DROP DEFAULT",
        "ALTER TABLE t ALTER w SET STORAGE EXTERNAL; ALTER TABLE t ALTER w SET (n_distinct = 5); ALTER TABLE t ADD UNIQUE (w)",
        "ALTER TABLE t SET (fillfactor = 70); COMMENT ON TABLE t IS 'ours'",
        "ALTER TABLE t ADD CHECK (n < 1000); ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER TABLE t ALTER v TYPE varchar(40); ALTER TABLE t ALTER c TYPE numeric(20,4); ALTER TABLE t ALTER v TYPE text",
        "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'calm'",
        "ALTER TABLE t ADD x int; ALTER TABLE t ADD y int NOT NULL DEFAULT 5",
        "ALTER TABLE t DROP w",
        "ALTER DOMAIN short ADD CHECK (VALUE <> 'x'); ALTER DOMAIN short DROP CONSTRAINT short_check",
    ],
)
def test_what_changes_no_value_is_carried(observed: Observed, table: str, statements: str) -> None:
    judged = observed.judged(table, statements)
    assert judged.outcome in (Outcome.SAME, Outcome.CARRIED), judged
    assert judged.renamed == {}


def test_a_name_that_was_never_there_is_carried_as_a_name(observed: Observed, table: str) -> None:
    judged = observed.judged(table, "ALTER TABLE t RENAME n TO nn; ALTER TABLE t RENAME id TO ident")
    assert (judged.outcome, judged.renamed, judged.columns) == (Outcome.CARRIED, {"n": "nn", "id": "ident"}, True)


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        ("ALTER TABLE t RENAME n TO kk; ALTER TABLE t ADD n int DEFAULT 0", "changed names"),
        ("ALTER TABLE t RENAME n TO x; ALTER TABLE t RENAME m TO n; ALTER TABLE t RENAME x TO m", "changed names"),
        (
            "ALTER TABLE t RENAME n TO x; ALTER TABLE t RENAME m TO n; ALTER TABLE t RENAME x TO m;"
            "INSERT INTO t(id, n, m, u) VALUES (9, 1, 2, 9);"
            "ALTER TABLE t RENAME n TO x; ALTER TABLE t RENAME m TO n; ALTER TABLE t RENAME x TO m",
            "changed back",
        ),
        ("ALTER TABLE t DROP w; ALTER TABLE t ADD w int DEFAULT 7", "made again"),
        ("ALTER TABLE t ALTER c TYPE numeric(12,2)", "written anew"),
        ("ALTER TABLE t ALTER m TYPE int USING m * 100", "written anew"),
        ("ALTER TABLE t ALTER k TYPE int USING k * 100", "written anew"),
        ("ALTER TABLE t ALTER m TYPE bigint USING m * 100", "type"),
        ("ALTER TABLE t ALTER g DROP EXPRESSION", "generated"),
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'", "enum"),
        ("ALTER TYPE pair ADD ATTRIBUTE z int", "type"),
        (f"ALTER PUBLICATION {PUBLICATION} DROP TABLE t; ALTER PUBLICATION {PUBLICATION} ADD TABLE t", "came back"),
        (
            f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert');"
            f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert, update, delete, truncate')",
            "changed back",
        ),
        ("ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key; ALTER TABLE t REPLICA IDENTITY DEFAULT", "changed back"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t DISABLE ROW LEVEL SECURITY", "changed back"),
        ("ALTER TABLE t RENAME TO t2; CREATE TABLE t(i int); DROP TABLE t; ALTER TABLE t2 RENAME TO t", "changed back"),
        (
            f"CREATE TABLE t2(LIKE t INCLUDING ALL); ALTER PUBLICATION {PUBLICATION} ADD TABLE t2; ALTER TABLE t RENAME TO kid;"
            "ALTER TABLE t2 RENAME TO t",
            "another table",
        ),
        (f"DROP PUBLICATION {PUBLICATION}; CREATE PUBLICATION {PUBLICATION} FOR TABLE t WITH (publish_via_partition_root)", "made again"),
    ],
)
def test_what_only_reading_tells_is_read_anew(observed: Observed, table: str, statements: str, told: str) -> None:
    judged = observed.judged(table, statements)
    assert judged.outcome is Outcome.ANEW, judged
    assert told in judged.why
    assert judged.why.startswith("public.t: ")


@pytest.mark.parametrize(
    ("statements", "code"),
    [
        (f"ALTER PUBLICATION {PUBLICATION} DROP TABLE t", "not_published"),
        (f"ALTER PUBLICATION {PUBLICATION} SET TABLE t WHERE (id > 3)", "published_in_part"),
        (f"ALTER PUBLICATION {PUBLICATION} SET TABLE t (id, n)", "published_in_part"),
        (f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert')", "published_in_part"),
        ("ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key", "identity_lacks_key"),
        ("ALTER TABLE t REPLICA IDENTITY NOTHING", "identity_lacks_key"),
        ("CREATE TABLE kid() INHERITS (t)", "inherited"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "row_security"),
        ("DROP TABLE t", "table_gone"),
        ("DROP TABLE t; CREATE VIEW t AS SELECT 1 AS id", "table_gone"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "no_key"),
        (f"ALTER PUBLICATION {PUBLICATION} DROP TABLE t; ALTER TABLE t SET UNLOGGED", "not_logged"),
    ],
)
def test_what_does_not_arrive_stops_and_its_cure_heals(observed: Observed, table: str, statements: str, code: str) -> None:
    before = observed.identity(table)
    judged = observed.judged(table, statements)
    assert (judged.outcome, judged.code) == (Outcome.STOPS, code), judged
    assert judged.why.startswith("public.t ")
    assert judged.hint
    if code == "table_gone":
        observed.execute("DROP VIEW IF EXISTS t")
        return
    for _ in range(2):  # The cure of a cure: a table that is logged again has to be published again.
        for statement in judged.hint.splitlines():
            observed.execute(statement)
        judged = observed.source.judge(TableId("public", table), before, observed.identity(table))
        if judged.outcome is not Outcome.STOPS:
            break
    assert judged.outcome is not Outcome.STOPS, judged
    observed.execute('ALTER ROLE cdc NOBYPASSRLS; DROP TABLE IF EXISTS "kid"')


def test_another_key_stops_for_a_person(observed: Observed, table: str) -> None:
    judged = observed.judged(table, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (u, id)")
    assert (judged.outcome, judged.state) == (Outcome.STOPS, "schema_stopped")
    assert "(id) to (u, id)" in judged.why
    assert observed.judged(table, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (u, id)").outcome in (
        Outcome.SAME,
        Outcome.CARRIED,
    )


@pytest.fixture
def parts(observed: Observed) -> Iterator[str]:
    observed.execute("CREATE TABLE p(id int PRIMARY KEY, n int DEFAULT 3, w text, s serial) PARTITION BY RANGE (id)")
    observed.execute(
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)"
    )
    observed.execute("INSERT INTO p(id) SELECT g FROM generate_series(1, 150) g; CREATE TABLE q(LIKE p INCLUDING ALL)")
    observed.execute(f"INSERT INTO q(id) VALUES (300); ALTER PUBLICATION {PUBLICATION} ADD TABLE p")
    yield "p"
    observed.execute("DROP TABLE IF EXISTS p, p1, p2, q, whole CASCADE")


@pytest.mark.parametrize(
    ("statements", "outcome"),
    [
        ("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (200) TO (300)", Outcome.CARRIED),
        ("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (200) TO (300); INSERT INTO p(id) VALUES (201)", Outcome.CARRIED),
        ("VACUUM FULL p1", Outcome.CARRIED),
        ("CLUSTER p1 USING p1_pkey", Outcome.CARRIED),
        ("ALTER TABLE p ADD x int DEFAULT 5; VACUUM FULL p1", Outcome.CARRIED),
        ("ALTER TABLE p ATTACH PARTITION q FOR VALUES FROM (300) TO (400)", Outcome.ANEW),
        ("ALTER TABLE p DETACH PARTITION p1", Outcome.ANEW),
        ("ALTER TABLE p DETACH PARTITION p1; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100)", Outcome.ANEW),
        ("DROP TABLE p1", Outcome.ANEW),
        ("TRUNCATE p1", Outcome.ANEW),
        ("TRUNCATE p", Outcome.ANEW),
        ("TRUNCATE p1; ANALYZE p1", Outcome.ANEW),
        ("VACUUM FULL p1; TRUNCATE p1; ANALYZE p1", Outcome.ANEW),
        ("ALTER TABLE p ALTER n TYPE int USING n * 2", Outcome.ANEW),
        (
            "CREATE TABLE whole(LIKE p) PARTITION BY RANGE (id); ALTER TABLE whole ATTACH PARTITION p FOR VALUES FROM (0) TO (999)",
            Outcome.STOPS,
        ),
    ],
)
def test_partitions_that_come_go_or_change_by_themselves(observed: Observed, parts: str, statements: str, outcome: Outcome) -> None:
    assert observed.judged(parts, statements).outcome is outcome


def test_a_table_that_is_being_altered_tells_nothing_for_certain(observed: Observed, parts: str) -> None:
    name = TableId("public", parts)
    with observed.owner.transaction():
        observed.execute("TRUNCATE p1")
        assert observed.source.identities([name], NAMES, None, {}).busy == {name}
    assert observed.source.identities([name], NAMES, None, {}).busy == frozenset()


def test_a_partition_made_filled_and_attached_in_one_transaction_is_read(observed: Observed, parts: str) -> None:
    """The log has its rows, but not under the name of the whole: they were written before it was a part."""
    before = observed.identity(parts)
    observed.execute(
        "BEGIN; CREATE TABLE p4(LIKE p INCLUDING ALL); INSERT INTO p4(id) VALUES (500);"
        " ALTER TABLE p ATTACH PARTITION p4 FOR VALUES FROM (500) TO (600); COMMIT"
    )
    assert observed.source.judge(TableId("public", parts), before, observed.identity(parts)).outcome is Outcome.ANEW


def test_what_the_connector_leaves_out_without_being_asked_to_stops(observed: Observed, table: str) -> None:
    name = TableId("public", table)
    made = {"table.include.list": r"public\.t", "column.exclude.list": r"public\.t\.g"}
    before = observed.identity(table, **made)
    assert observed.source.judge(name, None, before).outcome is Outcome.SAME
    observed.execute("ALTER TABLE t ALTER g DROP EXPRESSION")
    judged = observed.source.judge(name, before, observed.identity(table, **made))
    assert (judged.code, judged.hint) == ("columns_left_out", "cdc register")
    meant = observed.source.identities([name], NAMES, made, {"column.exclude.list": r"public\.t\.g"}).tables[name]
    assert observed.source.judge(name, None, meant).outcome is Outcome.SAME
    other = observed.identity(table, **{"table.include.list": r"public\.other", "column.exclude.list": ""})
    assert observed.source.judge(name, None, other).code == "not_in_connector"


def test_a_thousand_tables_are_one_question(observed: Observed, table: str) -> None:
    names = [TableId("public", table), *(TableId("public", f"none_{n}") for n in range(1000))]
    found = observed.source.identities(names, NAMES, None, {})
    assert list(found.tables) == [TableId("public", table)]
    before = found.position
    observed.execute("UPDATE t SET n = n + 1")
    assert observed.source.identities(names, NAMES, None, {}).position > before


KEPT = "SELECT pid FROM pg_stat_activity WHERE datname = 'identities' AND application_name = 'cdc'"


def kept_connections(observed: Observed) -> list[int]:
    return [int(str(pid)) for (pid,) in observed.owner.execute(KEPT)]


def test_a_connection_that_the_server_closed_is_not_asked(observed: Observed, table: str) -> None:
    before = observed.identity(table)
    closed = kept_connections(observed)
    assert closed
    for pid in closed:
        observed.owner.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert observed.identity(table) == before
    assert set(kept_connections(observed)).isdisjoint(closed)


@pytest.mark.parametrize("between", [True, False], ids=["before it is asked", "while it is asked"])
def test_a_server_that_hangs_is_waited_for_no_longer_than_the_limit(
    stack_home: Stack, observed: Observed, table: str, between: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = observed.identity(table)
    hung = [stack_home.backend(pid) for pid in kept_connections(observed)]
    monkeypatch.setattr(kept, "LIMIT_SECONDS", 0.5)
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(observed.identity(table))
        except Unavailable as error:
            found.append(error)

    with psycopg.connect(observed.owner.info.dsn, password=observed.owner.info.password) as owner:
        if not between:
            owner.execute("LOCK TABLE pg_publication")  # The question has begun, and waits.
        asking = threading.Thread(target=ask)
        try:
            if between:
                for pid in hung:
                    os.kill(pid, signal.SIGSTOP)
            asking.start()
            asking.join(30)
        finally:
            for pid in hung:
                os.kill(pid, signal.SIGCONT)
    assert not asking.is_alive(), "it waits for a server that hangs"
    assert len(found) == 1
    # One that hung before is not asked at all: the connection is made anew.
    assert found == [before] if between else isinstance(found[0], Unavailable)
    monkeypatch.undo()
    assert observed.identity(table) == before
