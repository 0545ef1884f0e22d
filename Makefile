# `make help` lists the targets. Two of them do all set-up on a fresh machine: demo and test.
ROOMS := cluster core engine node proto storage
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEEDS ?= 2000
KILLS ?= 200
ROUNDS ?= 3

.PHONY: help links install demo cluster-demo check test test-compiled compat proto bench bench-cluster chaos crash grow sim sim-cluster soak-http
help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

links:  ## Recreate src/perdure/<room> -> <room>/ after a checkout without symlinks.
	for room in $(ROOMS); do ln -sfn ../../$$room src/perdure/$$room; done

install: $(STAMP)  ## Make .venv with the server and the development tools in it.

$(STAMP): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[server]' --group dev
	touch $@

demo: install  ## A checkout that survives kill -9, step by step.
	$(BIN)/python -m examples.demo

cluster-demo: install  ## Three nodes that go on selling while two of them are killed with kill -9.
	$(BIN)/python -m examples.cluster_demo

check: install  ## Lint, types, layout and tidy rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layout.py tests/test_tidy.py tests/test_errors.py

test: install  ## The whole test suite.
	$(BIN)/python -m pytest

test-compiled: install  ## The test suite against a compiled build, made in a copy (TESTS=: options of pytest).
	$(BIN)/python -m tests.compiled $(TESTS)

compat: install  ## The conformance suite against perdure and the reference server, and where they differ.
	$(BIN)/python -m tests.conformance.compare

proto: install  ## Regenerate the bindings beside their .proto files.
	$(BIN)/python -m pip install --quiet --group proto
	$(BIN)/python -m grpc_tools.protoc -I perdure/proto=proto --python_out=src --pyi_out=src \
		$(patsubst proto/%,perdure/proto/%,$(wildcard proto/*.proto))

bench: install  ## Beside its peers: page, pictures, JSON in bench/results/ (QUICK=1: a glance).
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH)

bench-cluster: install  ## Three nodes beside three of the reference server: latency, rates, failover.
	$(BIN)/python -m bench.cluster $(BENCH)

crash: install  ## kill -9 under random load, KILLS times, and a boot with 100,000 invocations.
	CRASH_KILLS=$(KILLS) $(BIN)/python -m pytest tests/process -m 'slow or not slow' -s

chaos: install  ## Cut, slow, freeze, fill, wipe nodes in network namespaces (root): FAULT= SECONDS= SEED= TIMES=
	$(BIN)/python -m pip install --quiet --group chaos
	$(BIN)/python -m tests.chaos $(addprefix --fault ,$(FAULT)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(TIMES),--rounds $(TIMES))

sim: install  ## The power-loss simulation over SEEDS seeds (or SEED=n for one).
	SIM_SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/sim -s

sim-cluster: install  ## Whole clusters in JOBS processes: SEEDS of them, FROM the first one on.
	PYTHONHASHSEED=0 $(BIN)/python -m tests.sim.cluster_run --seeds $(SEEDS) \
		--from $(or $(FROM),0) $(if $(JOBS),--jobs $(JOBS))

grow: install  ## One node to three, five and three again under load, ROUNDS times, with deaths on the way.
	GROW_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/process/test_growth.py -s

soak-http: install  ## A million HTTP streams through one client and server.
	SOAK_STREAMS=1000000 $(BIN)/python -m pytest tests/node/http -k soak -s
