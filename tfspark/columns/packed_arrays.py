"""Arrays of numbers that are sent from Spark to Python as bytes.

Spark writes arrays to Arrow value by value, which takes longer than running a small model. The connector's jar has an
expression that turns arrays into bytes, which Spark copies as a whole (``connectors/columns/src/PackedArray.scala``).
Where it is not available (Spark Connect, a session without the jar), arrays are sent as they are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tfspark.columns.rows import RowName, in_batch
from tfspark.columns.spec import ColumnSpec
from tfspark.columns.types import spark_type_of
from tfspark.errors import SchemaError, all_of
from tfspark.spark.expressions import bridge_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

SHORTEST = 16
"""Fewest values of an array of fixed size for which packing saves time."""

_PACKED = ("float32", "float64", "int32", "int64")
"""Dtypes of array values that the expression accepts."""

Packed = Mapping[str, str]
"""Columns that are sent as bytes, and the dtype of their values."""


def packed_columns(
    df: DataFrame, columns: Mapping[str, Column], specs: Sequence[ColumnSpec], narrowed: Collection[str] = ()
) -> tuple[dict[str, Column], Packed]:
    """Return the columns to send to Python, and which of them are sent as bytes.

    Parameters
    ----------
    columns
        Columns of `df` by name.
    specs
        The tensors that the columns become.
    narrowed
        Columns whose doubles are wanted as floats.
    """
    pack = _expression(df)
    out: dict[str, Column] = dict(columns)
    packed: dict[str, str] = {}
    if pack is None:
        return out, packed
    by_name = {c.name: c for c in specs}
    for f in df.select(*[c.alias(n) for n, c in columns.items()]).schema.fields:
        dtype = _dtype(f.dataType)
        if dtype is None or not _gains(by_name[f.name]):
            continue
        narrow = dtype == "float64" and f.name in narrowed
        out[f.name] = pack(columns[f.name], narrow)
        packed[f.name] = "float32" if narrow else dtype
    return out, packed


def _dtype(kind: DataType) -> str | None:
    element = getattr(kind, "elementType", None)
    return next((dtype for dtype in _PACKED if element == spark_type_of(dtype)), None)


def _gains(c: ColumnSpec) -> bool:
    return c.levels + c.ragged == 1 and not c.sparse and (c.ragged == 1 or math.prod(c.shape) >= SHORTEST)


def _expression(df: DataFrame) -> Callable[[Column, bool], Column] | None:
    """Return a function that makes the packed column, or None if this session does not have the expression."""
    bridge = bridge_of(df.sparkSession)
    if bridge is None:
        return None
    return lambda of, narrow: bridge.column(bridge.packed_array(bridge.expression(of), narrow))


def unpacked(batch: pa.RecordBatch, packed: Packed, row: RowName = in_batch) -> pa.RecordBatch:
    """Return a batch with its packed columns as arrays again, without copying the values.

    A column has a fixed-size type if all its arrays have the same size and none is null.

    Parameters
    ----------
    row
        Function that names a row in errors.

    Raises
    ------
    SchemaError
        If an array contains a null, or a number that is out of range of the dtype.
    """
    if not packed:
        return batch
    names = batch.schema.names
    arrays, problems = [], []
    for name, array in zip(names, batch.columns, strict=True):
        try:
            arrays.append(unpacked_array(array, packed[name], name, row) if name in packed else array)
        except SchemaError as e:
            problems.append(e)
    if problems:
        raise all_of(problems)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def unpacked_array(array: pa.Array, dtype: str, name: str, row: RowName = in_batch) -> pa.Array:
    """Return one packed column as arrays; see `unpacked`."""
    value = pa.type_for_alias(dtype)
    size = value.bit_width // 8
    _, offsets, data = array.buffers()
    index = pa.int64() if pa.types.is_large_binary(array.type) else pa.int32()
    bounds = pa.Array.from_buffers(index, len(array) + 1, [None, offsets], offset=array.offset).to_numpy()
    lengths = np.diff(bounds)
    wrong = np.flatnonzero(lengths % size)
    if len(wrong):
        raise _not_packed(array, name, dtype, wrong, row)
    start, end = int(bounds[0]), int(bounds[-1])
    values = pa.Array.from_buffers(value, (end - start) // size, [None, (data or pa.py_buffer(b"")).slice(start)])
    if not array.null_count and len(lengths) and lengths[0] and (lengths == lengths[0]).all():
        return pa.FixedSizeListArray.from_arrays(values, int(lengths[0]) // size)
    counted = pa.array(((bounds - start) // size).astype(np.int32))
    return pa.ListArray.from_arrays(counted, values, mask=array.is_null() if array.null_count else None)


def _not_packed(array: pa.Array, name: str, dtype: str, wrong: np.ndarray, row: RowName) -> SchemaError:
    """Return the error for arrays that Spark could not pack; ``PackedArray.scala`` defines the bytes in their place."""
    first = int(wrong[0])
    said = array[first].as_py()
    if len(said) > 1:
        (value,) = struct.unpack_from("<d", said)
        return SchemaError(
            f"Column {name!r} holds {value} in {row(first)}, which {dtype} cannot hold.",
            hint="Scale the column in Spark, or export the model with an input of type float64.",
        )
    return SchemaError(
        f"Column {name!r} holds nulls inside {len(wrong)} of its arrays (first: {row(first)}).",
        hint="Remove or replace them in Spark, for example with pyspark.sql.functions.transform.",
    )


def unpacked_schema(schema: pa.Schema, packed: Packed) -> pa.Schema:
    """Return the schema of the batches that `unpacked` makes of batches with this schema."""
    types = {name: pa.list_(pa.type_for_alias(dtype)) for name, dtype in packed.items()}
    return pa.schema([f.with_type(types.get(f.name, f.type)) for f in schema])
