"""Feed rows whose tasks are killed half-way at their first attempt, and print the ids that each worker has read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

PARTITIONS = 8
ROWS = 40_000


def collect_ids(args: Any, ctx: Any) -> list[list[int]]:
    return [[int(i) for batch in ctx.dataset(1000) for i in batch["id"]] for _ in ctx.epochs()]


def fail_at_first(batches: Iterator[Any]) -> Iterator[Any]:
    import os
    import signal

    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    doomed = context.attemptNumber() == 0 and context.partitionId() % 2 == 0
    for i, batch in enumerate(batches):
        if doomed and i == 2:
            if context.partitionId() % 4 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("half-way")
        yield batch


if __name__ == "__main__":
    import tfspark

    settings = {"spark.log.level": "OFF", "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    # The second number is how often a task may fail; a task of the cluster itself is never tried again.
    spark = tfspark.session("faults", "local[5,4]", **settings, spark_sql_execution_arrow_maxRecordsPerBatch=1000)
    df = spark.range(0, ROWS, 1, PARTITIONS).mapInArrow(fail_at_first, "id long")
    with tfspark.Cluster(spark, collect_ids, workers=2) as cluster:
        report = cluster.feed(df, epochs=2)
    spark.stop()
    sys.stdout.write(json.dumps({"rows": report.rows, "read": list(cluster.results.values())}) + "\n")
