"""`cdc reconcile`, `repair`, `explain` on the real stack: no false difference under load, every planted fault found, explained, mended."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.process import StackError
from deploy.local.stack import Stack
from tests.support.line import Line, database, line
from tests.support.load import Load

ROWS = 5_000
SESSIONS = 4
RUNS = int(os.environ.get("CDC_RECONCILE_RUNS", "3"))
RATE = int(os.environ.get("CDC_RECONCILE_RATE", "300"))
"""Transactions a second that the sessions try to reach together."""
TABLES = "public.orders: {}\n  public.kinds: {mode: soft_delete}\n  public.pairs: {}"
SETUP = f"""
CREATE TABLE orders (id int PRIMARY KEY, n bigint, f float8, d numeric(12,2), t text, u uuid, at timestamptz, day date, j jsonb, a int[]);
INSERT INTO orders SELECT g, g * 7, random() * 1000, g / 100.0, 'text ' || g, gen_random_uuid(), now() + g * interval '1 ms', '2024-01-01',
    jsonb_build_object('a', g), ARRAY[g, NULL] FROM generate_series(1, {ROWS}) g;
CREATE TABLE kinds (k text, l uuid, f float8, ts timestamp, tm time, b bytea, n numeric, i interval, e text, o bool, PRIMARY KEY (k, l));
INSERT INTO kinds SELECT 'key é "' || g, gen_random_uuid(), 0.1, '2024-05-06 07:08:09.123456', '24:00', '\\x00ff', 1.50,
    '1 mon -3 days', '', g % 2 = 0 FROM generate_series(1, 200) g;
INSERT INTO kinds VALUES ('edge', gen_random_uuid(), 'NaN', 'infinity', '00:00', '', 'NaN', NULL, ' ', NULL);
CREATE TABLE pairs (id int PRIMARY KEY, a text, b text, x float8);
INSERT INTO pairs SELECT g, 'p|q', 'r', 0 FROM generate_series(1, 50) g;
"""


@pytest.fixture(scope="module")
def pipeline(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with database(stack) as made, line(stack, made, tmp_path_factory.mktemp("reconcile"), TABLES, destination="duckdb") as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        yield pipeline


def reconcile(pipeline: Line, *arguments: str) -> dict[str, dict[str, Any]]:
    document = pipeline.call("reconcile", *arguments, accept=(0, 1, 2))
    return {table["source"]: table for table in document["tables"]}


def compared(pipeline: Line, *tables: str) -> dict[str, dict[str, Any]]:
    """The same through the service's API alone, which costs the machine less."""
    begun = pipeline.request("POST", "/reconcile", {"tables": tables})
    assert begun is not None, pipeline.report()
    run_id, told = json.loads(begun[1])["run_id"], dict[str, Any]()

    def done() -> bool:
        answer = pipeline.request("GET", f"/reconcile/{run_id}")
        told.update(json.loads(answer[1]) if answer else {})
        return bool(told.get("done"))

    pipeline.await_that(f"the comparison {run_id} is done", done, 300.0)
    return {table["source"]: table for table in told["document"]["tables"]}


@pytest.mark.timeout(300 + 60 * RUNS)
def test_i27_no_false_difference_while_both_sides_move(pipeline: Line) -> None:
    late, fences, statuses = 0, Counter[str](), Counter[str]()
    with Load(pipeline.database.url, sessions=SESSIONS, rate=RATE, rows=ROWS) as load:
        for _ in range(RUNS):
            found = compared(pipeline, "public.orders", "public.kinds")
            assert [d for t in found.values() for d in t["differences"]] == []
            statuses += Counter(t["status"] for t in found.values())
            fences += Counter(t["fence"] for t in found.values())
            late += sum(t["counts"]["late"] for t in found.values())
            print([(t["status"], t["fence"], t["counts"]["late"], t["seconds"]) for t in found.values()], flush=True)
    each = f"{load.transactions / load.seconds:,.0f} transactions a second for {load.seconds:.0f} s"
    print(f"{RUNS} runs of 2 tables under {each}: no difference; {dict(statuses)}, fences {dict(fences)}, {late:,} late keys")
    assert set(statuses) <= {"match", "in_flight"}
    assert load.transactions > 1_000
    assert "exact" in fences
    assert late > 0, "nothing changed between the two snapshots, so nothing was proved"
    pipeline.await_complete()
    found = reconcile(pipeline, "public.orders", "public.kinds")
    assert {t["status"] for t in found.values()} == {"match"}
    status = {t["source"]: t for t in pipeline.call("status")["tables"]}
    assert all(int(status[name]["verified_position"]) == int(t["as_of"]["source"]) for name, t in found.items())


