"""Send columns from Spark to the Python tasks of a job: in slots of shared memory, else as Arrow.

Slots are faster; see `tfspark.spark.slot_rows`. If the session or a type does not support slots, Spark sends Arrow
batches, with arrays of numbers as bytes where possible (`tfspark.columns.packed_arrays`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from tfspark.columns.leaves import quoted
from tfspark.columns.packed_arrays import Packed, packed_columns
from tfspark.columns.spec import ColumnSpec
from tfspark.columns.types import arrow_schema_of
from tfspark.spark.arrow_jobs import map_in_arrow
from tfspark.spark.slot_rows import beside, in_slots

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

    Task = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class SentColumns:
    """Columns that Spark sends to Python tasks.

    Attributes
    ----------
    frame
        The DataFrame that Spark hands to the tasks.
    names
        Names of the columns in batches; in `frame` they have other names.
    slots
        Schema of the columns if they are in slots; else ``None``.
    packed
        Columns that are sent as bytes, and the dtype of their values.
    """

    frame: DataFrame
    names: Sequence[str]
    slots: pa.Schema | None
    packed: Packed

    def map(self, task: Task, returned: str | StructType, profile: ResourceProfile | None = None) -> DataFrame:
        """Return a DataFrame of the batches that `task` yields for the batches of each partition.

        A batch stays valid while `task` runs. A task that keeps many batches gets further ones through the socket.
        """
        slots, names = self.slots, list(self.names)

        def named(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return task(pa.RecordBatch.from_arrays(batch.columns, names=names) for batch in batches)

        def placed(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            from tfspark.columns.slots import batches_in_slots

            return task(batches_in_slots(rows, slots))

        return map_in_arrow(self.frame, named if slots is None else placed, returned, profile=profile)


def map_beside(
    df: DataFrame, columns: Mapping[str, Column], kept: Sequence[str], task: Task, returned: str | StructType
) -> DataFrame | None:
    """Return a DataFrame of the `kept` columns, which stay in the JVM, and the results of `task` for `columns`.

    `task` returns one row for each row. Return ``None`` if the columns cannot be sent in slots.
    """
    sent = _sent_in_slots(_numbered(df, (), columns), list(columns))
    return None if sent is None else beside(sent.map(task, returned), [df.columns.index(c) for c in kept])


def sent_frame(df: DataFrame, specs: Sequence[ColumnSpec]) -> SentColumns:
    """Return all columns of a DataFrame to send to tasks; see `sent_columns`."""
    from pyspark.sql import functions as F

    if (sent := _sent_in_slots(df, df.columns)) is not None:
        return sent
    return _sent_as_arrow(df, {c: F.col(quoted(c)) for c in df.columns}, specs)


def sent_columns(
    df: DataFrame,
    columns: Mapping[str, Column],
    specs: Sequence[ColumnSpec],
    *,
    narrowed: Collection[str] = (),
    kept: Sequence[str] = (),
) -> SentColumns:
    """Return columns of a DataFrame to send to tasks, under the names that they have in `columns`.

    Parameters
    ----------
    specs
        The tensors that the columns become.
    narrowed
        Columns whose doubles are wanted as floats.
    kept
        Names of columns of `df` that are sent before `columns`.
    """
    names = [*kept, *columns]
    if (sent := _sent_in_slots(_numbered(df, kept, columns), names)) is not None:
        return sent
    return _sent_as_arrow(df, columns, specs, narrowed, kept)


def _sent_in_slots(df: DataFrame, names: Sequence[str]) -> SentColumns | None:
    slots = in_slots(df)
    if slots is None:
        return None
    schema = arrow_schema_of(df.schema)
    return SentColumns(slots, names, pa.schema(f.with_name(n) for f, n in zip(schema, names, strict=True)), {})


def _sent_as_arrow(
    df: DataFrame,
    columns: Mapping[str, Column],
    specs: Sequence[ColumnSpec],
    narrowed: Collection[str] = (),
    kept: Sequence[str] = (),
) -> SentColumns:
    columns, packed = packed_columns(df, columns, specs, narrowed)
    return SentColumns(_numbered(df, kept, columns), [*kept, *columns], None, packed)


def _numbered(df: DataFrame, kept: Sequence[str], columns: Mapping[str, Column]) -> DataFrame:
    """Return the columns under names that ``mapInArrow`` accepts, whatever their own names are."""
    from pyspark.sql import functions as F

    sent = [*[F.col(quoted(c)) for c in kept], *columns.values()]
    return df.select(*[c.alias(f"column_{i}") for i, c in enumerate(sent)])
