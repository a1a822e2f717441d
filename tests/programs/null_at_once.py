"""Feed a null, then predict for one, where Spark tries a task four times; print the errors and the attempts."""

from __future__ import annotations

import json
import os
import sys
import threading


def read(args: object, ctx: object) -> int:
    return sum(1 for _ in ctx.record_batches())  # type: ignore[attr-defined]


def main(directory: str) -> None:
    import keras
    from pyspark import TaskContext
    from pyspark.sql import functions as F

    import tfspark
    from tfspark.errors import SchemaError

    spark = tfspark.session("nulls", "local[3,4]", **{"spark.ui.enabled": "false", "spark.log.level": "OFF"})

    @F.udf("int")
    def noted(number: int) -> int | None:
        context = TaskContext.get()
        assert context is not None
        attempt = context.attemptNumber()
        open(os.path.join(directory, f"{context.partitionId()}-{attempt}"), "w").close()
        if attempt:
            # Spark may begin one more attempt while the job is about to end, and ends it with the job.
            threading.Event().wait(120)
        return None if number == 4 else number

    df = spark.range(0, 10, 1, 1).select(noted("id").alias("x"))
    found = []
    try:
        with tfspark.Cluster(spark, read, workers=1, progress=False) as cluster:
            cluster.feed(df)
    except SchemaError as e:
        found.append([e.message, sorted(os.listdir(directory))])
    model = keras.Sequential([keras.Input((), name="x"), keras.layers.Reshape((1,)), keras.layers.Dense(1)])
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    try:
        tfspark.predict(df, model).collect()
    except Exception as e:
        found.append([str(e), sorted(os.listdir(directory))])
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