PLANTED = {
    "DELETE FROM public.orders WHERE id = 2001": ("2001", "missing", [], "written from outside"),
    "INSERT INTO public.orders SELECT * REPLACE (900001 AS id) FROM public.orders WHERE id = 2002": ("900001", "extra", [], "written from"),
    "UPDATE public.orders SET n = n + 1 WHERE id = 2003": ("2003", "different", ["n"], "written from outside"),
    "UPDATE public.orders SET f = nextafter(f, 1e9) WHERE id = 2004": ("2004", "different", ["f"], "written from outside"),
    "UPDATE public.orders SET d = NULL WHERE id = 2005": ("2005", "different", ["d"], "written from outside"),
    "UPDATE public.orders SET t = t || ' ' WHERE id = 2006": ("2006", "different", ["t"], "written from outside"),
    "UPDATE public.orders SET t = upper(t) WHERE id = 2007": ("2007", "different", ["t"], "written from outside"),
    "UPDATE public.orders SET u = '00000000-0000-4000-8000-000000000000' WHERE id = 2008": ("2008", "different", ["u"], "written from"),
    'UPDATE public.orders SET "at" = "at" + INTERVAL 1 MICROSECOND WHERE id = 2009': ("2009", "different", ["at"], "written from outside"),
    "UPDATE public.orders SET day = 'infinity' WHERE id = 2010": ("2010", "different", ["day"], "written from outside"),
    "UPDATE public.orders SET a = [2011] WHERE id = 2011": ("2011", "different", ["a"], "written from outside"),
    "UPDATE public.orders SET j = '{\"a\":2012}' WHERE id = 2012": ("2012", "representation", ["j"], "representation"),
    "INSERT INTO public.orders SELECT * FROM public.orders WHERE id = 2013": ("2013", "extra", [], "duplicate row"),
}
"""What is done to the warehouse: key, kind, columns and the beginning of the cause."""


