#!/usr/bin/env python3
"""Classify texts: Spark counts the words, TensorFlow workers train the classifier, the model takes plain strings.

    spark-submit jobs/text.py --data data/tickets --output models/tickets        # columns text and label
    spark-submit jobs/text.py --output build/text                                # predicts the library of a docstring

Spark counts the words. The most frequent ones are the vocabulary of Keras' TextVectorization, which is a part of the
exported model. A tenth of the rows, by a hash of the text, is held out for testing.

All files of a run are in OUTPUT/RUN_ID: model/1 (a SavedModel) and result.json, which is written last. Completed runs
are skipped; an interrupted run starts from the beginning.

Exit codes: 0 completed now or earlier; 1 failed, for example in a node; 2 wrong usage; 3 the accuracy is below
--min-accuracy; 143 ended by SIGTERM, after cleaning up.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("text")


def docstrings(packages: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of installed packages, with the name of the package."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for directory in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(directory).rglob("*.py")):
                try:
                    tree = ast.parse(file.read_text(encoding="utf-8"))
                except (SyntaxError, UnicodeDecodeError):
                    continue
                for node in ast.walk(tree):
                    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                        text = ast.get_docstring(node)
                        if text and len(text) > 40:
                            yield text, package


def load(spark: SparkSession, args: argparse.Namespace) -> DataFrame:
    """Load the rows as string columns ``text`` and ``label``, without nulls."""
    from pyspark.sql import functions as F

    if args.data:
        df = spark.read.format(args.format).load(args.data)
    else:
        df = spark.createDataFrame(list(docstrings(args.packages.split(","))), "text string, label string")
        df = df.withColumnsRenamed({"text": args.text, "label": args.label})
    columns = [F.col(args.text).cast("string").alias("text"), F.col(args.label).cast("string").alias("label")]
    return df.select(columns).na.drop()


def describe(train: DataFrame, vocabulary: int) -> dict[str, Any]:
    """Collect the labels and the most frequent words, standardized as in TextVectorization."""
    from pyspark.sql import functions as F

    words = F.explode(F.split(F.regexp_replace(F.lower("text"), r"\p{Punct}", ""), r"\s+")).alias("word")
    counted = train.select(words).where("word != ''").groupBy("word").count()
    frequent = counted.orderBy(F.desc("count"), "word").limit(vocabulary).collect()
    labels = sorted(row["label"] for row in train.select("label").distinct().collect())
    return {"labels": labels, "words": [row["word"] for row in frequent]}


def train_node(args: dict[str, Any], ctx: tfspark.NodeContext) -> dict[str, Any]:
    """Train the model; runs in every TensorFlow process."""
    import keras

    keras.utils.set_random_seed(args["seed"])
    text = keras.Input((), name="text", dtype="string")
    vectorize = keras.layers.TextVectorization(output_sequence_length=args["length"], vocabulary=args["words"])
    embed = keras.layers.Embedding(vectorize.vocabulary_size(), args["width"], mask_zero=True)
    x = keras.layers.GlobalAveragePooling1D()(embed(vectorize(text)))
    x = keras.layers.Dense(args["width"], activation="relu")(x)
    probabilities = keras.layers.Dense(len(args["labels"]), activation="softmax", name="probabilities")(x)
    model = keras.Model({"text": text}, {"probabilities": probabilities})
    model.compile(
        optimizer=keras.optimizers.Adam(args["learning_rate"]),
        loss={"probabilities": "sparse_categorical_crossentropy"},
        metrics={"probabilities": ["accuracy"]},
    )
    history = ctx.fit(model, batch_size=args["batch_size"], label="target", shuffle=True)
    return {"model": ctx.export(model, args["model"]), "loss": history["loss"]}


def accuracy(test: DataFrame, model: str, labels: list[str]) -> tuple[int, float]:
    """Return the number of test rows and the accuracy of the exported model on them."""
    from pyspark.sql import functions as F

    found = tfspark.predict(test, model)
    best = F.expr("array_position(probabilities, array_max(probabilities))") - 1
    right = F.element_at(F.array(*map(F.lit, labels)), (best + 1).cast("int")) == F.col("label")
    row = found.agg(F.count("*"), F.avg(right.cast("double"))).first()
    assert row is not None
    return int(row[0]), float(row[1] or 0.0)


def run(spark: SparkSession, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Train and test the model; return the result of the run."""
    from pyspark.sql import functions as F

    rows = load(spark, args).cache()
    bucket = F.pmod(F.xxhash64("text"), F.lit(10))
    train, test = rows.where(bucket != 0), rows.where(bucket == 0)
    known = describe(train, args.vocabulary)
    if len(known["labels"]) < 2:
        raise tfspark.errors.ConfigurationError(
            f"The label column holds {known['labels']}: nothing to tell apart.", hint="Name it with --label."
        )
    node_args = {**known, "model": str(directory / "model"), "length": args.length, "width": args.width}
    node_args |= {"batch_size": args.batch_size, "learning_rate": args.learning_rate, "seed": args.seed}
    labelled = train.withColumn("labels", F.array(*map(F.lit, known["labels"])))
    # Spark 3.5 finds columns in arrays only in SQL.
    targets = labelled.selectExpr("text", "array_position(labels, label) - 1 AS target")
    fed = targets.repartition(2 * args.workers)
    with tfspark.Cluster(spark, train_node, node_args, workers=args.workers) as cluster:
        cluster.feed(fed, epochs=args.epochs)
    trained = cluster.results["worker", 0]
    tested, share = accuracy(test, trained["model"], known["labels"])
    return {**trained, "labels": known["labels"], "words": len(known["words"]), "tested": tested, "accuracy": share}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", help="path that Spark can read; by default the docstrings of --packages")
    parser.add_argument("--format", default="tfrecord", help="Spark's name of the format of --data (%(default)s)")
    parser.add_argument("--text", default="text", help="column with the text (%(default)s)")
    parser.add_argument("--label", default="label", help="column with the class (%(default)s)")
    parser.add_argument("--packages", default="keras,numpy,pandas", help="packages with docstrings (%(default)s)")
    parser.add_argument("--output", required=True, type=jobs.directory, help="directory shared by driver and executors")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="run id, such as a date (%(default)s)")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--workers", type=int, default=2, help="TensorFlow workers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="rows per worker and step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--vocabulary", type=int, default=20_000, help="maximum size of the vocabulary (%(default)s)")
    parser.add_argument("--length", type=int, default=200, help="number of words read from each text (%(default)s)")
    parser.add_argument("--width", type=int, default=32, help="size of the embedding (%(default)s)")
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="exit code 3 below this value (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.length < 1:
        parser.error("--length has to be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    directory = jobs.RunDirectory("text", args.output, args.run_id, writes=["model"])
    outcome = directory.result()
    if outcome is None:
        directory.claim()
        with jobs.session("text", args.master) as spark:
            outcome = run(spark, args, directory.path)
        directory.finish(outcome)
    logger.info("%s", json.dumps(outcome, indent=1))
    return jobs.ExitCode.DONE if outcome["accuracy"] >= args.min_accuracy else jobs.ExitCode.BELOW_BAR


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
