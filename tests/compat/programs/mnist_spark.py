"""Images from an RDD, learned by a convolutional network on several nodes, with a checkpoint after each epoch."""

import argparse

from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from tensorflowonspark import TFCluster


def main_fun(args, ctx):
    import numpy as np
    import tensorflow as tf
    from tensorflowonspark import TFNode, compat

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def compiled_cnn():
        cnn = tf.keras.Sequential(
            [
                tf.keras.layers.Conv2D(16, 3, activation="relu", input_shape=(8, 8, 1)),
                tf.keras.layers.MaxPooling2D(),
                tf.keras.layers.Flatten(),
                tf.keras.layers.Dense(32, activation="relu"),
                tf.keras.layers.Dense(10, activation="softmax"),
            ]
        )
        cnn.compile(
            loss=tf.keras.losses.sparse_categorical_crossentropy,
            optimizer=tf.keras.optimizers.Adam(0.01),
            metrics=["accuracy"],
        )
        return cnn

    tf_feed = TFNode.DataFeed(ctx.mgr, False)

    def images_and_labels():
        while not tf_feed.should_stop():
            rows = tf_feed.next_batch(1)
            if not rows:
                return
            pixels, digit = rows[0]
            yield np.array(pixels, np.float32).reshape(8, 8, 1) / 16.0, np.array([digit], np.float32)

    shapes = (tf.TensorShape([8, 8, 1]), tf.TensorShape([1]))
    ds = tf.data.Dataset.from_generator(images_and_labels, (tf.float32, tf.float32), shapes).batch(args.batch_size)
    options = tf.data.Options()
    compat.disable_auto_shard(options)
    ds = ds.with_options(options)

    # Nodes do not get the same number of rows: all stop early enough.
    steps_per_epoch = int(0.9 * args.rows / args.batch_size / ctx.num_workers)

    tf.io.gfile.makedirs(args.model_dir)
    # Keras 3 wants this suffix.
    path = args.model_dir + "/weights-{epoch:04d}.weights.h5"
    callbacks = [
        tf.keras.callbacks.ModelCheckpoint(filepath=path, verbose=0, save_weights_only=True),
        tf.keras.callbacks.BackupAndRestore(args.model_dir + "/backup"),
    ]
    with strategy.scope():
        cnn = compiled_cnn()
    cnn.fit(ds, epochs=args.epochs, steps_per_epoch=steps_per_epoch, callbacks=callbacks, verbose=0)
    compat.export_saved_model(cnn, args.export_dir, ctx.job_name == "chief")
    tf_feed.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--export_dir", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    digits = load_digits()
    args.rows = len(digits.target)
    rows = sc.parallelize(list(zip(digits.data.tolist(), digits.target.tolist())), 4)
    cluster = TFCluster.run(
        sc, main_fun, args, args.cluster_size, 0, input_mode=TFCluster.InputMode.SPARK, master_node="chief"
    )
    cluster.train(rows, args.epochs)
    cluster.shutdown(grace_secs=30)
