"""Arrow columns as numpy arrays, without copying where Arrow's layout allows it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tfspark.schema import ColumnSpec


def column_arrays(column: pa.ChunkedArray, spec: ColumnSpec) -> list[np.ndarray]:
    """Return a column as numpy: one array, or flat values and row splits for a ragged column."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if spec.ragged:
        splits = array.offsets.to_numpy().astype(np.int64)
        return [_flat(array.flatten(), spec), splits - splits[0]]
    if spec.shape:
        return [_flat(array.flatten(), spec).reshape(-1, *spec.shape)]
    return [_flat(array, spec)]


def _flat(array: pa.Array, spec: ColumnSpec) -> np.ndarray:
    if spec.dtype == "string":
        return np.asarray(array.to_numpy(zero_copy_only=False), dtype=object)
    return np.asarray(array.to_numpy(zero_copy_only=spec.dtype != "bool"))
