"""Digits, fed by Spark as an RDD, learned by Keras on several nodes (after the original's first example)."""

import argparse

import numpy as np
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from tensorflowonspark import TFCluster


def main_fun(args, ctx):
    import numpy as np
    import tensorflow as tf
    from tensorflowonspark import TFNode, compat

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    tf_feed = TFNode.DataFeed(ctx.mgr, False)

    def rdd_generator():
        while not tf_feed.should_stop():
            batch = tf_feed.next_batch(1)
            if len(batch) > 0:
                image, label = batch[0]
                yield np.array(image, np.float32) / 16.0, np.array([label], np.float32)
            else:
                return

    shapes = (tf.TensorShape([64]), tf.TensorShape([1]))
    ds = tf.data.Dataset.from_generator(rdd_generator, (tf.float32, tf.float32), shapes).batch(args.batch_size)
    options = tf.data.Options()
    compat.disable_auto_shard(options)
    ds = ds.with_options(options)

    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.Input((64,), name="image"),
                tf.keras.layers.Dense(32, activation="relu"),
                tf.keras.layers.Dense(10, activation="softmax", name="prediction"),
            ]
        )
        model.compile(
            loss=tf.keras.losses.SparseCategoricalCrossentropy(),
            optimizer=tf.keras.optimizers.Adam(0.01),
            metrics=["accuracy"],
        )

    # As the examples do: 90 % of the rows, for nodes that get fewer than others.
    steps = args.rows * args.epochs / args.batch_size
    steps_per_epoch = max(1, int(steps * 0.9 / args.epochs / ctx.num_workers))
    model.fit(ds, epochs=args.epochs, steps_per_epoch=steps_per_epoch, verbose=0)
    compat.export_saved_model(model, args.export_dir, ctx.job_name == "chief")
    tf_feed.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--export_dir", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    digits = load_digits()
    args.rows = len(digits.target)
    rows = sc.parallelize(list(zip(digits.data.astype(np.int32).tolist(), digits.target.tolist())), 4)
    cluster = TFCluster.run(
        sc, main_fun, args, args.cluster_size, 0, input_mode=TFCluster.InputMode.SPARK, master_node="chief"
    )
    cluster.train(rows, args.epochs)
    cluster.shutdown(grace_secs=30)
