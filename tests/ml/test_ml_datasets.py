"""Columns become what a Keras model takes, whatever way it was built."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.ml.custom_objects import load_keras
from tfspark.ml.datasets import as_input, batch_function, open_columns, output_names
from tfspark.ml.param_values import as_json, restored
from tfspark.ml.plan import BatchPlan, ModelPlan
from tfspark.ml.training import compiled_model
from tfspark.ml.value_checks import in_words

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
    "one column": (BatchPlan("x", {"p": "y", "q": "z"}), r"inputs \['a', 'b'\], but only one column was given, 'x'"),
    "missing input": (BatchPlan({"a": "x"}, {"p": "y", "q": "z"}), r"The inputs \['b'\] of the model have no column"),
    "unknown input": (BatchPlan({**BOTH, "c": "x"}, {"p": "y"}), r"featuresCols refers to unknown inputs \['c'\]"),
    "one label": (BatchPlan(BOTH, "y"), r"outputs \['p', 'q'\], but only one column"),
    "unknown output": (BatchPlan(BOTH, {"r": "y"}), r"labelCols refers to unknown outputs \['r'\]"),
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


def test_rows_of_varying_length_fit_a_fixed_input_only_if_all_are_full() -> None:
    fixed = keras.Input((2, 2), name="i", dtype="int64")
    full = tf.RaggedTensor.from_row_lengths(tf.range(8), [4, 4])
    np.testing.assert_array_equal(as_input(full, fixed, "x"), tf.reshape(tf.range(8), [2, 2, 2]))
    assert as_input(full[:0], fixed, "x").shape == (0, 2, 2)
    # Padded, three rows have as many values as four of the input.
    for lengths in ([4, 3], [5, 3], [4, 4, 4, 3], [3, 3, 2]):
        rows = tf.RaggedTensor.from_row_lengths(tf.range(sum(lengths)), lengths)
        with (
            pytest.raises(ConfigurationError, match=r"Input 'i' takes rows of shape \(2, 2\), but column 'x' holds ar"),
            in_words(),
        ):
            as_input(rows, fixed, "x")


def test_rows_of_a_fixed_input_are_not_padded_with_what_the_model_masks() -> None:
    masked = keras.Sequential([keras.Input((3, 1), name="i"), keras.layers.Masking(-1.0), keras.layers.LSTM(1)])
    masked.compile("sgd", "mse")
    make = batch_function(masked, BatchPlan("x", "y"))
    rows = {"x": tf.ragged.constant([[1.0, 2.0, 3.0], [4.0]]), "y": tf.constant([0.0, 1.0])}
    words = r"Input 'i' takes rows of shape \(3, 1\), but column 'x' holds"
    with pytest.raises(ConfigurationError, match=words), in_words():
        make(rows)


def test_columns_of_inputs_that_leave_a_dimension_open_are_named() -> None:
    inputs = {n: keras.Input(s, name=n) for n, s in {"a": (None,), "b": (2, None), "c": (3,)}.items()}
    model = keras.Model(inputs, inputs["c"] * 2)
    plan = BatchPlan({"a": "x", "b": "y", "c": "z"}, "label")
    assert open_columns(model, plan) == ["x", "y"]
    assert open_columns(keras.Sequential([keras.layers.Dense(1)]), plan) == []


def quartic(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)


def one_weight() -> Any:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])


@pytest.mark.parametrize("loss", ["mse", "MeanSquaredError", quartic, ["mse"]])
def test_weights_of_one_on_average_give_a_weighted_mean(loss: Any) -> None:
    model = compiled_model(ModelPlan(function=as_json(one_weight), loss=as_json(loss), metrics=["mae"], weighted=True))
    x, y, weight = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1.0, 5.0]), np.array([0.5, 1.5])
    squares = (y - x.sum(1)) ** (4 if loss is quartic else 2)
    for batch_size in (1, 2):
        found = model.evaluate(x, y, batch_size, sample_weight=weight, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx((squares * weight).sum() / 2)
        assert found["mae"] == pytest.approx((np.abs(y - x.sum(1)) * weight).sum() / 2)


def test_a_loss_object_keeps_its_reduction_and_a_compiled_model_its_loss() -> None:
    own = keras.losses.MeanSquaredError(reduction="sum")
    model = compiled_model(ModelPlan(function=as_json(one_weight), loss=as_json(own), weighted=True, learning_rate=0.5))
    assert model.loss.reduction == "sum" and float(model.optimizer.learning_rate) == 0.5

    def compiled() -> Any:
        made = one_weight()
        made.compile("sgd", "mae")
        return made

    assert compiled_model(ModelPlan(function=as_json(compiled))).loss == "mae"
    with pytest.raises(ConfigurationError, match="is not compiled"):
        compiled_model(ModelPlan(function=as_json(one_weight)))
    with pytest.raises(ConfigurationError, match="must return a Keras model, got dict"):
        compiled_model(ModelPlan(function=as_json(dict)))


# --- labels


def classifier(units: int, loss: Any) -> Any:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(units)])
    model.compile("sgd", loss)
    return model


def labelled_batches(labels: Any, column: str = "y") -> Any:
    columns = {"x": np.ones((len(labels), 1), "float32"), column: np.array(labels)}
    return tf.data.Dataset.from_tensor_slices(columns).batch(4)


SPARSE = "sparse_categorical_crossentropy"
SPARSE_OBJECT = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OUT_OF_RANGE: list[tuple[int, Any, list[Any], str]] = [
    (3, SPARSE, [0, 1, 2, 0, 3], "label 3, but the loss takes whole numbers from 0 to 2"),
    (3, SPARSE_OBJECT, [0.0, -1.0], "label -1, but the loss takes whole numbers from 0 to 2"),
    (3, keras.losses.sparse_categorical_crossentropy, [1.0, 0.5], "label 0.5, but the loss takes whole numbers"),
    (3, SPARSE, [1.0, float("nan")], "label nan, but the loss takes whole numbers"),
    (1, "binary_crossentropy", [1, 2], "label 2, but the loss takes numbers from 0 to 1"),
    (1, keras.losses.BinaryCrossentropy(from_logits=True), [-1.0, 1.0], "label -1, but the loss takes numbers from"),
]


@pytest.mark.parametrize("case", range(len(OUT_OF_RANGE)))
def test_labels_that_a_loss_does_not_take_are_named(case: int) -> None:
    units, loss, labels, message = OUT_OF_RANGE[case]
    # Names as they are, whatever TensorFlow makes of them on their way.
    column = "größe 'x' \\"
    data = labelled_batches(labels, column)
    model = classifier(units, loss)
    with pytest.raises(ConfigurationError) as raised, in_words():
        model.fit(data.map(batch_function(model, BatchPlan("x", column))), verbose=0)
    assert f"Column {column!r} holds the {message}" in raised.value.message


def test_labels_that_a_loss_takes_pass() -> None:
    for units, loss, labels in (
        (3, SPARSE, [0, 1, 2]),
        (1, "binary_crossentropy", [True, False]),
        (1, "binary_crossentropy", [0.25, 1.0]),
        (3, keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), [0, -1]),
        (1, "mse", [-7.0, 100.0]),
    ):
        model = classifier(units, loss)
        found = [y for _, y in labelled_batches(labels).map(batch_function(model, BatchPlan("x", "y")))]
        np.testing.assert_array_equal(np.concatenate(found), labels)


def test_a_model_has_an_output_for_each_class() -> None:
    plan = BatchPlan("x", "y", classes={"y": 4})
    with pytest.raises(ConfigurationError, match="Label column 'y' has 4 classes, but the model has 3 outputs"):
        batch_function(classifier(3, SPARSE), plan)
    for model in (classifier(4, SPARSE), classifier(1, "mse")):
        batch_function(model, plan)
    heads = functional(two_inputs(), ["p", "q"])
    heads.compile("sgd", {"p": "mse", "q": SPARSE})
    targets = {"p": "y", "q": "y"}
    with pytest.raises(ConfigurationError, match="'y' has 4 classes"):
        batch_function(heads, BatchPlan(BOTH, targets, classes={"y": 4}))


# --- classes of one's own


class Scale(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        return 2 * inputs


@keras.saving.register_keras_serializable(package="own")
class Registered(Scale):
    pass


class Decay(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, step: Any) -> Any:
        return self.rate / (1.0 + keras.ops.cast(step, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate}


class OwnSGD(keras.optimizers.SGD):
    pass


class OwnLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


def twice(x: Any) -> Any:
    return 2 * x


def test_all_custom_objects_that_a_file_wants_are_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((2,)), Scale(), Registered(), keras.layers.Dense(1, activation=twice)])
    model.compile("sgd", OwnLoss())
    model.save(tmp_path / "model.keras")
    data = (tmp_path / "model.keras").read_bytes()
    # As in another process.
    monkeypatch.delitem(keras.saving.get_custom_objects(), "own>Registered")
    with pytest.raises(ConfigurationError, match=r"\['Scale', 'own>Registered', 'twice'\]") as e:
        load_keras(data, str(tmp_path / "again.keras"), {}, compile=False)
    assert e.value.hint == "Pass customObjects={'Scale': Scale, 'own>Registered': Registered, 'twice': twice}."
    objects = {"Scale": Scale, "own>Registered": Registered, "twice": twice}
    with pytest.raises(ConfigurationError, match=r"\['OwnLoss'\]"):
        load_keras(data, str(tmp_path / "again.keras"), objects, compile=True)
    assert load_keras(data, str(tmp_path / "again.keras"), objects, compile=False).count_params() == 3
    with pytest.raises(ConfigurationError, match=r"is not a \.keras file"):
        load_keras(b"text", str(tmp_path / "again.keras"), {}, compile=False)


def test_classes_make_models_and_what_they_are_compiled_with() -> None:
    class Own(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    plan = ModelPlan(
        function=as_json(Own),
        loss=as_json(OwnLoss),
        optimizer=as_json(keras.optimizers.SGD),
        metrics=as_json([keras.metrics.MeanAbsoluteError]),
    )
    model = compiled_model(plan)
    assert type(model).__name__ == "Own" and type(model.loss).__name__ == "OwnLoss"
    assert type(model.optimizer) is keras.optimizers.SGD
    with pytest.raises(ConfigurationError, match="must return a Keras model, got type"):
        compiled_model(ModelPlan(function=as_json(lambda: Own)))


def test_own_optimizers_losses_and_schedules_travel() -> None:
    optimizer = OwnSGD(Decay(0.5))
    packed = as_json(optimizer)
    assert sorted(packed["classes"]) == ["Decay", "OwnSGD"]
    model = compiled_model(ModelPlan(function=as_json(one_weight), loss=as_json(OwnLoss()), optimizer=packed))
    assert type(model.optimizer).__name__ == "OwnSGD" and float(model.optimizer.learning_rate) == 0.5
    assert as_json(restored(packed)) == packed


def test_a_learning_rate_may_be_a_schedule(tmp_path: Any) -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.25, 1, 0.5)
    scheduled = as_json(keras.optimizers.SGD(schedule))
    with pytest.raises(ConfigurationError, match=r"learningRate=0\.5 is set, but the optimizer SGD has a Learning"):
        compiled_model(ModelPlan(function=as_json(one_weight), loss="mse", optimizer=scheduled, learning_rate=0.5))

    def trained() -> Any:
        model = one_weight()
        model.compile(keras.optimizers.SGD(1.0, momentum=0.5), "mse")
        model.fit(np.ones((2, 2)), np.ones(2), verbose=0)
        return model

    for plan in (
        ModelPlan(function=as_json(one_weight), loss="mse", optimizer="adam", learning_rate=as_json(schedule)),
        ModelPlan(function=as_json(trained), learning_rate=as_json(Decay(0.25))),
    ):
        model = compiled_model(plan)
        steps = int(model.optimizer.iterations)
        assert float(model.optimizer.learning_rate) == pytest.approx(0.25 if steps == 0 else 0.125)
        model.fit(np.ones((2, 2)), np.ones(2), verbose=0)
        assert int(model.optimizer.iterations) == steps + 1
        model.export(str(tmp_path / type(model.optimizer).__name__), verbose=False)
