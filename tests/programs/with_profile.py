"""Run tasks with a resource profile in the way of Spark 3.5, on any Spark: ``with_profile.py``.

Prints JSON: the CPUs of each task of a barrier job, whether its rows can move, and what a cluster of two nodes with
two CPUs each returns and says if there is room for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

import tfspark
from tfspark.errors import ResourceError
from tfspark.spark import arrow_jobs, plans
from tfspark.spark.profiles import profile_of, read_settings
from tfspark.spark.resources import TaskResources


def cpus_of_task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    from pyspark import BarrierTaskContext, TaskContext

    rows = sum(b.num_rows for b in batches)
    barrier = isinstance(TaskContext.get(), BarrierTaskContext)
    yield pa.RecordBatch.from_pylist([{"rows": rows, "cpus": int(TaskContext.get().cpus()), "barrier": barrier}])


def main() -> None:
    arrow_jobs.is_spark_3 = lambda: True  # type: ignore[attr-defined]
    quiet = {"spark.ui.enabled": "false", "spark.log.level": "ERROR"}
    spark = tfspark.session("profiles", "local-cluster[2,3,1024]", **quiet)
    spark.range(1).count()
    profile = profile_of(spark, TaskResources(2), read_settings(spark))
    ddl = "rows long, cpus long, barrier boolean"
    job = arrow_jobs.map_in_arrow(spark.range(0, 10, 1, 2), cpus_of_task, ddl, barrier=True, profile=profile)
    found: dict[str, Any] = {"tasks": [list(r) for r in job.collect()], "move": plans.rows_can_move(job)}
    found["nodes"] = len(tfspark.run(spark, lambda args, ctx: None, workers=2, cpus_per_node=2))
    try:
        tfspark.run(spark, lambda args, ctx: None, workers=3, cpus_per_node=2)
    except ResourceError as e:
        found["error"] = e.message
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
