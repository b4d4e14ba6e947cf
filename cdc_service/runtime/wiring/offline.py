"""What is told and done while no service runs: the status, queries, a person's deeds on tables and on parked records.

Promises: what changes anything holds the pipeline's lock, so that no service starts meanwhile; the next run goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from cdc_service.config import Config
from cdc_service.core.clock import RealClock
from cdc_service.core.errors import CdcError
from cdc_service.pipeline import quarantine as parked
from cdc_service.pipeline.commands import Commands
from cdc_service.pipeline.partitions import Part
from cdc_service.pipeline.table_task import TableTask
from cdc_service.pipeline.watermarks import signal_id
from cdc_service.ports.capture import Facts
from cdc_service.ports.destination import Destination
from cdc_service.runtime.service import alone, find_table, tables_of
from cdc_service.runtime.status import document, waiting_for
from cdc_service.runtime.wiring import loading
from cdc_service.runtime.wiring.capture import Horizon, Snapshots
from cdc_service.runtime.wiring.parts import Parts, connector_settings, open_configured, open_parts, prepared_destination
from cdc_service.runtime.wiring.tables import table_tasks


def query(config: Config, sql: str, *, rows_max: int) -> pa.Table:
    """Reads the warehouse itself; for when no service runs."""
    destination = open_configured(config)
    try:
        return destination.query(sql, rows_max=rows_max)
    finally:
        destination.close()


def status(config: Config) -> dict[str, Any]:
    """The status document out of destination, Kafka and Connect; what does not answer is left out."""
    clock = RealClock()
    if not config.captures:
        with prepared_destination(config) as destination:
            nobody = {"running": False, "pid": None, "api": None}
            return document(config, nobody, None, (), clock.wall_us(), loading.status(config, destination))
    with open_parts(config, retry_seconds=0.0) as p, prepared_destination(config) as destination:
        tables = table_tasks(p, destination, None)
        facts = _facts_now(p, [t.config.topic for t in tables], clock.wall_us())
        for table in tables:
            _fill(table, destination, facts)
        service: dict[str, Any] = {"running": False, "pid": None, "api": None}
        if facts.trouble is not None:
            service["waiting_for"] = waiting_for(facts.trouble)
        return document(config, service, facts, tables, clock.wall_us(), loading.status(config, destination))


def act(config: Config, action: str, table: str, **body: Any) -> dict[str, Any]:
    """A person's deed on one table while no service runs; the next run goes on from there."""
    if (found := loading.act(config, action, table)) is not None:
        return found
    with _control(config) as (control, tables):
        return control.act(action, find_table(tables, table), body)


def resume_all(config: Config) -> dict[str, Any]:
    """Lets every table go on that stands still, while no service runs."""
    with _control(config) as (control, _):
        return control.resume_all()


@contextmanager
def _control(config: Config) -> Iterator[tuple[Commands, list[TableTask]]]:
    with alone(config.state_dir, config.pipeline), open_parts(config) as p, prepared_destination(config) as destination:
        tables = table_tasks(p, destination, None)
        snapshots = Snapshots(p)

        def begun(table: TableTask) -> None:
            snapshots.ask(table.source, signal_id(table))

        yield Commands(tables, tables[0].context, Horizon(p), begun, lambda: p.kafka.group_offsets(p.names.group)), tables


def quarantine(config: Config, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, shows, replays or discards parked records while no service runs (pipeline.quarantine)."""
    if not config.captures or loading.is_loaded(config, body.get("table")):
        return loading.quarantine(config, action, body)
    with alone(config.state_dir, config.pipeline), open_parts(config) as p, prepared_destination(config) as destination:
        # To read a record one has to know how the connector wrote it.
        tables = table_tasks(p, destination, None if action == "list" else connector_settings(p))
        return parked.do(action, tables_of(tables, action, body), body)


def _facts_now(p: Parts, topics: Sequence[str], at_us: int) -> Facts:
    found: dict[str, Any] = {}
    for name, ask in (
        ("connector", lambda: p.connect.status(p.names.connector)),
        ("hold", lambda: p.source.hold(p.names)),
        ("topics", lambda: p.kafka.describe(topics)),
    ):
        try:
            found[name] = ask()
        except CdcError as error:
            found["trouble"] = error
    return Facts(at_us, connector_missing="connector" in found and found["connector"] is None, **found)


def _fill(table: TableTask, destination: Destination, facts: Facts) -> None:
    """What a table shows without being opened."""
    table.state.now = destination.load_state(table.target)
    topic = facts.topics.get(table.config.topic)
    for c in destination.checkpoints(table.target):
        if topic is None or c.log == topic.log:
            table.partitions.own[c.partition] = Part(c.next_offset, c.epoch, c.next_offset)
    table.partitions.ends = {} if topic is None else {p: high for p, (_, high) in topic.ends.items()}
    table.recall()
    table.tally.rows = destination.table_rows(table.target)
