"""Feed two workers and print, as JSON, in which Python each of them ran and what it found there."""

from __future__ import annotations

import json
import sys
from typing import Any


def main(args: Any, ctx: Any) -> dict[str, Any]:
    import parcel

    import tfspark

    rows = sum(len(batch["id"]) for batch in ctx.dataset(10))
    return {"python": sys.executable, "parcel": parcel.CONTENT, "tfspark": tfspark.__file__, "rows": rows}


if __name__ == "__main__":
    import tfspark

    spark = tfspark.session("shipped")
    with tfspark.Cluster(spark, main, workers=2) as cluster:
        cluster.feed(spark.range(0, 100, 1, 4))
    spark.stop()
    sys.stdout.write(json.dumps([cluster.results["worker", i] for i in range(2)]) + "\n")
