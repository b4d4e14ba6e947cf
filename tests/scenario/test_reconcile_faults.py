"""Every kind of fault in a table of many rows: found in both modes, with its kind, key, columns and cause; mended by `cdc repair`.

CDC_RECONCILE_ROWS=2000000 plants them in a large table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from tests.support.line import Line, database, line

ROWS = int(os.environ.get("CDC_RECONCILE_ROWS", "20000"))
LOADED_SECONDS = 120.0 + ROWS / 1_000
SETUP = f"""
CREATE TABLE facts (id bigint PRIMARY KEY, n int, d numeric(12,2), f float8, t text, c varchar(20), o bool, at timestamptz, u uuid,
    day date);
INSERT INTO facts SELECT g, g % 7, g / 100.0, random() * 1e6, 'some text of row ' || g, 'code', g % 2 = 0,
    '2024-01-01'::timestamptz + g * interval '1.000001 second', gen_random_uuid(), '2024-01-01' FROM generate_series(1, {ROWS}) g
"""


CHANGE, ROW = "UPDATE public.facts SET", "WHERE id = {id}"


@dataclass(frozen=True)
class Fault:
    """What is done at the source before, and to the warehouse afterwards ({id}: the row); what has to be found. Where ``unseen`` the source
    is changed while its publication means another table, by a hand in the catalog that leaves no trace."""

    name: str
    warehouse: str
    kind: str
    columns: list[str]
    cause: str
    source: str = ""
    unseen: str = ""


def value(name: str, column: str, there: str, *, source: str = "") -> Fault:
    change = f"{CHANGE} {column} = {there} {ROW}"
    return Fault(
        name, change, "different", [column.strip('"')], "written from outside", f"{CHANGE} {column} = {source} {ROW}" if source else ""
    )


FAULTS = (
    Fault("missing", "DELETE FROM public.facts WHERE id = {id}", "missing", [], "written from outside"),
    Fault("extra", "INSERT INTO public.facts SELECT * REPLACE (-id AS id) FROM public.facts WHERE id = {id}", "extra", [], "written from"),
    Fault("duplicate row", "INSERT INTO public.facts SELECT * FROM public.facts WHERE id = {id}", "extra", [], "duplicate row"),
    Fault("tripled row", "INSERT INTO public.facts SELECT f.* FROM public.facts f, range(2) WHERE id = {id}", "extra", [], "duplicate row"),
    value("int", "n", "n + 1"),
    value("numeric", "d", "d + 0.01"),
    value("double", "f", "f + 1"),
    value("text", "t", "'another text'"),
    value("varchar", "c", "'Code'"),
    value("bool", "o", "NOT o"),
    value("timestamp", '"at"', '"at" + INTERVAL 1 DAY'),
    value("uuid", "u", "'00000000-0000-4000-8000-000000000000'"),
    value("date", "day", "day + 1"),
    value("NULL for zero", "f", "NULL", source="0"),
    value("NULL for empty", "t", "NULL", source="''"),
    value("empty for NULL", "t", "''", source="NULL"),
    value("a text that says NULL", "t", "'<null>'", source="NULL"),
    value("a microsecond", '"at"', '"at" + INTERVAL 1 MICROSECOND'),
    value("last bit of a double", "f", "nextafter(f, 1e300)"),
    value("NULL for infinity", '"at"', "NULL", source="'infinity'"),
    value("NULL for an infinite double", "f", "NULL", source="'-infinity'"),
    value("NULL for an infinite date", "day", "NULL", source="'infinity'"),
    value("trailing blank", "t", "t || ' '"),
    value("case", "t", "upper(t)"),
    Fault("swapped columns", f"{CHANGE} t = c, c = left(t, 20) {ROW}", "different", ["t", "c"], "written from outside"),
    Fault(
        "moved mark",
        f"{CHANGE} t = 'p', c = 'q|r' {ROW}",
        *("different", ["t", "c"], "written from outside", f"UPDATE facts SET t = 'p|q', c = 'r' {ROW}"),
    ),
    Fault(
        "stale row",
        "INSERT INTO public.facts SELECT * FROM kept WHERE id = {id}; DELETE FROM public.facts f WHERE id = {id} AND t = 'newer'",
        *("different", ["t"], "in Kafka, not applied", "UPDATE facts SET t = 'newer' WHERE id = {id}"),
    ),
    Fault(
        "lost delete",
        "INSERT INTO public.facts SELECT * FROM kept WHERE id = {id}",
        *("extra", [], "delete lost", "DELETE FROM facts WHERE id = {id}"),
    ),
    Fault("lost change", "SELECT 1", "different", ["n"], "never in Kafka", unseen="UPDATE facts SET n = 77 WHERE id = {id}"),
    Fault("lost insert", "SELECT 1", "missing", [], "never in Kafka", unseen="INSERT INTO facts (id, n) VALUES (-{id}, 1)"),
    Fault("lost loss", "SELECT 1", "extra", [], "never in Kafka", unseen="DELETE FROM facts WHERE id = {id}"),
)
IDS = {fault.name: 1 + number * (ROWS // len(FAULTS)) for number, fault in enumerate(FAULTS)}
KEYS = {name: -id_ if name in ("extra", "lost insert") else id_ for name, id_ in IDS.items()}


@pytest.fixture
def pipeline(stack: Stack, tmp_path: Path) -> Iterator[Line]:
    with database(stack) as made, line(stack, made, tmp_path, "public.facts: {}", destination="duckdb") as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(limit_seconds=LOADED_SECONDS)
        yield pipeline


def plant(pipeline: Line) -> None:
    pipeline.stop()
    listed = ", ".join(map(str, IDS.values()))
    pipeline.warehouse.change(f"CREATE TABLE kept AS SELECT * FROM public.facts WHERE id IN ({listed})")
    pipeline.start()
    pipeline.execute(";".join(f.source.format(id=IDS[f.name]) for f in FAULTS if f.source))
    pipeline.await_complete()
    pipeline.execute("CREATE TABLE another (id int)")
    published = "SET allow_system_table_mods = on; UPDATE pg_publication_rel SET prrelid = '{}'::regclass WHERE prrelid = '{}'::regclass"
    unseen = (f.unseen.format(id=IDS[f.name]) for f in FAULTS if f.unseen)
    # In one transaction, which no look at the catalog falls into.
    pipeline.execute(";".join((published.format("another", "facts"), *unseen, published.format("facts", "another"))))
    pipeline.await_complete()
    pipeline.stop()
    pipeline.warehouse.change(*(f.warehouse.format(id=IDS[f.name]) for f in FAULTS))
    pipeline.start()
    pipeline.await_complete()


def compare(pipeline: Line, mode: str) -> dict[str, Any]:
    (table,) = pipeline.call("reconcile", "--mode", mode, accept=(0, 1))["tables"]
    found = f"{table['rows']['source']:,} rows, {len(table['differences'])} differences"
    print(f"{mode}: {found}, {table['seconds']} s, {table['bytes']:,} bytes")
    return dict(table)


@pytest.mark.timeout(300 + 4 * LOADED_SECONDS)
def test_faults_of_every_kind_are_found_explained_and_mended(pipeline: Line) -> None:
    plant(pipeline)
    wanted = {str(KEYS[f.name]): f for f in FAULTS}
    for mode in ("stream", "pushdown"):
        table = compare(pipeline, mode)
        assert (table["method"], table["fence"], table["status"]) == (mode, "exact", "mismatch")
        found = {d["key"]["id"]: d for d in table["differences"]}
        told = {key: (d["kind"], d["columns"]) for key, d in found.items()}
        assert told == {key: (f.kind, f.columns) for key, f in wanted.items()}
        wrong = {f.name: found[key]["cause"] for key, f in wanted.items() if not found[key]["cause"].startswith(f.cause)}
        assert wrong == {}
        assert found[str(KEYS["tripled row"])]["count"] == 2
        last = found[str(KEYS["stale row"])]["event"]
        assert last["batch_id"], "which batch merged the row's last event is known"
        buckets = pipeline.query(
            f"SELECT count(*) AS n FROM _cdc.reconcile_bucket JOIN _cdc.reconcile_run USING (run_id) WHERE method = '{mode}'"
            " AND (reconcile_bucket.digest_source <> reconcile_bucket.digest_destination"
            " OR reconcile_bucket.rows_source <> reconcile_bucket.rows_destination)"
        )
        assert buckets is not None
        assert buckets["n"][0].as_py() == table["buckets"]["dirty"] > 0
    done = pipeline.call("repair", "public.facts", "--yes")
    assert (done["repaired"], done["left"], done["in_flight"]) == (len(FAULTS), 0, 0)
    for mode in ("stream", "pushdown"):
        assert compare(pipeline, mode)["status"] == "match"
