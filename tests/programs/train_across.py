"""Train a tiny model on fed rows and say what happens: ``train_across.py MASTER DIRECTORY '{"epochs": 2, ...}'``.

JSON lines on standard output: ``{"nodes": ...}`` when all have started, ``{"training": ...}`` when both workers have
taken steps, and at the end results or the error. Options other than those of `OPTIONS` are passed to `Cluster`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import tfspark

OPTIONS: dict[str, Any] = {"epochs": 1, "rows": 4000, "step_seconds": 0.0}
QUIET = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}


def train(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Fit one weight; count what was read."""
    import keras
    import tensorflow as tf

    with ctx.strategy().scope():
        weight = tf.Variable(0.0)
        optimizer = keras.optimizers.SGD(0.01)
        optimizer.build([weight])

    def loss(batch: Any) -> Any:
        return ctx.average_loss((weight - tf.cast(batch["id"] % 7, tf.float32)) ** 2)

    @tf.function
    def step(batch: Any) -> None:
        def one(b: Any) -> None:
            with tf.GradientTape() as tape:
                share = loss(b)
            optimizer.apply_gradients([(tape.gradient(share, weight), weight)])

        ctx.strategy().run(one, args=(batch,))

    epochs, steps = [], 0
    for _ in ctx.epochs():
        ids: list[int] = []
        for batch in ctx.distribute(ctx.dataset(100)):
            step(batch)
            steps += 1
            (local,) = ctx.strategy().experimental_local_results(batch["id"])
            ids += local.numpy().tolist()
            ctx.report(steps)
            ctx._link.stopping.wait(args["step_seconds"])
        epochs.append([len(ids), sum(ids)])
    return {"weight": float(weight.numpy()), "epochs": epochs, "workers": ctx.num_workers}


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def announce(cluster: tfspark.Cluster) -> None:
    """Say when all workers have taken steps."""
    assert cluster._gang is not None
    if cluster._gang.coordinator.wait(lambda: all(s.step > 1 for s in cluster.status()), 120.0):
        say(training=[str(a.node) for a in cluster.nodes.nodes])


def main() -> None:
    master, directory, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    args = {k: given.pop(k, v) for k, v in OPTIONS.items()}
    spark = tfspark.session("across", master, **{**QUIET, "spark.local.dir": directory, **given.pop("conf", {})})
    say(spark=spark.version)
    try:
        with tfspark.Cluster(spark, train, args, workers=2, progress=False, **given) as cluster:
            say(nodes={str(a.node): a.host for a in cluster.nodes.nodes})
            threading.Thread(target=announce, args=(cluster,), daemon=True).start()
            report = cluster.feed(spark.range(0, args["rows"], 1, 8), epochs=args["epochs"])
            say(fed=report.rows)
        say(results={f"{role} {i}": r for (role, i), r in cluster.results.items()})
    except tfspark.errors.TFSparkError as e:
        at = {k: getattr(e, k, None) for k in ("role", "index", "host")}
        say(error=type(e).__name__, message=str(e), time=time.time(), **at)
    say(threads=[t.name for t in threading.enumerate() if t.name.startswith("tfspark")])
    spark.stop()
    say(over=True)


if __name__ == "__main__":
    main()
