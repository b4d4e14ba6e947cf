"""Compares, explains and repairs tables on a thread of its own, beside a running service or without one.

Promises: nothing here runs on the line's thread except what is short; a run keeps each table's result as soon as it is known, and what goes
wrong with one table leaves the others alone.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import traceback
from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import structlog

from cdc_service import transforms
from cdc_service.config.problems import unknown_table
from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError, ConfigError, Fenced, Unavailable
from cdc_service.core.logical import Kind
from cdc_service.core.names import Names
from cdc_service.core.types import NO_LOG, Delta, Mode, TableId, TableSchema, Target
from cdc_service.kafka.admin import Admin
from cdc_service.kafka.reader import TopicReader
from cdc_service.pipeline.prepare import Prepare
from cdc_service.pipeline.table_state import State
from cdc_service.pipeline.tally import Tally
from cdc_service.ports.destination import Destination, TableState
from cdc_service.ports.events import Decoder
from cdc_service.ports.feed import TopicFacts
from cdc_service.ports.reader import View
from cdc_service.runtime.comparing.change_log import Sent, Sources, TopicLog
from cdc_service.runtime.comparing.columns import uncovered
from cdc_service.runtime.comparing.record import HISTORY_RUNS, RUNS_LOOKED_AT, keep, recorded
from connectors.debezium.connect import KafkaConnect
from reconcile.compare.multiset import steady_columns
from reconcile.explain import explain
from reconcile.judge import Found
from reconcile.repair import keys_of, repair
from reconcile.report.document import Difference, Status, TableReport, document
from reconcile.report.key_history import life
from reconcile.run import MODES, NOTHING, AllUncovered, Options, Progress, Subject, Uncovered, reconcile, together

FENCE_SECONDS = 30.0
SMALL_ROWS = 50_000
"""From so many rows on a table is compared by itself: to read it takes as long as what it would share with others saves."""
TOGETHER_ROWS = 500_000
"""So many rows small tables have together, at most, that are read in one snapshot: no more than one table that is always streamed."""
TABLES_ON_LINE, RESUMED_ON_LINE = 100, 10
"""Of so many the line is asked at a time, some milliseconds each (some more for what their last runs recorded): it must not be kept for
long, and each time its turn is waited for."""
ON_LINE_SECONDS = 60.0
T = TypeVar("T")


class Run:
    """Some tables; ``reports`` are in their order, whichever was compared first."""

    def __init__(self, pipeline: str, tables: Sequence[str], resume: str | None = None) -> None:
        self.id = resume or f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.resumed = resume is not None
        self.progress = Progress()
        self.tables = list(dict.fromkeys(tables))
        self._places = {table: place for place, table in enumerate(self.tables)}
        self.reports: list[TableReport] = []
        self.error: CdcError | None = None
        self._pipeline = pipeline
        self._over = threading.Event()

    @property
    def done(self) -> bool:
        return self._over.is_set()

    @property
    def done_tables(self) -> set[str]:
        return {report.source for report in self.reports}

    def add(self, report: TableReport) -> None:
        insort(self.reports, report, key=lambda r: self._places[r.source])

    def wait(self, seconds: float) -> bool:
        """Whether it is done, at the latest after so long."""
        return self._over.wait(seconds)

    def end(self) -> None:
        self._over.set()

    def document(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return document(self._pipeline, self.id, self.reports)

    def state(self) -> dict[str, Any]:
        """What is told of a run while it is under way."""
        p = self.progress
        return {
            "run_id": self.id,
            "done": self.done,
            "table": p.table,
            "phase": p.phase,
            "rows": p.rows,
            "rows_expected": p.rows_expected,
            "tables_done": len(self.reports),
            "tables": len(self.tables),
        }


@dataclass(frozen=True, slots=True)
class Outside:
    """The servers around the destination that a comparison asks."""

    sources: Sources
    connect: KafkaConnect
    names: Names
    kafka: Admin
    placeholder: str
    options: Mapping[str, str]
    """The connector's, as the configuration has them."""


