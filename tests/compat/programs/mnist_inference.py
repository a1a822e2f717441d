"""What `mnist_spark.py` has exported, applied by independent nodes, each to its share of TFRecord files."""

import argparse

from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from tensorflowonspark import TFParallel, dfutil


def main_fun(args, ctx):
    import numpy as np
    import tensorflow as tf

    saved_model = tf.saved_model.load(args.export_dir, tags="serve")
    predict = saved_model.signatures["serving_default"]
    features = {"image": tf.io.FixedLenFeature([64], tf.float32), "label": tf.io.FixedLenFeature([1], tf.int64)}

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        return tf.reshape(example["image"], (8, 8, 1)) / 16.0, example["label"]

    files = tf.data.Dataset.list_files(args.images + "/part-*", shuffle=False)
    ds = files.shard(ctx.num_workers, ctx.worker_num).interleave(tf.data.TFRecordDataset).map(parse).batch(100)

    tf.io.gfile.makedirs(args.output)
    with tf.io.gfile.GFile(f"{args.output}/part-{ctx.worker_num:05d}", "w") as out:
        for images, labels in ds:
            scores = predict(conv2d_input=images)["dense_1"]
            for label, guess in zip(np.reshape(labels, -1), np.argmax(scores, axis=1)):
                out.write(f"{label} {guess}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--images", required=True)
    parser.add_argument("--export_dir", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()

    spark = SparkSession.builder.getOrCreate()
    digits = load_digits()
    rows = list(zip(digits.data.tolist(), digits.target.tolist()))
    dfutil.saveAsTFRecords(spark.createDataFrame(rows, "image array<float>, label bigint").repartition(4), args.images)
    TFParallel.run(spark.sparkContext, main_fun, args, args.cluster_size)
