"""The account of a merge: what became of each record of its batch, and the records that were set aside as rows of the quarantine.

Promises: per partition, records = applied + folded + duplicate + parked + filtered, or LedgerOpen before anything is applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import md5

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import CdcError
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Delta, LogId, PartitionCounts, Rejected
from mergers.sql import meta
from mergers.sql.meta import SCOPE
from mergers.sql.statements import High


class LedgerOpen(CdcError):
    """Records or rows went missing inside a merge; nothing was applied. It is a defect of this service."""

    code = "account_open"


def highs(delta: Delta) -> dict[int, High]:
    """The highest commit and record of each partition of the batch."""
    if not delta.meta.num_rows:
        return {}
    grouped = delta.meta.group_by("partition").aggregate([("commit", "max"), ("record", "max")])
    columns = (grouped[name].to_pylist() for name in ("partition", "commit_max", "record_max"))
    return {partition: (commit, record) for partition, commit, record in zip(*columns, strict=True)}


def account(delta: Delta, winners: Mapping[int, int], *, truncated_before: bool) -> tuple[PartitionCounts, ...]:
    """The ledger's rows. Raises LedgerOpen where a partition's records are not all accounted for."""
    staged = {entry["values"]: entry["counts"] for entry in pc.value_counts(delta.meta["partition"]).to_pylist()}
    rows = []
    for span in delta.spans:
        known = delta.counts.get(span.partition, {})
        applied, won = known.get("applied", 0), winners.get(span.partition, 0)
        again = 0
        if truncated_before and delta.truncation is not None and delta.truncation.partition == span.partition:
            applied, again = applied - 1, 1
        row = PartitionCounts(
            span.partition,
            span.start,
            span.stop,
            applied=applied + won,
            folded=known.get("folded", 0),
            duplicate=known.get("duplicate", 0) + staged.get(span.partition, 0) - won + again,
            parked=sum(r.partition == span.partition for r in delta.rejected),
            filtered=span.filtered,
        )
        total = row.applied + row.folded + row.duplicate + row.parked + row.filtered
        if total != span.records:
            raise LedgerOpen(
                f"{delta.target}: partition {span.partition} [{span.start}, {span.stop}): {span.records} records read, {total} accounted",
                hint="nothing was applied; please report this with the service's log",
            )
        rows.append(row)
    return tuple(rows)


def parked(delta: Delta, log: LogId) -> tuple[pa.Table, list[LogicalType]]:
    """The rejected records as rows of the quarantine, up to its column ``state``; they are few."""
    string, binary = LogicalType(Kind.STRING), LogicalType(Kind.BYTES)
    types = [string, string, string, LogicalType(Kind.INT32), LogicalType(Kind.INT64), binary, binary, *[string] * 6]
    names = meta.QUARANTINE.names[len(SCOPE) : meta.QUARANTINE.names.index("state")]
    rows = [_row(r, delta.batch_id, log) for r in delta.rejected]
    columns = [pa.array(values, t.arrow) for values, t in zip(zip(*rows, strict=True), types, strict=True)]
    return pa.table(columns, names=list(names)), types


def _row(r: Rejected, batch_id: str, log: LogId) -> tuple[object, ...]:
    headers = [[name, None if value is None else value.hex()] for name, value in r.headers]
    hashed = None if r.key_text is None else key_hash(r.key_text)
    where = (f"{log.topic_id}:{r.partition}:{r.offset}", batch_id, log.topic_id, r.partition, r.offset)
    return (*where, r.key, r.value, json.dumps(headers), r.key_text, hashed, r.stage, r.code, r.message)


def key_hash(key_text: str) -> str:
    """The warehouse's md5() of a key's text."""
    return md5(key_text.encode(), usedforsecurity=False).hexdigest()
