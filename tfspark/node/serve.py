"""Runs the function of ``ctx.serve`` on the rows of ``cluster.predict``: Arrow to tensors, and the outputs to Arrow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from tfspark.columns.arrays import to_arrow
from tfspark.columns.spec import ColumnSpec
from tfspark.errors import PredictError, TFSparkError
from tfspark.messages import ServeHeader
from tfspark.node.layout import Layout
from tfspark.node.questions import Answer


def answering(fn: Callable[[dict[str, Any]], Any]) -> Answer:
    """Return a function of Arrow batches that calls the user's function of tensors."""

    def answer(header: ServeHeader, batch: pa.RecordBatch) -> pa.RecordBatch:
        layout, schema = _terms(header.columns, header.outputs)
        parts = []
        for start in range(0, batch.num_rows, header.batch_size):
            rows = batch.slice(start, header.batch_size)
            try:
                found = fn(layout.tensors(pa.Table.from_batches([rows])))
                parts.append(_columns(found, list(schema), rows.num_rows))
            except Exception as e:
                raise _failure(e, header, start, rows.num_rows) from e
        arrays = [pa.concat_arrays([p[i] for p in parts]) for i in range(len(schema))]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    return answer


@lru_cache(maxsize=16)
def _terms(columns: tuple[ColumnSpec, ...], outputs: bytes) -> tuple[Layout, pa.Schema]:
    return Layout(columns, None, None, None), pa.ipc.read_schema(pa.py_buffer(outputs))


def _columns(found: Any, schema: Sequence[pa.Field], rows: int) -> Sequence[pa.Array]:
    names = [f.name for f in schema]
    if not isinstance(found, Mapping):
        if len(names) != 1:
            raise PredictError(f"fn must return a dict with the keys {names}, got {type(found).__name__}.")
        found = {names[0]: found}
    if set(found) != set(names):
        raise PredictError(
            f"fn returned the outputs {sorted(map(str, found))}, but predict(outputs=...) names {sorted(names)}."
        )
    return [_column(found[f.name], f, rows) for f in schema]


def _column(found: Any, f: pa.Field, rows: int) -> pa.Array:
    """Return an output as a column; a dict becomes a struct."""
    if not (pa.types.is_struct(f.type) and isinstance(found, Mapping)):
        return to_arrow(found, rows, f.name, f.type)
    inner = [f.type.field(i) for i in range(f.type.num_fields)]
    return pa.StructArray.from_arrays(_columns(found, inner, rows), fields=inner)


def _failure(e: Exception, header: ServeHeader, start: int, rows: int) -> PredictError:
    where = f"{rows} rows from row {start} of a batch of partition {header.partition}"
    hint = None
    if isinstance(e, TFSparkError):
        return PredictError(f"The function given to ctx.serve failed for {where}: {e.message}", e.hint)
    text = "".join(traceback.format_exception(e))
    return PredictError(f"The function given to ctx.serve failed for {where}: {e!r}\n{text}", hint)
