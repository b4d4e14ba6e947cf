"""What only one database has stands with its source and its destination; what every source passes through names none of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATABASES = re.compile(r"postgres|(?<![a-z])pg_|pgoutput|mysql|mariadb|mongo|cassandra|oracle|sqlserver", re.IGNORECASE)
SPECIALITIES = re.compile(
    r"(?<![a-z])(?:lsn|lsns|wal|binlog|gtid|hstore|toast|xmin|txid|publication)(?![a-z])|(?<![a-z_])slot(?!s)|replica identity",
    re.IGNORECASE,
)
COMMON = ("connectors/formats", "reconcile", *(f"cdc_service/{part}" for part in ("core", "kafka", "metrics", "pipeline", "runtime")))
"""Where neither a database's name may stand nor what only one has, in code, text or comment."""
NAMELESS = ("connectors/debezium", "cdc_service/api", "cdc_service/config", "cdc_service/failpoints.py", "cdc_service/ports")
"""Where a database's name may not stand."""
EXCEPTIONS: dict[str, tuple[str, str]] = {
    "cdc_service/config/models.py": ("postgresql://cdc:", "an example of a URL in the description of a setting"),
    "cdc_service/config/secret.py": ("postgresql://user:", "an example of a URL"),
    "cdc_service/core/identity.py": ("slot_gone|publication", "codes of doubts, which the status document tells"),
    "cdc_service/core/types.py": (r"\(TOAST\)", "an example of why a source does not send a value"),
    "cdc_service/metrics/__init__.py": ("slot|wal_status|WAL_STATUSES", "names of metrics, which dashboards and alerts know"),
    "cdc_service/pipeline/schema_versions.py": ("a publication or a transform", "an example of what leaves columns out"),
    "cdc_service/pipeline/watermarks.py": ("slot_gone", "a code of a doubt, which the status document tells"),
    "cdc_service/ports/capture.py": ("PostgreSQL: reserved", "an example of a source's own word"),
    "cdc_service/ports/source.py": ("PostgreSQL: ``16/B374D848``", "an example of a source's own spelling"),
    "cdc_service/runtime/status.py": ('"slot"|"wal_status"', "fields of the status document, which others read"),
    "connectors/formats/rows.py": ("with REPLICA IDENTITY FULL", "the comment of an image before says when it is whole"),
}
"""By file: the only texts in which it may name one, and why."""


def found(text: str, words: tuple[re.Pattern[str], ...], allowed: str = "") -> list[str]:
    """The lines that name what they should not, each with its number."""
    lines = [(number, re.sub(allowed, "", line) if allowed else line) for number, line in enumerate(text.splitlines(), 1)]
    return [f"{number}: {line.strip()}" for number, line in lines if any(word.search(line) for word in words)]


def modules(*places: str) -> list[Path]:
    return sorted(path for place in places for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py")))


@pytest.mark.parametrize(("places", "words"), [(COMMON, (DATABASES, SPECIALITIES)), (NAMELESS, (DATABASES,))])
def test_what_all_sources_share_names_none(places: tuple[str, ...], words: tuple[re.Pattern[str], ...]) -> None:
    files = modules(*places)
    assert len(files) > 10
    wrong = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        wrong += [f"{name}:{line}" for line in found(path.read_text(), words, EXCEPTIONS.get(name, ("", ""))[0])]
    assert not wrong, "\n".join(wrong)


def test_no_exception_stands_for_nothing() -> None:
    for name, (allowed, why) in EXCEPTIONS.items():
        assert why
        words = (DATABASES, SPECIALITIES) if name.startswith(COMMON) else (DATABASES,)
        text = (ROOT / name).read_text()
        assert found(text, words), f"{name} names no database any more"
        assert not found(text, words, allowed)


@pytest.mark.parametrize(
    "line",
    [
        "from x import PostgresEvents",
        "lsn = 1",
        'source.field("origin_lsn")',
        "the WAL's end",
        "pg_lsn",
        "slot_name",
        "names.slot",
        "# MySQL has none",
        "REPLICA IDENTITY FULL",
        "Unsent.HSTORE",
    ],
)
def test_a_name_is_found(line: str) -> None:
    assert found(line, (DATABASES, SPECIALITIES))


@pytest.mark.parametrize("line", ["@dataclass(frozen=True, slots=True)", "walk", "always", "toasted", "def lsnap"])
def test_what_only_looks_like_one_is_not(line: str) -> None:
    assert not found(line, (DATABASES, SPECIALITIES))
