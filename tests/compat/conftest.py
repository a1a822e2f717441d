"""The old API under test: tfspark's, or the original with ``TFSPARK_COMPAT=original``; see `test_old_api.py`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ORIGINAL = os.environ.get("TFSPARK_COMPAT") == "original"
PACKAGE = "tensorflowonspark" if ORIGINAL else "tfspark.compat.tensorflowonspark"


class Old:
    """The package under test: its modules as attributes."""

    is_original = ORIGINAL

    def __getattr__(self, name: str) -> Any:
        return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.fixture(scope="session")
def old() -> Old:
    return Old()


@pytest.fixture(scope="session")
def sc(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A SparkContext; the original wants executors of one slot each, one for every node."""
    if not ORIGINAL:
        yield request.getfixturevalue("spark").sparkContext
        return
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    session = SparkSession.builder.master("local-cluster[4,1,1024]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session.sparkContext
    session.stop()


@pytest.fixture(autouse=True)
def no_cluster_is_left() -> Iterator[None]:
    """A test that fails must not hold the slots of those that follow."""
    yield
    from tfspark.cluster import _live

    for cluster in list(_live):
        cluster.stop(grace=0.0)
