"""The real loop under schedules of seeds: transactions, snapshots, servers that fail, workers that die, freeze and wake; every invariant
after every commit (I1-I4, I7-I13, I16-I25). docs/simulation.md says how, `make simulate` runs more.

A violation prints its shrunk schedule; add it to REGRESSIONS when it is mended.
"""

from __future__ import annotations

import ast
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_service.failpoints import NAMES
from tests.conformance.harness import PostgreSqlHarness
from tests.simulation.generate import run
from tests.simulation.schedule import Schedule, Setting, Simulation, Step, execute, quiet
from tests.simulation.simulate import shrunk
from tests.simulation.warehouses import Warehouses

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("CDC_SIMULATION_SECONDS", "15"))
"""How long schedules run on each destination."""
ENOUGH = 5
"""So many run however slow the machine is."""

REGRESSIONS = {
    "a row is to be read again, and a column of its record's schema is gone at the source": """
        begin tables=t0:upsert partitions=3 memory=1000000000 rows=6 alone=0
        commit 1
        add_column t0 null
        write 1 insert t0 6 4
        commit 1
        deliver 10
        turn w0 289446 look
        write 0 update t0 5 2
        commit 0
        delete_topic t0
        make_topic t0
        turn w0 143046 look
        turn w0 304949
        operate w0 401868
        drop_column t0
        """,
    "the connector began anew, and later changes of each key came in the same batch as the rows that tell": """
        begin tables=t0:upsert partitions=3 memory=1000000000 rows=2 alone=1
        deliver 3
        turn w0 239447 look
        store
        turn w0 932896
        turn w0 405285 look
        commit 1
        forget_offsets
        """,
    "the first record of a topic is spoiled, and nobody knows its table yet": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=0 alone=1
        poison
        write 0 insert t0 1 1
        commit 0
        deliver 10
        turn w0 1 look
        turn w0 2 look
        turn w0 3 look
        """,
    "a goal that was set for a topic which was made again is never reached": """
        begin tables=t0:soft_delete partitions=2 memory=1000000000 rows=2 alone=0
        commit 1
        turn w0 773199 look
        deliver 3
        join 703818
        turn w0 721964
        turn w1 150689 look
        deliver 3
        store
        turn w1 287626 look
        delete_topic t0
        """,
    "a log of changes is read anew after retention passed one of its partitions, and the others go on where they were": """
        begin tables=t0:append partitions=3 memory=1000 rows=6 alone=0
        turn w0 996611
        turn w1 256337
        join 92053
        deliver 1
        retain t0 0 0
        """,
    "a snapshot begun twice found no row the second time": """
        begin tables=t0:soft_delete partitions=1 memory=1000 rows=2 alone=0
        deliver 3
        commit 1
        truncate t0
        restart_connector
        """,
    "somebody removes the checkpoint of a partition that gets no record any more": """
        begin tables=t0:soft_delete partitions=1 memory=1000 rows=2 alone=0
        add_partition t0 325787
        turn w0 562728 crash@4(warehouse.totals)
        join 865714
        add_partition t0 734297
        turn w2 256520 look
        forget_checkpoint t0
        """,
    "the connector begins anew, and with it goes what it had read for a resync": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=0 alone=1
        turn w0 921516
        act w0 744204 resync t0
        deliver 10
        write 1 insert t0 6 7
        commit 1
        restart_connector
        """,
    "an unsent value was taken from a row that a snapshot which began twice could not replace": """
        begin tables=t0:append,t1:soft_delete partitions=1 memory=1000 rows=6 alone=1
        write 1 update_body t1 0 1
        commit 1
        deliver 3
        deliver 10
        deliver 3
        restart_connector
        """,
    "a worker stands still between asking for the log's ends and for its checkpoint, and others merge meanwhile": """
        begin tables=t0:soft_delete partitions=3 memory=1000000000 rows=0 alone=0
        turn w0 340463 crash@1(kafka.poll)
        turn w1 914219 look freeze@1(kafka.poll)
        deliver 3
        turn w2 953955 look freeze@5(warehouse.table_rows)
        write 1 insert t0 3 3
        write 1 move t0 3 5
        write 2 insert t0 6 0
        store
        commit 2
        commit 1
        write 1 update_body t0 6 5
        deliver 10
        commit 1
        deliver 3
        write 1 insert t0 4 4
        turn w3 150312
        turn w3 4192
        turn w3 315055 look
        wake w2 584997
        restart_connector
        operate w2 536339
        """,
    "several processes were stopped by their quarantine, and resuming one of them lets all go on": """
        begin tables=t0:append,t1:upsert partitions=3 memory=1000 rows=2 alone=0
        turn w0 616133
        turn w1 48037 look
        commit 1
        join 437504
        deliver 10
        join 843720
        delete_topic t0
        make_topic t0
        poison
        write 0 insert t0 2 5
        commit 0
        write 1 update t0 2 5
        commit 1
        store
        deliver 3
        restart_connector
        join 67683
        """,
    "a changed key takes what was not sent from a row that a resync left behind": """
        begin tables=t0:soft_delete,t1:append partitions=1 memory=1000000000 rows=6 alone=1
        turn w0 614051 freeze@1(kafka.poll)
        deliver 10
        turn w1 476438 look freeze@7(warehouse.table_rows)
        turn w2 514210 freeze@4(warehouse.load_state)
        turn w3 820237 look freeze@1(kafka.poll)
        turn w4 118 freeze@5(warehouse.totals)
        turn w5 517585 freeze@1(kafka.poll)
        turn w6 286998
        turn w6 796332 look freeze@25(warehouse.commit)
        write 1 update_body t0 2 4
        commit 1
        deliver 10
        write 2 delete t0 4 2
        turn w7 187184 look
        wake w4 267542
        turn w7 78441 look
        commit 2
        write 0 move t0 2 4
        deliver 3
        drop_target t1
        operate w7 186984
        wake w5 307629
        """,
    "the connector begins anew after a resync knew where its scan ended": """
        begin tables=t0:soft_delete,t1:upsert partitions=1 memory=1000000000 rows=6 alone=1
        deliver 10
        turn w0 407650 freeze@2(kafka.describe)
        act w1 472424 resync t1
        wake w0 354310
        deliver 10
        write 2 update t1 4 0
        turn w0 404983 look
        commit 2
        restart_connector
        """,
    "the last attempt at a snapshot found a table empty, and an earlier one had sent rows of it": """
        begin tables=t0:upsert partitions=2 memory=1000000000 rows=6 alone=1
        deliver 1
        commit 1
        truncate t0
        deliver 1
        restart_connector
        """,
    "a resync begins between a worker's look at the state and its taking the partitions": """
        begin tables=t0:soft_delete partitions=1 memory=1000000000 rows=6 alone=0
        turn w0 938926 freeze@3(kafka.describe)
        turn w1 315087 look crash@1(kafka.poll)
        wake w0 146400
        turn w2 407608 look crash@1(kafka.poll)
        turn w0 809000 look freeze@1(kafka.poll)
        turn w3 471653 freeze@1(kafka.poll)
        turn w4 986179 look crash@4(warehouse.states)
        turn w5 726415 crash@1(kafka.poll)
        commit 1
        add_column t0 ?
        turn w6 923424 freeze@1(kafka.poll)
        turn w7 248717 freeze@2(warehouse.checkpoints)
        deliver 10
        turn w8 312303 crash@5(warehouse.totals)
        write 0 update t0 5 1
        turn w9 240510 look freeze@2(warehouse.states)
        turn w10 431375 look freeze@7(warehouse.take)
        turn w11 241605 look crash@1(kafka.poll)
        turn w12 760563 look crash@1(kafka.poll)
        turn w13 1691 look crash@1(kafka.poll)
        turn w14 704853 look freeze@1(kafka.poll)
        turn w15 830081 look crash@4(warehouse.load_state)
        commit 0
        deliver 1
        turn w16 579373
        deliver 10
        wake w10 977196
        """,
    "a resync that a new column needs is forgotten with the process that found so": """
        begin tables=t0:append,t1:upsert,t2:soft_delete partitions=1 memory=1000 rows=2 alone=0
        turn w0 513243 crash@1(kafka.poll)
        turn w1 234776 crash@1(kafka.poll)
        turn w2 333440 freeze@15(warehouse.checkpoints)
        turn w3 463350 look crash@1(kafka.poll)
        turn w4 715211 freeze@12(warehouse.schemas)
        turn w5 640240 freeze@2(warehouse.checkpoints)
        turn w6 371857 crash@4(warehouse.load_state)
        turn w7 364354 look crash@5(warehouse.totals)
        turn w8 741766 crash@2(warehouse.checkpoints)
        turn w9 16105 freeze@1(kafka.poll)
        turn w10 944820 look freeze@11(warehouse.tails)
        turn w11 445421 crash@1(kafka.poll)
        turn w12 778962 freeze@9(warehouse.reply)
        turn w13 500715 freeze@1(kafka.poll)
        turn w14 354462 look crash@3(kafka.describe)
        turn w15 246471 look freeze@6(warehouse.table_rows)
        turn w16 358761 look crash@11(warehouse.tails)
        turn w17 825213 look crash@1(kafka.poll)
        deliver 10
        turn w18 554149 freeze@3(line.flush)
        turn w19 755697 look crash@2(warehouse.checkpoints)
        turn w20 480291 crash@2(warehouse.checkpoints)
        forget_offsets
        turn w21 862163 look freeze@5(warehouse.totals)
        deliver 10
        turn w22 494046 crash@6(warehouse.table_rows)
        turn w23 363750 look freeze@1(kafka.poll)
        turn w24 774476 look crash@2(warehouse.checkpoints)
        write 0 insert t2 4 4
        turn w25 571929 crash@4(warehouse.load_state)
        turn w26 162086 crash@6(warehouse.table_rows)
        turn w27 728514 freeze@2(warehouse.checkpoints)
        turn w28 120292 look crash@1(kafka.poll)
        turn w29 976119 look crash@1(kafka.poll)
        add_partition t1 567225
        turn w30 952859 freeze@5(warehouse.totals)
        turn w31 881783 look freeze@1(kafka.poll)
        turn w32 136491 crash@2(warehouse.checkpoints)
        commit 0
        deliver 3
        turn w33 956306 look freeze@3(line.polled)
        turn w34 358853 look crash@1(kafka.poll)
        turn w35 492594
        drop_target t2
        turn w35 589595
        turn w35 639213
        wake w15 247861
        operate w15 668885
        deliver 10
        add_column t2 ?
        wake w18 83120
        write 2 delete t2 4 0
        commit 2
        deliver 3
        turn w35 639093 look
        turn w35 744138 look
        turn w35 610277 look freeze@4(warehouse.save_state)
        """,
    "the end of a snapshot of before a restore is taken for that of the one after it": """
        begin tables=t0:upsert,t1:upsert partitions=3 memory=1000 rows=2 alone=1
        commit 1
        turn w0 588269
        write 2 insert t0 4 6
        turn w0 795514 look freeze@1(kafka.poll)
        backup
        turn w1 206819 freeze@1(kafka.poll)
        restart_connector
        deliver 3
        commit 2
        act w2 442191 resync t0
        turn w2 92658 freeze@3(kafka.describe)
        turn w3 311088 freeze@7(warehouse.commit)
        add_column t0 ?
        lose_signal
        deliver 3
        turn w4 874437 freeze@1(kafka.poll)
        restore
        turn w6 901458 look
        deliver 3
        turn w6 37306 look
        turn w6 161687
        turn w6 858816
        turn w6 602131
        """,
    "an event of before a column came, sent again, falls into the generation that was read for it": """
        begin tables=t0:upsert,t1:upsert partitions=3 memory=1000 rows=2 alone=1
        turn w0 795514 look freeze@1(kafka.poll)
        turn w1 206819 freeze@1(kafka.poll)
        write 2 insert t1 6 3
        deliver 1
        deliver 3
        store
        commit 2
        turn w2 92658 freeze@3(kafka.describe)
        turn w3 311088 freeze@7(warehouse.commit)
        commit 1
        add_column t1 ?
        turn w4 874437 freeze@1(kafka.poll)
        write 1 insert t1 3 7
        deliver 10
        commit 1
        deliver 1
        turn w5 586964
        turn w5 23106
        restart_connector
        """,
    "a change of a log that comes again stays in the generation before the one that was read": """
        begin tables=t0:append partitions=3 memory=1000000000 rows=2 alone=1
        turn w0 956203
        join 67812
        deliver 10
        turn w0 988482
        join 853612
        join 650213
        store
        write 2 insert t0 6 2
        commit 2
        deliver 3
        delete_topic t0
        write 2 update_body t0 6 2
        make_topic t0
        commit 2
        deliver 10
        turn w3 174234
        operate w3 644408
        restart_connector
        """,
    "a connector that begins anew finds a complete table empty, and nothing tells": """
        begin tables=t0:soft_delete,t1:upsert partitions=2 memory=1000000000 rows=6 alone=1
        commit 1
        restart_connector
        deliver 10
        turn w0 708163 look
        store
        turn w0 49958 look
        turn w0 873838
        forget_offsets
        truncate t0
        restart_connector
        """,
    "who slept through a resync brings the checkpoints of the log before it back": """
        begin tables=t0:soft_delete partitions=3 memory=1000 rows=2 alone=0
        deliver 10
        commit 1
        turn w0 582020 freeze@2(line.polled)
        deliver 3
        turn w1 745026 look freeze@4(warehouse.totals)
        write 2 update_body t0 0 4
        turn w2 153749 look
        turn w2 214445 freeze@3(warehouse.release)
        turn w3 930581 look freeze@1(kafka.poll)
        turn w4 801649 freeze@5(warehouse.totals)
        commit 2
        deliver 10
        turn w5 311790 look freeze@2(kafka.describe)
        turn w6 992924 look freeze@3(warehouse.load_state)
        turn w7 609534 freeze@12(warehouse.parked_keys)
        turn w8 910108
        turn w8 9706
        turn w8 882381 look freeze@2(warehouse.states)
        turn w9 885415 freeze@2(warehouse.checkpoints)
        delete_topic t0
        wake w1 703737
        wake w3 511652
        make_topic t0
        turn w1 202599 freeze@1(kafka.poll)
        turn w10 681306 freeze@1(kafka.poll)
        turn w3 739228
        operate w3 770883
        """,
}
"""Shrunk schedules of bugs that the simulation found in the service."""


