"""One table's reconciliation, from the fence to the report.

The source's snapshot is taken first, then the destination's view, at best once the log is merged up to the snapshot's position (the fence):
then only keys that changed in between are late. Where nobody can say so the view is taken at once, and more keys are looked at again. Both
sides are compared by hash, in a way that suits the values of a few rows (reconcile.compare.sampling), what differs is judged by value
(reconcile.judge), and each difference is traced to its last event.

Promises: both sides are read once, whatever goes on meanwhile; the merging is never held up; what was left out is named; a limit that was
reached makes the result partial, never a match.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

import pyarrow as pa

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.types import Column, Mode, TableSchema, Target
from cdc_service.ports.reader import Scan, View
from reconcile.compare.digests import PushDown, faster
from reconcile.compare.engine import Comparison
from reconcile.compare.multiset import Moved, Multiset
from reconcile.compare.sampling import sample
from reconcile.judge import LOOK_SECONDS, LOOKS, Found, Judge, Verdicts
from reconcile.protocol import Log, Source
from reconcile.report.document import Buckets, Difference, Kind, Status, TableReport

MODES = ("auto", "stream", "pushdown")
DIFFERENCES_MAX = 1_000
"""How many differences a report holds; all are counted."""
PROBED_MIN = 500_000
"""Rows below which a table is always streamed: nothing could be won."""
JUDGED_MAX = 200_000
"""How many keys are judged one by one; a table with more differences is better loaded anew."""


@dataclass(frozen=True, slots=True)
class Options:
    """``mode`` is "stream" (rows move and are compared by the types of their values), "pushdown" (each side sums its rows up, and rows of
    buckets that differ move) or "auto" (push-down where a probe says that it is faster). ``max_seconds`` and ``max_rows_per_second`` (of
    the source) limit the load; ``where`` is a condition that both sides understand; ``sample`` reads so many percent of the source's rows,
    and sees no row that only the warehouse has."""

    mode: str = "auto"
    counts_only: bool = False
    where: str | None = None
    sample: float | None = None
    max_seconds: float | None = None
    max_rows_per_second: float | None = None
    differences_max: int = DIFFERENCES_MAX


@dataclass(slots=True)
class Progress:
    """What a run is doing now; read by whoever shows it."""

    table: str = ""
    phase: str = "waiting"
    rows: int = 0
    rows_expected: int = 0
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A table and what reaches both of its sides. ``fenced`` waits until the destination holds all up to a position and says whether it
    does; ``rows_expected`` is an estimate. ``explain`` says of a difference its last event and cause, knowing of columns that differ nearly
    everywhere (Sampled.mapped). ``steady`` are the columns that the target has had, unchanged, since its first row. ``uncovered`` are
    the source's columns that the target has not now: those that events never carry, and those that they should, each with the reason."""

    target: Target
    schema: TableSchema
    source: Source
    view: Callable[[], AbstractContextManager[View]]
    log: Log
    fenced: Callable[[int], bool]
    rows_expected: int
    explain: Callable[[Sequence[Found], Mapping[str, str]], Sequence[Difference]]
    steady: frozenset[str]
    uncovered: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]] = lambda: ({}, {})


class _Over(Exception):
    """The time that the comparison may take is over, or nobody wants it any more."""


def reconcile(subject: Subject, options: Options, progress: Progress, wall_us: int) -> TableReport:
    """The table's report; errors of the servers become its status."""
    target, began = subject.target, time.monotonic()
    progress.table, progress.phase, progress.rows, progress.rows_expected = str(target.source), "waiting", 0, subject.rows_expected
    report = TableReport(str(target.source), str(target), str(target.mode), Status.SKIPPED, started_us=wall_us, where=options.where)
    if not subject.schema.columns:
        return replace(report, reason="the target is not there yet: no event came")
    if subject.schema.key and target.mode is Mode.APPEND:
        return replace(report, reason="it is kept as a log of its changes, which has no counterpart at the source to be compared with")
    keyless = not subject.schema.key
    if keyless and (options.where is not None or options.sample is not None):
        return replace(report, reason="it has no key: its rows are counted, all or none, without --where and --sample")
    run = _Run(subject, options, progress, began + options.max_seconds if options.max_seconds else float("inf"))
    try:
        compare = run.left_by_log if keyless else run.counted if options.counts_only else run.compared
        report = compare(report)
    except _Over:
        why = "it was cancelled" if progress.cancelled else f"it was not done after {options.max_seconds:g} s"
        report = replace(report, status=Status.PARTIAL, reason=why)
    except CdcError as error:
        report = replace(report, status=Status.ERROR, reason=f"{error.message}" + (f" ({error.hint})" if error.hint else ""))
    return replace(report, seconds=time.monotonic() - began)


