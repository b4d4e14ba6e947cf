"""The watcher: a thread that asks Connect, Kafka and the source once a second how far they are, and remembers the answers.

Promises: each answer is one immutable ``Facts``; in it, everything that the source committed up to ``position`` lies below the ends of
the topics, since the ends were read after it. A server that does not answer leaves the facts older, never wrong, and stops nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from cdc_service.core.clock import Clock
from cdc_service.core.errors import CdcError
from cdc_service.core.identity import Identities
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.ports.capture import ConnectorProgress, Facts, Scans
from cdc_service.ports.events import EventModel
from cdc_service.ports.feed import Topics
from cdc_service.ports.source import Source
from connectors.debezium.connect import KafkaConnect
from connectors.debezium.notifications import Notices, skipped

LOOK_SECONDS, LOOK_SECONDS_EACH, LOOK_SECONDS_MAX = 1.0, 0.015, 15.0
"""How often all is asked: so often, or so much for each table where there are many, since a look at a thousand takes a fifth of a second of
a processor; but not more seldom than the last."""
REST_FACTOR = 2.0
"""So much more seldom where there are many and no topic has got a record since the last look."""
SLOW_SECONDS = 5.0
"""How often the connector's state and the source's log are looked at."""
IDENTITY_SHARE, IDENTITY_SECONDS_MAX = 0.04, 5.0
"""The share of the time that asking for the tables' identities may take, and how long it waits at most to be asked again."""
SIGHTINGS_MAX = 1_000


MEANING = (
    "unavailable.value.placeholder",
    "value.converter",
    "value.converter.schemas.enable",
    "value.converter.ignore.default.for.nullables",
    "value.converter.replace.null.with.default",
    "decimal.handling.mode",
    "time.precision.mode",
    "interval.handling.mode",
    "binary.handling.mode",
)
"""The settings of every connector that decide what its events mean."""


def meaning(config: Mapping[str, str], model: EventModel) -> dict[str, str]:
    """Those settings of the connector that decide what its events mean."""
    return {name: config[name] for name in (*MEANING, *model.settings) if name in config}


class Kafka(Topics, Protocol):
    """What the watcher asks of Kafka beside (kafka.admin.Admin)."""

    def cluster_id(self) -> str: ...

    def send(self, topic: str, records: Iterable[tuple[str, bytes]]) -> None: ...


class Tail(Protocol):
    """The notification topic (kafka.reader.TopicTail)."""

    def read(self) -> list[bytes]: ...


