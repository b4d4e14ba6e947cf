"""What a person sees of a reconciliation: sentences, HTML, CSV and terminal say what the document says, and nothing in it acts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_service.cli.output import STATE_STYLES, Output
from cdc_service.cli.reconcile_view import COLUMNS, show
from reconcile.report import summary as words
from reconcile.report import values
from reconcile.report.csv_rows import HEADER, write_csv
from reconcile.report.document import Buckets, Difference, Event, Kind, Status, TableReport, Total, document
from reconcile.report.html import render

XSS = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
START = 1_795_500_000_000_000
CAUSE = "parked: the event at 2/9 waits"
EVENT = Event("shop.public.orders", 2, 812_331, 97_503_000_000, "u", "b7", "16/B3A1B5C0")
REASONS = {
    Status.ERROR: "the warehouse refused the connection",
    Status.SKIPPED: "mode append",
    Status.PARTIAL: "it was not done after 60 s",
}
AS_OF = "as of 16/B374D848"
CALM = "checked in 2.9 s without stopping either side"
SENTENCES = {
    Status.MATCH: f"equals its source {AS_OF}: 2,000,000 rows, 3 of 4 columns, {CALM}",
    Status.MISMATCH: f"differs from its source {AS_OF}: 1 row missing and 2 different of 2,000,000 rows at the source, {CALM}",
    Status.IN_FLIGHT: f"has no confirmed difference {AS_OF}: 4 keys changed too fast to be judged, 2,000,000 rows, 3 of 4 columns,"
    " checked in 2.9 s while both sides moved",
    Status.PARTIAL: f"was not compared to its end {AS_OF}: it was not done after 60 s, {CALM}",
    Status.ERROR: "could not be compared: the warehouse refused the connection",
    Status.SKIPPED: "was not compared: mode append",
}
COUNTS = {Status.MISMATCH: {"missing": 1, "different": 2}, Status.IN_FLIGHT: {"in_flight": 4}}


def dirty(*numbers: int) -> dict[int, tuple[Total, Total]]:
    return dict.fromkeys(numbers, (Total(2, "a"), Total(1, "b")))


def report(status: Status = Status.MATCH, name: str = "public.orders", **changes: Any) -> TableReport:
    fields: dict[str, Any] = {
        **{"reason": REASONS.get(status, ""), "method": "stream", "fence": "exact", "position": 0x16B374D848},
        **{"position_text": "16/B374D848", "batch_id": "b8", "rows": (2_000_000, 2_000_000), "digest": ("12ab", "12ab")},
        **{"buckets": Buckets(4096), "counts": COUNTS.get(status, {}), "compared": ("id", "status", "note")},
        **{"left_out": {"search": "generated"}, "started_us": START, "seconds": 2.9, "bytes": 271 * 2**20},
    }
    return TableReport(name, name, "upsert", status, **(fields | changes))


def run_of(*tables: TableReport) -> dict[str, Any]:
    """A document as it comes over HTTP."""
    found: dict[str, Any] = json.loads(json.dumps(document("shop", "r1", tables)))
    return found


def different(source: Mapping[str, str | None], destination: Mapping[str, str | None], **changes: Any) -> Difference:
    columns = tuple(name for name in source if source[name] != destination.get(name))
    fields = {"key": {"id": "1"}, "columns": columns, "position": 7, "event": EVENT, "cause": CAUSE} | changes
    return Difference(kind=Kind.DIFFERENT, source=source, destination=destination, **fields)


def mismatch(*differences: Difference, **changes: Any) -> TableReport:
    counts = {str(kind): sum(d.kind is kind for d in differences) for kind in Kind}
    return report(Status.MISMATCH, differences=differences, **({"counts": counts} | changes))


MISSING = Difference({"id": "8"}, Kind.MISSING, (), {"id": "8", "note": None}, None, 7)
EXTRA = Difference({"id": "9"}, Kind.EXTRA, (), None, {"id": "9", "note": ""}, 7, EVENT, "delete lost")


class Page(HTMLParser):
    """Which elements stand in a page, with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html.replace(re.findall(r"<style>.*?</style>", html, re.S)[0], ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


@pytest.mark.parametrize("status", Status)
def test_each_status_has_its_sentence_in_html_and_at_the_terminal(status: Status, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_of(report(status))
    sentence = f"public.orders {SENTENCES[status]}"
    assert words.verdict(found["tables"][0]) == SENTENCES[status]
    page = Page(render(found))
    assert f"{sentence}." in page.text
    assert f"{words.sign(status)}{words.word(status)}" in page.text, "colour is never the only sign"
    show(Output(), found)
    said = capsys.readouterr()
    assert (sentence in said.err) == (status is not Status.MATCH)
    assert said.out.splitlines()[1].split()[:2] == ["public.orders", status]
    assert status in STATE_STYLES


def test_the_run_is_one_sentence_that_begins_with_what_needs_a_person() -> None:
    tables = [report(status, f"t{number}") for number, status in enumerate([Status.MATCH, Status.MATCH, Status.SKIPPED, Status.MISMATCH])]
    assert words.summary(run_of(*tables)) == "1 of 4 tables differs from its source, 2 equal their sources and 1 was skipped"
    assert words.summary(run_of(*tables[:2])) == "All 2 tables equal their sources"
    assert words.summary(run_of(tables[3])) == "t3 differs from its source"
    assert words.summary(run_of()) == "No table was compared"
    sections = re.findall(r'<section id="t(\d+)".*?<b>(t\d)</b>', render(run_of(*tables)), re.S)
    assert sections == [("1", "t3"), ("2", "t0"), ("3", "t1"), ("4", "t2")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"where": "id > 5", "reason": "only the rows of the condition were compared"},
            f"equals its source where id > 5 {AS_OF}: 2,000,000 rows, 3 of 4 columns, {CALM}",
        ),
        ({"reason": "Odd."}, f"equals its source {AS_OF}: 2,000,000 rows, 3 of 4 columns, {CALM}; Odd"),
        ({"method": "counts", "reason": "only rows were counted"}, f"has as many rows as its source {AS_OF}, and no more was compared"),
        ({"left_out": {}, "fence": None, "compared": ("id",)}, f"equals its source {AS_OF}: 2,000,000 rows, 1 column, checked in 2.9 s"),
        (
            {"status": Status.MISMATCH, "counts": {"different": 9, "parked": 2, "in_flight": 1}, "reason": "too many keys"},
            f"differs from its source {AS_OF}: 9 rows different of 2,000,000 rows at the source, checked in 2.9 s while both sides moved;"
            " 2 explained by records in quarantine; 1 key not judged: too many keys",
        ),
    ],
)
def test_a_verdict_hides_nothing(changes: dict[str, Any], sentence: str) -> None:
    found = words.verdict(run_of(report(**changes))["tables"][0])
    assert found.startswith(sentence) if changes.get("method") else found == sentence


