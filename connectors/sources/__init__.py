"""Sources, found by the scheme of their URL and imported only when they are used: a folder each, or a part of another package
(core.plugins)."""

from __future__ import annotations

import importlib
from typing import cast

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from cdc_service.core import plugins
from cdc_service.core.errors import ConfigError
from cdc_service.ports.load import Loadable
from cdc_service.ports.source import Source

_SOURCES = {"postgresql": "postgresql", "postgres": "postgresql"}


def source_name(url: str | URL) -> str:
    """The source's name for a URL. Raises ConfigError on a scheme that none serves."""
    try:
        scheme = make_url(url).get_backend_name()
    except ArgumentError as error:
        raise ConfigError("source.url is not a URL", hint="write it as postgresql://user:${PASSWORD}@host:5432/database") from error
    if scheme in _SOURCES:
        return _SOURCES[scheme]
    others = plugins.names(plugins.SOURCES)
    if scheme not in others:
        known = ", ".join(sorted({*_SOURCES.values(), *others}))
        raise ConfigError(f"no source for {scheme}://", hint=f"sources that can be read: {known}", code="no_source")
    return scheme


def open_source(url: str | URL) -> Source:
    """The source of ``url``. Nothing is connected yet; the driver is imported only now."""
    name = source_name(url)
    if name in _SOURCES.values():
        return cast(Source, importlib.import_module(f"connectors.sources.{name}.source").open_source(make_url(url)))
    return cast(Source, plugins.load(plugins.SOURCES, name)(make_url(url)))  # type: ignore[misc]


def open_loadable(url: str | URL) -> Loadable:
    """The database of ``url`` as a source of loaded tables: a source's own way, where it has one, else SQLAlchemy's."""
    try:
        made = make_url(url)
        name = _SOURCES.get(made.get_backend_name(), "")
    except ArgumentError as error:
        raise ConfigError("source.url is not a URL", hint="write it as scheme://user:${PASSWORD}@host/database") from error
    module = f"connectors.sources.{name}.loadable" if name else "connectors.sources.sql.loadable"
    return cast(Loadable, importlib.import_module(module).open_loadable(made))
