#!/usr/bin/env python3
"""Train a network of keras.applications on images in TFRecord shards; the workers read the shards themselves.

    spark-submit jobs/images.py --data data/pictures/run --output models/pictures --network InceptionV3 --workers 4
    spark-submit jobs/images.py ... --weights inception_v3_notop.weights.h5 --freeze       # transfer learning

The shards have encoded images (JPEG, PNG, GIF, BMP) and labels (strings or integers); jobs/convert.py writes such
shards. Spark collects the labels and, with --test, measures the accuracy. tf.data reads the images from the files. The
exported model also takes encoded images.

All files of a run are in OUTPUT/RUN_ID: a checkpoint after each epoch, model/1 (a SavedModel) and result.json, which is
written last. Completed runs are skipped; an interrupted run continues after its last checkpoint.

Exit codes: 0 completed now or earlier; 1 failed, for example in a node; 2 wrong usage; 143 ended by SIGTERM, after
cleaning up; checkpoints are kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("images")


def network_named(name: str) -> tuple[Any, Any]:
    """Return the function of keras.applications that builds a network, and its preprocessing function."""
    import keras

    modules = [getattr(keras.applications, m) for m in dir(keras.applications)]
    for module in modules:
        if hasattr(module, "preprocess_input") and hasattr(module, name):
            return getattr(module, name), module.preprocess_input
    raise tfspark.errors.ConfigurationError(
        f"keras.applications has no network {name!r}.", hint="Such as InceptionV3, ResNet50, MobileNetV2."
    )


def train_node(args: dict[str, Any], ctx: tfspark.NodeContext) -> dict[str, Any]:
    """Train the model; runs in every TensorFlow process."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(args["seed"])
    build, preprocess = network_named(args["network"])
    size, labels = args["size"], args["labels"]
    known = tf.constant(labels, tf.string if isinstance(labels[0], str) else tf.int64)
    record = {n: tf.io.FixedLenFeature((), t) for n, t in (("image", tf.string), ("label", known.dtype))}

    # No annotations: tf.data would resolve them when it converts these functions to graphs.
    def pixels(encoded):
        decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return preprocess(tf.ensure_shape(tf.image.resize(decoded, (size, size)), (size, size, 3)))

    def example(serialized):
        parsed = tf.io.parse_single_example(serialized, record)
        return pixels(parsed["image"]), tf.argmax(tf.cast(tf.equal(known, parsed["label"]), tf.int32))

    files = args["files"][ctx.index :: ctx.num_workers]
    compression = "GZIP" if files[0].endswith(".gz") else None
    dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files), seed=args["seed"])
    dataset = dataset.interleave(lambda f: tf.data.TFRecordDataset(f, compression), num_parallel_calls=2)
    dataset = dataset.shuffle(args["shuffle"]).map(example, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(args["batch_size"]).prefetch(2)

    body = build(include_top=False, weights=args["weights"], input_shape=(size, size, 3), pooling="avg")
    body.trainable = not args["freeze"]
    head = keras.layers.Dense(len(labels), activation="softmax", name="probabilities")
    model = keras.Sequential([body, head])
    optimizer = keras.optimizers.Adam(args["learning_rate"])
    # On CPUs, XLA takes minutes to compile such a deep network, and the training is hardly faster.
    jit = "auto" if ctx.gpus else False
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    model.build((None, size, size, 3))
    optimizer.build(model.trainable_variables)  # Otherwise the optimizer would not be restored.
    ctx.synchronize(model)
    checkpoints = Checkpoints(Path(args["checkpoints"]))
    trained = checkpoints.restore(model, args["restore"])

    def epoch_ended(epoch: int, logs: dict[str, float]) -> None:
        ctx.report(epoch + 1, flush=True, **logs)
        if ctx.is_chief:
            checkpoints.save(model, epoch + 1)
            logger.info("epoch %d is saved", epoch + 1)

    history = model.fit(
        dataset,
        initial_epoch=trained,
        epochs=args["epochs"],
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=epoch_ended)],
        verbose=0,
    ).history
    image = keras.Input((), name="image", dtype="string")
    decode = keras.layers.Lambda(lambda e: tf.map_fn(pixels, e, fn_output_signature=tf.float32), (size, size, 3))
    served = keras.Model({"image": image}, {"probabilities": model(decode(image))})
    return {"model": ctx.export(served, args["model"]), "restored_epochs": trained, "loss": history.get("loss", [])}


