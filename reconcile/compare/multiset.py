"""Compares a table without a key with its log of changes: the rows that the log leaves, as a multiset, against the source's.

The log (core.append) holds each change with the image before it, so the rows that stand after a log position are its rows before: each one
that came (c, r, u) counts once, each image before a change (u, d) once less, from the last truncation or the last initial snapshot on. The
source is read once every writer at work has ended, so that all it shows up to a position ``low`` is known to be there, and what was
committed behind it, up to the scan's own, may be there or not (``late``): rows of such changes are left to a later look.

Promises: rows that are alike are counted, not merged; two rows are taken for equal only if their 64-bit hashes are; memory stays under
a limit, whatever the number of rows. Values are compared by their types, as everywhere (reconcile.compare.engine).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.rowtext import value_text
from cdc_service.core.types import Column, TableSchema
from cdc_service.ports.reader import Scan, View
from reconcile.compare.engine import BUCKETS, JOIN_ROWS, Database, Scratch, normal, quote, value
from reconcile.report.document import Total

MEMORY_MB = 128
PART_BYTES = 2**18
"""Images before a change are JSON, which takes many times its size while it is read, once for each column."""
_OP, _BEFORE, _COMMIT, _OFFSET = (
    Column(name, LogicalType(kind))
    for name, kind in (("_cdc_op", Kind.STRING), ("_cdc_before", Kind.STRING), ("_cdc_commit", Kind.INT64), ("_cdc_offset", Kind.INT64))
)
_CALENDAR = {
    Kind.DATE: "CASE WHEN regexp_full_match({0}, '-?[0-9]+') THEN CAST(DATE '1970-01-01' + CAST({0} AS INTEGER) AS VARCHAR) ELSE {0} END",
    Kind.TIMESTAMP: "CASE WHEN regexp_full_match({0}, '-?[0-9]+') THEN CAST(make_timestamp(CAST({0} AS BIGINT)) AS VARCHAR) ELSE {0} END",
    Kind.TIMESTAMPTZ: "CASE WHEN regexp_full_match({0}, '-?[0-9]+') THEN make_timestamp(CAST({0} AS BIGINT)) || '+00' ELSE {0} END",
}
"""Of an image before: a time beyond what has a calendar text stands as the integer behind it (core.rowtext)."""


def steady_columns(schemas: Sequence[TableSchema]) -> frozenset[str]:
    """The columns that all versions of a table have with one type: of another the log's first rows say nothing."""
    types = [{c.name: c.type for c in schema.columns if not c.dropped} for schema in schemas]
    return frozenset(name for name, type_ in (types[-1] if types else {}).items() if all(t.get(name) == type_ for t in types))


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows that are alike: ``count`` more at the source (less: below 0), and their values as text."""

    count: int
    values: Mapping[str, str | None]


class Multiset(Scratch):
    """Rows of both sides are staged by the hash of ``columns``; then ``differing`` says of which there are more on one side."""

    def __init__(self, database: Database, columns: Sequence[Column]) -> None:
        super().__init__(database, len(columns), MEMORY_MB, PART_BYTES)
        self._columns = tuple(columns)
        for table in ("s (h UBIGINT, n INTEGER)", "d (h UBIGINT, n INTEGER)", "late (h UBIGINT)"):
            self._db.execute(f"CREATE OR REPLACE TEMP TABLE {table}")
        self.emptied = False
        """A truncation is late, so that nobody knows of any row whether the source still had it."""
        self.whole = False
        """The log begins with the rows that were there: it was read in an initial snapshot, or the table was emptied."""

    def stage_source(self, scan: Scan) -> Iterator[tuple[int, int]]:
        """Yields rows and bytes of each step."""
        for batch in scan.rows(self._columns):
            for _ in self._arriving(batch):
                self._db.execute(f"INSERT INTO s SELECT {self._hash(batch)}, 1 FROM arriving")
            yield batch.num_rows, batch.nbytes

    def stage_log(self, view: View, low: int, high: int) -> Iterator[tuple[int, int]]:
        """What the log left after ``low``; the rows of changes behind it, up to ``high``, are late."""
        op, commit = (view.forms([c])[c.name] for c in (_OP, _COMMIT))
        self.emptied = view.count(f"{op} = 't' AND {commit} > {low} AND {commit} <= {high}") > 0
        for batch in self._log(view, low):
            for _ in self._arriving(batch):
                for rows, sign in self._images(batch):
                    self._db.execute(f"INSERT INTO d SELECT h, {sign} FROM ({rows}) WHERE committed <= {low}")
                    self._db.execute(f"INSERT INTO late SELECT h FROM ({rows}) WHERE committed > {low} AND committed <= {high}")
            yield batch.num_rows, batch.nbytes

    def totals(self) -> tuple[Total, Total]:
        """Rows and digest of the source, and of what the log left."""
        here, there = (
            self._db.execute(f"SELECT COALESCE(sum(n), 0), COALESCE(sum(h::HUGEINT * n), 0) FROM {side}").fetchall()[0] for side in "sd"
        )
        return Total.of(int(here[0]), here[1]), Total.of(int(there[0]), there[1])

    def differing(self, most: int) -> tuple[dict[int, int], set[int], int]:
        """By hash how many more rows the source has (below 0: less), of at most ``most`` hashes; those of them that late changes may
        explain; and how many hashes more there are. Only where the sums of a bucket of hashes differ its rows are counted one by one."""
        rows = "SELECT h, n FROM s UNION ALL SELECT h, -n FROM d"
        sums = f"SELECT h % {BUCKETS} AS b, count(*) AS rows FROM ({rows}) GROUP BY b HAVING sum(n) <> 0 OR sum(h::HUGEINT * n) <> 0"
        found: dict[int, int] = {}
        late: set[int] = set()
        rest, group, held = 0, list[int](), 0
        dirty = self._db.execute(sums).fetchall()
        for number, (bucket, count) in enumerate(dirty, start=1):
            group, held = [*group, bucket], held + count
            if held < JOIN_ROWS and number < len(dirty):
                continue
            query = f"""SELECT h, CAST(sum(n) AS BIGINT), h IN (SELECT h FROM late) FROM ({rows})
