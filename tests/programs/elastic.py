"""``elastic.py DIRECTORY [grow | starved]``: lose an executor, go on with fewer workers, become all again.

With ``starved`` the executor that is lost is the one that runs feed tasks: before the feed, or in the middle of it.

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


def read_ids(args: Any, ctx: Any) -> list[int]:
    return [int(i) for _ in ctx.epochs() for batch in ctx.dataset(10) for i in batch["id"]]


def take_feeders(cluster: Any, context: Any) -> None:
    """End the executors that hold no node; Spark does not start others in their place."""
    from tfspark.spark.internals import executors_of_task

    records = list(cluster._require_started().life.records.values())
    held = {e for r in records for e in executors_of_task(context, r.stage, r.attempt)}
    listed = context._jsc.sc().statusStore().executorList(True)
    everyone = {listed.apply(i).id() for i in range(listed.size())}
    for executor in sorted(everyone - held - {"driver"}):
        context._jsc.sc().killExecutor(executor)
    ask_for(context, len(held))


def starve(spark: Any, directory: str, in_the_middle: bool) -> dict[str, Any]:
    """Feed two workers on three executors, of which the third is lost."""
    import tfspark
    from tfspark.spark.internals import concurrent_tasks

    context, goes_on = spark.sparkContext, Path(directory, "goes-on")
    ask_for(context, 3)
    assert eventually(lambda: concurrent_tasks(context) == 3, 200)

    def slow(batches: Any) -> Any:
        for batch in batches:
            if batch.column("id")[0].as_py() > 0:
                assert eventually(goes_on.exists, 100)
            yield batch

    cluster = tfspark.Cluster(
        spark, read_ids, workers=2, min_workers=1, max_restarts=1, strategy="none", progress=False,
        settings={"shrink_timeout": 3.0, "slots_timeout": 3.0},
    )  # fmt: skip

    def disturb() -> None:
        if in_the_middle:
            ledgers = cluster._require_started().coordinator.ledgers
            assert eventually(lambda: bool(ledgers) and sum(ledgers[0].rows.values()) > 0, 100)
        take_feeders(cluster, context)
        goes_on.touch()

    with cluster:
        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        if not in_the_middle:
            thread.join()
            assert eventually(lambda: concurrent_tasks(context) == 2, 100)
        report = cluster.feed(spark.range(0, ROWS, 1, 4).mapInArrow(slow, "id long"))
    read = sorted(i for found in cluster.results.values() for i in found)
    errors = [f"{type(e).__name__}: {e}" for e in cluster.restarts]
    return {"fed": report.rows, "read": read, "workers": len(cluster.results), "errors": errors}


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
    if sys.argv[2:] == ["starved"]:
        found = []
        for middle in (False, True):
            Path(sys.argv[1], str(middle)).mkdir()
            found.append(starve(spark, f"{sys.argv[1]}/{middle}", middle))
    elif sys.argv[2:]:
        found = [run(spark, sys.argv[1], True, grow=True)]
    else:
        found = [run(spark, f"{sys.argv[1]}/{disturbed}", disturbed) for disturbed in (False, True)]
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