class Sightings:
    """Where the source's log ended, and when."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] = []

    def add(self, position: int, at_us: int) -> None:
        """The log ended at ``position`` at a moment not before ``at_us``."""
        if self._seen and position <= self._seen[-1][0]:
            self._seen = [one for one in self._seen if one[0] < position]  # Nothing was written since; or the source is another one.
        self._seen.append((position, at_us))
        if len(self._seen) > SIGHTINGS_MAX:
            del self._seen[1:-1:2]  # The connector is far behind: coarser will do.

    def reached(self, position: int) -> int | None:
        """The latest moment at which the log ended at or before ``position``; earlier ones are forgotten."""
        past = [one for one in self._seen if one[0] <= position]
        if not past:
            return None
        del self._seen[: len(past) - 1]
        return past[-1][1]


class Hold:
    """Notices that what holds the log was moved, or made anew, while nobody read it: the connector goes on from there without a word.

    Only then does the hold stand before the connector's own offset. At work the connector tells it what it has sent a moment before Kafka
    Connect has that, so a hold that was read by somebody at both looks before tells nothing.
    """

    def __init__(self) -> None:
        self._looks = [(0, True), (0, True)]

    def add(self, found: Identities) -> None:
        self._looks = [self._looks[1], (found.sent_from, found.is_read)]

    def moved_to(self, position: int) -> int | None:
        """From where the log is sent, where a connector that is at ``position``, asked after the last look, has not come there."""
        (_, before), (sent_from, is_read) = self._looks
        return sent_from if position < sent_from and not (before and is_read) else None


class Monitor:
    """``start`` begins looking; ``facts`` is the latest answer, replaced as a whole."""

    def __init__(
        self,
        names: Names,
        topics: Mapping[str, TableId],
        connect: KafkaConnect,
        source: Source,
        kafka: Kafka,
        tail: Tail,
        clock: Clock,
        settings: Mapping[str, str],
        options: Mapping[str, str],
    ) -> None:
        """``settings`` are what events mean by the connector's configuration as it was opened, ``options`` what the pipeline's own
        configuration says of the connector."""
        self.facts: Facts | None = None
        self._options = options
        self._sightings = Sightings()
        self._hold = Hold()
        self._unsaid: list[tuple[str, bytes]] = []
        self._identities_at = float("-inf")
        self._connector: Mapping[str, str] | None = None
        self._names = names
        self._topics = topics
        self._connect = connect
        self._source = source
        self._kafka = kafka
        self._tail = tail
        self._notices = Notices()
        self._clock = clock
        self._settings = settings
        self._slow_at = float("-inf")
        self._done = threading.Event()
        self._hurried = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Somebody waits for the next look: it is not later than where there are few tables. From any thread."""
        self._hurried = True

    def stop(self) -> None:
        """Lets the thread end; a question under way is left to its own time limit."""
        self._done.set()

    def _run(self) -> None:
        said, wait = "", LOOK_SECONDS
        while self._rested(wait):
            wait, before = min(max(LOOK_SECONDS, LOOK_SECONDS_EACH * len(self._topics)), LOOK_SECONDS_MAX), self.facts
            try:
                self.look()
            except RuntimeError:
                if self._done.is_set():
                    return  # What it asked was closed meanwhile.
                raise
            if wait > LOOK_SECONDS and before is not None and self.facts is not None and before.topics == self.facts.topics:
                wait *= REST_FACTOR
            trouble = self.facts.trouble if self.facts else None
            if trouble is not None and trouble.message != said:
                structlog.get_logger().warning("a server does not answer", why=trouble.message, cure=trouble.hint)
            said = trouble.message if trouble is not None else ""

    def _rested(self, seconds: float) -> bool:
        """False where the thread has to end."""
        while seconds > 0 and not self._done.wait(min(seconds, LOOK_SECONDS)):
            seconds = 0.0 if self._hurried else seconds - LOOK_SECONDS
        self._hurried = False
        return not self._done.is_set()

    def look(self) -> None:
        """Asks all once."""
        old = self.facts or Facts(0)
        try:
            facts = self._look(old)
        except CdcError as error:
            facts = Facts(
                self._clock.wall_us(),
                old.at,
                old.connector,
                old.hold,
                topics=old.topics,
                scans=old.scans,
                trouble=error,
                snapshot=old.snapshot,
            )
        self.facts = facts

    def _look(self, old: Facts) -> Facts:
        at_us, at, name = self._clock.wall_us(), self._clock.monotonic(), self._names.connector
        self._kafka.cluster_id()  # First, so that it is named where it is away: Connect answers nothing then, and would get the blame.
        self._connector = config = self._connect.config(name)
        progress = self._source.progress(self._connect.offsets(name))
        topics = self._kafka.describe(list(self._topics), lows=False)
        scans = self._follow(progress)
        connector, hold, trouble = old.connector, old.hold, None
        identities = None
        try:
            identities = self._identities(config)
            if self._clock.monotonic() - self._slow_at >= SLOW_SECONDS:
                connector = self._connect.status(name)
                hold = self._source.hold(self._names)
                self._slow_at = self._clock.monotonic()
        except CdcError as error:
            trouble = error
        return Facts(
            at_us,
            at,
            connector,
            hold,
            progress.position,
            None if progress.position is None else self._sightings.reached(progress.position),
            progress.snapshot,
            progress.incremental,
            topics,
            scans,
            identities,
            trouble,
            connector_missing=config is None,
            connector_differs=config is None or meaning(config, self._source.events) != self._settings,
        )

    def identities(self, tables: Sequence[TableId]) -> Identities:
        """What the source says of these tables now, and of how the connector gets their changes as it was at the last look. From any
        thread. Raises what the source and Connect raise."""
        if self._connector is None:
            self._connector = self._connect.config(self._names.connector)
        return self._source.identities(tables, self._names, self._connector, self._options)

    def _identities(self, connector: Mapping[str, str] | None) -> Identities | None:
        """Those of all tables, unless asking for them took so long that it has to wait."""
        began, at_us = self._clock.monotonic(), self._clock.wall_us()
        if connector is None or began < self._identities_at:
            return None
        found = self._source.identities(list(self._topics.values()), self._names, connector, self._options)
        ended = self._clock.monotonic()
        self._identities_at = began + min((ended - began) / IDENTITY_SHARE, IDENTITY_SECONDS_MAX)
        self._sightings.add(found.position, at_us)
        self._hold.add(found)
        return found

    def _follow(self, progress: ConnectorProgress) -> Scans:
        """The notifications; where what holds the log was moved one more is written, for all processes and for whoever starts later."""
        scans = self._notices.add(self._tail.read())
        to = None if progress.position is None or progress.snapshot else self._hold.moved_to(progress.position)
        if to is not None and to > scans.skipped:
            why = "what holds the log was moved, or made anew, while nobody read it"
            structlog.get_logger().warning("every table is read anew", why=why, connector_at=progress.position, hold_at=to)
            record = skipped(f"moved-{to}", to, self._clock.wall_us() // 1000)
            self._unsaid.append(record)
            scans = self._notices.add([record[1]])
        if self._unsaid:
            self._kafka.send(self._names.notification_topic, self._unsaid)
            self._unsaid = []
        return scans
