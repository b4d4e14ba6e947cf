"""The part that compares tables with their source, beside a running service or without one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from cdc_service.config import Config
from cdc_service.kafka.reader import TopicReader
from cdc_service.ports.destination import Destination
from cdc_service.runtime.comparing.change_log import Sources
from cdc_service.runtime.comparing.reconciler import Outside, Reconciler
from cdc_service.runtime.service import alone
from cdc_service.runtime.wiring.parts import Parts, connector_settings, open_parts, prepared_destination
from cdc_service.runtime.wiring.tables import resolved_tables
from connectors.sources import open_source


def open_reconciler(p: Parts, destination: Destination, connector: Mapping[str, str], stack: ExitStack) -> Reconciler:
    """What compares tables with their source, on the destination of the line or on one that nothing else uses."""
    config = p.config
    reads = p.source
    if config.source.replica_url is not None:
        reads = open_source(config.source.replica_url.reveal())
        stack.callback(reads.close)
    placeholder = connector.get("unavailable.value.placeholder", "__debezium_unavailable_value")
    options = config.kafka.options.reveal()
    return Reconciler(
        config.pipeline,
        destination,
        lambda: resolved_tables(p, destination, connector),
        lambda: TopicReader(config.kafka.bootstrap_servers, options),
        Outside(Sources(p.source, reads), p.connect, p.names, p.kafka, placeholder, config.connect.options.reveal()),
    )


@contextmanager
def comparing(config: Config) -> Iterator[Reconciler]:
    """What compares, explains and repairs tables while no service runs."""
    with (
        alone(config.state_dir, config.pipeline),
        open_parts(config) as p,
        prepared_destination(config) as destination,
        ExitStack() as stack,
    ):
        made = open_reconciler(p, destination, connector_settings(p), stack)
        stack.callback(made.close)
        yield made
