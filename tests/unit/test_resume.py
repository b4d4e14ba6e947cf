"""Where reading begins: followed exactly, or a named state with its cure; never earliest or latest by itself (I17, I18)."""

from __future__ import annotations

import pytest

from cdc_service.core.errors import TableStopped
from cdc_service.core.types import Checkpoint, LogId, TableId
from cdc_service.pipeline.resume import starts

TABLE = TableId("public", "t")
LOG = LogId("cluster", "shop.public.t", "topic-1")
ENDS = {0: (0, 100), 1: (20, 50)}


def checkpoint(partition: int, offset: int, log: LogId = LOG) -> Checkpoint:
    return Checkpoint(log, partition, offset, 1)


def test_i17_the_checkpoint_says_where() -> None:
    assert starts(TABLE, LOG, ENDS, [0, 1], [checkpoint(0, 7), checkpoint(1, 50)], None) == {0: 7, 1: 50}


def test_a_partition_that_was_added_is_read_from_its_beginning() -> None:
    assert starts(TABLE, LOG, {0: (0, 9), 1: (0, 9)}, [1], [checkpoint(0, 7)], None) == {1: 0}


@pytest.mark.parametrize("rows", [None, 0])
def test_a_new_table_is_read_from_the_beginning(rows: int | None) -> None:
    assert starts(TABLE, LOG, {0: (0, 9)}, [0], [], rows) == {0: 0}


def elsewhere(cluster: str = "cluster", topic: str = LOG.topic, topic_id: str = "topic-1") -> list[Checkpoint]:
    return [checkpoint(0, 7, LogId(cluster, topic, topic_id))]


ANEW, DECIDE = ("needs_resync", "cdc resync public.t"), ("needs_decision", "cdc adopt public.t")


@pytest.mark.parametrize(
    ("checkpoints", "rows", "cure", "code", "said"),
    [
        ([], 5, DECIDE, "rows_without_checkpoint", ["holds 5 rows", "no checkpoint"]),
        ([], 0, ANEW, "log_truncated", ["the beginning of the log", "partition 1: wanted 0, oldest 20"]),
        ([checkpoint(0, 7)], None, ANEW, "log_truncated", ["the beginning of the log", "partition 1: wanted 0, oldest 20"]),
        (
            [checkpoint(0, 7), checkpoint(1, 19)], None, ANEW, "log_truncated",
            ["events that were not applied", "partition 1: wanted 19, oldest 20"],
        ),
        ([checkpoint(0, 101), checkpoint(1, 30)], None, ANEW, "log_shrunk", ["ends at 100 in partition 0", "checkpoint 101"]),
        (elsewhere(topic_id="topic-0"), None, ANEW, "topic_made_again", ["topic shop.public.t was deleted and made again"]),
        (elsewhere(topic="old.public.t", topic_id="topic-0"), None, ANEW, "topic_made_again", ["belongs to topic old.public.t"]),
        (elsewhere(cluster="other"), None, ANEW, "topic_made_again", ["another Kafka cluster"]),
        (elsewhere(cluster="other", topic="old.public.t"), None, ANEW, "topic_made_again", ["another Kafka cluster"]),
    ],
)  # fmt: skip
def test_i17_i18_what_cannot_be_followed_stops_the_table_with_the_reason_and_the_cure(
    checkpoints: list[Checkpoint], rows: int | None, cure: tuple[str, str], code: str, said: list[str]
) -> None:
    with pytest.raises(TableStopped) as stopped:
        starts(TABLE, LOG, ENDS, [0, 1], checkpoints, rows)
    state, command = cure
    assert (stopped.value.state, stopped.value.code) == (state, code)
    assert command in stopped.value.hint
    assert stopped.value.message.startswith("public.t: ")
    assert [one for one in said if one not in stopped.value.message] == []