class Checkpoints:
    """Weights and optimizer after each epoch, in files that are written atomically."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, model: Any, epoch: int) -> None:
        """Write the file of an epoch and remove older files."""
        draft = self.directory / "draft.weights.h5"
        model.save_weights(draft, overwrite=True)
        draft.rename(self.directory / f"epoch-{epoch:04}.weights.h5")
        for old in self.saved()[:-1]:
            old.unlink()

    def restore(self, model: Any, name: str | None) -> int:
        """Load a file, the same on every node; return its number of epochs, or 0 without a file."""
        if name is None:
            return 0
        model.load_weights(self.directory / name)
        return int(name[6:10])

    def saved(self) -> list[Path]:
        """Return the files, oldest first."""
        return sorted(self.directory.glob("epoch-*.weights.h5"))


def accuracy(spark: SparkSession, data: str, model: str, labels: list[Any]) -> float:
    """Return the accuracy of the exported model on the images in `data`."""
    from pyspark.sql import functions as F

    found = tfspark.predict(spark.read.format("tfrecord").load(data), model, batch_size=64)
    best = F.expr("array_position(probabilities, array_max(probabilities))")
    right = F.element_at(F.array(*map(F.lit, labels)), best.cast("int")) == F.col("label")
    row = found.agg(F.avg(right.cast("double"))).first()
    assert row is not None
    return float(row[0])


def run(spark: SparkSession, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Train and test the model; return the result of the run."""
    df = spark.read.format("tfrecord").load(args.data)
    files = sorted(df.inputFiles())
    if len(files) < args.workers:
        raise tfspark.errors.ConfigurationError(
            f"{args.data} has {len(files)} shard(s) for {args.workers} workers, each of which reads its own.",
            hint=f"Convert with --shards {4 * args.workers}.",
        )
    labels = sorted(row["label"] for row in df.select("label").distinct().collect())
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    saved = Checkpoints(checkpoints).saved()
    node_args = {"files": files, "labels": labels, "checkpoints": str(checkpoints), "model": str(directory / "model")}
    node_args["restore"] = saved[-1].name if saved else None
    node_args |= {n: getattr(args, n) for n in ("network", "weights", "freeze", "size", "epochs", "batch_size")}
    node_args |= {n: getattr(args, n) for n in ("learning_rate", "shuffle", "seed")}
    results = tfspark.run(spark, train_node, node_args, workers=args.workers)
    result = {**results["worker", 0], "labels": labels}
    if args.test:
        result["accuracy"] = accuracy(spark, args.test, result["model"], labels)
    return result


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", required=True, help="directory of TFRecord shards that executors can read")
    parser.add_argument("--test", help="directory of TFRecord shards to measure the accuracy on")
    parser.add_argument("--output", required=True, type=jobs.directory, help="directory shared by driver and executors")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="run id, such as a date (%(default)s)")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--network", default="InceptionV3", help="name in keras.applications (%(default)s)")
    parser.add_argument("--weights", help="weights file of the network without its top; random by default")
    parser.add_argument("--freeze", action="store_true", help="train only the last layer")
    parser.add_argument("--size", type=int, default=299, help="width and height of the input (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="TensorFlow workers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="images per worker and step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--shuffle", type=int, default=1000, help="images in the shuffle buffer (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.weights and not Path(args.weights).exists():
        parser.error(f"there is no file {args.weights}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    directory = jobs.RunDirectory("images", args.output, args.run_id, writes=["model", "checkpoints"])
    outcome = directory.result()
    if outcome is None:
        directory.claim(keep=["checkpoints"])
        with jobs.session("images", args.master) as spark:
            outcome = run(spark, args, directory.path)
        directory.finish(outcome)
    logger.info("%s", json.dumps(outcome, indent=1))
    return jobs.ExitCode.DONE


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
