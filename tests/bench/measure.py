"""What processes and the machine use, read from /proc: CPU seconds and the peak of resident memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from deploy.local.process import descendants

TICK = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    return [pid, *descendants(pid)]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes, and of their children that have ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / TICK


def children_cpu() -> float:
    """User and system time of this process's children that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def peak_rss_mb(pids: Iterable[int]) -> int:
    """The sum of each process's peak."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            total += int(found[1]) if found else 0
    return total // 1024


def machine_cpu_seconds() -> float:
    """What all cores have worked since the machine started."""
    parts = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(parts[:8]) - parts[3] - parts[4]) / TICK  # Without idle, and waiting for a disk.
