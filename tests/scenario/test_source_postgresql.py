"""PostgreSQL's source against the real server and the real connector: values read again look as events carry them, fills are exact."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc_service.core.errors import ConfigError
from cdc_service.core.types import TableId
from cdc_service.ports.source import UNKNOWN_FILL, Fill
from connectors.debezium.notifications import parse
from connectors.debezium.register import apply_registration, plan_registration, request_snapshots
from connectors.sources import open_source, source_name
from connectors.sources.postgresql.catalog import qualified, quoted
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.registration import Pipeline, eventually, pipeline

A = TableId("public", "a")


@pytest.fixture
def owner(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(stack, pg_database, tmp_path, role="postgres") as made:
        yield made


COLUMNS = {
    "text": ("plain", 'quote " \\ newline\n tab\t é 🙂', ""),
    "varchar(20)": ("v",),
    "character(5)": ("ab",),
    "bytea": ("\\x00ff10", "\\x", "\\x" + "7a" * 500),
    "numeric": ("0", "-1.10", "NaN", "Infinity", "-Infinity", "1" + "0" * 40 + ".000000000000000000000000000001"),
    "json": ('{"a":  1, "a": 2}',),
    "jsonb": ('{"b": [1, null, "x"], "a": 1.50}',),
    "xml": ("<a>b</a>",),
    "hstore": ('a=>1, "b c"=>NULL, "q\\"t"=>"x\\\\y"', ""),
    "citext": ("MiXed",),
    "mood": ("sad",),
    "dtext": ("domain",),
    "inet": ("10.0.0.1/8", "10.3.0.7", "::1"),
    "money": ("-92233720368547758.08", "1.50"),
    "interval": ("1 year 2 mons -3 days 04:05:06.789012", "0", "-00:00:01", "00:00:59.999", "-14 mons 25:00:00", "1000 hours"),
    "time": ("12:34:56.789", "24:00:00", "00:00"),
    "uuid": ("6f1e2d3c-0000-4000-8000-000000000001",),
    "int4range": ("[1,5)",),
    "tsvector": ("'a':1 'b':2",),
    "date": ("2024-02-29", "0001-01-01", "1582-10-04", "infinity", "-infinity"),
    "timestamp": ("2024-05-06 07:08:09.123456", "1969-12-31 23:59:59.999999", "infinity", "-infinity"),
    "timestamptz": (
        *("2024-05-06 07:08:09.123456+02", "0044-03-15 00:00:00+00", "infinity", "-infinity"),
        *("4713-01-01 00:00:00+00 BC", "0001-12-31 00:00:00.5+00 BC", "294276-12-31 23:59:59.999999+00"),
    ),
    "bool": ("t", "f"),
    "int8": ("-9223372036854775808",),
    "float8": ("0.1", "NaN", "-Infinity", "1e300"),
    "float4": ("1.4e-45",),
    "int4[]": ("{1,NULL,-2}", "{}"),
    "text[]": ('{a,"q\\"u","NULL",NULL}',),
    "jsonb[]": ('{"{\\"a\\": 1}"}',),
    "uuid[]": ("{6f1e2d3c-0000-4000-8000-000000000001}",),
    "date[]": ("{2024-02-29,NULL}", "{9999-12-31}", "{}"),
    "timestamp[]": ('{"2024-05-06 07:08:09.123456",infinity,-infinity,NULL}',),
    "timestamptz[]": ('{"2024-05-06 07:08:09.123456+02",infinity,"10000-01-01 00:00+00"}',),
    "numeric[]": ("{1.10,-1e30,NULL}",),
    "bytea[]": ('{"\\\\x00ff",NULL}',),
    "inet[]": ("{10.0.0.1/8,10.0.0.2,NULL}",),
    "character(3)[]": ("{a,abc,NULL}",),
    "timetz[]": ("{12:34:56+02,NULL}",),
    "oid[]": ("{1,NULL}",),
    "timetz": ("00:00:00+15:59", "24:00:00-15:59", "24:00:00+00", "12:34:56.789+02"),
    "point": ("(1.5,-1e308)",),
    "xid": ("4294967295",),
    "pair": ('(1,"x, ""y""")',),
}


_SNAPSHOT_DATES = {-622191234: -2147472692, -625821272: -2147472691}
"""Infinite dates have another form in a snapshot than in the stream."""


