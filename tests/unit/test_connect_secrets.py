"""What is secret reaches Kafka Connect as a reference; as text only where the configuration says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc_service.core.errors import ConfigError
from connectors.debezium.register import connect_options
from tests.unit.test_wires import config

PLANTED = "pl4nted"


@pytest.fixture(autouse=True)
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYSTORE", PLANTED)


def options_of(folder: Path, options: str, secrets: str) -> dict[str, str]:
    made = config(folder, options=options)
    file = folder / "cdc.yaml"
    file.write_text(file.read_text().replace("options:", f"secrets: {secrets}, options:"))
    from cdc_service.config import load

    assert made.file == file
    return connect_options(load(file))


@pytest.mark.parametrize("name", ["database.sslpassword", "value.converter.basic.auth.user.info", "producer.override.sasl.jaas.config"])
def test_a_secret_option_becomes_a_reference_or_is_refused(name: str, tmp_path: Path) -> None:
    both = options_of(tmp_path, f"{name}: '${{KEYSTORE}}', poll.interval.ms: 7", "env")
    assert both == {name: "${env:KEYSTORE}", "poll.interval.ms": "7"}
    assert options_of(tmp_path, f"{name}: '${{file:/run/x:y}}'", "file") == {name: "${file:/run/x:y}"}
    assert options_of(tmp_path, f"{name}: '${{KEYSTORE}}'", "inline") == {name: PLANTED}
    for text, secrets in ((PLANTED, "env"), (f"x-{PLANTED}-${{KEYSTORE}}", "env"), ("${KEYSTORE}", "file"), (PLANTED, "file")):
        with pytest.raises(ConfigError, match=name) as refused:
            options_of(tmp_path, f"{name}: '{text}'", secrets)
        assert PLANTED not in refused.value.message + refused.value.hint
        assert "${env:NAME}" in refused.value.hint
