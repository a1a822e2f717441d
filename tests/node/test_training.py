"""Keras 3 on several workers, fed from Spark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfspark
from tfspark.errors import NodeFailed


def train(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    import keras

    keras.utils.set_random_seed(1)
    with ctx.strategy().scope():
        inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((3,), name="b")}
        x = keras.layers.Concatenate()(list(inputs.values()))
        model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="zeros")(x))
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    history = ctx.fit(model, batch_size=32, label="y")
    path = ctx.export(model, args["export_dir"]) if args.get("export_dir") else None
    return {"weights": model.get_weights(), "loss": history["loss"], "path": path}


def data(spark: Any, rows: int, partitions: int) -> Any:
    return spark.range(0, rows, 1, partitions).selectExpr(
        "float(id % 7) / 7 as a",
        "array(float(id % 3), float(id % 5), 1.0f) as b",
        "float(id % 7) / 7 + 2 * float(id % 3) - 1 as y",
    )


def test_workers_end_with_the_same_weights_and_the_export_predicts(spark: Any, tmp_path: Any, monkeypatch: Any) -> None:
    args = {"export_dir": str(tmp_path / "model")}
    df = data(spark, 2000, 5)
    with tfspark.Cluster(spark, train, args, workers=2) as cluster:
        cluster.feed(df, epochs=3, shapes={"b": 3})
    first, second = (cluster.results["worker", i] for i in (0, 1))
    for a, b in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert first["loss"][-1] < first["loss"][0] / 2
    assert first["path"] == second["path"] == str(tmp_path / "model" / "1")
    # A relative path is the driver's; Spark's Python workers have another working directory by now.
    monkeypatch.chdir(tmp_path)
    rows = tfspark.predict(df.limit(50), "model").collect()
    kernel, bias = first["weights"]
    for row in rows:
        expected = np.array([row["a"], *row["b"]]) @ kernel[:, 0] + bias[0]
        np.testing.assert_allclose(row["output_0"], expected, rtol=1e-4, atol=1e-5)


def test_a_single_worker_trains_with_the_default_strategy(spark: Any) -> None:
    with tfspark.Cluster(spark, train, {}, workers=1) as cluster:
        cluster.feed(data(spark, 500, 2), epochs=2, shapes={"b": 3})
    assert cluster.results["worker", 0]["loss"][1] < cluster.results["worker", 0]["loss"][0]


def export_twice(args: dict[str, Any], ctx: Any) -> list[str]:
    import keras

    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])
    return [ctx.export(model, args["export_dir"]) for _ in range(2 if ctx.is_chief else args["others"])]


def test_each_export_has_its_path_on_every_node(spark: Any, tmp_path: Path) -> None:
    args = {"export_dir": str(tmp_path), "others": 2}
    results = tfspark.run(spark, export_twice, args, workers=2)
    assert results["worker", 1] == results["worker", 0] == [str(tmp_path / "1"), str(tmp_path / "2")]


def test_a_node_that_exports_more_often_than_the_chief_fails_when_the_chief_has_returned(
    spark: Any, tmp_path: Path
) -> None:
    args = {"export_dir": str(tmp_path), "others": 3}
    with pytest.raises(NodeFailed, match=r"worker 1 called ctx.export for .* 3 time\(s\), the chief less often"):
        tfspark.run(spark, export_twice, args, workers=2)


def train_filled(args: dict[str, Any], ctx: Any) -> str:
    import keras

    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    weights = {"kernel_initializer": "ones", "trainable": False}
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1, **weights)(keras.layers.Concatenate()([a, b])))
    model.compile(optimizer="sgd", loss="mse")
    ctx.fit(model, batch_size=8, label="y")
    path: str = ctx.export(model, args["export_dir"])
    return path


def test_what_replaced_nulls_in_training_replaces_them_in_predictions(spark: Any, tmp_path: Path) -> None:
    df = spark.sql("select * from values (1.0f, float(null), 0.0f), (float(null), 2.0f, 0.0f) as t(a, b, y)")
    with tfspark.Cluster(spark, train_filled, {"export_dir": str(tmp_path)}, workers=1) as cluster:
        cluster.feed(df, fill={"a": np.float32(0.5), "b": -3})
    card = json.loads((tmp_path / "1" / "assets.extra" / "model_card.json").read_text())
    assert card["data"]["fill"] == {"a": 0.5, "b": -3}

    def predicted(**options: Any) -> list[float]:
        return sorted(row["output_0"] for row in tfspark.predict(df, str(tmp_path), **options).collect())

    assert predicted() == [-2.0, 2.5]
    assert predicted(fill={"a": 1.0}) == [-2.0, 3.0]
    with pytest.raises(Exception, match=r"Column 'a' holds 1 null"):
        predicted(fill={"a": None})
