"""Named places where a test can make the process crash, hang, raise, or lose a reply; nothing happens in them otherwise.

``CDC_FAILPOINTS="merge.swapped=crash@3,line.flush=raise"`` acts at the third and the first passing; actions are crash (the process ends
as by kill -9), hang (for ever), raise (Unavailable: "it was not done, try again") and lose (CommitUnknown: it may have been done, and the
reply was lost). The simulation installs an actor of its own, and so decides at each of them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdc_service.core.errors import CommitUnknown, Unavailable

NAMES = {
    "line.polled": "records were read and are not decoded yet",
    "line.flush": "a buffer is due, nothing of it is sent to the destination",
    "line.folded": "the buffer is folded",
    "line.evolved": "the target holds the schema of the rows to come",
    "line.completed": "values that were not sent are read again at the source",
    "line.loaded": "a piece of a load is durable, the next one is not begun",
    "line.merged": "a batch is durable, the buffer is not emptied of it yet",
    "line.advised": "the consumer group was told of it",
    "merge.staged": "the rows lie beside the target, no transaction has begun",
    "merge.swapped": "inside the transaction: the checkpoint has moved",
    "merge.truncated": "inside: the truncation is applied, the rows are not yet",
    "merge.recorded": "inside: everything is written, the commit comes next",
    "merge.committed": "the batch is durable, nobody knows of it yet",
}
"""Every failpoint of the service with what is so at it."""
ACTIONS = ("crash", "hang", "raise", "lose")


def _parse(text: str) -> dict[str, tuple[str, int]]:
    plans = {}
    for part in filter(None, text.split(",")):
        name, _, action = part.partition("=")
        what, _, count = action.partition("@")
        if what not in ACTIONS or name not in NAMES:
            raise ValueError(f"CDC_FAILPOINTS: unknown failpoint or action in {part!r}; actions are {', '.join(ACTIONS)}")
        plans[name] = (what, int(count or 1))
    return plans


def _planned(plans: dict[str, tuple[str, int]]) -> Callable[[str], None]:
    passed: Counter[str] = Counter()

    def act(name: str) -> None:
        passed[name] += 1
        action, at = plans.get(name, ("", 0))
        if passed[name] != at:
            return
        if action == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang":
            threading.Event().wait()
        if action == "lose":
            raise CommitUnknown(f"failpoint {name}: the reply was lost")
        raise Unavailable(f"failpoint {name}")

    return act


_plans = _parse(os.environ.get("CDC_FAILPOINTS", ""))
_act = _planned(_plans) if _plans else None


def failpoint(name: str) -> None:
    """Marks a phase boundary, one of NAMES. Costs one truth test when nothing is planned."""
    if _act is not None:
        _act(name)


@contextmanager
def acting(act: Callable[[str], None]) -> Iterator[None]:
    """Within it ``act`` is called at every failpoint and may raise."""
    global _act
    before, _act = _act, act
    try:
        yield
    finally:
        _act = before
