"""The running service out of its parts: its lock and API once, everything that is connected anew after each failure.

Promises: everything connected, or nothing; one process of a pipeline for each state_dir.
"""

from __future__ import annotations

import gc
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pyarrow as pa

from cdc_service.config import Config
from cdc_service.core.clock import RealClock
from cdc_service.core.errors import AlreadyRunning
from cdc_service.kafka.consumer import GroupConsumer
from cdc_service.kafka.reader import TopicTail
from cdc_service.pipeline.commands import Commands
from cdc_service.pipeline.merge_worker import beside
from cdc_service.pipeline.poll_loop import PollLoop
from cdc_service.pipeline.watermarks import Watermarks
from cdc_service.ports.destination import Destination
from cdc_service.ports.feed import Assignment
from cdc_service.runtime.monitor import Monitor
from cdc_service.runtime.schedule import Schedule
from cdc_service.runtime.service import Service, Works, alone
from cdc_service.runtime.wiring.capture import Horizon, Snapshots
from cdc_service.runtime.wiring.load_running import Loads
from cdc_service.runtime.wiring.parts import Parts, connector_settings, open_configured, open_parts, write_whole
from cdc_service.runtime.wiring.reconciling import open_reconciler
from cdc_service.runtime.wiring.tables import table_tasks
from connectors.formats.avro import InJson, Schemas
from connectors.formats.layout import schema_length

CONNECT_RETRY_SECONDS = 3.0
"""How long the running service repeats one question to Connect; its loop asks again by itself."""


MEMBER_FILE = "member"


@contextmanager
def open_service(config: Config) -> Iterator[Service]:
    """The service with its API; ``run`` makes it work. Raises AlreadyRunning where the pipeline runs already."""
    from cdc_service.api.server import Api

    if "jemalloc" in pa.supported_memory_backends():
        # Arrow's default (mimalloc) keeps more of what a batch leaves: 615 MB against 533 at the peak of a million events.
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    # What stands now stays. Each record is an object that Python's collector counts: by its defaults it would look for cycles among
    # thousands of them again and again.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    with alone(config.state_dir, config.pipeline):
        service = Service(config, lambda: _works(config), RealClock())
        with Api(service, config.api.listen, config.state_dir, config.api.token_file) as api:
            service.url = api.url
            yield service


def _works(config: Config) -> Works:
    """Everything connected, or nothing. Raises Unavailable while a server that is needed is away."""
    clock = RealClock()
    with ExitStack() as stack:
        p = stack.enter_context(open_parts(config, retry_seconds=CONNECT_RETRY_SECONDS))
        destination = open_configured(config)
        stack.callback(destination.close)
        destination.prepare()
        p.kafka.cluster_id()
        _refuse_company(p, destination)
        settings = connector_settings(p)
        tables = table_tasks(p, destination, settings)
        context = tables[0].context
        options = config.kafka.options.reveal()

        def join(assignment: Assignment) -> GroupConsumer:
            topics = [t.config.topic for t in tables]
            member = _member(config, topics)
            return GroupConsumer(config.kafka.bootstrap_servers, p.names.group, member, topics, options, assignment, schema_length)

        tail = TopicTail(config.kafka.bootstrap_servers, p.names.notification_topic, options)
        stack.callback(tail.close)
        notices = tail if p.registry is None else InJson(tail, Schemas(p.registry, clock.monotonic))
        watch = Monitor(
            p.names, {t.config.topic: t.source for t in tables}, p.connect, p.source, p.kafka, notices, clock, settings, p.options
        )
        line = PollLoop(
            tables, context, p.kafka, watch.identities, join, memory=config.limits.memory, clock=clock, submit=beside, ask=beside
        )
        stack.callback(line.close)
        progress = Watermarks(line, lambda: watch.facts, destination, Snapshots(p), p.source, clock)
        control = Commands(tables, context, Horizon(p), progress.begun, lambda: p.kafka.group_offsets(p.names.group))
        comparing = open_reconciler(p, destination, settings, stack)
        stack.callback(comparing.close)
        comparing.follow({t.source: t for t in tables}, line.ask, watch.hurry)
        schedule = Schedule([t.config for t in tables], comparing)
        stack.callback(schedule.stop)
        schedule.start()
        loads = Loads(config, clock) if any(t.load is not None for t in config.tables.values()) else None
        if loads is not None:
            stack.callback(loads.stop)
            loads.start()
        close = stack.pop_all().close
        return Works(
            line,
            progress,
            control,
            watch,
            p.source.parse_position,
            lambda sql, rows_max: destination.query(sql, rows_max=rows_max),
            comparing,
            close,
            loads,
        )


def _refuse_company(p: Parts, destination: Destination) -> None:
    """An embedded warehouse has one writer: another process of the pipeline (from another state_dir) would get a part of the changes."""
    if destination.capabilities.reads_while_writing:
        return
    own = _member(p.config, ()).rsplit("-", 1)[0]
    others = {name: host for name, host in p.kafka.members(p.names.group).items() if not name.startswith(own)}
    if others:
        raise AlreadyRunning(
            f"another process reads the changes of pipeline {p.config.pipeline}: {', '.join(sorted(set(others.values())))}",
            hint="it has another state_dir than this one: stop it, or give one of them another pipeline name. One that was killed is gone"
            " after 10 s",
        )


def _member(config: Config, topics: Sequence[str]) -> str:
    """This process's name in the consumer group: one for each state_dir, of which one process at a time holds the lock. With other topics
    it is another member: the broker gives one that comes back its old partitions, whatever it subscribes to."""
    path = config.state_dir / MEMBER_FILE
    if not path.exists():
        write_whole(path, f"{config.pipeline}-{uuid.uuid4().hex[:12]}")
    subscription = hashlib.sha256("\n".join(sorted(topics)).encode()).hexdigest()[:8]
    return f"{path.read_text(encoding='utf-8').strip()}-{subscription}"
