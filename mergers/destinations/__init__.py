"""Destinations, a file each, found by the scheme of their URL and imported only when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cdc_service.core.errors import ConfigError
from cdc_service.ports.destination import Destination


def open_destination(url: str, *, pipeline: str, meta_schema: str = "_cdc", options: Mapping[str, Any] | None = None) -> Destination:
    """The destination for ``url`` (SQLAlchemy's form): ``duckdb:///FILE`` is mergers/destinations/duckdb.py,
    ``postgresql://user:password@host:port/database`` is postgresql.py there.

    Raises ConfigError for a scheme without a file there, or without its driver (naming the extra to install)."""
    scheme = url.partition(":")[0].partition("+")[0]
    try:
        module = importlib.import_module(f"mergers.destinations.{scheme}")
    except ModuleNotFoundError as error:
        if error.name == f"mergers.destinations.{scheme}":
            raise ConfigError(f"no destination is called {scheme!r}", hint="use duckdb:///FILE or postgresql://...") from error
        raise ConfigError(f"destination {scheme!r} needs the package {error.name}", hint=f"pip install 'cdc-service[{scheme}]'") from error
    destination: Destination = module.open(url, pipeline=pipeline, meta_schema=meta_schema, options=options or {})
    return destination
