"""The HTML report in a real browser: it asks for nothing, runs nothing, fits a phone, and can be read in light and dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from docs.reconciliation_report import example
from reconcile.report.html import render

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 680, "height": 1000}
"""A4 between margins of 15 mm."""
DESK = {"width": 1200, "height": 900}
PAYLOAD = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><style>body{display:none}</style>\'"'
CONTRAST_MIN = 4.5
CONTRASTS = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3]) return c } };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = {};
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || e instanceof SVGElement) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const name = e.tagName + '.' + e.className + ' in ' + e.parentElement.tagName + '.' + e.parentElement.className;
    found[name] = Math.min(found[name] ?? 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return found;
}"""
"""The contrast of every text on the page with what is behind it, by where it stands."""
WIDTH = "() => document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("the report is tested in a browser, and there is none: apt-get install chromium")  # .ci/run installs it.
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def awkward() -> dict[str, Any]:
    """The document of the docs' picture with all statuses, hostile values, and words that nothing can break."""
    found: dict[str, Any] = json.loads(json.dumps(example()))
    calm = next(table for table in found["tables"] if table["status"] == "match")
    for status in ("error", "partial", "skipped", "a_later_one"):
        found["tables"].append(calm | {"source": f"public.{status}", "status": status, "reason": "the warehouse refused " + "w" * 150})
    found["tables"].append(calm | {"source": "public." + "x" * 200, "digest": {"source": "f" * 120, "destination": "e" * 120}})
    orders = next(table for table in found["tables"] if table["status"] == "mismatch")
    orders["coverage"]["left_out"].append({"column": "c" * 120, "reason": "r" * 120})
    orders["coverage"]["where"] = "note <> '" + "q" * 150 + "'"
    orders["columns"]["k" * 120] = 1
    one, *_, missing = sorted(orders["differences"], key=lambda difference: difference["kind"])
    one["columns"], one["cause"], one["key"] = ["p" * 100, "long"], PAYLOAD, {"id": "9" * 150, PAYLOAD: None}
    one["source"], one["destination"] = {"p" * 100: PAYLOAD, "long": "a" * 900}, {"p" * 100: PAYLOAD + "\u00e9", "long": "b" * 900}
    (missing["source"] or missing["destination"])["blob"] = "z" * 900
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(awkward()), encoding="utf-8")
    return path


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The report on a desk's screen, in each scheme."""
    context = browser.new_context(viewport=DESK, color_scheme=request.param)
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()


def test_it_loads_without_a_complaint_and_asks_for_nothing(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri(), wait_until="networkidle")
    assert asked == [report.as_uri()]
    assert said == []
    assert page.evaluate("() => performance.getEntriesByType('resource').length") == 0
    page.close()


def test_what_differs_is_seen_first_and_a_payload_stays_text(page: Page) -> None:
    section = page.locator("#t2")
    assert section.is_visible(), "below a status that no one knows"
    assert "public.orders differs from its source where" in section.inner_text()
    assert page.locator("tr:has(a[href='#t2']) .badge").inner_text() == "≠mismatch"
    page.locator("a[href='#t2']").click()
    top = page.evaluate("() => document.getElementById('t2').getBoundingClientRect().top")
    assert 0 <= top < DESK["height"] / 3
    assert PAYLOAD in section.inner_text().replace("\n", "")
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("script, img, iframe, [onerror]").count() == 0
    assert page.locator("style").count() == 1


def test_the_picture_has_a_name_and_its_dirty_cells_differ_in_size_too(page: Page) -> None:
    grid = page.get_by_role("img", name="4,096 buckets, 24 with a difference")
    box = grid.bounding_box()
    assert box is not None
    assert box["width"] > 300
    cells = page.evaluate("() => [...document.querySelectorAll('#t2 .dirty')].map(e => [e.getBBox().width, getComputedStyle(e).fill])")
    assert 20 <= len(cells) <= 24
    line = page.locator("#t2 .clean").first
    assert cells[0][0] > float(line.get_attribute("stroke-width") or 0)
    assert cells[0][1] != line.evaluate("e => getComputedStyle(e).stroke")


def test_every_text_stands_out_from_what_is_behind_it(page: Page) -> None:
    found = page.evaluate(CONTRASTS)
    assert len(found) > 40
    assert {name: round(ratio, 2) for name, ratio in found.items() if ratio < CONTRAST_MIN} == {}


def test_light_and_dark_are_two_pictures_and_neither_is_blank(browser: Browser, report: Path) -> None:
    pictures, grounds = [], []
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport=DESK, color_scheme=scheme)
        page.goto(report.as_uri())
        pictures.append(page.screenshot())
        grounds.append(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]
    assert min(map(len, pictures)) > 20_000, "a page of one colour compresses to a few kilobytes"
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(("media", "size"), [("screen", PHONE), ("screen", DESK), ("print", PAPER)], ids=["phone", "desk", "paper"])
def test_nothing_is_wider_than_the_screen_or_than_paper(media: Any, size: Any, browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport=size)
    page.emulate_media(media=media)
    page.goto(report.as_uri())
    assert page.evaluate(WIDTH) == size["width"]
    assert page.locator(".overview .n.wide").first.is_visible() == (size is not PHONE)
    page.close()


def test_on_a_phone_both_values_have_their_side_named(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport=PHONE)
    page.goto(report.as_uri())
    sides = page.locator(".diffs .side").first
    assert sides.evaluate("e => getComputedStyle(e, '::before').content") == '"Source"'
    assert page.locator(".overview .n.wide").first.is_hidden()
    assert page.locator(".overview .n:not(.wide)").first.is_visible()
    page.close()


def test_a_hundred_tables_can_be_read(browser: Browser, tmp_path: Path) -> None:
    found = awkward()
    calm = next(table for table in found["tables"] if table["status"] == "match")
    found["tables"] += [calm | {"source": f"public.part_{number}"} for number in range(100 - len(found["tables"]))]
    path = tmp_path / "many.html"
    path.write_text(render(found), encoding="utf-8")
    page = browser.new_page(viewport=DESK)
    page.goto(path.as_uri())
    assert page.locator(".overview tbody tr").count() == page.locator("section").count() == 100
    page.locator("a[href='#t100']").click()
    assert "public.skipped" in page.locator("#t100 h2").inner_text()
    assert page.evaluate(WIDTH) == DESK["width"]
    page.close()
