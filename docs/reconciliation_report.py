"""Writes docs/reconciliation-report.png: the HTML report of a run that is made up, as a browser shows it.

Run: python docs/reconciliation_report.py (with --html FILE it writes the report itself; a Chromium is needed only for the picture).
"""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from reconcile.report.document import Buckets, Difference, Event, Kind, Status, TableReport, Total, document  # noqa: E402
from reconcile.report.html import render  # noqa: E402

PICTURE = ROOT / "docs" / "reconciliation-report.png"
SIZE = {"width": 1200, "height": 1869}
BEGAN = datetime(2026, 11, 24, 6, 0, 4, tzinfo=UTC)
POSITION = 0x16B374D848
ORDER = ("order_id", "customer_id", "status", "total", "currency", "placed_at", "shipped_at", "note", "version", "channel")
LEFT_OUT = {"search": "generated at the source, not replicated", "embedding": "no exact text on both sides"}


def _spelled(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def _micros(seconds: float) -> int:
    return int((BEGAN + timedelta(seconds=seconds)).timestamp() * 1e6)


def _history(*found: tuple[Status, int]) -> list[dict[str, Any]]:
    """One run each night, newest first."""
    return [
        {
            "run_id": f"r{2000 - n}",
            "at": (BEGAN - timedelta(days=n)).isoformat().replace("+00:00", "Z"),
            "status": str(status),
            "counts": {"different": count},
        }
        for n, (status, count) in enumerate(found, 1)
    ]


def _row(number: int, dice: Random) -> dict[str, str | None]:
    placed = datetime(2026, 11, 23, 8, tzinfo=UTC) + timedelta(seconds=number % 50_000)
    return {
        "order_id": str(number),
        "customer_id": str(dice.randrange(1, 90_000)),
        "status": "paid",
        "total": f"{dice.randrange(900, 48_000) / 100:.2f}",
        "currency": "EUR",
        "placed_at": f"{placed:%Y-%m-%d %H:%M:%S}.{dice.randrange(10**6):06}+00",
        "shipped_at": None,
        "note": None,
        "version": str(dice.randrange(1, 9)),
        "channel": dice.choice(("web", "app", "store")),
    }


PARKED = "parked: the event at {} waits in quarantine: a number is beyond decimal(12, 2)"
OUTSIDE = "written from outside: the last event carried the source's values"
NOT_APPLIED = "in Kafka, not applied: the event at {} is past, or the row was written in the warehouse from outside"
OVERWRITTEN = "applied, then overwritten: neither side has what the last event carried"
_CHANGES: tuple[tuple[dict[str, tuple[str | None, str | None]], str], ...] = (
    ({"status": ("shipped", "paid"), "shipped_at": ("2026-11-24 05:58:41.220713+00", None)}, PARKED),
    ({"note": ("Leave at the back door, ring twice", "Leave at the back door, ring twice ")}, OUTSIDE),
    ({"note": ("", None)}, OVERWRITTEN),
    ({"total": ("129.90", "129.00")}, OUTSIDE),
    ({"note": ("Groß-Gerau, 2. OG", "Groß-Gerau, 2.\u00a0OG")}, OUTSIDE),
    ({"status": ("cancelled", "paid"), "version": ("5", "4")}, NOT_APPLIED),
    ({"note": (None, "null")}, OUTSIDE),
    ({"placed_at": ("2026-11-23 09:12:44.118203+00", "2026-11-23 08:12:44.118203+00")}, OVERWRITTEN),
    ({"status": ("refunded", "shipped")}, NOT_APPLIED),
)


def _differences(dice: Random) -> list[Difference]:
    found = []
    for n in range(25):
        number = 1_048_211 + n * 37_913 + dice.randrange(900)
        source, position = _row(number, dice), POSITION - dice.randrange(10**6, 10**9)
        target, columns, kind, cause = dict(source), (), Kind.DIFFERENT, ""
        if n in (9, 10, 11, 12, 22, 23):
            kind, cause = Kind.MISSING, NOT_APPLIED if n % 2 else PARKED
        elif n in (13, 14, 24):
            kind, cause = Kind.EXTRA, "delete lost: the delete at {} is past, the row still stands"
        else:
            changes, cause = _CHANGES[n % len(_CHANGES)]
            source.update({name: values[0] for name, values in changes.items()})
            target.update({name: values[1] for name, values in changes.items()})
            columns = tuple(changes)
        op = "c" if kind is Kind.MISSING else "u"
        event = Event("shop.public.orders", n % 3, 812_331 + dice.randrange(90_000), position, op, f"b{41_022 + n % 4}", _spelled(position))
        cause = cause.format(f"{event.partition}/{event.offset + 7}")
        one, other = (None if kind is Kind.EXTRA else source), (None if kind is Kind.MISSING else target)
        found.append(Difference({"order_id": str(number)}, kind, columns, one, other, POSITION, event, cause))
    return found


def _orders() -> TableReport:
    dice = Random(4)
    found = _differences(dice)
    columns: dict[str, int] = {}
    for difference in found:
        for name in difference.columns:
            columns[name] = columns.get(name, 0) + 1
    counts = {str(kind): sum(d.kind is kind for d in found) for kind in Kind} | {"representation": 3, "late": 41}
    counts["parked"] = sum(d.cause.startswith("parked") for d in found)
    counts.pop("representation")
    dirty = tuple(sorted(dice.sample(range(4096), 24)))
    return TableReport(
        *("public.orders", "public.orders", "upsert", Status.MISMATCH),
        **_common(0.4, 2.9, 2_000_000, 1_999_997, ("8c41f20be6a17d35", "8c41f1ff0d92e0c8"), ORDER, 271 * 2**20),
        buckets=Buckets(4096, dict.fromkeys(dirty, (Total(0, ""), Total(0, ""))), 22, "key"),
        counts=counts,
        columns=columns,
        left_out=LEFT_OUT,
        differences=found,
        history=_history(*[(Status.MATCH, 0)] * 2, (Status.IN_FLIGHT, 0), *[(Status.MATCH, 0)] * 4, (Status.MISMATCH, 3)),
    )


def _common(
    start: float, seconds: float, rows: int, there: int, digest: tuple[str, str], columns: tuple[str, ...], size: int
) -> dict[str, Any]:
    return {
        **{"method": "stream", "fence": "exact", "position": POSITION, "position_text": _spelled(POSITION), "batch_id": "b41025"},
        **{"rows": (rows, there), "digest": digest, "compared": columns, "started_us": _micros(start), "seconds": seconds, "bytes": size},
    }


def example() -> dict[str, Any]:
    """The document of the picture."""
    matched = _history(*[(Status.MATCH, 0)] * 9)

    def equal(name: str, start: float, seconds: float, rows: int, columns: int, late: int) -> TableReport:
        digest = f"{Random(rows).getrandbits(64):016x}"
        names = tuple(f"c{n}" for n in range(columns))
        return TableReport(
            *(name, name, "upsert", Status.MATCH),
            **_common(start, seconds, rows, rows, (digest, digest), names, rows * 96),
            buckets=Buckets(max(64, rows // 500)),
            counts={"late": late},
            history=matched,
        )

    shipments = TableReport(
        *("public.shipments", "public.shipments", "upsert", Status.IN_FLIGHT),
        **_common(6.2, 1.4, 412_880, 412_880, ("51b07ae3c2d94f10",) * 2, tuple(f"c{n}" for n in range(14)), 44 * 2**20),
        buckets=Buckets(826),
        counts={"in_flight": 17, "late": 233},
        history=_history(*[(Status.MATCH, 0)] * 3, *[(Status.IN_FLIGHT, 0)] * 2, *[(Status.MATCH, 0)] * 4),
    )
    tables = [
        equal("public.customers", 0.1, 0.8, 210_547, 12, 3),
        _orders(),
        equal("public.order_items", 3.3, 2.8, 5_204_118, 7, 96),
        shipments,
        equal("public.products", 7.7, 0.3, 3_000, 9, 0),
    ]
    return document("shop", "r2000", tables)


def picture(html: str, target: Path) -> None:
    """The first screens of the report as PNG. Raises SystemExit where there is no browser."""
    from playwright.sync_api import sync_playwright

    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("there is no browser; install it: apt-get install chromium")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as opened:
        page = opened.new_page(viewport=SIZE, color_scheme="light")
        page.set_content(html)
        page.screenshot(path=target)


def main(arguments: list[str]) -> int:
    html = render(example())
    if arguments[:1] == ["--html"]:
        Path(arguments[1]).write_text(html, encoding="utf-8")
        return 0
    picture(html, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
