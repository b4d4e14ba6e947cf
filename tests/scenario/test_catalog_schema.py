"""A table's schema out of the catalog is the one that a decoder learns from the connector's events, of the snapshot and of the stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from cdc_service.core.types import Op, RawBatch, Span, TableId, TableSchema
from cdc_service.ports.source import without_columns
from connectors.debezium.register import apply_registration, plan_registration
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.scenario import test_line_types
from tests.support.registration import Pipeline, eventually, pipeline

MODIFIED = """
numeric(12,2) numeric(5,0) numeric(5,-2) numeric(3,5) numeric(38,10) numeric(39,2) bit(1) bit(8) bit(70) varbit(1) varbit(5) char(1)
char(5) varchar(10) time(0) time(3) timestamp(0) timestamp(3) timestamptz(0) timetz(1) interval(2) citext hstore ltree lquery ltxtquery cube
seg isbn ean13 "MyEnum" comp my_range my_ranges o.mood
""".split()  # noqa: SIM905
OWN = """
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION seg; CREATE EXTENSION isn;
CREATE TYPE "MyEnum" AS ENUM ('a', 'b'); CREATE TYPE comp AS (a int); CREATE SCHEMA o; CREATE TYPE o.mood AS ENUM ('x');
CREATE TYPE my_range AS RANGE (subtype = float8, multirange_type_name = my_ranges);
"""
BUILT_IN = """
SELECT quote_ident(typname) FROM pg_type t
WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND typelem = 0
      OR typname IN ('point', 'name', 'box', 'lseg', 'line') ORDER BY 1
"""
UNKNOWN = {
    f"pg_{name}" for name in ("brin_bloom_summary", "brin_minmax_multi_summary", "dependencies", "mcv_list", "ndistinct", "node_tree")
}
"""Types that no table of a person has."""


@pytest.fixture
def owner(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        yield made


@contextmanager
def with_options(stack: Stack, database: PgDatabase, folder: Path, options: Mapping[str, str]) -> Iterator[Pipeline]:
    connect = f'connect: {{url: "{stack.connect_url}", secrets: inline, options: {json.dumps(options)}}}\n'
    with pipeline(stack, database, folder, role="postgres", more=connect) as made:
        yield made


def register(p: Pipeline, tables: Iterable[TableId]) -> None:
    apply_registration(plan_registration(p.config, list(tables), p.source, p.connect, p.kafka), p.source, p.connect, p.kafka, p.said.append)


def told(p: Pipeline, table: TableId, options: Mapping[str, str] | None = None) -> TableSchema | None:
    """What the catalog says of the table."""
    found = without_columns(p.source.tables(), (options or {}).get("column.exclude.list", ""))
    return p.source.schema(next(t for t in found if t.table == table), options or {})


def learned(p: Pipeline, table: TableId) -> list[tuple[Op, TableSchema, pa.Table]]:
    """Of each event of the table, in the order of the log: what it is, the schema that the decoder learned from it alone, and its row."""
    topic = p.names.topic(table)
    known = p.kafka.describe([topic]).get(topic)
    if known is None:
        return []
    consumer = Consumer({"bootstrap.servers": p.stack.kafka, "group.id": uuid.uuid4().hex, "enable.partition.eof": True})
    left = {number for number, (low, high) in known.ends.items() if high > low}
    found = []
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        while left:
            message = consumer.poll(20)
            assert message is not None, f"topic {topic} is not read"
            if message.error() is not None:
                left.discard(message.partition())
            elif message.value() is not None:
                found.append((message.partition(), message.offset(), message.key(), message.value()))
    finally:
        consumer.close()
    events = []
    for number, offset, key, value in sorted(found):
        columns = (
            pa.array([key], pa.binary()),
            pa.array([value], pa.binary()),
            pa.array([number], pa.int32()),
            pa.array([offset], pa.int64()),
        )
        raw = RawBatch(topic, *columns, (Span(number, offset, offset + 1, 1),), lambda _: ())
        # The bytes of a value may be refused, its schema is learned all the same.
        [batch] = DebeziumJsonDecoder(PostgresEvents(), unavailable="unsent").decode(raw)
        operation = {"r": Op.READ, "c": Op.CREATE, "u": Op.UPDATE, "d": Op.DELETE}[json.loads(value)["payload"]["op"]]
        events.append((operation, batch.schema, batch.data))
    return events


def both(p: Pipeline, table: TableId) -> list[tuple[Op, TableSchema, pa.Table]]:
    """The table's events once there is one of the snapshot and one of the stream."""

    def arrived() -> list[tuple[Op, TableSchema, pa.Table]]:
        status = p.connect.status(p.names.connector)
        assert status is None or not any(task.state == "FAILED" for task in status.tasks), status
        events = learned(p, table)
        return events if {Op.READ, Op.CREATE} <= {operation for operation, _, _ in events} else []

    found: list[tuple[Op, TableSchema, pa.Table]] = eventually(f"events of {table} from snapshot and stream", arrived)
    return found


