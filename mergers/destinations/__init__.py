"""Destinations, found by the scheme of their URL and imported only when they are used: a file each, or a part of another package
(core.plugins)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cdc_service.core import plugins
from cdc_service.core.errors import ConfigError
from cdc_service.ports.destination import Destination


def open_destination(url: str, *, pipeline: str, meta_schema: str = "_cdc", options: Mapping[str, Any] | None = None) -> Destination:
    """The destination for ``url`` (SQLAlchemy's form): ``duckdb:///FILE`` is mergers/destinations/duckdb.py,
    ``postgresql://user:password@host:port/database`` is postgresql.py there; a scheme without a file there is another package's.

    Raises ConfigError for a scheme that nobody serves, or without its driver (naming the extra to install)."""
    scheme = url.partition(":")[0].partition("+")[0]
    try:
        make = importlib.import_module(f"mergers.destinations.{scheme}").open
    except ModuleNotFoundError as error:
        if error.name != f"mergers.destinations.{scheme}":
            hint = f"pip install 'cdc-service[{scheme}]'"
            raise ConfigError(f"destination {scheme!r} needs the package {error.name}", hint=hint) from error
        make = plugins.load(plugins.DESTINATIONS, scheme)
        if make is None:
            others = "".join(f", {name}://..." for name in plugins.names(plugins.DESTINATIONS))
            raise ConfigError(f"no destination is called {scheme!r}", hint=f"use duckdb:///FILE or postgresql://...{others}") from error
    destination: Destination = make(url, pipeline=pipeline, meta_schema=meta_schema, options=options or {})
    return destination
