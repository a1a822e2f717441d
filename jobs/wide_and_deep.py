#!/usr/bin/env python3
"""Wide & deep learning with parameter servers, on the rows of any table.

    spark-submit jobs/wide_and_deep.py --data warehouse/clicks --format parquet --label clicked \\
        --numbers age,price --categories user,item --crosses user*item --output models/clicks --workers 4 --ps 2
    spark-submit jobs/wide_and_deep.py --output build/clicks                     # on generated clicks

The wide part is a linear model of categories and their crosses; it memorizes combinations and uses FTRL. The deep part
is a network of embeddings and numbers; it generalizes and uses Adam. The parameter servers hold the tables of both
parts. Workers run steps without waiting for each other. A tenth of the rows, by a hash, is held out for testing.

All files of a run are in OUTPUT/RUN_ID: model/1 (a SavedModel that takes the columns without preprocessing) and
result.json, which is written last. Completed runs are skipped; an interrupted run starts from the beginning.

Exit codes: 0 completed now or earlier; 1 failed, for example in a node; 2 wrong usage; 3 the AUC is below --min-auc;
143 ended by SIGTERM, after cleaning up.
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
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("wide_and_deep")


def generated_clicks(spark: SparkSession, rows: int) -> DataFrame:
    """Generate clicks that depend on the age and on the pair of user and item, but not on user or item alone."""
    from pyspark.sql import functions as F

    def drawn(what: str, n: int) -> Any:
        return F.pmod(F.xxhash64(F.lit(what), "id"), F.lit(n))

    df = spark.range(rows).select(
        "id",
        (drawn("age", 60) + 15).cast("float").alias("age"),
        (drawn("price", 1000) / 10).cast("float").alias("price"),
        F.concat(F.lit("u"), drawn("user", 40)).alias("user"),
        F.concat(F.lit("i"), drawn("item", 30)).alias("item"),
    )
    likes = F.pmod(F.xxhash64("user", "item"), F.lit(2)) == 0
    chance = F.when(likes, 0.8).otherwise(0.2) + F.when(F.col("age") < 30, 0.15).otherwise(-0.05)
    return df.withColumn("clicked", (drawn("luck", 1000) / 1000 < chance).cast("float"))


def load(spark: SparkSession, args: argparse.Namespace) -> DataFrame:
    """Load the columns that the model uses: numbers as float, categories as string, the label as float 0 or 1."""
    from pyspark.sql import functions as F

    df = spark.read.format(args.format).load(args.data) if args.data else generated_clicks(spark, args.rows)
    columns = [F.col(n).cast("float").alias(n) for n in [*args.numbers, args.label]]
    columns += [F.coalesce(F.col(n).cast("string"), F.lit("")).alias(n) for n in args.categories]
    return df.select(columns).na.drop()


def describe(train: DataFrame, numbers: list[str]) -> dict[str, Any]:
    """Compute mean and variance of each number, for normalization."""
    from pyspark.sql import functions as F

    moments = [f(n).alias(f"{k}_{n}") for n in numbers for k, f in (("mean", F.avg), ("variance", F.var_pop))]
    row = train.agg(F.count("*").alias("rows"), *moments).first()
    assert row is not None
    known = {k: {n: float(row[f"{k}_{n}"] or 0.0) for n in numbers} for k in ("mean", "variance")}
    return {"rows": int(row["rows"]), **known}


def build_model(args: dict[str, Any]) -> tuple[Any, list[Any], list[Any]]:
    """Build the model; return it, the variables of its wide part and the variables of its deep part."""
    import keras

    inputs = {n: keras.Input((1,), name=n, dtype="float32") for n in args["numbers"]}
    inputs |= {n: keras.Input((1,), name=n, dtype="string") for n in args["categories"]}
    bins = args["bins"]
    hashed = {n: keras.layers.Hashing(bins, name=f"hash_{n}")(inputs[n]) for n in args["categories"]}
    crossed = {
        "*".join(names): keras.layers.HashedCrossing(bins)(tuple(inputs[n] for n in names)) for names in args["crosses"]
    }

    def looked_up(ids: Any, width: int, name: str) -> Any:
        return keras.layers.Flatten()(keras.layers.Embedding(bins, width, name=name.replace("*", "_by_"))(ids))

    linear = [looked_up(ids, 1, f"wide_{n}") for n, ids in (hashed | crossed).items()]
    x: Any = [looked_up(ids, args["width"], f"deep_{n}") for n, ids in hashed.items()]
    for n in args["numbers"]:
        # Rescaling has no variables. keras.layers.Normalization would put useless variables on the parameter servers.
        scale = max(args["variance"][n], 1e-12) ** 0.5
        x.append(keras.layers.Rescaling(1 / scale, -args["mean"][n] / scale, name=f"scale_{n}")(inputs[n]))
    x = keras.layers.Concatenate()(x)
    for i, units in enumerate(args["units"]):
        x = keras.layers.Dense(units, activation="relu", name=f"deep_layer_{i}")(x)
    logit = keras.layers.Add()([*linear, keras.layers.Dense(1, name="deep_logit")(x)])
    model = keras.Model(inputs, {"probability": keras.layers.Activation("sigmoid")(logit)})
    wide = [v for layer in model.layers if layer.name.startswith("wide_") for v in layer.trainable_variables]
    deep = [v for layer in model.layers if layer.name.startswith("deep_") for v in layer.trainable_variables]
    return model, wide, deep


def train_chief(args: dict[str, Any], ctx: tfspark.NodeContext) -> dict[str, Any]:
    """Train the model; runs in the chief. The workers run the steps, the parameter servers hold the variables."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(args["seed"])
    with ctx.strategy().scope():
        model, wide, deep = build_model(args)
        parts = [(keras.optimizers.Ftrl(args["wide_rate"]), wide), (keras.optimizers.Adam(args["deep_rate"]), deep)]
        for optimizer, variables in parts:
            optimizer.build(variables)
        total, rows = tf.Variable(0.0), tf.Variable(0.0)

    def step(features: Any, label: Any) -> None:
        with tf.GradientTape() as tape:
            probability = model({n: t[:, None] for n, t in features.items()}, training=True)["probability"]
            losses = keras.losses.binary_crossentropy(label[:, None], probability)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [*wide, *deep])
        for (optimizer, variables), g in zip(parts, (gradients[: len(wide)], gradients[len(wide) :]), strict=True):
            optimizer.apply_gradients(zip(g, variables, strict=True))
        total.assign_add(tf.reduce_sum(losses))
        rows.assign_add(tf.cast(tf.size(losses), tf.float32))

    def data() -> Any:
        return ctx.dataset(args["batch_size"], label=args["label"], shuffle=True)

    loss, read = [], []
    for epoch in ctx.epochs():
        total.assign(0.0)
        rows.assign(0.0)
        read.append(ctx.train_epoch(step, data))
        loss.append(float(total.numpy() / rows.numpy()))
        ctx.report(epoch + 1, flush=True, loss=loss[-1])
    return {"model": ctx.export(model, args["model"]), "loss": loss, "rows_per_epoch": read}


