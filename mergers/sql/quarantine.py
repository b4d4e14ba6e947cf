"""The quarantine in SQL: reading it, and marking what a person decided about its records.

Promises: what is decided was parked until then, or nothing is decided; what cannot be applied yet keeps its place and gets its new reason.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from cdc_service.core.errors import Fenced
from cdc_service.core.types import Decision, Headers
from cdc_service.ports.destination import Quarantined
from mergers.sql import meta
from mergers.sql.connection import Connection
from mergers.sql.ledger import key_hash
from mergers.sql.spelling import Statement
from mergers.sql.statements import TargetSql

IDS_AT_ONCE = 200
_LISTED = ("id", "batch_id", "topic_id", "partition", "offset", "key_text", "stage", "code", "message", "state")
_BYTES = ("key", "value", "headers")


def read(
    c: Connection, s: TargetSql, *, state: str, key: str, code: str, ids: Sequence[str], whole: bool, most: int
) -> Iterator[Quarantined]:
    """As ports.destination.Destination.quarantined says."""
    q, p, time = s.spelling.quote, s.spelling.placeholder, s.spelling.us_of_time
    columns = [*map(q, _LISTED), time.format(time="parked_at"), "decided_by", time.format(time="decided_at"), "reason"]
    columns += map(q, _BYTES if whole else ())
    given = {"state": state, "key_hash": key and key_hash(key), "key_text": key, "code": code}
    where = "".join(f" AND {name} = {p}" for name, value in given.items() if value)
    params = [*s.scope, *(value for value in given.values() if value)]
    order = f"parked_at, topic_id, {q('partition')}, {q('offset')}"
    for first in range(0, max(len(ids), 1), IDS_AT_ONCE):
        some = ids[first : first + IDS_AT_ONCE]
        listed = f" AND id IN ({', '.join([p] * len(some))})" if some else ""
        sql = f"""SELECT {", ".join(columns)} FROM {s.meta(meta.QUARANTINE)}
WHERE {s.in_scope()}{where}{listed} ORDER BY {order} LIMIT {most:d}"""
        for row in c.fetch(sql, [*params, *some]):
            yield Quarantined(*row[:14], *_bytes(row[14:]))


def _bytes(cells: Sequence[Any]) -> tuple[bytes | None, bytes | None, Headers] | tuple[()]:
    if not cells:
        return ()
    key, value, headers = cells
    read = [(name, None if text is None else bytes.fromhex(text)) for name, text in json.loads(headers)]
    return None if key is None else bytes(key), None if value is None else bytes(value), read


def decide(c: Connection, s: TargetSql, decision: Decision) -> None:
    """Marks the records. Raises Fenced where one of them is no longer parked."""
    p, parked = s.spelling.placeholder, "state = 'parked'"
    sets = f"state = {p}, decided_by = {p}, decided_at = now(), reason = {p}"
    for state, ids in (("discarded", decision.discarded), ("replayed", decision.replayed)):
        if _update(c, s, sets, [state, decision.by, decision.reason], ids, parked) != len(ids):
            raise Fenced(f"{s.target.source}: a record was decided on by somebody else meanwhile", hint="look again: cdc quarantine list")
    reasons: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for id_, r in decision.refused.items():
        reasons[r.stage, r.code, r.message].append(id_)
        if r.key_text is not None:
            _update(c, s, f"key_text = {p}, key_hash = {p}", [r.key_text, key_hash(r.key_text)], [id_], f"{parked} AND key_text IS NULL")
    for reason, again in reasons.items():
        _update(c, s, f"stage = {p}, code = {p}, message = {p}", list(reason), again, parked)


def _update(c: Connection, s: TargetSql, sets: str, values: Sequence[object], ids: Sequence[str], condition: str) -> int:
    p, hit = s.spelling.placeholder, 0
    for first in range(0, len(ids), IDS_AT_ONCE):
        some = ids[first : first + IDS_AT_ONCE]
        where = f"{s.in_scope()} AND {condition} AND id IN ({', '.join([p] * len(some))})"
        hit += c.execute(f"UPDATE {s.meta(meta.QUARANTINE)} SET {sets} WHERE {where}", [*values, *s.scope, *some])
    return hit


def settle_all(s: TargetSql, reason: str) -> Statement:
    """Decides all that is parked: the table is read anew."""
    sets = f"state = 'superseded', decided_by = 'cdc', decided_at = now(), reason = {s.spelling.placeholder}"
    return Statement(f"UPDATE {s.meta(meta.QUARANTINE)} SET {sets} WHERE {s.in_scope()} AND state = 'parked'", [reason, *s.scope])
