"""Rows without columns: each row is any Python object, pickled into one binary value of an Arrow column.

They are for programs that need exactly the objects that their RDD holds. Pickles are read only from the cluster's own
authenticated channels. This module imports neither Spark nor TensorFlow.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import cloudpickle
import pyarrow as pa

from tfspark.errors import ConfigurationError

COLUMN = "pickled_row"
FIELD = pa.field(COLUMN, pa.binary())

CHUNK_ROWS = 1_000
CHUNK_BYTES = 4 << 20


loads = pickle.loads


def dumps(row: Any) -> bytes:
    """Pickle a row; if its class cannot be imported from a module, pickle the class by value."""
    try:
        return pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        return bytes(cloudpickle.dumps(row))


def pickled(rows: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    """Pickle rows into batches of a few megabytes, in their order."""
    schema = pa.schema([FIELD])
    rows = iter(rows)
    size = 100
    while chunk := [dumps(row) for row in itertools.islice(rows, size)]:
        batch = pa.RecordBatch.from_arrays([pa.array(chunk, pa.binary())], schema=schema)
        size = max(1, min(CHUNK_ROWS, CHUNK_BYTES * len(chunk) // max(batch.nbytes, 1)))
        yield batch


def unpickled(batch: pa.RecordBatch) -> list[Any]:
    """Return the rows of a batch that `pickled` made.

    Raises
    ------
    ConfigurationError
        If the batch has other columns.
    """
    if batch.schema.names != [COLUMN]:
        raise ConfigurationError(
            f"Columns {batch.schema.names} are fed, not pickled rows.",
            hint="Read them with ctx.dataset, or feed an RDD with cluster.feed(rdd, pickled=True).",
        )
    return [loads(value) for value in batch.column(0).to_pylist()]
