"""The status document as Prometheus metrics. Nothing is counted here: a sample is a value of the document, and an absent value has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("applied", "folded", "duplicate", "parked", "filtered")
STATES = (
    "waiting", "snapshotting", "streaming", "paused", "schema_stopped", "quarantine_stopped", "drift",
    "needs_resync", "needs_decision", "error",
)  # fmt: skip
DECIDED = ("replayed", "discarded", "superseded")
WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")


class _Family(NamedTuple):
    """A metric: its help, with the unit, and the labels behind ``pipeline``. A name that ends in _total is a counter's."""

    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Mapping[str, _Family] = {
    "cdc_service_up": _Family("1 while the service runs, else 0."),
    "cdc_ready": _Family("1 while every server answers and events are merged, else 0."),
    "cdc_buffered_bytes": _Family("Bytes of events that are held in memory."),
    "cdc_merges_total": _Family("Merges since the service started."),
    "cdc_merge_seconds_total": _Family("Seconds spent in merges since the service started."),
    "cdc_fetched_records_total": _Family("Records fetched from Kafka since the service started."),
    "cdc_connector_up": _Family("1 while Kafka Connect says that the connector is RUNNING, else 0.", ("connector",)),
    "cdc_slot_retained_bytes": _Family("Bytes of log that the source keeps for the replication slot.", ("slot",)),
    "cdc_slot_wal_status": _Family("1 for the slot's wal_status, 0 for the others.", ("slot", "wal_status")),
    "cdc_table_state": _Family("1 for the table's state, 0 for the others.", ("table", "state")),
    "cdc_table_rows": _Family("Rows of the target.", ("table",)),
    "cdc_events_total": _Family("Change events by what became of them: the sum is what was consumed.", ("table", "outcome")),
    "cdc_lag_events": _Family("Events in Kafka that are not yet applied, counted in offsets.", ("table",)),
    "cdc_lag_seconds": _Family("Seconds that the target is behind what is in Kafka.", ("table",)),
    "cdc_partition_next_offset": _Family("Offset of the next record to apply.", ("table", "partition")),
    "cdc_partition_end_offset": _Family("Offset of the next record that Kafka will take.", ("table", "partition")),
    "cdc_complete_through_position": _Family(
        "Source position (a number of the log, as the source counts it) up to which the target is complete; rounded above 2^53.", ("table",)
    ),
    "cdc_source_commit_timestamp_seconds": _Family("Unix time in seconds of the newest source commit that was applied.", ("table",)),
    "cdc_parked_waiting": _Family("Events in quarantine that nobody has decided on.", ("table",)),
    "cdc_quarantine_waiting": _Family("The same by the code of what ails them.", ("table", "code")),
    "cdc_quarantine_decided": _Family("Records that left the quarantine: replayed, discarded or superseded.", ("table", "state")),
    "cdc_complete_timestamp_seconds": _Family("Unix time in seconds at which the target was known to be complete.", ("table",)),
    "cdc_synced_timestamp_seconds": _Family("Unix time in seconds of the last merge.", ("table",)),
    "cdc_synced_age_seconds": _Family("Seconds since the last merge.", ("table",)),
}


class _Sample(NamedTuple):
    name: str
    labels: tuple[str, ...]
    value: Any


def render(document: Mapping[str, Any]) -> tuple[bytes, str]:
    """Prometheus text of the status document (the form that contract gives it), and its content type."""
    registry = CollectorRegistry()
    registry.register(_Samples(document))
    return generate_latest(registry), CONTENT_TYPE


class _Samples(Collector):
    """The document's samples, by metric."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def collect(self) -> Iterable[Metric]:
        made: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, labels, value in _samples(self._document):
            if value is None:
                continue
            if name not in made:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                made[name] = kind(name, FAMILIES[name].help, labels=("pipeline", *FAMILIES[name].labels))
            made[name].add_metric((self._document["pipeline"], *labels), float(value))
        return [made[name] for name in FAMILIES if name in made]


def _samples(document: Mapping[str, Any]) -> Iterator[_Sample]:
    service, connector = document.get("service") or {}, document.get("connector") or {}
    yield _Sample("cdc_service_up", (), service.get("running"))
    yield _Sample("cdc_ready", (), service.get("ready"))
    yield _Sample("cdc_buffered_bytes", (), service.get("buffered_bytes"))
    yield _Sample("cdc_merges_total", (), service.get("merges"))
    yield _Sample("cdc_merge_seconds_total", (), service.get("merge_seconds"))
    yield _Sample("cdc_fetched_records_total", (), service.get("fetched_records"))
    if connector.get("name") and connector.get("state"):
        yield _Sample("cdc_connector_up", (connector["name"],), str(connector["state"]).upper() == "RUNNING")
    if slot := connector.get("slot"):
        yield _Sample("cdc_slot_retained_bytes", (slot,), connector.get("retained_bytes"))
        yield from _one_hot("cdc_slot_wal_status", (slot,), connector.get("wal_status"), WAL_STATUSES)
    at = _seconds(document.get("at"))
    for table in document.get("tables") or ():
        yield from _table_samples(table, at)


def _table_samples(table: Mapping[str, Any], at: float | None) -> Iterator[_Sample]:
    labels = (table["source"],)
    synced = _seconds(table.get("synced_at"))
    yield from _one_hot("cdc_table_state", labels, table.get("state"), STATES)
    yield _Sample("cdc_table_rows", labels, table.get("rows"))
    for outcome in OUTCOMES:
        yield _Sample("cdc_events_total", (*labels, outcome), table.get(outcome))
    yield _Sample("cdc_lag_events", labels, table.get("lag_events"))
    yield _Sample("cdc_lag_seconds", labels, table.get("lag_seconds"))
    for partition in table.get("partitions") or ():
        yield _Sample("cdc_partition_next_offset", (*labels, str(partition["partition"])), partition.get("next_offset"))
        yield _Sample("cdc_partition_end_offset", (*labels, str(partition["partition"])), partition.get("end_offset"))
    yield _Sample("cdc_complete_through_position", labels, _position(table.get("complete_through")))
    yield _Sample("cdc_source_commit_timestamp_seconds", labels, _seconds(table.get("source_commit_at")))
    yield _Sample("cdc_parked_waiting", labels, table.get("parked_waiting"))
    quarantine = table.get("quarantine") or {}
    for code, records in (quarantine.get("waiting") or {}).items():
        yield _Sample("cdc_quarantine_waiting", (*labels, code), records)
    for state in DECIDED:
        yield _Sample("cdc_quarantine_decided", (*labels, state), (quarantine.get("decided") or {}).get(state, 0) if quarantine else None)
    yield _Sample("cdc_complete_timestamp_seconds", labels, _seconds(table.get("complete_at")))
    yield _Sample("cdc_synced_timestamp_seconds", labels, synced)
    yield _Sample("cdc_synced_age_seconds", labels, None if at is None or synced is None else max(0.0, at - synced))


def _one_hot(name: str, labels: tuple[str, ...], value: str | None, known: tuple[str, ...]) -> Iterator[_Sample]:
    """A sample for each known value, and for the one that is there even if it is not known."""
    if value:
        for choice in known if value in known else (*known, value):
            yield _Sample(name, (*labels, choice), choice == value)


def _position(text: Any) -> int | None:
    """Positions that are one number; a file and an offset in it are none."""
    return int(text) if text is not None and str(text).isdecimal() else None


def _seconds(text: Any) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()
