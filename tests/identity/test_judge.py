"""The judgement can fail: recorded contents, and claims with one thing planted in each that must not be taken for right."""

from __future__ import annotations

from collections.abc import Sequence as Many
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from random import Random

import pytest

from tests.identity.cure import Action, actions
from tests.identity.judge import Claim, Key, Record, Row, canonical, judge
from tests.identity.kinds import ALL
from tests.identity.sequence import SHAPES, WEATHERS, Sequence, Step, generate, kinds_of, weather_of
from tests.identity.shrink import smallest


def held(*rows: Row, key: str = "id") -> dict[Key, Row]:
    return {(row[key],): row for row in rows}


def row(id_: int, **values: str | None) -> Row:
    return {"id": str(id_), **values}


def record(position: int | None, *rows: Row, key: str = "id", only: Many[Row] | None = None) -> Record:
    return Record(position, (key,), held(*rows, key=key), None if only is None else held(*only, key=key))


def claim(position: int, *rows: Row, columns: str = "") -> Claim:
    return Claim(position, frozenset({*columns.split(), *(name for one in rows for name in one)}), rows)


LOADED = record(10, row(1, n="1", t="a"), row(2, n="2", t=None))
INSERTED = record(20, row(1, n="1", t="a"), row(2, n="2", t=None), row(3, n="3", t="c"))
CHANGED = record(30, row(1, n="7", t="a"), row(3, n="3", t="c"))
HISTORY = (LOADED, INSERTED, CHANGED)

