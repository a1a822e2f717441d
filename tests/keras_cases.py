"""Compiled Keras models that train on several workers as in one process, and the rows that they train on.

Each case returns a compiled model and what else training it needs: ``label`` and ``weight`` (columns), ``columns``,
``arrange`` (a key of `ARRANGE`), ``class_weight``, ``callbacks``, ``validates``, ``epochs``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

layers, losses, metrics, optimizers, ops = keras.layers, keras.losses, keras.metrics, keras.optimizers, keras.ops

Case = tuple[Any, dict[str, Any]]
CASES: dict[str, Callable[[], Case]] = {}

NOT_EQUAL = {
    # Rounding of gradients in 16 bits, and of scales that depend on them.
    "mixed_f16": "loss",
    "mixed_bf16": "loss",
    # Statistics of a worker's own batch.
    "bn_plain": "state",
    "stateful_layer": "state",
    # The bias of an attention's keys has a gradient of 0, of which Adam takes the rounding errors for a direction.
    "layernorm_attention": "noise",
}
"""Cases whose weights cannot be those of one process, and what holds instead."""


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def sgd(**options: Any) -> Any:
    return optimizers.SGD(0.1, **options)


def mlp(regularizer: Any = None, activity: Any = None, normalization: dict[str, Any] | None = None) -> Any:
    x = keras.Input((4,), name="x")
    h = layers.Dense(8, activation="tanh", kernel_regularizer=regularizer, activity_regularizer=activity)(x)
    if normalization is not None:
        h = layers.BatchNormalization(**normalization)(h)
    return keras.Model({"x": x}, layers.Dense(1)(h))


def compiled(model: Any = None, optimizer: Any = None, loss: Any = "mse", **options: Any) -> Any:
    model = mlp() if model is None else model
    model.compile(sgd() if optimizer is None else optimizer, loss, **options)
    return model


def dense_of(name: str, shape: tuple[int, ...], units: int, activation: str | None = None, cls: Any = None) -> Any:
    x = keras.Input(shape, name=name)
    return (cls or keras.Model)({name: x}, layers.Dense(units, activation=activation)(x))


@case
def plain() -> Case:
    return compiled(metrics=["mae"]), {}


@case
def adam() -> Case:
    return compiled(optimizer=optimizers.Adam(0.01), metrics=["mae"]), {}


@case
def global_clipnorm() -> Case:
    return compiled(optimizer=sgd(global_clipnorm=0.05)), {}


@case
def clipnorm() -> Case:
    return compiled(optimizer=sgd(clipnorm=0.05)), {}


@case
def clipvalue() -> Case:
    return compiled(optimizer=sgd(clipvalue=0.02)), {}


@case
def gradient_accumulation() -> Case:
    return compiled(optimizer=sgd(gradient_accumulation_steps=3)), {}


@case
def ema() -> Case:
    return compiled(optimizer=sgd(use_ema=True, ema_momentum=0.8)), {}


@case
def ema_overwrite_frequency() -> Case:
    return compiled(optimizer=sgd(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2)), {}


@case
def weight_decay() -> Case:
    return compiled(optimizer=optimizers.AdamW(0.01, weight_decay=0.1)), {}


@case
def schedule() -> Case:
    return compiled(optimizer=optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 3, 0.5))), {}


@case
def steps_per_execution() -> Case:
    return compiled(metrics=["mae"], steps_per_execution=4), {}


@case
def run_eagerly() -> Case:
    return compiled(metrics=["mae"], run_eagerly=True), {}


@case
def jit() -> Case:
    return compiled(metrics=["mae"], jit_compile=True), {}


@case
def jit_that_cannot_be_split() -> Case:
    return compiled(loss=lambda y, p: ops.mean(ops.square(y - p)), jit_compile=True), {}


@case
def regularizer() -> Case:
    return compiled(mlp("l2")), {}


@case
def activity_regularizer() -> Case:
    return compiled(mlp(activity="l2")), {}


@case
def class_weight() -> Case:
    model = compiled(
        dense_of("x", (4,), 3, "softmax"),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    return model, {"class_weight": {0: 1.0, 1: 5.0, 2: 0.3}, "label": "c"}


@case
def sample_weight() -> Case:
    return compiled(metrics=["mae"], weighted_metrics=["mae"]), {"weight": "w"}


@case
def reduction_sum() -> Case:
    return compiled(mlp("l2"), optimizers.SGD(0.002), losses.MeanSquaredError(reduction="sum")), {}


@case
def reduction_none() -> Case:
    return compiled(None, optimizers.SGD(0.002), losses.MeanSquaredError(reduction="none")), {}


@case
def mean_with_sample_weight() -> Case:
    return compiled(loss=losses.MeanSquaredError(reduction="mean_with_sample_weight")), {"weight": "w"}


@case
def loss_function_by_row() -> Case:
    return compiled(loss=lambda y, p: tf.square(y - p)), {}


@case
def loss_function_of_a_batch() -> Case:
    return compiled(loss=lambda y, p: ops.sqrt(ops.mean(ops.square(y - p)))), {"weight": None}


@case
def dice() -> Case:
    return compiled(dense_of("x", (4,), 1, "sigmoid"), loss=losses.Dice()), {"label": "b", "arrange": "column"}


@case
def several_outputs() -> Case:
    x = keras.Input((4,), name="x")
    h = layers.Dense(6, activation="tanh")(x)
    a, b = layers.Dense(1, name="a")(h), layers.Dense(3, activation="softmax", name="b")(h)
    model = compiled(
        keras.Model({"x": x}, [a, b]),
        loss={"a": "mse", "b": "sparse_categorical_crossentropy"},
        loss_weights={"a": 0.3, "b": 2.0},
        metrics={"a": ["mae"], "b": ["accuracy"]},
    )
    return model, {"arrange": "several"}


@case
def two_masks_and_a_sum() -> Case:
    t = keras.Input((6,), name="t", dtype="int32")
    h = layers.Embedding(20, 4, mask_zero=True)(t)
    steps = layers.Dense(20, activation="softmax", name="a")(layers.GRU(5, return_sequences=True)(h))
    last = layers.Dense(1, name="b")(layers.LSTM(3)(h))
    model = compiled(
        keras.Model({"t": t}, [steps, last]),
        optimizers.SGD(0.01),
        loss={"a": "sparse_categorical_crossentropy", "b": losses.MeanSquaredError(reduction="sum")},
    )
    return model, {"columns": ["t"], "arrange": "steps"}


@case
def embedding() -> Case:
    s = keras.Input((), name="s", dtype="int32")
    model = keras.Model({"s": s}, layers.Dense(1)(layers.Embedding(50, 4)(s)))
    return compiled(model, optimizers.Adam(0.05)), {"columns": ["s"]}


@case
def masked_rows() -> Case:
    t = keras.Input((6,), name="t", dtype="int32")
    h = layers.LSTM(5)(layers.Embedding(20, 4, mask_zero=True)(t))
    return compiled(keras.Model({"t": t}, layers.Dense(1)(h))), {"columns": ["t"]}


@case
def masked_steps() -> Case:
    t = keras.Input((6,), name="t", dtype="int32")
    h = layers.GRU(5, return_sequences=True)(layers.Embedding(20, 4, mask_zero=True)(t))
    model = keras.Model({"t": t}, layers.Dense(20, activation="softmax")(h))
    return compiled(model, loss="sparse_categorical_crossentropy", metrics=["accuracy"]), {
        "columns": ["t"],
        "arrange": "autoencoder",
    }


@case
def convolution_and_pooling() -> Case:
    x = keras.Input((4,), name="x")
    h = layers.Conv2D(3, 2, padding="same")(layers.Reshape((2, 2, 1))(x))
    h = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(h))
    return compiled(keras.Model({"x": x}, layers.Dense(1)(h))), {}


@case
def bn_synchronized() -> Case:
    return compiled(mlp(normalization={"synchronized": True, "momentum": 0.5}), metrics=["mae"]), {}


@case
def bn_plain() -> Case:
    return compiled(mlp(normalization={"momentum": 0.5}), metrics=["mae"]), {}


def of_policy(policy: str) -> Any:
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        return compiled(metrics=["mae"])
    finally:
        keras.mixed_precision.set_global_policy(before)


@case
def mixed_bf16() -> Case:
    return of_policy("mixed_bfloat16"), {}


@case
def mixed_f16() -> Case:
    return of_policy("mixed_float16"), {}


@case
def metrics_of_many_kinds() -> Case:
    kinds = [
        metrics.AUC(name="auc"),
        metrics.Precision(name="precision"),
        metrics.Recall(name="recall"),
        metrics.F1Score(threshold=0.5),
        metrics.BinaryAccuracy(),
        metrics.R2Score(name="r2"),
        metrics.RootMeanSquaredError(name="rmse"),
    ]
    model = compiled(dense_of("x", (4,), 1, "sigmoid"), loss="binary_crossentropy", metrics=kinds)
    return model, {"label": "b", "arrange": "column"}


@case
def add_loss() -> Case:
    class MeanSquare(layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(0.1 * ops.mean(ops.square(x)))
            return x

    x = keras.Input((4,), name="x")
    return compiled(keras.Model({"x": x}, layers.Dense(1)(MeanSquare()(layers.Dense(5, activation="tanh")(x))))), {}


@case
def add_loss_alone() -> Case:
    class End(layers.Layer):
        def call(self, x: Any, y: Any) -> Any:
            self.add_loss(ops.mean(ops.square(x[:, 0] - y)))
            return x

    x, y = keras.Input((4,), name="x"), keras.Input((), name="y")
    model = keras.Model({"x": x, "y": y}, End()(layers.Dense(1)(x), y))
    model.compile(sgd())
    return model, {"arrange": "label_as_input"}


@case
def train_step_of_the_guide() -> Case:
    class Guide(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                p = self(x, training=True)
                loss = self.compute_loss(x, y, p)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, p)
            return {m.name: m.result() for m in self.metrics}

    return compiled(dense_of("x", (4,), 1, cls=Guide), metrics=["mae"]), {}


@case
def train_step_with_its_own_mean() -> Case:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y[:, None] - self(x, training=True)))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"own_loss": loss}

    return compiled(dense_of("x", (4,), 1, cls=Own)), {}


@case
def two_optimizers() -> Case:
    class Rivals(keras.Model):
        """As a GAN: one network learns to tell the other's output from the data."""

        def __init__(self) -> None:
            super().__init__()
            self.judge = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh"), layers.Dense(1)])
            self.maker = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
            self.judge_optimizer, self.maker_optimizer = sgd(), optimizers.Adam(0.01)
            self.judge_mean = metrics.Mean(name="judge")
            self.built = True

        def call(self, inputs: Any) -> Any:
            return self.maker(inputs["x"])

        def train_step(self, data: Any) -> Any:
            real = data["x"]
            with tf.GradientTape() as tape:
                difference = self.judge(self.maker(-real)) - self.judge(real)
                loss = tf.reduce_mean(tf.square(difference - 1.0))
            variables = self.judge.trainable_variables
            self.judge_optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            with tf.GradientTape() as tape:
                own = tf.reduce_mean(tf.square(self.judge(self.maker(-real))))
            variables = self.maker.trainable_variables
            self.maker_optimizer.apply_gradients(zip(tape.gradient(own, variables), variables, strict=True))
            self.judge_mean.update_state(loss)
            return {"judge": self.judge_mean.result()}

    model = Rivals()
    model.compile()
    return model, {"label": None}


