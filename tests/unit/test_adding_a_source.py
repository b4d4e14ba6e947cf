"""docs/adding-a-source.md word by word: its source, left as a package, feeds the real decoder and loop, and the target is equal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cdc_service.config.models import Flush, Limits
from cdc_service.config.resolve import TableConfig
from cdc_service.core.clock import RealClock
from cdc_service.core.identity import Outcome
from cdc_service.core.names import Names
from cdc_service.core.types import LogId, TableId, Target
from cdc_service.pipeline.context import Context
from cdc_service.pipeline.table_task import TableTask
from cdc_service.ports.feed import TopicFacts
from cdc_service.testing.memory import MemoryDestination
from connectors.formats.debezium_json import DebeziumJsonDecoder
from connectors.sources import open_source
from tests.support.envelopes import PLACEHOLDER, Block, Col, Record, Table, raw, text

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "docs/examples/sources/toy.py").read_text()
PAGE = (ROOT / "docs/adding-a-source.md").read_text()
ITEMS = TableId("shop", "items")
TOPIC = "shop.shop.items"
NAMES = Names("shop", "shop")
BLOCK = Block(
    {"version": "1", "connector": "toy", "name": "shop", "ts_ms": 1, "snapshot": None, "db": "", "ts_us": 1000, "ts_ns": 1_000_000,
     "space": "shop", "table": "items", "number": 1},
    ("space", "table"),
    [{"type": "int64", "optional": True, "field": "number"}],
)  # fmt: skip
EVENTS = Table([Col("id", optional=False), text("name")], name="items", schema="shop", block=BLOCK)


class Kafka:
    def describe(self, names: Sequence[str], *, lows: bool = True) -> Mapping[str, TopicFacts]:
        return {TOPIC: TopicFacts(LogId("cluster", TOPIC, "topic-1"), {0: (0, 99)})}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        return {TOPIC: "topic-1"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, installed as pip leaves a package: no file of the service is touched."""
    shutil.copy(ROOT / "docs/examples/sources/toy.py", tmp_path / "toy.py")
    about = tmp_path / "toy-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cdc.sources]\ntoy = toy:open_source\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    open_source("toy://shop")
    yield sys.modules["toy"]
    del sys.modules["toy"]


def sent(toy: Any, since: int, read: Sequence[Mapping[str, Any]] = ()) -> list[Record]:
    """What a connector would write: rows of a snapshot, then the log behind ``since``."""
    found = [EVENTS.change("r", row, number=since, snapshot="true") for row in read]
    log = toy.WORLDS["shop"].log[since:]
    return [*found, *(EVENTS.change(op, row, number=number) for number, op, _, row in log)]


def test_the_page_has_the_whole_example() -> None:
    blocks = [part.partition("```")[0] for part in PAGE.split("```python\n")[1:]]
    assert [line for block in blocks for line in block.splitlines() if line] == [line for line in EXAMPLE.splitlines() if line]
    assert len(EXAMPLE.splitlines()) < 150


def test_its_changes_arrive_in_their_order_and_once(toy: Any) -> None:
    source, world, warehouse = open_source("toy://shop"), toy.WORLDS["shop"], MemoryDestination()
    world.create(ITEMS, "name")
    for number in range(3):
        world.put(ITEMS, id=number, name=f"n{number}")
    snapshot, since = list(world.rows[ITEMS].values()), source.position()
    world.put(ITEMS, id=1, name="later")
    world.remove(ITEMS, 2)
    world.put(ITEMS, id=3, name="new")

    decoder = DebeziumJsonDecoder(source.events, unavailable=PLACEHOLDER)
    everything: Any = source
    context = Context(warehouse, Kafka(), decoder, everything, lambda t: None, lambda t: (), lambda t: everything, RealClock(), Limits())
    target = Target(ITEMS, "shop", "items", ordering=source.events.ordering)
    table = TableTask(TableConfig(ITEMS, target, TOPIC, Flush(), "refuse", "shop.items"), context)
    table.own(0)
    table.open()
    records = sent(toy, since, snapshot)
    for start in (0, len(records)):  # All of it once, and a second time: redelivery changes nothing.
        table.receive(raw(records, TOPIC, start))
        table.set_aside()
        table.flush()
        table.put_back()
        rows = [row.values for row in warehouse.kept(target).rows.values()]
        assert sorted(rows, key=lambda row: row["id"]) == list(world.rows[ITEMS].values())
    assert warehouse.kept(target).rows.keys() == {'["0"]', '["1"]', '["3"]'}


def test_what_it_says_of_its_tables(toy: Any) -> None:
    source, world = open_source("toy://shop"), toy.WORLDS["shop"]
    world.create(ITEMS, "name")
    world.put(ITEMS, id=1, name="a")
    (found,) = source.tables()
    assert (found.table, found.key, [c.name for c in found.columns], found.rows) == (ITEMS, ("id",), ["id", "name"], 1)
    before = source.identities([ITEMS], NAMES, None, {}).tables[ITEMS]
    assert source.judge(ITEMS, before, before).outcome is Outcome.SAME
    world.columns[ITEMS] = ("id", "name", "more")
    after = source.identities([ITEMS], NAMES, None, {})
    assert after.position == source.position() == 1
    assert source.judge(ITEMS, before, after.tables[ITEMS]).outcome is Outcome.ANEW
    assert source.judge(ITEMS, before, None).outcome is Outcome.STOPS
    assert source.parse_position(source.format_position(17)) == 17