def same(event: Any, text: str | None, source_type: str) -> bool:
    """Whether text read again says what the event's JSON value says. Numbers that JSON writes in several ways compare as numbers."""
    if event is None or text is None:
        return event is None and text is None
    if source_type.endswith("[]") or source_type == "hstore":
        loaded = json.loads(text)
        return bool(loaded == (json.loads(event) if source_type == "hstore" else event))
    if source_type == "point":
        return bool(json.loads(text).items() <= event.items())
    if source_type == "xid":  # Events carry the text as bytes.
        return bool(base64.b64decode(event).decode() == text)
    if isinstance(event, bool):
        return text == str(event).lower()
    if source_type == "date":
        return text == str(_SNAPSHOT_DATES.get(event, event))
    if isinstance(event, float):
        return bool(float(text) == event if source_type == "float8" else np.float32(text) == np.float32(event))
    return text == str(event)


def test_values_read_again_are_as_events_carry_them(owner: Pipeline) -> None:
    owner.execute("CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN dtext AS text")
    owner.execute("CREATE TYPE pair AS (a int, b text)")
    columns = ", ".join(f"c{i} {type_}" for i, type_ in enumerate(COLUMNS))
    owner.execute(f"CREATE TABLE a(id int PRIMARY KEY, {columns}); ALTER TABLE a REPLICA IDENTITY FULL")
    rows = max(len(values) for values in COLUMNS.values())
    for row in range(rows + 1):
        values = [values[row] if row < len(values) else None for values in COLUMNS.values()]
        owner.owner.execute(f"INSERT INTO a VALUES ({row}{', %s' * len(values)})".encode(), values)
    owner.register("a")
    ids = set(range(rows + 1))
    events = owner.await_rows("a", ids)
    owner.execute("UPDATE a SET id = -1 - id")
    streamed = owner.await_rows("a", {-1 - i for i in ids})

    order = sorted(ids, reverse=True)
    for found, sign in ((events, 1), (streamed, -1)):
        keys = pa.table({"id": pa.array([-1 - i for i in order] + [99], pa.int32())})
        again = owner.source.reread(A, keys, [f"c{i}" for i in range(len(COLUMNS))])
        assert again.found.to_pylist() == [True] * len(order) + [False]
        assert again.unreadable == ()
        assert again.position <= owner.source.position()
        for i, type_ in enumerate(COLUMNS):
            texts = again.rows.column(f"c{i}").to_pylist()
            assert texts[-1] is None
            for row, text in zip(order, texts[:-1], strict=True):
                event = found[row if sign == 1 else -1 - row][f"c{i}"]
                assert same(event, text, type_), f"{type_}, row {row}: the event holds {event!r}, read again it is {text!r}"


def test_what_text_cannot_give_is_named_and_not_made_up(owner: Pipeline) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY, p box, i bit(3), v text); INSERT INTO a VALUES (1, '(1,2),(0,0)', '101', 'x')")
    again = owner.source.reread(A, pa.table({"id": pa.array([1], pa.int32())}), ["p", "i", "v"])
    assert again.unreadable == ("p",)
    assert again.rows.to_pylist() == [{"p": None, "i": "101", "v": "x"}]


KEYS = {
    "int8": pa.array([-5, 2**62], pa.int64()),
    "text": pa.array(["a\"b\\c'd", "é\n"]),
    "numeric(10,2)": pa.array(["1.50", "-3.00"]),
    "bytea": pa.array([b"\x00\xff", b""], pa.binary()),
    "uuid": pa.array(["6f1e2d3c-0000-4000-8000-000000000001", "00000000-0000-0000-0000-000000000000"]),
    "date": pa.array([0, 2**31 - 1], pa.int32()).view(pa.date32()),
    "timestamp": pa.array([1, -(2**63) + 1], pa.int64()).view(pa.timestamp("us")),
    "timestamptz": pa.array([-1, 2**63 - 1], pa.int64()).view(pa.timestamp("us", "UTC")),
    "bool": pa.array([True, False]),
    "time": pa.array([0, 86_399_999_999], pa.int64()).view(pa.time64("us")),
    "character(4)": pa.array(["ab  ", "c   "]),
}
WRITTEN = {
    "bytea": ["\\x00ff", "\\x"],
    "date": ["1970-01-01", "infinity"],
    "timestamp": ["1970-01-01 00:00:00.000001", "-infinity"],
    "timestamptz": ["1969-12-31 23:59:59.999999Z", "infinity"],
    "time": ["00:00", "23:59:59.999999"],
}


@pytest.mark.parametrize("type_", KEYS)
def test_rows_are_found_by_keys_of_every_type(owner: Pipeline, type_: str) -> None:
    owner.execute(f'CREATE TABLE a("k 1" {type_}, n int, v text, PRIMARY KEY (n, "k 1"))')
    for n, key in enumerate(WRITTEN.get(type_) or KEYS[type_].to_pylist()):
        owner.owner.execute("INSERT INTO a VALUES (%s, %s, %s)", (key, n, f"v{n}"))
    keys = pa.table({"n": pa.array([1, 0, 7], pa.int32()), "k 1": pa.concat_arrays([KEYS[type_].take(pa.array([1, 0])), KEYS[type_][:1]])})
    again = owner.source.reread(A, keys, ["v"])
    assert again.rows.column("v").to_pylist() == ["v1", "v0", None]
    assert again.found.to_pylist() == [True, True, False]


