"""``cdc load`` and what else is said of loaded tables, on SQLite and DuckDB: no server is needed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc_service.cli import exits

CONFIG = """
pipeline: shop
source: {url: "sqlite:///shop.db"}
destination: {url: "duckdb:///warehouse.duckdb"}
tables:
  main.orders: {load: {cursor: updated_at, schedule: "* * * * *"}, flush: {rows: 100}}
  main.lines: {load: {by: full, deletes: compare}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.execute("CREATE TABLE orders (id integer PRIMARY KEY, total decimal(10, 2), updated_at timestamp NOT NULL)")
        db.execute("CREATE TABLE lines (id integer, line integer, PRIMARY KEY (id, line))")
        db.execute("CREATE TABLE notes (text text)")
        db.executemany("INSERT INTO orders VALUES (?, ?, ?)", [(n, n / 4, f"2026-01-01 10:00:{n % 60:02d}") for n in range(250)])
        db.executemany("INSERT INTO lines VALUES (?, ?)", [(n, 1) for n in range(20)])
    db.close()
    (tmp_path / "cdc.yaml").write_text(CONFIG)
    return tmp_path


def cdc(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cdc_service.cli.main", *arguments]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **paths, **variables}, capture_output=True, text=True, check=False, timeout=120
    )


def answer(folder: Path, *arguments: str, code: int = exits.OK) -> Any:
    done = cdc(folder, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def change(folder: Path, sql: str) -> None:
    with sqlite3.connect(folder / "shop.db") as db:
        db.execute(sql)
    db.close()


def until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert process.poll() is None
        assert time.monotonic() < deadline, "it did not come about within a minute"
        time.sleep(0.1)


def test_load_says_what_it_did_and_a_second_one_that_nothing_was_to_do(folder: Path) -> None:
    told = {t["source"]: t for t in answer(folder, "load")["tables"]}
    assert {name: (t["outcome"], t["read"], t["applied"]) for name, t in told.items()} == {
        "main.orders": ("loaded", 250, 250),
        "main.lines": ("loaded", 20, 20),
    }
    change(folder, "DELETE FROM lines WHERE id = 3")
    (lines,) = answer(folder, "load", "main.lines")["tables"]
    assert (lines["read"], lines["unchanged"], lines["deleted"], lines["full"]) == (19, 19, 1, True)
    (orders,) = answer(folder, "load", "main.orders", "--since", "2026-01-01 10:00:10", "--until", "2026-01-01 10:00:20")["tables"]
    assert (orders["read"], orders["unchanged"]) == (40, 40)
    shown = cdc(folder, "load")
    assert shown.returncode == exits.OK
    assert shown.stdout.split()[:3] == ["table", "outcome", "read"]


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    (orders,) = [t for t in answer(folder, "load", "--dry-run")["tables"] if t["source"] == "main.orders"]
    assert (orders["outcome"], orders["rows"], orders["since"]) == ("planned", 250, None)
    assert not (folder / "warehouse.duckdb").exists()
    answer(folder, "load")
    change(folder, "UPDATE orders SET updated_at = '2026-01-05 00:00:00' WHERE id = 1")
    (orders,) = answer(folder, "load", "main.orders", "--dry-run")["tables"]
    assert orders["since"].endswith("2026-01-01 10:00:59")
    (orders,) = answer(folder, "load", "main.orders")["tables"]
    assert orders["applied"] == 1


def test_what_is_asked_wrongly_has_its_code_and_cure(folder: Path) -> None:
    for arguments, word in (
        (("load", "main.order"), "did you mean main.orders?"),
        (("load", "--full", "--since", "1"), "leave one of them out"),
        (("load", "--from", "sqlite:///shop.db"), "--to URL"),
        (("load", "--table", "orders"), "--to URL"),
        (("load", "--from", "sqlite:///shop.db", "--to", "duckdb:///w.duckdb", "--table", "ordesr"), "orders"),
        (("plan",), "cdc load"),
        (("register",), "cdc load"),
        (("reconcile",), "cdc load"),
    ):
        done = cdc(folder, *arguments)
        assert done.returncode == exits.USAGE, arguments
        assert word in done.stderr, done.stderr
    failed = answer(folder, "load", "main.lines", "--since", "1", code=exits.USAGE)["tables"][0]
    assert failed["outcome"] == "failed"
    assert "without a cursor" in failed["error"]["message"]


def test_a_table_that_needs_a_person_says_so_and_the_others_are_loaded(folder: Path) -> None:
    change(folder, "INSERT INTO orders SELECT NULL, NULL, '2026-01-01' WHERE FALSE")
    text = CONFIG.replace("{cursor: updated_at", "{cursor: updated_at, key: [total]")
    (folder / "cdc.yaml").write_text(text)
    change(folder, "UPDATE orders SET total = 1")
    tables = {t["source"]: t for t in answer(folder, "load", code=exits.DECISION)["tables"]}
    assert tables["main.orders"]["error"]["code"] == "key_not_unique"
    assert tables["main.lines"]["outcome"] == "loaded"
    states = {t["source"]: t for t in answer(folder, "status")["tables"]}
    assert (states["main.orders"]["state"], states["main.orders"]["error"]["code"]) == ("error", "key_not_unique")


def test_status_pause_and_resume(folder: Path) -> None:
    answer(folder, "load")
    document = answer(folder, "status")
    assert document["connector"]["name"] is None
    lines, orders = document["tables"]
    assert (orders["source"], orders["state"], orders["rows"], orders["applied"]) == ("main.orders", "streaming", 250, 250)
    assert (orders["load"]["cursor"], orders["load"]["unfinished"], lines["load"]["by"]) == ("updated_at", False, "full")
    assert answer(folder, "pause", "main.lines")["state"] == "paused"
    assert answer(folder, "load", "main.lines", code=exits.DECISION)["tables"][0]["error"]["code"] == "paused"
    assert answer(folder, "status")["tables"][0]["error"] is None
    assert answer(folder, "resume", "main.lines")["state"] == "streaming"
    answer(folder, "load", "main.lines")


def test_run_loads_each_table_once_or_by_its_schedule_until_it_is_stopped(folder: Path) -> None:
    assert answer(folder, "run", "--once")["ended"] == "once"
    assert cdc(folder, "run", "--until", "5").returncode == exits.USAGE
    change(folder, "UPDATE orders SET total = 7, updated_at = '2026-01-05 00:00:00' WHERE id = 1")
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "cdc_service.cli.main", "run"]
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **paths}, stderr=subprocess.PIPE, text=True) as service:
        try:

            def loaded() -> bool:
                done = cdc(folder, "query", "--json", "SELECT count(*) AS n FROM main.orders WHERE total = '7'")
                return done.returncode == 0 and json.loads(done.stdout)["rows"] == [{"n": 1}]

            until(loaded, service)
            document = answer(folder, "status")
            assert document["service"]["running"]
            assert {t["source"] for t in document["tables"]} == {"main.orders", "main.lines"}
            again = cdc(folder, "load")
            assert again.returncode == exits.DECISION
            assert "already" in again.stderr
        finally:
            service.send_signal(signal.SIGTERM)
            assert service.wait(timeout=60) == exits.OK