def differences(told: TableSchema, learned: TableSchema, *, stream: bool) -> list[str]:
    """What the two do not share; the source's own names of types as the stream has them (a snapshot says SERIAL where it says INT4)."""
    found = [f"key {told.key} {learned.key}"] if told.key != learned.key else []
    found += [f"columns {told.names} {learned.names}"] if told.names != learned.names else []
    for name in set(told.names) & set(learned.names):
        one, other = told.column(name), learned.column(name)
        if (str(one.type), one.nullable) != (str(other.type), other.nullable) or (stream and one.source_type != other.source_type):
            found.append(f"{one} {other}")
    if not found and told.fingerprint != learned.fingerprint:
        found.append("fingerprints")
    return found


def assert_equal(p: Pipeline, tables: Iterable[TableId], options: Mapping[str, str] | None = None) -> None:
    wrong = {}
    for table in tables:
        schema = told(p, table, options)
        assert schema is not None, table
        events = both(p, table)
        found = [text for operation, other, _ in events for text in differences(schema, other, stream=operation is not Op.READ)]
        if found:
            wrong[table] = found[:5]
    assert wrong == {}


def test_every_type_and_arrays_and_domains_of_it(owner: Pipeline) -> None:
    """I20."""
    owner.execute(OWN)
    with psycopg.connect(owner.database.url, autocommit=True) as connection:
        built_in = [str(row[0]) for row in connection.execute(BUILT_IN) if row[0] not in UNKNOWN]
    assert len(built_in) > 70
    types = [*built_in, *MODIFIED]
    bits = ("bit", "varbit")
    statements = [f"CREATE TABLE {name} (id int PRIMARY KEY)" for name in ("scalars", "arrays", "domains", "arrays_of_domains")]

    def column(table: str, type_: str) -> None:
        statements.append(f"ALTER TABLE {table} ADD c{len(statements)} {type_}")

    def domain(base: str) -> str:
        statements.append(f"CREATE DOMAIN d{len(statements)} AS {base}")
        return f"d{len(statements) - 1}"

    for type_ in types:
        column("scalars", type_)
        if not type_.strip('"').startswith(bits):  # The connector stops at arrays of bits, so tables with one are refused.
            column("arrays", f"{type_}[]")
            column("domains", domain(domain(f"{type_}[]")))
        if type_ not in ('"MyEnum"', "o.mood"):  # The connector does not start where a domain is over an enum.
            if not type_.strip('"').startswith("varbit"):  # Tables with a domain over bit varying are refused too.
                column("domains", domain(type_))
                column("domains", domain(domain(type_)))
            column("arrays_of_domains", f"{domain(type_)}[]")
            column("domains", domain(f"{domain(type_)}[]"))
    tables = [TableId("public", name) for name in ("scalars", "arrays", "domains", "arrays_of_domains")]
    statements += [f"ALTER TABLE {t.name} REPLICA IDENTITY FULL; INSERT INTO {t.name} VALUES (1)" for t in tables]
    owner.execute("; ".join(statements))
    register(owner, tables)
    owner.execute("; ".join(f"INSERT INTO {t.name} VALUES (2)" for t in tables))
    assert_equal(owner, tables)


