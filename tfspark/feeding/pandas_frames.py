"""Convert pandas DataFrames to Spark DataFrames through Arrow, whatever dtypes their columns have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tfspark.columns.leaves import Columns, choose_columns
from tfspark.columns.spec import repeated
from tfspark.columns.types import OUTPUTS, is_list
from tfspark.errors import FeedError, SchemaError
from tfspark.spark.home import is_spark_3

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

PIECE_ROWS = 10_000
"""Rows of a piece of a table on Spark 3.5."""


def is_pandas(data: Any) -> bool:
    """Return whether this is a pandas DataFrame, or an instance of a derived class."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def from_pandas(spark: SparkSession, frame: pd.DataFrame, columns: Columns | None = None) -> DataFrame:
    """Return a Spark DataFrame of the requested columns of a pandas DataFrame, without its index.

    A type that Spark does not have becomes the next wider type: ``uint8`` becomes ``short``, ``float16`` becomes
    ``float``. A category becomes the type of its values.

    Raises
    ------
    SchemaError
        If columns have the same name, or Spark has no type for a column or cannot hold a value.
    FeedError
        If the DataFrame has no rows.
    """
    by_name = {str(c): c for c in frame.columns}
    wanted = by_name if columns is None else choose_columns(columns, list(by_name)).values()
    names = [str(c) for c in frame.columns if str(c) in set(wanted)]
    if twice := repeated(names):
        raise SchemaError(
            f"Column names must be unique, but {twice} occur more than once in the pandas DataFrame.",
            hint="Rename them: frame.columns = [...].",
        )
    if not len(frame):
        raise FeedError("The data has no rows.", hint="Check the filters and the source of the pandas DataFrame.")
    table = pa.table({name: _column(name, frame[by_name[name]]) for name in names})
    return _decoded(spark, table) if is_spark_3() else spark.createDataFrame(table)


def _decoded(spark: SparkSession, table: pa.Table) -> DataFrame:
    """Return a Spark DataFrame of a table, which Spark 3.5 does not accept: tasks decode its encoded pieces."""
    from pyspark.sql.pandas.types import from_arrow_schema

    pieces = []
    for batch in table.to_batches(max_chunksize=PIECE_ROWS):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_batch(batch)
        pieces.append((bytearray(sink.getvalue()),))
    return spark.createDataFrame(pieces, "piece binary").mapInArrow(_decode, from_arrow_schema(table.schema))


def _decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for piece in batch.column(0):
            with pa.ipc.open_stream(piece.as_buffer()) as reader:
                yield from reader


def _column(name: str, values: Any) -> pa.Array:
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import from_arrow_type

    dense = values.sparse.to_dense() if str(values.dtype).startswith("Sparse[") else values
    if dense.dtype == np.float16:
        # pyarrow 15 has no function that casts it.
        dense = dense.astype(np.float32)
    try:
        found = _nested(dense)
        found = pa.Array.from_pandas(dense) if found is None else found
        found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        out = found.cast(_spark_has(found.type))
        from_arrow_type(out.type)
    except (pa.ArrowException, PySparkException, TypeError, ValueError) as e:
        raise SchemaError(
            f"Column {name!r} of the pandas DataFrame has dtype {values.dtype}, which does not fit a Spark column: {e}",
            hint="Convert it with frame.astype, or leave it out with columns=.",
        ) from None
    return out


def _nested(values: Any) -> pa.Array | None:
    """Return arrays of two and more dimensions as nested lists, which Arrow does not make of them; else ``None``."""
    first = next((v for v in values if v is not None), None) if values.dtype == object else None
    if not isinstance(first, np.ndarray) or first.ndim < 2:
        return None
    nested = pa.from_numpy_dtype(first.dtype)
    for _ in first.shape:
        nested = pa.list_(nested)
    return pa.array([v.tolist() if isinstance(v, np.ndarray) else v for v in values], nested)


def _spark_has(t: pa.DataType) -> pa.DataType:
    """Return the Arrow type of the Spark column that holds all values of a type."""
    if pa.types.is_dictionary(t):
        return _spark_has(t.value_type)
    if is_list(t):
        return pa.list_(_spark_has(t.value_type))
    if pa.types.is_uint64(t):
        # Spark has no wider type; a larger value is an error.
        return pa.int64()
    if pa.types.is_unsigned_integer(t) or pa.types.is_float16(t):
        return OUTPUTS["float16" if pa.types.is_float16(t) else str(t)].arrow
    if pa.types.is_timestamp(t):
        return pa.timestamp("us", t.tz)
    if pa.types.is_date64(t):
        return pa.date32()
    # pyarrow 15 has no function that makes these types.
    return {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(t), t)