def test_from_and_to_need_nothing_else_and_say_how_to_go_on(folder: Path) -> None:
    (folder / "cdc.yaml").unlink()
    two = ("--from", "sqlite:///shop.db", "--to", "duckdb:///w.duckdb")
    first = cdc(folder, "load", *two)
    assert first.returncode == exits.OK, first.stderr
    written = first.stderr[first.stderr.index("pipeline:") :]
    assert "main.notes: nothing names a row of it" in written
    assert yaml.safe_load(written)["tables"] == {"main.lines": {"load": {"by": "full"}}, "main.orders": {"load": {"cursor": "updated_at"}}}
    (folder / "cdc.yaml").write_text(written)
    change(folder, "UPDATE orders SET updated_at = '2026-01-05 00:00:00' WHERE id = 1")
    tables = {t["source"]: t for t in answer(folder, "load")["tables"]}
    # It goes on where the first one stood.
    assert (tables["main.orders"]["full"], tables["main.orders"]["applied"]) == (False, 1)
    (one,) = answer(folder, "load", *two, "--table", "orders")["tables"]
    assert (one["source"], one["applied"]) == ("main.orders", 0)
    refused = cdc(folder, "load", *two, "--table", "notes")
    assert refused.returncode == exits.USAGE
    assert "nothing names a row of it" in refused.stderr


