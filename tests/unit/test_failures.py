"""What is said of a connector's failure: the table and the cure, and never a value that its trace may quote."""

from __future__ import annotations

import pytest

from cdc_service.ports.capture import OTHER_CURE, Failure
from connectors.debezium.failures import failure
from connectors.sources.postgresql.failures import PostgresFailures

WRAPPED = "org.apache.kafka.connect.errors.ConnectException: An exception occurred in the change event producer.\n\tat a.B.c(B.java:1)\n"
SECRET = "hunter2"


@pytest.mark.parametrize(
    "cause",
    [
        f"io.debezium.DebeziumException: Cannot serialize chunk information {{{SECRET}}}",
        f'org.postgresql.util.PSQLException: ERROR: invalid input syntax for type numeric: "{SECRET}"',
        f"org.apache.kafka.connect.errors.DataException: Invalid value: {SECRET}",
        f"org.apache.kafka.connect.errors.ConnectException: Error at {{v={SECRET}}}",
        f"java.lang.IllegalArgumentException: a value that goes\n{SECRET} over lines\nCaused by: {SECRET}",
        f"{SECRET}: no class at all",
    ],
)
@pytest.mark.parametrize("outer", ["", WRAPPED])
def test_no_value_of_a_trace_is_passed_on(cause: str, outer: str) -> None:
    found = failure(f"{outer}Caused by: {cause}\n\tat x.Y.z(Y.java:1)\n\t... 9 more" if outer else cause, PostgresFailures())
    assert found is not None
    assert SECRET not in found.message + found.cure
    assert found.message
    assert found.cure


def test_what_is_not_known_is_said_by_its_classes_and_texts_that_hold_no_value() -> None:
    found = failure(f"{WRAPPED}Caused by: io.debezium.DebeziumException: {SECRET}\nCaused by: java.io.EOFException", PostgresFailures())
    assert found is not None
    outer = "org.apache.kafka.connect.errors.ConnectException: An exception occurred in the change event producer."
    assert (found.message, found.cure, found.skips) == (f"{outer} (java.io.EOFException)", OTHER_CURE, False)


def test_names_are_quoted_in_statements_and_escaped_in_expressions() -> None:
    twins = "has columns that differ only by case. Column name: 'V x'. Debezium does not support"
    found = failure(f"{WRAPPED}Caused by: io.debezium.DebeziumException: Table 's-1.T a' {twins}", PostgresFailures())
    assert found is not None
    assert found.cure.startswith('ALTER TABLE "s-1"."T a" RENAME COLUMN "V x" TO ...;')
    assert found.skips
    value = "Failed to properly convert data value for 'public.t.b+{x}' of type _bit"
    found = failure(f"{WRAPPED}Caused by: io.debezium.DebeziumException: {value}", PostgresFailures())
    assert found is not None
    assert r"'public\.t\.b\+\{x\}'" in found.cure


def test_a_connector_without_a_trace_has_not_failed() -> None:
    assert failure(None, None) is None
    assert failure("", None) is None


def test_what_only_a_source_knows_is_not_told_without_it() -> None:
    trace = "org.postgresql.util.PSQLException: FATAL: terminating connection"
    assert failure(trace, PostgresFailures()) == Failure(trace)
    assert failure(trace, None) == Failure("an exception")
    lost = 'io.debezium.DebeziumException: The connector is trying to read change stream starting at LSN{0/1}, "a"'
    known, unknown = failure(lost, PostgresFailures()), failure(lost, None)
    assert known is not None
    assert known.skips
    assert unknown == Failure("io.debezium.DebeziumException")