RIGHT = {
    "the newest record": claim(35, row(1, n="7", t="a"), row(3, n="3", t="c")),
    "exactly at a position": claim(20, row(1, n="1", t="a"), row(2, n="2", t=None), row(3, n="3", t="c")),
    "one key ahead of the position": claim(25, row(1, n="7", t="a"), row(2, n="2", t=None), row(3, n="3", t="c")),
    "one key gone ahead of the position": claim(25, row(1, n="1", t="a"), row(3, n="3", t="c")),
    "a column more, that the source has dropped": claim(30, row(1, n="7", t="a", old="x"), row(3, n="3", t="c", old=None)),
    "older than all that is known": claim(5),
}
WRONG = {
    "a row is missing": (claim(30, row(1, n="7", t="a"), columns="t"), "key 3: missing"),
    "a deleted row is still there": (claim(30, row(1, n="7", t="a"), row(2, n="2", t=None), row(3, n="3", t="c")), "key 2: extra"),
    "a row that never was": (claim(20, row(1, n="1", t="a"), row(2, n="2", t=None), row(3, n="3", t="c"), row(9, n="9", t="")), "key 9"),
    "behind the position": (claim(30, row(1, n="1", t="a"), row(3, n="3", t="c")), "key 1: n is '1' instead of '7'"),
    "a value lost": (claim(30, row(1, n="7", t=None), row(3, n="3", t="c")), "key 1: t is NULL instead of 'a'"),
    "a value of two moments": (claim(10, row(1, n="7", t=None), row(2, n="2", t=None)), "key 1"),
    "a column missing": (claim(30, row(1, n="7"), row(3, n="3")), "no column t"),
    "a row twice": (claim(30, row(1, n="7", t="a"), row(1, n="7", t="a"), row(3, n="3", t="c")), "more than one row"),
    "an empty target": (claim(30, columns="id n t"), "missing"),
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_passes(what: str) -> None:
    assert judge(HISTORY, RIGHT[what]) == []


@pytest.mark.parametrize("what", WRONG)
def test_a_planted_row_is_found(what: str) -> None:
    wrong, told = WRONG[what]
    assert told in "\n".join(judge(HISTORY, wrong))


def test_each_single_corruption_of_a_random_history_is_found() -> None:
    """Whatever one cell, row or column is changed in a claim at the newest record, it is found."""
    dice = Random(1)
    for _ in range(200):
        rows = [row(n, a=str(dice.randrange(5)), b=dice.choice((None, "x", "y"))) for n in range(dice.randrange(1, 6))]
        history = [record(10 * (at + 1), *dice.sample(rows, dice.randrange(len(rows) + 1))) for at in range(3)] + [record(50, *rows)]
        assert judge(history, claim(50, *rows)) == []
        at, kind = dice.randrange(len(rows)), dice.choice(("cell", "gone", "twice", "more", "column"))
        planted: list[Row] = list(rows)
        if kind == "cell":
            planted[at] = {**rows[at], "a": f"{rows[at]['a']}!"}
        elif kind == "gone":
            del planted[at]
        elif kind == "twice":
            planted.append(rows[at])
        elif kind == "more":
            planted.append(row(99, a="1", b=None))
        else:
            planted = [{name: value for name, value in one.items() if name != "b"} for one in rows]
        assert judge(history, claim(50, *planted, columns="id a")), (kind, rows)


def test_a_column_counts_from_the_transaction_that_added_it() -> None:
    history = (record(10, row(1, n="1")), record(20, row(1, n="1", m=None)), record(30, row(1, n="1", m="5")))
    assert judge(history, claim(15, row(1, n="1"))) == []
    assert "no column m" in "\n".join(judge(history, claim(20, row(1, n="1"))))
    assert judge(history, claim(20, row(1, n="1", m=None))) == []
    assert judge(history, claim(20, row(1, n="1", m="5"))) == []
    assert judge(history, claim(30, row(1, n="1", m=None))) != []


def test_a_renamed_key_is_followed_under_its_name_of_that_time() -> None:
    history = (record(10, row(1, n="1")), record(20, {"key": "1", "n": "1"}, key="key"))
    assert judge(history, claim(10, row(1, n="1"))) == []
    assert judge(history, claim(20, {"key": "1", "n": "1"})) == []
    assert judge(history, claim(10, {"key": "1", "n": "1"})) == []
    assert judge(history, claim(20, row(1, n="1"))) != []


def test_what_is_no_key_yet_may_stand_there_twice() -> None:
    history = (record(10, row(1, n="5"), row(2, n="5")), record(20, row(1, n="5"), row(2, n="6"), key="n"))
    assert judge(history, claim(10, row(1, n="5"), row(2, n="5"))) == []
    assert judge(history, claim(20, row(1, n="5"), row(2, n="6"))) == []
    assert judge(history, claim(20, row(1, n="5"), row(2, n="5"))) != []
    assert "more than one row" in "\n".join(judge(history, claim(10, row(1, n="5"), row(1, n="5"), row(2, n="5"))))


def test_what_stands_within_a_transaction_may_show_ahead_of_the_position_and_is_never_due() -> None:
    history = (record(10, row(1, n="1")), record(None, row(1, n="2")), record(20, row(1, n="3")))
    assert [judge(history, claim(10, row(1, n=n))) for n in "123"] == [[], [], []]
    assert judge(history, claim(20, row(1, n="2"))) != []


def test_a_table_that_is_gone_is_not_complete() -> None:
    history = (record(10, row(1, n="1")), Record(20), record(30, row(1, n="1")))
    assert judge(history, claim(20, row(1, n="1"))) == ["there is no such table at the source"]
    assert judge(history, claim(30, row(1, n="1"))) == []
    assert judge(history, claim(10, row(1, n="1"))) == []
    assert judge(history, claim(10, columns="id n")) == ["key 1: missing"]


def test_rows_of_inheriting_tables_are_all_there_or_none_is() -> None:
    history = (record(10, row(1, n="1"), row(100, n="1"), row(101, n="1"), only=[row(1, n="1")]),)
    assert judge(history, claim(10, row(1, n="1"))) == []
    assert judge(history, claim(10, row(1, n="1"), row(100, n="1"), row(101, n="1"))) == []
    assert "key 101: missing" in judge(history, claim(10, row(1, n="1"), row(100, n="1")))


def test_a_value_has_one_text_whatever_database_it_comes_from() -> None:
    east = timezone(timedelta(hours=2))
    for a, b in (
        (Decimal("1.50"), Decimal("1.5")),
        (Decimal("100"), 100),
        (Decimal("0.00"), 0),
        (datetime(2024, 1, 1, 2, tzinfo=east), datetime(2024, 1, 1, tzinfo=UTC)),
        (b"(1,a)", "(1,a)"),
    ):
        assert canonical(a) == canonical(b)
    assert len({canonical(value) for value in (None, "", "NULL", 0, "x", Decimal("1.2345"), Decimal("1.23"))}) == 7


# ---- the other pure parts ---------------------------------------------------


def test_a_seed_gives_one_sequence_and_its_text_gives_it_again() -> None:
    for number in range(300):
        made = generate(3, number, weather_of(3, number // 7))
        assert made == generate(3, number, weather_of(3, number // 7))
        assert Sequence.of(str(made)) == made
        assert set(made.weather) <= set(WEATHERS)
    assert generate(3, 1, ("calm",)) != generate(4, 1, ("calm",))


def test_every_kind_has_its_turn() -> None:
    turns = sum(len(kinds_of(shape)) for shape in SHAPES)
    seen = {step.kind for number in range(turns) for _, step in generate(1, number, ("calm",), alone=True).steps}
    assert set(ALL) <= seen


def test_text_that_is_no_sequence_is_refused() -> None:
    for text in ("", "plain", "plain x", "round 1", "plain 1\nupdate 1", "plain 1\nweather fine", "plain 1\nweather calm\nfly 3"):
        with pytest.raises((ValueError, IndexError)):
            Sequence.of(text)


def test_the_smallest_part_that_still_fails_is_found() -> None:
    for needed in ({3}, {3, 17}, {0, 9, 19}):
        tried = 0

        def fails(candidates: list[list[int]], needed: set[int] = needed) -> list[bool]:
            nonlocal tried
            tried += len(candidates)
            return [needed <= set(one) for one in candidates]

        assert smallest(range(20), fails) == sorted(needed)
        assert tried < 150


def test_steps_taken_out_leave_the_others_as_they_were() -> None:
    made = generate(1, 5, ("calm", "killed", "calm"))
    kept = [one for one in made.steps if one[0] == 1][:2]
    assert made.with_steps(kept).weather == ("calm", "killed")
    assert made.with_steps(kept).steps == kept
    assert made.with_steps([(0, Step("pause"))]).weather == ("calm",)


RESYNC = Action(command=("resync", "public.t"))


@pytest.mark.parametrize(
    ("hint", "found"),
    [
        ("load it anew while it goes on: cdc resync public.t01", [Action(command=("resync", "public.t01"))]),
        ("change it back and then: cdc resume public.t; or load it anew: cdc resync public.t", [RESYNC]),
        (
            "ALTER PUBLICATION cdc_x ADD TABLE public.t; then: cdc resync public.t",
            [Action(sql="ALTER PUBLICATION cdc_x ADD TABLE public.t"), RESYNC],
        ),
        (
            "ALTER TABLE public.t REPLICA IDENTITY DEFAULT;\ncdc register\ncdc resync public.t.",
            [Action(sql="ALTER TABLE public.t REPLICA IDENTITY DEFAULT"), Action(command=("register",)), RESYNC],
        ),
        (
            "GRANT SELECT ON public.t TO cdc, then cdc resume public.t (it goes on)",
            [Action(sql="GRANT SELECT ON public.t TO cdc"), Action(command=("resume", "public.t"))],
        ),
        ("cdc status tells more", []),
        ("see its log", []),
    ],
)
def test_a_cure_is_read_as_a_person_reads_it(hint: str, found: list[Action]) -> None:
    assert actions(hint) == found
