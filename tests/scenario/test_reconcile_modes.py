"""Rows or sums: which way a comparison goes, that both end alike, and what cannot be summed up."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType, array, decimal
from cdc_service.core.types import Column, TableId, TableSchema, Target
from cdc_service.ports.source import Source
from connectors.sources import open_source
from deploy.local.stack import Stack
from mergers.destinations.duckdb import DuckDb
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.compare.sampling import Sampled
from reconcile.report.document import TableReport
from reconcile.run import PROBED_MIN, Options
from tests.support.link import slow_link
from tests.support.still import compare_still

ROWS = 160_000
"""More than 4,000 pages, so that the source is read in parts."""
TABLE = TableId("public", "wide")
TARGET = Target(TABLE, "public", "wide")
SCHEMA = TableSchema(
    TABLE,
    (
        Column("id", LogicalType(Kind.INT32)),
        Column("a", LogicalType(Kind.STRING)),
        Column("n", decimal(12, 2)),
        Column("at", LogicalType(Kind.TIMESTAMPTZ)),
        Column("l", array(LogicalType(Kind.INT32))),
    ),
    ("id",),
)
PLAIN = TableSchema(TABLE, SCHEMA.columns[:4], ("id",))
LINK = 3e6
"""Bytes a second."""


@pytest.fixture(scope="module")
def source(postgres: Stack) -> Iterator[str]:
    url = postgres.create_database("modes")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE wide (id int PRIMARY KEY, a text, n numeric(12,2), at timestamptz, l int[])")
        connection.execute(
            "INSERT INTO wide SELECT g * 3, repeat('some text ', 20) || g, g / 100.0, '2024-01-01'::timestamptz + g * interval '1 us', "
            f"ARRAY[g] FROM generate_series(1, {ROWS}) g".encode()
        )
    yield url
    postgres.drop_database("modes")


@pytest.fixture(scope="module")
def at_source(source: str) -> Iterator[Source]:
    opened = open_source(source)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def destination(at_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDb]:
    opened = open_duckdb(f"duckdb:///{tmp_path_factory.mktemp('w')}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
    opened.prepare()
    opened.evolve(TARGET, [CreateTable(SCHEMA)], SCHEMA)
    raw = opened.connection().raw
    with at_source.scan(TABLE) as scan:
        for batch in scan.rows(SCHEMA.columns):
            raw.register("came", batch)
            raw.execute('INSERT INTO public.wide (id, a, n, "at", l) SELECT id, a, n, "at", CAST(CAST(l AS JSON) AS INT[]) FROM came')
            raw.unregister("came")
    yield opened
    opened.close()


def compare(at_source: Source, destination: DuckDb, schema: TableSchema = PLAIN, mode: str = "auto") -> TableReport:
    return compare_still(at_source, destination, TARGET, schema, Options(mode=mode), rows_expected=PROBED_MIN)


def test_a_slow_link_makes_the_databases_sum_up(source: str, at_source: Source, destination: DuckDb) -> None:
    assert (near := compare(at_source, destination)).method == "stream"
    url = make_url(source)
    with slow_link(url.port or 0, LINK) as port:
        behind = open_source(url.set(port=port))
        try:
            far = compare(behind, destination)
        finally:
            behind.close()
    assert far.method == "pushdown"
    assert (near.status, far.status) == ("match", "match")
    assert near.rows == far.rows == (ROWS, ROWS)
    assert far.bytes * 20 < near.bytes


def test_one_sum_leads_to_a_row(at_source: Source, destination: DuckDb) -> None:
    raw = destination.connection().raw
    raw.execute("BEGIN")
    try:
        # Alone in their buckets: changed, missing, extra. Together in one: two that are changed, and two whose sums cancel each other.
        raw.execute("UPDATE public.wide SET n = n + 0.01 WHERE id IN (9, 90000, 90003)")
        raw.execute("DELETE FROM public.wide WHERE id = 150000")
        raw.execute("INSERT INTO public.wide (id, a) VALUES (240001, NULL)")
        raw.execute("UPDATE public.wide SET n = CASE id WHEN 300000 THEN 1000.01 ELSE 1000.00 END WHERE id IN (300000, 300003)")
        raw.execute("COMMIT")
        found = compare(at_source, destination, mode="pushdown")
        assert {d.key["id"]: str(d.kind) for d in found.differences} == {
            **dict.fromkeys(("9", "90000", "90003", "300000", "300003"), "different"),
            **{"150000": "missing", "240001": "extra"},
        }
        assert found.buckets.localized >= 3
        assert found.buckets.by == "key"
        streamed = compare(at_source, destination, mode="stream")
        assert len(found.buckets.dirty) == len(streamed.buckets.dirty) == 5
        assert {d.key["id"] for d in streamed.differences} == {d.key["id"] for d in found.differences}
        assert found.bytes * 20 < streamed.bytes
    finally:
        raw.execute("DELETE FROM public.wide WHERE id IN (9, 90000, 90003, 240001, 300000, 300003)")
        for number in (3, 30_000, 30_001, 50_000, 100_000, 100_001):
            raw.execute(
                """INSERT INTO public.wide (id, a, n, "at", l) SELECT g * 3, repeat('some text ', 20) || g, g / 100.0,
TIMESTAMPTZ '2024-01-01 00:00:00+00' + to_microseconds(g), [g] FROM (SELECT ? AS g)""",
                [number],
            )
    assert compare(at_source, destination, mode="pushdown").status == "match"


def test_what_has_no_text_is_streamed_or_left_out(at_source: Source, destination: DuckDb) -> None:
    assert compare(at_source, destination, SCHEMA).method == "stream"
    forced = compare(at_source, destination, SCHEMA, "pushdown")
    assert (forced.method, list(forced.left_out), forced.status) == ("pushdown", ["l"], "match")
    assert "l" not in forced.compared


def test_where_most_differs_the_rows_are_moved(at_source: Source, destination: DuckDb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconcile.run.faster", lambda *_: True)
    wide = TableSchema(TABLE, (*PLAIN.columns[:2], Column("n", decimal(14, 4)), PLAIN.columns[3]), ("id",))
    # The target's type was widened: its texts have more digits than the source's, its values are the same.
    raw = destination.connection().raw
    raw.execute("ALTER TABLE public.wide ALTER COLUMN n TYPE DECIMAL(14, 4)")
    try:
        found = compare(at_source, destination, wide)
        assert (found.method, found.status, found.counts["late"]) == ("stream", "match", 0)
        forced = compare(at_source, destination, wide, "pushdown")
        assert (forced.status, list(forced.left_out)) == ("match", ["n"])
        assert re.search(r"the databases write them otherwise in (\d+) of \1 rows", forced.left_out["n"])
        monkeypatch.setattr("reconcile.run.sample", lambda *_: Sampled())
        found = compare(at_source, destination, wide)
        assert (found.method, found.status, found.counts["late"]) == ("stream", "match", 0), "most of the buckets differ"
    finally:
        raw.execute("ALTER TABLE public.wide ALTER COLUMN n TYPE DECIMAL(12, 2)")
