"""A wall clock that steps under a running process (clock.c): ``variables`` in the environment of those whose clock it is to be."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("clock.c")


class SteppingClock:
    """Steps of all processes that were started with ``variables``. Skips the test where there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or pytest.skip("no C compiler here, which the stepping clock needs")
        library, steps = folder / "clock.so", folder / "clock.step"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True, timeout=60)
        steps.write_bytes(bytes(8))
        with steps.open("r+b") as file:
            self._step = mmap.mmap(file.fileno(), 8)
        self.variables: Mapping[str, str] = {"LD_PRELOAD": str(library), "CDC_TEST_CLOCK": str(steps)}

    def set(self, seconds: float) -> None:
        """From now on the clock is so much ahead of the machine's, or behind it."""
        self._step[:] = struct.pack("=q", round(seconds * 1e9))
