"""A sequence: what happens to one table, as text that can be replayed, and its making from a seed.

A line is a step: `kind number`, where the number decides what the kind leaves to chance (columns, rows, values), so that a sequence stays
the same one when other steps are taken out. `begin`, `commit` and `rollback` hold steps together, `pause` lets time pass, `resync` asks for
one, `weather NAME` begins a phase: how the line fares while the steps after it run. All tables of a round have the same weather. What
stands behind # is for the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.identity.kinds import ALL, COMMON, PARTITIONED, PLAIN, ROWS

WEATHERS = {
    "calm": 10,
    "stopped": 2,
    "killed": 4,
    "paused": 3,
    "paused_and_stopped": 1,
    "inserts_only": 1,
    "leaves": 1,
    "unpublished": 1,
}
"""What the line meets, each with its weight: the service ended, killed, the connector paused, both; the publication restricted to inserts,
publishing partitions under their own names, or dropped."""
SHAPES = ("plain", "partitioned")
PHASES = 3
BETWEEN = ("begin", "commit", "rollback", "pause", "resync")
"""Steps that change nothing at the source by themselves."""


@dataclass(frozen=True, slots=True)
class Step:
    kind: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass(frozen=True, slots=True)
class Phase:
    weather: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    shape: str
    number: int
    """Decides the first rows."""
    phases: tuple[Phase, ...]

    @property
    def weather(self) -> tuple[str, ...]:
        return tuple(phase.weather for phase in self.phases)

    @property
    def steps(self) -> list[tuple[int, Step]]:
        """All steps, each with the number of its phase."""
        return [(at, step) for at, phase in enumerate(self.phases) for step in phase.steps]

    def with_steps(self, kept: list[tuple[int, Step]]) -> Sequence:
        """The same phases with these steps; phases after the last step are left out."""
        last = max((at for at, _ in kept), default=0)
        phases = [Phase(p.weather, tuple(s for n, s in kept if n == at)) for at, p in enumerate(self.phases[: last + 1])]
        return Sequence(self.shape, self.number, tuple(phases))

    def in_weather(self, *weather: str) -> Sequence:
        return Sequence(self.shape, self.number, tuple(Phase(w, p.steps) for w, p in zip(weather, self.phases, strict=True)))

    def __str__(self) -> str:
        lines = [f"{self.shape} {self.number}"]
        for phase in self.phases:
            lines += [f"weather {phase.weather}", *(str(step) for step in phase.steps)]
        return "\n".join(lines) + "\n"

    @classmethod
    def of(cls, text: str) -> Sequence:
        """Raises ValueError with the line that is none."""
        lines = [words for line in text.splitlines() if (words := line.partition("#")[0].split())]
        if not lines or lines[0][0] not in SHAPES:
            raise ValueError(f"a sequence begins with one of {', '.join(SHAPES)} and a number")
        phases: list[tuple[str, list[Step]]] = []
        for words in lines[1:]:
            if words[0] == "weather" and len(words) == 2 and words[1] in WEATHERS:
                phases.append((words[1], []))
            elif words[0] in {*ALL, *BETWEEN} and phases:
                phases[-1][1].append(Step(words[0], int(words[1]) if len(words) > 1 else 0))
            else:
                raise ValueError(f"no step of a sequence: {' '.join(words)}")
        return cls(lines[0][0], int(lines[0][1]), tuple(Phase(weather, tuple(steps)) for weather, steps in phases))


def weather_of(seed: int, round_: int) -> tuple[str, ...]:
    """The phases of a round; the first is mostly calm, so that most of what is found needs no fault."""
    dice = Random(f"weather/{seed}/{round_}")
    found = dice.choices(list(WEATHERS), list(WEATHERS.values()), k=PHASES)
    return ("calm" if dice.random() < 0.5 else found[0], *found[1:])


def kinds_of(shape: str) -> list[str]:
    return [*COMMON, *(PARTITIONED if shape == "partitioned" else PLAIN)]


def generate(seed: int, number: int, weather: tuple[str, ...], *, only: tuple[str, ...] = (), alone: bool = False) -> Sequence:
    """Sequence ``number`` of a seed. Consecutive numbers take consecutive kinds as their first change of the schema, so that every kind
    has its turn; what else happens is drawn. ``only`` restricts the kinds; ``alone`` leaves each sequence its first kind and rows."""
    dice = Random(f"identity/{seed}/{number}")
    turns = [(shape, kind) for shape in SHAPES for kind in kinds_of(shape) if not only or kind in only]
    if not turns:
        raise ValueError(f"no kind is left: {', '.join(only)}")
    turns.sort(key=lambda turn: Random(f"turn/{seed}/{turn}").random())
    shape, first = turns[number % len(turns)]
    kinds = [kind for kind in kinds_of(shape) if not only or kind in only]
    share = 0.0 if alone else dice.choice((0.0, 0.15, 0.3, 0.5))
    phases = []
    for at, name in enumerate(weather):
        steps: list[Step] = []
        for _ in range(dice.randrange(4, 12)):
            kind = dice.choice(kinds) if dice.random() < share else dice.choices(list(ROWS), [weight for weight, _ in ROWS.values()])[0]
            steps.append(Step(kind, dice.randrange(10**6)))
        if at == 0 or alone:
            steps.insert(dice.randrange(len(steps)), Step(first, dice.randrange(10**6)))
        phases.append(Phase(name, tuple(_held_together(steps, dice))))
    return Sequence(shape, dice.randrange(10**6), tuple(phases))


def _held_together(steps: list[Step], dice: Random) -> list[Step]:
    """Some runs of steps become transactions, a few of them rolled back; some moments pass between."""
    made: list[Step] = []
    at = 0
    while at < len(steps):
        if dice.random() < 0.3:
            count = dice.randrange(1, 5)
            inside = steps[at : at + count]
            if dice.random() < 0.3:
                inside.insert(dice.randrange(len(inside) + 1), Step("pause", dice.randrange(10**6)))
            made += [Step("begin"), *inside, Step("rollback" if dice.random() < 0.25 else "commit")]
            at += count
        else:
            made.append(steps[at])
            at += 1
        if dice.random() < 0.03:
            made.append(Step("resync"))
        if dice.random() < 0.25:
            made.append(Step("pause", dice.randrange(10**6)))
    return made
