"""Whatever bytes a topic holds, on every wire: no crash, no hang, no value changed in silence; what is not exact is parked, alone.

CDC_FUZZ_EVENTS says how many mutated events of each wire are tried, CDC_FUZZ_SEED which.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.formats import blocks
from tests.support.fuzz import RECORDS, WIRES, Child, Event, Failed, batches, check, subjects

EVENTS = int(os.environ.get("CDC_FUZZ_EVENTS", "400"))
SEED = int(os.environ.get("CDC_FUZZ_SEED", "1"))


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.close()


@pytest.mark.timeout(0 if EVENTS > 5_000 else 300)
@pytest.mark.parametrize("wire", WIRES)
def test_mutated_events_are_read_exactly_or_parked(child: Child, wire: str) -> None:
    outcomes: Counter[str] = Counter()
    for number, before, after in batches(wire, SEED, EVENTS):
        outcomes[child.check(wire, number, before, after)] += 1
    assert {"accepted", "parked"} <= set(outcomes), outcomes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["infinity", "NaN", "1.50", "AP8="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("wire", ["json", "schemaless", "flat"])
@given(data=st.data())
@settings(max_examples=max(40, EVENTS // 20), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_value_in_any_place_of_an_event(child: Child, wire: str, data: st.DataObject) -> None:
    """Well-formed JSON that says something else: any value in the place of any other, schemas and keys too."""
    own = subjects(wire)
    number = data.draw(st.integers(0, len(own) - 1))
    before = list(own[number].events[:RECORDS])
    places = [place for place, event in enumerate(before) if event.value is not None]
    place = data.draw(st.sampled_from(places))
    part = data.draw(st.sampled_from(["value", "value", "value", "key"] if before[place].key is not None else ["value"]))
    document = json.loads(getattr(before[place], part))
    path = data.draw(st.sampled_from(list(_paths(document))))
    _put(document, path, data.draw(VALUES))
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    after = [*before[:place], before[place]._replace(**{part: text}), *before[place + 1 :]]
    child.check(wire, number, before, after)


def _paths(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for name, value in inner:
        yield (*path, name)
        yield from _paths(value, (*path, name))


def _put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for name in path[:-1]:
        document = document[name]
    document[path[-1]] = value


def test_a_broken_promise_a_dead_process_and_a_hang_are_told(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above could not fail."""
    before = list(subjects("json")[0].events[:4])
    assert child.check("json", 0, before, [*before[:3], Event(before[3].key, b"{", ())]) == "parked"
    with pytest.raises(Failed, match="ValueError"):
        child.check("json", 0, before, before[:3])
    child.check("json", 0, before, before)
    child.kill()
    with pytest.raises(Failed, match="the process ended with -9"):
        child.check("json", 0, before, before)
    monkeypatch.setattr("tests.support.fuzz.LIMIT_SECONDS", 0.0)
    with pytest.raises(Failed, match="it hangs"):
        child.check("json", 0, before, before)


def test_a_value_that_one_reader_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    number, before, after = next(batches("json", SEED, 1))
    real = blocks.columnar

    def off_by_one(documents: Any, schema: Any, row: Any = None) -> Any:
        table = real(documents, schema, row)
        return table.take(pa.array([0, *range(len(table) - 1)]))

    monkeypatch.setattr(blocks, "columnar", off_by_one)
    with pytest.raises(AssertionError):
        check(subjects("json")[number], before, after)
