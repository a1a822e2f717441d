"""Fixtures: one Spark session shared by all tests that need no isolation. Unit tests are held to what they say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from archive_classes import java_options

if TYPE_CHECKING:
    from standalone import Standalone

QUIET = {
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "4",
}

# What takes longer than usual shows that others use the machine.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

os.environ.setdefault("JDK_JAVA_OPTIONS", java_options())


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A local session with four slots: up to three nodes and a feed task."""
    import tfspark

    session = tfspark.session("tfspark-tests", "local[4]", **QUIET)
    yield session
    session.stop()


@pytest.fixture(scope="session")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    """A standalone master and two workers of three slots each."""
    from standalone import Standalone

    cluster = Standalone(tmp_path_factory.mktemp("standalone"))
    yield cluster
    cluster.stop()


def started() -> set[str]:
    """Return what takes seconds to start and is there."""
    context = sys.modules.get("pyspark.core.context")
    there = {"Spark's JVM": context is not None and context.SparkContext._gateway is not None}
    there["TensorFlow"] = "tensorflow" in sys.modules
    return {name for name, is_there in there.items() if is_there}


@pytest.fixture(autouse=True)
def unit_tests_start_neither_spark_nor_tensorflow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that is marked as one and starts them."""
    before = started()
    yield
    if request.node.get_closest_marker("unit") is not None:
        assert started() <= before, f"a unit test started {started() - before}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where only unit tests run, importing their files starts neither."""
    if session.config.option.markexpr == "unit" and started():
        raise pytest.UsageError(f"files of unit tests have imported {started()}")
