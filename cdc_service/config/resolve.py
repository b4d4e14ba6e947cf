"""Decides which source tables are replicated, to which targets and how: the ``tables`` of the configuration met with a real source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cdc_service.config.models import Config, Flush, Keyless, Load, Reconcile, Section, Snapshot, Table
from cdc_service.config.patterns import Pattern, parse_pattern, render_target
from cdc_service.config.problems import InvalidConfig, Problem, dotted, nearest
from cdc_service.core.order import BY_RECORD, Ordering
from cdc_service.core.types import Mode, TableId, Target

Part = TypeVar("Part", bound=Section)
EXCLUDE = ("columns", "exclude")


@dataclass(frozen=True, slots=True)
class TableConfig:
    """One table to replicate. ``target`` holds the destination's folded names and the mode, ``key`` the configuration key it came by.
    ``keyed`` is false for a table without a key, of which only a log of changes can be kept."""

    source: TableId
    target: Target
    topic: str
    flush: Flush
    keyless: Keyless
    key: str
    keyed: bool = True
    reconcile: Reconcile = field(default_factory=Reconcile)
    exclude: tuple[str, ...] = ()
    """Columns of the source that the target never holds."""
    load: Load | None = None
    """How it is loaded by queries; None where its changes are captured."""
    snapshot: Snapshot = "connector"

    @property
    def direct(self) -> bool:
        """Whether the service reads its rows itself. A log of changes has no key by which a row that is read twice would be one."""
        return self.snapshot == "direct" and self.target.mode is not Mode.APPEND

    def without_key(self) -> TableConfig:
        """The same for a table that turned out to have no key."""
        mode = Mode.APPEND if self.keyless == "append" else self.target.mode
        return replace(self, target=replace(self.target, mode=mode), keyed=False)


def settings_of(config: Config, table: TableId) -> Table:
    """What the configuration says of ``table`` itself: under its name, else under the pattern that means it."""
    matching = [p for p in map(parse_pattern, config.tables) if p.matches(table)]
    return next((config.tables[p.text] for p in sorted(matching, key=lambda p: not p.exact)), Table())


def taken_as_log(config: Config, table: TableId) -> bool:
    """Whether the configuration takes ``table`` without a key: as a log of changes."""
    own = settings_of(config, table)
    return (own.keyless or config.defaults.keyless) == "append" or (own.mode or config.defaults.mode) is Mode.APPEND


def excluded_keys(config: Config, tables: Sequence[TableConfig], keys: Mapping[TableId, Collection[str]]) -> list[Problem]:
    """Columns of keys that the configuration leaves out, by which a change finds its row."""
    return [
        _problem(config, t.key, f"{name} belongs to the key of {t.source}: a change finds its row by it", *EXCLUDE)
        for t in tables
        for name in t.exclude
        if name in keys.get(t.source, ())
    ]


def excluded_unknown(config: Config, tables: Sequence[TableConfig], columns: Mapping[TableId, Collection[str]]) -> list[Problem]:
    """Columns to be left out that no table has: a slip of the pen would let through what was not to be seen. ``columns`` are those of
    each table at the source."""
    meant: dict[tuple[str, str], set[str]] = defaultdict(set)
    for t in tables:
        for name in t.exclude:
            meant[t.key, name] |= set(columns.get(t.source, ()))
    return [
        _problem(config, key, f"the source has no column {name} there", *EXCLUDE, suggestion=nearest(name, sorted(there)))
        for (key, name), there in meant.items()
        if name not in there
    ]


def resolve(
    config: Config,
    source_tables: Iterable[TableId],
    fold: Callable[[str], str] = str,
    keyless: Collection[TableId] = (),
    ordering: Ordering = BY_RECORD,
    *,
    loaded: bool = False,
) -> list[TableConfig]:
    """The tables to replicate, ordered by name: those whose changes are captured, or those that are ``loaded``.

    ``source_tables`` are all tables that the source has, ``fold`` is how the destination spells a name (its folding), and
    ``keyless`` are tables known to have no key; ``ordering`` is the source's.
    Raises InvalidConfig with every problem: a key that matches nothing, two patterns on one table, two tables with one target or topic.
    """
    tables, problems = resolution(config, source_tables, fold, keyless, ordering, loaded=loaded)
    if problems:
        raise InvalidConfig(config.file, problems, hint="change the keys of 'tables', or the tables of the source")
    return tables


def resolution(
    config: Config,
    source_tables: Iterable[TableId],
    fold: Callable[[str], str] = str,
    keyless: Collection[TableId] = (),
    ordering: Ordering = BY_RECORD,
    *,
    loaded: bool = False,
) -> tuple[list[TableConfig], list[Problem]]:
    """The same with the problems beside the tables, for those who say what is wrong and go on."""
    known = sorted(source_tables)
    patterns = [parse_pattern(key) for key in config.tables]
    problems: list[Problem] = []
    chosen = _choose(config, patterns, known, problems)
    tables = [made for table, pattern in sorted(chosen.items()) if (made := _table(config, pattern.text, table, fold, ordering, problems))]
    problems += _collisions(
        config, tables, "target", lambda t: f"{fold(t.target.namespace)}.{fold(t.target.name)}", lambda t: str(t.target)
    )
    problems += _collisions(config, tables, "topic", lambda t: t.topic.replace(".", "_"), lambda t: t.topic)
    wanted = [t for t in tables if (t.load is not None) is loaded]
    return [t.without_key() if t.source in keyless else t for t in wanted], sorted(set(problems))


def _choose(config: Config, patterns: Sequence[Pattern], known: Sequence[TableId], problems: list[Problem]) -> dict[TableId, Pattern]:
    """The key that each table comes by: an exact one if there is one, else the one pattern that matches it."""
    by_table: dict[TableId, list[Pattern]] = defaultdict(list)
    for pattern in patterns:
        matched = [table for table in known if pattern.matches(table)]
        for table in matched:
            by_table[table].append(pattern)
        if not matched:
            message = "the source has no such table" if pattern.exact else "the pattern matches no table of the source"
            suggestion = nearest(pattern.text, [str(table) for table in known])
            problems.append(_problem(config, pattern.text, message, suggestion=suggestion))
    chosen: dict[TableId, Pattern] = {}
    for table, matching in by_table.items():
        best = [pattern for pattern in matching if pattern.exact] or matching
        if len(best) > 1:
            others = ", ".join(f"'{p.text}' (line {config.line('tables', p.text)})" for p in best[:-1])
            problems.append(_problem(config, best[-1].text, f"matches {table}, and so does {others}: name the table itself, or narrow one"))
        chosen[table] = best[-1]
    return chosen


def _table(
    config: Config, key: str, table: TableId, fold: Callable[[str], str], ordering: Ordering, problems: list[Problem]
) -> TableConfig | None:
    own, base = config.tables[key], config.defaults
    template = own.target or base.target
    try:
        namespace, name = render_target(template, config.pipeline, table.schema, table.name)
    except ValueError as error:
        problems.append(_problem(config, key, f"target {error}"))
        return None
    metadata = own.metadata or base.metadata
    return TableConfig(
        source=table,
        target=Target(table, fold(namespace), fold(name), own.mode or base.mode, metadata == "full", ordering),
        topic=config.names.topic(table),
        flush=_over(base.flush, own.flush),
        keyless=own.keyless or base.keyless,
        key=key,
        reconcile=_over(base.reconcile, own.reconcile),
        exclude=tuple(own.columns.exclude),
        snapshot=base.snapshot,
        load=own.load,
    )


def _over(base: Part, own: Part | None) -> Part:
    """``base`` with what ``own`` says."""
    return base if own is None else base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def _collisions(
    config: Config,
    tables: Sequence[TableConfig],
    what: str,
    identity: Callable[[TableConfig], str],
    shown: Callable[[TableConfig], str],
) -> list[Problem]:
    """One problem for each table whose identity another table has already."""
    first: dict[str, TableConfig] = {}
    problems = []
    for table in tables:
        other = first.setdefault(identity(table), table)
        if other is not table:
            cure = "give one of them another 'target'" if what == "target" else "leave one of them out, or put it into another pipeline"
            message = f"{other.source} and {table.source} have one {what}, {shown(table)}: {cure}"
            problems.append(_problem(config, table.key, message))
    return problems


def _problem(config: Config, key: str, message: str, *path: str, suggestion: str | None = None) -> Problem:
    where = ("tables", key, *path)
    return Problem(config.line(*where), dotted(where), message, suggestion)
