"""Answer rows that ``cluster.predict`` sends: Arrow in, the user's function on tensors, Arrow out."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from tfspark.arrays import to_arrow
from tfspark.errors import PredictError, TFSparkError
from tfspark.node.layout import Layout
from tfspark.schema import ColumnSpec
from tfspark.transport.messages import ServeHeader
from tfspark.transport.serving import Answer


def answering(fn: Callable[[dict[str, Any]], Any]) -> Answer:
    """Make of the user's function one that answers a batch of Arrow."""

    def answer(header: ServeHeader, batch: pa.RecordBatch) -> pa.RecordBatch:
        layout, schema = _terms(json.dumps(header.columns), header.outputs)
        parts = []
        for start in range(0, batch.num_rows, header.batch_size):
            rows = batch.slice(start, header.batch_size)
            try:
                found = fn(layout.tensors(pa.Table.from_batches([rows])))
                parts.append(_columns(found, schema, rows.num_rows))
            except Exception as e:
                raise _failure(e, header, start, rows.num_rows) from e
        arrays = [pa.concat_arrays([p[i] for p in parts]) for i in range(len(schema))]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    return answer


@lru_cache(maxsize=16)
def _terms(columns: str, outputs: bytes) -> tuple[Layout, pa.Schema]:
    specs = [ColumnSpec.from_json(c) for c in json.loads(columns)]
    return Layout(specs, None, None, None), pa.ipc.read_schema(pa.py_buffer(outputs))


def _columns(found: Any, schema: pa.Schema, rows: int) -> Sequence[pa.Array]:
    names = schema.names
    if not isinstance(found, Mapping):
        if len(names) != 1:
            raise PredictError(f"fn must return a dict with {names}, not {type(found).__name__}.")
        found = {names[0]: found}
    if set(found) != set(names):
        raise PredictError(f"fn returned {sorted(map(str, found))}, but predict(outputs=...) wants {sorted(names)}.")
    return [to_arrow(found[f.name], rows, f.name, f.type) for f in schema]


def _failure(e: Exception, header: ServeHeader, start: int, rows: int) -> PredictError:
    where = f"{rows} rows from row {start} of a batch of partition {header.partition}"
    hint = None
    if isinstance(e, TFSparkError):
        return PredictError(f"The function given to ctx.serve failed for {where}: {e.message}", e.hint)
    text = "".join(traceback.format_exception(e))
    return PredictError(f"The function given to ctx.serve failed for {where}: {e!r}\n{text}", hint)
