"""A SavedModel that several independent instances apply, each to its share of TFRecord files."""

import argparse

from pyspark.sql import SparkSession
from tensorflowonspark import TFParallel


def main_fun(args, ctx):
    import glob
    import json

    import tensorflow as tf

    predict = tf.saved_model.load(args.export_dir).signatures["serving_default"]
    features = {"image": tf.io.FixedLenFeature([64], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}
    files = sorted(glob.glob(args.images + "/part-*"))[ctx.worker_num :: ctx.num_workers]
    rows = hits = 0
    for batch in tf.data.TFRecordDataset(files).batch(200):
        examples = tf.io.parse_example(batch, features)
        (scores,) = predict(image=examples["image"] / 16.0).values()
        hits += int(tf.reduce_sum(tf.cast(tf.argmax(scores, axis=1) == examples["label"], tf.int64)))
        rows += int(scores.shape[0])
    with open(f"{args.output}/{ctx.worker_num}", "w") as f:
        json.dump({"rows": rows, "hits": hits}, f)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster_size", type=int, default=2)
    parser.add_argument("--images", required=True)
    parser.add_argument("--export_dir", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    TFParallel.run(sc, main_fun, args, args.cluster_size)
