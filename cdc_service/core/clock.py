"""Time and chance as the service sees them: injected, so that a simulation can own both. Wall-clock time is shown, never an order."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wall_us(self) -> int:
        """Microseconds since 1970, for people."""
        ...

    def chance(self) -> float:
        """A random number in [0, 1)."""
        ...


class RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def chance(self) -> float:
        return random.random()


class Stop:
    """Whether to stop: set once, from any thread or in a signal's handler. A threading.Event has a lock that the very thread which the
    signal interrupts may hold, and would wait for it for ever; here a lock is only ever released by whoever sets. (SimpleQueue.get, in
    Python 3.11, waits for ever where its time limit passes within the call.)"""

    def __init__(self) -> None:
        self._set = False
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        self._set = True
        self._open()

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until it is set; whether it is."""
        if not self._set and self._unset.acquire(timeout=seconds):
            self._open()  # For others that wait.
        return self._set

    def _open(self) -> None:
        with contextlib.suppress(RuntimeError):  # It is open.
            self._unset.release()


def rfc3339(us: int | None) -> str | None:
    """Microseconds since 1970 as people and JSON read them, in UTC."""
    return None if us is None else datetime.fromtimestamp(us / 1e6, UTC).isoformat().replace("+00:00", "Z")


class Backoff:
    """Waits between attempts: doubling from 0.2 s to 30 s, jittered so that many who wait do not come back at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._attempts = 0
        self.until = float("-inf")

    def failed(self) -> float:
        """Counts a failure; the seconds to wait now."""
        seconds = min(30.0, 0.2 * float(2**self._attempts)) * (0.5 + 0.5 * self._clock.chance())
        self._attempts = min(self._attempts + 1, 10)
        self.until = self._clock.monotonic() + seconds
        return seconds

    def succeeded(self) -> None:
        self._attempts, self.until = 0, float("-inf")

    @property
    def waiting(self) -> bool:
        return self._clock.monotonic() < self.until
