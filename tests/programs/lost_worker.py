"""Train with parameter servers while a worker is killed, and later one is held by a signal; print what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def train(args: Any, ctx: Any) -> dict[str, Any]:
    import tensorflow as tf

    with ctx.strategy().scope():
        counts = tf.Variable(tf.zeros([args["rows"]], tf.int32))

    def step(features: Any) -> None:
        counts.scatter_add(tf.IndexedSlices(tf.ones_like(features["id"]), features["id"]))

    def data() -> Any:
        return ctx.dataset(16)

    saved = ctx.checkpoint(counts=counts)
    saved.restore()
    rows = []
    for epoch in ctx.epochs():
        ctx.report(epoch, flush=True)
        rows.append(ctx.train_epoch(step, data))
        saved.save()
    return {"rows": rows, "counts": counts.numpy().tolist(), "restarts": ctx.restarts}


def main() -> None:
    import tfspark

    settings = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}
    spark = tfspark.session("lost", "local[6]", **settings)
    rows, epochs = 4000, int(sys.argv[2])
    sig = signal.Signals[sys.argv[1]]
    df = spark.range(0, rows, 1, 8).selectExpr("int(id) as id")
    with tfspark.Cluster(
        spark, train, {"rows": rows}, workers=2, ps=1, hang_timeout=5.0, progress=False, checkpoint_dir=sys.argv[3],
        max_restarts=1,
    ) as cluster:  # fmt: skip
        first = cluster.feed(df, epochs=epochs)
        victim = next(a for a in cluster.nodes.nodes if str(a.node) == "worker 1")
        coordinator = cluster._require_started().coordinator
        assert coordinator.wait(lambda: any(r.step >= 2 for r in coordinator.reports.values()), 60)
        os.kill(victim.pid, sig)
        assert coordinator.wait(lambda: coordinator.losses == 1, 60)
        second = cluster.feed(df, epochs=2)
        assert coordinator.wait(lambda: not coordinator.away, 60)
        pids = [victim.pid, next(a for a in cluster.nodes.nodes if str(a.node) == "worker 1").pid]
    spark.stop()
    (result,) = cluster.results.values()
    fed = [{f"{r} {i}": n for (r, i), n in report.rows_by_worker.items()} for report in (first, second)]
    print(json.dumps({"fed": fed, "pids": pids, "losses": coordinator.losses, **result}))


if __name__ == "__main__":
    main()