def test_what_was_left_out_is_told_with_its_reason() -> None:
    page = Page(render(run_of(report(where="id > 5", left_out={"b": "generated", "c": "unreadable", "a": "generated"}))))
    assert "Not comparedrows that are not id > 5b, a: generatedc: unreadable" in page.text
    assert (
        words.summary(run_of(report(method="counts"), report())) == "1 of 2 tables equals its source and 1 has as many rows as its source"
    )


def test_a_table_that_was_never_begun_moves_no_time() -> None:
    found = run_of(report(Status.SKIPPED, started_us=0, seconds=0.0, rows=(None, None), position=None, position_text=None), report())
    assert "1970" not in render(found)
    assert words.took(found) == pytest.approx(2.9)
    assert words.moment(words.began(found)).endswith("UTC")


@given(st.one_of(st.none(), st.text()), st.one_of(st.none(), st.text()))
def test_a_value_is_never_markup_and_no_two_look_alike(a: str | None, b: str | None) -> None:
    left, right = values.pair(a, b)
    for shown in (left, right):
        bare = re.sub(r'</?(?:span|mark)(?: (?:class|title)="[^"<>]*")?>', "", shown)
        assert not re.search(r'[<>"]', bare)
        assert bare.isprintable()
    if a != b and max(len(a or ""), len(b or "")) < 100:
        assert left != right