@case
def model_without_call() -> Case:
    class Guide(keras.Model):
        """As the GAN of Keras' guide: no call, and parts that nothing but a step builds."""

        def __init__(self) -> None:
            super().__init__()
            self.judge, self.maker = keras.Sequential([layers.Dense(1)]), keras.Sequential([layers.Dense(4)])
            self.loss_function = losses.BinaryCrossentropy(from_logits=True)
            self.judge_optimizer = optimizers.Adam(0.01)

        def train_step(self, data: Any) -> Any:
            x = data["x"]
            with tf.GradientTape() as tape:
                p = tf.concat([self.judge(self.maker(x)), self.judge(x)], 0)
                loss = self.loss_function(tf.concat([tf.ones_like(x[:, :1]), tf.zeros_like(x[:, :1])], 0), p)
            variables = [*self.judge.trainable_weights, *self.maker.trainable_weights]
            self.judge_optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"judge": loss}

    model = Guide()
    model.compile()
    return model, {"label": None}


@case
def compute_loss_overridden() -> Case:
    class Own(keras.Model):
        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            return ops.mean(ops.square(y[:, None] - y_pred))

    model = dense_of("x", (4,), 1, cls=Own)
    model.compile(sgd())
    return model, {}


@case
def frozen_layers() -> Case:
    model = mlp()
    model.layers[1].trainable = False
    return compiled(model, optimizers.Adam(0.01)), {}


