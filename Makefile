# One command to run, one to test; every other target is listed by `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= $(wildcard llm-edge.yaml)
PYTEST_ARGS ?=
# Each with its files whole, because tests of one file share what they started.
PYTEST_WORKERS ?= 2
FUZZ_EXAMPLES ?= 10000
SOAK_SECONDS ?= 120

.PHONY: help
help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@# Debian splits ensurepip into a package of its own, which PyPI cannot give.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(STAMP) ## Create the virtual environment from the lock file

.PHONY: run
run: setup ## Run the gateway on 127.0.0.1:8080 and print a working curl line
	@exec $(BIN)/llm-edge run $(addprefix --config ,$(CONFIG))

.PHONY: test
test: setup peers ## Run every test, real Envoy and Redis included
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

.PHONY: peers
peers: # nghttp2's clients speak to the lane in the tests; without root and apt those are skipped
	@if ! command -v h2load >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq nghttp2-client >/dev/null; fi

.PHONY: fuzz
fuzz: setup ## Throw 10,000 examples at every property of the lane (FUZZ_EXAMPLES=n)
	@LLM_EDGE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/transport/test_fuzz*.py \
	  --timeout 3600 $(PYTEST_ARGS)

.PHONY: soak
soak: setup ## Load Envoy and the lane with mixed calls for SOAK_SECONDS (120): memory flat, all closed
	@$(BIN)/python -m tests.e2e.soak --seconds $(SOAK_SECONDS)

.PHONY: crash
crash: setup ## Run the long variants: 100 kills, 100,000 callers that leave, millions of answers and strangers
	@LLM_EDGE_KILLS=100 LLM_EDGE_CANCELLATIONS=100000 LLM_EDGE_STRANGERS=1000000 \
	  $(BIN)/python -m pytest --timeout 1800 tests/stores/test_journal.py \
	  tests/stores/test_redis_ledger.py tests/stores/test_redis_flights.py \
	  tests/test_identity.py tests/test_strangers.py $(PYTEST_ARGS)
	@LLM_EDGE_CACHE_INSERTS=1000000 $(BIN)/python -m pytest --timeout 1800 -s -k mixed_sizes \
	  tests/stores/test_memory_answers.py $(PYTEST_ARGS)

.PHONY: check
check: setup ## Format, lint, types, import rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .cache-imports.txt || { cat .cache-imports.txt; exit 1; }
	@rm -f .cache-imports.txt

.PHONY: format
format: setup ## Rewrite the sources in the house format
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

.PHONY: bench
bench: setup wheel ## Measure the rungs and figures (BENCH_ARGS="--quick" for a short run)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)
	@$(BIN)/python -m benchmarks.planning
	@$(BIN)/python -m benchmarks.limits
	@$(BIN)/python -m benchmarks.cache
	@$(BIN)/python -m benchmarks.cache_stores
	@$(BIN)/python -m benchmarks.cache_trace

REF ?= HEAD
.PHONY: against
against: setup ## Compare the request path with an earlier commit's (REF=main~3; HEAD without it)
	@$(BIN)/python -m benchmarks.against $(REF) $(AGAINST_ARGS)

# From a copy, because the compiler leaves its output beside the sources, where it would hide them.
WHEEL_SOURCES := extproc pyproject.toml README.md LICENSE
dist/.built: $(STAMP) $(shell find extproc -name '*.py' -o -name '*.lua' -o -name '*.yaml') $(WHEEL_SOURCES)
	@command -v gcc >/dev/null && test -e "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
	  || { apt-get update -qq && apt-get install -y -qq gcc python3-dev; }
	@rm -rf .build dist && mkdir -p .build && cp -r $(WHEEL_SOURCES) .build
	@cd .build && HATCH_BUILD_HOOK_ENABLE_MYPYC=1 ../$(BIN)/python -m pip wheel . --quiet \
	  --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir ../dist
	@rm -rf .build && touch $@

.PHONY: wheel
wheel: dist/.built ## Build the wheel in dist/, its request path compiled (mypyc)

.PHONY: test-wheel
test-wheel: wheel ## Run the end-to-end tests against the compiled wheel
	@rm -rf .build && $(BIN)/python -m zipfile -e dist/*.whl .build/wheel
	@export PYTHONSAFEPATH=1 PYTHONPATH="$$PWD/.build/wheel"; \
	  $(BIN)/python -c 'from extproc.wire import messages as m; assert m.__file__.endswith(".so"), m' && \
	  $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile tests/e2e $(PYTEST_ARGS)
	@rm -rf .build

.PHONY: test-grpcio
test-grpcio: setup ## Run the end-to-end tests on the grpcio transport, those too that CI runs on the lane alone
	@LLM_EDGE_TEST_TRANSPORT=grpcio $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile tests/e2e $(PYTEST_ARGS)

.PHONY: bundle
bundle: setup ## Regenerate the committed Envoy bundle in envoy/
	@env -i PATH="$$PATH" $(BIN)/llm-edge bundle --out envoy

.PHONY: vectors
vectors: setup ## Rewrite the published test vectors of cache keys
	@$(BIN)/python -m tests.cache.vectors

.PHONY: proto
proto: setup ## Regenerate the wire messages from extproc/pb/*.proto
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. extproc/pb/*.proto

.PHONY: lock
lock: setup ## Resolve the dependencies anew
	@$(BIN)/python -m pip install --quiet pip-tools
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --all-extras --all-build-deps \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate \
	  --strip-extras -o requirements.lock pyproject.toml

.PHONY: clean
clean: ## Remove the environment and every cache
	@rm -rf $(VENV) .bench .llm-edge .mypy_cache .ruff_cache .pytest_cache .hypothesis