def test_what_cannot_be_seen_is_shown() -> None:
    looks = [values.single(value) for value in (None, "", "null", "NULL", "nul", "nul ", " nul", "nul\t")]
    assert len(set(looks)) == len(looks)
    texts = [re.sub(r"<[^>]*>", "", look) for look in looks]
    assert texts == ["NULL", "empty text", "'null'", "'NULL'", "nul", "nul·", "·nul", "nul⟨TAB⟩"]
    assert "⟨U+202E⟩" in values.text("a\u202eb")
    assert "⟨U+D800⟩" in values.text("\ud800"), "what UTF-8 has no form for would stop the file from being written"
    composed, apart = values.pair("caf\u00e9", "cafe\u0301")
    assert ("U+00E9" in composed, "⟨U+0301⟩" in apart) == (True, True)


@pytest.mark.parametrize(
    ("a", "b", "left", "right"),
    [
        ("129.90", "129.00", ["9"], ["0"]),
        ("shipped", "paid", ["shipped"], ["paid"]),
        ("abc", "abcd", [], ["d"]),
        ("aaa", "aa", ["a"], []),
        ("one two three", "one too three", ["w"], ["o"]),
        ("same", "same", [], []),
        ("x" * 1000 + "a", "x" * 1000 + "b", ["a"], ["b"]),
    ],
)
def test_the_characters_that_differ_are_marked(a: str, b: str, left: list[str], right: list[str]) -> None:
    spans = values.changed(a, b)
    assert [a[i:j] for i, j in spans[0] if i < j] == left
    assert [b[i:j] for i, j in spans[1] if i < j] == right
    for shown, marks in zip(values.pair(a, b), (left, right), strict=True):
        assert re.findall(r"<mark>(.*?)</mark>", shown) == marks


@given(st.text(alphabet="ab ", max_size=30), st.text(alphabet="ab ", max_size=30))
def test_what_is_not_marked_is_the_same_on_both_sides(a: str, b: str) -> None:
    def rest(value: str, spans: list[values.Span]) -> str:
        dropped = {i for start, stop in spans for i in range(start, stop)}
        return "".join(c for i, c in enumerate(value) if i not in dropped)

    left, right = values.changed(a, b)
    assert rest(a, left) == rest(b, right)


def test_a_long_value_is_shown_around_what_differs_with_its_length() -> None:
    left, right = values.pair("x" * 5000 + "A" + "y" * 5000, "x" * 5000 + "B" + "y" * 5000)
    assert "<mark>A</mark>" in left
    assert "<mark>B</mark>" in right
    assert "10,001 characters" in left
    assert len(left) < 1000


def test_nothing_of_the_document_acts_in_the_html() -> None:
    """The payload in every place that holds text, a control character beside it."""
    bad = XSS + "\x00\n"
    event = Event(bad, 1, 2, 3, bad, bad, bad)
    found = [
        different({"a" + bad: bad}, {"a" + bad: "x"}, event=event, cause=bad, key={bad: bad}),
        Difference({bad: None}, Kind.MISSING, (), {bad: bad}, None, 7),
    ]
    table = mismatch(
        *found,
        name=bad,
        **{"reason": bad, "method": bad, "fence": bad, "position_text": bad, "batch_id": bad, "digest": (bad, "x"), "where": bad},
        **{"columns": {bad: 2}, "compared": (bad,), "left_out": {bad: bad}, "by_value": {bad: bad}},
        buckets=Buckets(64, dirty(3), 1, bad),
        history=[{"run_id": bad, "at": bad, "status": bad, "counts": {}}],
    )
    whole = run_of(table, report(Status.ERROR, bad, reason=bad)) | {"pipeline": bad, "run_id": bad}
    whole["tables"][0]["status"] = whole["tables"][0]["differences"][0]["kind"] = bad
    html = render(whole)
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "src"]
    assert {attributes["href"] for tag, attributes in page.elements if tag == "a"} == {"#t1", "#t2", "#top"}
    assert "\x00" not in html
    assert html.count("&lt;script&gt;") >= 20
    classes = {name for _, attributes in page.elements for name in (attributes.get("class") or "").split()}
    assert all(re.fullmatch(r"[a-z_-]+", name) for name in classes)
    html.encode()