@pytest.fixture(scope="module")
def memory() -> Iterator[Warehouses]:
    made = Warehouses("memory")
    yield made
    made.close()


@pytest.fixture(params=["memory", "duckdb", pytest.param("postgresql", marks=pytest.mark.stack)])
def warehouses(request: pytest.FixtureRequest) -> Iterator[Warehouses]:
    if request.param == "postgresql":
        PostgreSqlHarness.server = request.getfixturevalue("postgres")
    made = Warehouses(request.param)
    yield made
    made.close()


def test_all_invariants_hold_after_every_commit_whatever_happens(warehouses: Warehouses) -> None:
    began, seed, commits = time.monotonic(), 0, 0
    while time.monotonic() - began < SECONDS or seed < ENOUGH:
        outcome = run(seed, warehouses)
        assert not outcome.violation, f"seed {seed}: {outcome.violation}\n\n{shrunk(outcome, warehouses, 60)}"
        seed, commits = seed + 1, commits + outcome.commits
    print(f"{warehouses.name}: {seed} schedules, {commits} commits")


@pytest.mark.parametrize("what", REGRESSIONS)
def test_what_was_found_and_mended_stays_so(memory: Warehouses, what: str) -> None:
    assert not execute(Schedule.of(REGRESSIONS[what]), memory).violation