class Line(Protocol):
    """What a running service tells of a table (pipeline.table_task.TableTask)."""

    @property
    def state(self) -> State: ...
    @property
    def tally(self) -> Tally: ...


class Reconciler:
    """Compares tables, one run at a time on its own thread. ``resolved`` gives the pipeline's tables and what makes a decoder."""

    def __init__(
        self,
        pipeline: str,
        destination: Destination,
        resolved: Callable[[], tuple[list[TableConfig], Callable[[], Decoder]]],
        reader: Callable[[], TopicReader],
        outside: Outside,
    ) -> None:
        self._pipeline = pipeline
        self._destination = destination
        self._resolved = resolved
        self._reader = reader
        self._outside = outside
        self._lines: Mapping[TableId, Line] = {}
        self._ask: Callable[[Callable[[], Any]], Future[Any]] | None = None
        self._hurry: Callable[[], None] = lambda: None
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    def follow(self, lines: Mapping[TableId, Line], ask: Callable[[Callable[[], Any]], Future[Any]], hurry: Callable[[], None]) -> None:
        """From now on a service merges at the same time: ``ask`` runs something on its thread, which alone may use the destination;
        ``hurry`` has it look soon how far the tables are."""
        self._lines, self._ask, self._hurry = lines, ask, hurry

    def begin(self, tables: Sequence[str], options: Options, resume: str | None = None) -> Run:
        """``resume`` is the id of a run that did not come to its end: tables that it has done are not compared again.

        Raises ConfigError for a table that the pipeline has not, CdcError (busy) while another run is under way."""
        configs, decoder = self._on_line(self._resolved)
        chosen = [_named(configs, name) for name in tables] or configs
        run = Run(self._pipeline, [str(c.source) for c in chosen], resume)
        with self._lock:
            if busy := next((r for r in self._runs.values() if not r.done), None):
                hint = "wait for it; tables that are given together are compared in one run"
                raise CdcError(f"another comparison is under way: {busy.id}, at {busy.progress.table}", hint=hint, code="busy")
            self._runs = dict(list(self._runs.items())[-HISTORY_RUNS:]) | {run.id: run}
        made = self._on_line(decoder)
        threading.Thread(target=self._go, args=(run, chosen, options, made), name="reconcile", daemon=True).start()
        return run

    def run(self, run_id: str) -> Run:
        found = self._runs.get(run_id)
        if found is None:
            raise ConfigError(f"no comparison is called {run_id}", hint="those that are over are in _cdc.reconcile_run", code="unknown_run")
        return found

    def cancel(self) -> None:
        for run in self._runs.values():
            run.progress.cancelled = True

    def close(self) -> None:
        """Ends what is under way, and waits for it a little."""
        self.cancel()
        for run in self._runs.values():
            run.wait(1.0)

    def _on_line(self, do: Callable[[], Any]) -> Any:
        return self._begun_on_line(do).result(timeout=ON_LINE_SECONDS)

    def _begun_on_line(self, do: Callable[[], Any]) -> Future[Any]:
        if self._ask is not None:
            return self._ask(do)
        done: Future[Any] = Future()
        done.set_result(do())
        return done

    def _each_on_line(self, do: Callable[[TableConfig], T], configs: Sequence[TableConfig], most: int = TABLES_ON_LINE) -> list[T]:
        found = list[T]()
        for first in range(0, len(configs), most):
            found += self._on_line(lambda: [do(c) for c in configs[first : first + most]])  # noqa: B023  (it is waited for)
        return found

    def _go(self, run: Run, configs: Sequence[TableConfig], options: Options, decoder: Decoder) -> None:
        reader = self._reader()
        try:
            with self._destination.views() as views:
                self._compare(run, configs, options, _Means(reader, decoder, views, self._outside))
        except CdcError as error:
            run.error = error
        except Exception as error:
            # The message of an error that nobody foresaw may hold values: only its place is told.
            frames = "".join(traceback.format_tb(error.__traceback__))
            structlog.get_logger().error("unexpected", run=run.id, error=type(error).__name__, frames=frames)
            run.error = CdcError(f"an unexpected {type(error).__name__}", hint="see the log and report it", code="unexpected")
        finally:
            reader.close()
            run.end()

    def _compare(self, run: Run, configs: Sequence[TableConfig], options: Options, means: _Means) -> None:
        if run.resumed:
            done = partial(recorded, self._destination, run_id=run.id)
            for report in self._each_on_line(lambda c: done(str(c.source), c.target), configs, RESUMED_ON_LINE):
                if report is not None:
                    run.add(report)
        left = {c.source: c for c in configs if str(c.source) not in run.done_tables}
        for subjects in self._together(list(left.values()), options, means):
            self._compared_together(run, {s.target.source: left[s.target.source] for s in subjects}, subjects, options)
        for config in left.values():
            if run.progress.cancelled:
                return
            if str(config.source) not in run.done_tables:
                run.add(self._compared(run, config, options, means))

    def _together(self, configs: Sequence[TableConfig], options: Options, means: _Means) -> Iterator[Sequence[Subject]]:
        """The small tables, as many at a time as have no more rows than one that is streamed at once. A limit is one of each table, by
        itself."""
        if options.max_seconds or options.max_rows_per_second or len(configs) < 2:
            return
        try:
            estimates = {t.table: t.rows for t in self._outside.sources.primary.tables()}
            small = [c for c in configs if estimates.get(c.source, SMALL_ROWS) < SMALL_ROWS]
            facts = self._outside.kafka.describe([c.topic for c in small])
            states = self._on_line(self._destination.states)
        except CdcError:
            return  # Each table says so.
        small = [c for c in small if not _is_loading(states.get((str(c.source), str(c.target)), TableState()))]
        made = self._each_on_line(lambda c: self._small(c, facts.get(c.topic), means), small)
        group, rows = list[Subject](), 0
        for subject in made:
            if subject is not None:
                if group and rows + subject.rows_expected > TOGETHER_ROWS:
                    yield group
                    group, rows = [], 0
                group.append(subject)
                rows += subject.rows_expected
        if len(group) > 1:
            yield group

    def _small(self, config: TableConfig, facts: TopicFacts | None, means: _Means) -> Subject | None:
        try:
            subject = self._subject(config, means, facts)
        except CdcError:
            return None  # It says so when it is compared by itself.
        return subject if subject.rows_expected < SMALL_ROWS else None

    def _compared_together(self, run: Run, configs: Mapping[TableId, TableConfig], subjects: Sequence[Subject], options: Options) -> None:
        """What went wrong is left to be compared by itself: it may have been another table's fault."""
        kept = list[Future[TableReport]]()
        uncovered = partial(self._uncovered, list(configs.values()))
        for subject, report in together(subjects, options, run.progress, time.time_ns() // 1000, uncovered):
            if report.status is not Status.ERROR:
                kept.append(self._begun_on_line(partial(self._keep, configs[subject.target.source], run.id, report)))
            while kept and kept[0].done():
                run.add(kept.pop(0).result())
        for one in kept:
            run.add(one.result(timeout=ON_LINE_SECONDS))

    def _compared(self, run: Run, config: TableConfig, options: Options, means: _Means) -> TableReport:
        now = time.time_ns() // 1000
        try:
            if _is_loading(self._on_line(partial(self._destination.load_state, config.target))):
                return _not_compared(config, Status.SKIPPED, "its rows are still on their way: it is being loaded", now)
            subject = self._on_line(partial(self._subject, config, means))
        except CdcError as error:
            why = f"{error.message} ({error.hint})" if error.hint else error.message
            return _not_compared(config, Status.ERROR, why, now)
        report = reconcile(subject, options, run.progress, now)
        kept: TableReport = self._on_line(partial(self._keep, config, run.id, report))
        return kept

    def repair(self, table: str, run_id: str | None, *, dry_run: bool) -> dict[str, Any]:
        """Repairs the differences of a run (of the last one that found some) that are still there. What is written or removed is read at
        the source itself, never at a replica, which may have gone its own way."""
        with self._one(table) as (config, compared):
            subject = replace(compared, source=Sources(self._outside.sources.primary, self._outside.sources.primary))
            if config.target.mode is Mode.APPEND:
                message = f"{config.source} is kept as a log of its changes, which is not repaired: it tells only of what came"
                raise CdcError(message, code="no_repair")
            run_id, keys = self._on_line(partial(self._recorded, config, subject.schema, run_id))
            state = self._on_line(partial(self._destination.load_state, config.target))
            if state.state != "streaming" or state.resync:
                message = f"{config.source} is {state.state}: a repair needs a table that streams"
                raise CdcError(message, hint="cdc status", code="not_running")
            done = repair(subject, keys, state.generation, self._merge(config.target), dry_run=dry_run, batch_id=f"repair-{run_id}")
            if done.done:
                keys_done = [json.dumps(key) for key in done.done]
                self._on_line(partial(self._destination.mark_repaired, config.target, run_id, keys_done, datetime.now(UTC)))
        return {
            "table": str(config.source),
            "run_id": run_id,
            "dry_run": dry_run,
            "keys": [deed.as_json() for deed in done.deeds],
            "equal": done.equal,
            "in_flight": done.in_flight,
            "repaired": len(done.done),
            "left": done.left,
            "why": done.why or None,
        }

    def _recorded(self, config: TableConfig, schema: TableSchema, run_id: str | None) -> tuple[str, pa.Table]:
        runs = self._destination.runs(config.target, RUNS_LOOKED_AT)
        found = next((r for r in runs if (r["run_id"] == run_id if run_id else r["status"] == "mismatch")), None)
        if found is None:
            what = f"no comparison {run_id}" if run_id else "no comparison that found differences"
            raise ConfigError(f"{config.source} has {what}", hint=f"cdc reconcile {config.source}", code="unknown_run")
        return found["run_id"], keys_of(schema, [d["key"] for d in self._destination.differences(config.target, found["run_id"])])

    def _merge(self, target: Target) -> Callable[[Delta, TableSchema], None]:
        d, line = self._destination, self._lines.get(target.source)

        def merge(delta: Delta, schema: TableSchema) -> None:
            if list(d.schemas(target))[-1] != schema:
                raise Fenced(f"{target}: its schema was changed meanwhile", hint="compare and repair it again")
            d.merge(delta, {}, NO_LOG, schema)
            if line is not None:
                line.tally.recount()

        return lambda delta, schema: self._on_line(partial(merge, delta, schema))

    def explain(self, table: str, key: Sequence[str]) -> dict[str, Any]:
        """The life of one key: its events in Kafka, what became of them, and both rows now."""
        with self._one(table) as (config, subject):
            if not subject.schema.key:
                raise ConfigError(f"{config.source} has no key by which a row's events could be found", code="no_key")
            return life(subject, key)

    @contextmanager
    def _one(self, table: str) -> Iterator[tuple[TableConfig, Subject]]:
        configs, decoder = self._on_line(self._resolved)
        config, made, reader = _named(configs, table), self._on_line(decoder), self._reader()
        try:
            with self._destination.views() as views:
                yield config, self._on_line(partial(self._subject, config, _Means(reader, made, views, self._outside)))
        finally:
            reader.close()

    def _keep(self, config: TableConfig, run_id: str, report: TableReport) -> TableReport:
        kept = keep(self._destination, config.target, run_id, report)
        if (line := self._lines.get(config.source)) is not None:
            line.tally.recount()
        return kept

    def _subject(self, config: TableConfig, means: _Means, facts: TopicFacts | None = None) -> Subject:
        target, destination, o = config.target, self._destination, self._outside
        schemas = destination.schemas(target)
        schema = schemas[-1] if schemas else TableSchema(config.source, (), ())
        prepare = Prepare(config.topic, means.decoder, transforms.of(config), destination.capabilities)
        facts = facts or o.kafka.describe([config.topic]).get(config.topic)
        if facts is None:
            raise Unavailable(f"topic {config.topic} does not exist", hint="cdc register creates it")
        log = TopicLog(facts.log, means.sent, o.kafka, means.reader, prepare, o.placeholder)

        def view() -> AbstractContextManager[View]:
            return means.views(target, schema)

        def explained(found: Sequence[Found], mapped: Mapping[str, str]) -> Sequence[Difference]:
            if not found:
                return ()
            with view() as v:
                dates = [c.name for c in schema.columns if c.type.kind is Kind.DATE]
                return explain(found, log, v, mapped, dates, o.sources.format_position)

        def columns() -> Uncovered:
            return self._uncovered([config]).get(config.source, NOTHING)

        rows = destination.table_rows(target) or 0
        fenced = partial(self._fenced, config.source, means.fences)
        return Subject(target, schema, o.sources, view, log, fenced, rows, explained, steady_columns(schemas), columns)

    def _uncovered(self, configs: Sequence[TableConfig]) -> AllUncovered:
        """Of each table the columns that its target has not (Subject.uncovered)."""
        o = self._outside
        catalog = {t.table: t for t in o.sources.primary.tables(configs[0].source if len(configs) == 1 else None)}
        versions = self._each_on_line(lambda c: self._destination.schemas(c.target), configs)
        return {
            c.source: uncovered(catalog[c.source], found[-1], c.exclude, o.options, lambda: o.connect.config(o.names.connector) or {})
            for c, found in zip(configs, versions, strict=True)
            if found and c.source in catalog
        }

    def _fenced(self, table: TableId, fences: dict[int, float], position: int) -> bool:
        """Waits until the table is complete at the destination through ``position``; false where nobody merges, or it takes too long: all
        tables that wait for one position have one time for it."""
        line = self._lines.get(table)
        deadline = fences.setdefault(position, time.monotonic() + FENCE_SECONDS)
        while line is not None and line.state.name == "streaming":
            if (line.state.now.complete_through or 0) >= position:
                return True
            if time.monotonic() > deadline:
                return False
            self._hurry()
            time.sleep(0.05)
        return False


class _Means:
    """What the tables of one run share."""

    def __init__(self, reader: TopicReader, decoder: Decoder, views: Callable[[Target, TableSchema], View], outside: Outside) -> None:
        self.reader = reader
        self.decoder = decoder
        self.views = views
        self.sent = Sent(outside.sources.primary, outside.connect, outside.names)
        self.fences: dict[int, float] = {}
        """By position when waiting for it ends."""


def _is_loading(state: TableState) -> bool:
    """Whether the table's first rows, or those of a resync, are still on their way."""
    return state.state in ("waiting", "snapshotting") or bool(state.resync)


def _not_compared(config: TableConfig, status: Status, why: str, now: int) -> TableReport:
    return TableReport(str(config.source), str(config.target), str(config.target.mode), status, reason=why, started_us=now)


def asked(body: Mapping[str, Any]) -> tuple[Sequence[str], Options, str | None]:
    """Tables, options and the run to go on with, out of a request's body. Raises ConfigError for what is not known."""
    known = {f.name for f in fields(Options)}
    if unknown := sorted(set(body) - known - {"tables", "resume"}):
        raise ConfigError(f"a comparison has no option {', '.join(unknown)}", hint=f"options: {', '.join(sorted(known))}", code="usage")
    tables = body.get("tables", [])
    if not isinstance(tables, list) or not all(isinstance(t, str) for t in tables):
        raise ConfigError("tables is no list of names", hint='send {"tables": ["public.orders"]}', code="usage")
    options = Options(**{name: value for name, value in body.items() if name in known})
    if options.mode not in MODES:
        raise ConfigError(f"a comparison has no mode {options.mode!r}", hint=f"modes: {', '.join(MODES)}", code="usage")
    if options.mode == "pushdown" and (options.sample or options.max_rows_per_second):
        hint = "leave --mode out, or use --mode stream"
        raise ConfigError("a push-down has no sample and no rate: the databases read their tables by themselves", hint=hint, code="usage")
    return tables, options, body.get("resume")


def _named(configs: Sequence[TableConfig], text: str) -> TableConfig:
    found = next((c for c in configs if str(c.source) == text or f"{c.source.schema}.{c.source.name}" == text), None)
    if found is None:
        raise unknown_table(text, [c.source for c in configs])
    return found
