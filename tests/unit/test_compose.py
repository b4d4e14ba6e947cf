"""The compose files hold together without an engine: the specification's shape, pinned images, one truth for versions and settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc_service.config import load
from deploy.local import jars, shop

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
DOCKERFILES = sorted(path for path in COMPOSE.iterdir() if path.name.endswith("Dockerfile"))

# From the compose specification (compose-spec.json): the part of it that these files use. A key that is not here is a misspelling.
TEXT, TEXTS, MAP = str, list, dict
SERVICE_KEYS: dict[str, tuple[type, ...]] = {
    "build": (MAP,),
    "cap_drop": (TEXTS,),
    "command": (TEXT, TEXTS),
    "depends_on": (MAP,),
    "entrypoint": (TEXT, TEXTS),
    "environment": (MAP,),
    "healthcheck": (MAP,),
    "image": (TEXT,),
    "ports": (TEXTS,),
    "read_only": (bool,),
    "restart": (TEXT,),
    "security_opt": (TEXTS,),
    "stop_grace_period": (TEXT,),
    "tmpfs": (TEXTS,),
    "volumes": (TEXTS,),
}
HEALTH_KEYS: dict[str, tuple[type, ...]] = {"test": (TEXTS,), "interval": (TEXT,), "timeout": (TEXT,), "retries": (int,)}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())
    assert isinstance(found, dict)
    return found


def checked(what: str, value: dict[str, Any], allowed: dict[str, tuple[type, ...]]) -> None:
    for key, content in value.items():
        assert key in allowed, f"{what} has no key {key}"
        assert isinstance(content, allowed[key]), f"{what}.{key} must be {allowed[key]}"


def test_shape_is_that_of_the_specification(document: dict[str, Any]) -> None:
    assert set(document) == {"name", "services", "volumes"}
    services = document["services"]
    assert set(services) == {"postgres", "kafka", "connect", "service"}
    for name, service in services.items():
        checked(name, service, SERVICE_KEYS)
        checked(f"{name}.healthcheck", service.get("healthcheck", {}), HEALTH_KEYS)
        if health := service.get("healthcheck"):
            assert health["test"][0] in {"CMD", "CMD-SHELL"}
            assert all(re.fullmatch(r"\d+s", health[key]) for key in ("interval", "timeout"))
        for other, wish in service.get("depends_on", {}).items():
            assert "healthcheck" in services[other]
            assert wish == {"condition": "service_healthy"}
        assert all(isinstance(value, str) for value in service["environment"].values())
        assert service["restart"] in {"unless-stopped", "on-failure"}


def test_images_are_pinned_and_ports_on_loopback(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        assert re.search(r":[a-z-]*\d+\.\d+", service["image"])
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", []))
    for path in DOCKERFILES:
        stages = re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
        assert stages
        assert all(re.search(r":\d+\.\d+\.\d+", image) for image in stages), f"{path.name}: {stages}"


def test_every_file_that_is_mounted_or_copied_exists(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (COMPOSE / source).is_file() if source.startswith(".") else source in document["volumes"], volume
        if build := service.get("build"):
            assert (COMPOSE / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).is_file()
    for path in DOCKERFILES:
        ignored = (path.parent / f"{path.name}.dockerignore").read_text().splitlines()
        for arguments in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.MULTILINE):
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), f"{path.name} copies {source}"
                assert f"!{source}" in ignored, f"{path.name}.dockerignore hides {source}"


def test_versions_are_those_of_the_stack_without_containers(document: dict[str, Any]) -> None:
    kafka, debezium = jars.versions()["kafka"], jars.versions()["debezium"]
    assert document["services"]["kafka"]["image"].partition("@")[0] == f"apache/kafka:{kafka}"
    assert document["services"]["connect"]["image"].endswith(f":kafka-{kafka}-debezium-{debezium}")
    assert re.search(rf"^FROM apache/kafka:{re.escape(kafka)}(@sha256:\w+)?$", (COMPOSE / "connect.Dockerfile").read_text(), re.MULTILINE)


def test_shop_has_the_rows_of_the_usual_scale() -> None:
    script = (COMPOSE / "postgres-init.sh").read_text()
    for table in shop.TABLES:
        assert f"s/{{{table}}}/{getattr(shop.Scale(), table)}/g" in script


def test_first_start_prepares_what_the_pipeline_will_look_for() -> None:
    script = (COMPOSE / "postgres-init.sh").read_text()
    config = load(COMPOSE / "cdc.yaml", {"CDC_PASSWORD": "secret"})
    names = config.names
    assert f"CREATE PUBLICATION {names.at_source} FOR TABLE {', '.join(shop.TABLES)}, {names.signal_table}\n" in script
    assert f"CREATE TABLE {names.signal_table} (" in script


def test_variables_are_explained_and_the_configuration_is_valid(document: dict[str, Any]) -> None:
    needed = set(re.findall(r"\$\{(\w+)", (COMPOSE / "docker-compose.yml").read_text()))
    offered = set(re.findall(r"^(\w+)=$", (COMPOSE / "example.env").read_text(), re.MULTILINE))
    assert needed == offered
    config = load(COMPOSE / "cdc.yaml", dict.fromkeys(offered, "secret"))
    assert config.source.url.host in document["services"]
    assert config.kafka.bootstrap_servers == "kafka:9092"
    assert config.state_dir == Path("/data/.cdc")