class _Run:
    def __init__(self, subject: Subject, options: Options, progress: Progress, until: float) -> None:
        self._subject = subject
        self._options = options
        self._progress = progress
        self._until = until
        self._bytes = 0

    def counted(self, report: TableReport) -> TableReport:
        """Rows only: a difference is told, not which it is; and with changes on their way it may be none."""
        s, where = self._subject, self._options.where
        with s.source.scan(s.target.source) as scan:
            fenced = s.fenced(scan.position)
            with s.view() as view:
                here, there = scan.count(where), view.count(where)
                report = self._placed(report, scan, view, fenced)
        status = Status.MATCH if here == there else Status.IN_FLIGHT
        reason = "only rows were counted" + ("" if here == there else "; changes that are on their way may explain the difference")
        return replace(report, status=status, method="counts", rows=(here, there), reason=reason)

    def compared(self, report: TableReport) -> TableReport:
        s, verdicts = self._subject, Verdicts()
        with ExitStack() as stack:
            with s.source.scan(s.target.source) as scan:
                # After the snapshot, so that no column of it is overlooked.
                apart, lacking = s.uncovered()
                left_out = {**scan.unreadable(s.schema.columns), **_dropped(s.schema), **apart}
                if lost := set(left_out) & set(s.schema.key):
                    raise CdcError(f"{s.target.source}: its key cannot be compared: {left_out[min(lost)]}", code="key_unreadable")
                columns = [c for c in s.schema.columns if c.name not in left_out]
                self._progress.phase = "fence"
                fenced = s.fenced(scan.position)
                with s.view() as view:
                    report = self._placed(report, scan, view, fenced)
                    found = sample(scan, view, s.schema.key_columns, columns, self._options.where, s.rows_expected)
                    comparison = stack.enter_context(Comparison(s.schema.key_columns, columns, found.by_value))
                    push, unseen = self._chosen(scan, view, columns, found.textless)
                    if push:
                        seen = [c for c in columns if c.name not in unseen]
                        report, push = self._summed(report, comparison, scan, view, seen)
                        left_out |= unseen
                    if not push:
                        report = self._streamed(report, comparison, scan, view, columns)
            buckets = comparison.buckets()
            report = replace(
                report, bytes=self._bytes, compared=tuple(c.name for c in columns if c.name not in left_out), left_out=left_out,
                by_value={} if push else found.by_value, buckets=report.buckets if push else buckets,
            )  # fmt: skip
            report = self._concluded(report, self._judged(comparison, buckets, verdicts), verdicts, found.mapped)
            return self._covered(report, lacking)

    def left_by_log(self, report: TableReport) -> TableReport:
        """The rows that a log of changes leaves, counted by their values; what late changes may explain is looked at again."""
        left, why = None, ""
        for number in range(LOOKS):
            if time.monotonic() > self._until:
                raise _Over
            time.sleep(min(2.0, 0.1 * 2**number) if number else 0.0)  # What stands in the way ends by itself or not at all.
            try:
                told, left = self._counted_by_value(report, left, last=number == LOOKS - 1)
            except Unavailable as error:
                why = error.message
                continue
            if told is not None:
                return told
        return replace(report, status=Status.IN_FLIGHT, reason=why)

    def _counted_by_value(self, report: TableReport, left: set[int] | None, *, last: bool) -> tuple[TableReport | None, set[int]]:
        """One look at the rows whose hashes are in ``left`` (None: at all): the report, or None and what has to be looked at again. Raises
        Unavailable where the sides cannot be compared just now."""
        s, self._progress.phase, self._progress.rows = self._subject, "fence", 0
        with s.source.settled(s.target.source) as (scan, low):
            left_out = {c.name: "it came or changed after the log began" for c in s.schema.columns if c.name not in s.steady}
            apart, lacking = s.uncovered()
            left_out |= {**_dropped(s.schema), **scan.unreadable(s.schema.columns), **apart}
            columns = [c for c in s.schema.columns if c.name not in left_out]
            if not columns:
                return replace(report, reason="none of its columns can be compared", left_out=left_out), set()
            ends = {} if (fenced := s.fenced(scan.position)) else s.log.ends_after(scan.position, LOOK_SECONDS)
            with s.view() as view, Multiset(columns) as rows:
                held = view.checkpoints(s.log.id)
                if ends is None or any(held.get(p, 0) < end for p, end in ends.items()):
                    raise Unavailable("the warehouse is not as far as the source was")
                self._progress.phase = "compare"
                self._drain(rows.stage_log(view, low, scan.position), paced=False)
                self._drain(rows.stage_source(scan), paced=True)
                if rows.emptied:
                    raise Unavailable("the table was emptied just now")
                differing, late, rest = rows.differing(JUDGED_MAX)
                left = set(differing) if left is None else left & set(differing)
                if (late := late & left) and not last:
                    return None, left
                counts = {h: differing[h] for h in left - late}
                wanted = dict(list(counts.items())[: self._options.differences_max])
                shown = rows.shown(scan, view, low, wanted) if wanted else []
                here, there = rows.totals()
                report = self._placed(report, scan, view, fenced)
        unknown = "it has no key to be followed by"
        cause = unknown if rows.whole else "the log has no snapshot: what was there before it began is not in it"
        more, fewer = (sum(max(0, sign * n) for n in counts.values()) for sign in (1, -1))
        status = Status.MISMATCH if counts else Status.IN_FLIGHT if late else Status.MATCH
        why = "its rows change too fast to be judged" if status is Status.IN_FLIGHT else ""
        report = replace(
            report, status=status, reason=f"more than {JUDGED_MAX:,} rows differ" if rest else why,
            method="multiset", rows=(here.rows, there.rows), digest=(here.digest, there.digest), bytes=self._bytes,
            compared=tuple(c.name for c in columns), left_out=left_out, truncated=len(shown) < len(counts),
            differences=[_of_rows(moved, scan.position, cause) for moved in shown],
            counts={"missing": more, "extra": fewer, "in_flight": len(late) + rest},
        )  # fmt: skip
        return self._covered(report, lacking), set()

    def _covered(self, report: TableReport, lacking: Mapping[str, str]) -> TableReport:
        """With the columns that the target lacked: a finding, unless they came meanwhile or may come with what is on its way."""
        if not lacking:
            return report
        s, still, why = self._subject, set[str](), "the warehouse is not as far as the source was, so it may be on its way"
        try:
            with s.source.settled(s.target.source) as (scan, _):
                position = scan.position
            ends = {} if s.fenced(position) else s.log.ends_after(position, LOOK_SECONDS)
            with s.view() as view:
                held = view.checkpoints(s.log.id)
            if ends is not None and all(held.get(p, 0) >= end for p, end in ends.items()):
                still = lacking.keys() & s.uncovered()[1].keys()
                why = "it came to the warehouse while the table was compared: compare it again"
        except Unavailable as error:
            why = error.message
        told = {name: reason if name in still else why for name, reason in lacking.items()}
        said = [f"column {name} is missing in the warehouse: {reason}" for name, reason in told.items()]
        status = Status.MISMATCH if still else Status.IN_FLIGHT if report.status is Status.MATCH else report.status
        reason = "; ".join([*filter(None, [report.reason]), *said])
        return replace(report, status=status, reason=reason, left_out={**report.left_out, **told}, lacking=tuple(sorted(still)))

    def _placed(self, report: TableReport, scan: Scan, view: View, fenced: bool) -> TableReport:
        text = self._subject.source.format_position(scan.position)
        fence = "exact" if fenced else "stable"
        return replace(report, fence=fence, position=scan.position, position_text=text, batch_id=view.batch_id)

    def _chosen(self, scan: Scan, view: View, columns: Sequence[Column], textless: Mapping[str, str]) -> tuple[bool, dict[str, str]]:
        """Whether the sides sum their rows up, and the columns that are not seen then, with the reason."""
        mode, o = self._options.mode, self._options
        if mode == "stream" or (o.sample is not None and mode == "auto"):
            return False, {}
        key = self._subject.schema.key_columns
        whole = list({c.name: c for c in (*key, *columns)}.values())
        known = set(scan.texts(whole)) & set(view.texts(whole))
        unseen = {c.name: f"a {c.type} has no text that is the same in both databases: --mode stream" for c in whole if c.name not in known}
        unseen |= {name: f"{why}: --mode stream" for name, why in textless.items()}
        if mode == "pushdown":
            if lost := set(unseen) & {c.name for c in key}:
                raise CdcError(f"its key cannot be summed up: {unseen[min(lost)]}", code="no_pushdown")
            return True, unseen
        if unseen or o.max_rows_per_second or self._subject.rows_expected < PROBED_MIN:
            return False, {}
        return faster(scan, view, key, columns), {}

    def _streamed(self, report: TableReport, comparison: Comparison, scan: Scan, view: View, columns: Sequence[Column]) -> TableReport:
        where, sample = self._options.where, self._options.sample
        wanted = list({c.name: c for c in (*comparison.key, *columns)}.values())
        self._progress.phase = "compare"
        if view.native:
            there = comparison.stage_hashed("d", view.select(comparison.expressions(), where))
        else:
            there = comparison.stage("d", view.select(view.forms(wanted), where))
        self._drain(there, paced=False)
        self._drain(comparison.stage("s", scan.rows(wanted, where, sample)), paced=True)
        if sample is not None:
            comparison.only_sampled()
        here, held = comparison.total("s"), comparison.total("d")
        method = "stream" if sample is None else "sample"
        return replace(report, method=method, rows=(here.rows, held.rows), digest=(here.digest, held.digest))

    def _summed(
        self, report: TableReport, comparison: Comparison, scan: Scan, view: View, columns: Sequence[Column]
    ) -> tuple[TableReport, bool]:
        """False where so much differs that the rows are better moved; then nothing was staged."""
        o, self._progress.phase = self._options, "compare"
        auto = o.mode == "auto"
        push = PushDown(comparison, scan, view, columns, o.where, self._subject.rows_expected, give_up=auto)
        steps = push.run()
        self._drain(((rows if side == "s" else 0, size) for side, rows, size in steps), paced=True)
        here, held = push.totals
        rows, digest = (here.rows, held.rows), (here.digest, held.digest)
        report = replace(report, method="pushdown", rows=rows, digest=digest, buckets=push.buckets)
        return report, not (auto and push.widespread)

    def _drain(self, steps: Iterator[tuple[int, int]], *, paced: bool) -> None:
        began, rows, rate = time.monotonic(), 0, self._options.max_rows_per_second
        for step, size in steps:
            rows += step
            self._bytes += size
            if paced:
                self._progress.rows = rows
                if rate and (ahead := rows / rate - (time.monotonic() - began)) > 0:
                    time.sleep(min(ahead, max(0.0, self._until - time.monotonic())))
            # Also after the last step: what came faster than allowed counts as not done.
            if time.monotonic() >= self._until or self._progress.cancelled:
                raise _Over

    def _judged(self, comparison: Comparison, buckets: Buckets, verdicts: Verdicts) -> list[Found]:
        s = self._subject
        self._progress.phase = "judge"
        judge = Judge(s.target.source, comparison.key, comparison.columns, s.source, s.view, s.log, until=self._until)
        return list(judge.judge(_at_most(comparison.differing(buckets), JUDGED_MAX, verdicts), verdicts))

    def _concluded(self, report: TableReport, found: Sequence[Found], verdicts: Verdicts, mapped: Mapping[str, str]) -> TableReport:
        counts = Counter(late=verdicts.late, in_flight=verdicts.in_flight)
        for f in found:
            counts[str(f.kind)] += f.count
        columns = Counter(name for f in found for name in f.columns)
        self._progress.phase = "explain"
        shown = self._subject.explain(found[: self._options.differences_max], mapped)
        wrong = [f for f in found if f.kind is not Kind.REPRESENTATION]
        status = Status.MISMATCH if wrong else Status.IN_FLIGHT if verdicts.in_flight else Status.MATCH
        if status is Status.MATCH and self._options.sample is not None:
            report = replace(report, reason=f"only {self._options.sample:g} % of the source's rows were compared")
        elif status is Status.MATCH and self._options.where is not None:
            report = replace(report, reason="only the rows of the condition were compared")
        counts["parked"] = sum(d.cause.startswith("parked") for d in shown)
        return replace(
            report, status=status, reason=verdicts.why if verdicts.in_flight else report.reason, counts=dict(counts),
            columns=dict(columns.most_common()), differences=shown, truncated=len(found) > len(shown),
        )  # fmt: skip


def _of_rows(moved: Moved, position: int, cause: str) -> Difference:
    """Without a key the whole row names itself."""
    here, there = (moved.values, None) if moved.count > 0 else (None, moved.values)
    kind = Kind.MISSING if moved.count > 0 else Kind.EXTRA
    return Difference(moved.values, kind, (), here, there, position, cause=cause, count=abs(moved.count))


def _dropped(schema: TableSchema) -> dict[str, str]:
    return {c.name: "the source has no such column any more" for c in schema.columns if c.dropped}


def _at_most(tables: Iterator[pa.Table], most: int, verdicts: Verdicts) -> Iterator[pa.Table]:
    """The first ``most`` keys; the others are told as not judged."""
    for table in tables:
        taken = table.slice(0, most)
        most -= taken.num_rows
        if taken.num_rows < table.num_rows:
            verdicts.in_flight += table.num_rows - taken.num_rows
            verdicts.why = f"more than {JUDGED_MAX:,} keys differ; the table is better loaded anew: cdc resync"
        yield taken
