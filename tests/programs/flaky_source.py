"""Feed data whose first attempt of one partition fails in the middle, before Python or after it; print rows fed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

ROWS, PARTITIONS = 400_000, 4


def count(args: Any, ctx: Any) -> int:
    return sum(int(batch["id"].shape[0]) for batch in ctx.dataset(1000))


def fail_once(items: Iterator[Any], after: int) -> Iterator[Any]:
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    flaky = context.attemptNumber() == 0 and context.partitionId() == 1
    for i, item in enumerate(items):
        if flaky and i == after:
            raise RuntimeError("the source failed")
        yield item


def main() -> None:
    import tfspark

    spark = tfspark.session("flaky", "local[4,4]", **{"spark.ui.enabled": "false", "spark.log.level": "OFF"})
    base = spark.range(0, ROWS, 1, PARTITIONS)
    batches = base.mapInArrow(lambda b: fail_once(b, 6), "id long")
    rows = base.rdd.mapPartitions(lambda r: fail_once(r, 60_000))
    sources = {
        "Arrow batches": batches,
        "rows": spark.createDataFrame(rows, "id long"),
        "an RDD": rows.map(lambda r: {"id": r.id}),
        "an RDD of a DataFrame": batches.rdd,
    }
    found = {}
    for name, source in sources.items():
        with tfspark.Cluster(spark, count, workers=1, progress=False) as cluster:
            fed = cluster.feed(source).rows
        found[name] = [fed, cluster.results["worker", 0]]
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
