"""On Spark Connect: `tfspark.session` and `tfspark.configure` give the format, `tfspark.functions` the functions.

    python connect_functions.py DIRECTORY

Prints JSON: rows that were written and read, records that made the round trip, and what errors say.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["SPARK_REMOTE"] = "local[2]"

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import tfspark
from tfspark.functions import from_example, to_example


def error_of(action: Callable[[], Any]) -> str:
    """Run what must fail and return what it says."""
    try:
        action()
    except Exception as e:
        return str(e)
    raise AssertionError("nothing was raised")


def main() -> None:
    """Do it all in a Connect server of this machine."""
    place = sys.argv[1]
    rows = []
    for n, make in enumerate([configured, lambda: tfspark.session("one"), lambda: tfspark.session("two")]):
        spark = make()
        spark.range(10).write.format("tfrecord").save(f"{place}/{n}")
        rows.append(spark.read.format("tfrecord").load(f"{place}/{n}").count())
    df = spark.sql("SELECT id, if(id = 0, array(0f, 0.5f), array()) AS x, 'a' AS s FROM range(0, 2, 1, 1)")
    made = df.select(to_example(F.struct("*")).alias("value"))
    schema = "ID long, x array<float>, s string"
    back = made.select(from_example("value", schema).alias("r")).select("r.*")
    lists = spark.sql("SELECT array(array(id)) AS f, id AS c FROM range(0, 2, 1, 1)")
    options = {"recordType": "SequenceExample"}
    sequence = lists.select(to_example(F.struct("*"), options).alias("value"))
    listed = sequence.select(from_example("value", "f array<array<long>>, c long", options).alias("r")).select("r.*")
    shown = {
        "kind": type(df).__module__,
        "rows": rows,
        "example": [list(r) for r in back.collect()],
        "sequence": [list(r) for r in listed.collect()],
        "fault": error_of(lambda: made.select(from_example("value", "s long")).collect()),
        "nested": error_of(lambda: lists.select(to_example(F.struct("f"))).collect()),
    }
    spark.stop()
    print(json.dumps(shown))


def configured() -> SparkSession:
    """Make a session by the builder."""
    return tfspark.configure(SparkSession.builder.appName("zero")).getOrCreate()


if __name__ == "__main__":
    main()