def test_check_says_what_is_loaded_how_and_what_speaks_against_it(folder: Path) -> None:
    findings = answer(folder, "check")["findings"]
    assert [(f["name"], f["status"]) for f in findings] == [
        ("load main.lines", "ok"),
        ("load main.orders", "ok"),
        ("load main.orders", "warning"),
        ("destination", "ok"),
    ]
    assert "begins no index" in findings[2]["message"]
    change(folder, "CREATE INDEX orders_moved ON orders (updated_at)")
    assert len(answer(folder, "check")["findings"]) == 3
    change(folder, "CREATE TABLE events (id integer PRIMARY KEY, created_at datetime)")
    more = {
        "main.events": {"load": {"cursor": "created_at", "lookback": "1min"}},
        "main.notes": {"load": {"by": "full"}},
        "main.order": {"load": {"by": "full"}},
    }
    config = yaml.safe_load(CONFIG)
    (folder / "cdc.yaml").write_text(yaml.safe_dump({**config, "tables": {**config["tables"], **more}}))
    findings = answer(folder, "check", code=exits.FINDING)["findings"]
    said = {(f["status"], f["name"]): [] for f in findings}
    for f in findings:
        said[f["status"], f["name"]].append(f["message"])
    (unknown,), (keyless,) = said["failed", "load"], said["failed", "load main.notes"]
    assert "did you mean 'main.orders'?" in unknown
    assert "no primary key" in keyless
    words = ("begins no index", "may be NULL", "is coarse", "does not move with updates", "below the hour")
    assert [word for word, message in zip(words, said["warning", "load main.events"], strict=True) if word in message] == list(words)


def test_init_for_a_source_without_a_log_proposes_key_and_cursor(folder: Path) -> None:
    (folder / "cdc.yaml").unlink()
    done = cdc(folder, "init", "--source", "sqlite:///shop.db", "--destination", "duckdb:///w.duckdb")
    assert done.returncode == exits.OK, done.stderr
    assert "cdc load" in done.stderr
    told = {t["source"]: t for t in answer(folder, "load")["tables"]}
    assert (told["main.orders"]["cursor"], told["main.lines"]["by"]) == ("updated_at", "full")


def test_what_is_set_aside_is_listed_and_shown_and_healed_by_the_source(folder: Path) -> None:
    change(folder, "UPDATE orders SET total = 'much' WHERE id = 7")
    (orders,) = answer(folder, "load", "main.orders")["tables"]
    assert (orders["applied"], orders["parked"]) == (249, 1)
    (record,) = answer(folder, "quarantine", "list", "main.orders")["records"]
    assert (record["key"], record["code"]) == ('["7"]', "inexact_value")
    assert "much" not in record["message"]
    assert '"much"' in answer(folder, "quarantine", "show", record["id"])["value"]
    refused = cdc(folder, "quarantine", "discard", "main.orders", "--key", '["7"]', "--reason", "none", "--yes")
    assert refused.returncode == exits.USAGE
    assert "cdc load main.orders --full" in refused.stderr
    change(folder, "UPDATE orders SET total = 1.5 WHERE id = 7")
    (orders,) = answer(folder, "load", "main.orders", "--full")["tables"]
    assert (orders["applied"], orders["parked"]) == (1, 0)
    assert answer(folder, "quarantine", "list")["records"] == []
