"""Values that the connector changes on the way, through the whole line: read again at the source and exact, or parked; never wrong."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.core.types import TableId, Target
from deploy.local.process import StackError
from deploy.local.stack import Stack
from mergers.destinations import open_destination
from tests.conformance.harness import HARNESSES
from tests.conftest import PgDatabase
from tests.scenario.test_line_types import source_rows, target_rows
from tests.support.line import Line, line
from tests.unit.test_decoder_fixtures import agrees

SETUP = """
CREATE TABLE a(id int PRIMARY KEY, d date, da date[], i int[], t text[], ts timestamp[], tz timestamptz[]);
ALTER TABLE a REPLICA IDENTITY FULL; GRANT SELECT ON a TO cdc;
"""
ROWS = """
SET TimeZone = 'UTC';
INSERT INTO a SELECT {more} + v.n, v.d::date, v.da::date[], v.i::int[], v.t::text[], v.ts::timestamp[], v.tz::timestamptz[] FROM (VALUES
 (1, '0044-03-15 BC', '{{2020-01-01,infinity,-infinity}}', '{{1,NULL}}', '{{a}}', '{{0044-03-15 BC,infinity,-infinity,1500-02-28}}',
     '{{0044-03-15 BC,infinity,-infinity,10000-01-01}}'),
 (2, '1582-10-06', '{{0044-03-15 BC,4713-01-01 BC,1582-10-06,0001-01-01}}', '{{NULL,NULL}}', '{{"[Ljava.lang.String;@1a"}}', '{{}}', NULL),
 (3, '4714-11-24 BC', NULL, '{{{{1,2}},{{3,4}}}}', NULL, NULL, NULL),
 (4, '4713-01-01', '{{{{2020-01-01}}}}', NULL, NULL, NULL, NULL),
 (5, 'infinity', NULL, '[0:1]={{NULL,NULL}}', NULL, NULL, NULL),
 (6, '-infinity', NULL, NULL, '{{{{a,b}}}}', NULL, NULL),
 (7, NULL, '{{}}', '{{}}', '{{}}', '{{294276-01-01}}', NULL),
 (8, '5874897-12-31', '{{5874897-12-31,99999-01-01}}', NULL, '{{NULL}}', NULL, '{{1582-10-14,1582-10-15}}')
) AS v(n, d, da, i, t, ts, tz);
"""
PARKED = {3: "array_dimensions", 4: "array_dimensions", 5: "array_dimensions", 6: "array_dimensions", 7: "inexact_value"}
KEYS = """
CREATE TABLE k(d date PRIMARY KEY, n int, o date); GRANT SELECT ON k TO cdc;
INSERT INTO k VALUES ('2020-01-01', 1, '0001-01-01 BC'), ('0044-03-15 BC', 2, NULL), ('1582-10-07', 3, NULL), ('1582-10-18', 4, NULL),
 ('0070-01-01', 5, NULL), ('0070-01-01 BC', 6, NULL)
