"""Map rows beside those that stay in the JVM with tasks that fail, once or for good; say what came, as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator

import pyarrow as pa
from pyspark.sql import functions as F

import tfspark
from tfspark.columns.sent import map_beside
from tfspark.errors import SchemaError

QUIET = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}


def fail_once(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return the ids and the attempt; fail in the middle of the first partition, once."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    attempt = context.attemptNumber()
    for batch in batches:
        for start in range(0, batch.num_rows, 3000):
            if start and context.partitionId() == 0 and attempt == 0:
                raise ValueError("the first attempt")
            x = batch.column(0).slice(start, 3000)
            yield pa.RecordBatch.from_arrays([x, pa.array([attempt] * len(x), pa.int32())], ["y", "attempt"])


def refuse_in(directory: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a task that cannot take its rows; each attempt leaves a file."""

    def refuse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            tempfile.mkstemp(dir=directory)
            raise SchemaError("Column 'x' holds what does not fit.")
        yield from ()

    return refuse


if __name__ == "__main__":
    spark = tfspark.session("failing map", "local[2,4]", **QUIET)
    try:
        made = map_beside(spark.range(0, 20_000, 1, 2), {"x": F.col("id")}, ["id"], fail_once, "y long, attempt int")
        assert made is not None
        rows = made.collect()
        attempts = sorted({r.attempt for r in rows})
        right = sum(r.id == r.y == i for i, r in enumerate(rows))
        with tempfile.TemporaryDirectory() as directory:
            refused = map_beside(spark.range(0, 10, 1, 1), {"x": F.col("id")}, ["id"], refuse_in(directory), "y long")
            assert refused is not None
            try:
                refused.collect()
                error = ""
            except Exception as e:
                error = str(e)
            refusals = len(os.listdir(directory))
        said = {"attempts": attempts, "right": right, "rows": len(rows), "refusals": refusals, "error": error}
        print(json.dumps(said), flush=True)
    finally:
        spark.stop()
