"""Expressions of the connector's jar as columns of classic sessions: the one place where py4j reaches them.

Spark Connect has no JVM here, and a session may lack the jar: then there is no bridge, and callers have another way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import Column, SparkSession

logger = logging.getLogger(__name__)


class Bridge:
    """The connector's classes, and the way between columns and expressions."""

    def __init__(self, jvm: Any, utils: Any) -> None:
        self._jvm = jvm
        self._utils = utils
        #: The package of the connector's classes.
        self.connector = jvm.tfspark.tfrecord

    def expression(self, column: Column) -> Any:
        """Return the expression of a column."""
        return self._utils.expression(column._jc)  # type: ignore[attr-defined]

    def column(self, expression: Any) -> Column:
        """Return a column of an expression."""
        from pyspark.sql.classic.column import Column as ClassicColumn

        return ClassicColumn(self._utils.column(expression))

    def java_map(self, values: Mapping[str, str]) -> Any:
        """Return a Java map of strings."""
        made = self._jvm.java.util.HashMap()
        for key, value in values.items():
            made.put(key, value)
        return made


def bridge_of(session: SparkSession) -> Bridge | None:
    """Return the bridge of a session, or None if it has no JVM or lacks the jar."""
    try:
        jvm: Any = session._jvm  # type: ignore[attr-defined]
    except Exception as e:
        # Spark Connect says with an error of its own that it has none.
        logger.debug("the connector's expressions are not to be had: %s", e)
        return None
    return _bridge(jvm)


def bridge_of_column(column: Column) -> Bridge | None:
    """Return the bridge of the JVM that a column is of, or None as `bridge_of`."""
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return _bridge(context._jvm) if context is not None and hasattr(column, "_jc") else None


def register_functions(session: SparkSession) -> None:
    """Give a classic session the SQL functions of the connector."""
    bridge = bridge_of(session)
    if bridge is not None:
        bridge.connector.RecordFunctions.register(session._jsparkSession)  # type: ignore[attr-defined]


def _bridge(jvm: Any) -> Bridge | None:
    try:
        from py4j.java_gateway import JavaClass

        packed, utils = jvm.tfspark.tfrecord.PackedArray, jvm.org.apache.spark.sql.classic.ExpressionUtils
    except (ImportError, AttributeError):
        return None
    return Bridge(jvm, utils) if isinstance(packed, JavaClass) and isinstance(utils, JavaClass) else None
