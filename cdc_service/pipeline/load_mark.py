"""Where the reading of a loaded table stands: what the checkpoint's mark holds, as JSON.

``low`` is the cursor at which the next load begins, inclusive: below it nothing can come late any more, as far as the source can tell.
``run`` is a load that has not come to its end: it goes on behind the last row that was merged, in a later state of the table, and what it
leaves as ``low`` is what its first state allowed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from cdc_service.ports.load import Place

VERSION = 1


@dataclass(frozen=True, slots=True)
class Run:
    """``full``: of all rows, whatever ``low`` is. ``low`` is the next one (None: as it was), ``at_us`` the source's clock at its first
    state. ``fresh``: the target held nothing when it began, so what it reads behind ``after`` is not there yet."""

    full: bool
    fresh: bool
    low: str | None
    at_us: int
    after: Place | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    low: str | None = None
    run: Run | None = None

    def text(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, text: str | None) -> Mark:
        """Nothing was read yet where there is none, or one that a later version of this service wrote."""
        found = json.loads(text) if text else {}
        if found.get("version") != VERSION:
            return cls()
        run = found["run"]
        if run is None:
            return cls(found["low"])
        after = None if run["after"] is None else tuple(run["after"])
        return cls(found["low"], Run(run["full"], run["fresh"], run["low"], run["at_us"], after))
