"""``cdc init`` on a real source: what it writes is what the source has, loads, and holds no password."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from cdc_service.cli import exits
from cdc_service.cli.main import run
from cdc_service.config import load, resolve
from cdc_service.config.secret import Url
from cdc_service.core.types import TableId
from tests.conftest import PgDatabase

DDL = """
CREATE TABLE customers (id bigint PRIMARY KEY, name text);
CREATE TABLE log (line text);
CREATE TABLE cdc_shop_signal (id text PRIMARY KEY);
CREATE TABLE cdc_other_signal (id text PRIMARY KEY);
CREATE TABLE "Weird.Name" ("a b" int PRIMARY KEY);
CREATE TABLE "quo""te" (i int PRIMARY KEY);
CREATE TABLE "star*" (i int PRIMARY KEY);
CREATE TABLE "new\nline" (i int PRIMARY KEY);
CREATE TABLE p (i int PRIMARY KEY) PARTITION BY RANGE (i);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
"""
TAKEN = ["Weird.Name", "customers", "new\nline", "p", "star*"]


@pytest.mark.parametrize("typed", [False, True], ids=["password from a variable", "password typed"])
def test_init_names_what_the_source_has(
    typed: bool, pg_database: PgDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(pg_database.url, autocommit=True) as connection:
        connection.execute(DDL)
    url = Url.parse(pg_database.cdc_url)
    assert url.password is not None
    password = url.password.reveal()
    monkeypatch.setenv("SOURCE_PW", password)
    source = pg_database.cdc_url if typed else pg_database.cdc_url.replace(password, "${SOURCE_PW}")
    file = tmp_path / "cdc.yaml"
    assert run(["init", "--source", source, "--pipeline", "shop", "-c", str(file), "--json"]) == exits.OK
    said = capsys.readouterr()
    assert password not in file.read_text() + said.out + said.err
    tables = json.loads(said.out)["tables"]
    assert [(table["table"], table["included"]) for table in tables if not table["included"]] == [
        ("public.cdc_other_signal", False),
        ("public.log", False),
        ('public."quo""te"', False),
    ]
    config = load(file, {"SHOP_PASSWORD" if typed else "SOURCE_PW": password})
    assert config.source.url.reveal() == pg_database.cdc_url
    source_tables = [TableId("public", name) for name in [*TAKEN, "log", "p1", 'quo"te', "starfish"]]
    assert [table.source.name for table in resolve(config, source_tables)] == TAKEN
