"""The driver's side of `Cluster.feed`: plan the columns, run the feed job, close the books."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, SchemaError
from tfspark.schema import ColumnSpec, plan_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

    from tfspark.executor.feed_task import FeedPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeedReport:
    """What one call of `Cluster.feed` moved.

    Attributes
    ----------
    rows, bytes
        Rows delivered, and their size as Arrow.
    seconds
        From the call until the last partition was committed.
    rows_by_worker
        Rows by ``(role, index)``.
    epochs
        How often workers will see them.
    """

    rows: int
    bytes: int
    seconds: float
    rows_by_worker: dict[tuple[str, int], int]
    epochs: int

    @property
    def rows_per_second(self) -> float:
        """Rows delivered per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows ({self.bytes / 1e6:,.1f} MB) in {self.seconds:.1f} s: "
            f"{self.rows_per_second:,.0f} rows/s, {self.bytes / 1e6 / max(self.seconds, 1e-9):,.1f} MB/s"
        )


def plan_feed(
    data: Any,
    columns: Sequence[str] | None,
    shapes: Mapping[str, Sequence[int] | int] | None,
    fill: Mapping[str, Any] | None,
) -> tuple[DataFrame, tuple[ColumnSpec, ...]]:
    """Check what is to be fed and decide the tensor of each column.

    Raises
    ------
    ConfigurationError
        If `data` is no DataFrame.
    SchemaError
        If a column has no tensor form.
    """
    from pyspark.sql import DataFrame

    if not isinstance(data, DataFrame):
        raise ConfigurationError(
            f"feed() takes a Spark DataFrame, not {type(data).__name__}.",
            hint="spark.createDataFrame(...) makes one.",
        )
    if columns is not None:
        unknown = sorted(set(columns) - set(data.columns))
        if unknown:
            raise SchemaError(
                f"feed() was asked for {unknown}, which are no columns.", hint=f"There are {data.columns}."
            )
        data = data.select(*columns)
    return data, plan_columns(_arrow_schema(data), shapes, fill)


def _arrow_schema(df: DataFrame) -> pa.Schema:
    import pyarrow as pa
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import to_arrow_type

    # Before Spark 4.1 UTC was the default, and the argument another one.
    utc = {"timezone": "UTC"} if "timezone" in inspect.signature(to_arrow_type).parameters else {}
    fields = []
    for f in df.schema.fields:
        try:
            fields.append(pa.field(f.name, to_arrow_type(f.dataType, **utc), f.nullable))
        except (PySparkException, TypeError):
            raise SchemaError(
                f"Column {f.name!r} has type {f.dataType.simpleString()}, for which there is no tensor.",
                hint="Cast it, select its fields, or drop it.",
            ) from None
    return pa.schema(fields)


def feed_job(df: DataFrame, plan: FeedPlan) -> DataFrame:
    """Return the job that sends every partition of `df` to a worker."""
    from tfspark.executor.feed_task import RESULT_DDL

    def send_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.feed_task import push

        return push(plan, batches)

    return df.mapInArrow(send_partition, RESULT_DDL)
