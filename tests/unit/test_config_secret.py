"""Secrets are never seen: in no text, no JSON, no pickle, no error, whatever they hold."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from cdc_service.config import InvalidConfig, Secret, Url, load
from cdc_service.config.secret import Options, Template

HIDDEN = "hunter2-Zq"
FILE = """\
pipeline: shop
source: {url: "postgresql://cdc:${PW}@localhost/shop", replica_url: "postgresql://cdc:hunter2-Zq@replica/shop?sslpassword=hunter2-Zq"}
kafka: {bootstrap_servers: "localhost:9092", options: {sasl.password: "${PW}", ssl.key.password: hunter2-Zq, custom.thing: "x${PW}"}}
connect: {url: "http://me:${PW}@localhost:8083", options: {"database.password": hunter2-Zq, "a.password": "${file:/x:y}"}}
destination: {url: "duckdb:///w.duckdb", options: {motherduck_token: hunter2-Zq}}
tables: {public.customers: {}}
"""

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


def test_no_form_of_the_configuration_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "cdc.yaml").write_text(FILE)
    config = load(tmp_path / "cdc.yaml", {"PW": HIDDEN})
    forms = [
        repr(config),
        str(config),
        f"{config}",
        config.model_dump_json(),
        str(config.model_dump()),
        str(config.model_dump(mode="json")),
    ]
    forms += [str(dict(config.kafka.options)), repr(vars(config)), json.dumps(config.model_dump(mode="json"))]
    assert not [form for form in forms if HIDDEN in form]
    assert config.source.url.reveal() == f"postgresql://cdc:{HIDDEN}@localhost/shop"
    assert config.kafka.options.reveal() == {"sasl.password": HIDDEN, "ssl.key.password": HIDDEN, "custom.thing": "x" + HIDDEN}
    assert config.connect.options["a.password"] == "${file:/x:y}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(config, protocol)


def test_a_secret_gives_itself_away_only_when_asked() -> None:
    secret = Secret(HIDDEN, "PW")
    assert {str(secret), f"{secret}", f"{secret!s}", "%s" % secret} == {"***"}  # noqa: UP031
    assert HIDDEN not in repr(secret) + repr([secret]) + f"{secret!r:>20}"
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        vars(secret)
    assert copy.deepcopy(secret) is secret
    assert secret == Secret(HIDDEN)
    assert secret != Secret("other")
    assert secret != HIDDEN


def test_no_error_of_loading_shows_a_value_that_came_from_a_variable(tmp_path: Path) -> None:
    fields = [
        "pipeline",
        "source.url",
        "kafka.bootstrap_servers",
        "connect.secrets",
        "defaults.mode",
        "defaults.flush.rows",
        "limits.memory",
        "api.listen",
    ]
    for field in fields:
        *sections, key = field.split(".")
        text = "".join(f"{'  ' * i}{name}:\n" for i, name in enumerate(sections)) + f"{'  ' * len(sections)}{key}: '${{PW}}'\n"
        (tmp_path / "cdc.yaml").write_text(text)
        with pytest.raises(InvalidConfig) as raised:
            load(tmp_path / "cdc.yaml", {"PW": HIDDEN})
        shown = "".join(traceback.format_exception(raised.value)) + json.dumps(raised.value.as_json())
        assert HIDDEN not in shown, field


@given(user=texts, password=texts, host=st.from_regex(r"\A[a-z0-9.-]{1,12}\Z"), port=st.integers(1, 65535))
def test_a_variable_in_a_url_may_hold_anything(user: str, password: str, host: str, port: int) -> None:
    raw = f"postgresql://${{U}}:${{P}}@{host}:{port}/shop?application_name=cdc"
    values = {"U": user, "P": password}
    url = Url.parse(Template(raw.replace("${U}", user).replace("${P}", password), raw, values))
    assert (url.username, url.host, url.port, url.database) == (user, host, port, "shop")
    assert url.password == Secret(password)
    assert url.password is not None
    assert url.password.variable == "P"
    seen = make_url(url.reveal())
    assert (seen.username, seen.password, seen.host, seen.port, seen.database) == (user, password, host, port, "shop")
    assert make_url(str(url)).password == "***"


@given(user=texts, password=texts)
def test_a_url_that_is_written_out_is_read_as_sqlalchemy_reads_it(user: str, password: str) -> None:
    written = make_url("postgresql+psycopg://localhost/shop").set(username=user, password=password, query={"sslmode": "require"})
    url = Url.parse(written.render_as_string(hide_password=False))
    assert url.scheme == "postgresql+psycopg"
    assert (url.username, url.password) == (user, Secret(password))
    assert make_url(url.reveal()) == written


@pytest.mark.parametrize(
    "text",
    [
        "duckdb:///warehouse.duckdb", "duckdb:////data/w.duckdb", "duckdb:///:memory:", "http://localhost:8083", "http://localhost:8083/connect",
        "postgresql://u@[::1]:5432/db", "postgresql://h/db?host=/run/pg&x=1", "snowflake://u@account/db/schema?warehouse=w",
    ],
)  # fmt: skip
def test_urls_come_out_as_they_went_in(text: str) -> None:
    assert Url.parse(text).reveal() == text == str(Url.parse(text))


def test_a_whole_url_may_come_from_a_variable() -> None:
    text = "postgresql://cdc:a%40b$@db/shop"
    url = Url.parse(Template(text, "${URL}", {"URL": text}))
    assert (url.host, url.password) == ("db", Secret("a@b$"))


@pytest.mark.parametrize("text", ["", "localhost", "://x", "postgresql:/x/y", "post gres://x/y", "postgresql://u:hunter2-Zq@h:port/db"])
def test_what_is_no_url_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a URL|not a number") as raised:
        Url.parse(text)
    assert HIDDEN not in str(raised.value)


def test_options_are_text_and_only_scalars() -> None:
    assert Options({"a": True, "b": 1, "c": 1.5, "d": "x"}).reveal() == {"a": "true", "b": "1", "c": "1.5", "d": "x"}
    with pytest.raises(ValueError, match="option a is not a text"):
        Options({"a": ["x"]})
