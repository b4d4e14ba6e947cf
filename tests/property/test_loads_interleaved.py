"""Loads between the changes of several sessions: whatever the interleaving, wherever a load ends, the target is the source in the end.

The model of an application: each transaction takes its clock when it begins, writes rows with it, and commits or rolls back later; so rows
come late below the mark. On PostgreSQL nothing but the open transactions tells so. On SQLite, where one transaction writes at a time, the
clock is taken when it has the file, as CURRENT_TIMESTAMP does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdc_service.core.errors import Unavailable
from cdc_service.failpoints import acting
from cdc_service.pipeline.load_task import Window
from deploy.local.stack import Stack
from tests.support.loading import Database, Loads, database, loads

SESSIONS = 3
KEYS = st.integers(1, 12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SESSIONS - 1), KEYS),
        st.tuples(st.just("commit"), st.integers(0, SESSIONS - 1), st.booleans()),
        st.tuples(st.just("load"), st.sampled_from([99, 99, 99, 0, 1, 3]), st.booleans()),
    ),
    min_size=5,
    max_size=40,
)
SETTINGS = settings(max_examples=12, suppress_health_check=list(HealthCheck))
LATE = [("write", 0, 1), ("write", 1, 2), ("commit", 1, True), ("load", 99, False), ("commit", 0, True)]


def replayed(source: Database, shop: Loads, steps: list[tuple[str, int, Any]]) -> None:
    """Writes are upserts of a key; a session that another one's lock would make wait leaves it."""
    sessions = [source.session() for _ in range(SESSIONS)]
    held: dict[int, set[int]] = {}
    number = 0
    for what, who, more in steps:
        if what == "write":
            if any(more in keys for other, keys in held.items() if other != who) or (
                source.engine == "sqlite" and held and who not in held
            ):
                continue
            if who not in held:
                sessions[who].execute("BEGIN IMMEDIATE" if source.engine == "sqlite" else "BEGIN")
                held[who] = set()
            held[who].add(more)
            number += 1
            sql = f"INSERT INTO items (id, n, at) VALUES ({more}, {number}, {clock(source, number)})"
            sessions[who].execute(f"{sql} ON CONFLICT (id) DO UPDATE SET n = excluded.n, at = excluded.at")
        elif what == "commit":
            if held.pop(who, None) is not None:
                sessions[who].execute("COMMIT" if more else "ROLLBACK")
        else:
            load(shop, who, crash=more)
    for who in held:
        sessions[who].execute("COMMIT")
    for session in sessions:
        session.close()


def clock(source: Database, number: int) -> str:
    return f"'2026-01-01 00:{number // 60:02d}:{number % 60:02d}'" if source.engine == "sqlite" else "now()"


def load(shop: Loads, pages: int, *, crash: bool) -> None:
    """One that ends after so many pages, by a stop or by a failure inside of a merge."""
    left = [pages]

    def act(name: str) -> None:
        if name == "merge.recorded":
            left[0] -= 1
            if left[0] < 0:
                raise Unavailable("crashed")

    if crash:
        with acting(act), pytest.MonkeyPatch.context() as patch:
            patch.setattr("cdc_service.runtime.wiring.loading.TRIES", 1)
            shop.load()
    else:
        shop.task().run(Window(), lambda: left.append(left.pop() - 1) or left[0] < 0)


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgresql", marks=pytest.mark.stack)])
@pytest.mark.parametrize("mode", ["upsert", "append"])
def test_i1_after_the_last_load_the_target_is_the_source(engine: str, mode: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    stack: Stack | None = None if engine == "sqlite" else request.getfixturevalue("postgres")

    @SETTINGS
    @given(STEPS)
    @example(LATE)
    def holds(steps: list[tuple[str, int, Any]]) -> None:
        with tempfile.TemporaryDirectory() as name:
            source.run("DROP TABLE IF EXISTS items", "CREATE TABLE items (id integer PRIMARY KEY, n integer, at timestamptz)")
            with loads(source, Path(name), {"cursor": "at", "lookback": 0}, mode=mode, rows=2) as shop:
                replayed(source, shop, steps)
                shop.loaded()
                last = "QUALIFY row_number() OVER (PARTITION BY id ORDER BY _cdc_record DESC) = 1" if mode == "append" else ""
                kept = shop.destination.query(f'SELECT id, n FROM "{source.schema}"."items" {last} ORDER BY id', rows_max=100).to_pylist()
                assert [(row["id"], row["n"]) for row in kept] == source.rows("SELECT id, n FROM items ORDER BY id")
                before = shop.everything()
                shop.loaded()
                assert shop.everything()[0] == before[0]
                # Each row of a log is another state of its key.
                states = shop.kept("id, n")
                assert len(states) == len(set(states))

    with database(engine, tmp_path, stack) as source:
        holds()
