"""Sessions of Spark Connect: what a client, which has no JVM, learns of its session and of the server.

The private names of Connect's client are used here alone; each has a test (``tests/cluster/test_connect.py``).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

MANY_ROWS = 1 << 16
"""Rows of a range that has a partition for each core that there can be."""

_DECIDE_PARTITIONS = ("spark.default.parallelism", "spark.sql.leafNodeDefaultParallelism")
"""Settings that say how many partitions a range has, whatever cores there are."""


def is_connect(session: Any) -> bool:
    """Return whether a session, or a DataFrame, is one of Spark Connect."""
    return type(session).__module__.startswith("pyspark.sql.connect.")


def setting_of(session: SparkSession, key: str) -> str | None:
    """Return a setting of the server; ``None`` if it is not set, or the server does not tell."""
    from pyspark.errors import PySparkException

    try:
        return session.conf.get(key, None)
    except PySparkException:
        # Hosted servers keep some for themselves.
        return None


def server_host(session: SparkSession) -> str:
    """Return the host of the server, as the client was told it."""
    return str(session._client.host)  # type: ignore[attr-defined]


def encrypts(session: SparkSession) -> bool:
    """Return whether the client talks to the server by TLS."""
    builder = session._client._builder  # type: ignore[attr-defined]
    return bool(getattr(builder, "use_ssl", None) or (not hasattr(builder, "use_ssl") and builder.secure))


def register_profile(session: SparkSession, profile: ResourceProfile) -> None:
    """Tell the server of a resource profile, by the active session, as Connect does it; each thread has its own."""
    active = type(session)._active_session  # type: ignore[attr-defined]
    before = getattr(active, "session", None)
    active.session = session
    try:
        logger.debug("the server knows the profile as %d", profile.id)
    finally:
        active.session = before


def plan_of(df: DataFrame) -> str:
    """Return the physical plan of a DataFrame as the server writes it."""
    return str(df._explain_string())  # type: ignore[operator]


def count_cores(session: SparkSession) -> int | None:
    """Return how many cores Spark's executors have now; ``None`` where a setting hides it.

    A client cannot ask for executors. Without a setting Spark gives a range a partition for each core.
    """
    from pyspark.sql import functions as F

    if any(setting_of(session, key) for key in _DECIDE_PARTITIONS):
        return None
    found = session.range(MANY_ROWS).select(F.spark_partition_id().alias("p")).agg(F.max("p")).first()
    assert found is not None
    return int(found[0]) + 1
