"""The reconciliation of a table, or of several together, from the fence to the report.

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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.types import Column, Mode, TableId, TableSchema, Target
from cdc_service.ports.reader import Scan, View
from reconcile.compare.digests import PushDown, faster
from reconcile.compare.engine import Comparison, Database
from reconcile.compare.multiset import Moved, Multiset
from reconcile.compare.sampling import SAMPLED_FROM, Sampled, sample
from reconcile.judge import LOOK_SECONDS, LOOKS, Case, Found, Judge, Verdicts, judge
from reconcile.protocol import Log, Source
from reconcile.report.document import Difference, Kind, Status, TableReport

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


Uncovered = tuple[Mapping[str, str], Mapping[str, str]]
AllUncovered = Mapping[TableId, Uncovered]
NOTHING: Uncovered = ({}, {})


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
    uncovered: Callable[[], Uncovered] = lambda: NOTHING


class _Over(Exception):
    """The time that the comparison may take is over, or nobody wants it any more."""


def reconcile(subject: Subject, options: Options, progress: Progress, wall_us: int) -> TableReport:
    """The table's report; errors of the servers become its status."""
    [(_, report)] = together([subject], options, progress, wall_us)
    return report


def together(
    subjects: Sequence[Subject], options: Options, progress: Progress, wall_us: int, uncovered: Callable[[], AllUncovered] | None = None
) -> Iterator[tuple[Subject, TableReport]]:
    """The report of each table as soon as it is known. Tables with a key are read in one snapshot, so that all have one position and wait
    once for the fence; then what differs in any of them is looked at together. So are tables without a key, in a snapshot of their own.
    ``uncovered`` tells Subject.uncovered of all of them.

    Where nobody wants it any more, tables that were not begun have no report."""
    known = uncovered or (lambda: {s.target.source: s.uncovered() for s in subjects})
    progress.table = str(subjects[0].target.source) if len(subjects) == 1 else f"{len(subjects)} tables"
    progress.phase, progress.rows, progress.rows_expected = "waiting", 0, sum(s.rows_expected for s in subjects)
    runs = [_Run(s, options, progress, wall_us) for s in subjects]
    yield from ((run.subject, run.report) for run in runs if run.done)
    with Database() as database:
        for keyed, compared in ((True, _by_key), (False, _by_log)):
            if some := [run for run in runs if not run.done and bool(run.subject.schema.key) is keyed]:
                for run in compared(some, progress, known, database):
                    yield run.subject, replace(run.report, seconds=run.seconds)


def _by_key(runs: Sequence[_Run], progress: Progress, known: Callable[[], AllUncovered], database: Database) -> Iterator[_Run]:
    source, cases = runs[0].subject.source, dict[_Run, Case]()
    with ExitStack() as stack:
        with _step(*runs):
            snapshot = stack.enter_context(source.snapshot([run.table for run in runs]))
            uncovered = known()  # After the snapshot, so that no column of it is overlooked.
        for run in runs:
            if not run.done:
                if progress.cancelled and run is not runs[0]:
                    break
                with _step(run):
                    with snapshot.scan(run.table) as scan:
                        case = run.compare(scan, uncovered.get(run.table, NOTHING), database)
                    if case is not None:
                        cases[run] = case
            if run.done:
                yield run
    with _step(*cases):
        if progress.cancelled:
            raise _Over
        progress.phase = "judge"
        judge(list(cases.values()), source, until=runs[0].until)
    for run, case in cases.items():
        if not run.done:
            with _step(run):
                run.conclude(case)
        yield run


def _by_log(runs: Sequence[_Run], progress: Progress, known: Callable[[], AllUncovered], database: Database) -> Iterator[_Run]:
    """What late changes may explain is looked at again."""
    source, left, begun = runs[0].subject.source, list(runs), set[_Run]()
    for number in range(LOOKS):
        time.sleep(min(2.0, 0.1 * 2**number) if number else 0.0)  # What stands in the way ends by itself or not at all.
        with ExitStack() as stack:
            settled = None
            with _step(*left), _hindered(*left):
                if time.monotonic() > runs[0].until:
                    raise _Over
                settled = stack.enter_context(source.settled([run.table for run in left]))
                uncovered = known()
            for run in left if settled else ():
                if progress.cancelled and run not in begun and run is not runs[0]:
                    continue
                begun.add(run)
                with _step(run), _hindered(run), settled.scan(run.table) as scan:
                    run.count_by_value(scan, settled.low, uncovered.get(run.table, NOTHING), database, last=number == LOOKS - 1)
        yield from (run for run in left if run.done)
        left = [run for run in left if not run.done and (run in begun or not progress.cancelled)]
        if not left:
            return
    for run in left:
        run.report = replace(run.report, status=Status.IN_FLIGHT, reason=run.why)
        yield run


