"""Digits in a Spark ML pipeline: a TFEstimator that trains and a TFModel that infers."""

import argparse
import json

from pyspark.ml import Pipeline
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from tensorflowonspark import pipeline


def train_fn(args, ctx):
    import numpy as np
    import tensorflow as tf
    from tensorflowonspark import compat

    model = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8), name="image"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Rescaling(1 / 16),
            tf.keras.layers.Dense(32, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax", name="scores"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", optimizer=tf.keras.optimizers.Adam(0.01))
    tf_feed = ctx.get_data_feed(input_mapping=args.input_mapping)
    while not tf_feed.should_stop():
        batch = tf_feed.next_batch(args.batch_size)
        if len(batch["image"]) > 0:
            images = np.array(batch["image"], np.float32).reshape(-1, 8, 8)
            model.train_on_batch(images, np.array(batch["label"]))
    compat.export_saved_model(model, args.export_dir, ctx.job_name == "chief")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster_size", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--export_dir", required=True)
    parser.add_argument("--result", required=True)
    args = parser.parse_args()

    spark = SparkSession.builder.getOrCreate()
    digits = load_digits()
    rows = list(zip(digits.data.tolist(), digits.target.tolist()))
    df = spark.createDataFrame(rows, "pixels array<float>, digit bigint")
    estimator = (
        pipeline.TFEstimator(train_fn, args)
        .setInputMapping({"pixels": "image", "digit": "label"})
        .setClusterSize(args.cluster_size)
        .setEpochs(args.epochs)
        .setBatchSize(64)
        .setExportDir(args.export_dir)
        .setGraceSecs(20)
    )
    model = Pipeline(stages=[estimator]).fit(df).stages[0]
    model.setTagSet("serve").setSignatureDefKey("serving_default")
    model.setInputMapping({"pixels": "image"}).setOutputMapping({"scores": "scores"})
    predicted = model.transform(df)
    scores = [row.scores for row in predicted.collect()]
    hits = sum(max(range(10), key=s.__getitem__) == d for s, (_, d) in zip(scores, rows))
    with open(args.result, "w") as f:
        json.dump({"accuracy": hits / len(rows), "types": predicted.dtypes}, f)
