"""``strategy="multi_worker_mirrored"``: TensorFlow's own way, with what lets Keras 3 start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import tfspark


def train(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    with ctx.strategy().scope():
        model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    given = [
        keras.callbacks.ModelCheckpoint(os.path.join(args["directory"], "w.weights.h5"), save_weights_only=True),
        keras.callbacks.BackupAndRestore(os.path.join(args["directory"], "backup"), delete_checkpoint=False),
    ]
    history = ctx.fit(model, batch_size=8, label="y", callbacks=given)
    return {
        "mirrored": isinstance(ctx.strategy(), tf.distribute.MultiWorkerMirroredStrategy),
        "weights": model.get_weights(),
        "loss": history["loss"],
    }


def test_workers_train_by_tensorflow_s_own_strategy(spark: Any, tmp_path: Path) -> None:
    df = spark.range(0, 64, 1, 2).selectExpr("array(float(id % 7) / 7, 1f) as x", "float(id % 7) / 7 as y")
    with tfspark.Cluster(
        spark, train, {"directory": str(tmp_path)}, workers=2, strategy="multi_worker_mirrored"
    ) as cluster:
        cluster.feed(df, epochs=3, shapes={"x": 2})
    first, second = (cluster.results["worker", i] for i in (0, 1))
    assert first["mirrored"] and second["mirrored"]
    for a, b in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert first["loss"][-1] < first["loss"][0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backup", "w.weights.h5"]


def test_the_installed_keras_is_the_one_that_is_mended() -> None:
    """Fails when Keras changes what tfspark stands in for: look again whether it still has to."""
    from tfspark.node.keras import multi_worker_mirrored

    assert all(multi_worker_mirrored.faults().values())
