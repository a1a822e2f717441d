PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JAVA_EXTRA := $(shell java -version >/dev/null 2>&1 || echo ,java)

.PHONY: demo test lint format install clean

demo: install  ## train on real flights in a local Spark cluster
	$(BIN)/python jobs/flights.py

test: install  ## run all tests
	$(BIN)/python -m pytest

lint: install  ## what CI checks besides tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy tfspark

format: install
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev$(JAVA_EXTRA)]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
