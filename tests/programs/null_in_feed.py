"""Feed a null where Spark tries a task four times; print the error, and which attempts there were."""

from __future__ import annotations

import json
import os
import sys


def read(args: object, ctx: object) -> int:
    return sum(1 for _ in ctx.record_batches())  # type: ignore[attr-defined]


def main(directory: str) -> None:
    from pyspark import TaskContext
    from pyspark.sql import functions as F

    import tfspark
    from tfspark.errors import SchemaError

    spark = tfspark.session("nulls", "local[3,4]", **{"spark.ui.enabled": "false", "spark.log.level": "OFF"})

    @F.udf("int")
    def noted(number: int) -> int | None:
        context = TaskContext.get()
        assert context is not None
        open(os.path.join(directory, f"{context.partitionId()}-{context.attemptNumber()}"), "w").close()
        return None if number == 4 else number

    df = spark.range(0, 10, 1, 1).select(noted("id").alias("x"))
    message = ""
    try:
        with tfspark.Cluster(spark, read, workers=1, progress=False) as cluster:
            cluster.feed(df)
    except SchemaError as e:
        message = e.message
    spark.stop()
    print(json.dumps([message, sorted(os.listdir(directory))]))


if __name__ == "__main__":
    main(sys.argv[1])
