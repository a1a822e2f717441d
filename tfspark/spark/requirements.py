"""Requirements for a session in which a cluster runs, checked before anything starts."""

from __future__ import annotations

from typing import Any

from tfspark.errors import ConfigurationError, DependencyError
from tfspark.spark.connect import is_connect
from tfspark.spark.internals import is_classic, is_stopped


def require_session(spark: Any) -> None:
    """Raise an error unless `spark` is a running SparkSession, classic or of Spark Connect.

    Raises
    ------
    ConfigurationError
        If `spark` is something else, or is stopped.
    """
    connect = is_connect(spark) and type(spark).__name__ == "SparkSession"
    if not connect and not is_classic(spark):
        raise ConfigurationError(
            f"Cluster needs a SparkSession, got {type(spark).__module__}.{type(spark).__name__}.",
            hint="Make one with tfspark.session(...).",
        )
    if spark.is_stopped if connect else is_stopped(spark):
        raise ConfigurationError("The SparkSession is stopped.", hint="Make a new one with tfspark.session(...).")


def require_pandas() -> None:
    """Raise an error early if pandas is missing; ``mapInArrow`` would raise one late.

    Raises
    ------
    DependencyError
        If pandas is missing.
    """
    try:
        import pandas  # noqa: F401
    except ImportError as e:
        raise DependencyError(
            "pandas is not installed in the driver's Python, and Spark's mapInArrow needs it.",
            hint='Install "pandas>=2.2,<3" here and on the executors.',
        ) from e