def test_the_html_asks_for_nothing() -> None:
    html = render(run_of(mismatch(different({"a": "1"}, {"a": "2"}))))
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    page = Page(html)
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def test_a_section_shows_what_a_person_needs() -> None:
    table = mismatch(
        different({"id": "1", "note": "", "status": "new"}, {"id": "1", "note": None, "status": "new"}),
        MISSING,
        EXTRA,
        columns={"note": 1},
        digest=("12ab", "12ac"),
        rows=(10, 11),
        history=[{"run_id": "r0", "at": "2026-11-23T06:00:00Z", "status": "match", "counts": {}}],
    )
    page = Page(render(run_of(table, report())))
    for part in (
        "12ab ≠ 12ac",
        "10 ≠ 11",
        "id 1 ≠different note empty text NULL",
        f"Suspected cause: {CAUSE}. Last event: shop.public.orders, partition 2, offset 812331, position 16/B3A1B5C0, update, batch b7",
        "−missing Source only note NULL No event of this key is known.",
        "+extra Warehouse only note empty text Suspected cause: delete lost.",
        "cdc repair public.orders --dry-run",
        "search: generated",
    ):
        assert part.replace(" ", "") in page.text.replace(" ", ""), part
    assert "2026-11-23 06:00:00 UTC, match" in {attributes.get("aria-label") for _, attributes in page.elements}