def test_the_tables_of_recorded_events(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I20."""
    options = {"column.exclude.list": r"public\.t_arr2\.bi"}
    setup, stream = test_line_types.prepare()
    with with_options(stack, pg_database, tmp_path, options) as p:
        p.execute(setup)
        p.execute(test_line_types.PREPARE)
        found = p.owner.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^[tx]_' ORDER BY 1").fetchall()
        tables = [TableId("public", str(row[0])) for row in found]
        assert len(tables) == 16
        register(p, tables)
        p.execute(stream)
        assert_equal(p, tables, options)
        schema = told(p, TableId("public", "t_arr2"), options)
        assert schema is not None
        assert {"iv", "mo", "po", "x", "bi"}.isdisjoint(schema.names)


SHAPES = r"""
CREATE DOMAIN "dOm" AS int NOT NULL; CREATE DOMAIN bits AS bit(8); CREATE DOMAIN "Dé.x" AS "dOm";
CREATE SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
CREATE TABLE "Mixed Ünï.x" ("B" int, "ä" text, "c.d" bits, n "dOm", x "Dé.x", "A" text, PRIMARY KEY ("A", "B"));
CREATE TABLE part (k int, d date, v numeric(6,1), PRIMARY KEY (d, k)) PARTITION BY RANGE (d);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM ('2000-01-01') TO ('2010-01-01');
CREATE TABLE part2 (gone text, v numeric(6,1), d date NOT NULL, k int NOT NULL);
ALTER TABLE part2 DROP gone; ALTER TABLE part ATTACH PARTITION part2 FOR VALUES FROM ('2010-01-01') TO ('2020-01-01');
CREATE TABLE numbered (id serial PRIMARY KEY, s smallserial, b bigserial, i int GENERATED BY DEFAULT AS IDENTITY,
    g int GENERATED ALWAYS AS (id * 2) STORED, at timestamptz NOT NULL DEFAULT now(), gone int, t text DEFAULT 'x');
ALTER TABLE numbered DROP gone;
CREATE TABLE o (a uuid, b numeric, c text, v varchar(3), d timestamp, PRIMARY KEY (d, b, a, c));
CREATE TABLE by_index (id int PRIMARY KEY, n int NOT NULL, t text);
CREATE UNIQUE INDEX by_n ON by_index (id, n); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_n;
CREATE TABLE elsewhere (id int PRIMARY KEY, l ext.ltree, q ext.lquery, qs ext.lquery[]);
ALTER TABLE elsewhere REPLICA IDENTITY FULL;
"""
ROWS = {
    "Mixed Ünï.x": "({0}, 'ä', '00000001', 1, 1, 'a')",
    "part": "({0}, '200{0}-01-01', 1), ({0}, '201{0}-01-01', 1)",
    "numbered": "DEFAULT VALUES",
    "o": "('00000000-0000-0000-0000-00000000000{0}', {0}, 'c', 'v', '2000-01-01')",
    "by_index": "({0}, 1, 't')",
    "elsewhere": "({0})",
}


def test_names_keys_partitions_and_columns_that_events_lack(owner: Pipeline) -> None:
    """I20."""

    def insert(number: int) -> None:
        for name, values in ROWS.items():
            owner.execute(f'INSERT INTO "{name}" ' + (values if values.startswith("DEFAULT") else f"VALUES {values.format(number)}"))

    owner.execute(SHAPES)
    insert(1)
    tables = [TableId("public", name) for name in ROWS]
    register(owner, tables)
    insert(2)
    assert_equal(owner, tables)
    schema = told(owner, TableId("public", "o"))
    assert schema is not None
    assert schema.key == ("d", "b", "a", "c")


ALTERATIONS = (
    "ADD c text DEFAULT 'x'",
    "ADD n numeric(8,2)",
    "ALTER n TYPE numeric(12,4)",
    "ALTER n TYPE numeric",
    "ALTER v TYPE bigint",
    "DROP c",
    "ADD c int NOT NULL DEFAULT 7",
    "RENAME v TO w",
    "ALTER w TYPE text",
    "ADD e mood, ADD a mood[], ADD d whole",
    "ALTER d TYPE int, DROP a",
    "ALTER id TYPE bigint",
    "ALTER t SET NOT NULL",
    "DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (t, id)",
)


def test_after_each_alteration(owner: Pipeline) -> None:
    """I20."""
    table = TableId("public", "a")
    owner.execute("CREATE TYPE mood AS ENUM ('x'); CREATE DOMAIN whole AS int; CREATE TABLE a (id int PRIMARY KEY, v int, t text)")
    owner.execute("ALTER TABLE a REPLICA IDENTITY FULL; INSERT INTO a VALUES (0, 1, 't')")
    register(owner, [table])
    told_before: set[str] = set()
    for number, change in enumerate(("", *ALTERATIONS)):
        if change:
            owner.execute(f"ALTER TABLE a {change}; INSERT INTO a (id, t) VALUES ({number}, 't')")

        def arrived(wanted: int = number) -> TableSchema | None:
            events = [(data.column("id")[0].as_py(), schema) for _, schema, data in learned(owner, table) if data.num_rows]
            return dict(events).get(wanted)

        # Nullability and key are read by the connector when it meets the change: the next one has to wait.
        event = eventually(f"the event after {change}", arrived)
        schema = told(owner, table)
        assert schema is not None, change
        assert differences(schema, event, stream=number > 0) == [], change
        assert schema.fingerprint not in told_before or change == "ALTER t SET NOT NULL"
        told_before.add(schema.fingerprint)


def test_what_is_not_certain_is_not_told(owner: Pipeline) -> None:
    """I20."""
    owner.execute(
        """CREATE SCHEMA o; CREATE TYPE mood AS ENUM ('x'); CREATE TYPE o.mood AS (x int); CREATE TABLE "date" (id int PRIMARY KEY);
           CREATE TYPE geometry AS (x int); CREATE DOMAIN enumerated AS mood;
           CREATE TABLE fine (id int PRIMARY KEY, d date);
           CREATE TABLE named_twice (id int PRIMARY KEY, m mood); CREATE TABLE row_of_a_table (id int PRIMARY KEY, d public.date);
           CREATE TABLE named_as_another (id int PRIMARY KEY, g geometry); CREATE TABLE by_domain (id int PRIMARY KEY, e enumerated);
           CREATE TABLE unknown (id int PRIMARY KEY, v int2vector); CREATE TABLE bits (id int PRIMARY KEY, b bit(3)[]);
           CREATE TABLE keyed_by_a_list (id int[] PRIMARY KEY)"""
    )
    names = ("fine", "named_twice", "row_of_a_table", "named_as_another", "by_domain", "unknown", "bits", "keyed_by_a_list")
    assert {name for name in names if told(owner, TableId("public", name)) is not None} == {"fine"}
    fine = TableId("public", "fine")
    for key, value in {
        "binary.handling.mode": "base64",
        "column.include.list": "public.fine.id",
        "transforms": "route",
        "value.converter": "io.confluent.connect.avro.AvroConverter",
        "message.key.columns": "public.fine:d",
        "converters": "isbn",
    }.items():
        assert told(owner, fine, {key: value}) is None, key
    assert told(
        owner, fine, {"value.converter.schemas.enable": "false", "heartbeat.interval.ms": "5000", "decimal.handling.mode": "string"}
    )


def test_what_a_domain_hides_is_found_below_it(owner: Pipeline) -> None:
    """I19: events of a domain over bit varying look like bits of one length, and name the domain alone."""
    owner.execute("CREATE DOMAIN vb AS varbit(5); CREATE DOMAIN deep AS vb; CREATE DOMAIN whole AS int; CREATE DOMAIN deeper AS whole")
    owner.execute("CREATE DOMAIN listed AS bit(3)[]; CREATE TABLE a (id deeper PRIMARY KEY, v deep, l listed, r refcursor[], n name[])")
    [table] = [t for t in owner.source.tables() if t.table.name == "a"]
    found = {c.name: c.hazard.blocking for c in table.columns if c.hazard is not None}
    assert found == {"v": True, "l": True, "r": False, "n": False}
    assert owner.source.refusal(table) is not None