@pytest.mark.parametrize(
    ("statements", "fill"),
    [
        ("ALTER TABLE a ADD c int DEFAULT 5", Fill(True, "5")),
        ("ALTER TABLE a ADD c int", Fill(True, None)),
        ("ALTER TABLE a ADD c int DEFAULT 5; ALTER TABLE a ALTER c SET DEFAULT 6", Fill(True, "5")),
        ("ALTER TABLE a ADD c int; ALTER TABLE a ALTER c SET DEFAULT 6", Fill(True, None)),
        ("ALTER TABLE a ADD c text DEFAULT 'it''s'", Fill(True, "it's")),
        ("ALTER TABLE a ADD c bytea DEFAULT '\\x01'", Fill(True, "AQ==")),
        ("ALTER TABLE a ADD c int[] DEFAULT '{1,2}'", Fill(True, "[1, 2]")),
        ("ALTER TABLE a ADD c numeric DEFAULT 'NaN' NOT NULL", Fill(True, "NAN")),
        ("ALTER TABLE a ADD c timestamptz DEFAULT '2020-01-01 00:00:00Z'", Fill(True, "2020-01-01T00:00:00.000000Z")),
        ("ALTER TABLE a ADD c uuid DEFAULT gen_random_uuid()", UNKNOWN_FILL),
        ("ALTER TABLE a ADD c uuid DEFAULT gen_random_uuid(); ALTER TABLE a ALTER c DROP DEFAULT", UNKNOWN_FILL),
        ("TRUNCATE a; INSERT INTO a VALUES (1); ALTER TABLE a ADD c int", Fill(True, None)),
        ("ALTER TABLE a ADD c date DEFAULT 'infinity'", Fill(True, "-2147472692")),
        ("ALTER TABLE a ADD c box DEFAULT '(1,2),(0,0)'", UNKNOWN_FILL),
    ],
)
def test_the_fill_of_an_added_column_is_what_old_rows_hold(owner: Pipeline, statements: str, fill: Fill) -> None:
    owner.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 3)")
    owner.execute(statements)
    found = owner.source.fill_of_added_column(A, "c")
    if fill.known and fill.text is not None and fill.text.startswith("["):
        assert (found.known, json.loads(found.text or "")) == (True, json.loads(fill.text))
    else:
        assert found == fill
    if found.known:
        again = owner.source.reread(A, pa.table({"id": pa.array([1], pa.int32())}), ["c"])
        assert again.rows.column("c").to_pylist() == [found.text]


def test_the_fill_of_a_partitioned_table_is_known_where_its_partitions_agree(owner: Pipeline) -> None:
    owner.execute(
        "CREATE TABLE a(id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE a2 PARTITION OF a FOR VALUES FROM (10) TO (20); INSERT INTO a VALUES (1), (11); ALTER TABLE a ADD c int DEFAULT 7"
    )
    assert owner.source.fill_of_added_column(A, "c") == Fill(True, "7")
    assert owner.source.fill_of_added_column(A, "nothing") == UNKNOWN_FILL


NAMES = [
    "Mixed",
    "mixed",
    "a.b",
    "sp ace",
    "back\\slash",
    "back\\",
    "com,ma",
    "par(en)s*",
    "ünï",
    "select",
    "dollar$",
    "[b]racket",
    "🙂",
    " blanks ",
    "tab\there\t",
    "\\.x",
    "[.]y",
    "a,\\,b",
]


def test_any_name_is_captured_and_no_other_with_it(owner: Pipeline) -> None:
    for name in NAMES:
        owner.execute(
            'CREATE TABLE "{0}"(id int PRIMARY KEY, "{0}" text); INSERT INTO "{0}" VALUES (1, \'x\')'.format(name.replace('"', '""'))
        )
    owner.execute("CREATE TABLE axb(id int PRIMARY KEY); INSERT INTO axb VALUES (1)")
    wanted = [name for name in NAMES if name != "mixed"]
    owner.register(*wanted)
    config = owner.connect.config(owner.names.connector)
    assert config is not None
    assert owner.source.registered(config) == {TableId("public", name) for name in wanted}
    seen: set[str] = set()

    def all_seen() -> bool:
        topics = {owner.names.topic(TableId("public", name)) for name in [*NAMES, "axb"]}
        for topic in topics & set(owner.kafka.topics()):
            seen.update(value["source"]["table"] for _, value, _ in owner.events(topic) if value)
        return seen >= set(wanted)

    eventually(f"events of {wanted}", all_seen)
    assert seen == set(wanted)


