"""DataFrames whose columns reach Python tasks through shared memory (``connectors/columns``) instead of a socket.

Spark writes columns to Arrow value by value, and sends them to Python through a socket. The connector's jar has a plan
that copies the fields of rows into slots of memory which the executor shares with its Python tasks. Spark then sends
a row for each slot, of some 200 bytes; `tfspark.columns.slots` reads the slots. Where this is not to be
had (Spark Connect, a session without the jar, types that it does not know), columns travel as Spark sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfspark.spark.internals import is_java_class, java_schema, java_session, jvm_of, with_plan

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def in_slots(df: DataFrame) -> DataFrame | None:
    """Return a DataFrame of the slots with the columns of `df`, lazily; ``None`` if there is no such way.

    Spark plans and runs it as it does `df`: with adaptive execution, cached data and the session's settings. Its rows
    are for ``mapInArrow`` alone, which gets each of them as soon as the slot is full.
    """
    session = df.sparkSession
    jvm = jvm_of(session)
    rows = jvm.tfspark.columns.SlotRows if jvm is not None else None
    if rows is None or not is_java_class(rows) or not rows.isSupported(java_schema(df)):
        return None
    rows.enable(java_session(session).experimental())
    return with_plan(df, rows.of)


def beside(mapped: DataFrame, kept: Sequence[int]) -> DataFrame | None:
    """Return what a task makes of slots, beside columns that stay in the JVM; ``None`` if there is no such way.

    Parameters
    ----------
    mapped
        The result of ``mapInArrow`` over `in_slots` of a ``select``. It must return as many rows as it gets, in order.
    kept
        Positions of columns of the DataFrame that was selected from.
    """
    jvm = jvm_of(mapped.sparkSession)
    assert jvm is not None
    return with_plan(mapped, lambda plan: jvm.tfspark.columns.MapBeside.of(plan, list(kept)))
