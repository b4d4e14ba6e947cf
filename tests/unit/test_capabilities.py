"""A configuration that wants what the destination does not have is refused as it is loaded, with the place in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cdc_service.config import InvalidConfig, load
from cdc_service.core.types import Mode
from cdc_service.runtime.wiring.parts import open_configured
from mergers.destinations.duckdb import CAPABILITIES, DuckDb

FILE = """pipeline: shop
source: {{url: "postgresql://cdc@localhost/shop"}}
kafka: {{bootstrap_servers: "localhost:9092"}}
connect: {{url: "http://localhost:8083"}}
destination: {{url: "duckdb:///warehouse.duckdb"}}
{defaults}
tables:
  public.a: {{mode: append}}
  public.b: {{}}
"""
WHY = "it keeps rows, and no log of changes"


@pytest.mark.parametrize(
    ("defaults", "has", "refused"),
    [
        ("", {Mode.UPSERT, Mode.SOFT_DELETE}, ["cdc.yaml:8: tables[public.a].mode: append"]),
        ("defaults: {mode: soft_delete}", {Mode.APPEND}, ["cdc.yaml:6: defaults.mode: soft_delete"]),
        (
            "defaults: {mode: soft_delete}",
            {Mode.UPSERT},
            ["cdc.yaml:6: defaults.mode: soft_delete", "cdc.yaml:8: tables[public.a].mode: append"],
        ),
        ("", {Mode.UPSERT, Mode.APPEND}, []),
    ],
)
def test_a_mode_that_the_destination_lacks_is_refused(
    defaults: str, has: set[Mode], refused: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DuckDb, "capabilities", replace(CAPABILITIES, modes=frozenset(has), gaps={**CAPABILITIES.gaps, "modes": WHY}))
    (tmp_path / "cdc.yaml").write_text(FILE.format(defaults=defaults))
    config = load(tmp_path / "cdc.yaml")
    if not refused:
        open_configured(config).close()
        return
    with pytest.raises(InvalidConfig) as caught:
        open_configured(config)
    found = str(caught.value.message).splitlines()
    assert [line.removeprefix(f"{tmp_path}/").partition(": the destination")[0] for line in found] == refused
    assert found[0].endswith(f"it has: {', '.join(sorted(has))}")
    assert caught.value.hint == WHY
