"""The watcher: which server is named when several do not answer, and when the source was last seen where the connector is."""

from __future__ import annotations

import socket
import threading
from typing import Any, cast

import pytest

from cdc_service.core.clock import RealClock
from cdc_service.core.identity import Identities
from cdc_service.core.names import Names
from cdc_service.core.types import TableId
from cdc_service.kafka import admin as kafka
from cdc_service.runtime.monitor import SIGHTINGS_MAX, Hold, Monitor, Sightings
from connectors.debezium.connect import KafkaConnect
from deploy.local.stack import HOST, free_ports


def test_kafka_is_named_when_connect_does_not_answer_because_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker takes requests while its broker is away, and answers none of them."""
    monkeypatch.setattr(kafka, "ANSWER_SECONDS", 1.0)
    nobody = free_ports(["nobody"])["nobody"]
    with socket.create_server((HOST, 0)) as silent:
        connect = KafkaConnect(f"http://{HOST}:{silent.getsockname()[1]}", answer_seconds=1.0, retry_seconds=0.0)
        unasked = cast(Any, None)
        admin = kafka.Admin(f"{HOST}:{nobody}", {})
        watch = Monitor(Names("shop", "shop"), {}, connect, unasked, admin, unasked, RealClock(), {}, {})
        watch.look()
        connect.close()
    assert watch.facts is not None
    assert watch.facts.trouble is not None
    assert watch.facts.trouble.message.startswith(f"Kafka does not answer at {HOST}:{nobody}")


def test_who_waits_for_a_look_gets_one_soon_however_seldom_the_watcher_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_service.runtime.monitor.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("cdc_service.runtime.monitor.LOOK_SECONDS_EACH", 600.0)
    monkeypatch.setattr("cdc_service.runtime.monitor.LOOK_SECONDS_MAX", 600.0)
    unasked, looks = cast(Any, None), [threading.Event() for _ in range(3)]

    class Watch(Monitor):
        def look(self) -> None:
            next(one for one in looks if not one.is_set()).set()

    watch = Watch(Names("shop", "shop"), {"t": TableId("public", "t")}, unasked, unasked, unasked, unasked, RealClock(), {}, {})
    watch.start()
    for look in looks:
        assert look.wait(20), "the next look is ten minutes away"
        watch.hurry()
    watch.stop()


def test_i29_the_source_stood_at_a_position_when_it_was_last_seen_at_or_before_it() -> None:
    seen = Sightings()
    assert seen.reached(100) is None
    seen.add(100, 1)
    seen.add(200, 2)
    seen.add(200, 3)  # Nothing was written meanwhile.
    assert seen.reached(99) is None
    assert seen.reached(100) == 1
    assert seen.reached(199) == 1
    assert seen.reached(200) == 3
    assert seen.reached(10**9) == 3


def test_i29_a_connector_that_stands_still_is_as_old_as_its_position() -> None:
    seen = Sightings()
    seen.add(100, 1)
    found = []
    for second in range(2, 10 * SIGHTINGS_MAX):
        seen.add(100 + second, second)
        found.append(seen.reached(100))
    assert set(found) == {1}


def test_i29_far_behind_the_time_is_coarse_and_never_too_late() -> None:
    seen, most = Sightings(), 20 * SIGHTINGS_MAX
    for second in range(most):
        seen.add(second, second)
    assert len(seen._seen) <= SIGHTINGS_MAX + 1
    for position in range(0, most, 97):
        told = seen.reached(position)
        assert told is not None
        assert told <= position
    assert seen.reached(most) == most - 1


def test_i29_of_a_source_that_was_set_back_no_later_position_counts() -> None:
    """Restored from a backup, it gives positions again that it had before: they are others."""
    seen = Sightings()
    for position in (100, 200, 300):
        seen.add(position, position)
    seen.add(150, 1_000)
    assert seen.reached(300) == 1_000
    assert seen.reached(150) == 1_000
    seen.add(250, 2_000)
    assert seen.reached(249) == 1_000
    assert seen.reached(250) == 2_000
    assert seen.reached(120) is None, "what was passed is forgotten: nobody knows, and nothing is told"


@pytest.mark.parametrize(
    ("looks", "position", "told"),
    [
        ([], 50, None),
        ([(100, True), (120, True)], 110, None),  # At work the slot is told a moment before Kafka Connect has it.
        ([(100, True), (100, False)], 100, None),
        ([(100, False), (130, False)], 100, 130),  # Moved while the connector was paused.
        ([(100, False), (130, True)], 100, 130),  # The connector is back already.
        ([(100, False), (130, True)], 140, None),  # It was at work between the two looks, and came there by itself.
        ([(100, False), (0, False)], 100, None),  # Gone: that is told elsewhere.
    ],
)
def test_i28_a_slot_that_was_moved_while_nobody_read_it_is_noticed(looks: list[tuple[int, bool]], position: int, told: int | None) -> None:
    slot = Hold()
    for sent_from, is_read in looks:
        slot.add(Identities(200, {}, frozenset(), sent_from, is_read))
    assert slot.moved_to(position) == told
