"""Columns become what a Keras model takes, whatever way it was built."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.ml.batches import as_input, batch_function, output_names
from tfspark.ml.packing import pack
from tfspark.ml.plan import BatchPlan, ModelPlan
from tfspark.ml.training import compiled_model

ROWS = 24


def batches() -> Any:
    random = np.random.default_rng(1)
    columns = {
        "x": random.normal(size=(ROWS, 2)),
        "image": random.normal(size=(ROWS, 16)).astype("float32"),
        "s": np.array([b"a", b"b"] * (ROWS // 2)),
        "y": random.normal(size=ROWS).astype("float32"),
        "z": random.normal(size=(ROWS, 3)).astype("float32"),
        "w": np.ones(ROWS),
    }
    return tf.data.Dataset.from_tensor_slices(columns).batch(10)


class Subclassed(keras.Model):
    """Takes and gives dicts, and says neither of what."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"out": self.dense(inputs["a"]) * keras.ops.mean(inputs["b"])}


def functional(inputs: Any, outputs: Any) -> Any:
    first, *_ = keras.tree.flatten(inputs)
    made = {"p": keras.layers.Dense(1, name="p")(first), "q": keras.layers.Dense(3, name="q")(first)}
    return keras.Model(inputs, keras.tree.map_structure(lambda name: made[name], outputs))


def two_inputs() -> list[Any]:
    return [keras.Input((2,), name="a"), keras.Input((4, 4, 1), name="b")]


BOTH = {"a": "x", "b": "image"}
MODELS: dict[str, tuple[Any, BatchPlan]] = {
    "sequential": (lambda: keras.Sequential([keras.layers.Dense(1)]), BatchPlan("x", "y", "w")),
    "image": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]),
        BatchPlan("image", "y"),
    ),
    "one to one": (lambda: functional(keras.Input((2,), name="a"), "p"), BatchPlan("x", "y")),
    "by names": (lambda: functional(keras.Input((2,), name="a"), "p"), BatchPlan({"a": "x"}, {"p": "y"})),
    "lists": (lambda: functional(two_inputs(), ["p", "q"]), BatchPlan(BOTH, {"q": "z", "p": "y"}, "w")),
    "dicts": (
        lambda: functional({t.name: t for t in two_inputs()}, {"p": "p", "q": "q"}),
        BatchPlan(BOTH, {"p": "y", "q": "z"}),
    ),
    "dicts of one": (lambda: functional({"a": keras.Input((2,), name="a")}, {"p": "p"}), BatchPlan("x", "y")),
    "subclassed": (Subclassed, BatchPlan(BOTH, {"out": "z"})),
    "autoencoder": (lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), BatchPlan("x", "x")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_any_kind_trains_and_validates(name: str) -> None:
    make, plan = MODELS[name]
    model = make()
    model.compile("sgd", "mse")
    data = batches().map(batch_function(model, plan))
    assert len(data.element_spec) == (3 if plan.weight else 2)
    history = model.fit(data, validation_data=data, verbose=0).history
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["val_loss"]).all()


def test_output_names_are_keys_or_layers() -> None:
    assert output_names(functional(two_inputs(), ["p", "q"])) == ["p", "q"]
    assert output_names(functional(two_inputs(), {"q": "q"})) == ["q"]
    assert output_names(Subclassed()) == []


FAULTS: dict[str, tuple[BatchPlan, str]] = {
    "one column": (BatchPlan("x", {"p": "y", "q": "z"}), r"inputs \['a', 'b'\], but one column was named, 'x'"),
    "missing input": (BatchPlan({"a": "x"}, {"p": "y", "q": "z"}), r"No column is named for the inputs \['b'\]"),
    "unknown input": (BatchPlan({**BOTH, "c": "x"}, {"p": "y"}), r"featuresCols names \['c'\]"),
    "one label": (BatchPlan(BOTH, "y"), r"outputs \['p', 'q'\], but one column"),
    "unknown output": (BatchPlan(BOTH, {"r": "y"}), r"labelCols names \['r'\]"),
    "size": (
        BatchPlan({"a": "image", "b": "x"}, {"p": "y", "q": "z"}),
        r"rows of shape \(2,\), but column 'image' holds 16",
    ),
    "dtype": (BatchPlan({"a": "s", "b": "image"}, {"p": "y", "q": "z"}), "takes float32, but column 's' holds string"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_columns_that_do_not_fit_the_model_are_named(fault: str) -> None:
    plan, message = FAULTS[fault]
    with pytest.raises(ConfigurationError, match=message):
        batches().map(batch_function(functional(two_inputs(), ["p", "q"]), plan))


def test_rows_of_varying_length_are_padded() -> None:
    ragged = tf.ragged.constant([[1, 2, 3], [4]])
    padded = as_input(ragged, keras.Input((None,), dtype="int64"), "x")
    np.testing.assert_array_equal(padded, [[1, 2, 3], [4, 0, 0]])
    assert padded.dtype == tf.int64


def quartic(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)


def one_weight() -> Any:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])


@pytest.mark.parametrize("loss", ["mse", "MeanSquaredError", quartic, ["mse"]])
def test_weights_of_one_on_average_give_a_weighted_mean(loss: Any) -> None:
    model = compiled_model(ModelPlan(function=pack(one_weight), loss=pack(loss), metrics=["mae"], weighted=True))
    x, y, weight = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1.0, 5.0]), np.array([0.5, 1.5])
    squares = (y - x.sum(1)) ** (4 if loss is quartic else 2)
    for batch_size in (1, 2):
        found = model.evaluate(x, y, batch_size, sample_weight=weight, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx((squares * weight).sum() / 2)
        assert found["mae"] == pytest.approx((np.abs(y - x.sum(1)) * weight).sum() / 2)


def test_a_loss_object_keeps_its_reduction_and_a_compiled_model_its_loss() -> None:
    own = keras.losses.MeanSquaredError(reduction="sum")
    model = compiled_model(ModelPlan(function=pack(one_weight), loss=pack(own), weighted=True, learning_rate=0.5))
    assert model.loss.reduction == "sum" and float(model.optimizer.learning_rate) == 0.5

    def compiled() -> Any:
        made = one_weight()
        made.compile("sgd", "mae")
        return made

    assert compiled_model(ModelPlan(function=pack(compiled))).loss == "mae"
    with pytest.raises(ConfigurationError, match="is not compiled"):
        compiled_model(ModelPlan(function=pack(one_weight)))
    with pytest.raises(ConfigurationError, match="returned a dict"):
        compiled_model(ModelPlan(function=pack(dict)))