@case
def lora() -> Case:
    model = mlp()
    model.layers[1].enable_lora(2)
    return compiled(model, optimizers.Adam(0.01)), {}


@case
def subclassed() -> Case:
    class Sub(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = layers.Dense(5, "tanh"), layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.out(self.hidden(inputs["x"]))

    return compiled(Sub(), metrics=["mae"]), {}


@case
def layernorm_attention() -> Case:
    t = keras.Input((6,), name="t", dtype="int32")
    h = layers.Embedding(20, 4)(t)
    h = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(h, h))
    model = keras.Model({"t": t}, layers.Dense(1)(layers.GlobalAveragePooling1D()(h)))
    return compiled(model, optimizers.Adam(0.01)), {"columns": ["t"]}


@case
def early_stopping() -> Case:
    def callbacks() -> list[Any]:
        return [
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, min_delta=0.02, restore_best_weights=True)
        ]

    return compiled(metrics=["mae"]), {"validates": True, "callbacks": callbacks, "epochs": 6}


@case
def reduce_learning_rate() -> Case:
    def callbacks() -> list[Any]:
        return [keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=0, min_delta=0.05, factor=0.1)]

    return compiled(), {"validates": True, "callbacks": callbacks, "epochs": 5}


@case
def stateful_layer() -> Case:
    class Running(layers.Layer):
        def build(self, shape: Any) -> None:
            self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False, name="running")

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                self.mean.assign(self.mean * 0.5 + 0.5 * ops.mean(x, axis=0))
            return x - self.mean

    x = keras.Input((4,), name="x")
    return compiled(keras.Model({"x": x}, layers.Dense(1)(Running()(x)))), {}


