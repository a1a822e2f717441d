"""Digits that arrive as a stream, until the model has seen enough of them."""

import argparse

from pyspark.sql import SparkSession
from pyspark.streaming import StreamingContext
from sklearn.datasets import load_digits
from tensorflowonspark import TFCluster


def main_fun(args, ctx):
    import numpy as np
    import tensorflow as tf
    from tensorflowonspark import compat

    model = tf.keras.Sequential([tf.keras.Input((64,)), tf.keras.layers.Dense(10, activation="softmax")])
    model.compile(loss="sparse_categorical_crossentropy", optimizer=tf.keras.optimizers.Adam(0.01))
    tf_feed = ctx.get_data_feed()
    steps = 0
    while not tf_feed.should_stop() and steps < args.max_steps:
        batch = tf_feed.next_batch(args.batch_size)
        if len(batch) > 0:
            images = np.array([image for image, _ in batch], np.float32) / 16.0
            model.train_on_batch(images, np.array([label for _, label in batch]))
            steps += 1
    tf_feed.terminate()
    compat.export_saved_model(model, args.export_dir, ctx.task_index == 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--max_steps", type=int, default=40)
    parser.add_argument("--export_dir", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    ssc = StreamingContext(sc, 1)
    digits = load_digits()
    rows = list(zip(digits.data.tolist(), digits.target.tolist()))
    # An endless stream, as far as this program is concerned.
    stream = ssc.queueStream([sc.parallelize(rows, 2)] * 600)
    cluster = TFCluster.run(sc, main_fun, args, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    cluster.train(stream)
    ssc.start()
    cluster.shutdown(ssc)
