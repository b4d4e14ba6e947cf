"""A reconciliation's document as one HTML file that can be mailed: it asks for nothing from anywhere and holds no script.

Promises: every text of the document is escaped and a content security policy allows nothing but the inline style, so no value of a table
can act; what a colour says a sign or a word says too. Tables that need a person come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from reconcile.report import summary as words
from reconcile.report import values
from reconcile.report.style import CSS
from reconcile.report.summary import Document, Table
from reconcile.report.values import attribute, text

CELLS_MAX = 1024
ACROSS_MAX = 64
PITCH, CELL = 10, 6
"""Distance and edge of a bucket's cell in the picture; a dirty one fills its place, so that it shows without colour too."""
COLUMNS_MAX = 12
"""Bars for columns; the rest is one bar."""
FIELDS_MAX = 40
"""Columns shown of a row that only one side has."""
HISTORY_MAX = 30
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(document: Document) -> str:
    """The whole file. ``document`` is what ``reconcile.report.document.document`` makes, or the same read from JSON."""
    tables = sorted(document["tables"], key=lambda table: words.rank(table["status"]))
    title = words.summary(document)
    overview = _overview(tables) if len(tables) > 1 else ""
    sections = "".join(_section(table, f"t{number}", document, alone=len(tables) == 1) for number, table in enumerate(tables, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{attribute(document["pipeline"])}: {attribute(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header id="top">
<h1>{text(title)}</h1>
<p class="muted">{_origin(document)}</p>
{_totals(document)}
</header>
<main>
{overview}
{sections}
</main>
<footer class="note">{_legend()}</footer>
</body>
</html>
"""


def _origin(document: Document) -> str:
    parts = ["Reconciliation of pipeline " + str(document["pipeline"]), words.moment(words.began(document))]
    return " · ".join([*(text(part) for part in parts if part), f'run <span class="mono">{text(document["run_id"])}</span>'])


def _totals(document: Document) -> str:
    tables: Sequence[Table] = document["tables"]
    rows = [(table["rows"].get("source"), len(table["coverage"]["columns"])) for table in tables]
    compared = sum(count * columns for count, columns in rows if count)
    found = [
        ("tables", f"{len(tables):,}"),
        ("rows at the source", f"{sum(count for count, _ in rows if count):,}"),
        ("values compared", f"{compared:,}"),
        ("differences", f"{sum(words.differences(table) for table in tables):,}"),
        ("keys in flight", f"{sum(table['counts'].get('in_flight') or 0 for table in tables):,}"),
        ("read", words.size(sum(table.get("bytes") or 0 for table in tables))),
        ("taken", words.duration(words.took(document))),
    ]
    return f'<dl class="totals">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in found)}</dl>'


def _overview(tables: Sequence[Table]) -> str:
    head = (
        '<th scope="col">Status</th><th scope="col">Table</th><th scope="col" class="n wide">Rows source</th>'
        '<th scope="col" class="n wide">Rows warehouse</th><th scope="col" class="n">Missing</th><th scope="col" class="n">Extra</th>'
        '<th scope="col" class="n">Different</th><th scope="col" class="n wide">In flight</th><th scope="col" class="n wide">As of</th>'
        '<th scope="col" class="n wide">Time</th>'
    )
    rows = "".join(_overview_row(table, f"t{number}") for number, table in enumerate(tables, 1))
    return f'<table class="overview"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _overview_row(table: Table, anchor: str) -> str:
    status, counts = table["status"], table["counts"]
    compared = words.compared(table)
    why = "" if status == "match" or not table.get("reason") else f'<div class="note">{text(table["reason"])}</div>'
    found = "".join(_count(counts.get(kind) if compared else None, "some") for kind in ("missing", "extra", "different"))
    return (
        f'<tr><td>{_badge(status)}</td><th scope="row"><a href="#{anchor}">{_name(table["source"])}</a>{why}</th>'
        f"{_count(table['rows'].get('source'), wide=True)}{_count(table['rows'].get('destination'), wide=True)}{found}"
        f"{_count(counts.get('in_flight') if compared else None, wide=True)}"
        f'<td class="n wide">{text(words.as_of_text(table) or "")}</td>'
        f'<td class="n wide">{words.duration(table["seconds"]) if table["seconds"] else ""}</td></tr>'
    )


def _name(name: str) -> str:
    """A table's name, which may be broken where its parts meet."""
    return text(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _count(count: int | None, look: str = "", *, wide: bool = False) -> str:
    """A number's cell; ``look`` is for one that is not zero."""
    names = ["n", *(["wide"] if wide else []), *(["zero"] if count == 0 else [look] if count and look else [])]
    return f'<td class="{" ".join(names)}">{"" if count is None else f"{count:,}"}</td>'


def _badge(status: str) -> str:
    return f'<span class="badge {_look(status)}"><i aria-hidden="true">{words.sign(status)}</i><b>{text(words.word(status))}</b></span>'


def _look(status: str) -> str:
    """The class of a status; a status of a later version looks like an error."""
    return f"s-{status}" if status in words.STATUSES else "s-error"


def _section(table: Table, anchor: str, document: Document, *, alone: bool) -> str:
    back = "" if alone else '<a class="back" href="#top">overview</a>'
    head = f"<h2>{back}{_badge(table['status'])}<b>{text(table['source'])}</b> {text(words.verdict(table))}.</h2>"
    bars, history = _bars(table), _history(table, document)
    if not (bars or table["differences"]):
        body = f"<div>{_facts(table)}{_left_out(table)}{history}</div>{_buckets(table)}"
        return f'<section id="{anchor}" class="quiet">{head}{body}</section>'
    pictures = f'<div class="pictures"><div>{_buckets(table)}{_repair(table)}{_left_out(table)}</div><div>{bars}{history}</div></div>'
    body = f"{_facts(table)}{pictures}{_differences(table)}"
    return f'<section id="{anchor}" class="long">{head}{body}</section>'


def _facts(table: Table) -> str:
    rows, digest, speed = table["rows"], table["digest"], words.rate(table)
    counts = [None if count is None else f"{count:,}" for count in (rows.get("source"), rows.get("destination"))]
    time = [
        words.duration(table["seconds"]) if table["seconds"] else "",
        f"{speed:,} rows/s" if speed else "",
        f"{words.size(table['bytes'])} read" if table.get("bytes") else "",
    ]
    sign = "≠" if table["status"] == "mismatch" else "and"  # What changed meanwhile makes sums differ too, and is no finding.
    batch = table["as_of"].get("batch_id")
    not_counted = [f"{table['counts'][name]:,} {word}" for name, word in words.NOT_COUNTED.items() if table["counts"].get(name)]
    how = ", ".join(str(part) for part in (table.get("method"), words.FENCES.get(table.get("fence") or "", table.get("fence"))) if part)
    found = [
        ("Source position", _mono(words.as_of_text(table))),
        ("Warehouse", f"{text(table['target'])} ({text(table['mode'])}){f', batch {_mono(batch)}' if batch else ''}"),
        ("Began", text(words.moment(words.time(table.get("started_at"))))),
        ("Rows, source and warehouse", _both(counts, sign)),
        ("Digest, source and warehouse", _both([_mono(digest.get("source")), _mono(digest.get("destination"))], sign)),
        ("Time", ", ".join(part for part in time if part)),
        ("Not counted", ", ".join(not_counted)),
        ("Method", text(how)),
    ]
    return f'<dl class="facts">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in found if value)}</dl>'


def _mono(value: str | None) -> str | None:
    return None if value is None else f'<span class="mono">{text(value)}</span>'


def _both(sides: Sequence[str | None], sign: str) -> str | None:
    """Two values that are one where nothing moves."""
    if sides[0] is None and sides[1] is None:
        return None
    one, other = ("not known" if side is None else side for side in sides)
    return f"{one}, equal" if one == other else f"{one} {sign} {other}"


def _buckets(table: Table) -> str:
    """The picture of the buckets: a grid that is read like text, several buckets to a cell where there are many."""
    buckets = table["buckets"]
    total = buckets.get("total") or 0
    if not total:
        return ""
    per = -(-total // CELLS_MAX)
    cells = -(-total // per)
    across = next((n for n in (8, 16, 32) if n * n // 2 >= cells), ACROSS_MAX)
    dirty: dict[int, int] = {}
    for number in buckets.get("dirty_numbers") or ():
        dirty[number // per] = dirty.get(number // per, 0) + 1
    count = buckets.get("dirty") or 0
    what = f"{words.counted(total, 'bucket')}, {f'{count:,}' if count else 'none'} with a difference"
    height = -(-cells // across) * PITCH
    art = f'<path class="clean" stroke-width="{CELL}" stroke-dasharray="{CELL} {PITCH - CELL}" d="{_clean(cells, across)}"/>'
    art += "".join(_dirty(cell, across, per, total, dirty[cell]) for cell in sorted(dirty))
    kinds = {"key": "ranges of the key, in order", "hash": "by the key's hash"}
    each = f"; a cell stands for {per}" if per > 1 else ""
    solved = f"; one sum led straight to the row in {buckets['localized']:,}" if buckets.get("localized") else ""
    keys = '<span class="key-clean"></span>no difference<span class="key-dirty"></span>a difference<br>' if dirty else ""
    wide, name = across * PITCH, attribute(what)
    return (
        f'<figure><svg class="buckets" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" style="max-width:{wide}px" '
        f'role="img" aria-label="{name}"><title>{name}</title>{art}</svg>'
        f"<figcaption>{keys}{text(what)}{each} ({kinds.get(buckets['by'], text(buckets['by']))}){solved}.</figcaption></figure>"
    )


def _clean(cells: int, across: int) -> str:
    """A line for each row of the grid; its dashes are the cells, so a thousand of them take no more room than a few."""
    lines, edge = [], (PITCH - CELL) // 2
    for row in range(-(-cells // across)):
        wide = min(across, cells - row * across)
        lines.append(f"M{edge} {row * PITCH + PITCH // 2}h{wide * PITCH - (PITCH - CELL)}")
    return "".join(lines)


def _dirty(cell: int, across: int, per: int, total: int, count: int) -> str:
    x, y = cell % across * PITCH, cell // across * PITCH
    first, last = cell * per, min(total, (cell + 1) * per) - 1
    which = f"bucket {first:,}" if first == last else f"buckets {first:,} to {last:,}: {count:,}"
    cross = f'<path class="dirty-x" d="M{x + 3} {y + 3}l4 4m0 -4l-4 4"/>'
    return f'<g><title>{which} with a difference</title><rect class="dirty" x="{x}" y="{y}" width="{PITCH}" height="{PITCH}"/>{cross}</g>'


def _bars(table: Table) -> str:
    counts: Mapping[str, int] = table["counts"]
    kinds = [(f"{words.KINDS[kind][0]} {kind}", counts.get(kind) or 0) for kind in ("missing", "extra", "different")]
    columns = sorted(table["columns"].items(), key=lambda item: -item[1])
    shown = columns[:COLUMNS_MAX]
    if rest := columns[COLUMNS_MAX:]:
        shown.append((f"{len(rest)} more columns", sum(count for _, count in rest)))
    by_kind = f"<h3>Differences by kind</h3>{_bar_table(kinds)}" if any(count for _, count in kinds) else ""
    return by_kind + (f"<h3>Differing values by column</h3>{_bar_table(shown)}" if shown else "")


def _bar_table(bars: Sequence[tuple[str, int]]) -> str:
    most = max(count for _, count in bars) or 1
    rows = []
    for name, count in bars:
        bar = f'<span class="bar" style="width:{100 * count / most:.1f}%"></span>' if count else ""
        rows.append(f'<tr><th scope="row">{text(name)}</th><td>{bar}</td><td class="n">{count:,}</td></tr>')
    return f'<table class="bars">{"".join(rows)}</table>'


def _differences(table: Table) -> str:
    found: Sequence[Mapping[str, Any]] = table["differences"]
    if not found:
        return ""
    total = words.differences(table) + (table["counts"].get("representation") or 0)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Key", "Kind", "Column", "Source", "Warehouse"))
    cut = table.get("truncated") and len(found) < total
    some = f"The first {len(found):,} of {words.counted(total, 'difference')}" if cut else words.counted(len(found), "difference")
    body = "".join(_difference(difference, table) for difference in found)
    return (
        f'<div class="block"><h3>Rows that differ</h3><table class="diffs"><caption>{some}. Marked is what differs between the two values.'
        f"</caption><thead><tr>{head}</tr></thead>{body}</table></div>"
    )


def _difference(difference: Mapping[str, Any], table: Table) -> str:
    source, destination = difference["source"], difference["destination"]
    if source is None or destination is None:
        where, row = ("Source only", source) if destination is None else ("Warehouse only", destination)
        lines = [f'<td class="column muted">{where}</td><td class="row" colspan="2">{_row(row, difference["key"])}</td>']
    else:
        lines = [_line(name, source, destination) for name in difference["columns"]]
    kind = words.KINDS.get(difference["kind"], ("?", difference["kind"], ""))
    times = f'<div class="note">{difference["count"]:,} rows</div>' if (difference.get("count") or 1) > 1 else ""
    high = len(lines) + 1
    first = (
        f'<th scope="rowgroup" class="key" rowspan="{high}">{_key(difference["key"])}</th>'
        f'<td class="kind" rowspan="{high}" title="{kind[2]}"><i aria-hidden="true">{kind[0]}</i>{text(kind[1])}{times}</td>'
    )
    lines.append(f'<td class="why" colspan="3">{_why(difference)}</td>')
    rows = "".join(f"<tr>{line}</tr>" for line in [first + lines[0], *lines[1:]])
    return f"<tbody>{rows}</tbody>"


def _key(key: Mapping[str, str | None]) -> str:
    return "".join(f"<div><span>{text(name)}</span> <b>{values.single(value)}</b></div>" for name, value in key.items())


def _line(name: str, source: Mapping[str, str | None], destination: Mapping[str, str | None]) -> str:
    """The cells of a differing column. A value that the document does not hold is no NULL; each cell has one child, so that a narrow
    screen can put it beside its label."""
    if name in source and name in destination:
        left, right = values.pair(source[name], destination[name])
    else:
        left, right = (values.single(row[name]) if name in row else values.NOT_TOLD for row in (source, destination))
    sides = (("Source", left), ("Warehouse", right))
    shown = "".join(f'<td class="side" data-side="{side}"><div>{value}</div></td>' for side, value in sides)
    return f'<td class="column">{text(name)}</td>{shown}'


def _row(row: Mapping[str, str | None] | None, key: Mapping[str, str | None]) -> str:
    """What stands in a row beside its key."""
    if row is None:
        return "the row is not told"
    fields = [(name, value) for name, value in row.items() if name not in key]
    shown = [f'<span class="field"><span>{text(name)}</span> {values.single(value)}</span>' for name, value in fields[:FIELDS_MAX]]
    if len(fields) > FIELDS_MAX:
        shown.append(f'<span class="note">and {len(fields) - FIELDS_MAX} more</span>')
    return " ".join(shown)


def _why(difference: Mapping[str, Any]) -> str:
    name, colon, evidence = str(difference.get("cause") or "").rstrip(". ").partition(": ")
    cause = f"<b>Suspected cause: {text(name)}</b>{colon}{text(evidence)}. " if name else ""
    event = difference.get("event")
    if not event:
        return f"{cause}No event of this key is known."
    op = event.get("op")
    parts = [
        f"{text(event['topic'])}, partition {text(event['partition'])}, offset {text(event['offset'])}",
        f"position {text(at)}" if (at := words.event_position(event)) else "",
        text(words.OPS.get(op, op)) if op else "",
        f"batch {text(event['batch_id'])}" if event.get("batch_id") else "",
    ]
    return f"{cause}Last event: {', '.join(part for part in parts if part)}"


def _repair(table: Table) -> str:
    if not table.get("repair"):
        return ""
    return f'<div class="block"><h3>Repair</h3><p><code class="copy">{text(table["repair"])}</code></p></div>'


def _left_out(table: Table) -> str:
    coverage = table["coverage"]
    items = _by_reason(coverage["left_out"])
    if coverage.get("where"):
        items.insert(0, f"rows that are not <code>{text(coverage['where'])}</code>")
    return _listed("Not compared", items) + _listed("Compared by value, not by text", _by_reason(coverage.get("by_value", ())))


def _by_reason(columns: Sequence[Mapping[str, str]]) -> list[str]:
    ordered = sorted(((c["reason"], c["column"]) for c in columns), key=lambda item: str(item[0]))
    return [
        f"{', '.join(f'<code>{text(column)}</code>' for _, column in group)}: {text(reason)}"
        for reason, group in groupby(ordered, key=lambda item: item[0])
    ]


def _listed(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f'<div class="block"><h3>{title}</h3><ul class="left">{"".join(f"<li>{item}</li>" for item in items)}</ul></div>'


def _history(table: Table, document: Document) -> str:
    """The last runs from left to right, this one at the end."""
    runs = [run for run in table["history"] if run.get("run_id") != document["run_id"]][:HISTORY_MAX]
    if not runs:
        return ""
    own = {"at": table.get("started_at"), "status": table["status"], "counts": table["counts"]}
    items = "".join(_past(run, now=run is own) for run in [*reversed(runs), own])
    return f'<div class="block"><h3>Last runs, this one at the right</h3><ol class="history">{items}</ol></div>'


def _past(run: Mapping[str, Any], *, now: bool) -> str:
    status = str(run.get("status"))
    counts = run.get("counts") or {}
    found = sum(counts.get(kind) or 0 for kind in ("missing", "extra", "different"))
    parts = ["this run" if now else "", words.moment(words.time(run.get("at"))), words.word(status)]
    what = attribute(", ".join(part for part in [*parts, words.counted(found, "difference") if found else ""] if part))
    shown = f'<span role="img" aria-label="{what}">{words.sign(status)}</span>'
    return f'<li class="{_look(status)}{" now" if now else ""}" title="{what}">{shown}</li>'


def _legend() -> str:
    signs = ", ".join(f"{sign} {word}" for sign, word in words.STATUSES.values())
    return (
        f"Status: {signs}. Late: differed while it was being written, was equal when looked at again. In flight: changed too fast to be "
        f"judged. Representation: written otherwise, equal by type. Values: {values.NULL} is no value, {values.EMPTY} a text of no "
        'characters, <span class="sign">·</span> a blank at an end, <span class="sign">⟨LF⟩</span> and the like a character that cannot '
        "be seen."
    )
