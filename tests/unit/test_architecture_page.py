"""docs/architecture.md walks one event through files and functions that exist, and each step is called by one that the page names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
PATHS = ("cdc_service/", "connectors/", "mergers/", "reconcile/", "tests/")


def symbols(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def test_every_file_and_function_that_the_page_names_exists() -> None:
    named = [one for one in re.findall(r"`([^`\n]+)`", PAGE) if one.startswith(PATHS)]
    assert len(named) > 25
    assert [one for one in named if not (ROOT / one).exists()] == []
    pairs = re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", PAGE)
    assert len(pairs) > 15
    assert [pair for pair in pairs if pair[1] not in symbols(ROOT / pair[0])] == []


def test_the_glossary_says_where_its_words_live() -> None:
    page = (ROOT / "docs/glossary.md").read_text()
    named = [one for one in re.findall(r"`([^`\n]+)`", page) if one.startswith(PATHS)]
    assert len(named) > 30
    assert [one for one in named if not (ROOT / one).exists()] == []
    pairs = re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", page)
    assert [pair for pair in pairs if pair[1] not in symbols(ROOT / pair[0])] == []
    words = [one for one in re.findall(r"^\| ([a-z][\w ,-]+) \|", page, re.MULTILINE) if one != "word"]
    assert len(words) == len(set(words)), "one name is one thing"


def test_each_step_is_called_in_a_file_of_the_walk() -> None:
    walk = PAGE.split("## The path of one event")[1].split("\n## ")[0]
    pairs = re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", walk)
    texts = {path: (ROOT / path).read_text() for path, _ in pairs} | {
        "wiring": (ROOT / "cdc_service/runtime/wiring/running.py").read_text()
    }
    for path, symbol in pairs[1:]:
        name = symbol.rpartition(".")[2]
        calls = re.compile(rf"(?<!def )\b{name}\(")
        assert any(calls.search(text) for text in texts.values()), f"nothing on the walk calls {symbol} of {path}"


def test_every_package_is_in_the_table() -> None:
    packages = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "cdc_service").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    beside = {"cdc_service/config", "cdc_service/metrics", "cdc_service/testing"}
    table = PAGE.split("## Who may know whom")[1]
    assert {package for package in packages - beside if f"`{package}`" not in table} == set()
