"""The page of types says what the code does."""

import sys

import pytest

from docs import types_postgresql


def test_the_page_of_types_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["types_postgresql.py", "--check"])
    assert types_postgresql.main() == 0, "run: python docs/types_postgresql.py"
