"""A target that holds the rows of its source (Mode.UPSERT, Mode.SOFT_DELETE): the staged changes that win are written, the others are not.

Promises: a change wins only where its version is above that of the stored row, of the deleted key and of the last truncation; what is
affected is compared with what was to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import TableStopped
from cdc_service.core.types import Delta, Op
from cdc_service.ports.destination import UnsentUnknown
from mergers.sql import meta
from mergers.sql.connection import Connection, Discard, run
from mergers.sql.ledger import LedgerOpen
from mergers.sql.statements import FILLED, STAGE, Compared, MergeSql


def apply(c: Connection, s: MergeSql, delta: Delta, watermark: tuple[int, int] | None, discard: Discard) -> Mapping[int, int]:
    """Applies the staged rows that win; how many of them each partition has."""
    kept, unsent = _missing(s, delta)
    ends = pc.any(pc.equal(delta.meta["op"], int(Op.DELETE))).as_py()
    # Where nothing has to be completed first, the upsert itself compares versions: rows are looked for once.
    direct = s.spelling.upsert and not (kept or unsent or (s.soft and ends))
    compared: Compared = "all" if not direct else "deletes" if ends else "none"
    staged = delta.meta.num_rows
    for losers in s.losers(meta.DELETED_KEYS, watermark, compared=compared):
        staged -= discard(losers)
    counted = f" WHERE s.op = {int(Op.DELETE)}" if direct else ""
    sql = f"SELECT s.part, s.op = {int(Op.DELETE)}, COUNT(*) FROM {s.temporary(STAGE)} AS s{counted} GROUP BY 1, 2"
    rows = c.fetch(sql) if compared != "none" else []
    winners = Counter[int]()
    for partition, _, count in rows:
        winners[partition] += count
    deletes = sum(count for _, is_delete, count in rows if is_delete)
    total = winners.total()
    if not total and not direct:
        return winners
    rows_from = _complete(c, s, delta, kept, unsent) if kept or unsent or (s.soft and deletes) else STAGE
    if deletes:
        moves = bool(pc.any(delta.meta["moved"]).as_py())
        if moves or not s.soft:
            run(c, s.forget_deleted(meta.DELETED_KEYS))
            run(c, s.remember_deleted(meta.DELETED_KEYS, moves=moves))
    replaces = s.spelling.upsert and (s.soft or not deletes)
    removed = 0 if replaces else run(c, s.remove_old())
    if removed > total and delta.spans:  # What comes from no log is a repair, which may find a key twice.
        raise TableStopped(
            f"{delta.target} holds several rows of one key: {removed} rows of {total} keys",
            state="drift",
            hint=f"somebody else wrote into the table; load it anew: cdc resync {delta.target.source}",
        )
    if direct:
        winners.update(dict(c.fetch(s.upsert())))
        if winners.total() != staged and (found := c.fetch(s.standing())[0][0]) != staged - deletes:
            raise LedgerOpen(f"{delta.target}: {staged - deletes} rows were to be written or older than what stands there, {found} are")
        return winners
    written = run(c, s.insert_new(rows_from)) if s.soft or total > deletes else 0
    if written != (total if s.soft else total - deletes):
        raise LedgerOpen(f"{delta.target}: {total} rows were to be written, {written} were")
    return winners


def _missing(s: MergeSql, delta: Delta) -> tuple[list[int], list[int]]:
    """The columns that the delta does not know (an existing row keeps its value), and those of which values are unsent."""
    places = {name: i for i, name in enumerate(s.table.names)}
    kept = [i for name, i in places.items() if name not in delta.schema.names and not s.table.columns[i].dropped]
    return kept, [] if delta.unsent is None else sorted(places[name] for name in delta.unsent.column_names)


def _complete(c: Connection, s: MergeSql, delta: Delta, kept: Sequence[int], unsent: Sequence[int]) -> str:
    """Gives the winners the values that stand in the warehouse; which staged table holds the rows to write."""
    moves = delta.base is not None and delta.base.about["move"].null_count < delta.base.about.num_rows
    rows = s.complete(meta.DELETED_KEYS, meta.QUARANTINE, unsent, kept, moves=moves)
    c.fill(FILLED, rows.sql, rows.params)
    missing = pa.array([row[0] for row in c.fetch(s.unfilled())], pa.int64())
    if len(missing) and delta.unsent is not None:
        flags = delta.unsent.take(missing)
        columns = tuple(name for name in delta.unsent.column_names if pc.any(flags[name]).as_py())
        raise UnsentUnknown(delta.data.select(delta.schema.key).take(missing), columns)
    return FILLED
