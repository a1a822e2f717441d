"""Add the connector to a running session, use it, make its tasks fail in each way, and print what is said, as JSON.

    python tfrecord_errors.py MASTER DIRECTORY

MASTER is a master, or ``connect`` for a Spark Connect server of this machine, which gets the jar as an artifact.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["PYSPARK_PYTHON"] = sys.executable

from pyspark.sql import SparkSession

import tfspark


def error_of(action: Callable[[], Any]) -> str:
    """Run what must fail and return what it says."""
    try:
        action()
    except Exception as e:
        return str(e)
    raise AssertionError("nothing was raised")


def main() -> None:
    """Do it all."""
    master, place = sys.argv[1:]
    if master == "connect":
        spark = SparkSession.builder.remote("local[2]").getOrCreate()
    else:
        settings = {"spark.ui.enabled": "false", "spark.log.level": "OFF"}
        spark = SparkSession.builder.master(master).config(map=settings).getOrCreate()
    spark.range(3).count()
    tfspark.add_connector(spark)

    def read(name: str, schema: str | None = "a long") -> Any:
        reader = spark.read.format("tfrecord")
        return (reader.schema(schema) if schema else reader).load(f"{place}/{name}")

    nulls = spark.sql("SELECT array(1.5f, CAST(null AS float)) AS c")
    said = {
        "kind": error_of(lambda: read("kind").collect()),
        "many": error_of(lambda: read("many").collect()),
        "cut": error_of(lambda: read("cut").collect()),
        "infer": error_of(lambda: read("files", None).collect()),
        "write": error_of(lambda: nulls.write.format("tfrecord").save(f"{place}/written")),
    }
    if master != "connect":
        types = ["org.apache.hadoop.io.BytesWritable", "org.apache.hadoop.io.NullWritable"]
        rdd = spark.sparkContext.newAPIHadoopFile(f"{place}/cut", "tfspark.tfrecord.TFRecordInputFormat", *types)
        said["hadoop"] = error_of(rdd.count)
    for s in (spark, spark.newSession()):
        if master == "connect":
            tfspark.add_connector(s)
        s.range(10).write.format("tfrecord").mode("overwrite").save(f"{place}/good")
        assert s.read.format("tfrecord").load(f"{place}/good").count() == 10
        assert s.sql(f"SELECT sum(id) FROM tfrecord.`{place}/good`").first()[0] == 45
    spark.stop()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
