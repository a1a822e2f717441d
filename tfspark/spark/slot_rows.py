"""DataFrames whose columns reach Python tasks through shared memory (``connectors/columns``) instead of a socket.

Spark writes columns to Arrow value by value, and sends them to Python through a socket. The connector's jar has a plan
that copies the fields of rows into slots: memory that the executor shares with its Python tasks. Spark then sends one
row of some 200 bytes for each slot, and `tfspark.columns.slots` reads the slots. Where slots are not available (Spark
Connect, a session without the jar, unsupported types), Spark sends the columns in its usual way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfspark.spark.internals import java_class, java_schema, java_session, jvm_of, with_plan

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def in_slots(df: DataFrame) -> DataFrame | None:
    """Return a lazy DataFrame of slots that contain the columns of `df`; ``None`` if slots are not available.

    Spark plans and runs it like `df`: with adaptive execution, cached data and the session's settings. Its rows are for
    ``mapInArrow`` only, which gets each row as soon as its slot is full.
    """
    session = df.sparkSession
    rows = java_class(jvm_of(session), "tfspark.columns.SlotRows")
    if rows is None or not rows.isSupported(java_schema(df)):
        return None
    rows.enable(java_session(session).experimental())
    return with_plan(df, rows.of)


def beside(mapped: DataFrame, kept: Sequence[int]) -> DataFrame | None:
    """Return a DataFrame of columns that stay in the JVM and a task's results; ``None`` if this is not possible.

    Parameters
    ----------
    mapped
        The result of ``mapInArrow`` on `in_slots` of a ``select``. The task must return as many rows as it gets, in
        the same order.
    kept
        Positions of the columns to keep in the DataFrame of the ``select``.
    """
    map_beside = java_class(jvm_of(mapped.sparkSession), "tfspark.columns.MapBeside")
    assert map_beside is not None
    return with_plan(mapped, lambda plan: map_beside.of(plan, list(kept)))
