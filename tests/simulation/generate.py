"""Makes schedules of seeds. Each seed picks its own kinds of faults (a swarm): all of them at once show less than a few, many times over,
since faults cover for one another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cdc_service.core.types import Mode
from tests.simulation.catalog import NAMES
from tests.simulation.schedule import ACTIONS, Outcome, Setting, Simulation, Step, play_out
from tests.simulation.source import BIG, KEYS, TRANSACTIONAL
from tests.simulation.warehouses import Warehouses

Draw = random.Random
CATALOG_SHARE, REWRITES_SHARE, TIES_SHARE, DIRECT_SHARE = 0.35, 0.1, 0.1, 0.3
"""Of the seeds so many change the catalog, too, so many write values anew that later events leave out, so many have a source whose changes
share positions, and in so many the service reads the rows of tables itself."""
FILLS = ("null", "filled", "?")


def _number(draw: Draw) -> str:
    return str(draw.randrange(10**6))


def _table(draw: Draw, s: Simulation) -> str:
    return draw.choice([name for name, _ in s.setting.modes])


def _worker(draw: Draw, s: Simulation) -> str:
    return draw.choice(s.group.workers).name if s.group.workers else "w0"


def _anyone(draw: Draw, s: Simulation) -> str:
    return draw.choice([w.name for w in (*s.group.workers, *s.group.frozen)] or ["w0"])


def _write(draw: Draw, s: Simulation) -> Step:
    what = draw.choices(["insert", "update", "update_body", "delete", "move"], [4, 4, 2, 2, 5 if "moves" in s.kinds else 1])[0]
    return Step("write", (str(draw.randrange(3)), what, _table(draw, s), str(draw.randrange(KEYS)), str(draw.randrange(KEYS))))


def _turn(draw: Draw, s: Simulation) -> Step:
    look = ("look",) if draw.random() < 0.4 else ()
    return Step("turn", (_worker(draw, s), _number(draw), *look))


def _person(draw: Draw, s: Simulation) -> Step:
    return Step("act", (_worker(draw, s), _number(draw), draw.choice(["pause", "resync", "resync"]), _table(draw, s)))


def _catalog(draw: Draw, s: Simulation) -> Step:
    table = _table(draw, s)
    shape = s.world.source.tables[table].shape
    what = draw.choices(list(CATALOG), list(CATALOG.values()))[0]
    if draw.random() < 0.5:  # What was begun comes to its end more often than anything else.
        what = "publish" if shape.member is None else "show" if shape.hidden else "detach" if shape.parts else what
    words: tuple[str, ...] = ()
    if what == "rename":
        words = draw.choice(["id", "name", "name", "body", "extra"]), str(draw.randrange(len(NAMES)))
    elif what in ("rewrite", "restore"):
        words = (draw.choice(["name", "body"]),)
    elif what == "attach":
        words = str(draw.randrange(KEYS)), str(draw.randrange(KEYS))
    within = what in TRANSACTIONAL and draw.random() < 0.4
    return Step("catalog", (str(draw.randrange(3)) if within else "-", what, table, *words))


def _rewrite(draw: Draw, s: Simulation) -> Step:
    """A transaction writes large values anew, and then changes such a row without touching them."""
    altered = [(slot, table) for slot, tx in s.world.source.open.items() for table in tx.shapes]
    if not altered or draw.random() < 0.3:
        return Step("catalog", (str(draw.randrange(3)), "rewrite", _table(draw, s), "body"))
    slot, table = draw.choice(altered)
    large = [key for key, row in s.world.source.tables[table].rows.items() if str(row["body"]).startswith(BIG)]
    return Step("write", (str(slot), "update", table, str(draw.choice(large or [0])), "0"))


CATALOG = {
    "rename": 4,
    **dict.fromkeys(("unpublish", "hide", "rewrite", "restore", "attach"), 2),
    **dict.fromkeys(("swap", "reuse", "vacuum", "born"), 1),
}
"""How often each statement."""

USUAL: tuple[tuple[float, Callable[[Draw, Simulation], Step]], ...] = (
    (8, _write),
    (5, lambda d, s: Step("commit", (str(d.randrange(3)),))),
    (0.5, lambda d, s: Step("abort", (str(d.randrange(3)),))),
    (7, lambda d, s: Step("deliver", (str(d.choice([1, 3, 10])),))),
    (1.2, lambda d, s: Step("store")),
    (20, _turn),
    (1.5, lambda d, s: Step("operate", (_worker(d, s), _number(d)))),
    (0.5, lambda d, s: Step("wait", (str(d.choice([2, 30])),))),
    (1, lambda d, s: Step("wake", (d.choice([w.name for w in s.group.frozen] or ["nobody"]), _number(d)))),
    (1, lambda d, s: Step("make_topic", (_table(d, s),))),
    (1, lambda d, s: Step("up", (d.choice(["kafka", "warehouse", "source"]),))),
)
"""What always goes on, by how often."""

KINDS: dict[str, tuple[tuple[float, Callable[[Draw, Simulation], Step]], ...]] = {
    **dict.fromkeys(ACTIONS, ()),
    "moves": (),
    "kill": ((0.5, lambda d, s: Step("kill", (_anyone(d, s), _number(d)))),),
    "join": ((0.5, lambda d, s: Step("join", (_number(d),))),),
    "rebalance": ((0.7, lambda d, s: Step("share", (_number(d),))),),
    "truncate": ((0.8, lambda d, s: Step("truncate", (_table(d, s),))),),
    "schema": (
        (0.6, lambda d, s: Step("add_column", (_table(d, s), d.choice(FILLS)))),
        (0.1, lambda d, s: Step("drop_column", (_table(d, s),))),
    ),
    "tail": ((1.2, lambda d, s: Step("restart_connector")),),
    "offsets removed": ((0.3, lambda d, s: Step("forget_offsets")),),
    "poison": ((0.3, lambda d, s: Step("poison")),),
    "signals": ((0.3, lambda d, s: Step("lose_signal")),),
    "person": ((0.6, _person),),
    "retention": ((0.6, lambda d, s: Step("retain", (_table(d, s), str(d.randrange(5)), str(d.choice([0, 2, 10]))))),),
    "topic": ((0.1, lambda d, s: Step("delete_topic", (_table(d, s),))),),
    "partitions": ((0.2, lambda d, s: Step("add_partition", (_table(d, s), _number(d)))),),
    "outage": ((0.3, lambda d, s: Step("down", (d.choice(["kafka", "warehouse", "source"]),))),),
    "dba": (
        (0.15, lambda d, s: Step("drop_target", (_table(d, s),))),
        (0.1, lambda d, s: Step("forget_checkpoint", (_table(d, s),))),
    ),
    "backup": ((0.3, lambda d, s: Step("backup")), (0.1, lambda d, s: Step("restore"))),
    "catalog": (
        (3, _catalog),
        (0.02, lambda d, s: Step("lag")),
    ),
    "rewrites": ((3, _rewrite),),
    "clock": (
        (0.3, lambda d, s: Step("wall_clock", (str(d.choice([-3600, 3600])),))),
        (0.5, lambda d, s: Step("source_clock", (str(d.choice([-100, 100])),))),
    ),
}
"""The kinds of faults: what each adds to the steps."""


@dataclass(frozen=True)
class Profile:
    setting: Setting
    kinds: frozenset[str]
    steps: int


def profile(draw: Draw) -> Profile:
    tables = draw.choices([1, 2, 3], [5, 3, 2])[0]
    modes = tuple((f"t{n}", draw.choice(list(Mode))) for n in range(tables))
    setting = Setting(modes, draw.choice([1, 2, 3, 3]), draw.choice([1000, 10**9, 10**9]), draw.choice([0, 2, 6]), draw.random() < 0.5)
    share = draw.choice([0.0, 0.2, 0.4, 0.6])
    kinds = frozenset(kind for kind in KINDS if kind not in ("catalog", "rewrites") and draw.random() < share)
    return Profile(setting, kinds, draw.choice([60, 150, 300]))


def _steps(draw: Draw, p: Profile) -> Callable[[Simulation], Iterator[Step]]:
    usual = [*USUAL, *(entry for kind in sorted(p.kinds) for entry in KINDS[kind])]
    actions = [action for action in ACTIONS if action in p.kinds]

    def play(s: Simulation) -> Iterator[Step]:
        s.kinds = p.kinds
        fault: int | None = None
        for _ in range(p.steps):
            (make,) = draw.choices([make for _, make in usual], [weight for weight, _ in usual])
            step = make(draw, s)
            if actions and step.verb in ("turn", "operate", "act", "wake"):
                # Among the next so many effects, whichever turns they fall into.
                fault = fault if fault is not None else int(draw.paretovariate(0.5))
                step = Step(step.verb, step.words, ((fault, draw.choice(actions), "?"),))
            before = sum(s.world.passed.values())
            done = s.apply(step)
            if step.faults and fault is not None:
                fault -= sum(s.world.passed.values()) - before
                fault = None if fault <= 0 or (done is not None and done.faults) else fault
            if done is not None:
                yield done

    return play


def run(seed: int, warehouses: Warehouses) -> Outcome:
    """The schedule of a seed. What did nothing is left out of the schedule that comes back."""
    draw = random.Random(seed)
    p = profile(draw)
    if random.Random(f"catalog a:{seed}").random() < CATALOG_SHARE:  # Most seeds that catch a design bug keep their schedules by it.
        p = replace(p, kinds=p.kinds | {"catalog"})
    if (ties := random.Random(f"ties:{seed}")).random() < TIES_SHARE:
        modes = tuple((name, Mode.UPSERT if mode is Mode.APPEND else mode) for name, mode in p.setting.modes)
        p = replace(p, setting=replace(p.setting, modes=modes, ties=ties.choice(["minor", "offset"])))
    if random.Random(f"direct:{seed}").random() < DIRECT_SHARE:
        p = replace(p, setting=replace(p.setting, direct=True))
    if random.Random(f"rewrites:{seed}").random() < REWRITES_SHARE:
        p = replace(p, kinds=p.kinds | {"rewrites"})
    return play_out(p.setting, warehouses, _steps(draw, p))
