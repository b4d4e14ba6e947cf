"""The SQL of docs/modes.md is run as it stands there, on a log of changes in DuckDB."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conformance.harness import ITEMS, DuckDbHarness
from tests.conformance.test_changes import C, D, Log, R, Row, T, U, row

PAGE = Path(__file__).parents[2] / "docs" / "modes.md"


def test_the_latest_state_is_read_out_of_a_log_as_the_page_says(tmp_path: Path) -> None:
    state, carried = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    harness = DuckDbHarness(tmp_path)
    log = Log(harness.open(), ITEMS).start()
    log.apply(row(R, 1, -5, "before the truncation"), row(C, 2, 10, "too"), row(T, None, 20), row(C, 3, 30, "kept"), row(C, 4, 31, "goes"))
    log.apply(
        Row(C, {"id": 5, "name": "n", "body": "large"}, 40), row(U, 5, 50, "m", unsent=("body",)), row(D, 4, 51), row(U, 3, 52, "new")
    )
    found = log.destination.query(state, rows_max=100).to_pylist()
    assert {r["id"]: (r["name"], r["_cdc_unsent"]) for r in found} == {3: ("new", None), 5: ("m", '["body"]')}
    bodies = {r["id"]: r["body"] for r in log.destination.query(carried, rows_max=100).to_pylist()}
    assert bodies[5] == "large"
    # A resync: what is not read again is gone.
    log.apply(row(R, 5, 0, "read", gen=1), row(C, 6, 60, "new", gen=1))
    found = log.destination.query(state, rows_max=100).to_pylist()
    assert sorted(r["id"] for r in found) == [5, 6]
    log.destination.close()
