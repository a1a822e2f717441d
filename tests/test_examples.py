"""The examples in docstrings of public names: every name has one, and all of them run in a real session or cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import docstring_examples as ex
import pytest

import tfspark

SHAPES = {"x": 2}

TOGETHER = (
    # Two workers train together; for each of these the driver feeds one epoch.
    *("NodeContext", "NodeContext.num_workers", "NodeContext.strategy", "NodeContext.synchronize"),
    *("NodeContext.dataset", "NodeContext.distribute", "NodeContext.average_loss", "NodeContext.fed_epochs"),
    *("NodeContext.fit", "NodeContext.evaluate", "NodeContext.export", "NodeContext.epochs"),
)
UNFED = ("NodeContext.is_chief", "NodeContext.stopping", "NodeContext.report")
ALONE = ("NodeContext.stream", "NodeContext.record_batches")
CHECKPOINTS = {"worker": "NodeContext.checkpoint", "evaluator": "NodeContext.new_checkpoints"}
LONE = ("NodeContext.rows", "NodeContext.serve")
SERVERS = ("NodeContext.coordinator", "NodeContext.train_epoch")
STARTED = (
    "start",
    "nodes",
    "status",
    "dump",
    "tensorboard_url",
    "feed",
    "feed_stream",
    "wait",
    "results",
    "startup_seconds",
    "stop",
)
CLUSTER = tuple(f"Cluster.{m}" for m in STARTED)


def node_example(name: str, args: Any, ctx: Any) -> str:
    """Run the ``main`` of an example in a node."""
    import keras
    import numpy as np
    import tensorflow as tf

    def build_model() -> Any:
        model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
        return model

    namespace = {"keras": keras, "np": np, "tf": tf, "build_model": build_model, "__name__": "__main__"}
    exec(args["sources"][name], namespace)
    return str(namespace["main"](args, ctx))


@pytest.fixture
def node_main() -> Any:
    """Return ``main`` for a cluster: it runs the examples that ``args["names"]`` gives for the node."""

    def main(args: Any, ctx: Any) -> dict[str, str]:
        names = args["names"].get((ctx.role, ctx.index), args["names"].get(ctx.role, ()))
        return {name: node_example(name, args, ctx) for name in names}

    return main


def node_args(tmp_path: Path, **names: Any) -> dict[str, Any]:
    own = {n.removeprefix("tfspark."): ex.source_of(o) for n, o in ex.public().items() if "NodeContext" in n}
    return {"sources": own, "names": names, "directory": str(tmp_path / "exported")}


@pytest.fixture
def df(spark: Any) -> Any:
    return spark.range(0, 64, 1, 4).selectExpr("array(float(id % 7), float(id % 5)) x", "float(id % 3) y")


def test_every_public_name_has_an_example() -> None:
    assert [name for name, o in ex.public().items() if not ex.examples_of(o)] == []


def test_an_example_that_prints_something_else_fails() -> None:
    def wrong() -> None:
        """Return nothing.

        >>> 1 + 1
        3
        """

    def missing() -> None:
        """Return nothing."""

    with pytest.raises(AssertionError, match=r"- 3\s+\+ 2"):
        ex.run("wrong", wrong, {})
    assert ex.examples_of(missing) == [] and len(ex.examples_of(wrong)) == 1


def test_every_example_is_run() -> None:
    """By the tests below."""
    names = {n.removeprefix("tfspark.") for n in ex.public()}
    nodes = {n for n in names if n.startswith("NodeContext")}
    assert nodes == {*TOGETHER, *UNFED, *ALONE, *CHECKPOINTS.values(), *SERVERS, *LONE}
    assert {n for n in names if n.startswith("Cluster.")} == {*CLUSTER, "Cluster.predict", "Cluster.ui_url"}


def test_examples_of_workers_that_train_together(spark: Any, df: Any, node_main: Any, tmp_path: Path) -> None:
    args = node_args(tmp_path, worker=[*UNFED, *TOGETHER])
    with tfspark.Cluster(spark, node_main, args, workers=2, progress=False) as cluster:
        cluster.feed(df, name="test", shapes=SHAPES)
        for _ in TOGETHER:
            cluster.feed(df, shapes=SHAPES)
    said = cluster.results["worker", 0]
    assert list(said) == [*UNFED, *TOGETHER]
    assert float(said["NodeContext"]) >= 0 and float(said["NodeContext.evaluate"]) >= 0
    assert said["NodeContext.export"] == str(tmp_path / "exported" / "1")
    assert said["NodeContext.distribute"] == "1"


def test_examples_of_workers_that_read_rows_alone(spark: Any, df: Any, node_main: Any, tmp_path: Path) -> None:
    args = node_args(tmp_path)
    args["names"] = {("worker", i): [name] for i, name in enumerate(ALONE)}
    with tfspark.Cluster(spark, node_main, args, workers=2, strategy="none", progress=False) as cluster:
        report = cluster.feed(df, shapes=SHAPES)
    read = cluster.results["worker", 1]["NodeContext.record_batches"]
    assert int(read) == report.rows_by_worker["worker", 1] > 0


def test_an_example_of_pickled_rows(spark: Any, node_main: Any, tmp_path: Path) -> None:
    args = node_args(tmp_path, worker=["NodeContext.rows"])
    with tfspark.Cluster(spark, node_main, args, workers=1, progress=False) as cluster:
        cluster.feed(spark.sparkContext.parallelize(["b", "a"], 1), pickled=True)
    assert cluster.results["worker", 0] == {"NodeContext.rows": "['a', 'b']"}


def test_examples_of_checkpoints(spark: Any, df: Any, node_main: Any, tmp_path: Path) -> None:
    args = node_args(tmp_path, **{role: [name] for role, name in CHECKPOINTS.items()})
    options: dict[str, Any] = {"checkpoint_dir": str(tmp_path / "checkpoints"), "evaluator": True, "progress": False}
    with tfspark.Cluster(spark, node_main, args, workers=1, **options) as cluster:
        cluster.feed(df, epochs=2, shapes=SHAPES)
    assert len(cluster.results) == 2
    saved = sorted(p.name for p in (tmp_path / "checkpoints").glob("epoch-*"))
    assert saved == ["epoch-000001", "epoch-000002"]


def test_examples_of_parameter_servers(spark: Any, df: Any, node_main: Any, tmp_path: Path) -> None:
    args = node_args(tmp_path, chief=list(SERVERS))
    with tfspark.Cluster(spark, node_main, args, workers=1, ps=1, progress=False) as cluster:
        cluster.feed(df, epochs=2, shapes=SHAPES)
    assert cluster.results["chief", 0] == {"NodeContext.coordinator": "42", "NodeContext.train_epoch": "None"}


def test_an_example_of_serving(spark: Any, df: Any, node_main: Any, tmp_path: Path) -> None:
    args = node_args(tmp_path, worker=["NodeContext.serve"])
    with tfspark.Cluster(spark, node_main, args, workers=1, progress=False) as cluster:
        assert len(cluster.predict(df, "score float", shapes=SHAPES).collect()) == 64
    assert cluster.results["worker", 0] == {"NodeContext.serve": "64"}


def test_examples_of_the_driver(spark: Any, tmp_path: Path) -> None:
    """All but those of a node and of jobs, in an order in which they can share names."""
    import os

    import keras

    from tfspark import errors, functions
    from tfspark.ml import KerasEstimator, KerasModel, KerasTrainingSummary
    from tfspark.saved_models.export import export_model
    from tfspark.tensorflow_options import TensorFlowOptions

    def main(args: Any, ctx: Any) -> list[int]:
        rows = ctx.dataset(16, label="y")
        return [sum(len(y) for _, y in rows) for _ in ctx.epochs()]

    df = spark.createDataFrame([([1.0, 2.0], 3.0), ([0.0, 1.0], 1.0)], "x array<float>, y float").coalesce(1)
    df.write.parquet(str(tmp_path / "arriving"))
    export_model(keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)]), str(tmp_path / "exported"))
    given = {
        **{"__name__": "__main__", "spark": spark, "df": df, "main": main, "tfspark": tfspark, "keras": keras},
        **{"os": os, "Path": Path, "directory": str(tmp_path), "model_directory": str(tmp_path / "exported")},
        **{n: getattr(errors, n) for n in errors.__all__},
        **{n: getattr(functions, n) for n in functions.__all__},
        **{n: getattr(tfspark, n) for n in ("Cluster", "FeedReport", "add_connector", "run")},
        **{o.__name__: o for o in (KerasEstimator, KerasModel, KerasTrainingSummary, export_model, TensorFlowOptions)},
    }
    public = ex.public()
    there = [n for n in public if not n.startswith(("tfspark.jobs.", "tfspark.NodeContext"))]
    started = [f"tfspark.{n}" for n in CLUSTER]
    shared = dict(given)
    for name in [*started, *(n for n in there if n not in started)]:
        # Methods use the names of their class's example, and the classes of tfspark.ml those of each other.
        if name.rpartition(".")[0] not in (*public, "tfspark.ml"):
            shared = dict(given)
        ex.run(name, public[name], shared)


def test_examples_of_jobs() -> None:
    program = Path(__file__).parent / "programs" / "job_examples.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [n for n in ex.public() if n.startswith("tfspark.jobs.")]
