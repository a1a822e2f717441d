"""Check Arrow batches against the rules of `tfspark/columns/spec.py` and convert them to the form that is sent.

This runs in the tasks of feeds and of `Cluster.predict`, on whole columns, and does not copy where Spark's layout is
already the right one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.columns.rows import RowName, in_batch
from tfspark.columns.spec import ColumnSpec
from tfspark.errors import SchemaError, all_of

SPARSE_VECTOR = 0
"""The ``type`` of a sparse vector of Spark; a dense vector has 1."""


def prepare_batch(
    batch: pa.RecordBatch,
    columns: Sequence[ColumnSpec],
    schema: pa.Schema,
    asked_by: str = "feed",
    row: RowName = in_batch,
) -> pa.RecordBatch:
    """Check a batch against the rules and convert it to the types of `arrow_schema`.

    Parameters
    ----------
    asked_by
        Name of the function that the user called and that takes `fill`, for hints.
    row
        Function that names a row in errors.

    Raises
    ------
    SchemaError
        If values break the rules of their columns; the error names all these columns.
    """
    nulls = {c.label: batch.column(c.name) for c in columns if c.fill is None and batch.column(c.name).null_count}
    arrays, problems = [], []
    if nulls:
        fill = ", ".join(f"{label!r}: value" for label in nulls)
        hint = f"Pass fill={{{fill}}} to {asked_by}(), or drop or fill the nulls in Spark."
        problems.append(null_error(nulls, row, hint))
    for c in columns:
        if c.label in nulls:
            continue
        try:
            arrays.append(_prepare(batch.column(c.name), c))
        except SchemaError as e:
            problems.append(e)
    if problems:
        raise all_of(problems)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def null_error(nulls: Mapping[str, pa.Array], row: RowName, hint: str) -> SchemaError:
    """Return the error for columns of a batch, by label, that contain nulls but must not."""
    found = []
    for label, a in nulls.items():
        first = int(np.argmax(a.is_null().to_numpy(zero_copy_only=False)))
        found.append(f"{label!r} holds {a.null_count} null(s) in {len(a)} rows (first: {row(first)})")
    return SchemaError(f"{'Columns' if len(found) > 1 else 'Column'} {', '.join(found)}.", hint=hint)


def _prepare(a: pa.Array, c: ColumnSpec) -> pa.Array:
    a = _filled(a, c)
    if c.sparse:
        return _sparse(a, c)
    if not c.shape and not c.ragged:
        return _values(a, c.arrow_type)
    splits = []
    for _ in range(c.ragged):
        splits.append(_offsets(a))
        a = _inner(a, c)
    if c.shape:
        for size in c.shape if c.levels == len(c.shape) else (math.prod(c.shape),):
            _check_lengths(a, c, size)
            a = _inner(a, c)
    a = _values(a, pa.binary() if c.dtype == "string" else pa.type_for_alias(c.dtype))
    if c.shape:
        a = pa.FixedSizeListArray.from_arrays(a, math.prod(c.shape))
    for offsets in reversed(splits):
        a = pa.ListArray.from_arrays(offsets, a)
    return a


def _filled(a: pa.Array, c: ColumnSpec) -> pa.Array:
    if not a.null_count:
        return a
    try:
        return a.fill_null(pa.scalar(c.fill, a.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as e:
        raise SchemaError(f"fill value {c.fill!r} does not fit column {c.label!r} ({a.type}): {e}") from None


def _inner(a: pa.Array, c: ColumnSpec) -> pa.Array:
    values = a.flatten()
    if values.null_count:
        raise SchemaError(
            f"Column {c.label!r} holds {values.null_count} null(s) inside its arrays.",
            hint="Remove or replace them in Spark, for example with pyspark.sql.functions.transform.",
        )
    return values


def _offsets(a: pa.Array) -> pa.Array:
    if pa.types.is_fixed_size_list(a.type):
        return pa.array(np.arange(len(a) + 1, dtype=np.int32) * a.type.list_size)
    offsets = a.offsets.to_numpy()
    return pa.array((offsets - offsets[0]).astype(np.int32))


def _check_lengths(a: pa.Array, c: ColumnSpec, size: int) -> None:
    if pa.types.is_fixed_size_list(a.type):
        wrong = len(a) > 0 and a.type.list_size != size
        found = a.type.list_size
    else:
        extent = pc.min_max(pc.list_value_length(a)).as_py()
        wrong = len(a) > 0 and (extent["min"] != size or extent["max"] != size)
        found = extent["min"] if extent["min"] != size else extent["max"]
    if wrong:
        raise SchemaError(
            f"Column {c.label!r} was declared with shape {c.shape} ({size} values a row), "
            f"but a row holds {found} values.",
            hint=f"Declare the true shape, or pass shapes={{{c.label!r}: None}} for a RaggedTensor.",
        )


def _values(a: pa.Array, t: pa.DataType) -> pa.Array:
    if a.type == t:
        return a
    if pa.types.is_timestamp(a.type):
        a = a.cast(pa.timestamp("us", a.type.tz))
    return a.cast(t)


def _sparse(a: pa.StructArray, c: ColumnSpec) -> pa.Array:
    """Convert ML vectors, sparse or dense, to indices and values; zeros of dense ones are left out."""
    kinds, sizes, indices, values = (pc.struct_field(a, n) for n in ("type", "size", "indices", "values"))
    (size,) = c.shape
    dense = kinds.to_numpy() != SPARSE_VECTOR
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    actual = np.where(dense, lengths, sizes.fill_null(0).to_numpy())
    if (actual != size).any():
        raise SchemaError(
            f"Column {c.label!r} was declared with vectors of size {size}, but a row has a vector of size "
            f"{actual[actual != size][0]}.",
            hint="Pass the true size in shapes.",
        )
    flat = values.flatten().to_numpy()
    rows = np.repeat(np.arange(len(a)), lengths)
    of_dense = dense[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = (np.arange(len(flat)) - starts[rows]).astype(np.int32)
    positions[~of_dense] = indices.flatten().to_numpy()
    kept = (flat != 0) if dense.any() else slice(None)
    counts = np.bincount(rows[kept], minlength=len(a))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    lists = [positions[kept], flat[kept].astype(np.float32)]
    return pa.StructArray.from_arrays(
        [pa.ListArray.from_arrays(offsets, pa.array(x)) for x in lists], names=["indices", "values"]
    )
