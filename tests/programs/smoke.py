"""Run each part of tfspark once, small, in one Spark session: what every supported set of versions must pass.

    python smoke.py [--remote URL] [--master MASTER] [STAGE ...]

Prints one line for each stage, then a JSON summary. Exits with 1 if a stage failed. A stage that the session cannot
do is listed as skipped, with the reason. With ``--remote`` the session is one of Spark Connect.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pandas as pd

import tfspark

ROWS = 64


class Skip(Exception):
    """The session cannot do a stage; the text says why."""


@dataclass
class Place:
    """What stages work with: a session, and a directory for their files."""

    spark: Any
    directory: str
    connect: bool

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def line(self) -> Any:
        """Return rows of a line: y = 2 x + 1."""
        return self.spark.range(0, ROWS, 1, 4).selectExpr(
            "id", f"float(id) / {ROWS}f as x", f"float(id) / {ROWS}f * 2f + 1f as y"
        )


def fit_line(args: Any, ctx: Any) -> dict[str, Any]:
    import keras

    x = keras.Input((1,), name="x")
    model = keras.Model({"x": x}, keras.layers.Dense(1, name="y")(x))
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    history = ctx.fit(model, batch_size=16, label="y")
    return {"loss": history["loss"][-1], "model": ctx.export(model, args["export"])}


def read_rows(args: Any, ctx: Any) -> list[int]:
    return [int(i) for batch in ctx.stream(8) for i in batch["id"]]


def ragged_lengths(args: Any, ctx: Any) -> list[int]:
    return [int(n) for batch in ctx.stream(8) for n in batch["v"].row_lengths()]


def fail(args: Any, ctx: Any) -> None:
    raise ValueError("the model has exploded")


def build_line() -> Any:
    import keras

    return keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])


def tfrecord(place: Place) -> None:
    place.line().write.format("tfrecord").save(place.path("tfrecord"))
    df = place.spark.read.format("tfrecord").load(place.path("tfrecord"))
    assert sorted(df.columns) == ["id", "x", "y"], df.columns
    same = place.line().join(df, ["id", "x", "y"]).count()
    assert same == ROWS, f"{same} of {ROWS} rows came back as they were"


def train(place: Place, workers: int) -> None:
    export = place.path(f"line{workers}")
    with tfspark.Cluster(place.spark, fit_line, {"export": export}, workers=workers) as cluster:
        report = cluster.feed(place.line().select("x", "y"), epochs=20)
    assert report.rows == ROWS, report
    losses = {node: result["loss"] for node, result in cluster.results.items()}
    assert len(losses) == workers and all(loss < 0.05 for loss in losses.values()), losses


def one_worker(place: Place) -> None:
    train(place, 1)


def two_workers(place: Place) -> None:
    train(place, 2)


def predict(place: Place) -> None:
    rows = tfspark.predict(place.line(), place.path("line1"), outputs="prediction", keep=["id", "y"]).collect()
    assert sorted(r.id for r in rows) == list(range(ROWS)), "each row has one prediction"
    assert all(abs(r.prediction - r.y) < 0.5 for r in rows), rows[:3]
    score = tfspark.predict_udf(place.path("line1"))
    same = place.line().select("id", score("x").alias("score")).collect()
    assert {r.id: r.score for r in same} == {r.id: r.prediction for r in rows}


def rdd(place: Place) -> None:
    if place.connect:
        raise Skip("Spark Connect has no RDDs")
    data = place.spark.sparkContext.parallelize([{"id": i} for i in range(ROWS)], 4)
    with tfspark.Cluster(place.spark, read_rows, {}, workers=1) as cluster:
        cluster.feed(data)
    assert sorted(cluster.results["worker", 0]) == list(range(ROWS))


def ragged(place: Place) -> None:
    df = place.spark.range(0, ROWS, 1, 4).selectExpr("sequence(0, id % 5) as v")
    with tfspark.Cluster(place.spark, ragged_lengths, {}, workers=1) as cluster:
        cluster.feed(df, shapes={"v": None})
        cluster.feed(pd.DataFrame({"v": [[0] * (i % 3 + 1) for i in range(ROWS)]}), shapes={"v": None})
    lengths = [i % n + 1 for n in (5, 3) for i in range(ROWS)]
    assert sorted(cluster.results["worker", 0]) == sorted(lengths)


def estimator(place: Place) -> None:
    from tfspark.ml import KerasEstimator, KerasModel

    columns = {"featuresCol": "x", "labelCol": "y", "loss": "mse", "optimizer": "sgd"}
    made = KerasEstimator(model=build_line, **columns, learningRate=0.5, epochs=20, batchSize=16)
    if place.connect:
        # Files are written by the JVM of a classic session.
        model = made.fit(place.line())
    else:
        made.save(place.path("estimator"))
        model = KerasEstimator.load(place.path("estimator")).fit(place.line())
        model.save(place.path("model"))
        model = KerasModel.load(place.path("model"))
    rows = model.transform(place.line()).collect()
    assert len(rows) == ROWS and all(abs(r.prediction - r.y) < 0.5 for r in rows), rows[:3]


def stream(place: Place) -> None:
    source = place.path("stream")
    place.spark.range(0, ROWS, 1, 4).write.parquet(source)
    rows = place.spark.readStream.schema("id long").option("maxFilesPerTrigger", 1).parquet(source)
    with tfspark.Cluster(place.spark, read_rows, {}, workers=1) as cluster:
        query = cluster.feed_stream(rows, trigger={"availableNow": True})
        assert query.awaitTermination(120), "the stream did not end"
        assert query.exception() is None, query.exception()
    assert sorted(cluster.results["worker", 0]) == list(range(ROWS))


def failure(place: Place) -> None:
    try:
        tfspark.run(place.spark, fail, {}, workers=2)
    except tfspark.errors.NodeFailed as e:
        assert "the model has exploded" in str(e), e
    else:
        raise AssertionError("a failed node was not reported")


STAGES: dict[str, Callable[[Place], None]] = {
    f.__name__: f for f in (tfrecord, one_worker, two_workers, predict, rdd, ragged, estimator, stream, failure)
}


def run_stage(stage: Callable[[Place], None], place: Place) -> dict[str, Any]:
    """Run a stage and say how it went."""
    begin = time.monotonic()
    said = {"result": "ok", "why": ""}
    try:
        stage(place)
    except Skip as e:
        said = {"result": "skipped", "why": str(e)}
    except Exception as e:
        traceback.print_exc()
        said = {"result": "failed", "why": f"{type(e).__name__}: {e}".splitlines()[0]}
    return {**said, "seconds": round(time.monotonic() - begin, 1)}


def versions(spark: Any) -> dict[str, str]:
    """Return the versions that the stages ran with."""
    packages = ("tensorflow-cpu", "tensorflow", "keras", "numpy", "pandas", "pyarrow")
    found = {"python": platform.python_version(), "spark": spark.version}
    for package in packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def session(remote: str | None, master: str) -> Any:
    """Return the session that was asked for."""
    quiet = {"spark.ui.enabled": "false", "spark.log.level": "ERROR"}
    return tfspark.session("smoke", remote=remote, **quiet) if remote else tfspark.session("smoke", master, **quiet)


def main() -> int:
    """Run the stages; return the exit code."""
    parser = argparse.ArgumentParser(description="Run each part of tfspark once.")
    parser.add_argument("--remote", help="URL of a Spark Connect server, or local[N]")
    parser.add_argument("--master", default="local[4]")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all if none is given")
    args = parser.parse_args()
    unknown = set(args.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}; the stages are {', '.join(STAGES)}")
    spark = session(args.remote, args.master)
    summary: dict[str, Any] = {"versions": versions(spark), "session": "connect" if args.remote else "classic"}
    with tempfile.TemporaryDirectory(prefix="smoke-") as directory:
        place = Place(spark, directory, bool(args.remote))
        for name in args.stages or STAGES:
            summary[name] = run_stage(STAGES[name], place)
            print(
                f"{name:12} {summary[name]['result']:8} {summary[name]['seconds']:6} s  {summary[name]['why']}",
                flush=True,
            )
    spark.stop()
    print(json.dumps(summary))
    return int(any(summary[name]["result"] == "failed" for name in args.stages or STAGES))


if __name__ == "__main__":
    sys.exit(main())
