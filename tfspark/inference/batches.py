"""The work of a prediction task: Arrow columns in, batches of one size through the model, Arrow columns out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.arrays import column_arrays, to_arrow
from tfspark.errors import SchemaError
from tfspark.inference.loading import function_of
from tfspark.inference.plan import PredictionPlan
from tfspark.packing import unpacked, unpacked_schema
from tfspark.prepare import prepare_batch
from tfspark.schema import ColumnSpec, arrow_schema

ALIGNMENT = 64
"""Bytes to which the memory of a tensor is aligned."""


def rebatched(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Cut and join batches so that all have `size` rows, but for the last, which may have fewer."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        start = 0
        while rows + batch.num_rows - start >= size:
            taken = size - rows
            yield _joined([*waiting, batch.slice(start, taken)])
            waiting, rows, start = [], 0, start + taken
        if start < batch.num_rows:
            waiting.append(batch.slice(start))
            rows += batch.num_rows - start
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    (joined,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


class Predictor:
    """Calls the model of a plan; made in each task, while the model itself is shared."""

    def __init__(self, plan: PredictionPlan, schema: pa.Schema) -> None:
        self._plan = plan
        self._columns = {c.name: c for c in plan.columns(unpacked_schema(schema, plan.packed))}
        self._prepared = arrow_schema(list(self._columns.values()))
        self._function = function_of(plan.call)
        self._expected = self._function.structured_input_signature[1]
        self._types = plan.arrow_types

    def __call__(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return the outputs that are kept for the rows of a batch.

        Raises
        ------
        SchemaError
            If a value breaks the rule of its column, or an output is not one value per row.
        """
        specs = list(self._columns.values())
        prepared = prepare_batch(unpacked(batch, self._plan.packed), specs, self._prepared)
        feeds = {
            name: _tensor(name, prepared.column(column), self._columns[column], self._expected[name])
            for name, column in self._plan.inputs.items()
        }
        produced = self._function(**feeds)
        return [to_arrow(produced[n], batch.num_rows, n, t) for n, t in self._types.items()]


def _tensor(name: str, column: pa.Array, spec: ColumnSpec, expected: Any) -> Any:
    """Return a column as the tensor that an input takes."""
    import tensorflow as tf

    if spec.shape and expected.dtype == spec.dtype and expected.shape[1:].is_compatible_with(spec.shape):
        shared = shared_tensor(column.flatten())
        if shared is not None:
            return tf.reshape(shared, [len(column), *spec.shape])
    array, *splits = column_arrays(pa.chunked_array([column]), spec)
    for offsets in reversed(splits):
        lengths = np.diff(offsets)
        if len(lengths) and (lengths != lengths[0]).any():
            raise SchemaError(
                f"Input {name!r} takes arrays of one length, but column {spec.name!r} holds some of {lengths.min()} "
                f"and some of {lengths.max()} values.",
                hint="Pad them in Spark.",
            )
        array = array.reshape(len(lengths), -1, *array.shape[1:])
    if expected.shape.rank is not None and array.ndim < expected.shape.rank:
        array = array.reshape(*array.shape, *[1] * (expected.shape.rank - array.ndim))
    tensor = tf.constant(array)
    return tensor if tensor.dtype == expected.dtype else tf.cast(tensor, expected.dtype)


def shared_tensor(values: pa.Array) -> Any:
    """Return numbers as a tensor in the same memory, or ``None`` where TensorFlow could not read it in place.

    No operation writes its result over a tensor that its caller holds, as it may over one of its own.
    """
    import tensorflow as tf

    if not len(values) or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return None
    lent = _Lent(values)
    return None if lent.address % ALIGNMENT else tf.experimental.dlpack.from_dlpack(np.asarray(lent).__dlpack__())


class _Lent:
    """Numbers of Arrow as an array that may be written to, as DLPack knows no others."""

    def __init__(self, values: pa.Array) -> None:
        dtype = np.dtype(values.type.to_pandas_dtype())
        self._values = values
        self.address = values.buffers()[1].address + values.offset * dtype.itemsize
        shape = (len(values),)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (self.address, False)}
