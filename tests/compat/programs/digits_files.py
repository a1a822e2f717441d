"""Digits, written as TFRecord files and read by the nodes themselves."""

import argparse

from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from tensorflowonspark import TFCluster, dfutil


def main_fun(args, ctx):
    import tensorflow as tf
    from tensorflowonspark import compat

    tf.keras.utils.set_random_seed(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    features = {"image": tf.io.FixedLenFeature([64], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        return example["image"] / 16.0, example["label"]

    files = tf.data.Dataset.list_files(args.images + "/part-*", shuffle=False)
    rank = ctx.task_index + (1 if ctx.job_name == "worker" else 0)
    ds = files.shard(ctx.num_workers, rank).interleave(tf.data.TFRecordDataset)
    ds = ds.map(parse).repeat().batch(args.batch_size)
    options = tf.data.Options()
    compat.disable_auto_shard(options)

    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.Input((64,), name="image"),
                tf.keras.layers.Dense(32, activation="relu"),
                tf.keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(
            loss="sparse_categorical_crossentropy", optimizer=tf.keras.optimizers.Adam(0.01), metrics=["accuracy"]
        )
    model.fit(ds.with_options(options), epochs=args.epochs, steps_per_epoch=20, verbose=0)
    compat.export_saved_model(model, ctx.absolute_path(args.export_dir), ctx.job_name == "chief")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", required=True)
    parser.add_argument("--export_dir", required=True)
    args = parser.parse_args()

    spark = SparkSession.builder.getOrCreate()
    digits = load_digits()
    rows = zip(digits.data.tolist(), digits.target.tolist())
    df = spark.createDataFrame(list(rows), "image array<float>, label bigint").repartition(4)
    dfutil.saveAsTFRecords(df, args.images)
    cluster = TFCluster.run(
        spark.sparkContext, main_fun, args, args.cluster_size, 0, input_mode=TFCluster.InputMode.TENSORFLOW,
        master_node="chief",
    )  # fmt: skip
    cluster.shutdown()
