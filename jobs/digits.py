#!/usr/bin/env python3
"""Classify handwritten digits with a Spark ML pipeline: tuned, saved, loaded in a new session, exported and served.

A VectorAssembler puts the 64 pixels of an image into a vector, a KerasEstimator trains a small convolutional network
on the vectors, and a CrossValidator selects the learning rate; its trials share the task slots. The best pipeline is
saved and loaded in a new Spark session. Its network is exported, and `tfspark serve` serves it. The loaded pipeline,
the exported model and the server must give the same predictions for the held-out images.

    python jobs/digits.py                          # Spark on this machine
    spark-submit jobs/digits.py --help             # Spark on your cluster

The data are the digits of scikit-learn: 1,797 images of 8 x 8 pixels. OUTPUT/pipeline has the pipeline of the last run;
each run adds a version to OUTPUT/model.

Exit codes: 0 all predictions are equal and the test accuracy is high enough; 1 predictions differ, the accuracy is too
low, or the job failed; 2 wrong usage; 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("digits")

SIDE = 8
PIXELS = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
BRIGHTEST = 16.0
CLASSES = 10

DEFAULT_MASTER = "local[4]"
WRITES = ["pipeline", "model"]
HELD_OUT = 0.2
TOLERANCE = 1e-4
"""Probabilities that differ by less count as equal: the order of summation depends on the batch size."""


def load_digits(spark: SparkSession) -> DataFrame:
    """Load scikit-learn's digits into Spark: `PIXELS` as double from 0 to 16, ``label`` as double, and ``id``."""
    from sklearn.datasets import load_digits as load

    frame = load(as_frame=True).frame.rename(columns={"target": "label"})
    frame["label"] = frame["label"].astype(float)
    frame["id"] = range(len(frame))
    return spark.createDataFrame(frame)


