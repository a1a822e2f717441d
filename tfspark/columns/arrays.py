"""Convert Arrow columns to numpy arrays and back, without copying where Arrow's layout allows it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.columns.conversions import DoesNotFit, converted
from tfspark.columns.rows import in_batch
from tfspark.columns.spec import ColumnSpec
from tfspark.columns.types import OUTPUTS, is_list, leaf_of
from tfspark.errors import SchemaError


def column_arrays(column: pa.ChunkedArray, spec: ColumnSpec, *, copy: bool = False) -> list[np.ndarray]:
    """Return a prepared column as numpy arrays.

    Parameters
    ----------
    column
        Rows of the column, as `prepare_batch` returns them.
    spec
        The tensor that the column becomes.
    copy
        Whether the arrays must not share memory with `column`.

    Returns
    -------
    list
        One array for a dense column. The flat values, then the row splits of each dimension, outermost first, for a
        ragged column. The values, their indices within the row, and the row splits for a sparse column.
    """
    # combine_chunks allocates new memory, also for a single chunk. Strings and booleans are copied later in any case.
    shared = column.num_chunks == 1 and (not copy or spec.dtype in ("string", "bool"))
    array = column.chunk(0) if shared else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if spec.sparse:
        indices, splits = _levels(pc.struct_field(array, "indices"), 1)
        values, _ = _levels(pc.struct_field(array, "values"), 1)
        return [values.to_numpy(), indices.to_numpy().astype(np.int64), *splits]
    array, splits = _levels(array, spec.ragged)
    if spec.shape:
        return [_flat(_inner_values(array, spec), spec).reshape(-1, *spec.shape), *splits]
    return [_flat(array, spec), *splits]


def _inner_values(array: pa.Array, spec: ColumnSpec) -> pa.Array:
    """Return the values of arrays of a dense shape; the Arrow lists of a column that was open have no fixed size."""
    for size in spec.shape:
        if pa.types.is_list(array.type):
            lengths = np.diff(array.offsets.to_numpy())
            if (lengths != size).any():
                raise SchemaError(
                    f"Column {spec.label!r} has shape {spec.shape}, but a row holds an array of another length."
                )
            array = array.flatten()
    return array.flatten() if is_list(array.type) else array


def _levels(array: pa.Array, depth: int) -> tuple[pa.Array, list[np.ndarray]]:
    splits = []
    for _ in range(depth):
        offsets = array.offsets.to_numpy().astype(np.int64)
        splits.append(offsets - offsets[0])
        array = array.flatten()
    return array, splits


def _flat(array: pa.Array, spec: ColumnSpec) -> np.ndarray:
    if spec.dtype == "string":
        return np.asarray(array.to_numpy(zero_copy_only=False), dtype=object)
    return np.asarray(array.to_numpy(zero_copy_only=spec.dtype != "bool"))


def to_arrow(values: Any, rows: int, name: str, t: pa.DataType | None = None) -> pa.Array:
    """Return an output of a model for some rows as a column.

    Parameters
    ----------
    values
        An array or tensor of shape ``(rows, ...)``, a ``RaggedTensor``, or a list.
    rows
        Required number of rows.
    name
        Name of the output, for errors.
    t
        Type that the column must have. By default it follows from `values`: a scalar for shape ``(rows,)`` or
        ``(rows, 1)``, else a list of all values of the row.

    Raises
    ------
    SchemaError
        If `values` has another number of rows, or does not fit `t`.
    """
    if hasattr(values, "row_splits"):
        return _fitting(_from_ragged(values, name, t), rows, name, t)
    array = np.asarray(values)
    if array.shape[:1] != (rows,):
        raise SchemaError(
            f"Output {name!r} has shape {array.shape} for {rows} rows: it is not one value per row.",
            hint="Keep other outputs with outputs=[...].",
        )
    if array.dtype.name in ("float16", "bfloat16", "uint8", "uint16", "uint32"):
        array = array.astype(OUTPUTS[array.dtype.name].arrow.to_pandas_dtype())
    if t is not None:
        array = _as_leaf(array, t, name)
    flat = pa.array(np.ascontiguousarray(array).reshape(-1), from_pandas=False)
    if array.dtype == object and pa.types.is_string(flat.type):
        flat = flat.cast(pa.binary())
    if array.shape[1:] in ((), (1,)) and not (t is not None and is_list(t) and array.ndim > 1):
        return _fitting(flat, rows, name, t)
    for width in reversed(array.shape[1:] if t is not None and is_list(t) and is_list(t.value_type) else [-1]):
        width = width if width >= 0 else int(np.prod(array.shape[1:]))
        offsets = np.arange(0, len(flat) + 1, width, dtype=np.int32) if width else np.zeros(rows + 1, np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return _fitting(flat, rows, name, t)


def _as_leaf(array: np.ndarray, t: pa.DataType, name: str, of_rows: bool = True) -> np.ndarray:
    """Return numbers converted to the dtype of the innermost values of `t`."""
    leaf = leaf_of(t)
    if array.dtype.kind not in "iufb" or not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf)):
        return array
    try:
        return converted(array, np.dtype(leaf.to_pandas_dtype()))
    except DoesNotFit as e:
        where = f" in {in_batch(e.index // max(1, math.prod(array.shape[1:])))}" if of_rows else ""
        raise SchemaError(
            f"Output {name!r} holds {e.value}{where}, which {leaf} cannot hold.",
            hint=f"Return {leaf}, or ask for another type.",
        ) from None


def _from_ragged(values: Any, name: str, t: pa.DataType | None) -> pa.Array:
    inner = values.values
    if hasattr(inner, "row_splits"):
        inner = _from_ragged(inner, name, t)
    else:
        inner = np.asarray(inner)
        inner = to_arrow(inner if t is None else _as_leaf(inner, t, name, of_rows=False), len(inner), name)
    return pa.ListArray.from_arrays(pa.array(np.asarray(values.row_splits).astype(np.int32)), inner)


def _fitting(a: pa.Array, rows: int, name: str, t: pa.DataType | None) -> pa.Array:
    if len(a) != rows:
        raise SchemaError(f"Output {name!r} has {len(a)} rows for {rows} rows.")
    if t is None or a.type == t:
        return a
    try:
        return a.cast(t)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise SchemaError(f"Output {name!r} of type {a.type} does not fit {t}: {e}") from None
