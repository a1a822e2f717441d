"""Train with a chief, two workers and a parameter server on fed rows; print what came of it."""

from __future__ import annotations

import json
import os
from typing import Any


def train(args: Any, ctx: Any) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    strategy = ctx.strategy()
    with strategy.scope():
        inputs = keras.Input((2,), name="x")
        model = keras.Model({"x": inputs}, keras.layers.Dense(1)(inputs))
        optimizer = keras.optimizers.SGD(0.05)
        optimizer.build(model.trainable_variables)
        seen = tf.Variable(0, dtype=tf.int64)
        ids = tf.Variable(tf.zeros([args["rows"]], tf.int32))

    def step(features: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model({"x": features["x"]}) - y[:, None]))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        seen.assign_add(tf.size(y, tf.int64))
        ids.scatter_add(tf.IndexedSlices(tf.ones_like(features["id"]), features["id"]))

    def data() -> Any:
        return ctx.dataset(32, label="y", shuffle=True)

    def full_batches() -> Any:
        return ctx.dataset(32, label="y", drop_remainder=True)

    refused = []
    for refuse in (lambda: ctx.stream(32), lambda: ctx.fit(model, batch_size=32)):
        try:
            refuse()
        except Exception as e:
            refused.append(f"{type(e).__name__}: {e}")
    rows, counts = [], []
    for epoch in ctx.epochs():
        rows.append(ctx.train_epoch(step, data if epoch < args["whole"] else full_batches))
        counts.append(sorted(set(ids.numpy().tolist())))
    return {
        "rows": rows,
        "refused": refused,
        "seen": int(seen.numpy()),
        "counts": counts,
        "weights": [w.tolist() for w in model.get_weights()],
        "cluster": {k: len(v) for k, v in ctx.cluster_spec.items()},
        "pid": os.getpid(),
    }


def main() -> None:
    import tfspark

    settings = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}
    spark = tfspark.session("ps", "local[6]", **settings)
    rows = 3000
    df = spark.range(0, rows, 1, 7).selectExpr(
        "int(id) as id",
        "array(float(id % 7) / 7, float(id % 5) / 5) as x",
        "float(float(id % 7) / 7 - float(id % 5) / 5) as y",
    )
    with tfspark.Cluster(spark, train, {"rows": rows, "whole": 3}, workers=2, ps=1, progress=False) as cluster:
        report = cluster.feed(df, epochs=4, shapes={"x": 2})
    spark.stop()
    (result,) = cluster.results.values()
    print(json.dumps({"fed": {f"{r} {i}": n for (r, i), n in report.rows_by_worker.items()}, **result}))


if __name__ == "__main__":
    main()
