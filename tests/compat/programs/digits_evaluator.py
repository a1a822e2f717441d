"""A chief that trains and saves checkpoints, and an evaluator beside it that judges each of them."""

import argparse

from pyspark.sql import SparkSession
from tensorflowonspark import TFCluster


def main_fun(args, ctx):
    import json
    import os
    import time

    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.data.astype("float32") / 16.0, digits.target
    model = tf.keras.Sequential([tf.keras.Input((64,)), tf.keras.layers.Dense(10, activation="softmax")])
    model.compile(
        loss="sparse_categorical_crossentropy", optimizer=tf.keras.optimizers.Adam(0.01), metrics=["accuracy"]
    )
    checkpoint = tf.train.Checkpoint(model=model)

    if ctx.job_name == "evaluator":
        judged = None
        while True:
            newest = tf.train.latest_checkpoint(args.model_dir)
            if newest is None or newest == judged:
                time.sleep(0.05)
                continue
            checkpoint.restore(newest).expect_partial()
            accuracy = model.evaluate(images, labels, batch_size=500, verbose=0)[1]
            line = json.dumps({"checkpoint": os.path.basename(newest), "accuracy": float(accuracy)})
            with open(args.evaluations, "a") as f:
                f.write(line + "\n")
            judged = newest

    manager = tf.train.CheckpointManager(checkpoint, args.model_dir, max_to_keep=10)
    for step in range(1, 4):
        model.fit(images, labels, batch_size=100, epochs=4, verbose=0)
        manager.save(step)
        # The evaluator judges it before the next one is there.
        while not os.path.exists(args.evaluations) or len(open(args.evaluations).readlines()) < step:
            time.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--evaluations", required=True)
    args = parser.parse_args()

    sc = SparkSession.builder.getOrCreate().sparkContext
    cluster = TFCluster.run(sc, main_fun, args, 2, 0, master_node="chief", eval_node=True)
    cluster.shutdown(timeout=240)
