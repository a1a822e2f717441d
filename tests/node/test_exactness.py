"""Several workers train every Keras model as one process does on the same global batches."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfspark

BATCH = 16
EPOCHS = 2
VALIDATION_ROWS = 37
SHAPES = {"x": 4, "t": 6}


def names() -> list[str]:
    """Read the names of the cases without TensorFlow, which this process needs only to compare."""
    lines = (Path(__file__).parents[1] / "keras_cases.py").read_text().splitlines()
    return [b.split()[1].split("(")[0] for a, b in itertools.pairwise(lines) if a == "@case"]


def fit_options(options: dict[str, Any]) -> dict[str, Any]:
    given = {k: v for k, v in options.items() if k in ("class_weight",)}
    return {**given, "callbacks": options["callbacks"]() if "callbacks" in options else []}


def outcome(model: Any, history: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    iterations = None if optimizer is None else int(optimizer.iterations.numpy())
    return {"weights": model.get_weights(), "history": history, "iterations": iterations}


def train(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Train each case by ``ctx.fit``."""
    import sys

    sys.path.insert(0, args["tests"])
    import keras
    import keras_cases as k

    found: dict[str, Any] = {"ids": [b["id"].numpy() for b in ctx.dataset(BATCH, ["id"])]}
    for name in args["cases"]:
        keras.utils.set_random_seed(7)
        model, options = k.CASES[name]()
        label = options.get("label", "y")
        validation = None
        if options.get("validates"):
            validation = ctx.dataset(BATCH, ["x"], name="validation", label=label)
        history = ctx.fit(
            model,
            batch_size=BATCH,
            epochs=options.get("epochs", EPOCHS),
            label=label,
            weight=options.get("weight"),
            columns=k.columns_of(options),
            map_batch=k.ARRANGE[options["arrange"]][1] if "arrange" in options else None,
            validation_data=validation,
            **fit_options(options),
        )
        found[name] = outcome(model, history, model.optimizer)
    return found


def one_process(name: str, ids: list[np.ndarray], data: dict[str, np.ndarray]) -> dict[str, Any]:
    """Train a case on batches that each hold the rows of these ids."""
    import keras
    import keras_cases as k
    import tensorflow as tf

    keras.utils.set_random_seed(7)
    model, options = k.CASES[name]()

    def dataset(batches: list[dict[str, np.ndarray]]) -> tf.data.Dataset:
        targets = [c for c in (options.get("label", "y"), options.get("weight")) if c is not None]
        columns = k.columns_of(options)

        def parts(batch: dict[str, np.ndarray]) -> Any:
            features = {c: batch[c] for c in columns}
            return (features, *(batch[c] for c in targets)) if targets else features

        spec = tf.nest.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), parts(data))
        made = tf.data.Dataset.from_generator(lambda: map(parts, batches), output_signature=spec)
        if "arrange" in options:
            made = made.map(k.ARRANGE[options["arrange"]][1])
        # Of unknown length Keras counts an iteration too many in each epoch.
        return made.apply(tf.data.experimental.assert_cardinality(len(batches)))

    validation = dataset([k.rows(VALIDATION_ROWS, seed=5)]) if options.get("validates") else None
    history = model.fit(
        dataset([{c: v[i] for c, v in data.items()} for i in ids]),
        epochs=options.get("epochs", EPOCHS),
        validation_data=validation,
        verbose=0,
        **fit_options(options),
    ).history
    return outcome(model, history, model.optimizer)


def frame(spark: Any, data: dict[str, np.ndarray], sizes: list[int]) -> Any:
    """Return a DataFrame whose partition i holds sizes[i] rows."""
    from pyspark.sql import types as t

    kinds = {"int64": t.LongType(), "int32": t.IntegerType(), "float32": t.FloatType()}
    fields = [(c, kinds[v.dtype.name], v.ndim) for c, v in data.items()]
    schema = t.StructType([t.StructField(c, t.ArrayType(k) if n > 1 else k) for c, k, n in fields])
    rows = list(zip(*(v.tolist() for v in data.values()), strict=True))
    ends = list(itertools.accumulate(sizes))
    parts = [rows[end - n : end] for n, end in zip(sizes, ends, strict=True)]
    return spark.createDataFrame(spark.sparkContext.parallelize(parts, len(parts)).flatMap(lambda p: p), schema)


def global_batches(by_worker: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate([i for i in step if i is not None]) for step in itertools.zip_longest(*by_worker) if step]


def scale(expected: list[np.ndarray]) -> float:
    return max(float(np.abs(a).max()) for a in expected if a.size)


@pytest.fixture(scope="module")
def trained(spark: Any, request: Any) -> Any:
    """Train all cases once for sizes of partitions; returns the outcome of each worker, and the global batches."""
    import sys

    sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
    import keras_cases as k

    sizes = request.param
    data = k.rows(sum(sizes))
    validation = frame(spark, k.rows(VALIDATION_ROWS, seed=5), [20, 17])
    epochs = 1 + sum(k.CASES[n]()[1].get("epochs", EPOCHS) for n in names())
    args = {"tests": os.path.dirname(os.path.dirname(__file__)), "cases": names()}
    with tfspark.Cluster(spark, train, args, workers=len(sizes)) as cluster:
        cluster.feed(validation, name="validation", shapes=SHAPES)
        cluster.feed(frame(spark, data, sizes), epochs=epochs, shapes=SHAPES)
    found = [cluster.results["worker", i] for i in range(len(sizes))]
    ids = global_batches([r["ids"] for r in found])
    assert sorted(np.concatenate(ids)) == list(range(sum(sizes)))
    return found, ids, data


SIZES = [
    [50, 20, 1],
    *(pytest.param(s, marks=pytest.mark.exactness) for s in ([64, 64], [100, 28], [40, 0], [40])),
]


@pytest.mark.parametrize("trained", SIZES, indirect=True, ids=lambda s: "-".join(map(str, s)))
@pytest.mark.parametrize("name", names())
def test_workers_train_as_one_process(trained: Any, name: str) -> None:
    from keras_cases import NOT_EQUAL

    found, ids, data = trained
    first, *others = (worker[name] for worker in found)
    for other in others:
        for a, b in zip(first["weights"], other["weights"], strict=True):
            np.testing.assert_array_equal(a, b, err_msg="the workers differ")
        np.testing.assert_equal(other["history"], first["history"])
    if NOT_EQUAL.get(name) == "state":
        assert first["history"]["loss"][-1] < first["history"]["loss"][0]
        return
    expected = one_process(name, ids, data)
    if NOT_EQUAL.get(name) == "loss":
        np.testing.assert_allclose(first["history"]["loss"], expected["history"]["loss"], rtol=0.05)
        assert first["history"]["loss"][-1] < first["history"]["loss"][0]
        return
    assert first["iterations"] == expected["iterations"]
    atol = 1e-4 * scale(expected["weights"]) if name in NOT_EQUAL else 1e-6
    for a, b in zip(first["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)
    assert set(first["history"]) == set(expected["history"])
    for key, values in expected["history"].items():
        for mine, value in zip(first["history"][key], values, strict=True):
            compare(mine, value, key)


def compare(mine: Any, value: Any, key: str) -> None:
    if isinstance(value, dict):
        for k, v in value.items():
            compare(mine[k], v, k)
    else:
        np.testing.assert_allclose(mine, value, rtol=1e-4, atol=1e-6, err_msg=key)
