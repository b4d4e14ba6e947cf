"""Values that the connector changes on the way, through the whole line: read again at the source and exact, or parked; never wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.core.types import TableId, Target
from deploy.local.stack import Stack
from mergers.protocol import open_destination
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
