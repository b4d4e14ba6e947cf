"""Where reading begins: followed exactly, or a named state with its cure; never earliest or latest by itself (I17, I18)."""

from __future__ import annotations

import pytest

from cdc_service.checkpoint.resume import starts
from cdc_service.core.errors import TableStopped
from cdc_service.core.types import Checkpoint, LogId, TableId

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


@pytest.mark.parametrize(
    ("checkpoints", "rows", "state", "code"),
    [
        ([], 5, "needs_decision", "needs_decision"),
        ([], 0, "needs_resync", "log_truncated"),  # partition 1 begins at 20
        ([checkpoint(0, 7), checkpoint(1, 19)], None, "needs_resync", "log_truncated"),
        ([checkpoint(0, 101), checkpoint(1, 30)], None, "needs_resync", "log_shrunk"),
        ([checkpoint(0, 7, LogId("cluster", LOG.topic, "topic-0"))], None, "needs_resync", "topic_made_again"),
        ([checkpoint(0, 7, LogId("other", LOG.topic, "topic-1"))], None, "needs_resync", "topic_made_again"),
    ],
)
def test_i17_i18_what_cannot_be_followed_stops_the_table(checkpoints: list[Checkpoint], rows: int | None, state: str, code: str) -> None:
    with pytest.raises(TableStopped) as stopped:
        starts(TABLE, LOG, ENDS, [0, 1], checkpoints, rows)
    assert stopped.value.state == state
    assert "cdc " in stopped.value.hint
    assert stopped.value.code in (code, "rows_without_checkpoint")