def test_notifications_name_each_table_exactly(owner: Pipeline) -> None:
    tables = [TableId("public", name) for name in NAMES] + [TableId(*n) for n in (("a.b", "c"), ("s,q", "t'u"), ("Ü", " x "), ("Ü", "X"))]
    for table in tables:
        place = qualified(table)
        owner.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}; CREATE TABLE {place}(id int PRIMARY KEY)")
        owner.execute(f"INSERT INTO {place} VALUES (1)")
    plan = plan_registration(owner.config, tables, owner.source, owner.connect, owner.kafka)
    apply_registration(plan, owner.source, owner.connect, owner.kafka)

    def missing(aggregate: str) -> list[TableId]:
        """Tables without an end; a restarted connector tells some twice."""
        said = [parse(json.dumps(value).encode()) for _, value, _ in owner.events(owner.names.notification_topic)]
        found = [n for n in said if n is not None and n.scanned and n.aggregate == aggregate]
        named = [[t for t in tables if owner.source.names_collection(n.tables[0], t)] for n in found]
        assert all(len(matching) == 1 for matching in named), list(zip(found, named, strict=True))
        return sorted(set(tables) - {t for matching in named for t in matching})

    eventually("the end of the initial snapshot of each table", lambda: not missing("initial"), rest=lambda: missing("initial"))
    refused = {t for t in tables if owner.source.snapshot_refusal(t)}
    assert {t.name for t in refused} == {"sp ace", "tab\there\t"}
    wanted = dict.fromkeys(set(tables) - refused, "resync")
    assert request_snapshots(owner.names, list(wanted), owner.source, owner.connect, owner.kafka, wanted) == wanted
    left = lambda: set(missing("incremental")) - refused  # noqa: E731
    eventually("the end of the incremental snapshot of each table", lambda: not left(), rest=left)


@pytest.mark.parametrize(
    ("offset", "snapshot", "back"),
    [
        ({"snapshot": "INITIAL", "snapshot_completed": False, "lsn": 9}, True, False),
        ({"snapshot": "INITIAL", "snapshot_completed": True, "lsn": 9}, False, False),
        # As they were after a kill and a restart within an incremental snapshot; before the first of its rows they say no more than that.
        ({"snapshot": "INCREMENTAL", "snapshot_completed": False, "lsn": 9, "lsn_proc": 9, "lsn_commit": 7}, False, True),
        ({"snapshot": "INCREMENTAL", "snapshot_completed": True, "lsn": 9, "lsn_proc": 9, "lsn_commit": 9}, False, False),
        ({"lsn": 9, "lsn_proc": 9, "lsn_commit": 7}, False, True),
    ],
)
def test_offsets_tell_the_initial_snapshot_from_one_beside_the_stream(offset: dict[str, object], snapshot: bool, back: bool) -> None:
    source = open_source("postgresql://cdc@localhost/shop")
    assert source.progress([({}, offset)]).snapshot is snapshot
    assert bool(source.set_back([({}, offset)])) is back


def test_positions_are_lsns_and_grow(owner: Pipeline) -> None:
    before = owner.source.position()
    owner.execute("CREATE TABLE a(id int PRIMARY KEY)")
    after = owner.source.position()
    assert before < after
    assert owner.source.parse_position(owner.source.format_position(after)) == after
    assert owner.source.parse_position("16/B374D848") == 97500059720
    assert owner.source.parse_position(" 42 ") == 42
    for wrong in ("16/", "x/y", "-1", "", "1/2/3", str(2**64)):
        with pytest.raises(ConfigError, match="not a log position"):
            owner.source.parse_position(wrong)


def test_the_hold_of_a_slot_tells_what_it_keeps(owner: Pipeline) -> None:
    assert owner.source.hold(owner.names) is None
    owner.execute("CREATE TABLE a(id int PRIMARY KEY)")
    owner.register("a")
    hold = owner.source.hold(owner.names)
    assert hold is not None
    assert (hold.name, hold.status) == (owner.names.at_source, "reserved")
    assert hold.retained_bytes is not None
    assert eventually("the slot is read", lambda: (h := owner.source.hold(owner.names)) and h.active)
    assert eventually("a confirmed position", lambda: owner.source.identities([], owner.names, None, {}).sent_from > 0)


def test_a_url_of_an_unknown_source_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="no source for oracle") as caught:
        source_name("oracle://x")
    assert "postgresql" in caught.value.hint
