#!/usr/bin/env python3
"""Random search of hyperparameters: every node trains its own models, independent of the other nodes.

    spark-submit jobs/search.py --data data/digits/run --output models/digits --trials 32 --workers 8

The shards have an array of floats and an integer label >= 0; jobs/convert.py writes such shards. Each node reads all
shards into memory; the index of the node determines its trials. A fifth of the rows is held out; the best model has
the highest accuracy on these rows.

All files of a run are in OUTPUT/RUN_ID: model/1 (a SavedModel) and result.json, which is written last and lists all
trials, the best one first. Completed runs are skipped; an interrupted run starts from the beginning.

Exit codes: 0 completed now or earlier; 1 failed, for example in a node; 2 wrong usage; 143 ended by SIGTERM, after
cleaning up.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("search")


def draw_trials(count: int, seed: int) -> list[dict[str, Any]]:
    """Draw hyperparameters at random; the same seed gives the same values."""
    chance = random.Random(seed)
    return [
        {
            "trial": n,
            "learning_rate": 10 ** chance.uniform(-4, -1.5),
            "units": chance.choice([16, 32, 64, 128]),
            "layers": chance.choice([1, 2, 3]),
            "dropout": chance.uniform(0.0, 0.5),
            "batch_size": chance.choice([16, 32, 64]),
        }
        for n in range(count)
    ]


def read_all(args: dict[str, Any]) -> tuple[Any, Any]:
    """Read all shards: features of shape (rows, width), float32, and labels of shape (rows,), int64."""
    import tensorflow as tf

    record = {args["features"]: tf.io.FixedLenFeature((args["width"],), tf.float32)}
    record[args["label"]] = tf.io.FixedLenFeature((), tf.int64)
    compression = "GZIP" if args["files"][0].endswith(".gz") else None
    batches = tf.data.TFRecordDataset(args["files"], compression).batch(1024)
    parsed = [tf.io.parse_example(batch, record) for batch in batches]
    features, labels = (tf.concat([p[n] for p in parsed], 0).numpy() for n in (args["features"], args["label"]))
    return features, labels


def build_model(trial: dict[str, Any], features: Any, classes: int) -> Any:
    """Build the model of a trial."""
    import keras

    scale = keras.layers.Normalization()
    scale.adapt(features)
    layers: list[Any] = [keras.Input((features.shape[1],), name="features"), scale]
    for _ in range(trial["layers"]):
        layers += [keras.layers.Dense(trial["units"], activation="relu"), keras.layers.Dropout(trial["dropout"])]
    model = keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax")])
    optimizer = keras.optimizers.Adam(trial["learning_rate"])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def search_node(args: dict[str, Any], ctx: tfspark.NodeContext) -> list[dict[str, Any]]:
    """Run the trials of this node and keep the model of the best one; runs in every TensorFlow process."""
    import keras
    import numpy as np

    features, labels = read_all(args)
    held = np.random.default_rng(args["seed"]).random(len(labels)) < 0.2
    classes = int(labels.max()) + 1
    outcomes: list[dict[str, Any]] = []
    best = -1.0
    for n, trial in enumerate(args["trials"][ctx.index :: ctx.num_workers]):
        keras.utils.set_random_seed(args["seed"])
        model = build_model(trial, features[~held], classes)
        model.fit(
            features[~held], labels[~held], batch_size=trial["batch_size"], epochs=args["epochs"], verbose=0,
            callbacks=[keras.callbacks.EarlyStopping("loss", patience=3)],
        )  # fmt: skip
        _, accuracy = model.evaluate(features[held], labels[held], verbose=0)
        ctx.report(n + 1, flush=True, accuracy=accuracy)
        outcomes.append({**trial, "accuracy": float(accuracy), "node": ctx.index, "model": None})
        if accuracy > best:
            best = accuracy
            for earlier in outcomes:
                if earlier["model"]:
                    shutil.rmtree(earlier["model"])
                    earlier["model"] = None
            outcomes[-1]["model"] = f"{args['directory']}/trial-{trial['trial']}"
            model.export(outcomes[-1]["model"], verbose=False)
        keras.backend.clear_session()
    return outcomes


def run(spark: SparkSession, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all trials and move the best model to ``model/1``."""
    from pyspark.sql import functions as F

    df = spark.read.format("tfrecord").load(args.data)
    row = df.select(F.size(args.features)).first()
    assert row is not None
    node_args = {"files": sorted(df.inputFiles()), "width": row[0], "directory": str(directory)}
    node_args |= {n: getattr(args, n) for n in ("features", "label", "epochs", "seed")}
    node_args["trials"] = draw_trials(args.trials, args.seed)
    found = tfspark.run(spark, search_node, node_args, workers=args.workers, strategy="none")
    trials = sorted((t for node in found.values() for t in node), key=lambda t: (-t["accuracy"], t["trial"]))
    (directory / "model").mkdir()
    Path(trials[0]["model"]).rename(directory / "model" / "1")
    for trial in trials:
        model = trial.pop("model")
        if model:
            shutil.rmtree(model, ignore_errors=True)
    return {"model": str(directory / "model" / "1"), "trials": trials}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", required=True, help="directory of TFRecord shards that executors can read")
    parser.add_argument("--features", default="features", help="column with an array of floats (%(default)s)")
    parser.add_argument("--label", default="label", help="column with an integer >= 0 (%(default)s)")
    parser.add_argument("--output", required=True, type=jobs.directory, help="directory shared by driver and executors")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="run id, such as a date (%(default)s)")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--trials", type=int, default=16, help="number of trials (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="nodes that run trials in parallel (%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="maximum number of epochs per trial (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.trials < args.workers:
        parser.error(f"{args.trials} trials leave some of {args.workers} workers without any")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    directory = jobs.RunDirectory("search", args.output, args.run_id, writes=["model", "trial-*"])
    outcome = directory.result()
    if outcome is None:
        directory.claim()
        with jobs.session("search", args.master) as spark:
            outcome = run(spark, args, directory.path)
        directory.finish(outcome)
    logger.info("%s", json.dumps(outcome, indent=1))
    return jobs.ExitCode.DONE


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
