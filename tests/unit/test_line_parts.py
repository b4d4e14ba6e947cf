"""The parts of a table's task that need no table: its buffer, and its goals. (The breaker stops tables in test_line_circuits.)"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc_service.config.models import Flush
from cdc_service.core.types import ChangeBatch, Op
from cdc_service.pipeline.buffer import Buffer
from cdc_service.pipeline.goals import Goal, Goals
from tests.conformance.harness import ITEMS
from tests.property.test_merge_logs import Event, batch

FLUSH = Flush(rows=5, bytes=10**9, seconds=2.0)


class Clock:
    at = 0.0

    def monotonic(self) -> float:
        return self.at

    def wall_us(self) -> int:
        return 0

    def chance(self) -> float:
        return 0.0


def records(start: int, count: int) -> ChangeBatch:
    return batch(ITEMS, {0: (start, [Event(Op.CREATE, 0, 100 + n, n, "x", "y") for n in range(start, start + count)])})


def starts(batches: list[ChangeBatch]) -> list[int]:
    return [span.start for b in batches for span in b.spans]


@given(st.lists(st.one_of(st.integers(1, 3), st.sampled_from(["merge all", "merge one", "fail"])), max_size=12))
def test_a_buffer_loses_nothing_and_keeps_the_order_of_the_log(moves: list[int | str]) -> None:
    buffer, read, merged = Buffer(Clock()), 0, 0
    for move in moves:
        if isinstance(move, int):
            buffer.add([records(read + n, 1) for n in range(move)], move)
            read += move
            continue
        buffer.set_aside()
        taken = len(buffer.aside)
        assert starts(buffer.aside) == list(range(merged, read))
        buffer.add([records(read, 1)], 1)  # While the merge is under way.
        read += 1
        count = {"merge all": taken, "merge one": min(1, taken), "fail": 0}[str(move)]
        buffer.merged(count)
        merged += count
        buffer.put_back()
        assert buffer.full(FLUSH) is (read - merged >= FLUSH.rows)
        assert bool(buffer) is (read > merged)
    buffer.set_aside()
    assert starts(buffer.aside) == list(range(merged, read))
    held = sum(b.nbytes for b in buffer.aside)
    assert buffer.nbytes == held


def test_a_buffer_is_due_when_its_oldest_batch_has_waited() -> None:
    clock = Clock()
    buffer = Buffer(clock)
    assert buffer.due_in(FLUSH) == float("inf")
    buffer.add([records(0, 1)], 1)
    clock.at = 1.5
    buffer.add([records(1, 1)], 1)
    assert buffer.due_in(FLUSH) == 0.5
    clock.at = 9.0
    assert buffer.due_in(FLUSH) == 0.0
    buffer.clear()
    assert (bool(buffer), buffer.nbytes, buffer.due_in(FLUSH)) == (False, 0, float("inf"))


def test_a_source_that_never_rests_is_reached_too() -> None:
    goals, reached = Goals(), []
    for position in range(1, 100):
        goals.aim(Goal(position, {0: position}, None))
        if (found := goals.reached({0: position - 5})) is not None:
            reached.append(found.position)
    assert len(reached) > 10
    assert reached == sorted(reached)
    assert goals.reached({0: 1000}) == Goal(99, {0: 99}, None), "the newest is not forgotten"
    assert goals.reached({0: 1000}) is None
