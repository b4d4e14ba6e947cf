"""Imports point one way, each driver is loaded in one place, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cdc_service", "connectors", "mergers", "reconcile")
CORE = ("cdc_service.core", "cdc_service.failpoints")
BELOW = (*CORE, "cdc_service.config", "cdc_service.ports")
MAY = {
    "cdc_service.core": ("cdc_service.core",),
    "cdc_service.failpoints": CORE,
    "cdc_service.config": (*CORE, "cdc_service.config"),
    "cdc_service.ports": (*CORE, "cdc_service.ports"),
    "cdc_service.databases": (*CORE, "cdc_service.databases"),
    "cdc_service.metrics": ("cdc_service.metrics",),
    "cdc_service.results": (),
    "cdc_service.kafka": (*BELOW, "cdc_service.kafka"),
    "cdc_service.transforms": (*BELOW, "cdc_service.transforms"),
    "cdc_service.pipeline": (*BELOW, "cdc_service.transforms", "cdc_service.pipeline"),
    "connectors": (*BELOW, "cdc_service.databases", "connectors"),
    "mergers": (*BELOW, "cdc_service.databases", "mergers"),
    "reconcile": (*BELOW, "reconcile"),
    "cdc_service.testing": (*BELOW, "mergers", "cdc_service.testing"),
    "cdc_service.api": (*BELOW, "cdc_service.metrics", "cdc_service.results", "cdc_service.api"),
    "cdc_service.runtime": (
        *(*BELOW, "cdc_service.metrics", "cdc_service.results", "cdc_service.api", "cdc_service.kafka", "cdc_service.transforms"),
        *("cdc_service.pipeline", "cdc_service.runtime", "connectors", "mergers", "reconcile"),
    ),
}
"""What the modules below a name may import of this project. The command line may import everything; nothing imports it, and nothing but it
imports the wiring."""
DRIVERS = {
    "confluent_kafka": "cdc_service/kafka/admin.py cdc_service/kafka/client.py cdc_service/kafka/consumer.py cdc_service/kafka/reader.py",
    "adbc_driver_postgresql": "mergers/destinations/_postgresql_view.py connectors/sources/postgresql/scan.py",
    "duckdb": "mergers/destinations/duckdb.py reconcile/compare/engine.py",
    "psycopg": "mergers/destinations/postgresql.py mergers/destinations/_postgresql_view.py connectors/sources/postgresql/scan.py",
    "snowflake": "mergers/destinations/snowflake.py",
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports anywhere, those for types included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def test_imports_point_one_way() -> None:
    wrong = []
    for name, path in modules():
        may = next((allowed for root, allowed in MAY.items() if below(name, (root,))), None)
        assert may is not None or below(name, ("cdc_service.cli",)) or name == "cdc_service", f"{name} has no rule"
        for found in imports(path):
            if not below(found, PACKAGES) or not (
                (ROOT / (found.replace(".", "/") + ".py")).exists() or (ROOT / found.replace(".", "/")).is_dir()
            ):
                continue
            if may is not None and not below(found, may) and found not in PACKAGES:
                wrong.append(f"{name} imports {found}")
            if below(found, ("cdc_service.cli",)) and not below(name, ("cdc_service.cli",)):
                wrong.append(f"{name} imports the command line: {found}")
            if below(found, ("cdc_service.runtime.wiring",)) and not below(name, ("cdc_service.cli", "cdc_service.runtime.wiring")):
                wrong.append(f"{name} imports the module that wires it")
    assert not wrong, "\n".join(sorted(wrong))


def test_what_a_database_shares_is_imported_by_its_own_source_and_destination_alone() -> None:
    """A source and a destination may not import one another; where both are of one database, how it spells values is the same for both."""
    wrong = []
    for name, path in modules():
        for shared in (found for found in imports(path) if found.startswith("cdc_service.databases.")):
            database = shared.split(".")[2]
            own = (f"connectors.sources.{database}", f"mergers.destinations.{database}", f"mergers.destinations._{database}")
            if not name.startswith(own):
                wrong.append(f"{name} imports {shared}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_module_imports_itself_by_way_of_others() -> None:
    there = dict(modules())
    graph = {name: {found for found in imports(path) if found in there and found != name} for name, path in there.items()}
    packages = {name for name, path in there.items() if path.name == "__init__.py"}
    graph = {name: found - packages for name, found in graph.items()}
    order: list[str] = []
    while ready := [name for name, found in graph.items() if found <= set(order) and name not in order]:
        order += ready
    assert not set(graph) - set(order), f"these are in a circle, or above one: {sorted(set(graph) - set(order))}"


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_is_imported_in_one_place(driver: str) -> None:
    found = [str(path.relative_to(ROOT)) for _, path in modules() if any(below(name, (driver,)) for name in imports(path))]
    assert set(found) <= set(DRIVERS[driver].split())


@pytest.mark.parametrize("done", ["import cdc_service.cli.main as m; m.run(['--help'])", "import tests.conftest"])
def test_what_comes_before_every_command_and_every_test_loads_no_driver_and_nothing_heavy(done: str) -> None:
    heavy = ("pyarrow", "duckdb", "confluent_kafka", "sqlalchemy", "pydantic", "starlette", "uvicorn", "numpy", "psycopg", "httpx")
    code = f"import sys; {done}; print(*(n for n in {heavy!r} if n in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.splitlines()[-1].strip() == "", f"{done} loads {ended.stdout.splitlines()[-1]}"
