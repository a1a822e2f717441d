"""From Python rows to Arrow columns, in the task that feeds an RDD: tuples, dicts, Rows, numpy arrays, single values.

Column by column, a few megabytes of rows at a time. The driver plans with the same code from a few sample rows. No
Spark and no TensorFlow in here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.errors import SchemaError

CHUNK_BYTES = 4 << 20
MOST_ROWS = 10_000


@dataclass(frozen=True)
class RowColumn:
    """One column of Python rows.

    Attributes
    ----------
    name
        What it is called.
    source
        Where its values are in a row: a key, a position, or ``None`` for the row itself.
    type
        Arrow type; of the elements if there is a shape.
    shape
        Shape of the numpy arrays it holds, if all are of one shape; else ``None``.
    """

    name: str
    source: str | int | None
    type: pa.DataType
    shape: tuple[int, ...] | None = None

    @property
    def field(self) -> pa.Field:
        """The Arrow field that it becomes."""
        return pa.field(self.name, self.type if self.shape is None else pa.list_(self.type, math.prod(self.shape)))


def infer_columns(sample: Sequence[Any]) -> tuple[RowColumn, ...]:
    """Find the columns of rows from some of them.

    Names are the keys of dicts, the fields of Rows, ``_1``, ``_2``, ... for tuples, and ``value`` for anything else,
    as in Spark.

    Raises
    ------
    SchemaError
        If the rows are of different kinds, or values have no common type.
    """
    first = sample[0]
    sources: dict[str, str | int | None]
    if isinstance(first, Mapping):
        sources = {str(k): k for k in first}
    elif hasattr(first, "__fields__"):
        sources = {str(k): k for k in first.__fields__}
    elif isinstance(first, (tuple, list)):
        sources = {f"_{i + 1}": i for i in range(len(first))}
    else:
        sources = {"value": None}
    return tuple(_infer(name, source, _values(sample, name, source)) for name, source in sources.items())


def _infer(name: str, source: str | int | None, values: list[Any]) -> RowColumn:
    known = [v for v in values if v is not None]
    if not known:
        raise SchemaError(
            f"Column {name!r} is null in the first {len(values)} rows, so its type is unknown.",
            hint="Make a DataFrame with a schema: spark.createDataFrame(rdd, 'x float, y int').",
        )
    if isinstance(known[0], np.ndarray) and known[0].ndim:
        shapes = {np.shape(v) for v in known}
        dtype = pa.from_numpy_dtype(known[0].dtype)
        if len(shapes) == 1 and len(known) == len(values):
            return RowColumn(name, source, dtype, shapes.pop())
        return RowColumn(name, source, pa.list_(dtype))
    return RowColumn(name, source, _array(name, known, None).type)


def record_batches(rows: Iterable[Any], columns: Sequence[RowColumn]) -> Iterator[pa.RecordBatch]:
    """Convert rows to batches of a few megabytes.

    Raises
    ------
    SchemaError
        If a row lacks a column, or a value does not fit its column.
    """
    schema = pa.schema([c.field for c in columns])
    rows = iter(rows)
    size = 100
    while chunk := list(itertools.islice(rows, size)):
        arrays = [_column(c, _values(chunk, c.name, c.source)) for c in columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        size = max(1, min(MOST_ROWS, CHUNK_BYTES * len(chunk) // max(batch.nbytes, 1)))
        yield batch


def _values(rows: Sequence[Any], name: str, source: str | int | None) -> list[Any]:
    if source is None:
        return list(rows)
    try:
        return [row[source] for row in rows]
    except (KeyError, IndexError, TypeError, ValueError):
        raise SchemaError(
            f"Not every row has the column {name!r}, which the first one has.",
            hint="All rows of an RDD must have the same columns.",
        ) from None


def _column(c: RowColumn, values: list[Any]) -> pa.Array:
    if c.shape is None:
        return _array(c.name, values, c.type)
    try:
        block = np.stack(values).astype(c.type.to_pandas_dtype(), copy=False)
        if block.shape[1:] != c.shape:
            raise ValueError(f"an array has the shape {block.shape[1:]}")
    except (ValueError, TypeError) as e:
        raise SchemaError(
            f"Column {c.name!r} holds arrays of shape {c.shape} in the first rows, but not in all: {e}",
            hint="Give lists instead of numpy arrays where lengths vary.",
        ) from None
    return pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), math.prod(c.shape))


def _array(name: str, values: list[Any], t: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, type=t, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as e:
        what = "have no common type" if t is None else f"do not all fit {t}, the type of the first ones"
        raise SchemaError(
            f"The values of column {name!r} {what}: {e}",
            hint="Make a DataFrame with a schema: spark.createDataFrame(rdd, 'x float, y int').",
        ) from None
