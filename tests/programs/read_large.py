"""Read TFRecord files in an executor with 512 MB: prints rows and bytes, or the error."""

from __future__ import annotations

import sys

import tfspark

with tfspark.session(
    "read-large",
    "local-cluster[1,1,512]",
    **{"spark.executor.memory": "512m", "spark.ui.enabled": "false", "spark.log.level": "OFF"},
) as spark:
    options = dict(pair.split("=") for pair in sys.argv[2:])
    df = spark.read.format("tfrecord").schema("i long, b binary").options(**options).load(sys.argv[1])
    try:
        n, size = df.selectExpr("count(*)", "sum(length(b))").first()
        print(f"rows {n} bytes {size}")
    except Exception as e:
        print(f"{type(e).__name__}: {e}")
