"""Where reading begins, decided from what the destination and the log say; never guessed.

The destination's checkpoint wins over everything. Where it cannot be followed exactly the table stops with a named state and the command
that cures it: needs_resync (the log no longer has what is missing), needs_decision (only a person knows what the rows in the target are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc_service.core.errors import TableStopped
from cdc_service.core.types import Checkpoint, LogId, TableId


def starts(
    table: TableId,
    log: LogId,
    ends: Mapping[int, tuple[int, int]],
    partitions: Sequence[int],
    checkpoints: Sequence[Checkpoint],
    rows: int | None,
) -> Mapping[int, int]:
    """The offset at which each of ``partitions`` is read on.

    ``ends`` holds (first offset kept, end offset) of each partition of ``log`` now, ``checkpoints`` all rows kept for the target, ``rows``
    the number of rows in the target (None: no table). Raises TableStopped.
    """
    own = {c.partition: c.next_offset for c in checkpoints if c.log == log}
    if checkpoints and not own:
        raise _resync(table, "topic_made_again", _other_log(log, checkpoints))
    if not checkpoints and rows:
        raise TableStopped(
            f"{table}: the target holds {rows} rows and no checkpoint, so nobody knows up to where they are right",
            state="needs_decision",
            code="rows_without_checkpoint",
            hint=f"cdc adopt {table} --empty (load it anew), or --at-offsets (the rows are right as of the consumer group's offsets)",
        )
    found = {}
    for partition in partitions:
        low, high = ends[partition]
        start = own.get(partition, 0)
        if start < low:
            lost = "events that were not applied" if partition in own else "the beginning of the log"
            raise _resync(table, "log_truncated", f"Kafka no longer keeps {lost} (partition {partition}: wanted {start}, oldest {low})")
        if start > high:
            raise _resync(table, "log_shrunk", f"the log ends at {high} in partition {partition}, before the checkpoint {start}")
        found[partition] = start
    return found


def _other_log(log: LogId, checkpoints: Sequence[Checkpoint]) -> str:
    old = checkpoints[0].log
    if old.cluster_id != log.cluster_id:
        return "the checkpoint belongs to another Kafka cluster"
    return f"topic {log.topic} was deleted and made again" if old.topic == log.topic else f"the checkpoint belongs to topic {old.topic}"


def _resync(table: TableId, code: str, why: str) -> TableStopped:
    return TableStopped(f"{table}: {why}", state="needs_resync", code=code, hint=f"load it anew while it goes on: cdc resync {table}")
