"""A source and a destination of another package: what it names in its entry points is found by the scheme of a URL, and loaded then."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cdc_service.core.errors import ConfigError
from connectors.sources import open_source, source_name
from mergers.destinations import open_destination

POINTS = """[cdc.destinations]
toywarehouse = toys{n}.warehouse:open
{more}
[cdc.sources]
toysource = toys{n}.source:open_source
"""


def install(folder: Path, n: int = 1, more: str = "") -> None:
    """As pip leaves it: a package and what is known of it."""
    package, about = folder / f"toys{n}", folder / f"toys{n}-1.0.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text("")
    (package / "source.py").write_text("def open_source(url):\n    return ('source', url.database)\n")
    (package / "warehouse.py").write_text(
        "def open(url, *, pipeline, meta_schema, options):\n    return (url, pipeline, meta_schema, options)\n"
    )
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toys{n}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS.format(n=n, more=more))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("toys")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_package_brings_one_of_each(site: Path) -> None:
    install(site)
    assert source_name("toysource://h/shop") == "toysource"
    assert "toys1" not in sys.modules, "it is imported before it is used"
    assert open_source("toysource://h/shop") == ("source", "shop")
    opened = open_destination("toywarehouse:///w.toy", pipeline="shop", options={"a": 1})
    assert opened == ("toywarehouse:///w.toy", "shop", "_cdc", {"a": 1})


def test_what_nobody_brings_is_told_with_all_that_there_are(site: Path) -> None:
    install(site)
    with pytest.raises(ConfigError) as none:
        open_source("oracle://h/shop")
    assert none.value.hint == "sources that can be read: postgresql, toysource"
    with pytest.raises(ConfigError) as none:
        open_destination("oracle://h/shop", pipeline="shop")
    assert none.value.hint == "use duckdb:///FILE or postgresql://..., toywarehouse://..."


def test_nobody_takes_the_name_of_a_part_that_is_there(site: Path) -> None:
    install(site, more="duckdb = toys1.warehouse:open")
    assert not isinstance(open_destination("duckdb:///w.duckdb", pipeline="shop"), tuple)


def test_two_packages_with_one_name_are_told(site: Path) -> None:
    install(site)
    install(site, 2)
    with pytest.raises(ConfigError, match=r"two packages offer 'toywarehouse': toys1\.warehouse:open, toys2\.warehouse:open"):
        open_destination("toywarehouse:///w", pipeline="shop")


def test_a_part_that_cannot_be_loaded_names_its_package(site: Path) -> None:
    install(site, more="broken = toys1.nothing:open")
    with pytest.raises(ConfigError, match=r"'broken' of the package toys1 cannot be loaded: No module named 'toys1\.nothing'"):
        open_destination("broken:///w", pipeline="shop")
