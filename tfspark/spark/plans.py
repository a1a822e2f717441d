"""Facts that tfspark reads from Spark's plan of a DataFrame, in classic sessions and on Spark Connect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tfspark.spark import connect, internals

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame

EXCHANGE = re.compile(r"^[ :+\-*()\d]*\w*Exchange\b", re.MULTILINE)
"""Matches, in Spark's text of a plan, an operator that needs other stages or broadcasts to finish first."""


def in_one_stage(df: DataFrame) -> bool:
    """Return whether Spark computes a DataFrame in one stage."""
    plan = connect.plan_of(df) if connect.is_connect(df) else internals.executed_plan(df)
    return not EXCHANGE.search(plan)


def rows_can_move(data: DataFrame | RDD[Any]) -> bool:
    """Return whether Spark may put rows into other partitions when it computes them again.

    Only the JVM knows. On Spark Connect the plan decides instead, so rows count as movable if the plan exchanges them.
    """
    return not in_one_stage(data) if connect.is_connect(data) else internals.rows_can_move(data)  # type: ignore[arg-type]
