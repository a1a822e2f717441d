"""Say, as JSON, where tfspark is installed, which jar of the connector it takes, and that the jar works."""

from __future__ import annotations

import json
import sys

import tfspark
from tfspark.spark.connector import connector_jar

if __name__ == "__main__":
    spark = tfspark.session("installed", "local[2]", **{"spark.log.level": "OFF", "spark.ui.enabled": "false"})
    spark.range(5).write.format("tfrecord").save(sys.argv[1])
    rows = spark.read.format("tfrecord").load(sys.argv[1]).count()
    print(json.dumps({"package": tfspark.__file__, "jar": str(connector_jar()), "rows": rows}))
    spark.stop()
