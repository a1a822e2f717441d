"""Fixtures: one Spark session shared by all tests that need no isolation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from standalone import Standalone

QUIET = {
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "4",
}

# Most of what a JVM does in its first ten seconds is to compile what it will not run again.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A local session with four slots: up to three nodes and a feeding task."""
    import tfspark

    session = tfspark.session("tfspark-tests", "local[4]", **QUIET)
    yield session
    session.stop()


@pytest.fixture(scope="session")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    """A standalone master and two workers of three slots each."""
    cluster = Standalone(tmp_path_factory.mktemp("standalone"))
    yield cluster
    cluster.stop()
