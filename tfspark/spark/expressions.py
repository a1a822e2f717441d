"""Expressions of the connector's jar as columns of classic sessions.

With Spark Connect there is no JVM here, and a session may lack the jar. Then there is no bridge, and callers use
another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfspark.spark import internals

if TYPE_CHECKING:
    from pyspark.sql import Column, SparkSession


class Bridge:
    """The connector's classes, and conversions between columns and expressions."""

    def __init__(self, jvm: Any, utils: Any) -> None:
        self.jvm = jvm
        self._utils = utils
        #: The packages of the connectors' classes.
        self.tfrecord, self.columns = jvm.tfspark.tfrecord, jvm.tfspark.columns

    def expression(self, column: Column) -> Any:
        """Return the expression of a column."""
        return internals.expression_of(self._utils, column)

    def column(self, expression: Any) -> Column:
        """Return an expression as a column."""
        return internals.column_of(self._utils, expression)

    def java_map(self, values: Mapping[str, str]) -> Any:
        """Return a Java map of strings."""
        return internals.java_map(self.jvm, values)


def bridge_of(session: SparkSession) -> Bridge | None:
    """Return the bridge of a session, or None if it has no JVM or lacks the jar."""
    return _bridge(internals.jvm_of(session))


def bridge_of_column(column: Column) -> Bridge | None:
    """Return the bridge of the JVM of a column, or None in the same cases as `bridge_of`."""
    return _bridge(internals.jvm_of_column(column))


def register_functions(session: SparkSession) -> None:
    """Give a classic session the SQL functions of the connector."""
    bridge = bridge_of(session)
    if bridge is not None:
        bridge.tfrecord.RecordFunctions.register(internals.java_session(session))


def _bridge(jvm: Any | None) -> Bridge | None:
    if jvm is None:
        return None
    try:
        packed, utils = jvm.tfspark.columns.PackedArray, jvm.org.apache.spark.sql.classic.ExpressionUtils
    except AttributeError:
        return None
    return Bridge(jvm, utils) if internals.is_java_class(packed) and internals.is_java_class(utils) else None
