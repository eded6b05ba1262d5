# make demo and make test each work on a fresh clone; PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo bench-recipes-quick test test-slow check format docs clean

demo: $(VENV)/.train  ## install, then run the main job: train, aggregate, heal, compare, write
	$(BIN)/ract build examples/quickstart.toml --out runs/quickstart

bench-recipes-quick: $(VENV)/.train  ## which recipe wins, small: two seeds on this Python's standard library, under 15 minutes
	$(BIN)/python -m benchmarks.recipes --quick --work runs/recipes-quick

test: $(VENV)/.dev  ## install, then run the fast tests
	$(BIN)/python -m pytest --numprocesses 2

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev  ## format, lint, types, import layers, documentation, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m ract.cli.reference --check docs
	$(BIN)/python -m pytest --numprocesses 2

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## write the generated pages again
	$(BIN)/python -m ract.cli.reference docs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ReAct needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[train]"
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[train,dev]"
	@touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
