"""What Spark's plan of a DataFrame says, in classic sessions and on Spark Connect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tfspark.spark import connect, internals

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame

EXCHANGE = re.compile(r"^[ :+\-*()\d]*\w*Exchange\b", re.MULTILINE)
"""How Spark writes a step of a plan before which other stages, or broadcasts, have to be done."""


def in_one_stage(df: DataFrame) -> bool:
    """Return whether Spark computes a DataFrame in one stage."""
    plan = connect.plan_of(df) if connect.is_connect(df) else internals.executed_plan(df)
    return not EXCHANGE.search(plan)


def rows_can_move(data: DataFrame | RDD[Any]) -> bool:
    """Return whether Spark may put rows into other partitions when it computes them again.

    Only the JVM knows. On Spark Connect the plan must do, so rows count as movable wherever they are exchanged.
    """
    return not in_one_stage(data) if connect.is_connect(data) else internals.rows_can_move(data)  # type: ignore[arg-type]
