"""A comparison of two tables at which nothing moves: the log holds no event, so each nominated key is judged at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from cdc_service.core.types import LogId, TableSchema, Target
from cdc_service.ports.destination import Destination
from cdc_service.ports.source import Source
from cdc_service.runtime.comparing.change_log import Sources
from reconcile.judge import Found
from reconcile.protocol import LogEvent
from reconcile.report.document import Difference, TableReport
from reconcile.run import Options, Progress, Subject, reconcile


class StillLog:
    """A log without events."""

    id = LogId("cluster", "t", "topic")
    placeholder = "__unsent"

    def ends_after(self, position: int, seconds: float) -> Mapping[int, int] | None:
        return {}

    def between(self, keys: Collection[str], start: Mapping[int, int], stop: Mapping[int, int]) -> Mapping[str, Sequence[LogEvent]]:
        return {}

    def history(self, keys: Collection[str]) -> tuple[Mapping[str, Sequence[LogEvent]], bool]:
        return {}, True

    def newest(self, keys: Collection[str], seconds: float) -> tuple[Mapping[str, Sequence[LogEvent]], int | None]:
        return {}, None


def compare_still(
    opened: Source,
    destination: Destination,
    target: Target,
    schema: TableSchema,
    options: Options,
    rows_expected: int = 0,
    *,
    reads: Source | None = None,
    mapped: Callable[[Mapping[str, str]], None] | None = None,
) -> TableReport:
    """``reads`` is a replica; ``mapped`` is told which columns differ nearly everywhere."""

    def explain(found: Sequence[Found], columns: Mapping[str, str]) -> Sequence[Difference]:
        if mapped is not None:
            mapped(columns)
        return [Difference(f.key, f.kind, f.columns, f.source, f.destination, f.position, count=f.count) for f in found]

    source, view = Sources(opened, reads or opened), lambda: destination.view(target, schema)
    subject = Subject(target, schema, source, view, StillLog(), lambda position: True, rows_expected, explain, frozenset(schema.names))
    return reconcile(subject, options, Progress(), 1)
