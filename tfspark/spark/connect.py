"""Sessions of Spark Connect: what a client, which has no JVM, can learn about its session and the server.

Only this module uses private names of Connect's client; each has a test (``tests/cluster/test_connect.py``).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

MANY_ROWS = 1 << 16
"""Rows of a range that is large enough for one partition per core on any cluster."""

_DECIDE_PARTITIONS = ("spark.default.parallelism", "spark.sql.leafNodeDefaultParallelism")
"""Settings that fix the number of partitions of a range, whatever the number of cores is."""


def is_connect(session: Any) -> bool:
    """Return whether a session or a DataFrame belongs to Spark Connect."""
    return type(session).__module__.startswith("pyspark.sql.connect.")


def setting_of(session: SparkSession, key: str) -> str | None:
    """Return a setting of the server; ``None`` if it is not set, or the server does not reveal it."""
    from pyspark.errors import PySparkException

    try:
        return session.conf.get(key, None)
    except PySparkException:
        # Hosted servers hide some settings.
        return None


def server_host(session: SparkSession) -> str:
    """Return the host of the server, as it was given to the client."""
    return str(session._client.host)  # type: ignore[attr-defined]


def encrypts(session: SparkSession) -> bool:
    """Return whether the client uses TLS to talk to the server."""
    builder = session._client._builder  # type: ignore[attr-defined]
    return bool(getattr(builder, "use_ssl", None) or (not hasattr(builder, "use_ssl") and builder.secure))


def register_profile(session: SparkSession, profile: ResourceProfile) -> None:
    """Register a resource profile with the server through the active session, as Connect does; it is set per thread."""
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
    """Return the number of cores of Spark's executors now; ``None`` if a setting hides it.

    A client cannot list executors. Without a setting, Spark gives a range one partition per core.
    """
    from pyspark.sql import functions as F

    if any(setting_of(session, key) for key in _DECIDE_PARTITIONS):
        return None
    found = session.range(MANY_ROWS).select(F.spark_partition_id().alias("p")).agg(F.max("p")).first()
    assert found is not None
    return int(found[0]) + 1
