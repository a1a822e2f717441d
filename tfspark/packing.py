"""Arrays of numbers that travel from Spark to Python as bytes.

Spark writes arrays to Arrow value by value, which takes longer than a small model does. The connector's jar holds an
expression that makes bytes of them, which are copied whole (``connectors/tfrecord/src/PackedArray.scala``). Where it
is not to be had (Spark Connect, a session without the jar), arrays travel as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tfspark.errors import SchemaError
from tfspark.expressions import bridge_of
from tfspark.schema import ColumnSpec

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

SHORTEST = 16
"""Arrays of fewer values gain nothing by it."""

_PACKED = {"float": "float32", "double": "float64", "int": "int32", "bigint": "int64"}

Packed = Mapping[str, str]
"""Columns that travel as bytes, and the dtype of the values that they hold."""


def packed_columns(
    df: DataFrame, columns: Mapping[str, Column], specs: Sequence[ColumnSpec], narrowed: Collection[str] = ()
) -> tuple[dict[str, Column], Packed]:
    """Return the columns as they go to Python, and which of them go as bytes.

    Parameters
    ----------
    columns
        Columns of `df` by name.
    specs
        The tensors that they become.
    narrowed
        Columns of which doubles are wanted as floats.
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
    return None if element is None else _PACKED.get(element.simpleString())


def _gains(c: ColumnSpec) -> bool:
    return c.levels + c.ragged == 1 and not c.sparse and (c.ragged == 1 or math.prod(c.shape) >= SHORTEST)


def _expression(df: DataFrame) -> Callable[[Column, bool], Column] | None:
    """Return a function that makes the packing column, or None if this session does not have it."""
    bridge = bridge_of(df.sparkSession)
    if bridge is None:
        return None
    return lambda of, narrow: bridge.column(bridge.connector.PackedArray(bridge.expression(of), narrow))


def unpacked(batch: pa.RecordBatch, packed: Packed) -> pa.RecordBatch:
    """Return a batch whose packed columns are arrays again, of fixed size if all have one; nothing is copied.

    Raises
    ------
    SchemaError
        If an array held a null.
    """
    if not packed:
        return batch
    names = batch.schema.names
    arrays = [
        _unpacked(array, packed[name], name) if name in packed else array
        for name, array in zip(names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _unpacked(array: pa.Array, dtype: str, name: str) -> pa.Array:
    value = pa.type_for_alias(dtype)
    size = value.bit_width // 8
    _, offsets, data = array.buffers()
    index = pa.int64() if pa.types.is_large_binary(array.type) else pa.int32()
    bounds = pa.Array.from_buffers(index, len(array) + 1, [None, offsets], offset=array.offset).to_numpy()
    lengths = np.diff(bounds)
    wrong = np.flatnonzero(lengths % size)
    if len(wrong):
        raise SchemaError(
            f"Column {name!r} holds nulls inside {len(wrong)} of its arrays (first: row {wrong[0]} of its batch).",
            hint="Remove or replace them in Spark, for example with pyspark.sql.functions.transform.",
        )
    start, end = int(bounds[0]), int(bounds[-1])
    values = pa.Array.from_buffers(value, (end - start) // size, [None, (data or pa.py_buffer(b"")).slice(start)])
    if not array.null_count and len(lengths) and lengths[0] and (lengths == lengths[0]).all():
        return pa.FixedSizeListArray.from_arrays(values, int(lengths[0]) // size)
    counted = pa.array(((bounds - start) // size).astype(np.int32))
    return pa.ListArray.from_arrays(counted, values, mask=array.is_null() if array.null_count else None)


def unpacked_schema(schema: pa.Schema, packed: Packed) -> pa.Schema:
    """Return the schema of what `unpacked` makes of batches with this one."""
    types = {name: pa.list_(pa.type_for_alias(dtype)) for name, dtype in packed.items()}
    return pa.schema([f.with_type(types.get(f.name, f.type)) for f in schema])
