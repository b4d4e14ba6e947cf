"""What is installed is what was locked: every package by its hash, under a licence that goes with Apache-2.0."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import licences  # noqa: E402

from tests import audit  # noqa: E402


def test_every_locked_package_has_its_hash() -> None:
    assert len(list(licences.locked())) > 50
    assert licences.unhashed() == []


def test_a_package_without_a_hash_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.write_text("a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2\n    # via a\nc==3 \\\n    --hash=md5:1\n")
    monkeypatch.setattr(licences, "LOCK", lock)
    assert licences.unhashed() == ["b==2", "c==3"]


def test_every_dependency_that_is_named_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[A-Za-z0-9_.-]+", one)[0].lower() for one in named}  # type: ignore[index]
    assert names <= {name for name, _ in licences.locked()}


def test_the_page_of_licences_is_current_and_all_of_them_are_allowed() -> None:
    assert licences.PAGE.read_text() == licences.page(), "run: python docs/licences.py"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("MPL-2.0 AND (Apache-2.0 OR MIT)", True), ("GPL-3.0-only", False), ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True), ("AGPL-3.0-or-later", False), ("", False), ("Proprietary", False),
    ],
)  # fmt: skip
def test_licences_that_do_not_go_with_ours_are_refused(expression: str, allowed: bool) -> None:
    assert licences.allowed(expression) is allowed


@pytest.mark.parametrize(
    ("said", "code", "ends"),
    [
        ("No known vulnerabilities found", 0, 0),
        ("Found 1 known vulnerability in 1 package\nx 1 PYSEC-1 2", 1, 1),
        ("x  Dependency not found on PyPI and could not be audited: x (1)\nNo known vulnerabilities found", 0, 2),
        ("ERROR: Could not connect to PyPI's vulnerability feed", 1, 2),
        ("ERROR: something else", 1, 2),
    ],
)
def test_an_audit_that_did_not_happen_is_no_good_news(said: str, code: int, ends: int, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text(f"#!{sys.executable}\nimport sys\nprint({said!r})\nsys.exit({code})\n")
    tool.chmod(0o700)
    assert audit.main(str(tool)) == ends
