"""The network of `mnist_spark.py` in a pipeline: train on a DataFrame and export, or infer with the export."""

import argparse
import json

from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from tensorflowonspark.pipeline import TFEstimator, TFModel


def train_fn(args, ctx):
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

    tf_feed = TFNode.DataFeed(ctx.mgr, input_mapping=args.input_mapping)

    def images_and_labels():
        while not tf_feed.should_stop():
            columns = tf_feed.next_batch(1)
            if not columns["image"]:
                return
            image = np.array(columns["image"][0], np.float32).reshape(8, 8, 1) / 16.0
            yield image, np.array(columns["label"], np.float32)

    shapes = (tf.TensorShape([8, 8, 1]), tf.TensorShape([1]))
    ds = tf.data.Dataset.from_generator(images_and_labels, (tf.float32, tf.float32), shapes).batch(args.batch_size)
    options = tf.data.Options()
    compat.disable_auto_shard(options)
    ds = ds.with_options(options)

    steps_per_epoch = int(0.9 * args.rows / args.batch_size / ctx.num_workers)
    tf.io.gfile.makedirs(args.model_dir)
    path = args.model_dir + "/weights-{epoch:04d}.weights.h5"
    callbacks = [tf.keras.callbacks.ModelCheckpoint(filepath=path, verbose=0, save_weights_only=True)]
    # A look at the network beforehand, as in a notebook: names count on, and must not be seen in the export.
    compiled_cnn()
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
    parser.add_argument("--mode", choices=["train", "inference"], default="train")
    parser.add_argument("--model_dir")
    parser.add_argument("--export_dir", required=True)
    parser.add_argument("--output")
    args = parser.parse_args()

    spark = SparkSession.builder.getOrCreate()
    digits = load_digits()
    args.rows = len(digits.target)
    rows = list(zip((digits.data / (1 if args.mode == "train" else 16)).tolist(), digits.target.tolist()))
    df = spark.createDataFrame(rows, "image array<float>, label bigint")
    if args.mode == "train":
        estimator = (
            TFEstimator(train_fn, args)
            .setInputMapping({"image": "image", "label": "label"})
            .setModelDir(args.model_dir)
            .setExportDir(args.export_dir)
            .setClusterSize(args.cluster_size)
            .setEpochs(args.epochs)
            .setBatchSize(args.batch_size)
            .setMasterNode("chief")
            .setGraceSecs(30)
        )
        estimator.fit(df)
    else:
        model = (
            TFModel(args)
            .setInputMapping({"image": "conv2d_input"})
            .setOutputMapping({"dense_1": "prediction"})
            .setSignatureDefKey("serving_default")
            .setExportDir(args.export_dir)
            .setBatchSize(args.batch_size)
        )
        predictions = [row.prediction for row in model.transform(df).collect()]
        guesses = [max(range(10), key=scores.__getitem__) for scores in predictions]
        with open(args.output, "w") as f:
            json.dump({"hits": sum(g == d for g, (_, d) in zip(guesses, rows)), "rows": len(rows)}, f)
