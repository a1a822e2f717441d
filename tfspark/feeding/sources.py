"""The data that `Cluster.feed` takes: each kind as an Arrow schema and a Spark job that gives rows to feed tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.columns.leaves import Columns, choose_columns, fed_columns
from tfspark.columns.sent import sent_frame
from tfspark.errors import ConfigurationError, FeedError
from tfspark.feeding.pandas_frames import from_pandas, is_pandas
from tfspark.spark.plans import in_one_stage, rows_can_move

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import RDD
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.feeding.feed_task import FeedTask

SAMPLED_ROWS = 20
"""Rows of an RDD from which its columns are inferred."""


@dataclass(frozen=True)
class FeedJob:
    """A Spark job that sends data to the workers.

    Attributes
    ----------
    run
        Runs the job to its end.
    indeterminate
        Returns whether rows can fall into other partitions when Spark computes them again.
    """

    run: Callable[[], Any]
    indeterminate: Callable[[], bool]


@dataclass(frozen=True)
class Source:
    """Data that can be fed.

    Attributes
    ----------
    schema
        Arrow schema of the rows.
    shapes
        Shapes of array columns that are known from the data.
    job
        Makes the feed job of a feed task, with the resource profile of its Spark tasks.
    in_one_stage
        Returns whether the feed tasks are all tasks that Spark runs for the feed.
    """

    schema: pa.Schema
    shapes: Mapping[str, tuple[int, ...]]
    job: Callable[[FeedTask, ResourceProfile | None], FeedJob]
    in_one_stage: Callable[[], bool] = lambda: False


def source_of(
    spark: SparkSession,
    data: Any,
    columns: Columns | None,
    mask: Sequence[str] = (),
    sparse: Sequence[str] = (),
    ragged: Collection[str] = (),
) -> Source:
    """Return the source of a DataFrame, an RDD or a pandas DataFrame.

    Parameters
    ----------
    columns
        Columns to feed, or a mapping: its keys are the names under which columns are fed, its values the columns.
    mask
        Columns that get a mask column, which says where they are null.
    sparse
        Columns of ML vectors that stay sparse.
    ragged
        Columns of arrays of variable length, whatever the lengths in the first rows are.

    Raises
    ------
    ConfigurationError
        If `data` cannot be fed.
    SchemaError
        If a column does not exist or its type is not known.
    """
    from pyspark import RDD
    from pyspark.sql import DataFrame

    if is_pandas(data):
        data = from_pandas(spark, data, columns)
    if isinstance(data, DataFrame):
        return dataframe_source(data, columns, mask, sparse)
    if isinstance(data, RDD):
        if mask:
            raise ConfigurationError(
                "mask works for DataFrames only.", hint="spark.createDataFrame(rdd, schema) makes one."
            )
        return _rdd_source(data, columns, ragged)
    raise ConfigurationError(
        f"feed() takes a Spark DataFrame, an RDD, a pandas DataFrame or an iterator of these, "
        f"not {type(data).__name__}.",
        hint="spark.createDataFrame(...) makes a DataFrame of most things.",
    )


def is_rdd(data: Any) -> bool:
    """Return whether this is an RDD."""
    from pyspark import RDD

    return isinstance(data, RDD)


def count_rows(data: Any) -> int:
    """Count the rows of data that can be fed."""
    return len(data) if is_pandas(data) else int(data.count())


def dataframe_source(
    df: DataFrame, columns: Columns | None = None, mask: Sequence[str] = (), sparse: Sequence[str] = ()
) -> Source:
    """Return the source of a Spark DataFrame; see `source_of`."""
    fed = fed_columns(df, columns, mask, sparse)
    df = fed.frame

    def job(task: FeedTask, profile: ResourceProfile | None) -> FeedJob:
        sending = feed_job(df, task, profile)
        # Spark itself reports this; with adaptive execution it is known only after the job has run.
        return FeedJob(sending.collect, lambda: rows_can_move(sending))

    # A DataFrame keeps its plan once it is asked for it, also if it is cached later; this may be the user's own.
    return Source(fed.schema, fed.shapes, job, lambda: in_one_stage(df.select("*")))


def feed_job(df: DataFrame, task: FeedTask, profile: ResourceProfile | None = None) -> DataFrame:
    """Return the job that sends every partition of `df` to a worker."""
    from tfspark.feeding.feed_task import RESULT_DDL

    sent = sent_frame(df, task.columns)
    task = replace(task, packed=sent.packed)

    def send_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.feeding.feed_task import push

        return push(task, batches)

    return sent.map(send_partition, RESULT_DDL, profile)


def pickled_source(data: Any) -> Source:
    """Return the source of an RDD whose rows are sent as pickled objects; see `tfspark/columns/pickled_rows.py`.

    Raises
    ------
    ConfigurationError
        If `data` is not an RDD.
    """
    import pyarrow as pa
    from pyspark import RDD

    from tfspark.columns import pickled_rows as objects

    if not isinstance(data, RDD):
        raise ConfigurationError(
            f"pickled=True works for RDDs, got {type(data).__name__}.", hint="Feed a DataFrame without pickled=True."
        )
    return Source(pa.schema([objects.FIELD]), {}, _rdd_job(data, objects.pickled))


def _rdd_source(rdd: RDD[Any], columns: Columns | None, ragged: Collection[str]) -> Source:
    import pyarrow as pa

    from tfspark.columns.python_rows import infer_columns, record_batches

    sample = rdd.take(SAMPLED_ROWS)
    if not sample:
        raise FeedError("The RDD has no rows.", hint="Check its filters and its source.")
    found = infer_columns(sample)
    if columns is not None:
        by_name = {c.name: c for c in found}
        chosen = choose_columns(columns, list(by_name))
        found = tuple(replace(by_name[c], name=name) for name, c in chosen.items())
    found = tuple(c.of_any_length() if c.name in ragged else c for c in found)
    shapes = {c.name: c.shape for c in found if c.shape is not None}
    return Source(pa.schema([c.field for c in found]), shapes, _rdd_job(rdd, partial(record_batches, columns=found)))


def _rdd_job(
    rdd: RDD[Any], to_batches: Callable[[Iterator[Any]], Iterator[pa.RecordBatch]]
) -> Callable[[FeedTask, ResourceProfile | None], FeedJob]:
    def job(task: FeedTask, _: ResourceProfile | None) -> FeedJob:
        def send_partition(index: int, rows: Iterator[Any]) -> Iterator[Any]:
            from pyspark import TaskContext

            from tfspark.feeding.feed_task import push_partition
            from tfspark.spark.worker_socket import read_without_delay

            context = TaskContext.get()
            assert context is not None
            batches = read_without_delay(to_batches(rows))
            for _ in push_partition(task, index, context.attemptNumber(), batches):
                yield from ()

        sending = rdd.mapPartitionsWithIndex(send_partition)
        return FeedJob(sending.collect, lambda: rows_can_move(sending))

    return job
