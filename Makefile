# `make help` lists the verbs. The environment is .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test unit lint bench-reconcile chaos audit mutate simulate identity bench bench-profile

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## Make .venv from the locked packages; afterwards the command is .venv/bin/cdc
	@:

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: apt-get install -y python3 python3-venv, or make PYTHON=/path/to/python3"; exit 2; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv || { echo "Python cannot make a virtual environment: apt-get install -y python3-venv"; exit 2; }
	.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --editable .
	@touch $@

test: install ## All tests, those on the real stack included, in two processes (ARGS="-n 0 -k word" chooses)
	.venv/bin/python -m deploy.local.artifacts
	.venv/bin/python -m pytest -n 2 $(ARGS)

unit: install ## The tests that need no server (ARGS="-k word" chooses)
	.venv/bin/python -m pytest -n 3 tests/unit $(ARGS)  # More than cores: much of them is waiting.

lint: install ## ruff, mypy --strict and the import rules
	.venv/bin/ruff format --check --quiet
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/mypy -p deploy.local
	.venv/bin/python -m pytest -q tests/unit/test_imports.py

demo: install ## The main job on real parts, compared row for row at the end (KEEP=1 leaves it running, DEST=postgresql is another warehouse)
	.venv/bin/python -m deploy.local.demo $(if $(KEEP),--keep) $(if $(DEST),--destination $(DEST)) $(ARGS)

bench: install ## This service, its peers and the limits on the same topics (ARMS=plain,duckdb N=400000 WORKLOADS=insert WIRES=json PARTITIONS=1)
	.venv/bin/python -m tests.bench.bench $(BENCH_OPTIONS) $(if $(strip $(BENCH_CHOICE)),,--page)

BENCH_CHOICE = $(if $(ARMS),--arms $(ARMS)) $(if $(WORKLOADS),--workloads $(WORKLOADS)) $(if $(WIRES),--wires $(WIRES)) $(if $(PARTITIONS),--partitions $(PARTITIONS))
BENCH_OPTIONS = $(strip $(BENCH_CHOICE)) $(if $(N),-n $(N)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SIZES),--sizes $(SIZES)) $(if $(RATES),--rates $(RATES))

bench-profile: install .bench/.py-spy ## Where the service spends its time (N=400000 WORKLOADS=insert WIRES=json DESTINATIONS=duckdb)
	.venv/bin/python -m tests.bench.profile --py-spy .bench/py-spy/bin/py-spy $(if $(N),-n $(N)) $(if $(WORKLOADS),--workloads $(WORKLOADS)) $(if $(WIRES),--wires $(WIRES)) $(if $(DESTINATIONS),--destinations $(DESTINATIONS))

.bench/.py-spy: tests/bench/pyspy.txt
	$(PYTHON) -m venv .bench/py-spy
	.bench/py-spy/bin/pip install -q --disable-pip-version-check -r tests/bench/pyspy.txt
	@touch $@

bench-reconcile: install .bench/.installed ## Reconciliation beside reladiff on the same tables (ROWS=2000000 ROUNDS=3)
	.venv/bin/python -m tests.bench.bench_reconcile --reladiff .bench/bin/python $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS))

chaos: install ## Faults on the real stack under load, compared after each (MINUTES=5 SEED=1 DEST=postgresql|duckdb)
	.venv/bin/python -m tests.fault.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(DEST),--destination $(DEST)) $(ARGS)

# The other tool has an environment of its own: nothing of the project depends on it.
.bench/.installed: tests/bench/reladiff.txt
	$(PYTHON) -m venv .bench
	.bench/bin/pip install -q --disable-pip-version-check -r tests/bench/reladiff.txt
	@touch $@

audit: install .audit/.installed ## Known vulnerabilities of the locked packages (2: the advisory service cannot be reached)
	@.audit/bin/python -m tests.audit .audit/bin/pip-audit

.audit/.installed: tests/audit.txt
	$(PYTHON) -m venv .audit
	.audit/bin/pip install -q --disable-pip-version-check -r tests/audit.txt
	@touch $@

mutate: install .mutate/.installed ## Mutation score of core and checkpoint: what the fast tests notice (docs/mutation.md)
	HYPOTHESIS_PROFILE=mutation nice .mutate/bin/mutmut run --max-children 1
	.mutate/bin/mutmut results

# It runs the tests in its own process, and so beside the packages of .venv.
.mutate/.installed: tests/mutation.txt
	$(PYTHON) -m venv .mutate
	.mutate/bin/pip install -q --disable-pip-version-check -r tests/mutation.txt
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.mutate/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@touch $@

simulate: install ## The loop under seeded schedules of faults (SEEDS=200 FIRST=0 SECONDS=60 DEST=memory|duckdb|postgresql REPLAY=file)
	.venv/bin/python -m tests.simulation.simulate --seeds $(or $(SEEDS),200) --first $(or $(FIRST),0) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(DEST),--destination $(DEST)) $(if $(REPLAY),--replay $(REPLAY))

identity: install ## Random DDL between changes of rows: is each claim of completeness true? (SEQUENCES=50 SEED=1 DEST=duckdb|postgresql TABLES=10 REPLAY=file)
	.venv/bin/python -m tests.identity.identity $(if $(SEQUENCES),--sequences $(SEQUENCES)) $(if $(SEED),--seed $(SEED)) $(if $(DEST),--destination $(DEST)) $(if $(TABLES),--tables $(TABLES)) $(if $(REPLAY),--replay $(REPLAY)) $(ARGS)
