"""Train a tiny model on fed rows and say what happens: ``train_across.py MASTER DIRECTORY '{"epochs": 2, ...}'``.

JSON lines on standard output: ``{"nodes": ...}`` when all have started, ``{"training": ...}`` when both workers have
taken some steps, and at the end results or the error. Options other than those of `OPTIONS` are passed to `Cluster`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import tfspark

OPTIONS: dict[str, Any] = {"epochs": 1, "rows": 4000, "step_seconds": 0.0, "ready_step": 1}
QUIET = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}


def train(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Add up, over all workers, the number of rows, their ids and the squares of these; save after each epoch."""
    import tensorflow as tf

    strategy = ctx.strategy()
    with strategy.scope():
        seen = tf.Variable(tf.zeros(3, tf.int64))
    saved = ctx.checkpoint(seen=seen)
    first = saved.restore()

    @tf.function(reduce_retracing=True)
    def step(ids: Any) -> Any:
        def add(x: Any) -> Any:
            mine = tf.stack([tf.size(x, tf.int64), tf.reduce_sum(x), tf.reduce_sum(x * x)])
            return tf.distribute.get_replica_context().all_reduce("SUM", mine)

        return strategy.experimental_local_results(strategy.run(add, args=(ids,)))[0]

    steps = 0
    for _ in ctx.epochs():
        totals = tf.zeros(3, tf.int64)
        for batch in ctx.distribute(ctx.dataset(100)):
            totals += step(batch["id"])
            steps += 1
            ctx.report(steps)
            ctx._link.stopping.wait(args["step_seconds"])
        seen.assign_add(totals)
        saved.save()
    return {"seen": seen.numpy().tolist(), "first_epoch": first, "restarts": ctx.restarts}


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def announce(cluster: tfspark.Cluster, step: int) -> None:
    """Say when all workers have taken so many steps."""
    assert cluster._gang is not None
    if cluster._gang.coordinator.wait(lambda: all(s.step >= step for s in cluster.status()), 120.0):
        say(training=[str(a.node) for a in cluster.nodes.nodes])


def main() -> None:
    master, directory, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    args = {k: given.pop(k, v) for k, v in OPTIONS.items()}
    spark = tfspark.session("across", master, **{**QUIET, "spark.local.dir": directory, **given.pop("conf", {})})
    say(spark=spark.version)
    try:
        with tfspark.Cluster(spark, train, args, workers=2, progress=False, **given) as cluster:
            say(nodes={str(a.node): a.host for a in cluster.nodes.nodes})
            threading.Thread(target=announce, args=(cluster, args["ready_step"]), daemon=True).start()
            report = cluster.feed(spark.range(0, args["rows"], 1, 8), epochs=args["epochs"])
            say(fed=report.rows)
        hosts = {str(a.node): a.host for a in cluster.nodes.nodes}
        say(
            results={f"{role} {i}": r for (role, i), r in cluster.results.items()},
            hosts=hosts,
            restarts=[str(e) for e in cluster.restarts],
        )
    except tfspark.errors.TFSparkError as e:
        at = {k: getattr(e, k, None) for k in ("role", "index", "host")}
        say(error=type(e).__name__, message=str(e), time=time.time(), **at)
    say(threads=[t.name for t in threading.enumerate() if t.name.startswith("tfspark")])
    spark.stop()
    say(over=True)


if __name__ == "__main__":
    main()