@pytest.mark.parametrize("total", [1, 63, 64, 1024, 1025, 100_000])
def test_the_picture_of_the_buckets_has_at_most_1024_cells_and_each_dirty_bucket_in_one(total: int) -> None:
    numbers = {0, total // 2, total - 1}
    html = render(run_of(mismatch(different({"a": "1"}, {"a": "2"}), buckets=Buckets(total, dirty(*numbers)))))
    lengths = [int(found) for found in re.findall(r"M2 \d+h(\d+)", html)]
    cells = sum((length + 4) // 10 for length in lengths)
    per = -(-total // 1024)
    assert cells == -(-total // per) <= 1024
    assert len(re.findall(r'class="dirty" ', html)) == len({number // per for number in numbers})
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', html)[0])
    for x, y in re.findall(r'class="dirty" x="(\d+)" y="(\d+)"', html):
        assert (int(x) < width, int(y) < height) == (True, True)


def test_a_hundred_tables_have_an_overview_with_a_link_to_each() -> None:
    html = render(run_of(*(report(name=f"public.t{number}") for number in range(99)), mismatch(MISSING, EXTRA, name="public.bad")))
    page = Page(html)
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a" and attributes.get("href") != "#top"]
    assert links == [f"#t{number}" for number in range(1, 101)]
    assert html.index("public.<wbr>bad") < html.index("public.<wbr>t0"), "what needs a person comes first"
    assert len(html) < 400_000


@given(st.text(), st.one_of(st.none(), st.text()), st.text())
def test_csv_gives_back_every_value(name: str, one: str | None, other: str) -> None:
    found = different({name: one}, {name: other}, columns=(name,), key={"id": "1", name: one})
    stream = io.StringIO(newline="")
    write_csv(document("shop", "r1", [mismatch(found, MISSING, EXTRA)]), stream)
    stream.seek(0)
    lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == HEADER
    line, missing, extra = lines
    assert (line["run_id"], line["table"], line["kind"], line["column"]) == ("r1", "public.orders", "different", name)
    assert json.loads(line["key"]) == {"id": "1", name: one}
    assert (line["source_value"], line["source_is_null"]) == (one or "", "true" if one is None else "false")
    assert (line["destination_value"], line["destination_is_null"]) == (other, "false")
    event = (line["topic"], line["partition"], line["offset"], line["position"], line["op"], line["batch_id"], line["cause"])
    assert event == ("shop.public.orders", "2", "812331", "97503000000", "u", "b7", CAUSE)
    assert (missing["column"], json.loads(missing["source_value"]), missing["destination_value"]) == ("", {"id": "8", "note": None}, "")
    assert (missing["source_is_null"], missing["destination_is_null"], missing["topic"]) == ("false", "true", "")
    assert (extra["source_is_null"], json.loads(extra["destination_value"])) == ("true", {"id": "9", "note": ""})


def test_a_row_that_stands_twice_differs_in_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "1"}
    found = run_of(mismatch(different(row, row, cause="duplicate row: the key stands more than once in the warehouse", count=2)))
    assert "Suspected cause: duplicate row: the key stands more than once" in Page(render(found)).text
    show(Output(), found)
    assert "  different id='1' (2 rows)\n    suspected cause: duplicate row" in capsys.readouterr().out
    stream = io.StringIO(newline="")
    write_csv(found, stream)
    line = next(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert (line["column"], json.loads(line["source_value"])) == ("", row)


def test_csv_has_a_line_for_each_differing_column() -> None:
    stream = io.StringIO(newline="")
    row = {"id": "1", "a": "1", "b": None, "c": "same"}
    write_csv(document("shop", "r1", [mismatch(different(row, row | {"a": "2", "b": ""})), report()]), stream)
    lines = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert [(line["column"], line["source_is_null"]) for line in lines] == [("a", "false"), ("b", "true")]


def test_the_terminal_in_a_pipe_is_plain_aligned_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        different({"a": None, "b": "x\x1b[2J", "c": "null"}, {"a": "", "b": "x", "c": "null "}, key={"id": "1", "k": "it's"}),
        *(MISSING, EXTRA),
    ]
    show(Output(), run_of(mismatch(*found), report(name="public.longer_name"), report(Status.ERROR, "z", rows=(None, None))))
    said = capsys.readouterr()
    lines = said.out.splitlines()
    head = lines[0]
    assert tuple(re.split(r"  +", head)) == COLUMNS
    assert [line.split()[:2] for line in lines[1:4]] == [["public.orders", "mismatch"], ["z", "error"], ["public.longer_name", "match"]]
    assert all(line[head.index("status") - 2 : head.index("status")] == "  " for line in lines[:4])
    assert [line[: head.index("missing") + 7].rsplit(maxsplit=1)[-1] for line in lines[1:4]] == ["1", "error", "0"], (
        "no count where no one counted"
    )
    assert lines[4:] == [
        "public.orders: 3 differences",
        "  different id='1', k='it''s'",
        "    a: source NULL, warehouse ''",
        "    b: source 'x\\x1b[2J', warehouse 'x'",
        "    c: source 'null', warehouse 'null '",
        f"    suspected cause: {CAUSE}; last event: shop.public.orders partition 2 offset 812331, position 16/B3A1B5C0, op u, batch b7",
        "  missing id='8'",
        "    only the source: note=NULL",
        "    no event of this key is known",
        "  extra id='9'",
        "    only the warehouse: note=''",
        "    suspected cause: delete lost; last event: shop.public.orders partition 2 offset 812331, position 16/B3A1B5C0, op u, batch b7",
    ]
    assert "  cure: cdc repair public.orders --dry-run" in said.err.splitlines()
    assert (said.out + said.err).replace("\n", "").isprintable()


def test_the_terminal_shows_the_first_differences_and_says_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run_of(mismatch(MISSING, EXTRA, counts={"missing": 700, "extra": 500}, truncated=True))
    show(Output(), shown, differences_max=1)
    assert "public.orders: 1,200 differences, the first 1" in capsys.readouterr().out
    show(Output(), shown, differences_max=0)
    assert "differences" not in capsys.readouterr().out
    show(Output(as_json=True), shown)
    assert json.loads(capsys.readouterr().out) == shown


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_narrow_terminal_the_verdict_stays(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Output, "rich", property(lambda _: True))
    monkeypatch.setenv("COLUMNS", str(width))
    show(Output(), run_of(report(), mismatch(MISSING)), differences_max=0)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert all(name in said for name in ("table", "status", "missing", "extra", "different"))
    assert ("rows/s" in said) == (width == 200)


def test_a_long_value_at_the_terminal_is_cut_around_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output(), run_of(mismatch(different({"a": "x" * 500 + "A"}, {"a": "x" * 500 + "B"}))))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("    a:"))
    assert "x'" not in line
    assert line == f"    a: source ...'{'x' * 20}A' (501 characters), warehouse ...'{'x' * 20}B' (501 characters)"
