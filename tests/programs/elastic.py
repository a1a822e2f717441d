"""``elastic.py DIRECTORY [grow]``: lose an executor, go on with fewer workers, get it again, become all again.

The model is exact arithmetic over all rows of an epoch, so it is right if it equals that of an undisturbed run, bit by
bit. Nodes wait, in the middle of an epoch, for what befalls them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from waiting import eventually

ROWS, EPOCHS = 200, 6
WAITS = {0: 2, 1: 4}
"""Epoch in which nodes wait to be killed, by the number of restarts before."""


def train(args: Any, ctx: Any) -> Any:
    import tensorflow as tf

    strategy = ctx.strategy()
    with strategy.scope():
        weight = tf.Variable(0.0, dtype=tf.float64)
    saved = ctx.checkpoint(weight=weight)
    saved.restore()

    @tf.function(reduce_retracing=True)
    def step(ids: Any) -> Any:
        def sums(x: Any) -> Any:
            x = tf.cast(x, tf.float64)
            mine = tf.stack([tf.cast(tf.size(x), tf.float64), tf.reduce_sum(x), tf.reduce_sum(x * x)])
            return tf.distribute.get_replica_context().all_reduce("SUM", mine)

        return strategy.experimental_local_results(strategy.run(sums, args=(ids,)))[0]

    epochs = []
    for epoch in ctx.epochs():
        totals = tf.zeros(3, tf.float64)
        for batch in ctx.distribute(ctx.dataset(10, shuffle=True)):
            totals += step(batch["id"])
        if args["disturbed"] and WAITS.get(ctx.restarts) == epoch:
            ctx.report(epoch, flush=True)
            while not ctx.stopping:
                threading.Event().wait(0.1)
            return None
        n, total, squares = (float(x) for x in totals)
        weight.assign(0.5 * weight + total / n + squares)
        epochs.append((epoch, n))
        saved.save()
    return {"weight": float(weight.numpy()), "epochs": epochs, "workers": ctx.num_workers, "restarts": ctx.restarts}


def fit(args: Any, ctx: Any) -> Any:
    """Train with ``ctx.fit``; nodes wait to be killed, and those that are left until the executor is back."""
    import keras

    class Waits(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch < WAITS.get(ctx.restarts, EPOCHS):
                return
            ctx.report(epoch, flush=True)
            # The first nodes wait to be killed, the next ones for the executor, and then to be stopped.
            while not (ctx.restarts == 1 and epoch == WAITS[1] and Path(ctx.checkpoint_dir, "back").exists()):
                threading.Event().wait(0.1)

    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = ctx.fit(model, batch_size=10, columns=["x"], label="y", callbacks=[Waits()])
    return {"epochs": len(history["loss"]), "workers": ctx.num_workers, "restarts": ctx.restarts}


def ask_for(context: Any, executors: int) -> None:
    """Tell Spark how many executors the application is to have."""
    maps = getattr(context._jvm.scala.collection.immutable, "Map$")
    assert context._jsc.sc().requestTotalExecutors(executors, 0, getattr(maps, "MODULE$").empty())


def disturb(cluster: Any, context: Any, seen: list[int]) -> None:
    """Take an executor away for good, give one back when nodes go on, and kill a node."""
    from tfspark.spark.internals import concurrent_tasks, executors_of_task

    def waiting(restarts: int) -> bool:
        coordinator = cluster._require_started().coordinator
        nodes = coordinator.lifecycle.nodes
        there = [coordinator.reports.get(n) for n in nodes]
        return len(cluster.restarts) == restarts and all(r is not None and r.step == WAITS[restarts] for r in there)

    assert eventually(lambda: waiting(0), 200)
    gang = cluster._require_started()
    seen.append(len(gang.nodes))
    record = list(gang.life.records.values())[-1]
    (executor,) = executors_of_task(context, record.stage, record.attempt)
    # Spark does not start another one in its place, unlike after the death of its process.
    context._jsc.sc().killExecutor(executor)
    ask_for(context, 2)
    assert eventually(lambda: waiting(1), 200)
    seen.append(len(cluster.nodes.nodes))
    ask_for(context, 3)
    assert eventually(lambda: concurrent_tasks(context) == 3, 200)
    if cluster._options.grow:
        Path(cluster._options.checkpoint_dir, "back").touch()
    else:
        os.kill(cluster.nodes.nodes[0].pid, signal.SIGKILL)


def run(spark: Any, directory: str, disturbed: bool, grow: bool = False) -> dict[str, Any]:
    import tfspark

    seen: list[int] = []
    cluster = tfspark.Cluster(
        spark, fit if grow else train, {"disturbed": disturbed}, workers=2, min_workers=1, grow=grow,
        max_restarts=1 if grow else 2, checkpoint_dir=directory, progress=False, settings={"shrink_timeout": 3.0},
    )  # fmt: skip
    with cluster:
        thread = threading.Thread(target=disturb, args=(cluster, spark.sparkContext, seen), daemon=True)
        rows = spark.range(0, ROWS, 1, 4)
        rows = rows.selectExpr("array(id / 200f) as x", "id / 100f as y") if grow else rows
        cluster.feed(rows, epochs=EPOCHS, shapes={"x": 1} if grow else None)
        if disturbed:
            thread.start()
    found = cluster.results["worker", 0]
    return {**found, "seen": [*seen, len(cluster.nodes.nodes)], "errors": [str(e) for e in cluster.restarts]}


def main() -> None:
    import tfspark

    quiet = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}
    spark = tfspark.session("elastic", "local-cluster[3,1,1024]", **quiet)
    if sys.argv[2:]:
        found = [run(spark, sys.argv[1], True, grow=True)]
    else:
        found = [run(spark, f"{sys.argv[1]}/{disturbed}", disturbed) for disturbed in (False, True)]
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
