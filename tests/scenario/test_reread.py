"""Rows read again beside open transactions: what is given as their position is one up to which nothing can be missing."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.order import Seen
from cdc_service.core.types import Op, TableId
from cdc_service.ports.events import InexactText
from cdc_service.ports.source import Reread, Source
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources import open_source
from connectors.sources.postgresql import settle as _postgresql_settle
from connectors.sources.postgresql.events import PostgresEvents
from tests.conftest import PgDatabase
from tests.support.envelopes import PLACEHOLDER
from tests.support.plain import plain
from tests.support.recorded import FIXTURES, batch_of, topics
from tests.support.registration import eventually
from tests.unit.test_decoder_fixtures import without

A = TableId("public", "a")
KEYS = 5


@pytest.fixture
def owner(pg_database: PgDatabase) -> Iterator[psycopg.Connection]:
    with psycopg.connect(pg_database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE a(id int PRIMARY KEY, n int, body text)")
        connection.execute(f"INSERT INTO a SELECT g, 0, 'x' FROM generate_series(0, {KEYS - 1}) g; GRANT SELECT ON a TO cdc")
        yield connection


@pytest.fixture
def source(pg_database: PgDatabase, owner: psycopg.Connection) -> Iterator[Source]:
    """As a role that may read, and nothing else."""
    made = open_source(pg_database.cdc_url)
    yield made
    made.close()


@contextmanager
def transaction(database: PgDatabase, *statements: str) -> Iterator[psycopg.Connection]:
    """A session with an open transaction that ran ``statements``."""
    with psycopg.connect(database.url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection


def reread(source: Source, table: TableId = A, key: int = 1) -> Reread:
    return source.reread(table, pa.table({"id": pa.array([key], pa.int32())}), ["n"])


def test_a_column_that_the_source_has_dropped_is_null(source: Source, owner: psycopg.Connection) -> None:
    owner.execute("ALTER TABLE a DROP COLUMN n")
    again = source.reread(A, pa.table({"id": pa.array([1], pa.int32())}), ["n", "body"])
    assert again.rows.to_pylist() == [{"n": None, "body": "x"}]
    assert again.unreadable == ()
    with pytest.raises(CdcError, match="no key k"):
        source.reread(A, pa.table({"k": pa.array([1], pa.int32())}), ["body"])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE a SET n = 7 WHERE id = 1",
        "DELETE FROM a WHERE id = 1",
        "INSERT INTO a VALUES (100, 1)",
        "SAVEPOINT s; UPDATE a SET n = 7 WHERE id = 1; RELEASE s",
        "COPY a FROM PROGRAM 'printf \"101\\\\t1\\\\tx\\\\n\"'",
    ],
)
def test_an_open_change_of_the_table_is_waited_for_and_named(
    source: Source, pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(_postgresql_settle, "SETTLE_SECONDS", 0.3)
    with transaction(pg_database, *change.split("; ")) as other:
        with pytest.raises(Unavailable, match=rf"pid {other.info.backend_pid}\b") as caught:
            reread(source)
        assert caught.value.code == "source_busy"
        assert f"pg_terminate_backend({other.info.backend_pid})" in caught.value.hint
        other.rollback()
        assert reread(source).rows.to_pylist() == [{"n": "0"}]


def test_a_change_that_commits_meanwhile_is_seen(source: Source, pg_database: PgDatabase) -> None:
    with transaction(pg_database, "UPDATE a SET n = 7 WHERE id = 1") as other:
        begun = time.monotonic()
        timer = threading.Timer(0.5, other.commit)
        timer.start()
        again = reread(source)
        timer.join()
    assert again.rows.to_pylist() == [{"n": "7"}]
    assert time.monotonic() - begun >= 0.5


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM a",
        "SELECT * FROM a FOR KEY SHARE",
        "SELECT txid_current()",
        "CREATE TABLE elsewhere(id int)",
        "LOCK TABLE a IN ROW EXCLUSIVE MODE",
    ],
)
def test_who_changed_nothing_in_the_table_is_in_nobodys_way(source: Source, pg_database: PgDatabase, statement: str) -> None:
    with transaction(pg_database, statement):
        begun = time.monotonic()
        assert reread(source).rows.to_pylist() == [{"n": "0"}]
        assert time.monotonic() - begun < _postgresql_settle.SETTLE_SECONDS


def test_a_change_in_a_partition_is_one_of_its_table(
    source: Source, owner: psycopg.Connection, pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgresql_settle, "SETTLE_SECONDS", 0.3)
    owner.execute("CREATE TABLE p(id int PRIMARY KEY, n int) PARTITION BY RANGE (id); GRANT SELECT ON p TO cdc")
    owner.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 0)")
    with transaction(pg_database, "UPDATE p1 SET n = 1"), pytest.raises(Unavailable, match="pid"):
        reread(source, TableId("public", "p"))
    assert reread(source, TableId("public", "p")).found.to_pylist() == [True]


def test_no_committed_change_up_to_the_position_is_missing_under_load(
    source: Source, owner: psycopg.Connection, pg_database: PgDatabase
) -> None:
    """Each row counts its changes: the log itself says how many of them lie up to a position."""
    owner.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (f"{pg_database.name}_truth",))
    stop = threading.Event()

    def write(seed: int) -> None:
        rand = random.Random(seed)
        with psycopg.connect(pg_database.url) as connection:
            while not stop.is_set():
                for key in sorted(rand.sample(range(KEYS), 2)):
                    connection.execute("UPDATE a SET n = n + 1 WHERE id = %s", (key,))
                    time.sleep(rand.choice([0, 0.002, 0.02]))
                connection.commit() if rand.random() < 0.8 else connection.rollback()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    seen: list[tuple[int, int, int]] = []
    for writer in writers:
        writer.start()
    try:
        eventually("rows read again under load", lambda: seen.append(_count(source, len(seen) % KEYS)) or len(seen) >= 60)
    finally:
        stop.set()
        for writer in writers:
            writer.join(10)
    truth = _changes(owner, f"{pg_database.name}_truth")
    for key, counted, position in seen:
        committed = max([n for k, n, lsn in truth if k == key and lsn <= position], default=0)
        assert counted >= committed, f"key {key}: {counted} was read, but the log holds {committed} up to {position}"
    assert len(truth) > len(seen)
    assert any(counted > 0 for _, counted, _ in seen)


def test_a_change_after_the_read_lies_behind_its_position(source: Source, owner: psycopg.Connection, pg_database: PgDatabase) -> None:
    slot = f"{pg_database.name}_truth"
    owner.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    for n in range(1, 21):
        again = reread(source)
        assert again.rows.to_pylist() == [{"n": str(n - 1)}]
        owner.execute("UPDATE a SET n = %s WHERE id = 1", (n,))
        ((_, _, lsn),) = [change for change in _changes(owner, slot) if change[1] == n]
        assert lsn > again.position


def _count(source: Source, key: int) -> tuple[int, int, int]:
    again = reread(source, key=key)
    return key, int(again.rows["n"][0].as_py()), again.position


def _changes(owner: psycopg.Connection, slot: str) -> list[tuple[int, int, int]]:
    """(key, n, log position) of each committed update that the slot has not given yet."""
    rows = owner.execute("SELECT (lsn - '0/0')::bigint, data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", (slot,)).fetchall()
    found = [(re.search(r"table public\.a: UPDATE: .*id\[integer\]:(\d+) n\[integer\]:(\d+)", data), lsn) for lsn, data in rows]
    return [(int(m[1]), int(m[2]), lsn) for m, lsn in found if m is not None]


GEOMETRIC = {"l", "ls", "b", "pa", "po", "ci"}
MISSHAPEN = {"t_arr_nd": {"i4", "t"}}
UNREADABLE = {"t_geo": GEOMETRIC, "t_arr2": {"cm", "p"}, **MISSHAPEN}
"""Columns of which events carry what SQL does not give: numbers in Java's notation, arrays of composites and of domains, and such as are no
lists."""
REFUSED = {"vb", "vb5", "tm", "bi"}
"""Columns of which no value is exact in an event."""
NOT_EXACT = {"t_num": {4}, "t_time": {2}}
"""Rows with a value that the target does not hold: NaN in numeric(38,10), a time beyond microseconds since 1970."""
CHANGED = {("t_time", "d"): {1, 8, 9}, ("t_arr2", "m"): {2}, ("t_arr2", "lt"): {2}}
"""Of which rows snapshots changed a date, and what the connector could not convert (it was told to send NULL)."""


def test_every_type_is_read_again_as_its_events_carry_it(pg_database: PgDatabase, source: Source) -> None:
    """The recorded events of a real connector against the rows that they are of."""
    setup, stream = (FIXTURES / "torture.sql").read_text().split("-- @setup", 1)[1].split("-- @stream", 1)
    with psycopg.connect(pg_database.url, autocommit=True) as connection:
        connection.execute(re.sub(r"create (table debezium_signal|publication)[^;]*;", "", setup).encode())
        connection.execute(stream.encode())
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO cdc")
    compared = 0
    for topic, records in topics("torture").items():
        name = topic.rsplit(".", 1)[1]
        if not name.startswith("t_"):
            continue
        decoder = DebeziumJsonDecoder(PostgresEvents(), unavailable=PLACEHOLDER)
        batches = decoder.decode(batch_of(topic, without(records, REFUSED)))
        schema = batches[-1].schema
        events = {}
        for batch in batches:
            rows = zip(*(plain(batch.data[column]) for column in schema.names), strict=True)
            unsure = [False] * batch.num_rows if batch.doubtful is None else batch.doubtful.to_pylist()
            gone = zip(batch.meta["op"].to_pylist(), unsure, strict=True)
            events |= {row[0]: row for row, (op, doubt) in zip(rows, gone, strict=True) if op < Op.DELETE and not doubt}
        ids = sorted({*events, *NOT_EXACT.get(name, ())})
        again = source.reread(TableId("public", name), pa.table({"id": pa.array(ids, pa.int32())}), schema.names)
        assert set(again.unreadable) == UNREADABLE.get(name, set()), name
        assert again.misshapen == MISSHAPEN.get(name, set()), name
        good = pa.array(i % 100 not in NOT_EXACT.get(name, ()) for i in ids)
        if name in NOT_EXACT:
            with pytest.raises(InexactText) as caught:
                decoder.from_text(topic, again.rows, schema)
            assert caught.value.rows.tolist() == pc.invert(good).to_pylist(), name
        texts = decoder.from_text(topic, again.rows.filter(good), schema)
        for column in schema.names:
            for id_, value in zip(pa.array(ids).filter(good).to_pylist(), plain(texts[column]), strict=True):
                wrong = CHANGED.get((name, column), set())
                if id_ in events and column not in again.unreadable and id_ % 100 not in wrong:
                    assert _told(value, column) == _told(events[id_][schema.names.index(column)], column), (name, column, id_)
                    compared += 1
    assert compared > 900


def _told(value: object, column: str) -> object:
    """Blanks and order in the JSON of an hstore say nothing."""
    return sorted(str(value).replace(" ", "")) if column == "h" else value


def test_an_array_that_is_no_list_is_told_by_its_row(source: Source, owner: psycopg.Connection) -> None:
    arrays = ["{1,2}", "{{1,2},{3,4}}", "[0:1]={1,2}", "{}", None, "{NULL,NULL}", "[-1:0]={NULL,NULL}", "{{1}}", "[1:1]={7}"]
    owner.execute("CREATE TABLE s(id int PRIMARY KEY, i int[], d date[], b box); GRANT SELECT ON s TO cdc")
    for id_, array in enumerate(arrays):
        days = array and re.sub(r"(?<=[{,])\d", "2020-01-01", array)
        owner.execute("INSERT INTO s VALUES (%s, %s, %s, %s)", (id_, array, days, "(1,1),(0,0)" if id_ == 3 else None))
    again = source.reread(TableId("public", "s"), pa.table({"id": pa.array(range(len(arrays)), pa.int32())}), ["i", "d", "b"])
    for column in ("i", "d"):
        assert again.where[column].to_pylist() == [a is not None and a[:2] in ("{{", "[0", "[-") for a in arrays], column
    assert again.rows["i"].to_pylist() == ["[1,2]", None, None, "[]", None, "[null,null]", None, None, "[7]"]
    assert again.rows["d"].to_pylist()[0] == "[18262, 18262]"
    # Of a type without a form in events a row counts only if it holds a value.
    assert again.where["b"].to_pylist() == [i == 3 for i in range(len(arrays))]
    assert (set(again.unreadable), again.misshapen) == ({"i", "d", "b"}, {"i", "d"})


def seen(source: Source, name: str, key: list[str], **columns: tuple[pa.DataType, list[object]]) -> list[Seen]:
    """What the source says of rows that a snapshot brought; each column as (type, values)."""
    arrays = {name: pa.array(values, pa.int32() if kind == DAY else kind).view(kind) for name, (kind, values) in columns.items()}
    found = source.misread(TableId("public", name), key, pa.table(arrays))
    assert found is not None
    return [Seen(value) for value in found.to_pylist()]


DAY = pa.date32()


def test_a_snapshot_s_row_is_believed_where_the_source_holds_its_dates_now(source: Source, owner: psycopg.Connection) -> None:
    owner.execute('CREATE DOMAIN day AS date; CREATE TABLE d(id int PRIMARY KEY, d date, o day, n int, ":{c" date)')
    owner.execute("GRANT SELECT ON d TO cdc")
    owner.execute(
        "INSERT INTO d VALUES (1, '2020-01-01', NULL, 1), (2, NULL, NULL, 1), (3, '0044-03-15 BC', NULL, 1), (4, '1582-10-05', NULL, 1),"
        " (5, '2020-01-01', '4714-11-24 BC', 1), (6, 'infinity', '-infinity', 1), (7, '2020-01-02', NULL, 1), (9, '1582-10-15', NULL, 1)"
    )
    infinity = 2**31 - 1
    found = seen(
        source, "d", ["id"],
        id=(pa.int32(), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        d=(DAY, [18262, None, -703383, -141427, 18262, infinity, 18262, 18262, -141427]),
        o=(DAY, [None, None, None, None, 1002552, -infinity, None, None, None]),
        n=(pa.int32(), [1] * 9),
    )  # fmt: skip
    assert found == [Seen.SAME, Seen.SAME, Seen.CHANGED, Seen.CHANGED, Seen.CHANGED, Seen.SAME, Seen.OTHER, Seen.OTHER, Seen.SAME]
    assert source.misread(A, ["id"], pa.table({"id": pa.array([1], pa.int32()), "n": pa.array([0], pa.int32())})) is None
    one = pa.table({"id": pa.array([1], pa.int32())})
    assert seen(source, "d", ["id"], **{"id": (pa.int32(), [1]), ":{c": (DAY, [0])}) == [Seen.OTHER]
    assert source.reread(TableId("public", "d"), one, [":{c"]).rows.to_pylist() == [{":{c": None}]
    # What the table has no more cannot be compared; the change of its schema is on its way.
    owner.execute("ALTER TABLE d DROP COLUMN d")
    assert seen(source, "d", ["id"], id=(pa.int32(), [3]), d=(DAY, [-703383])) == [Seen.SAME]


def test_a_date_in_the_key_that_another_row_s_may_have_become_is_told(source: Source, owner: psycopg.Connection) -> None:
    owner.execute("CREATE TABLE d(d date, k text, e date, PRIMARY KEY (k, e, d)); GRANT SELECT ON d TO cdc")
    owner.execute(
        "INSERT INTO d VALUES ('2020-01-01', 'a', '2020-01-01'), ('0044-03-15 BC', 'a', '2020-01-01'), ('2020-01-01', 'a', '1582-10-07'),"
        " ('0044-03-15 BC', 'b', '1582-10-07'), ('0004-03-01 BC', 'c', '2020-01-01')"
    )
    found = seen(
        source, "d", ["k", "e", "d"],
        # The last would be 29 February of 4 BC, a year without one.
        d=(DAY, [18262, -703383, 18262, -703383, 18262, -718008, 0]),
        k=(pa.string(), ["a", "a", "a", "b", "gone", "c", "a"]),
        e=(DAY, [18262, 18262, -141425, -141425, 18262, 18262, 18262]),
    )  # fmt: skip
    assert found == [Seen.SAME, Seen.KEY, Seen.KEY, Seen.KEY, Seen.OTHER, Seen.OTHER, Seen.OTHER]
