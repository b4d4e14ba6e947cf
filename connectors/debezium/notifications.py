"""What the records of the notification topic say: Debezium's, and the one that registration adds. Pure; nothing is read here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cdc_service.ports.capture import Scans

REGISTRATION = "Registration"
RETURNING = "RETURNING"
IDENTITY = "IDENTITY"
SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class Notification:
    """One record of the notification topic, its kinds in Debezium's words.

    ``aggregate`` is initial, incremental or registration; ``type`` STARTED, IN_PROGRESS, TABLE_SCAN_COMPLETED, COMPLETED, SKIPPED,
    ABORTED, ... ``status`` is SUCCEEDED, or EMPTY, at the end of a table's scan that read the table; anything else there is a scan that did
    not: UNKNOWN_SCHEMA, SQL_EXCEPTION, NO_PRIMARY_KEY where it has no key to be read by, or one whose columns the connector knows by other
    names than the catalog has now. ``tables`` are as ``Source.names_collection``
    understands them: the one table that the record is about, or at STARTED all that were asked for (there a name with a comma falls apart).
    ``at_ms`` is the connector's clock.

    ``id`` is the signal's id only while one signal is under way. A second one that comes before the first has ended gets no STARTED of its
    own, what is left of the first goes on under the second's id, and one COMPLETED ends both; of several, some ids never show. A table that
    both ask for is scanned twice. ``waiting`` is how many more scans of the table were asked for when this one ended: an end under a
    signal's own id with none waiting is the end of the scan that the signal asked for; an end with another id may be that of another.
    ``rows`` is how many a scan that ended has read, None where it does not say.

    registration/RETURNING is written by registration, before the connector knows the table: ``tables`` were captured earlier and then not
    for a while, so that their deletes in between are missing. So is registration/IDENTITY: ``identity`` is what the source said of the
    table (core.identity) before the connector began to read its rows. registration/SKIPPED is written before a connector goes on at the
    end of the log: nothing that was committed before ``position`` is sent any more.
    """

    id: str
    aggregate: str
    type: str
    tables: tuple[str, ...]
    status: str
    at_ms: int
    waiting: int = 0
    rows: int | None = None
    identity: str = ""
    position: int = 0

    @property
    def scanned(self) -> bool:
        """Whether this ends the scan of its table well."""
        return self.type == "TABLE_SCAN_COMPLETED" and self.status in ("SUCCEEDED", "EMPTY")

    @property
    def failed(self) -> bool:
        """Whether this ends the scan of its table, which was not read."""
        return self.type == "TABLE_SCAN_COMPLETED" and not self.scanned


def parse(value: bytes | None) -> Notification | None:
    """A record's value, JSON with or without its schema; None for what is no notification."""
    try:
        document: Any = json.loads(value or b"null")
        record = document.get("payload", document)
        data = record.get("additional_data") or {}
        one = data.get("scanned_collection") or data.get("current_collection_in_progress")
        many = data.get("data_collections")
        return Notification(
            str(record["id"]),
            str(record["aggregate_type"]).removesuffix(" Snapshot").lower(),
            str(record["type"]),
            (one,) if one else tuple(many.split(",")) if many else (),
            str(data.get("status") or ""),
            int(record["timestamp"]),
            max(0, _times(one, many) - 1) if one and many else 0,
            int(data["total_rows_scanned"]) if "total_rows_scanned" in data else None,
            str(data.get("identity") or ""),
            int(data.get("position") or 0),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _times(name: str, names: str) -> int:
    """How often ``name`` stands in the comma-separated list; too often, if anything, where names hold commas."""
    return len(re.findall(rf"(?<![^,]){re.escape(name)}(?![^,])", names))


def returning(id_: str, table: str, at_ms: int) -> tuple[str, bytes]:
    """Key and value of the record that says that ``table`` comes back."""
    return _registration(id_, RETURNING, {"scanned_collection": table}, at_ms)


def identity(id_: str, table: str, text: str, at_ms: int) -> tuple[str, bytes]:
    """Key and value of the record that says which identity ``table`` has as it is registered."""
    return _registration(id_, IDENTITY, {"scanned_collection": table, "identity": text}, at_ms)


def skipped(id_: str, position: int, at_ms: int) -> tuple[str, bytes]:
    """Key and value of the record that says that nothing from before ``position`` is sent any more."""
    return _registration(id_, SKIPPED, {"position": str(position)}, at_ms)


def _registration(id_: str, type_: str, data: dict[str, str], at_ms: int) -> tuple[str, bytes]:
    record = {"id": id_, "type": type_, "aggregate_type": REGISTRATION, "additional_data": data, "timestamp": at_ms}
    return json.dumps({"id": id_}), json.dumps({"schema": None, "payload": record}, ensure_ascii=False).encode()


class Notices:
    """Follows the notifications in their order; ``scans`` is what they say so far.

    A signal that comes while another one is under way gets no STARTED, and what is left of the first goes on under its id. So the end of
    a table's scan counts for every signal that has started, and for the one that it names if no further scan of the table is waiting.
    """

    def __init__(self) -> None:
        self.scans = Scans()
        self._skipped = ""
        self._initial: set[str] = set()
        self._ended = False
        self._started: set[str] = set()

    def add(self, values: Iterable[bytes]) -> Scans:
        for value in values:
            notice = parse(value)
            if notice is None:
                continue
            if notice.aggregate == "initial":
                self._add_initial(notice)
            elif notice.aggregate == "incremental":
                self._add_incremental(notice)
            elif notice.type == IDENTITY:
                self.scans = replace(self.scans, identities={**self.scans.identities, **dict.fromkeys(notice.tables, notice.identity)})
            elif notice.type == RETURNING:
                self.scans = replace(self.scans, returned={**self.scans.returned, **dict.fromkeys(notice.tables, notice.at_ms)})
            elif notice.type == SKIPPED and notice.id != self._skipped:
                self._skipped = notice.id
                lost = self.scans.lost | self._started | set(self.scans.asked)
                self._started.clear()
                self.scans = replace(self.scans, skipped=notice.position, asked={}, lost=lost)
        return self.scans

    def _add_initial(self, notice: Notification) -> None:
        """The scans of an attempt count when it came to its end: one that was killed begins anew."""
        if notice.type == "STARTED":
            self._initial = set()
            lost = self.scans.lost | self._started | set(self.scans.asked)
            self._started.clear()
            repeated, attempts = self.scans.repeated or self._ended, self.scans.attempts + 1
            none = frozenset[str]()
            self.scans = replace(
                self.scans, initial=none, attempts=attempts, repeated=repeated, empty={}, asked={}, lost=lost, failed=(), skipped=0
            )
        elif notice.scanned:
            self._initial |= set(notice.tables)
            if notice.rows == 0:
                self.scans = replace(self.scans, empty={**self.scans.empty, **dict.fromkeys(notice.tables, notice.at_ms)})
        elif notice.type == "COMPLETED":
            self._ended = True
            self.scans = replace(self.scans, initial=frozenset(self._initial))

    def _add_incremental(self, notice: Notification) -> None:
        if notice.type == "STARTED":
            self._started.add(notice.id)
        elif notice.type == "COMPLETED":
            self._started.clear()
        elif notice.failed:
            ids = frozenset(self._started | {notice.id})
            self.scans = replace(self.scans, failed=(*self.scans.failed, *((ids, table, notice.status) for table in notice.tables)))
        elif notice.scanned:
            asked = dict(self.scans.asked)
            for id_ in self._started | (set() if notice.waiting else {notice.id}):
                asked[id_] = asked.get(id_, frozenset()) | set(notice.tables)
            self.scans = replace(self.scans, incremental=self.scans.incremental | set(notice.tables), asked=asked)
