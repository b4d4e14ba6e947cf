"""``make audit``: pip-audit over requirements.lock. Exit 0: nothing known; 1: vulnerabilities; 2: no advisories can be had here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
LIMIT_SECONDS = 300
AWAY = ("ConnectionError", "Max retries", "NameResolution", "ServiceError", "Failed to", "timed out", "HTTPError", "Could not connect")


def main(tool: str) -> int:
    command = [tool, "--requirement", str(LOCK), "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--desc", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return away(f"no answer within {LIMIT_SECONDS} s")
    said = done.stdout + done.stderr
    if "Found" in said and "vulnerabilit" in said:
        print(said.strip())
        return 1
    if skipped := said.count("could not be audited"):  # An index without advisories: the tool ends with 0 as if it had looked.
        return away(f"it knows nothing of {skipped} of the locked packages")
    if done.returncode == 0:
        print(said.strip())
        return 0
    if any(word in said for word in AWAY):
        return away(said.strip().splitlines()[-1])
    print(said.strip(), file=sys.stderr)
    return 2


def away(reason: str) -> int:
    print(f"NOT AUDITED: the service that publishes advisories cannot be reached from here ({reason})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