@contextmanager
def _step(*runs: _Run) -> Iterator[None]:
    """Work for these tables, each of which bears a part of its time. What goes wrong ends each of them."""
    began = time.monotonic()
    try:
        yield
    except (_Over, CdcError) as error:
        for run in runs:
            run.fail(error)
    finally:
        for run in runs:
            run.seconds += (time.monotonic() - began) / len(runs)


@contextmanager
def _hindered(*runs: _Run) -> Iterator[None]:
    """What cannot be compared just now is tried again."""
    try:
        yield
    except Unavailable as error:
        for run in runs:
            run.why = error.message


class _Run:
    """One table. ``done``: its ``report`` is final."""

    def __init__(self, subject: Subject, options: Options, progress: Progress, wall_us: int) -> None:
        target, self.subject, self.table = subject.target, subject, subject.target.source
        self.until = time.monotonic() + options.max_seconds if options.max_seconds else float("inf")
        self.seconds = 0.0
        self.why = ""
        self._options = options
        self._progress = progress
        self._bytes = 0
        self._left: set[int] | None = None
        self._lacking: Mapping[str, str] = {}
        self._mapped: Mapping[str, str] = {}
        report = TableReport(str(target.source), str(target), str(target.mode), Status.SKIPPED, started_us=wall_us, where=options.where)
        self.report = replace(report, reason=self._refusal())
        self.done = bool(self.report.reason)

    def _refusal(self) -> str:
        s, o = self.subject, self._options
        if not s.schema.columns:
            return "the target is not there yet: no event came"
        if s.schema.key and s.target.mode is Mode.APPEND:
            return "it is kept as a log of its changes, which has no counterpart at the source to be compared with"
        if not s.schema.key and (o.where is not None or o.sample is not None):
            return "it has no key: its rows are counted, all or none, without --where and --sample"
        return ""

    def fail(self, error: _Over | CdcError) -> None:
        if isinstance(error, CdcError):
            reason = f"{error.message}" + (f" ({error.hint})" if error.hint else "")
            self.report = replace(self.report, status=Status.ERROR, reason=reason)
        else:
            why = "it was cancelled" if self._progress.cancelled else f"it was not done after {self._options.max_seconds:g} s"
            self.report = replace(self.report, status=Status.PARTIAL, reason=why)
        self.done = True

    def _end(self, report: TableReport) -> None:
        self.report, self.done = report, True

    def _show(self, phase: str) -> None:
        p = self._progress
        p.table, p.phase, p.rows, p.rows_expected = str(self.table), phase, 0, self.subject.rows_expected

    def _counted(self, report: TableReport, scan: Scan) -> TableReport:
        """Rows only: a difference is told, not which it is; and with changes on their way it may be none."""
        s, where = self.subject, self._options.where
        fenced = s.fenced(scan.position)
        with s.view() as view:
            here, there = scan.count(where), view.count(where)
            report = self._placed(report, scan, view, fenced)
        status = Status.MATCH if here == there else Status.IN_FLIGHT
        reason = "only rows were counted" + ("" if here == there else "; changes that are on their way may explain the difference")
        return replace(report, status=status, method="counts", rows=(here, there), reason=reason)

    def compare(self, scan: Scan, uncovered: Uncovered, database: Database) -> Case | None:
        """The keys that may differ, which have to be judged; None where nothing does."""
        self._show("fence")
        if self._options.counts_only:
            self._end(self._counted(self.report, scan))
            return None
        s, report, (apart, self._lacking) = self.subject, self.report, uncovered
        left_out = {**scan.unreadable(s.schema.columns), **_dropped(s.schema), **apart}
        if lost := set(left_out) & set(s.schema.key):
            raise CdcError(f"{s.target.source}: its key cannot be compared: {left_out[min(lost)]}", code="key_unreadable")
        columns = [c for c in s.schema.columns if c.name not in left_out]
        fenced = s.fenced(scan.position)
        with s.view() as view:
            report, found, push, buckets = self._placed(report, scan, view, fenced), Sampled(), False, None
            if s.rows_expected < SAMPLED_FROM and self._options.mode != "pushdown":
                # Where nothing differs there is no value of several texts either: only then few rows are worth a look before they are read.
                comparison = Comparison(database, s.schema.key_columns, columns)
                report = self._streamed(report, comparison, scan, view, columns)
                buckets = comparison.buckets()
            if buckets is None or buckets.dirty:
                found = sample(scan, view, s.schema.key_columns, columns, self._options.where, s.rows_expected)
            if buckets is None or found.by_value:
                comparison = Comparison(database, s.schema.key_columns, columns, found.by_value)
                push, unseen = self._chosen(scan, view, columns, found.textless)
                if push:
                    seen = [c for c in columns if c.name not in unseen]
                    report, push = self._summed(report, comparison, scan, view, seen)
                    left_out |= unseen
                if not push:
                    report = self._streamed(report, comparison, scan, view, columns)
                buckets = comparison.buckets()
        self._mapped = found.mapped
        self.report = replace(
            report, bytes=self._bytes, compared=tuple(c.name for c in columns if c.name not in left_out), left_out=left_out,
            by_value={} if push else found.by_value, buckets=report.buckets if push else buckets,
        )  # fmt: skip
        case = Case(Judge(self.table, comparison.key, comparison.columns, s.view, s.log))
        case.nominated = list(_at_most(comparison.differing(buckets), JUDGED_MAX, case.verdicts))
        if any(keys.num_rows for keys in case.nominated) or case.verdicts.in_flight:
            return case
        self.conclude(case)
        return None

    def conclude(self, case: Case) -> None:
        self._end(self._covered(self._concluded(self.report, case.differences(), case.verdicts, self._mapped), self._lacking))

    def count_by_value(self, scan: Scan, low: int, uncovered: Uncovered, database: Database, *, last: bool) -> None:
        """One look at the rows whose hashes are left to be looked at (at first all): ends it, or leaves less. Raises Unavailable where the
        sides cannot be compared just now."""
        self._show("fence")
        s, report, (apart, lacking) = self.subject, self.report, uncovered
        left_out = {c.name: "it came or changed after the log began" for c in s.schema.columns if c.name not in s.steady}
        left_out |= {**_dropped(s.schema), **scan.unreadable(s.schema.columns), **apart}
        columns = [c for c in s.schema.columns if c.name not in left_out]
        if not columns:
            self._end(replace(report, reason="none of its columns can be compared", left_out=left_out))
            return
        ends = {} if (fenced := s.fenced(scan.position)) else s.log.ends_after(scan.position, LOOK_SECONDS)
        with s.view() as view:
            rows = Multiset(database, columns)
            held = view.checkpoints(s.log.id)
            if ends is None or any(held.get(p, 0) < end for p, end in ends.items()):
                raise Unavailable("the warehouse is not as far as the source was")
            self._progress.phase = "compare"
            self._drain(rows.stage_log(view, low, scan.position), paced=False)
            self._drain(rows.stage_source(scan), paced=True)
            if rows.emptied:
                raise Unavailable("the table was emptied just now")
            differing, late, rest = rows.differing(JUDGED_MAX)
            self._left = set(differing) if self._left is None else self._left & set(differing)
            if (late := late & self._left) and not last:
                return
            counts = {h: differing[h] for h in self._left - late}
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
        self._end(self._covered(report, lacking))

    def _covered(self, report: TableReport, lacking: Mapping[str, str]) -> TableReport:
        """With the columns that the target lacked: a finding, unless they came meanwhile or may come with what is on its way."""
        if not lacking:
            return report
        s, still, why = self.subject, set[str](), "the warehouse is not as far as the source was, so it may be on its way"
        try:
            with s.source.settled([self.table]) as settled, settled.scan(self.table) as scan:
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
        text = self.subject.source.format_position(scan.position)
        fence = "exact" if fenced else "stable"
        return replace(report, fence=fence, position=scan.position, position_text=text, batch_id=view.batch_id)

    def _chosen(self, scan: Scan, view: View, columns: Sequence[Column], textless: Mapping[str, str]) -> tuple[bool, dict[str, str]]:
        """Whether the sides sum their rows up, and the columns that are not seen then, with the reason."""
        mode, o = self._options.mode, self._options
        if mode == "stream" or (o.sample is not None and mode == "auto"):
            return False, {}
        key = self.subject.schema.key_columns
        whole = list({c.name: c for c in (*key, *columns)}.values())
        known = set(scan.texts(whole)) & set(view.texts(whole))
        unseen = {c.name: f"a {c.type} has no text that is the same in both databases: --mode stream" for c in whole if c.name not in known}
        unseen |= {name: f"{why}: --mode stream" for name, why in textless.items()}
        if mode == "pushdown":
            if lost := set(unseen) & {c.name for c in key}:
                raise CdcError(f"its key cannot be summed up: {unseen[min(lost)]}", code="no_pushdown")
            return True, unseen
        if unseen or o.max_rows_per_second or self.subject.rows_expected < PROBED_MIN:
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
        push = PushDown(comparison, scan, view, columns, o.where, self.subject.rows_expected, give_up=auto)
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
                    time.sleep(min(ahead, max(0.0, self.until - time.monotonic())))
            # Also after the last step: what came faster than allowed counts as not done.
            if time.monotonic() >= self.until or self._progress.cancelled:
                raise _Over

    def _concluded(self, report: TableReport, found: Sequence[Found], verdicts: Verdicts, mapped: Mapping[str, str]) -> TableReport:
        counts = Counter(late=verdicts.late, in_flight=verdicts.in_flight)
        for f in found:
            counts[str(f.kind)] += f.count
        columns = Counter(name for f in found for name in f.columns)
        self._progress.phase = "explain"
        shown = self.subject.explain(found[: self._options.differences_max], mapped)
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
