"""The demo, small: it needs no Java and no Maven, ends by itself with an equal warehouse, and then, or after Ctrl-C, nothing runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from deploy.local import shop
from deploy.local.artifacts import cache_home
from deploy.local.process import birth

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def demo(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A small demo, in a session of its own; it is ended with the block."""
    command = [sys.executable, "-m", "deploy.local.demo", "--dir", str(folder), "--factor", "0.02", "--operations", "800", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def begun(process: subprocess.Popen[str], folder: Path) -> None:
    """Returns when the demo has started its service."""
    deadline = time.monotonic() + 120
    while not (folder / "run" / "service.json").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the demo did not start the service"
        time.sleep(0.05)


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
    with demo(folder, "--destination", destination) as process:
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
    with demo(folder) as process:
        begun(process, folder)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert processes_of(folder) == []
    assert not (folder / "stack").exists()


@pytest.mark.stack
def test_demo_needs_neither_java_nor_maven_on_the_machine(tmp_path: Path) -> None:
    """The Java runtime is fetched into the cache the first time."""
    folder = tmp_path / "demo"
    with tempfile.TemporaryDirectory() as programs:
        Path(programs).chmod(0o755)  # For the user that PostgreSQL runs as.
        for place in os.environ["PATH"].split(os.pathsep):
            for program in Path(place).glob("*"):
                if not program.name.startswith(("java", "mvn")):
                    with contextlib.suppress(FileExistsError):
                        (Path(programs) / program.name).symlink_to(program)
        with demo(folder, PATH=programs, JAVA_HOME="") as process:
            begun(process, folder)
            running = [line for line in processes_of(folder) if "/java " in line]
            said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "Every row and column is equal" in said
    assert len(running) == 2, "broker and worker"
    assert all(line.startswith(f"{cache_home()}/java-") for line in running), running
