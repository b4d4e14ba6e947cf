"""The page for whoever is on call knows every code, state, metric and exit code that a person can meet, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdc_service.cli import exits
from cdc_service.metrics import FAMILIES, STATES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for package in ("cdc_service", "connectors", "mergers", "reconcile")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "testing" not in path.parts
}
INNER = {
    "error", "config", "interrupted", "http", "not_there", "table_stopped", "fenced", "commit_unknown", "unsent_unknown", "inexact_text",
    "reread_failed", "snapshotting", "anew", "unexpected", "unloadable",
}  # fmt: skip
"""Names of classes of errors and of steps inside; what a person sees of them has another code, or is on the page as a state."""


def test_every_code_is_on_the_page() -> None:
    found = {
        code: str(path.relative_to(ROOT))
        for path, text in SOURCES.items()
        for code in re.findall(r"\b(?:error_)?code ?= ?\"([a-z_]+)\"|(?:Problem|Inexact)\(\s*\"([a-z_]+)\"", text)
        for code in code
        if code
    }
    assert len(found) > 50, "the pattern finds them no more"
    named = set(re.findall(r"[a-z_]+", PAGE))
    missing = {code: path for code, path in found.items() if code not in named and code not in INNER}
    assert missing == {}, "docs/operations.md needs a line about each: what happened, and what cures it"


def test_the_page_names_no_code_that_is_gone() -> None:
    section = PAGE[PAGE.index("## Codes") : PAGE.index("## When a server is away")]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ") and not line.startswith("| code")]
    named = {code.strip() for cell in rows for code in cell.split(",")}
    text = "\n".join(SOURCES.values())
    assert len(named) > 50
    assert {code for code in named if f'"{code}"' not in text} == set()


def test_every_state_metric_and_exit_code_is_on_the_page() -> None:
    states = set(re.findall(r"^\| ([a-z_]+) \|", PAGE[PAGE.index("## States") : PAGE.index("## Codes")], re.MULTILINE)) - {"state"}
    assert states == set(STATES)
    metrics = PAGE[PAGE.index("## Metrics") :]
    assert [name for name in FAMILIES if name not in metrics] == []
    assert [name for name in re.findall(r"\bcdc_[a-z_]+\b", metrics[: metrics.index("## Adding")]) if name not in FAMILIES] == []
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    section = PAGE[PAGE.index("### Exit codes") : PAGE.index("## Status document")]
    assert {int(number) for line in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for number in line.split(",")} == codes


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = file if not name else file.parent / name
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target
