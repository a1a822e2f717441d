"""Arrow columns as numpy arrays, without copying where Arrow's layout allows it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.schema import ColumnSpec


def column_arrays(column: pa.ChunkedArray, spec: ColumnSpec) -> list[np.ndarray]:
    """Return a column, in the form in which it travels, as numpy arrays.

    Returns
    -------
    list
        One array for a dense column; the flat values and the row splits of each dimension, outermost first, for a
        ragged one; values, indices within their row and row splits for a sparse one.
    """
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if spec.sparse:
        indices, splits = _levels(pc.struct_field(array, "indices"), 1)
        values, _ = _levels(pc.struct_field(array, "values"), 1)
        return [values.to_numpy(), indices.to_numpy().astype(np.int64), *splits]
    array, splits = _levels(array, spec.ragged)
    if spec.shape:
        return [_flat(array.flatten(), spec).reshape(-1, *spec.shape), *splits]
    return [_flat(array, spec), *splits]


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