def test_planted_faults_are_found_explained_and_repaired(pipeline: Line, tmp_path: Path) -> None:
    pipeline.execute("INSERT INTO orders (id, n) SELECT g, g FROM generate_series(2001, 2013) g ON CONFLICT (id) DO UPDATE SET n = 0")
    pipeline.execute(
        "UPDATE orders SET f = 1.5, d = 2.50, t = 'text', u = gen_random_uuid(), at = now(), day = '2024-01-01', "
        "j = '{\"a\": 2012}', a = '{1}' WHERE id BETWEEN 2001 AND 2020"
    )
    pipeline.await_complete()
    pipeline.stop()
    pipeline.warehouse.change(
        *PLANTED,
        "UPDATE public.pairs SET a = 'p', b = 'q|r' WHERE id = 1",
        "UPDATE public.pairs SET a = NULL, b = '<null>' WHERE id = 2",
        "UPDATE public.pairs SET x = NULL WHERE id = 3",
        "UPDATE public.pairs SET a = b, b = a WHERE id = 4",
        "UPDATE public.kinds SET ts = NULL, e = NULL WHERE k = 'edge'",
    )
    page, sheet = tmp_path / "report.html", tmp_path / "report.csv"
    found = reconcile(pipeline, "--html", str(page), "--csv", str(sheet))
    assert {t["fence"] for t in found.values()} == {"stable"}
    orders = {d["key"]["id"]: d for d in found["public.orders"]["differences"]}
    # The sample before a comparison meets the written row of column j where PostgreSQL has put it into a page that it had cleaned: then the
    # column is compared by value.
    by_value = {c["column"] for c in found["public.orders"]["coverage"]["by_value"]}
    assert by_value <= {"j"}
    planted = [p for p in PLANTED.values() if not (p[1] == "representation" and by_value)]
    assert set(orders) == {key for key, *_ in planted}
    for key, kind, columns, cause in planted:
        d = orders[key]
        assert (d["kind"], d["columns"]) == (kind, columns), d
        assert d["cause"].startswith(cause), d
    pairs = {d["key"]["id"]: d["columns"] for d in found["public.pairs"]["differences"]}
    assert pairs == {"1": ["a", "b"], "2": ["a", "b"], "3": ["x"], "4": ["a", "b"]}
    assert [d["columns"] for d in found["public.kinds"]["differences"]] == [["ts", "e"]]
    assert "public.pairs" in page.read_text()
    with sheet.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == sum(max(1, len(d["columns"])) for t in found.values() for d in t["differences"])
    # The service goes on, and the same is found and mended beside it.
    pipeline.start()
    pipeline.await_complete()
    for table in found:
        done = pipeline.call("repair", table, "--yes")
        assert (done["repaired"], done["left"], done["in_flight"]) == (len(found[table]["differences"]), 0, 0)
        kept = pipeline.query(f"SELECT count(*) AS n FROM _cdc.reconcile_difference WHERE source_table = '{table}' AND repaired_at IS NULL")
        assert kept is not None
        assert kept["n"].to_pylist() == [0]
    again = pipeline.call("repair", "public.pairs", "--dry-run")
    assert (again["keys"], again["equal"]) == ([], len(found["public.pairs"]["differences"])), "a second time there is nothing to do"
    assert {t["status"] for t in reconcile(pipeline).values()} == {"match"}
    # What was repaired follows its events again.
    pipeline.execute("UPDATE orders SET t = 'after', n = -1 WHERE id BETWEEN 2001 AND 2012; DELETE FROM pairs WHERE id <= 2")
    pipeline.execute("INSERT INTO pairs VALUES (1, 'again', NULL, 0)")


def test_explain_tells_the_life_of_a_key(pipeline: Line) -> None:
    pipeline.execute("INSERT INTO pairs VALUES (777, 'one', NULL, 1)")
    pipeline.execute("UPDATE pairs SET a = 'two' WHERE id = 777")
    pipeline.await_complete()
    life = pipeline.call("explain", "public.pairs", "777")
    assert [(e["op"], e["fate"], e["values"]["a"]) for e in life["events"]][-1] == ("u", "the row's last", "two")
    assert [e["op"] for e in life["events"]] == ["c", "u"]
    assert all(e["batch_id"] and e["position"] for e in life["events"])
    assert life["source"]["row"] == life["destination"]["row"] == {"id": "777", "a": "two", "b": None, "x": "1"}


def test_counts_conditions_and_limits(pipeline: Line) -> None:
    found = reconcile(pipeline, "public.pairs", "--counts")
    assert (found["public.pairs"]["method"], found["public.pairs"]["status"]) == ("counts", "match")
    found = reconcile(pipeline, "public.pairs", "--where", "id > 10")
    assert found["public.pairs"]["rows"]["source"] < 50
    found = reconcile(pipeline, "public.orders", "--sample", "30")
    assert (found["public.orders"]["method"], found["public.orders"]["status"]) == ("sample", "match")
    assert found["public.orders"]["rows"]["source"] == found["public.orders"]["rows"]["destination"] < ROWS
    found = reconcile(pipeline, "public.orders", "--max-seconds", "0.1")
    assert (found["public.orders"]["status"], found["public.orders"]["differences"]) == ("partial", [])
    begun = pipeline.call("reconcile", "public.pairs")
    ended = pipeline.call("reconcile", "public.pairs", "public.kinds", "--resume", begun["run_id"])
    assert [t["status"] for t in ended["tables"]] == ["match", "match"]
    assert ended["tables"][0]["started_at"] == begun["tables"][0]["started_at"], "what is done is not done again"
    with pytest.raises(StackError, match=r"(?s)ended with 3:.*the pipeline has no table public.nothing.*did you mean public.kinds"):
        reconcile(pipeline, "public.nothing")


