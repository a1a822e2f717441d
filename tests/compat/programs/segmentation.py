"""A small encoder and decoder that finds squares in synthetic images, which Spark makes and feeds."""

import argparse

from pyspark.sql import SparkSession
from tensorflowonspark import TFCluster


def make_image(seed):
    import numpy as np

    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.2, (16, 16, 1)).astype("float32")
    mask = np.zeros((16, 16, 1), "float32")
    top, left, size = rng.integers(0, 8), rng.integers(0, 8), rng.integers(4, 8)
    mask[top : top + size, left : left + size] = 1.0
    return image + mask, mask


def main_fun(args, ctx):
    import json

    import numpy as np
    import tensorflow as tf

    tf.keras.utils.set_random_seed(2)
    layers = tf.keras.layers
    inputs = tf.keras.Input((16, 16, 1))
    fine = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    coarse = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(fine))
    up = layers.Conv2DTranspose(4, 2, strides=2, activation="relu")(coarse)
    mask = layers.Conv2D(1, 1, activation="sigmoid")(layers.Concatenate()([fine, up]))
    model = tf.keras.Model(inputs, mask)
    model.compile(loss="binary_crossentropy", optimizer=tf.keras.optimizers.Adam(0.02), metrics=["accuracy"])

    tf_feed = ctx.get_data_feed()
    accuracy = 0.0
    while not tf_feed.should_stop():
        batch = tf_feed.next_batch(32)
        if len(batch) > 0:
            images, masks = (np.stack(part) for part in zip(*batch))
            _, accuracy = model.train_on_batch(images, masks)
    with open(args.result, "w") as f:
        json.dump({"accuracy": float(accuracy)}, f)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    cluster = TFCluster.run(sc, main_fun, args, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    cluster.train(sc.parallelize(range(256), 2).map(make_image), 6)
    cluster.shutdown()