def test_a_schedule_is_text_that_can_be_replayed(memory: Warehouses) -> None:
    seen: Counter[str] = Counter()
    for seed in range(3):
        first = run(seed, memory)
        again = execute(Schedule.of(str(first.schedule)), memory)
        assert str(again.schedule) == str(first.schedule)
        assert (again.violation, again.commits, again.happened) == (first.violation, first.commits, first.happened)
        seen.update(first.happened)
    assert sum(seen.values()) > 10


def code_failpoints() -> set[str]:
    """The names at which the service's code passes failpoints."""
    found = set()
    for package in ("cdc_service", "connectors", "mergers", "reconcile"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                    (name,) = node.args
                    assert isinstance(name, ast.Constant), f"{path}: a failpoint's name is a text"
                    found.add(name.value)
    return found


def test_every_failpoint_is_registered_and_schedules_pass_it(memory: Warehouses) -> None:
    assert code_failpoints() == set(NAMES)
    passed: Counter[str] = Counter()
    for seed in range(200):
        passed.update(run(seed, memory).passed)
        if set(NAMES) <= set(passed):
            return
    pytest.fail(f"never passed: {sorted(set(NAMES) - set(passed))}")


def test_a_table_of_which_no_event_ever_came_has_an_empty_target(memory: Warehouses) -> None:
    with quiet():
        simulation = Simulation(Setting(), memory)
        for number in range(40):
            simulation.world.at += 1.0
            for step in (Step("deliver", ("10",)), Step("store"), Step("turn", ("w0", str(number), "look"))):
                simulation.apply(step)
    (target,) = simulation.targets
    schema = simulation.warehouse.schema(target)
    assert schema == simulation.world.schema("t0")
    assert simulation.warehouse.rows(target, schema).num_rows == 0
    assert simulation.warehouse.state(target).state == "streaming"


def test_i18_a_resync_into_a_topic_made_again_goes_on_while_no_partition_is_here(memory: Warehouses) -> None:
    """The group takes seconds to hand the new topic's partitions out; until then the table knows only the old topic."""
    with quiet():
        simulation = Simulation(Setting(rows=2), memory)
        for number in range(20):
            for step in (Step("deliver", ("10",)), Step("store"), Step("turn", ("w0", str(number), "look"))):
                simulation.apply(step)
        (worker,) = simulation.group.workers
        simulation.apply(Step("delete_topic", ("t0",)))
        worker.log.lost = set(worker.log.positions)
        worker.turn()
        simulation.apply(Step("make_topic", ("t0",)))
        worker.log.given.clear()
        worker.facts = simulation.world.look()
        worker.turn()
        worker.act("resync", "t0")
        for _ in range(3):
            simulation.world.at += 1.0
            worker.facts = simulation.world.look()
            worker.turn()
        assert worker.tables[0].state == "snapshotting"
        simulation.heal()
