"""What the demo shows is whole: in a pipe in the width that it needs, on a terminal of 80 columns without a value cut short."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from deploy.local.compare import Comparison
from deploy.local.service import Cdc, Watch
from deploy.local.steps import Steps, results, show

TABLE = "public.order_items"


def console(width: int, *, terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width, force_terminal=terminal, color_system=None), stream


LONG = f'public."{"x" * 100}"'


@pytest.mark.parametrize(("width", "terminal", "name"), [(80, True, TABLE), (20, False, TABLE), (80, False, LONG)])
def test_the_result_is_whole(width: int, terminal: bool, name: str) -> None:
    watch = Watch(Cdc(Path("cdc.yaml"), {}), (name,))
    found = [Comparison(name, 1_234_567, 1_234_566, ((1,),), (), {}, 9, ())]
    out, stream = console(width, terminal=terminal)
    show(out, results(found, watch))
    row = next(line.split() for line in stream.getvalue().splitlines() if line.startswith("public."))
    assert row == [name, "1,234,567", "1,234,566", "0", "NO"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_says_what_came_out_of_it_under_its_own_beginning(terminal: bool) -> None:
    out, stream = console(60, terminal=terminal)
    steps = Steps(out)
    with steps.step("check") as step:
        step.done(f"2 checks\nwarning: {'word ' * 20}[end]")
    said = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", stream.getvalue())
    lines = said[said.index(" 1  ") :].splitlines()
    assert all(line.startswith(" " * 11) for line in lines[1:])
    assert said.count("word") == 20
    assert lines[-1].rstrip().endswith("[end]"), "text of a server is no markup"