"""


def parked(pipeline: Line) -> dict[str, str]:
    """By key the code under which its first record is parked."""
    found = pipeline.rows("SELECT key_text, code FROM _cdc.quarantine WHERE state = 'parked' AND code <> 'behind_parked'")
    return dict(found)


def differences(pipeline: Line, table: str, destination: str, key: str = "id") -> list[Any]:
    """Rows that one side lacks, and values that differ."""
    url = pipeline.warehouse.url.replace("${CDC_PASSWORD}", pipeline.stack.password("cdc"))
    target = Target(TableId("public", table), "public", table)
    with psycopg.connect(pipeline.database.url) as source, contextlib.closing(open_destination(url, pipeline=pipeline.database.name)) as d:
        source.execute("SET TimeZone = 'UTC'")
        schema = d.schemas(target)[-1]
        wanted, _ = source_rows(source, table)
        held = target_rows(HARNESSES[destination], d, target, schema)
    found: list[Any] = sorted(set(wanted) ^ set(held))
    for id_ in set(wanted) & set(held):
        found += [
            (id_, name, wanted[id_][name], held[id_][name])
            for name in schema.names
            if not agrees(wanted[id_][name], held[id_][name], schema, name)
        ]
    return found


@pytest.mark.parametrize("destination", ["duckdb", "postgresql"])
def test_what_the_connector_changes_is_read_again_or_parked(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, destination: str
) -> None:
    """In an initial snapshot, in the stream, and in a snapshot beside it: I1, I19, I20, I23."""
    with line(stack, pg_database, tmp_path, "public.a: {}", destination=destination) as pipeline:
        pipeline.execute(SETUP + ROWS.format(more=0))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        pipeline.execute(ROWS.format(more=100))
        pipeline.await_complete()
        pipeline.stop()
        assert parked(pipeline) == {f'["{more + id_}"]': code for id_, code in PARKED.items() for more in (0, 100)}
        assert differences(pipeline, "a", destination) == sorted(more + id_ for id_ in PARKED for more in (0, 100))
        # As the message says: the arrays get a form that a list has, and the records are replayed.
        pipeline.execute("UPDATE a SET da = NULL, i = '{1}', t = NULL, ts = NULL WHERE id % 100 IN (3, 4, 5, 6, 7)")
        pipeline.start()
        pipeline.await_complete()
        pipeline.call("quarantine", "replay", "public.a")
        pipeline.await_complete()
        assert pipeline.tables()["public.a"]["parked_waiting"] == 0
        pipeline.act("resync", "public.a")
        pipeline.await_complete()
        pipeline.stop()
        assert differences(pipeline, "a", destination) == []
        assert parked(pipeline) == {}


def test_a_date_in_the_key_that_a_snapshot_changed_is_parked_and_its_cure_heals(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    with line(stack, pg_database, tmp_path, "public.k: {}", destination="duckdb") as pipeline:
        pipeline.execute(KEYS)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        kept = "SELECT CAST(d AS VARCHAR), n, CAST(o AS VARCHAR) FROM public.k ORDER BY n"
        asked = pipeline.query(kept)
        assert asked is not None
        assert [tuple(row.values()) for row in asked.to_pylist()] == [("2020-01-01", 1, "0001-01-01 (BC)"), ("1582-10-18", 4, None)]
        waiting = pipeline.tables()["public.k"]["quarantine"]["waiting"]
        assert waiting["snapshot_value"] + waiting.get("behind_parked", 0) == 4, waiting
        # As the message says: the rows are written again, which the stream carries exactly, and the records are discarded.
        (message,) = {r["message"] for r in pipeline.call("quarantine", "list", "--code", "snapshot_value")["records"]}
        pipeline.execute("UPDATE k SET n = n")
        pipeline.await_complete()
        pipeline.call(*message.split("then: cdc ")[1].split(), "--yes", "--reason", "written again")
        pipeline.await_complete()
        assert pipeline.tables()["public.k"]["parked_waiting"] == 0
        pipeline.stop()
        assert pipeline.rows(kept) == [
            ("2020-01-01", 1, "0001-01-01 (BC)"), ("0044-03-15 (BC)", 2, None), ("1582-10-07", 3, None), ("1582-10-18", 4, None),
            ("0070-01-01", 5, None), ("0070-01-01 (BC)", 6, None),
        ]  # fmt: skip


def test_a_log_of_changes_parks_what_it_cannot_read_again(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    with line(stack, pg_database, tmp_path, "public.a: {mode: append}", destination="duckdb") as pipeline:
        pipeline.execute(SETUP + ROWS.format(more=0) + "INSERT INTO a(id, d) VALUES (11, '0044-03-15 BC'), (12, '2020-01-01')")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        pipeline.execute("INSERT INTO a(id, d, da) VALUES (101, '0044-03-15 BC', '{2020-01-01,infinity}'), (102, NULL, '{0044-03-15 BC}')")
        pipeline.await_complete()
        pipeline.stop()
        decode = dict.fromkeys([f'["{i}"]' for i in (1, 2, 3, 4, 5, 6, 7, 8, 102)], "doubtful_value")
        assert parked(pipeline) == decode | {'["11"]': "snapshot_value"}
        assert pipeline.rows("SELECT id, CAST(d AS VARCHAR) FROM public.a ORDER BY id") == [(12, "2020-01-01"), (101, "0044-03-15 (BC)")]


SPELLED = """
CREATE TYPE pair AS (d date, z timestamptz, f float8, i interval, b bytea);
CREATE TABLE s.a(id int PRIMARY KEY, d date, tz timestamptz, iv interval, by bytea, f float8, f4 real, m money, r tstzrange,
 mr tsmultirange, rc regclass, t text, da date[], ba bytea[], cm pair, big bytea);
ALTER TABLE s.a ALTER big SET STORAGE EXTERNAL; GRANT USAGE ON SCHEMA s TO cdc; GRANT SELECT ON s.a TO cdc;
"""
SPELLED_ROW = """
SET TimeZone = 'UTC';
INSERT INTO s.a VALUES ({id}, '2024-05-06', '2024-05-06 07:08:09.123+02', '1 year 2 mons -3 days 04:05:06.789', '\\x00ff27',
 0.1::float8 + 0.2, 1.1::real / 3, '-1234567.89', '["2024-01-01 00:00+02",)', '{{["2024-01-01","2024-01-02")}}', 's."A b"', 'é \\ 1',
 '{{2024-05-06}}', ARRAY['\\x005c'::bytea],
 ROW('2024-05-06', '2024-05-06 00:00+00', 0.1::float8 + 0.2, '1 day', '\\x00')::pair, {big});
