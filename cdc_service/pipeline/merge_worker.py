"""Merges beside the reading: the tables that are due are merged on one thread while the line's goes on to read and to decode.

Promises: one round of merges at a time, its tables one after another, so that nothing else uses the destination meanwhile as long as the
line's thread has taken the outcomes before it does; what a table received after the round began waits for its next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

from cdc_service.core.clock import Backoff, Clock
from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.identity import Identities
from cdc_service.core.types import TableId
from cdc_service.failpoints import failpoint
from cdc_service.pipeline.failures import topic_gone
from cdc_service.pipeline.follower import Asked
from cdc_service.pipeline.table_task import TableTask, not_asked
from cdc_service.ports.feed import Topics

T = TypeVar("T")
ANSWER_SECONDS = 5.0
"""So long a round of merges waits for what the source says of its tables."""


class Submit(Protocol):
    """Runs what it is given, now or beside the caller; an exception is in the future."""

    def __call__(self, do: Callable[[], T], /) -> Future[T]: ...


def at_once(do: Callable[[], T]) -> Future[T]:
    """On the caller's thread: merges and reading take turns."""
    future: Future[T] = Future()
    try:
        future.set_result(do())
    except BaseException as error:
        future.set_exception(error)
    return future


def beside(do: Callable[[], T]) -> Future[T]:
    """On a thread of its own, which does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="merge", daemon=True).start()
    return future


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a table's merge: the checkpoints that ``moved`` (partition -> next offset) and how many merges it were, or
    ``error``."""

    table: TableTask
    moved: Mapping[int, int]
    merges: int
    seconds: float
    error: Exception | None = None


class MergeWorker:
    """The round that is under way, if any. Called from the line's thread only. ``identities``, ``submit`` and ``ask`` are as in Line."""

    def __init__(
        self, topics: Topics, identities: Callable[[Sequence[TableId]], Identities], submit: Submit, clock: Clock, ask: Submit
    ) -> None:
        self._topics = topics
        self._identities = identities
        self._asked: Future[Identities] | None = None
        self._asking = Backoff(clock)
        """The wait after the source did not answer: merges go on meanwhile."""
        self._submit = submit
        self._put = ask
        self._clock = clock
        self._round: Future[list[Outcome]] | None = None
        self._began = 0.0

    @property
    def under_way(self) -> bool:
        return self._round is not None

    @property
    def seconds(self) -> float:
        """How long the round has been under way."""
        return 0.0 if self._round is None else self._clock.monotonic() - self._began

    def begin(self, tables: Sequence[TableTask]) -> None:
        """Sets aside what the tables have buffered, and merges it. Only when no round is under way."""
        assert self._round is None
        for table in tables:
            table.set_aside()
        self._began = self._clock.monotonic()
        self._round = self._submit(lambda: self._merge(tables))

    def wait(self, seconds: float | None) -> None:
        """Until the round has ended, or for so long."""
        if self._round is not None and not self._round.done():
            try:
                self._round.exception(timeout=seconds)
            except TimeoutError:
                return

    def outcomes(self) -> Sequence[Outcome]:
        """Those of a round that has ended, once; nothing while it is under way."""
        if self._round is None or not self._round.done():
            return []
        ended, self._round = self._round.result(), None
        return ended

    # On the thread of the merges

    def _merge(self, tables: Sequence[TableTask]) -> list[Outcome]:
        # Both are asked after the last record of the batch, beside one another and beside the folding.
        ids = self._put(lambda: self._topics.topic_ids([t.config.topic for t in tables]))
        asked = self._ask([table.source for table in tables if table.is_ahead])
        try:
            # A topic that was made again under a running consumer is not noticed otherwise.
            known = ids.result()
        except CdcError as error:
            again = Unavailable(error.message, hint=error.hint, code=error.code)
            return [Outcome(table, {}, 0, 0.0, again) for table in tables]
        return [self._merge_one(table, known.get(table.config.topic), asked) for table in tables]

    def _ask(self, ahead: Sequence[TableId]) -> Asked:
        """Puts the question what the source says, after the last record of the batch, of the tables whose changes are ``ahead`` of what it
        said before. Where the source hangs no merge waits for it, and no second question is put."""
        if not ahead or self._asking.waiting or not (self._asked is None or self._asked.done()):
            return not_asked
        asked = self._asked = self._put(lambda: self._identities(ahead))

        @cache
        def answer() -> Identities | None:
            try:
                found = asked.result(timeout=ANSWER_SECONDS)
            except (CdcError, TimeoutError):
                self._asking.failed()
                return None  # The tables say that it is not known.
            self._asking.succeeded()
            return found

        return answer

    def _merge_one(self, table: TableTask, topic_id: str | None, asked: Asked) -> Outcome:
        began, before, moved = self._clock.monotonic(), table.tally.merges, dict[int, int]()
        error: Exception | None = None
        try:
            if table.partitions.log is None or table.partitions.log.topic_id != topic_id:
                raise topic_gone(table.config, exists=topic_id is not None)
            failpoint("line.flush")
            moved.update(table.flush(asked))
        except Exception as failed:
            error = failed
        return Outcome(table, moved, table.tally.merges - before, self._clock.monotonic() - began, error)
