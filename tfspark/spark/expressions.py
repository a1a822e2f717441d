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

    def __init__(self, jvm: Any, packed_array: Any, utils: Any) -> None:
        self.packed_array = packed_array
        self._java, self._utils = jvm, utils

    @property
    def record_functions(self) -> Any:
        """The functions that convert structs to messages and back."""
        return internals.java_class(self._java, "tfspark.tfrecord.RecordFunctions")

    def expression(self, column: Column) -> Any:
        """Return the expression of a column."""
        return internals.expression_of(self._utils, column)

    def column(self, expression: Any) -> Column:
        """Return an expression as a column."""
        return internals.column_of(self._utils, expression)

    def java_map(self, values: Mapping[str, str]) -> Any:
        """Return a Java map of strings."""
        return internals.java_map(self._java, values)


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
        bridge.record_functions.register(internals.java_session(session))


def _bridge(jvm: Any | None) -> Bridge | None:
    packed = internals.java_class(jvm, "tfspark.columns.PackedArray")
    utils = internals.java_class(jvm, "org.apache.spark.sql.classic.ExpressionUtils")
    return Bridge(jvm, packed, utils) if packed is not None and utils is not None else None
