"""Why a table stops for what became of its topic, its connector or its target, each with the cure."""

from __future__ import annotations

from collections.abc import Collection

from cdc_service.config.resolve import TableConfig
from cdc_service.core.errors import CdcError, TableStopped, Unavailable


def drifted(config: TableConfig, found: Collection[str]) -> TableStopped:
    return TableStopped(
        f"{config.target} was changed by somebody: {'; '.join(found)}",
        state="drift",
        hint=f"change it back and then: cdc resume {config.source}; or load it anew: cdc resync {config.source}",
    )


def scattered(config: TableConfig, partitions: int) -> TableStopped:
    topic = config.topic
    return TableStopped(
        f"{config.source} has no key and its topic {topic} has {partitions} partitions, so nobody knows the order of its events",
        state="error",
        code="keyless_partitions",
        hint=f"kafka-topics.sh --delete --topic {topic}  # then: cdc register, and cdc resync {config.source}",
    )


def snapshotted_anew(config: TableConfig) -> TableStopped:
    return TableStopped(
        f"{config.source}: the connector began anew with a snapshot, so nobody knows what was deleted at the source in between",
        state="needs_resync",
        code="snapshotted_anew",
        hint=f"load it anew while it goes on: cdc resync {config.source}",
    )


def snapshot_failed(config: TableConfig, status: str) -> TableStopped:
    return TableStopped(
        f"{config.source}: the connector could not read its rows, several times ({status.replace('_', ' ').lower()}); its log says why",
        state="error",
        code="snapshot_failed",
        hint="cdc check names a right that is missing or a table that is gone, cdc register leaves out a generated column that came since;"
        f" then load it anew: cdc resync {config.source}",
    )


def source_went_back(config: TableConfig) -> TableStopped:
    return TableStopped(
        f"{config.source}: the source's log ends before what the connector has sent already: the source was restored, or failed over to a"
        " server that lagged",
        state="error",
        code="source_went_back",
        hint=f"cdc register --delete\ncdc register\ncdc resync {config.source}",
    )


def topic_gone(config: TableConfig, *, exists: bool) -> CdcError:
    topic = config.topic
    if not exists:
        return Unavailable(f"topic {topic} does not exist any more", hint="cdc register creates it")
    return TableStopped(
        f"{config.source}: topic {topic} was deleted and made again, so events between the two are missing",
        state="needs_resync",
        code="topic_made_again",
        hint=f"load it anew while it goes on: cdc resync {config.source}",
    )
