"""A small residual network on synthetic images, each node with its own share of them."""

import argparse

from pyspark.sql import SparkSession
from tensorflowonspark import TFCluster


def main_fun(args, ctx):
    import json

    import numpy as np
    import tensorflow as tf

    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers

    def block(x, filters):
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        shortcut = x if x.shape[-1] == filters else layers.Conv2D(filters, 1)(x)
        return layers.ReLU()(layers.Add()([y, shortcut]))

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rng = np.random.default_rng(ctx.executor_id)
    labels = rng.integers(0, 2, 256)
    images = rng.normal(0, 0.3, (256, 12, 12, 3)).astype("float32")
    # Class 1 has a bright upper half.
    images[labels == 1, :6] += 1.0
    with strategy.scope():
        inputs = tf.keras.Input((12, 12, 3))
        x = block(layers.Conv2D(4, 3, padding="same")(inputs), 4)
        x = layers.GlobalAveragePooling2D()(block(layers.MaxPooling2D()(x), 8))
        model = tf.keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
        model.compile(
            loss="sparse_categorical_crossentropy", optimizer=tf.keras.optimizers.Adam(0.01), metrics=["accuracy"]
        )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    ds = tf.data.Dataset.from_tensor_slices((images, labels)).batch(64).with_options(options)
    history = model.fit(ds, epochs=3, verbose=0)
    if ctx.job_name == "chief":
        weights = float(sum(np.abs(w).sum() for w in model.get_weights()))
        with open(args.result, "w") as f:
            json.dump({"accuracy": history.history["accuracy"][-1], "weights": weights}, f)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--result", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    cluster = TFCluster.run(sc, main_fun, args, args.cluster_size, 0, master_node="chief")
    cluster.shutdown()
