"""The catalog of the simulated source: what a table's definition is, what statements do to it, and what a change of it means.

As PostgreSQL's (connectors/sources/postgresql/identity.py): an identity holds what is there and *editions*, numbers that only go up, so
that what was changed and changed back shows. A column is known by its *role*, as PostgreSQL's is by its number; its name may change, and
other columns may take it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cdc_service.core.identity import Judgement, Outcome
from cdc_service.core.types import TableId

Row = Mapping[str, str | int | None]
Names = tuple[tuple[str, str], ...]
"""(role, name) of each column."""
NAMES = ("", "_1", "_2")
"""What a column's role is followed by in the names that it gets."""
REWRITTEN = "~"


@dataclass(frozen=True, slots=True)
class Column:
    role: str
    name: str
    edition: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A partition. Of one that was created as such (``born``) all rows came by the log."""

    link: int
    born: bool
    keys: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """``edition`` is the version of the table's own row in the catalog, ``file`` what holds its rows, ``most`` how many columns there ever
    were, ``member`` its place in the publication (None: none)."""

    columns: tuple[Column, ...] = (Column("id", "id"), Column("name", "name"), Column("body", "body"))
    edition: int = 0
    file: int = 0
    most: int = 3
    member: int | None = 0
    hidden: bool = False
    parts: tuple[Part, ...] = ()
    last: int = 0
    """The last number that was given."""

    @property
    def names(self) -> Names:
        return tuple((c.role, c.name) for c in self.columns)

    @property
    def identity(self) -> str:
        one = asdict(self)
        del one["last"]
        return json.dumps(one)

    def has(self, role: str) -> bool:
        return any(c.role == role for c in self.columns)

    def next(self, **changes: Any) -> Shape:
        return replace(self, last=self.last + 1, **changes)

    def added(self, role: str, name: str | None = None) -> Shape:
        n = self.last + 1
        return self.next(columns=(*self.columns, Column(role, name or role, n)), edition=n, most=self.most + 1)

    def dropped(self, role: str) -> Shape:
        """It leaves the table's own row as it was."""
        return self.next(columns=tuple(c for c in self.columns if c.role != role))

    def called(self, names: Mapping[str, str]) -> Shape:
        """With other names of columns, by their roles; the table's own row stays as it was."""
        n = self.last + 1
        return self.next(columns=tuple(replace(c, name=names[c.role], edition=n) if c.role in names else c for c in self.columns))

    def rewritten(self, role: str = "") -> Shape:
        n = self.last + 1
        return self.next(columns=tuple(replace(c, edition=n) if c.role == role else c for c in self.columns), file=n, edition=n)


@dataclass(frozen=True, slots=True)
class Altered:
    """A table has another shape; ``rows`` are those that changed with it and of which no event tells, ``shows`` whether anything differs
    for who reads rows."""

    table: str
    shape: Shape
    rows: Mapping[int, Row | None] = field(default_factory=dict)
    shows: bool = True
    lsn: int = 0


@dataclass(frozen=True, slots=True)
class _On:
    """What a statement finds: ``rows`` are all, ``taken`` the keys that others write."""

    table: str
    shape: Shape
    rows: Mapping[int, Row]
    taken: Collection[int]
    words: Sequence[str]

    def to(self, shape: Shape, rows: Mapping[int, Row | None] | None = None, *, shows: bool = True) -> Altered:
        return Altered(self.table, shape, rows or {}, shows)


def alter(what: str, table: str, shape: Shape, rows: Mapping[int, Row], taken: Collection[int], words: Sequence[str]) -> Altered | None:
    """What the statement makes of the table; None where it makes no sense."""
    return STATEMENTS[what](_On(table, shape, rows, taken, words))


def _rename(on: _On) -> Altered | None:
    role, more = on.words
    name = role + NAMES[int(more)]
    if not on.shape.has(role) or name in {n for _, n in on.shape.names}:
        return None
    return on.to(on.shape.called({role: name}))


def _swap(on: _On) -> Altered:
    names = dict(on.shape.names)
    return on.to(on.shape.called({"name": names["body"], "body": names["name"]}))


def _reuse(on: _On) -> Altered | None:
    """A column gets another name, and a new one its old name."""
    names = dict(on.shape.names)
    free = [name for more in NAMES if (name := "name" + more) not in names.values()]
    if "extra" in names or not free:
        return None
    shape = on.shape.called({"name": free[0]}).added("extra", names["name"])
    return on.to(shape, {key: {**row, "extra": f"own {key}"} for key, row in on.rows.items()})


def _rewrite(on: _On) -> Altered:
    (role,) = on.words
    return on.to(on.shape.rewritten(role), {key: {**row, role: f"{row[role]}{REWRITTEN}"} for key, row in on.rows.items()})


