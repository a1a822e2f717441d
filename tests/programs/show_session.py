"""Make a session in the way that is asked for, use the connector, and print what the session was made with."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

if __name__ == "__main__":
    from pyspark.sql import SparkSession

    import tfspark

    master, path = sys.argv[1:]
    if master == "running":
        # The session of another thread, which is none of this thread's, with executors of their own.
        SparkSession.builder.master("local-cluster[1,2,1024]").config("spark.ui.enabled", "false").getOrCreate()
        with ThreadPoolExecutor(1) as pool:
            spark = pool.submit(tfspark.session, "show").result()
    else:
        builder = SparkSession.builder.appName("show").config("spark.ui.enabled", "false")
        spark = tfspark.configure(builder if master == "-" else builder.master(master)).getOrCreate()
    spark.range(10).write.format("tfrecord").save(path)
    shown = {
        "rows": spark.read.format("tfrecord").load(path).mapInArrow(lambda batches: batches, "id long").count(),
        "master": spark.sparkContext.master,
        "jars": [j for j in spark.conf.get("spark.jars", "").split(",") if j],
        "arrow": spark.conf.get("spark.sql.execution.arrow.pyspark.enabled"),
        "arrow_bytes": spark.conf.get("spark.sql.execution.arrow.maxBytesPerBatch"),
        "python": os.environ.get("PYSPARK_PYTHON"),
        "driver_python": os.environ.get("PYSPARK_DRIVER_PYTHON"),
    }
    spark.stop()
    sys.stdout.write(json.dumps(shown) + "\n")
