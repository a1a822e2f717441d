#!/usr/bin/env python3
"""Train on a stream: train once on every new file in a directory and export new versions of the model.

    spark-submit jobs/streaming.py --data incoming/ --format json --schema 'x1 float, x2 float, y float' \\
        --label y --output models/live                                           # runs until it is stopped
    spark-submit jobs/streaming.py ... --available-now                           # reads the existing files, then ends

Columns other than the label must be numbers that are about as large as 1. The job exports a new version of the model to
OUTPUT/model every --export-steps steps and at the end. TensorFlow Serving and tfspark.predict load the newest version.
OUTPUT/stream is Spark's checkpoint. OUTPUT/weights has the weights and the optimizer of the last export. A job that is
started again with the same --output continues with both. An interrupted job loses the training since its last export.

To stop the job cleanly, create the file OUTPUT/stop: the job ends between two micro-batches, after a last export.
SIGTERM to the driver's Python process has the same effect. SIGTERM to spark-submit ends the JVM at once and so
interrupts the job; all its processes end.

Exit codes: 0 stopped cleanly; 1 failed, for example in a node; 2 wrong usage; 143 interrupted by SIGTERM to
spark-submit.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("streaming")

LOOK_SECONDS = 1.0
"""Interval between two checks whether the job must stop."""

KEPT = ["model", "stream", "weights"]
STOP = "stop"


def build_model(features: list[str], task: str, learning_rate: float) -> Any:
    """Build a small network for numeric columns."""
    import keras

    inputs = {n: keras.Input((1,), name=n, dtype="float32") for n in features}
    x = keras.layers.Concatenate()(list(inputs.values())) if len(inputs) > 1 else inputs[features[0]]
    for units in (32, 16):
        x = keras.layers.Dense(units, activation="relu")(x)
    activation, loss = ("sigmoid", "binary_crossentropy") if task == "classify" else (None, "mse")
    model = keras.Model(inputs, keras.layers.Dense(1, activation=activation, name="prediction")(x))
    model.compile(keras.optimizers.Adam(learning_rate), loss)
    model.optimizer.build(model.trainable_variables)  # Otherwise the optimizer would not be restored.
    return model


def train_node(args: dict[str, Any], ctx: tfspark.NodeContext) -> dict[str, Any]:
    """Train until the stream ends; runs in every TensorFlow process."""
    import keras

    keras.utils.set_random_seed(args["seed"])
    model = build_model(args["features"], args["task"], args["learning_rate"])
    ctx.synchronize(model)
    weights = Path(args["weights"])
    saved = sorted(weights.glob("step-*.weights.h5"))
    if saved:
        model.load_weights(saved[-1])
    began = int(saved[-1].name[5:15]) if saved else 0
    versions: list[str] = []
    losses: list[float] = []

    def export() -> None:
        if ctx.is_chief:
            draft = weights / "draft.weights.h5"
            model.save_weights(draft, overwrite=True)
            draft.rename(weights / f"step-{began + len(losses):010}.weights.h5")
            for old in sorted(weights.glob("step-*.weights.h5"))[:-1]:
                old.unlink()
            versions.append(ctx.export(model, args["model"]))
            logger.info("exported %s", versions[-1])

    def batch_ended(step: int, logs: dict[str, float]) -> None:
        losses.append(float(logs["loss"]))
        ctx.report(began + step + 1, **logs)
        if (step + 1) % args["export_steps"] == 0:
            export()

    try:
        stream = ctx.stream(args["batch_size"], label=args["label"])
    except tfspark.errors.FeedError:
        logger.info("nothing has arrived")
        return {"began_at_step": began, "steps": 0, "loss": [], "versions": []}
    model.fit(stream, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=batch_ended)])
    export()
    return {"began_at_step": began, "steps": len(losses), "loss": losses[-1:], "versions": versions}


def run(spark: SparkSession, args: argparse.Namespace, directory: Path, stopping: threading.Event) -> dict[str, Any]:
    """Train until the stream ends, `stopping` is set or the file ``stop`` exists."""
    from pyspark.errors import StreamingQueryException

    stream = spark.readStream.format(args.format).schema(args.schema).options(**dict(args.option))
    stream = stream.option("maxFilesPerTrigger", args.files_per_batch)
    # All workers run each step together, so each worker needs rows of every micro-batch.
    rows = stream.load(args.data).na.drop().repartition(args.workers)
    node_args = {"features": [c for c in rows.columns if c != args.label], "label": args.label, "seed": args.seed}
    node_args |= {n: getattr(args, n) for n in ("task", "learning_rate", "batch_size", "export_steps")}
    node_args |= {"model": str(directory / "model"), "weights": str(directory / "weights")}
    stop = directory / STOP
    (directory / "weights").mkdir(exist_ok=True)
    trigger = {"availableNow": True} if args.available_now else {"processingTime": args.every}
    with tfspark.Cluster(spark, train_node, node_args, workers=args.workers) as cluster:
        query = cluster.feed_stream(rows, trigger=trigger, checkpointLocation=str(directory / "stream"))
        try:
            # A signal must not interrupt a call to the JVM, so the loop checks the event between two calls.
            while not query.awaitTermination(LOOK_SECONDS):
                if (stopping.is_set() or stop.exists()) and not query.status["isTriggerActive"]:
                    query.stop()
        except StreamingQueryException:
            # If a node has failed, this raises the error of the node.
            cluster.wait()
            raise
    return dict(cluster.results["worker", 0])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", required=True, help="directory to watch for new files")
    parser.add_argument("--format", default="tfrecord", help="Spark's name of the input format (%(default)s)")
    parser.add_argument("--schema", required=True, help="columns and types, as in SQL: 'x float, y float'")
    parser.add_argument(
        "--option", action="append", default=[], type=lambda o: o.split("=", 1), help="option of the reader: name=value"
    )
    parser.add_argument("--label", required=True, help="column to predict")
    parser.add_argument("--task", choices=["classify", "regress"], default="regress", help="(%(default)s)")
    parser.add_argument("--output", required=True, type=jobs.directory, help="directory shared by driver and executors")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--workers", type=int, default=2, help="TensorFlow workers (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per worker and step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--export-steps", type=int, default=1000, help="steps between two exports (%(default)s)")
    parser.add_argument("--available-now", action="store_true", help="end when all existing files have been read")
    parser.add_argument("--every", default="10 seconds", help="how often to look for new files (%(default)s)")
    parser.add_argument("--files-per-batch", type=int, default=100, help="maximum files per micro-batch (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    directory = jobs.RunDirectory("streaming", args.output, None, writes=[*KEPT, STOP])
    directory.claim(keep=KEPT)
    with jobs.session("streaming", args.master) as spark:
        outcome = run(spark, args, directory.path, stopping)
    logger.info("%s", json.dumps(outcome, indent=1))
    return jobs.ExitCode.DONE


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
