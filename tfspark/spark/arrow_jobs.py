"""Jobs that give Arrow batches to Python tasks, on every Spark version that tfspark supports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tfspark.spark.home import is_spark_3
from tfspark.spark.internals import with_resources

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType


def map_in_arrow(
    df: DataFrame,
    task: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]],
    ddl: str | StructType,
    *,
    barrier: bool = False,
    profile: ResourceProfile | None = None,
) -> DataFrame:
    """Return a DataFrame of the rows that `task` yields for each partition, run with a resource profile if given."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.spark.worker_socket import read_without_delay

        return task(read_without_delay(batches))

    if not is_spark_3():
        return df.mapInArrow(run, ddl, barrier=barrier, profile=profile)
    answers = df.mapInArrow(run, ddl, barrier=barrier)
    # Spark 3.5 supports profiles for RDDs only.
    return answers if profile is None else with_resources(answers, profile)
