"""Every name that a pipeline takes at its source, in Connect and in Kafka: one spelling for registration, checks and the service."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cdc_service.core.types import TableId


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one pipeline; ``Config.names`` makes it."""

    pipeline: str
    topic_prefix: str

    @property
    def connector(self) -> str:
        return f"cdc_{self.pipeline}"

    @property
    def at_source(self) -> str:
        """What the pipeline makes at its source is called so."""
        return self.connector

    @property
    def group(self) -> str:
        return self.connector

    @property
    def signal_table(self) -> str:
        return f"{self.connector}_signal"

    @property
    def signal_topic(self) -> str:
        return f"{self.topic_prefix}.cdc-signal"

    @property
    def notification_topic(self) -> str:
        return f"{self.topic_prefix}.cdc-notification"

    @property
    def heartbeat_topic(self) -> str:
        return f"__debezium-heartbeat.{self.topic_prefix}"

    @property
    def message_topic(self) -> str:
        return f"{self.topic_prefix}.message"

    @property
    def transaction_topic(self) -> str:
        return f"{self.topic_prefix}.transaction"

    def topic(self, table: TableId) -> str:
        """The topic of a table's events. Debezium writes ``_`` for each UTF-16 unit that Kafka does not allow in a name, so two tables may
        give one topic; who registers them must refuse that."""
        whole = f"{self.topic_prefix}.{table.schema}.{table.name}"
        return re.sub(r"[^A-Za-z0-9._-]", lambda found: "_" * (len(found[0].encode("utf-16-le")) // 2), whole)
