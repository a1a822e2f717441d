# Each verb first makes $(VENV) and installs what it needs; nothing has to be there but Python 3.10 or newer.
VENV ?= .venv
SPARK ?= 4.0.5
SPARKS ?= 3.5.9 4.0.5 4.1.4 4.2.1 4.3.0
AT_ONCE ?= 2
TEST_FILES := $(wildcard tests/test_*.py tests/*/test_*.py)
marked = $(shell grep -l 'pytest\.mark\.$(1)\b' $(TEST_FILES))
# The longest first: a long one that begins last leaves a core idle.
LONGEST := $(foreach t,exactness connect jobs gpus ml_fit model_server exactly_once restarts training_together inputs predict programs \
	remote_models examples environment doctor faults conf,$(wildcard tests/test_$(t).py tests/*/test_$(t).py))
FILES := $(LONGEST) $(filter-out $(LONGEST),$(TEST_FILES))
SLOWEST := --durations=10 --durations-min=1
AT_A_TIME = --numprocesses=$(AT_ONCE) --dist=loadfile --no-loadscope-reorder
TESTS ?= $(wildcard tests/connectors/test_*.py)
usable = $(shell $(1) -c 'import ensurepip, sys, venv; print("y" if sys.version_info >= (3, 10) else "")' 2>/dev/null)
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.10 python3,$(if $(call usable,$(p)),$(p))))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLASSES := $(VENV)/spark-classes.jsa
AIRFLOW := build/airflow-venv
# Without cached bytecode, each of the many processes of tests would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: demo airflow airflow-test compose-check compose-test test unit long-test exactness-test chaos upstream-test \
	browser spark-test smoke matrix wheel package-test lint docs format notebook install clean help

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST)

demo: install  ## train on real flights in a local Spark cluster
	@echo "Training on 336,776 flights, in a Spark cluster of two executors on this machine."
	@$(BIN)/python jobs/flights.py && printf '%s\n' "" "Next:" \
		"  read the job              jobs/flights.py, and docs/guide/jobs.md for spark-submit" \
		"  serve the model           $(BIN)/tfspark serve build/flights/model" \
		"  explore in a notebook     $(BIN)/pip install jupyterlab; $(BIN)/jupyter lab jobs/notebooks/quickstart.ipynb"

test: unit browser $(CLASSES)  ## run all tests but long ones and those of jobs/airflow, most of them AT_ONCE=2 files at a time
	$(BIN)/python -m pytest $(AT_A_TIME) $(SLOWEST) -m 'not (unit or alone or airflow or exactness or packaging or long)' $(FILES)
	$(BIN)/python -m pytest $(SLOWEST) -m 'alone and not long' $(call marked,alone)

long-test: install $(CLASSES)  ## run the tests that make test leaves out because each takes 20 s or more
	$(BIN)/python -m pytest $(AT_A_TIME) $(SLOWEST) -m 'long and not alone' $(call marked,long)
	$(BIN)/python -m pytest $(SLOWEST) -m 'long and alone' $(call marked,long)

unit: install  ## run the tests that start neither Spark nor TensorFlow, in less than a minute
	$(BIN)/python -m pytest $(AT_A_TIME) -m unit $(call marked,unit)

exactness-test: install  ## train all models of tests/keras_cases.py against one process, on all sizes
	$(BIN)/python -m pytest -m exactness tests/node/test_exactness.py

chaos: RUNS := 50
chaos: install  ## break RUNS=50 trainings at random, then as many elastic ones
	$(BIN)/python benchmarks/chaos.py --runs $(RUNS) --markdown
	$(BIN)/python benchmarks/chaos.py --elastic --runs $(RUNS) --markdown

upstream-test: install  ## the same on the newest Keras and TensorFlow that the index has
	test -d build/upstream || $(BIN)/python -m pip install --quiet --upgrade --target build/upstream tensorflow keras
	PYTHONPATH=$(abspath build/upstream) $(BIN)/python -m pytest tests/node/test_exactness.py tests/node/test_training_together.py

