# Everything a fresh machine needs is Python 3.11 or newer and make; `make` alone explains itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUNDLES := $(VENV)/narrows-bundles/.ready
TOOLCHAIN := node_modules/.package-lock.json
NPM := $(shell node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' 2>/dev/null && command -v npm || echo $(BIN)/npm)

.PHONY: help setup jars demo test test-slow check lint synth bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) $(TOOLCHAIN) $(BUNDLES) jars ## create .venv with the pinned tools (first run: about 750 MB to download)

demo: setup ## the whole platform on this machine: deploy, events, training, recommendations, the page
	$(BIN)/narrows demo $(DEMO_ARGS)

test: setup ## every test but the slow ones, under 15 minutes on 2 cores
	$(BIN)/pytest -m "not slow" --numprocesses 2 $(TEST_ARGS)

test-slow: setup ## the long suites
	$(BIN)/pytest -m slow $(TEST_ARGS)

lint: setup ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint ## lint, types, architecture, infrastructure with cdk-nag, and the wheel in an empty environment
	$(BIN)/pytest -q tests/test_architecture.py tests/infrastructure
	$(BIN)/python -m tests.wheel

synth: setup ## synthesise every stack, offline and without credentials
	PATH="$(abspath $(BIN)):$$PATH" node_modules/.bin/cdk synth --quiet --no-notices $(SYNTH_ARGS)

bench: setup ## latency, throughput and quality, as tables and JSON
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

clean: ## stop the local cloud and remove what make and narrows created
	-[ -x $(BIN)/narrows ] && $(BIN)/narrows down
	rm -rf $(VENV) node_modules cdk.out .narrows .pytest_cache .mypy_cache .ruff_cache .hypothesis spark-warehouse

$(READY): requirements/uv.txt requirements/dev.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "no Python found: install Python 3.11 or newer, or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V): Narrows needs 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "set-up 1/5: an environment of its own in $(VENV)/, from $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@echo "set-up 2/5: the pinned packages (a few minutes and 600 MB the first time)"
	@$(BIN)/uv pip sync --python $(BIN)/python --compile-bytecode --require-hashes requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(TOOLCHAIN): package-lock.json $(READY)
	@echo "set-up 3/5: the CDK command line, with $(NPM)"
	@PATH="$(abspath $(BIN)):$$PATH" $(NPM) ci --no-audit --no-fund --loglevel=error
	@touch $@

$(BUNDLES): requirements/lambda.txt requirements/lambda-libraries.txt $(TOOLCHAIN)
	@echo "set-up 4/5: the functions' dependencies for Lambda, so that synthesis needs no network"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m cdk_app.bundling >/dev/null
	@touch $@

jars: $(READY) # set-up 5/5: Iceberg for Spark, and OpenSearch; kept in the user's cache folder for all checkouts
	@$(BIN)/python -m localcloud.jars
	@$(BIN)/python -m localcloud.opensearch --check || true
