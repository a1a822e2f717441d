"""Map rows beside those that stay in the JVM with a task whose first attempt fails; say what came, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import functions as F

import tfspark
from tfspark.columns.sent import map_beside

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


if __name__ == "__main__":
    spark = tfspark.session("failing map", "local[2,2]", **QUIET)
    try:
        made = map_beside(spark.range(0, 20_000, 1, 2), {"x": F.col("id")}, ["id"], fail_once, "y long, attempt int")
        assert made is not None
        rows = made.collect()
        attempts = sorted({r.attempt for r in rows})
        right = sum(r.id == r.y == i for i, r in enumerate(rows))
        print(json.dumps({"attempts": attempts, "right": right, "rows": len(rows)}), flush=True)
    finally:
        spark.stop()