def test_what_runs_found_stands_in_the_warehouse(pipeline: Line) -> None:
    found = pipeline.query("SELECT * FROM _cdc.reconcile_difference WHERE kind = 'different' AND source_table = 'public.orders'")
    assert found is not None
    assert found.num_rows > 0
    assert json.loads(found["key"][0].as_py())["id"]
    view = pipeline.query("SELECT source_table, verified_position FROM _cdc.table_status ORDER BY 1")
    assert view is not None
    assert all(row["verified_position"] for row in view.to_pylist())


def test_at_the_end_another_comparison_agrees(pipeline: Line) -> None:
    """Repaired rows among them, which went on with their events."""
    pipeline.await_complete()
    pipeline.stop()
    pipeline.assert_equal(["public.orders", "public.pairs"])


FAULTS = {
    "UPDATE public.kinds SET b = '\\xff00' WHERE k = 'key é \"1'": ["b"],
    "UPDATE public.kinds SET ts = NULL WHERE k = 'edge'": ["ts"],
    "UPDATE public.kinds SET i = i + INTERVAL '1 second', tm = '23:59:59.999999' WHERE k = 'key é \"3'": ["tm", "i"],
    "UPDATE public.kinds SET n = 1.51, f = f + 1e-16 WHERE k = 'key é \"4'": ["f", "n"],
    "DELETE FROM public.kinds WHERE k = 'key é \"5'": [],
    "UPDATE public.kinds SET k = k || '!' WHERE k = 'key é \"6'": [],
}
"""What is done to a PostgreSQL warehouse, and the columns that differ then."""


def test_a_postgresql_warehouse(stack: Stack, tmp_path: Path) -> None:
    """Read while the service writes; a moved key is a missing row and an extra one."""
    tables = "public.kinds: {}\n  public.orders: {}"
    with database(stack) as made, line(stack, made, tmp_path, tables, destination="postgresql") as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        assert {t["status"] for t in reconcile(pipeline).values()} == {"match"}
        pipeline.warehouse.change(*FAULTS)
        found = reconcile(pipeline, "public.kinds")["public.kinds"]
        assert (found["counts"]["missing"], found["counts"]["extra"], found["counts"]["different"]) == (2, 1, 4)
        columns = sorted(d["columns"] for d in found["differences"] if d["columns"])
        assert columns == sorted(c for c in FAULTS.values() if c)
        done = pipeline.call("repair", "public.kinds", "--yes")
        assert (done["repaired"], done["left"]) == (7, 0)
        pipeline.execute("UPDATE kinds SET e = 'after'")
        pipeline.await_complete()
        assert {t["status"] for t in reconcile(pipeline).values()} == {"match"}
        life = pipeline.call("explain", "public.orders", "7")
        assert life["source"]["row"] == life["destination"]["row"]
        pipeline.warehouse.change("UPDATE public.orders SET d = d * 100")
        found = reconcile(pipeline, "public.orders")["public.orders"]
        assert (found["counts"]["different"], found["truncated"], len(found["differences"])) == (ROWS, True, 1_000)
        cause = "mapping of column d: it differs in 500 of 500 rows that were looked at"
        assert {(tuple(d["columns"]), d["cause"]) for d in found["differences"]} == {(("d",), cause)}
