"""What `Cluster.feed` takes: each kind of data as an Arrow schema and a Spark job that hands its rows to feed tasks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, FeedError, SchemaError
from tfspark.packing import packed_columns
from tfspark.schema import ColumnSpec, Shape, plan_columns, with_path

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark import RDD
    from pyspark.resource import ResourceProfile
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructField, StructType

    from tfspark.executor.feed_task import FeedPlan

SAMPLED_ROWS = 20
"""Rows of an RDD that are looked at for its columns."""

_EXCHANGE = re.compile(r"^[ :+\-*()\d]*\w*Exchange\b", re.MULTILINE)
"""How Spark writes a step of a plan before which other stages, or broadcasts, have to be done."""

Columns = Sequence[str] | Mapping[str, str]


@dataclass(frozen=True)
class FeedJob:
    """A Spark job that sends data to the workers.

    Attributes
    ----------
    run
        Runs it to its end.
    indeterminate
        Tells whether rows can fall into other partitions when Spark computes them again.
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
        Shapes of array columns that the data itself tells.
    job
        Makes the feed job of a plan, with a resource profile for its tasks.
    in_one_stage
        Whether these are all tasks that Spark runs for it.
    """

    schema: pa.Schema
    shapes: Mapping[str, tuple[int, ...]]
    job: Callable[[FeedPlan, ResourceProfile | None], FeedJob]
    in_one_stage: Callable[[], bool] = lambda: False


def source_of(
    spark: SparkSession,
    data: Any,
    columns: Columns | None,
    mask: Sequence[str] = (),
    sparse: Sequence[str] = (),
) -> Source:
    """Return the source of a DataFrame, an RDD or a pandas DataFrame.

    Parameters
    ----------
    columns
        Columns to feed; as a mapping, the name under which each is fed and the name that it has.
    mask
        Columns for which another one tells where they are null.
    sparse
        Columns of ML vectors that stay sparse.

    Raises
    ------
    ConfigurationError
        If `data` is nothing that can be fed.
    SchemaError
        If a column does not exist or its type is not known.
    """
    from pyspark import RDD
    from pyspark.sql import DataFrame

    if type(data).__module__.startswith("pandas."):
        data = _from_pandas(spark, data)
    if isinstance(data, DataFrame):
        return dataframe_source(data, columns, mask, sparse)
    if isinstance(data, RDD):
        if mask:
            raise ConfigurationError("mask is for DataFrames.", hint="spark.createDataFrame(rdd, schema) makes one.")
        return _rdd_source(data, columns)
    raise ConfigurationError(
        f"feed() takes a Spark DataFrame, an RDD, a pandas DataFrame or an iterator of these, "
        f"not {type(data).__name__}.",
        hint="spark.createDataFrame(...) makes a DataFrame of most things.",
    )


def is_rdd(data: Any) -> bool:
    """Tell whether this is an RDD."""
    from pyspark import RDD

    return isinstance(data, RDD)


def dataframe_source(
    df: DataFrame, columns: Columns | None = None, mask: Sequence[str] = (), sparse: Sequence[str] = ()
) -> Source:
    """Return the source of a Spark DataFrame; see `source_of`."""
    fed = fed_columns(df, columns, mask, sparse)
    df = fed.frame

    def job(plan: FeedPlan, profile: ResourceProfile | None) -> FeedJob:
        sending = feed_job(df, plan, profile)
        # Spark's own word for it; with adaptive execution it is known only when the job has run.
        return FeedJob(sending.collect, lambda: _is_indeterminate(sending._jdf.queryExecution().toRdd()))

    return Source(
        fed.schema, fed.shapes, job, lambda: not _EXCHANGE.search(df._jdf.queryExecution().executedPlan().toString())
    )


def _is_indeterminate(jrdd: Any) -> bool:
    return str(jrdd.outputDeterministicLevel().toString()) == "INDETERMINATE"


def leaves_of(
    df: DataFrame, columns: Columns | None = None, mask: Sequence[str] = (), sparse: Sequence[str] = ()
) -> list[Leaf]:
    """Return the columns in which a DataFrame is fed; see `source_of`."""
    from pyspark.sql import functions as F

    chosen = _choose(columns, df.columns) if columns is not None else {c: c for c in df.columns}
    fields = {f.name: f for f in df.schema.fields}
    flat = [leaf for name, c in chosen.items() for leaf in _leaves(fields[c], F.col(quoted(c)), (name,), sparse)]
    masked = [leaf for leaf in flat if leaf.name in mask]
    if missing := sorted(set(mask) - {leaf.name for leaf in masked}):
        raise SchemaError(f"mask names {missing}, which are no columns.", hint=f"There are {[c.name for c in flat]}.")
    flat += [replace(leaf, path=_mask_path(leaf.path), column=leaf.column.isNotNull()) for leaf in masked]
    return flat


def _described(df: DataFrame, leaves: Sequence[Leaf]) -> tuple[pa.Schema, dict[str, tuple[int, ...]]]:
    """Return the Arrow schema of a DataFrame of leaves, and the shapes that are known of them."""
    fields = [
        f if leaf.path == (leaf.name,) else with_path(f, leaf.path)
        for f, leaf in zip(arrow_schema_of(df.schema), leaves, strict=True)
    ]
    return _schema_of(fields), {leaf.name: leaf.shape for leaf in leaves if leaf.shape is not None}


@dataclass(frozen=True)
class FedColumns:
    """The columns in which a DataFrame is fed.

    Attributes
    ----------
    columns
        By name, of the DataFrame as it is.
    frame
        They alone.
    schema, shapes
        Their Arrow schema, and the shapes that are known.
    """

    columns: dict[str, Column]
    frame: DataFrame
    schema: pa.Schema
    shapes: dict[str, tuple[int, ...]]


def fed_columns(df: DataFrame, columns: Columns | None, mask: Sequence[str], sparse: Sequence[str]) -> FedColumns:
    """Return the columns in which a DataFrame is fed; see `source_of`."""
    leaves = leaves_of(df, columns, mask, sparse)
    frame = df.select(*[leaf.column.alias(leaf.name) for leaf in leaves])
    return FedColumns({leaf.name: leaf.column for leaf in leaves}, frame, *_described(frame, leaves))


@dataclass(frozen=True)
class Leaf:
    """A column as it is fed, of which a struct column gives several."""

    path: tuple[str, ...]
    column: Column
    shape: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        # Spark takes dots apart in the names of what it hands to Python.
        return "/".join(self.path).replace(".", "/")


def _leaves(f: StructField, column: Column, path: tuple[str, ...], sparse: Sequence[str]) -> Iterator[Leaf]:
    from pyspark.sql import functions as F
    from pyspark.sql.types import StructType

    if f.dataType.typeName() == "vectorudt":
        from pyspark.ml.functions import vector_to_array

        size = f.metadata.get("ml_attr", {}).get("num_attrs")
        leaf = Leaf(path, column, (int(size),) if size else None)
        if leaf.name not in sparse:
            leaf = replace(leaf, column=F.when(column.isNotNull(), vector_to_array(column, "float32")))
        yield leaf
    elif isinstance(f.dataType, StructType):
        for inner in f.dataType.fields:
            yield from _leaves(inner, column.getField(inner.name), (*path, inner.name), sparse)
    else:
        yield Leaf(path, column)


def _mask_path(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}_mask")


def planned(
    schema: pa.Schema,
    known: Mapping[str, Shape],
    shapes: Mapping[str, Shape] | None,
    fill: Mapping[str, Any] | None,
    mask: Sequence[str],
    sparse: Sequence[str],
) -> tuple[ColumnSpec, ...]:
    """Decide the tensor of every column from what the data tells and what the caller asks for."""
    zeros = {name: zero_of(schema.field(name).type) for name in mask}
    return plan_columns(schema, {**known, **(shapes or {})}, {**zeros, **(fill or {})}, sparse)


def zero_of(t: pa.DataType) -> Any:
    """Return what a masked column holds where it is null."""
    import pyarrow as pa

    if pa.types.is_string(t) or pa.types.is_large_string(t):
        return ""
    if pa.types.is_binary(t) or pa.types.is_large_binary(t):
        return b""
    if pa.types.is_temporal(t) or pa.types.is_decimal(t):
        return pa.scalar(0).cast(pa.int32() if pa.types.is_date32(t) else pa.int64()).cast(t).as_py()
    return False if pa.types.is_boolean(t) else 0


def _schema_of(fields: list[pa.Field]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(fields)


def quoted(column: str) -> str:
    """Return a column's name as it stands in an expression."""
    return "`" + column.replace("`", "``") + "`"