airflow-test: install airflow  ## run the tests of jobs/airflow in a real Airflow
	$(BIN)/python -m pytest -m airflow tests/jobs/test_airflow.py

compose-check: install  ## check docker-compose.yml and docker/gpu.yml against the schema of compose files
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker/gpu.yml

compose-test:  ## bring docker-compose.yml up with Podman, as root, train in it and take it down
	docker/compose-test

browser:  ## install Chromium, which the tests of web pages drive, where it is missing
	.ci/install-browser

spark-test: install  ## run the tests on another Spark: make spark-test SPARK=4.0.5 TESTS=tests/connectors/test_connector.py
	test -d build/spark-$(SPARK) || $(BIN)/python -m pip install --quiet --target build/spark-$(SPARK) pyspark==$(SPARK)
	PYTHONPATH=$(abspath build/spark-$(SPARK)) $(BIN)/python -m pytest $(TESTS)

smoke: SPARK := 3.5.9
smoke: install  ## run each part of tfspark once on another Spark (SPARK=3.5.9), or on Spark Connect (CONNECT=1)
ifdef CONNECT
	$(BIN)/python tests/programs/smoke.py --remote 'local[4]'
else
	test -d build/spark-$(SPARK) || $(BIN)/python -m pip install --quiet --target build/spark-$(SPARK) pyspark==$(SPARK)
	PYTHONPATH=$(abspath build/spark-$(SPARK)) $(BIN)/python tests/programs/smoke.py
endif

matrix: install  ## run each part once, and tests (WITH_TESTS=1), on the sets of tests/matrix.ini: make matrix SETS='"Spark 4.0"'
	$(BIN)/python tests/matrix.py $(if $(WITH_TESTS),--tests $(AT_ONCE)) $(SETS)

wheel: install  ## build dist/*.whl, which carries the connector's jar for each of SPARKS
	rm -f tfspark/spark/jars/*.jar
	for spark in $(SPARKS); do \
	    test -d build/spark-$$spark || \
	        $(BIN)/python -m pip install --quiet --target build/spark-$$spark pyspark==$$spark || exit 1; \
	    PYTHONPATH=$(CURDIR)/build/spark-$$spark $(BIN)/python -m tfspark jar --ship || exit 1; \
	done
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf tfspark/spark/jars build/lib build/bdist.*

package-test: install  ## install the wheel and the source distribution in fresh environments, and run them
	$(BIN)/python -m pytest -m packaging tests/test_packaging.py

lint: install  ## what CI checks besides tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy tfspark
	$(BIN)/lint-imports --no-logo

docs: install  ## build the documentation into build/site; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebook: install  ## execute jobs/notebooks/quickstart.ipynb and keep its outputs in it
	$(BIN)/python docs/.hooks/execute_notebook.py

format: install  ## rewrite the sources as the linters want them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

airflow: $(AIRFLOW)/.installed  ## make $(AIRFLOW), in which the tests of jobs/airflow run

install: $(STAMP)  ## make $(VENV) and compile the Spark connector

clean:  ## remove all that was made here, $(VENV) included
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "tfspark needs Python 3.10 or newer with the venv module" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making the environment $(VENV)."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing tfspark with Spark, TensorFlow and what the tests need: some minutes and 5 GB, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs,java]'
	@echo "Compiling the TFRecord connector for Spark: 20 seconds."
	@$(BIN)/tfspark jar
	@touch $@

# With it, JVMs of tests start in two thirds of their time.
$(CLASSES): $(STAMP) tests/archive_classes.py
	$(BIN)/python tests/archive_classes.py

# An environment of its own, as Airflow pins much; all versions are given, so that nothing has to be resolved.
$(AIRFLOW)/.installed: jobs/airflow/requirements.txt
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r $<
	touch $@
