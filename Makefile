# One command per verb. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format bench bench-growth bench-million lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Trenza needs Python 3.11 or newer; this is $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "the venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(STAMP) ## make the virtual environment from the locked dependencies

demo: $(STAMP) ## start the whole emulated Spanish network (Ctrl-C stops it)
	$(BIN)/trenza up scenarios/spain.toml $(ARGS)

test: $(STAMP) ## the tests, quick ones
	$(BIN)/python -m pytest

test-slow: $(STAMP) ## whole networks on real sockets, long histories
	$(BIN)/python -m pytest -m slow

lint: $(STAMP) ## style, types and the layers of the house
	$(BIN)/ruff format --check src tests bench docs formal tools/soak
	$(BIN)/ruff check src tests bench docs formal tools/soak
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into its one form
	$(BIN)/ruff format src tests bench docs formal tools/soak
	$(BIN)/ruff check --fix src tests bench docs formal tools/soak

bench: $(STAMP) ## figures of docs/performance.md: what a key costs (about ten minutes)
	$(BIN)/python bench/pairs.py $(ARGS)

bench-growth: $(STAMP) ## whether it costs the same with more stock, nodes and applications (a quarter of an hour)
	$(BIN)/python bench/growth.py $(ARGS)

bench-million: $(STAMP) ## a million pairs, each compared
	$(BIN)/python bench/million.py $(ARGS)

model: $(STAMP) ## the formal model of windows, explored to its large bounds
	$(BIN)/python -m formal --large

soak: $(STAMP) ## the long proofs, three hours; results in docs/soak.md
	$(BIN)/python tools/soak $(ARGS)

lock: ## renew requirements.lock (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header \
		--group build --group dev -q pyproject.toml -o requirements.lock

clean: ## remove what the other commands made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
