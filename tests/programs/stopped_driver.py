"""Feed workers that report every batch, for a test that stops this driver meanwhile; print what arrived.

Arguments: a directory in which workers say how far they are, rows, seconds that a partition takes, epochs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def train(args: dict[str, Any], ctx: Any) -> list[list[int]]:
    """Read all epochs; each batch is reported, and its number written to a file."""
    epochs, step = [], 0
    for _ in ctx.epochs():
        ids: list[int] = []
        for batch in ctx.dataset(4):
            time.sleep(0.02)
            ids += batch["id"].numpy().tolist()
            step += 1
            ctx.report(step, flush=True, rows=len(ids))
            # By a rename, since someone reads it meanwhile.
            written = Path(args["directory"], f"next-{ctx.index}")
            written.write_text(str(step))
            written.replace(Path(args["directory"], f"worker-{ctx.index}"))
        epochs.append(ids)
    return epochs


def main() -> None:
    import tfspark

    directory, rows, seconds, epochs = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    settings = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}
    spark = tfspark.session("stopped", "local-cluster[2,2,1024]", **settings)

    def slow(batches: Iterator[Any]) -> Iterator[Any]:
        time.sleep(seconds)
        yield from batches

    df = spark.range(0, rows, 1, 8).selectExpr("int(id) as id").mapInArrow(slow, "id int")
    print(json.dumps({"pid": os.getpid()}), flush=True)
    with tfspark.Cluster(spark, train, {"directory": directory}, workers=2, progress=False) as cluster:
        report = cluster.feed(df, epochs=epochs, cache="memory")
    spark.stop()
    print(json.dumps({"rows": report.rows, "read": list(cluster.results.values())}), flush=True)


if __name__ == "__main__":
    main()
