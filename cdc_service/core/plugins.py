"""Parts that other packages bring: an installed package names them in its entry points, and needs no change here.

    [project.entry-points."cdc.destinations"]
    sqlite = "my_package.sqlite:open"

The groups are ``cdc.destinations`` and ``cdc.sources``; the name is the scheme of the URL. Format: the entry points specification of the
Python Packaging User Guide.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from cdc_service.core.errors import ConfigError

DESTINATIONS, SOURCES = "cdc.destinations", "cdc.sources"


def names(group: str) -> list[str]:
    return sorted({one.name for one in entry_points(group=group)})


def load(group: str, name: str) -> Any | None:
    """What a package offers under the name, imported only now; None where none does. Raises ConfigError where two do, or where it cannot
    be imported."""
    found = sorted({one.value: one for one in entry_points(group=group, name=name)}.values(), key=lambda one: one.value)
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError(f"two packages offer {name!r}: {', '.join(one.value for one in found)}", hint="uninstall one of them")
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        package = found[0].dist.name if found[0].dist is not None else found[0].module
        raise ConfigError(
            f"{name!r} of the package {package} cannot be loaded: {error}", hint="install what it needs, or it anew"
        ) from error
