"""What waits for a signal must never wait for itself."""

from __future__ import annotations

import subprocess
import sys

INTERRUPTED = """
import signal
from cdc_service.core.clock import Stop

stop = Stop()
signal.signal(signal.SIGALRM, lambda *_: stop.set())
for _ in range(10_000):
    stop = Stop()
    signal.setitimer(signal.ITIMER_REAL, 0.0002)
    while not stop.wait(0.00001):
        pass
    assert stop.is_set() and stop.wait(1000)
"""


def test_a_stop_that_a_signal_sets_wakes_the_thread_that_it_interrupts_wherever_that_is() -> None:
    """With threading.Event this hangs."""
    subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=120, check=True)


SHORT = """
from cdc_service.core.clock import Stop

stop = Stop()
for _ in range(20_000):
    assert not stop.wait(0.000001)
"""


def test_a_wait_ends_whose_time_passes_as_it_begins() -> None:
    """With SimpleQueue.get this hangs."""
    subprocess.run([sys.executable, "-c", SHORT], timeout=120, check=True)