@case
def spectral_normalization() -> Case:
    x = keras.Input((4,), name="x")
    h = layers.SpectralNormalization(layers.Dense(5, activation="tanh"))(x)
    return compiled(keras.Model({"x": x}, layers.Dense(1)(h))), {}


@case
def optimizer_that_clips_by_itself() -> Case:
    class Clipping(optimizers.SGD):
        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            return super().apply([tf.clip_by_norm(g, 0.05) for g in grads], trainable_variables)

    return compiled(optimizer=Clipping(0.1)), {}


@case
def lion() -> Case:
    return compiled(optimizer=optimizers.Lion(0.01)), {}


@case
def loss_scale_optimizer() -> Case:
    return compiled(optimizer=optimizers.LossScaleOptimizer(sgd(), initial_scale=8.0)), {}


@case
def metric_that_counts() -> Case:
    class Count(metrics.Metric):
        def __init__(self, name: str = "count", **options: Any) -> None:
            super().__init__(name=name, **options)
            self.n = self.add_variable((), "zeros", name="n")

        def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
            self.n.assign(self.n + ops.cast(ops.shape(p)[0], "float32"))

        def result(self) -> Any:
            return self.n + 0.0

    return compiled(metrics=[Count(), "mae"]), {}


@case
def metric_functions_of_a_batch() -> Case:
    def rmse(y: Any, p: Any) -> Any:
        return tf.sqrt(tf.reduce_mean(tf.square(y[:, None] - p)))

    def near(y: Any, p: Any) -> Any:
        return tf.reduce_mean(tf.cast(tf.abs(y[:, None] - p) < 0.5, tf.float32))

    return compiled(metrics=[rmse, near]), {}


