"""docs/errors.md is the code's: every class of errors has its section with its disposition, and the examples are what is printed."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc_service.cli.main import _report
from cdc_service.config import load
from cdc_service.config.models import Flush
from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError, Disposition
from cdc_service.core.types import Mode
from cdc_service.pipeline.failures import topic_gone
from cdc_service.runtime.service import alone
from cdc_service.testing.memory import MemoryDestination
from mergers.destinations import open_destination
from tests.conformance.harness import ITEMS, DuckDbHarness, Feed

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


def classes() -> set[type[CdcError]]:
    """All that the packages define; those with an underscore never leave their module."""
    for package in ("cdc_service", "connectors", "mergers", "reconcile"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    found, new = set[type[CdcError]](), {CdcError}
    while new:
        found |= new
        new = {below for one in new for below in one.__subclasses__()} - found
    ours = ("cdc_service.", "connectors.", "mergers.", "reconcile.")
    return {one for one in found if not one.__name__.startswith("_") and one.__module__.startswith(ours)}


def section(name: str) -> str:
    return PAGE.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def test_every_class_has_a_section_with_its_disposition_and_no_section_is_of_another() -> None:
    told = dict(re.findall(r"\n## (\w+)\n\nDisposition: (\w+)\. ", PAGE))
    assert told == {one.__name__: str(one.disposition) for one in classes()}
    table = re.findall(r"^\| (\w+) \|", PAGE[: PAGE.index("\n## ")], re.MULTILINE)
    assert set(table) - {"disposition"} == {str(disposition) for disposition in Disposition}


def gone(exists: bool) -> Callable[[Path], None]:
    def fail(folder: Path) -> None:
        target = Feed(MemoryDestination(), ITEMS, mode=Mode.UPSERT).target
        config = TableConfig(ITEMS.table, target, "shop.public.items", Flush(rows=1, bytes=1, seconds=1), "refuse", "public.items")
        raise topic_gone(config, exists=exists)

    return fail


def fenced(folder: Path) -> None:
    feed = Feed(DuckDbHarness(folder).open(), ITEMS, partitions=(0,)).start()
    late = feed.delta(filtered={0: 1})
    try:
        feed.merge(late)
        feed.destination.merge(late, feed.epochs, feed.log, feed.own)
    finally:
        feed.destination.close()


def twice(folder: Path) -> None:
    with alone(folder, "shop"), alone(folder, "shop"):
        pass


def mistaken(folder: Path) -> None:
    (folder / "cdc.yaml").write_text(
        "pipeline: shop\nsource: {url: postgresql://a@b/c}\nkafka: {bootstrap_servers: localhost:9092}\nconnect: {url: http://localhost:8083}"
        "\ndestination: {url: duckdb:///w.duckdb}\ntables: {public.t: {}}\nlimit: {}\n"
    )
    load(folder / "cdc.yaml")


EXAMPLES: dict[str, Callable[[Path], Any]] = {
    "Unavailable": gone(exists=False),
    "TableStopped": gone(exists=True),
    "Fenced": fenced,
    "AlreadyRunning": twice,
    "ConfigError": lambda folder: open_destination("oracle://x", pipeline="shop"),
    "InvalidConfig": mistaken,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_is_printed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CdcError) as raised:
        EXAMPLES[name](tmp_path)
    assert type(raised.value).__name__ == name
    _report(raised.value, as_json=False)
    printed = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    example = re.search(r"```text\n(.*?)```", section(name), re.DOTALL)
    assert example is not None
    assert example[1] in re.sub(r"pid \d+", "pid N", printed)