def _choose(columns: Columns, existing: Sequence[str]) -> dict[str, str]:
    chosen = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    unknown = sorted(set(chosen.values()) - set(existing))
    if unknown:
        raise SchemaError(f"feed() was asked for {unknown}, which are no columns.", hint=f"There are {list(existing)}.")
    if not chosen:
        raise SchemaError("feed() was asked for no columns at all.", hint=f"There are {list(existing)}.")
    return chosen


def arrow_schema_of(schema: StructType) -> pa.Schema:
    """Return the Arrow schema in which Spark hands over rows.

    Raises
    ------
    SchemaError
        If a type has none.
    """
    import pyarrow as pa
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import to_arrow_type

    # Before Spark 4.1 UTC was the default, and the argument another one.
    utc = {"timezone": "UTC"} if "timezone" in inspect.signature(to_arrow_type).parameters else {}
    fields = []
    for f in schema.fields:
        try:
            fields.append(pa.field(f.name, to_arrow_type(f.dataType, **utc), f.nullable))
        except (PySparkException, TypeError):
            raise SchemaError(
                f"Column {f.name!r} has type {f.dataType.simpleString()}, for which there is no tensor.",
                hint="Cast it, select its fields, or drop it.",
            ) from None
    return pa.schema(fields)


def feed_job(df: DataFrame, plan: FeedPlan, profile: ResourceProfile | None = None) -> DataFrame:
    """Return the job that sends every partition of `df` to a worker."""
    from pyspark.sql import functions as F

    from tfspark.executor.feed_task import RESULT_DDL

    columns, packed = packed_columns(df, {c: F.col(quoted(c)) for c in df.columns}, plan.columns)
    plan = replace(plan, packed=packed)

    def send_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.feed_task import push

        return push(plan, batches)

    sent = df.select(*[c.alias(name) for name, c in columns.items()]) if packed else df
    return sent.mapInArrow(send_partition, RESULT_DDL, profile=profile)


