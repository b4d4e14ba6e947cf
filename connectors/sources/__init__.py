"""Sources, found by the scheme of their URL and imported only when they are used."""

from __future__ import annotations

import importlib
from typing import cast

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from cdc_service.core.errors import ConfigError
from cdc_service.ports.source import SourceDialect

_DIALECTS = {"postgresql": "postgresql", "postgres": "postgresql"}


def dialect_name(url: str | URL) -> str:
    """The dialect's module name for a URL. Raises ConfigError on a scheme that no dialect serves."""
    try:
        scheme = make_url(url).get_backend_name()
    except ArgumentError as error:
        raise ConfigError("source.url is not a URL", hint="write it as postgresql://user:${PASSWORD}@host:5432/database") from error
    if scheme not in _DIALECTS:
        known = ", ".join(sorted(set(_DIALECTS.values())))
        raise ConfigError(f"no source dialect for {scheme}://", hint=f"sources that can be read: {known}")
    return _DIALECTS[scheme]


def open_dialect(url: str | URL) -> SourceDialect:
    """The dialect of ``url``. Nothing is connected yet; the driver is imported only now."""
    module = importlib.import_module(f"connectors.sources.{dialect_name(url)}.source")
    return cast(SourceDialect, module.open_dialect(make_url(url)))
