"""Imports point one way, each driver is loaded in one place, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cdc_service", "connectors", "mergers", "reconcile")
MAY = {
    "cdc_service.core": ("cdc_service.core",),
    "cdc_service.failpoints": ("cdc_service.core",),
    "cdc_service.config": ("cdc_service.core", "cdc_service.config"),
    "cdc_service.checkpoint": ("cdc_service.core",),
    "cdc_service.consume": ("cdc_service.core", "cdc_service.consume"),
    "cdc_service.metrics": ("cdc_service.metrics",),
    "cdc_service.testing": ("cdc_service.core", "cdc_service.failpoints", "mergers"),
    "cdc_service.line": (
        *("cdc_service.core", "cdc_service.config", "cdc_service.checkpoint", "cdc_service.consume", "cdc_service.failpoints"),
        *("cdc_service.line", "cdc_service.watch", "mergers.protocol"),
    ),
    "connectors": ("cdc_service.core", "cdc_service.config", "connectors"),
    "mergers": ("cdc_service.core", "cdc_service.failpoints", "mergers"),
    "reconcile": ("cdc_service.core", "reconcile"),
}
"""What the modules below a name may import of this project; what is not named here may import everything but the command line."""
DRIVERS = {
    "confluent_kafka": "cdc_service/consume/kafka.py",
    "adbc_driver_postgresql": "mergers/destinations/_postgresql_view.py connectors/dialects/_postgresql_scan.py",
    "duckdb": "mergers/destinations/duckdb.py reconcile/compare.py",
    "psycopg": "mergers/destinations/postgresql.py mergers/destinations/_postgresql_view.py connectors/dialects/_postgresql_scan.py",
    "snowflake": "mergers/destinations/snowflake.py",
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, those for types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def test_imports_point_one_way() -> None:
    wrong = []
    for name, path in modules():
        may = next((allowed for root, allowed in MAY.items() if below(name, (root,))), None)
        for found in set(imports(path)):
            if not below(found, PACKAGES) or not (
                (ROOT / (found.replace(".", "/") + ".py")).exists() or (ROOT / found.replace(".", "/")).is_dir()
            ):
                continue
            if may is not None and not below(found, may) and found not in PACKAGES:
                wrong.append(f"{name} imports {found}")
            if below(found, ("cdc_service.cli",)) and not below(name, ("cdc_service.cli",)):
                wrong.append(f"{name} imports the command line: {found}")
            if found == "cdc_service.app" and not below(name, ("cdc_service.cli",)):
                wrong.append(f"{name} imports the module that wires it")
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_is_imported_in_one_place(driver: str) -> None:
    found = [str(path.relative_to(ROOT)) for _, path in modules() if any(below(name, (driver,)) for name in imports(path))]
    assert set(found) <= set(DRIVERS[driver].split())


def test_help_loads_no_driver_and_nothing_heavy() -> None:
    heavy = ("pyarrow", "duckdb", "confluent_kafka", "sqlalchemy", "pydantic", "starlette", "uvicorn", "numpy")
    code = f"import sys, cdc_service.cli.main as m; m.run(['--help']); print(*(n for n in {heavy!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1].strip() == "", f"cdc --help loads {done.stdout.splitlines()[-1]}"