WHERE h % {BUCKETS} IN ({", ".join(map(str, group))}) GROUP BY h HAVING sum(n) <> 0"""
            for h, more, is_late in self._db.execute(query).fetchall():
                if len(found) == most:
                    rest += 1
                    continue
                found[h] = more
                late |= {h} if is_late else set()
            group, held = [], 0
        return found, late, rest

    def shown(self, scan: Scan, view: View, low: int, counts: Mapping[int, int]) -> list[Moved]:
        """One row of each of these hashes, read once more; both sides still show what was staged."""
        self._db.execute("CREATE OR REPLACE TEMP TABLE wanted (h UBIGINT)")
        self._db.executemany("INSERT INTO wanted VALUES (?)", [[h] for h in counts])
        found: dict[int, Mapping[str, str | None]] = {}
        for batch in scan.rows(self._columns):
            for _ in self._arriving(batch):
                self._note(f"SELECT {self._hash(batch)} AS h, {self._values(batch)} FROM arriving", found)
        for batch in self._log(view, low) if len(found) < len(counts) else ():
            for _ in self._arriving(batch):
                for rows, _sign in self._images(batch, values=True):
                    self._note(f"SELECT * EXCLUDE (committed) FROM ({rows})", found)
        return [Moved(counts[h], values) for h, values in found.items()]

    def _note(self, rows: str, found: dict[int, Mapping[str, str | None]]) -> None:
        table = self._db.sql(f"SELECT * FROM ({rows}) SEMI JOIN wanted USING (h)").to_arrow_table()
        hashes = table["h"].to_pylist()
        texts = [value_text(table[f"v{i}"].combine_chunks()).to_pylist() for i in range(len(self._columns))]
        for row, h in enumerate(hashes):
            found.setdefault(h, {c.name: texts[i][row] for i, c in enumerate(self._columns)})

    def _log(self, view: View, low: int) -> Iterator[pa.RecordBatch]:
        """The rows of the log since the table was last emptied or read whole."""
        forms = view.forms([*self._columns, _OP, _BEFORE, _COMMIT, _OFFSET])
        op, offset, commit = (forms[c.name] for c in (_OP, _OFFSET, _COMMIT))
        begin = -1
        asked = {
            "emptied": f"MAX(CASE WHEN {op} = 't' AND {commit} <= {low} THEN {offset} END)",
            "read": f"MIN(CASE WHEN {op} = 'r' THEN {offset} END)",
        }
        for batch in view.select(asked):
            for row in batch.to_pylist():
                begin = max([begin, *(int(v) for v in row.values() if v is not None)])
        self.whole = begin >= 0
        yield from view.select(forms, f"{offset} >= {begin} AND {op} <> 't'")

    def _images(self, batch: pa.RecordBatch, *, values: bool = False) -> Iterator[tuple[str, int]]:
        """Queries of the images after and before, with their signs: h and where its change was committed (-1: it was read)."""
        at = f"CASE WHEN {quote(_OP.name)} = 'r' THEN -1 ELSE COALESCE({quote(_COMMIT.name)}, -1) END AS committed"
        more = f", {self._values(batch)}" if values else ""
        yield f"SELECT {self._hash(batch)} AS h, {at}{more} FROM arriving WHERE {quote(_OP.name)} IN ('c', 'r', 'u')", 1
        more = f", {self._values(None)}" if values else ""
        parsed = ", ".join(f"{self._before(c)} AS {quote(c.name)}" for c in self._columns)
        rows = f"SELECT {parsed}, {quote(_OP.name)}, {quote(_COMMIT.name)} FROM arriving WHERE {quote(_OP.name)} IN ('u', 'd')"
        yield f"SELECT {self._hash(None)} AS h, {at}{more} FROM ({rows})", -1

    def _before(self, column: Column) -> str:
        """A column of the image before as the text from which its value is made."""
        pointer = "/" + column.name.replace("~", "~0").replace("/", "~1")
        place = pointer.replace("'", "''")
        if column.type.element is not None:
            return f"CAST(NULLIF(json_extract({quote(_BEFORE.name)}, '{place}'), 'null') AS VARCHAR)"
        text = f"json_extract_string({quote(_BEFORE.name)}, '{place}')"
        if column.type.kind is Kind.BYTES:
            return f"unhex({text})"
        return _CALENDAR[column.type.kind].format(text) if column.type.kind in _CALENDAR else text

    def _typed(self, batch: pa.RecordBatch | None) -> list[str]:
        """The value of each column; ``batch`` tells which come as text (None: an image before, where all but bytes do)."""

        def as_text(c: Column) -> bool:
            if batch is None:
                return c.type.kind is not Kind.BYTES
            came = batch.schema.field(c.name).type
            return bool(pa.types.is_string(came) and came != c.type.arrow)

        return [value(c, text=as_text(c)) for c in self._columns]

    def _hash(self, batch: pa.RecordBatch | None) -> str:
        # DuckDB hashes a list that is NULL, an empty one and one that holds a NULL alike; their texts differ.
        typed = zip(self._columns, self._typed(batch), strict=True)
        return f"hash({', '.join(normal(c, f'CAST({e} AS VARCHAR)' if c.type.element is not None else e) for c, e in typed)})"

    def _values(self, batch: pa.RecordBatch | None) -> str:
        return ", ".join(f"{e} AS v{i}" for i, e in enumerate(self._typed(batch)))