def _from_pandas(spark: SparkSession, frame: pd.DataFrame) -> DataFrame:
    import pyarrow as pa

    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise SchemaError(f"The pandas DataFrame does not convert to Arrow: {e}") from None
    return spark.createDataFrame(table)


def pickled_source(data: Any) -> Source:
    """Return the source of an RDD whose rows travel as they are, pickled; see `tfspark/objects.py`.

    Raises
    ------
    ConfigurationError
        If `data` is no RDD.
    """
    import pyarrow as pa
    from pyspark import RDD

    from tfspark import objects

    if not isinstance(data, RDD):
        raise ConfigurationError(
            f"pickled=True is for RDDs, not {type(data).__name__}.", hint="Columns travel faster, and as they are."
        )
    return Source(pa.schema([objects.FIELD]), {}, _rdd_job(data, objects.pickled))


def _rdd_source(rdd: RDD[Any], columns: Columns | None) -> Source:
    import pyarrow as pa

    from tfspark.executor.rows import infer_columns, record_batches

    sample = rdd.take(SAMPLED_ROWS)
    if not sample:
        raise FeedError("The RDD has no rows.", hint="Check its filters and its source.")
    found = infer_columns(sample)
    if columns is not None:
        by_name = {c.name: c for c in found}
        chosen = _choose(columns, list(by_name))
        found = tuple(replace(by_name[c], name=name) for name, c in chosen.items())
    shapes = {c.name: c.shape for c in found if c.shape is not None}
    return Source(pa.schema([c.field for c in found]), shapes, _rdd_job(rdd, partial(record_batches, columns=found)))


def _rdd_job(
    rdd: RDD[Any], to_batches: Callable[[Iterator[Any]], Iterator[pa.RecordBatch]]
) -> Callable[[FeedPlan, ResourceProfile | None], FeedJob]:
    def job(plan: FeedPlan, _: ResourceProfile | None) -> FeedJob:
        def send_partition(index: int, rows: Iterator[Any]) -> Iterator[Any]:
            from pyspark import TaskContext

            from tfspark.executor.feed_task import push_partition

            context = TaskContext.get()
            assert context is not None
            for _ in push_partition(plan, index, context.attemptNumber(), to_batches(rows)):
                yield from ()

        sending = rdd.mapPartitionsWithIndex(send_partition)
        return FeedJob(sending.collect, lambda: _is_indeterminate(sending._jrdd.rdd()))

    return job
