# Each verb first makes $(VENV) and installs what it needs; nothing has to be there but Python 3.10 or newer.
VENV ?= .venv
SPARK ?= 4.0.5
AT_ONCE ?= 2
# Tests of how soon something happens.
ALONE := $(patsubst %,tests/test_%.py,faults hosts parameter_server soak stopping)
TESTS ?= tests/test_connector.py $(wildcard tests/test_tfrecord_*.py)
usable = $(shell $(1) -c 'import ensurepip, sys, venv; print("y" if sys.version_info >= (3, 10) else "")' 2>/dev/null)
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.10 python3,$(if $(call usable,$(p)),$(p))))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AIRFLOW := build/airflow-venv
.PHONY: demo airflow airflow-test compose-check compose-test test browser spark-test lint docs format install clean help

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST)

demo: install  ## train on real flights in a local Spark cluster
	$(BIN)/python jobs/flights.py

test: install browser  ## run all tests but those of jobs/airflow, most of them AT_ONCE=2 files at a time
	$(BIN)/python -m pytest --numprocesses=$(AT_ONCE) --dist=loadfile $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest $(ALONE)

airflow-test: install airflow  ## run the tests of jobs/airflow in a real Airflow
	$(BIN)/python -m pytest -m airflow tests/test_airflow.py

compose-check: install  ## check docker-compose.yml and docker/gpu.yml against the schema of compose files
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker/gpu.yml

compose-test:  ## bring docker-compose.yml up with Podman, as root, train in it and take it down
	docker/compose-test

browser:  ## install Chromium, which the tests of web pages drive, where it is missing
	.ci/install-browser

spark-test: install  ## run the tests on another Spark: make spark-test SPARK=4.0.5 TESTS=tests/test_connector.py
	test -d build/spark-$(SPARK) || $(BIN)/python -m pip install --quiet --target build/spark-$(SPARK) pyspark==$(SPARK)
	PYTHONPATH=$(abspath build/spark-$(SPARK)) $(BIN)/python -m pytest $(TESTS)

lint: install  ## what CI checks besides tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy tfspark

docs: install  ## build the documentation into build/site; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

format: install  ## rewrite the sources as the linters want them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

airflow: $(AIRFLOW)/.installed  ## make $(AIRFLOW), in which the tests of jobs/airflow run

install: $(STAMP)  ## make $(VENV) and compile the Spark connector

clean:  ## remove all that was made here, $(VENV) included
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "tfspark needs Python 3.10 or newer with the venv module" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs,java]'
	$(BIN)/tfspark jar
	touch $@

# An environment of its own, as Airflow pins much; all versions are given, so that nothing has to be resolved.
$(AIRFLOW)/.installed: jobs/airflow/requirements.txt
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r $<
	touch $@
