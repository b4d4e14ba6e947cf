"""The command line's shell: exit codes, errors with their cure, options before and after the command, forms of results."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_service import __version__
from cdc_service.cli import exits
from cdc_service.cli.check import documented, show
from cdc_service.cli.main import run
from cdc_service.cli.output import Output, cell, plain_table
from cdc_service.cli.register import DETAILS_MAX, show_steps
from cdc_service.config import load
from cdc_service.core import errors
from cdc_service.core.names import Names
from cdc_service.ports.source import Finding, Level
from connectors.debezium.connect import ConnectorPlan
from connectors.debezium.register import RegistrationPlan, Step
from tests.support.wiring import wire
from tests.unit.test_config import MINIMAL

HEAVY = ("pyarrow", "pydantic", "sqlalchemy", "httpx", "rich", "duckdb", "confluent_kafka", "yaml", "numpy", "structlog")
COMMANDS = [
    *("init", "schema", "check", "plan", "register", "run", "load", "status", "pause", "resume", "resync", "adopt", "query"),
    *("reconcile", "repair", "explain", "quarantine"),
]


def cdc(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, in a pipe."""
    env = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-m", "cdc_service.cli.main", *arguments], capture_output=True, text=True, env=env, timeout=60)


def test_help_and_version_are_light() -> None:
    code = (
        "import sys; from cdc_service.cli.main import run; code = run(sys.argv[1:]);"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules)); print(heavy, file=sys.stderr); sys.exit(code)"
    )
    for arguments in (["--help"], ["--version"], ["-h"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.strip()) == (0, "[]"), arguments


def test_every_command_says_what_it_does_and_takes_the_shared_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in [*(c for c in COMMANDS if c != "quarantine"), *(f"quarantine {deed}" for deed in ("list", "show", "replay", "discard"))]:
        assert run([*name.split(), "--help"]) == exits.OK
        said = capsys.readouterr().out
        assert said.startswith(f"Usage: cdc {name}")
        assert all(option in said for option in ("--config", "--json", "--yes", "--debug"))
    assert run(["--help"]) == exits.OK
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == COMMANDS
    for group in ([], ["quarantine"]):
        told = cdc(*group, "--help", COLUMNS="80").stdout.partition("Commands:")[2]
        assert told.count("\n") >= 4
        assert "..." not in told, "a sentence that is cut short helps nobody"
    assert run([]) == exits.USAGE
    said = capsys.readouterr()
    assert said.out.startswith("Usage: cdc"), "help, and not as the text of an error"
    assert said.err == ""
    assert run(["schema", "--version"]) == exits.USAGE
    assert run(["--version", "schema"]) == exits.OK
    assert capsys.readouterr().out == f"cdc {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["shcema"], "No such command"),
        (["schema", "--bogus"], "No such option"),
        (["query"], "Missing argument 'SQL'"),
        (["run", "--timeout", "soon"], "--timeout"),
        (["run", "--once", "--until-caught-up"], "three different ends"),
        (["run", "--log-level", "loud"], "--log-level must be one of"),
        (["adopt", "public.x"], "adopt needs one of --at-offsets and --empty"),
        (["adopt", "public.x", "--empty", "--at-offsets"], "adopt needs one of"),
        (["query", "select 1", "--csv", "--json"], "two forms of one result"),
        (["status", "-c", "nowhere/cdc.yaml"], "there is no configuration file nowhere/cdc.yaml"),
        (["-c", "nowhere/cdc.yaml", "status"], "there is no configuration file nowhere/cdc.yaml"),
        (["init"], "init needs to know the source"),
        (["resume"], "resume needs a table, or --all"),
        (["resume", "public.a", "--all"], "resume needs a table, or --all"),
    ],
)
def test_a_wrong_command_line_exits_3_with_a_sentence_and_its_cure(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(arguments) == exits.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    if "--json" in arguments:
        assert sentence in json.loads(said.err)["error"]["message"]
    else:
        assert said.err.startswith("error: ")
        assert sentence in said.err
        assert "Traceback" not in said.err


def test_the_configuration_is_found_by_the_variable_and_errors_list_every_problem(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("pipelin: shop\ntables: {}\n")
    done = cdc("--json", "status", CDC_CONFIG=str(tmp_path / "x.yaml"))
    assert done.returncode == exits.USAGE
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "config_invalid"
    problem = {"file": str(tmp_path / "x.yaml"), "line": 1, "path": "pipelin", "message": "unknown key", "suggestion": "pipeline"}
    assert problem in error["problems"]
    assert len(error["problems"]) == len(error["message"].splitlines()) == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 3),
        (errors.Unavailable("x"), 2),
        (errors.CommitUnknown("x"), 2),
        (errors.Fenced("x"), 2),
        (errors.AlreadyRunning("x"), 4),
        (errors.TableStopped("x", state="needs_resync"), 4),
        (errors.CdcError("x"), 4),
        (RuntimeError("a cell value"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("cdc_service.config.json_schema", fail)
    monkeypatch.delenv("CDC_DEBUG", raising=False)
    assert run(["schema"]) == code
    said = capsys.readouterr().err
    assert "a cell value" not in said
    assert "Traceback" not in said
    assert run(["schema", "--debug"]) == code
    if isinstance(error, Exception):
        assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m cdc_service.cli.main schema | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_schema_goes_to_stdout_or_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == exits.OK
    schema = json.loads(capsys.readouterr().out)
    assert run(["schema", "-o", str(tmp_path / "s.json")]) == exits.OK
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads((tmp_path / "s.json").read_text()) == schema


def test_init_writes_no_password_of_the_warehouse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cdc.yaml"
    assert run(["init", "--example", "-c", str(file), "--destination", "postgresql://w:hunter2@db:5432/mart"]) == exits.OK
    assert "url: postgresql://w:${WAREHOUSE_PASSWORD}@db:5432/mart" in file.read_text().replace('"', "")
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err + file.read_text()
    assert "WAREHOUSE_PASSWORD" in said.err
    assert run(["init", "--example", "-c", str(file), "--yes", "--destination", "postgresql://w:hunter2@db:x/mart"]) == exits.USAGE
    assert "hunter2" not in capsys.readouterr().err


def test_init_writes_an_example_that_loads_and_never_overwrites_it_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cdc.yaml"
    assert run(["init", "--example", "-c", str(file)]) == exits.OK
    config = load(file, {"SHOP_PASSWORD": "x"})
    assert list(config.tables) == ["public.customers", "public.order*"]
    plain = load_minimal(tmp_path)
    assert config.defaults == plain.defaults, "what the example writes out is what holds without it"
    capsys.readouterr()
    file.write_text("mine")
    assert run(["init", "--example", "-c", str(file)]) == exits.USAGE
    assert "--yes" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert run(["--json", "init", "--example", "-c", str(file), "--yes", "--pipeline", "web"]) == exits.OK
    assert json.loads(capsys.readouterr().out)["pipeline"] == "web" == load(file, {"SHOP_PASSWORD": "x"}).pipeline
    assert run(["init", "--example", "-c", str(tmp_path / "b.yaml"), "--pipeline", "Web"]) == exits.USAGE


def load_minimal(folder: Path) -> object:
    from tests.unit.test_config import MINIMAL

    (folder / "minimal.yaml").write_text(MINIMAL)
    return load(folder / "minimal.yaml", {})


def test_every_commented_key_of_the_example_is_a_right_one(tmp_path: Path) -> None:
    file = tmp_path / "cdc.yaml"
    assert run(["init", "--example", "-c", str(file)]) == exits.OK
    keys = ("connect_host", "connect_port", "topic_prefix", "options", "meta_schema", "limits", "api", "state_dir")
    lines = [
        line.replace("# ", "", 1) if line.strip().startswith(tuple(f"# {key}:" for key in keys)) else line
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines))
    config = load(file, {"SHOP_PASSWORD": "x"})
    assert (config.source.connect_host, config.topic_prefix, config.limits.memory) == ("postgres", "shop", 400 * 2**20)


def test_a_plan_shows_first_what_others_have_to_run_whole_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    settings = tuple(f"setting{number}: (not set) -> {number}" for number in range(DETAILS_MAX + 1))
    steps = [
        Step("kafka", "create topic t", "events of t"),
        Step("source", "CREATE TABLE s", "signals", ("CREATE TABLE s (i int);",), "the owner"),
        Step("source", "CREATE PUBLICATION p", "it does not exist", ("CREATE PUBLICATION p;",), "the owner"),
        Step("connector", "create connector c", "it does not exist", settings),
        Step("connector", "change connector c", "it differs", settings[:1]),
    ]
    show_steps(Output(), steps)
    said = capsys.readouterr().out.splitlines()
    statements = [line for line in said[1:] if line.startswith("  ") and not line.startswith(("  --", "     "))]
    assert said[0] == "To be run by the owner:"
    assert [line.strip() for line in statements] == ["CREATE TABLE s (i int);", "CREATE PUBLICATION p;"]
    numbered = [line for line in said if line[:1].isdigit()]
    assert [line.partition("  (")[0] for line in numbered] == ["1. create topic t", "2. create connector c", "3. change connector c"]
    assert f"     {len(settings)} settings; cdc plan --json shows them" in said
    assert said[-1] == "     setting0: 0"


FINDINGS = [
    Finding("server", True, "PostgreSQL 16"),
    Finding(
        "table public.a_name_that_is_longer_than_a_line_of_such_a_terminal_has_room_for",
        False,
        "no key\nat all " * 12,
        "ALTER x;\nALTER y;",
    ),
    Finding("topics", False, "70 to be created: a, b, c and 67 more", "cdc register", Level.INFO, tuple(f"t{n}" for n in range(70))),
]


@pytest.mark.parametrize("width", [None, 80, 120])
def test_findings_are_aligned_and_each_cure_stands_whole_under_its_finding(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if width:
        monkeypatch.setattr(Output, "rich", property(lambda _: True))
        monkeypatch.setenv("COLUMNS", str(width))
    statement = f"CREATE PUBLICATION p FOR TABLE {', '.join(f'table_{n}' for n in range(40))};"
    show(Output(), [*FINDINGS, Finding("publication", False, "it does not exist", statement)])
    lines = capsys.readouterr().out.splitlines()
    column = next(line.index("PostgreSQL 16") for line in lines)
    heads = [n for n, line in enumerate(lines) if line[:1] != " "]
    assert [lines[n].split()[0] for n in heads] == ["ok", "failed", "info", "failed"]
    assert all(lines[n][column - 1] == " " and lines[n][column] != " " for n in heads)
    assert lines[heads[2] - 3 : heads[2]] == ["        cure:", "          ALTER x;", "          ALTER y;"]
    assert lines[heads[2] + 1] == "        cure: cdc register"
    assert lines[-1] == f"        cure: {statement}", "what is to be pasted is never folded"
    assert width is None or max(len(line) for line in lines[:-1]) <= width
    assert "".join(lines).isprintable()


def test_json_has_all_the_names_and_every_cure(capsys: pytest.CaptureFixture[str]) -> None:
    shown = documented(FINDINGS[2])
    assert (shown["status"], shown["cure"], len(shown["names"])) == ("info", "cdc register", 70)
    assert documented(FINDINGS[1])["status"] == "failed"


@pytest.mark.parametrize("refused", [True, False])
def test_a_plan_with_refused_tables_shows_the_rest_of_it(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cdc.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    plan = RegistrationPlan(
        *(Names("shop", "shop"), (Step("topic", "create topic t", "events of t"),), (), (), ConnectorPlan("c", "nothing", (), {})),
        wake=False, initial=False, refused=tuple(FINDINGS[1:2]) if refused else (),
    )  # fmt: skip
    wire(monkeypatch).plan = lambda config: plan  # type: ignore[attr-defined]
    assert run(["plan"]) == exits.FINDING
    said = capsys.readouterr().out
    assert ("ALTER x;" in said) is refused
    assert "1. create topic t" in said
    assert run(["plan", "--json"]) == exits.FINDING
    shown = json.loads(capsys.readouterr().out)
    assert (len(shown["refused"]), len(shown["steps"]), shown["pending"]) == (int(refused), 1, True)


@given(st.lists(st.tuples(st.text(max_size=6), st.integers(), st.one_of(st.none(), st.text(max_size=4))), max_size=4))
def test_a_plain_table_has_a_line_for_each_row_and_no_control_characters(rows: list[tuple[str, int, str | None]]) -> None:
    stream = io.StringIO()
    plain_table(["text", "number", "other"], [[cell(value) for value in row] for row in rows], {"number"}, stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(rows) + 1
    assert "".join(lines).isprintable()


@pytest.mark.parametrize("width", [30, 60, 400])
def test_no_column_of_a_query_gets_lost_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Output, "rich", property(lambda _: True))
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"column{number}" for number in range(20)]
    rows = [[number if number % 2 else f"text{number}" for number in range(20)] for _ in range(2)]
    Output().records(names, rows, right=names[1::2])
    said = capsys.readouterr().out
    assert all(said.count(name) == (1 if width == 400 else 2) for name in names[2:])
    assert all(said.count(f"text{number}") >= 2 for number in range(0, 20, 2))
    assert max(map(len, said.splitlines())) <= width


def test_cells_of_a_warehouse_cannot_command_a_terminal() -> None:
    assert cell("a\x1b[2Jb\nc\t\u202e") == "a\\x1b[2Jb\\nc\\t\\u202e"


def test_a_question_needs_a_person_or_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert Output(yes=True).confirm("Really?")
    with pytest.raises(errors.ConfigError, match="Really") as raised:
        Output().confirm("Really?")
    assert "--yes" in raised.value.hint
