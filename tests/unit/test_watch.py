"""The watcher: which server is named when several do not answer."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from cdc_service.consume import kafka
from cdc_service.core.clock import RealClock
from cdc_service.watch import Watch
from connectors.connect import KafkaConnect
from connectors.protocol import Names
from deploy.local.stack import HOST, free_ports


def test_kafka_is_named_when_connect_does_not_answer_because_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker takes requests while its broker is away, and answers none of them."""
    monkeypatch.setattr(kafka, "ANSWER_SECONDS", 1.0)
    nobody = free_ports(["nobody"])["nobody"]
    with socket.create_server((HOST, 0)) as silent:
        connect = KafkaConnect(f"http://{HOST}:{silent.getsockname()[1]}", answer_seconds=1.0, retry_seconds=0.0)
        unasked = cast(Any, None)
        admin = kafka.Admin(f"{HOST}:{nobody}", {})
        watch = Watch(Names("shop", "shop"), {}, connect, unasked, admin, unasked, RealClock(), {})
        watch.look()
        connect.close()
    assert watch.facts is not None
    assert watch.facts.trouble is not None
    assert watch.facts.trouble.message.startswith(f"Kafka does not answer at {HOST}:{nobody}")