def run(spark: SparkSession, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Train and test the model; return the result of the run."""
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.sql import functions as F

    rows = load(spark, args).cache()
    bucket = F.pmod(F.xxhash64(*rows.columns), F.lit(10))
    train, test = rows.where(bucket != 0), rows.where(bucket == 0)
    names = ("numbers", "categories", "crosses", "label", "bins", "width", "units", "batch_size")
    chief_args = {n: getattr(args, n) for n in (*names, "wide_rate", "deep_rate", "seed")}
    chief_args |= {**describe(train, args.numbers), "model": str(directory / "model")}
    with tfspark.Cluster(spark, train_chief, chief_args, workers=args.workers, ps=args.ps) as cluster:
        cluster.feed(train.repartition(4 * args.workers), epochs=args.epochs)
    result = cluster.results["chief", 0]
    scored = tfspark.predict(test, result["model"]).withColumn("score", F.col("probability").cast("double"))
    evaluator = BinaryClassificationEvaluator(labelCol=args.label, rawPredictionCol="score")
    return {**result, "auc": float(evaluator.evaluate(scored))}


def names(text: str) -> list[str]:
    """Parse names that are separated by commas."""
    return [n for n in text.split(",") if n]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", help="path that Spark can read; by default clicks are generated")
    parser.add_argument("--format", default="tfrecord", help="Spark's name of the format of --data (%(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="clicks to generate (%(default)s)")
    parser.add_argument("--label", default="clicked", help="column with 0 or 1 (%(default)s)")
    parser.add_argument("--numbers", type=names, default=["age", "price"], help="columns, separated by commas")
    parser.add_argument("--categories", type=names, default=["user", "item"], help="columns, separated by commas")
    parser.add_argument("--crosses", type=names, default=["user*item"], help="crossed categories, such as a*b,a*b*c")
    parser.add_argument("--output", required=True, type=jobs.directory, help="directory shared by driver and executors")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="run id, such as a date (%(default)s)")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--workers", type=int, default=2, help="TensorFlow workers (%(default)s)")
    parser.add_argument("--ps", type=int, default=1, help="parameter servers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256, help="rows per step (%(default)s)")
    parser.add_argument("--bins", type=int, default=10_000, help="hash bins per table (%(default)s)")
    parser.add_argument("--width", type=int, default=8, help="size of the embeddings (%(default)s)")
    parser.add_argument("--units", type=lambda t: [int(n) for n in names(t)], default=[64, 32], help="layer sizes")
    parser.add_argument("--wide-rate", type=float, default=0.5, help="learning rate of FTRL (%(default)s)")
    parser.add_argument("--deep-rate", type=float, default=3e-3, help="learning rate of Adam (%(default)s)")
    parser.add_argument("--min-auc", type=float, default=0.0, help="exit code 3 below this value (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    args.crosses = [cross.split("*") for cross in args.crosses]
    unknown = {n for cross in args.crosses for n in cross} - set(args.categories)
    if unknown or any(len(cross) < 2 for cross in args.crosses):
        parser.error(f"--crosses wants two or more of --categories with * between; unknown are {sorted(unknown)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    directory = jobs.RunDirectory("wide_and_deep", args.output, args.run_id, writes=["model"])
    outcome = directory.result()
    if outcome is None:
        directory.claim()
        with jobs.session("wide_and_deep", args.master) as spark:
            outcome = run(spark, args, directory.path)
        directory.finish(outcome)
    logger.info("%s", json.dumps(outcome, indent=1))
    return jobs.ExitCode.DONE if outcome["auc"] >= args.min_auc else jobs.ExitCode.BELOW_BAR


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