@case
def step_that_returns_a_key_more() -> Case:
    class Model(keras.Model):
        def train_step(self, data: Any) -> Any:
            logs = super().train_step(data)
            logs["rate"] = self.optimizer.learning_rate
            return logs

        def test_step(self, data: Any) -> Any:
            found = super().test_step(data)
            return {**found, "means": ops.ones(2), **{f"{k}_again": v for k, v in found.items()}}

    return compiled(dense_of("x", (4,), 1, cls=Model), metrics=["mae"]), {"validates": True}


@case
def log_keys_that_are_no_names_of_metrics() -> Case:
    class Autoencoder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = layers.Dense(2), layers.Dense(4)
            self.total = metrics.Mean(name="total_loss")
            self.part = metrics.Mean(name="reconstruction_loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.total, self.part]

        def call(self, inputs: Any) -> Any:
            return self.decode(self.encode(inputs["x"]))

        def train_step(self, data: Any) -> Any:
            x = data["x"]
            with tf.GradientTape() as tape:
                code = self.encode(x)
                part = ops.mean(ops.square(x - self.decode(code)))
                total = part + 0.01 * ops.mean(ops.sum(ops.square(code), axis=1))
            self.optimizer.apply(tape.gradient(total, self.trainable_weights), self.trainable_weights)
            self.total.update_state(total)
            self.part.update_state(part)
            return {"loss": self.total.result(), "reconstruction_loss": self.part.result()}

    model = Autoencoder()
    model.compile(optimizers.Adam(0.02))
    return model, {"label": None}


@case
def metric_with_several_results() -> Case:
    class Errors(metrics.Metric):
        def __init__(self, name: str = "errors", **options: Any) -> None:
            super().__init__(name=name, **options)
            self.sums = self.add_variable((2,), "zeros", name="sums")
            self.n = self.add_variable((), "zeros", name="n")

        def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> None:
            error = ops.abs(y[:, None] - p)
            self.sums.assign_add(ops.stack([ops.sum(error), ops.sum(error * error)]))
            self.n.assign_add(ops.cast(ops.shape(y)[0], "float32"))

        def result(self) -> Any:
            return {"mae": self.sums[0] / self.n, "mse": self.sums[1] / self.n}

    return compiled(metrics=[Errors()]), {"validates": True}


@case
def loss_whose_call_is_set_on_the_instance() -> Case:
    class Wrapped(losses.Loss):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__()
            self.call = function

    squares = Wrapped(lambda y, p: ops.mean(ops.square(ops.expand_dims(y, -1) - p), axis=-1))
    return compiled(loss=squares, metrics=["mae"]), {"validates": True}


@case
def loss_with_its_own_dunder_call() -> Case:
    class RootMeanSquare(losses.Loss):
        def __call__(self, y: Any, p: Any, sample_weight: Any = None) -> Any:
            return ops.sqrt(ops.mean(ops.square(ops.expand_dims(y, -1) - p)))

    return compiled(loss=RootMeanSquare()), {}


@case
def optimizer_that_changes_gradients_in_apply_gradients() -> Case:
    class Clipping(optimizers.Adam):
        def apply_gradients(self, grads_and_vars: Any) -> Any:
            def clipped(g: Any, v: Any) -> Any:
                return g * ops.minimum(1.0, 0.01 * ops.norm(v) / (ops.norm(g) + 1e-6))

            return super().apply_gradients([(clipped(g, v), v) for g, v in grads_and_vars])

    return compiled(optimizer=Clipping(0.02)), {}


@case
def optimizer_that_changes_gradients_with_jit() -> Case:
    return with_jit(optimizer_that_changes_gradients_in_apply_gradients)


@case
def metric_in_a_layer_of_a_layer() -> Case:
    class Gate(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.opened = layers.Dense(4, activation="sigmoid"), metrics.Mean(name="opened")

        def call(self, x: Any) -> Any:
            gate = self.dense(x)
            self.opened.update_state(gate)
            return x * gate

    class Block(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def call(self, x: Any) -> Any:
            return self.gate(x) + x

    x = keras.Input((4,), name="x")
    return compiled(keras.Model({"x": x}, layers.Dense(1)(Block()(x)))), {}


@case
def spectral_normalization_with_jit() -> Case:
    return with_jit(spectral_normalization)


def with_jit(without: Callable[[], Case]) -> Case:
    model, options = without()
    return compiled(model, model.optimizer, jit_compile=True), options


@case
def weights_clipped_in_train_step() -> Case:
    class Clipped(keras.Model):
        def train_step(self, data: Any) -> Any:
            logs = super().train_step(data)
            for w in self.trainable_variables:
                w.assign(ops.clip(w, -0.3, 0.3))
            return logs

    return compiled(dense_of("x", (4,), 1, cls=Clipped)), {}


@case
def teacher_that_follows_in_train_step() -> Case:
    return with_teacher(trainable=True)


@case
def frozen_teacher_that_follows_in_train_step() -> Case:
    return with_teacher(trainable=False)


def with_teacher(trainable: bool) -> Case:
    class Student(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = (keras.Sequential([keras.Input((4,)), layers.Dense(1)]) for _ in range(2))
            self.teacher.set_weights(self.student.get_weights())
            self.teacher.trainable = trainable

        def call(self, inputs: Any) -> Any:
            return self.student(inputs["x"])

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                p = self.student(x["x"])
                apart = ops.mean(ops.square(p - ops.stop_gradient(self.teacher(x["x"]))))
                loss = ops.mean(ops.square(y[:, None] - p)) + 0.1 * apart
            weights = self.student.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            for follower, w in zip(self.teacher.variables, weights, strict=True):
                follower.assign(0.9 * follower + 0.1 * w)
            return {"distillation": loss}

    return compiled(Student()), {}


@case
def normalization_adapted_on_own_rows() -> Case:
    """All workers normalize with the statistics of the chief."""
    normalize = layers.Normalization()
    normalize.adapt(rows(40, seed=2 + rank())["x"] * (1 + rank()))
    x = keras.Input((4,), name="x")
    return compiled(keras.Model({"x": x}, layers.Dense(1)(normalize(x)))), {"validates": True}


def rank() -> int:
    """Return the index of this worker; 0 in one process."""
    return json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)


ARRANGE: dict[str, tuple[list[str], Callable[..., Any]]] = {
    "several": (["x", "c"], lambda x, y: ({"x": x["x"]}, {"a": y, "b": x["c"]})),
    "steps": (["t"], lambda x, y: ({"t": x["t"]}, {"a": x["t"], "b": y})),
    "autoencoder": (["t"], lambda x, y: ({"t": x["t"]}, x["t"])),
    "column": (["x"], lambda x, y: ({"x": x["x"]}, y[:, None])),
    "label_as_input": (["x"], lambda x, y: ({"x": x["x"], "y": y}, y)),
}
"""Columns to read, and how a batch of them becomes what the model takes."""


def columns_of(options: dict[str, Any]) -> Sequence[str]:
    if "columns" in options:
        return options["columns"]
    return ARRANGE[options["arrange"]][0] if "arrange" in options else ["x"]


def rows(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Make `n` rows: column to its values."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, 4)).astype("float32")
    steps = r.integers(0, 20, (n, 6)) * (np.arange(6)[None] < r.integers(1, 7, n)[:, None])
    return {
        "id": np.arange(n, dtype="int64"),
        "x": x,
        "y": (x @ [1, -2, 0.5, 0.3] + r.normal(size=n) * 0.1).astype("float32"),
        "w": r.uniform(0, 2, n).astype("float32"),
        "c": r.integers(0, 3, n).astype("int32"),
        "b": (x[:, 0] > 0).astype("float32"),
        "s": r.integers(0, 50, n).astype("int32"),
        "t": steps.astype("int32"),
    }
