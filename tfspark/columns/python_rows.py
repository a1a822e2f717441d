"""Convert Python rows to Arrow columns in the feed task of an RDD: tuples, dicts, Rows, numpy arrays, single values.

Rows are converted column by column, a few megabytes of rows at a time. The driver infers the columns with the same
code from a few sample rows. This module imports neither Spark nor TensorFlow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.columns.conversions import DoesNotFit, converted
from tfspark.columns.types import is_list, leaf_of
from tfspark.errors import SchemaError

CHUNK_BYTES = 4 << 20
MOST_ROWS = 10_000


@dataclass(frozen=True)
class RowColumn:
    """One column of Python rows.

    Attributes
    ----------
    name
        Column name.
    source
        Where its values are in a row: a key, a position, or ``None`` for the row itself.
    type
        Arrow type of the values; of the elements if there is a shape.
    shape
        Shape of the numpy arrays in the column if all have the same shape; else ``None``.
    """

    name: str
    source: str | int | None
    type: pa.DataType
    shape: tuple[int, ...] | None = None

    def of_any_length(self, depth: int | None = None) -> RowColumn:
        """Return the same column for arrays whose lengths vary in all their dimensions."""
        t = self.type
        for _ in range(len(self.shape or ()) if depth is None else depth):
            t = pa.list_(t)
        return replace(self, type=t, shape=None)

    @property
    def field(self) -> pa.Field:
        """The Arrow field of the column."""
        return pa.field(self.name, self.type if self.shape is None else pa.list_(self.type, math.prod(self.shape)))


def infer_columns(sample: Sequence[Any]) -> tuple[RowColumn, ...]:
    """Infer the columns of rows from a sample.

    As in Spark, the names are the keys of dicts, the fields of Rows, ``_1``, ``_2``, ... for tuples, and ``value`` for
    anything else.

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
            f"Column {name!r} is null in the first {len(values)} rows, so its type cannot be inferred.",
            hint="Make a DataFrame with a schema: spark.createDataFrame(rdd, 'x float, y int').",
        )
    if all(isinstance(v, np.ndarray) and v.ndim for v in known):
        shapes = {v.shape for v in known}
        dtype = _common_dtype(name, known)
        if len(shapes) == 1 and len(known) == len(values) and math.prod(known[0].shape):
            return RowColumn(name, source, dtype, shapes.pop())
        return RowColumn(name, source, dtype).of_any_length(known[0].ndim)
    return RowColumn(name, source, _array(name, known, None).type)


def _common_dtype(name: str, arrays: Sequence[np.ndarray]) -> pa.DataType:
    """Return the type to which numpy promotes the values of all arrays."""
    dtypes = sorted({a.dtype for a in arrays}, key=str)
    try:
        # np.result_type would promote numbers to strings.
        if len({d.kind in "SU" for d in dtypes}) > 1:
            raise TypeError("text and numbers")
        return pa.from_numpy_dtype(np.result_type(*dtypes))
    except (TypeError, pa.ArrowNotImplementedError):
        raise SchemaError(
            f"Column {name!r} holds numpy arrays of {', '.join(map(str, dtypes))}, which have no common type.",
            hint="Convert them to one dtype in Spark: rdd.map(lambda a: a.astype('float32')).",
        ) from None


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
            f"Some rows lack the column {name!r} that the first row has.",
            hint="All rows of an RDD must have the same columns.",
        ) from None


def _column(c: RowColumn, values: list[Any]) -> pa.Array:
    if c.shape is None:
        return _array(c.name, values, c.type)
    try:
        block = _block(values, c.type)
        if block.shape[1:] != c.shape:
            raise ValueError(f"an array has the shape {block.shape[1:]}")
    except (ValueError, TypeError) as e:
        raise SchemaError(
            f"Column {c.name!r} holds arrays of {c.type} and shape {c.shape} in the first rows, and others later: {e}.",
            hint=f"Pass shapes={{{c.name!r}: None}} if lengths vary; convert the arrays to one dtype if it varies.",
        ) from None
    return pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), math.prod(c.shape))


def _block(values: list[Any], t: pa.DataType) -> np.ndarray:
    """Return arrays of one shape as one array of type `t`; raise an error if a value would change."""
    arrays = [np.asarray(v) for v in values]
    if pa.types.is_string(t) or pa.types.is_binary(t):
        if {a.dtype.kind for a in arrays} - set("SU"):
            raise TypeError("an array holds no text")
        return np.stack(arrays).astype(object)
    dtype = np.dtype(t.to_pandas_dtype())
    if len({a.dtype for a in arrays}) == 1:
        return exactly(np.stack(arrays), dtype)
    return np.stack([exactly(a, dtype) for a in arrays])


def exactly(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return an array as another dtype with the same values.

    Raises
    ------
    ValueError
        If a value would change.
    """
    if a.dtype == dtype:
        return a
    numbers = a.dtype.kind in "biuf" and dtype.kind in "iuf"
    if not numbers and not np.can_cast(a.dtype, dtype, "safe"):
        raise ValueError(f"an array has the dtype {a.dtype}")
    if not numbers:
        return a.astype(dtype)
    try:
        out = converted(a, dtype)
    except DoesNotFit:
        out = None
    # Rounding is an error here, unlike elsewhere: the first rows have decided the type.
    if out is None or (a.dtype.kind == "f" and not np.array_equal(a, out.astype(a.dtype), equal_nan=True)):
        raise ValueError(f"an array of {a.dtype} holds values that do not fit")
    return out


def _array(name: str, values: list[Any], t: pa.DataType | None) -> pa.Array:
    try:
        return _exact_array(values, t)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError) as e:
        what = "have no common type" if t is None else f"do not all fit {t}, the type of the first ones"
        raise SchemaError(
            f"The values of column {name!r} {what}: {str(e).rstrip('.')}.",
            hint="Make a DataFrame with a schema: spark.createDataFrame(rdd, 'x float, y int').",
        ) from None


def _exact_array(values: list[Any], t: pa.DataType | None) -> pa.Array:
    if t is None or not _is_number(leaf_of(t)):
        return _natural_array(values) if t is None else pa.array(values, type=t, from_pandas=False)
    # pa.array(values, type=t) truncates floats if `t` is an integer type.
    found = _natural_array(values)
    if found.type == t:
        return found
    of = leaf_of(found.type)
    if not (_is_number(of) or pa.types.is_null(of)):
        raise pa.ArrowTypeError(f"there are values of {found.type}")
    out = found.cast(t)
    if pa.types.is_floating(leaf_of(t)) and pa.types.is_floating(of):
        exactly(_flattened(found).to_numpy(zero_copy_only=False), np.dtype(leaf_of(t).to_pandas_dtype()))
    return out


def _natural_array(values: list[Any]) -> pa.Array:
    """Return values as an array of their common type."""
    try:
        return pa.array(values, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        # Arrow does not promote different numpy types to a common one, and takes no arrays of several dimensions.
        plain = [v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for v in values]
        return pa.array(plain, from_pandas=False)


def _flattened(a: pa.Array) -> pa.Array:
    while is_list(a.type):
        a = a.flatten()
    return a.drop_null()


def _is_number(t: pa.DataType) -> bool:
    return bool(pa.types.is_integer(t) or pa.types.is_floating(t))
