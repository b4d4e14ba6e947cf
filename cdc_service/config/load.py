"""Loads the configuration: one file in, one frozen Config out, or one error that names everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import EnumMeta
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cdc_service.config import defaults
from cdc_service.config.document import Document, read
from cdc_service.config.models import Config
from cdc_service.config.patterns import PIPELINE_RULE
from cdc_service.config.problems import InvalidConfig, Problem, nearest
from cdc_service.core.errors import ConfigError

_MESSAGES = {
    "missing": "missing",
    "extra_forbidden": "unknown key",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "string_type": "must be text (put it in quotes)",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def find_config(path: Path | str | None, env: Mapping[str, str] = os.environ) -> Path:
    """The file to use: the one given, else $CDC_CONFIG, else ./cdc.yaml."""
    return Path(path or env.get(defaults.CONFIG_VARIABLE) or defaults.CONFIG_FILE)


def load(path: Path | str | None = None, env: Mapping[str, str] = os.environ) -> Config:
    """Reads, fills in, checks and freezes the configuration.

    Raises ConfigError: InvalidConfig with every problem in the file, or a plain one where the file cannot be read.
    """
    file = find_config(path, env)
    return parse(file, _text(file), env)


def parse(file: Path, text: str, env: Mapping[str, str] = os.environ) -> Config:
    """The configuration that ``file`` holds, or would hold, as ``text``. Raises as ``load`` does."""
    document = read(file, text, env)
    config = None
    if not isinstance(document.data, dict):
        if not document.problems:
            document.add((), "must be a mapping of keys to values; 'cdc init --example' writes one to start from")
    else:
        _add_missing(document)
        config = _validate(document, file.absolute().parent)
    if config is None or document.problems:
        raise InvalidConfig(file, document.problems)
    config._file = file
    config._lines = document.lines
    return config


def _text(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {file}", hint="write one with 'cdc init', or name it with --config", code="config_missing"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}", hint="check the path and its rights") from None
    if len(raw) > defaults.YAML_BYTES_MAX:
        raise ConfigError(f"{file} is larger than {defaults.YAML_BYTES_MAX} bytes", hint="is it the right file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidConfig(file, [Problem(line, "", "not UTF-8 text")]) from None


def _validate(document: Document, base: Path) -> Config | None:
    try:
        return Config.model_validate(document.data, context={"base": base})
    except ValidationError as error:
        known = {problem.path for problem in document.problems}
        before = len(document.problems)
        for item in error.errors(include_url=False, include_context=True, include_input=True):
            _add(document, item)
        later = [p for p in document.problems[before:] if p.path not in known]  # a missing variable explains what follows from it
        del document.problems[before:]
        document.problems.extend(later)
        return None


def _add_missing(document: Document) -> None:
    """Sections that only captured tables need."""
    tables = document.data.get("tables") or {}
    settings = tables.items() if isinstance(tables, dict) else ()
    captured = next((key for key, table in settings if not (isinstance(table, dict) and "load" in table)), None)
    for name, cure in (("kafka", "kafka: {bootstrap_servers: host:9092}"), ("connect", "connect: {url: http://host:8083}")):
        if name in document.data or (tables and captured is None):
            continue
        where = f"{captured} (line {document.line(('tables', captured))}) is captured from the source's log" if captured else ""
        cures = f"add {cure}, or load the table by queries: load: {{cursor: ...}}"
        document.add((name,), f"missing: {where}; {cures}" if captured else "missing")


def _add(document: Document, item: Any) -> None:
    path = tuple(str(part) for part in item["loc"] if part != "[key]")
    kind = item["type"]
    message = _MESSAGES.get(kind)
    if kind == "extra_forbidden":
        message, suggestion = _unknown(path)
    elif kind in ("enum", "literal_error"):
        choices = _choices(path)
        message = f"must be one of {', '.join(choices)}" if len(choices) > 1 else f"must be {choices[0]}"
        suggestion = nearest(str(item["input"]), choices)
    elif kind == "missing":
        suggestion = None
    else:
        suggestion = None
        if kind == "string_pattern_mismatch":
            message = _PATTERNS.get(path[-1], "is not spelled as it must be")
        elif kind == "value_error":
            message = str(item["ctx"]["error"])
    document.add(path, message or _plain(item["msg"]), suggestion)


_PATTERNS = {
    "pipeline": PIPELINE_RULE,
    "topic_prefix": "must hold only letters, digits, '.', '_' and '-'",
}


def _plain(text: str) -> str:
    """Pydantic's sentence, as the end of one that begins with the key."""
    if text.startswith("Input should be "):
        return f"must be {text.removeprefix('Input should be ')}"
    return text[:1].lower() + text[1:]


def _unknown(path: tuple[str, ...]) -> tuple[str, str | None]:
    """What to say about an unknown key: a near spelling in its own section, else where that very key belongs."""
    *around, key = path
    if near := nearest(key, _keys(tuple(around))):
        return "unknown key", near
    home = next((".".join((*where, key)) for where, keys in _sections() if key in keys), None)
    return "unknown key" if home is None else f"unknown key here; it belongs to {home}", None


def _keys(path: tuple[str, ...]) -> list[str]:
    model = _annotation(path)
    return list(_fields(model)) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """By the keys that the file has."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _sections(model: type[BaseModel] = Config, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list[str]]]:
    found = [(path, list(_fields(model)))]
    for name in _fields(model):
        inner = _annotation((*path, name))
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _sections(inner, (*path, name))
    return found


def _annotation(path: tuple[str, ...]) -> Any:
    """The type that stands at a path of the configuration; None where nothing does."""
    at: Any = Config
    for part in path:
        if get_origin(at) is dict:
            at = get_args(at)[1]
        elif isinstance(at, type) and issubclass(at, BaseModel) and part in _fields(at):
            at = _fields(at)[part].annotation
        else:
            return None
        if get_origin(at) in (Union, UnionType):
            at = next(choice for choice in get_args(at) if choice is not type(None))
    return at


def _choices(path: tuple[str, ...]) -> list[str]:
    at = _annotation(path)
    return [str(choice) for choice in (at if isinstance(at, EnumMeta) else get_args(at))]