"""
LARGE = "(SELECT string_agg(sha512(i::text::bytea), '') FROM generate_series(1, 200) i)"


def test_settings_of_the_role_spell_no_value_otherwise(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """In a snapshot, in the stream, in a row that is read again and in a comparison."""
    settings = {
        **{"DateStyle": "'SQL, DMY'", "IntervalStyle": "sql_standard", "bytea_output": "escape", "TimeZone": "'America/New_York'"},
        **{"extra_float_digits": "'-15'", "client_encoding": "LATIN1", "quote_all_identifiers": "on", "array_nulls": "off"},
        **{"standard_conforming_strings": "off", "transform_null_equals": "on"},
    }
    with line(stack, pg_database, tmp_path, "s.a: {}", destination="duckdb") as pipeline:
        pipeline.execute('CREATE SCHEMA s; CREATE TABLE s."A b"(id int)')
        pipeline.execute(SPELLED)
        pipeline.execute(SPELLED_ROW.format(id=1, big=LARGE))
        for name, value in settings.items():
            pipeline.execute(f"ALTER ROLE cdc IN DATABASE {pg_database.name} SET {name} = {value}")
        pipeline.register()
        # A change of key in the first load is read again at the source, since its large value is not sent.
        pipeline.execute(
            SPELLED_ROW.format(id=2, big=LARGE) + "UPDATE s.a SET id = 3 WHERE id = 2; " + SPELLED_ROW.format(id=4, big="NULL")
        )
        pipeline.start()
        pipeline.await_complete()
        (compared,) = pipeline.call("reconcile", accept=(0, 1))["tables"]
        assert compared["status"] == "match", str(compared)
        pipeline.stop()
        rows = pipeline.rows('SELECT iv, "by", f, m, r, mr, rc, t, cm, d, tz, f4, da, ba FROM s.a ORDER BY id')
        assert len(rows) == 3
        assert [repr(row) for row in rows] == [repr(rows[0])] * 3
        assert rows[0][:9] == (
            "P1Y2M-3DT4H5M6.789S", b"\x00\xff'", 0.1 + 0.2, Decimal("-1234567.89"), '["2023-12-31 22:00:00+00",)',
            '{["2024-01-01 00:00:00","2024-01-02 00:00:00")}', 's."A b"', "é \\ 1",
            b'(2024-05-06,"2024-05-06 00:00:00+00",0.30000000000000004,"1 day","\\\\x00")',
        )  # fmt: skip
        assert pipeline.rows("SELECT count(*) FROM _cdc.quarantine") == [(0,)]


def test_a_large_value_is_read_again_beside_columns_of_any_type(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """A row that moves to another key in the first load has no image that could be taken: it is read again, whole."""
    with line(stack, pg_database, tmp_path, "public.b: {}", destination="duckdb") as pipeline:
        pipeline.execute(
            "CREATE TABLE b(id int PRIMARY KEY, body bytea, b1 bit, b8 bit(8), p point, l line, m int4multirange, c cidr, n numeric(4,1));"
            "ALTER TABLE b ALTER body SET STORAGE EXTERNAL; GRANT SELECT ON b TO cdc"
        )
        pipeline.register()
        for id_, more in ((1, "NULL"), (2, "'{1,2,3}'")):
            pipeline.execute(
                f"INSERT INTO b VALUES ({id_}, {LARGE}, '1', '10100000', '(1,NaN)', {more}, '{{[1,3)}}', '10.0.0.0/8', 'NaN'::numeric + 1);"
                f"UPDATE b SET n = 1.5 WHERE id = {id_}; UPDATE b SET id = {id_ + 10} WHERE id = {id_}"
            )
        pipeline.start()
        pipeline.await_complete()
        pipeline.stop()
        # A line has no form that SQL gives, so that row is parked; where there is none, nothing is lacking.
        assert parked(pipeline).get('["12"]') == "unsent_unreadable"
        (row,) = pipeline.rows("SELECT id, octet_length(body), b1, b8, p[1], l, m, c, n FROM public.b")
        assert row[:5] == (11, 12_800, True, "10100000", 1.0)
        assert (row[5], row[6], row[7], str(row[8])) == (None, "{[1,3)}", "10.0.0.0/8", "1.5")


def test_an_array_that_begins_elsewhere_is_called_different_and_left_alone(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """Its event has the elements alone; a comparison reads the source, and a repair makes nothing else of it."""
    with line(stack, pg_database, tmp_path, "public.a: {}", destination="duckdb") as pipeline:
        pipeline.execute(SETUP + "INSERT INTO a(id, i) VALUES (1, '{1,2}'), (2, '[0:1]={1,2}')")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        (compared,) = pipeline.call("reconcile", accept=(0, 1))["tables"]
        assert (compared["status"], compared["columns"], [d["key"] for d in compared["differences"]]) == (
            "mismatch",
            {"i": 1},
            [{"id": "2"}],
        )
        with pytest.raises(StackError, match=r"what was read at the source is no exact array\(int32\)"):
            pipeline.call("repair", "public.a", "--yes")
        pipeline.stop()
        assert pipeline.rows("SELECT id, i FROM public.a ORDER BY id") == [(1, [1, 2]), (2, [1, 2])]