def _restore(on: _On) -> Altered:
    """Back to what they were before they were written anew."""
    (role,) = on.words
    return on.to(on.shape.rewritten(role), {key: {**row, role: str(row[role]).rstrip(REWRITTEN)} for key, row in on.rows.items()})


def _vacuum(on: _On) -> Altered:
    return on.to(on.shape.rewritten(), shows=False)


def _born(on: _On) -> Altered:
    n = on.shape.last + 1
    return on.to(on.shape.next(parts=(*on.shape.parts, Part(n, True))), shows=False)


def _attach(on: _On) -> Altered | None:
    keys = tuple(key for key in dict.fromkeys(map(int, on.words)) if key not in on.rows and key not in on.taken)
    if not keys:
        return None
    n = on.shape.last + 1
    fresh = {role: f"p{n}" for role, _ in on.shape.names}
    return on.to(on.shape.next(parts=(*on.shape.parts, Part(n, False, keys))), {key: {**fresh, "id": key} for key in keys})


def _detach(on: _On) -> Altered | None:
    if not on.shape.parts:
        return None
    return on.to(on.shape.next(parts=on.shape.parts[:-1]), {key: None for key in on.shape.parts[-1].keys if key in on.rows})


def _unpublish(on: _On) -> Altered | None:
    return None if on.shape.member is None else on.to(on.shape.next(member=None), shows=False)


def _publish(on: _On) -> Altered | None:
    return on.to(on.shape.next(member=on.shape.last + 1), shows=False) if on.shape.member is None else None


def _hide(on: _On) -> Altered | None:
    return None if on.shape.hidden else on.to(on.shape.next(hidden=True, edition=on.shape.last + 1))


def _show(on: _On) -> Altered | None:
    return on.to(on.shape.next(hidden=False, edition=on.shape.last + 1)) if on.shape.hidden else None


STATEMENTS: dict[str, Callable[[_On], Altered | None]] = {
    "rename": _rename,
    "swap": _swap,
    "reuse": _reuse,
    "rewrite": _rewrite,
    "restore": _restore,
    "vacuum": _vacuum,
    "born": _born,
    "attach": _attach,
    "detach": _detach,
    "unpublish": _unpublish,
    "publish": _publish,
    "hide": _hide,
    "show": _show,
}


def judge(table: TableId, before: str | None, after: str | None) -> Judgement:
    """What an identity means for rows that were read under an earlier one."""
    if after is None:
        return Judgement(Outcome.STOPS, f"{table} is gone at the source", "make it again", "table_gone")
    if before == after:
        return Judgement(Outcome.SAME)
    new = json.loads(after)
    if new["hidden"]:
        return Judgement(Outcome.STOPS, f"{table} has rows that are hidden", "show them", "row_security")
    if new["member"] is None:
        return Judgement(Outcome.STOPS, f"{table} is not in the publication", "publish it", "not_published")
    if before is None:
        return Judgement(Outcome.SAME)
    old = json.loads(before)
    if why := _reading(old, new):
        return Judgement(Outcome.ANEW, f"{table}: {why}")
    mine, its = (({c["role"]: c["name"] for c in one["columns"]}) for one in (old, new))
    renamed = {mine[role]: name for role, name in its.items() if role in mine and mine[role] != name}
    return Judgement(Outcome.CARRIED, renamed=renamed, columns=mine != its)


def _reading(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why the rows have to be read anew."""
    if old["member"] != new["member"]:
        return "it left the publication and came back"
    links = {part["link"] for part in old["parts"]}
    if links - {part["link"] for part in new["parts"]} or any(not p["born"] for p in new["parts"] if p["link"] not in links):
        return "a partition with rows came or went"
    mine, its = ({c["role"]: c for c in one["columns"]} for one in (old, new))
    left, came = ({c["name"] for r, c in a.items() if r not in b} for a, b in ((mine, its), (its, mine)))
    if left & came:
        return "a column was dropped and made again"
    before, after = ({c["name"] for c in one.values()} for one in (mine, its))
    for role in mine.keys() & its.keys():
        was, now = mine[role], its[role]
        if was["name"] != now["name"] and (now["name"] in before or was["name"] in after):
            return "columns changed names among each other"
        if old["file"] != new["file"] and was["edition"] != now["edition"]:
            return "its rows were written anew as a column was altered"
        if was["edition"] != now["edition"] and was["name"] == now["name"]:
            return "a column was changed and changed back"
    if old["edition"] != new["edition"] and all(old[name] == new[name] for name in ("file", "most", "hidden")):
        return "its definition was changed and changed back"
    return ""
