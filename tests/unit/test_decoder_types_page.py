"""The page of types says what the code does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_types_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "types_postgresql.py", "--check"], timeout=60, check=False)
    assert done.returncode == 0, "run: python docs/types_postgresql.py"
