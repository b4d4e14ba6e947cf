"""The demo, small: it ends by itself with an equal warehouse, and after it, or after Ctrl-C in its middle, nothing runs any more."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from deploy.local import shop
from deploy.local.process import birth

ROOT = Path(__file__).resolve().parents[2]


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.local.demo", "--dir", str(folder), "--factor", "0.02", "--operations", "800", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and birth(int(entry.name)) is not None:
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


@pytest.mark.stack
@pytest.mark.parametrize("destination", ["duckdb", "postgresql"])
def test_demo_ends_by_itself_with_an_equal_warehouse_and_nothing_running(tmp_path: Path, destination: str) -> None:
    folder = tmp_path / "demo"
    process = demo(folder, "--destination", destination)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "Every row and column is equal" in said
    assert processes_of(folder) == []
    if destination == "duckdb":
        with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as warehouse:
            for table in shop.TABLES:
                row = warehouse.execute(f"SELECT count(*) FROM public.{table}").fetchone()
                assert row is not None
                assert row[0] > 0, table
    else:
        assert "psql -d warehouse" in said
    assert not (folder / "stack").exists()


@pytest.mark.stack
def test_ctrl_c_in_the_middle_of_the_demo_ends_all_that_it_started(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = demo(folder)
    try:
        deadline = time.monotonic() + 90
        while not (folder / "run" / "service.json").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the demo did not start the service"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert processes_of(folder) == []
    assert not (folder / "stack").exists()
