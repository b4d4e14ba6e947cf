"""Stands for the parts of the service that the command line opens."""

from __future__ import annotations

import sys
import types

import pytest

import cdc_service.runtime.wiring


def wire(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """One module that stands for all that wire the service; a test gives it what it needs."""
    made = types.ModuleType("wiring")
    for name in ("registration", "offline", "reconciling", "running"):
        monkeypatch.setitem(sys.modules, f"cdc_service.runtime.wiring.{name}", made)
        monkeypatch.setattr(cdc_service.runtime.wiring, name, made, raising=False)
    return made