def build_model() -> Any:
    """Build the network, which reshapes a vector of 64 pixels to an image; runs in every TensorFlow process."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1), name="pixels"),
            layers.Rescaling(1 / BRIGHTEST),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(CLASSES, activation="softmax", name="digit"),
        ]
    )


def tuned(args: argparse.Namespace, train: DataFrame) -> Any:
    """Tune the learning rate of the pipeline; return the CrossValidatorModel."""
    from pyspark.ml import Pipeline
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    from tfspark.ml import KerasEstimator

    digits = KerasEstimator(
        model=build_model,
        loss="sparse_categorical_crossentropy",
        optimizer="adam",
        metrics=["accuracy"],
        probabilityCol="probability",
        batchSize=args.batch_size,
        epochs=args.epochs,
        numWorkers=args.workers,
        seed=args.seed,
    )
    validator = CrossValidator(
        estimator=Pipeline(stages=[VectorAssembler(inputCols=PIXELS, outputCol="features"), digits]),
        estimatorParamMaps=ParamGridBuilder().addGrid(digits.learningRate, args.learning_rates).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=args.folds,
        parallelism=args.parallelism,
        seed=args.seed,
    )
    return validator.fit(train)


def probabilities(predictions: DataFrame) -> Any:
    """Collect the probabilities of all rows, ordered by ``id``, as an array of shape ``(rows, 10)``."""
    import numpy as np

    return np.array([list(r["probability"]) for r in predictions.select("id", "probability").orderBy("id").collect()])


def exported(test: DataFrame, directory: str) -> DataFrame:
    """Return the predictions of the exported model, which takes plain arrays."""
    from pyspark.sql import functions as F

    arrays = test.select("id", F.array(*[F.col(c).cast("float") for c in PIXELS]).alias("pixels"))
    return tfspark.predict(arrays, directory, outputs={"output_0": "probability"})


@contextmanager
def serving(directory: str) -> Iterator[str]:
    """Run ``tfspark serve`` within the block; yield the address of the model."""
    command = [sys.executable, "-m", "tfspark.cli", "serve", directory, "--name", "digits", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = []
        for line in server.stderr:
            lines.append(line)
            if found := re.search(r"models are at (http://\S+)", line):
                yield f"{found[1]}/v1/models/digits"
                return
        raise RuntimeError("tfspark serve did not start:\n" + "".join(lines))
    finally:
        server.terminate()
        server.communicate()


def served(test: DataFrame, url: str) -> Any:
    """Return the predictions of a server with TensorFlow Serving's REST API."""
    import numpy as np

    images = np.array([r[:-1] for r in test.select(*PIXELS, "id").orderBy("id").collect()])
    body = json.dumps({"instances": images.reshape(-1, SIDE, SIDE, 1).tolist()}).encode()
    request = urllib.request.Request(f"{url}:predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return np.array(json.load(answer)["predictions"])


def run(args: argparse.Namespace, directory: jobs.RunDirectory, spark: SparkSession, renew: Any) -> bool:
    """Run all steps; return whether the predictions are equal and accurate enough.

    `renew` stops a session and returns a new one.
    """
    import numpy as np
    from pyspark.ml import PipelineModel

    began = time.monotonic()
    say = sys.stdout.write
    pipeline, models = f"{directory.uri}/pipeline", str(directory.path / "model")
    train, test = load_digits(spark).repartition(args.partitions, "id").randomSplit([1 - HELD_OUT, HELD_OUT], args.seed)
    validator = tuned(args, train)
    for rate, accuracy in zip(args.learning_rates, validator.avgMetrics, strict=True):
        say(f"learning rate {rate:<10g} accuracy {accuracy:.4f} over {args.folds} folds\n")
    best = validator.bestModel
    say(f"chosen                   {best.stages[-1].getLearningRate():g}\n")
    before = probabilities(best.transform(test))
    best.write().overwrite().save(pipeline)

    spark = renew(spark)
    loaded = PipelineModel.load(pipeline)
    _, test = load_digits(spark).repartition(args.partitions, "id").randomSplit([1 - HELD_OUT, HELD_OUT], args.seed)
    predictions = loaded.transform(test).cache()
    right = predictions.where("prediction = label").count() / predictions.count()
    answers = {"pipeline": probabilities(predictions)}
    version = loaded.stages[-1].export(models)
    answers["export"] = probabilities(exported(test, version))
    with serving(models) as url:
        answers["server"] = served(test, url)
    apart = {name: float(np.abs(answer - before).max()) for name, answer in answers.items()}
    say(f"test accuracy            {right:.4f} on {len(before)} images\n")
    for name, most in apart.items():
        say(f"{name:<24} {most:.1e} at most from what was predicted before\n")
    say(f"pipeline                 {pipeline}\nmodel                    {version}\n")
    say(f"seconds                  {time.monotonic() - began:.0f}\n")
    if right < args.least_accuracy:
        logger.error("the test accuracy is less than %g", args.least_accuracy)
    if max(apart.values()) > TOLERANCE:
        logger.error("the predictions differ")
    return right >= args.least_accuracy and max(apart.values()) <= TOLERANCE


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--master", help=f"Spark master, if spark-submit does not set it ({DEFAULT_MASTER})")
    parser.add_argument(
        "--output", default="build/digits", type=jobs.directory, help="directory shared with executors (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="TensorFlow workers per trial (%(default)s)")
    parser.add_argument("--parallelism", type=int, default=2, help="parallel trials, if slots allow it (%(default)s)")
    parser.add_argument("--folds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per worker and step (%(default)s)")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-3], help="values to try")
    parser.add_argument("--partitions", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--least-accuracy", type=float, default=0.95, help="exit code 1 below this value (%(default)s)")
    parser.add_argument("--seed", type=int, default=64, help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    directory = jobs.RunDirectory("digits", args.output, None, writes=WRITES)
    directory.claim(keep=WRITES)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    master = args.master or (None if submitted else DEFAULT_MASTER)
    quiet = {"spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR", "spark.sql.shuffle.partitions": "4"}

    def renew(spark: SparkSession) -> SparkSession:
        # If the context stops, the application that spark-submit has started ends. So only the session is new.
        if submitted:
            return spark.newSession()
        spark.stop()
        return tfspark.session("digits", master, **quiet)

    spark = tfspark.session("digits", master, **quiet)
    try:
        return jobs.ExitCode.DONE if run(args, directory, spark, renew) else jobs.ExitCode.FAILED
    finally:
        active = type(spark).getActiveSession() or spark
        active.stop()


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
