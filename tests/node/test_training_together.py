"""What several workers do alike, and what each does by itself: callbacks, random numbers, own data, mistakes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfspark
from tfspark.errors import ConfigurationError, FeedError, NodeFailed, StepTimeout
from tfspark.tensorflow_options import TensorFlowOptions

ROWS = [33, 17]
BATCH = 8
EPOCHS_FED = 40


def net(hidden: Callable[[], Any] | None = None, seed: int = 3, **options: Any) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    layers = [] if hidden is None else [hidden()]
    model = keras.Sequential([keras.Input((4,), name="x"), *layers, keras.layers.Dense(1)])
    model.compile(**{"optimizer": keras.optimizers.SGD(0.05), "loss": "mse", **options})
    return model


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ConfigurationError, FeedError) as e:
        return f"{type(e).__name__}: {e}"
    return "no error"


def own_share(args: dict[str, Any], ctx: Any) -> Any:
    """A dataset of this worker's own, whose length nobody knows, as that of files."""
    import tensorflow as tf

    x, y = args["x"], args["y"]
    mine = slice(0, ROWS[0]) if ctx.index == 0 else slice(ROWS[0], None)
    return tf.data.Dataset.from_tensor_slices((x[mine], y[mine])).filter(lambda *_: True).batch(BATCH)


def files(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    model = net(metrics=["mae"])
    ctx.synchronize(model)
    validation = (args["x"][:21], args["y"][:21])
    history = model.fit(own_share(args, ctx), epochs=2, validation_data=validation, verbose=0).history
    return {"weights": model.get_weights(), "history": history, "epochs": len(history["loss"])}


def shuffles_itself(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """A PyDataset, which Keras tells when an epoch begins and ends."""
    import keras

    class Batches(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[str] = []

        def __len__(self) -> int:
            return 2 + ctx.index

        def __getitem__(self, index: int) -> Any:
            rows = slice(BATCH * index, BATCH * (index + 1))
            return args["x"][rows], args["y"][rows]

        def on_epoch_begin(self) -> None:
            self.told.append("begin")

        def on_epoch_end(self) -> None:
            self.told.append("end")

    model, batches = net(), Batches()
    ctx.synchronize(model)
    model.fit(batches, epochs=2, verbose=0)
    return {"told": batches.told, "weights": model.get_weights()}


def callbacks_that_write(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    import keras

    place = Path(args["directory"])
    given = [
        keras.callbacks.ModelCheckpoint(str(place / "w.weights.h5"), save_weights_only=True),
        [keras.callbacks.CSVLogger(str(place / "log.csv"))],
        keras.callbacks.TensorBoard(str(place / "board")),
    ]
    model = net()
    ctx.fit(model, batch_size=BATCH, label="y", columns=["x"], epochs=3, callbacks=given)
    last = net(seed=4)
    last.load_weights(place / "w.weights.h5")
    return {"weights": model.get_weights(), "read": last.get_weights(), "paths": str(given[0].filepath)}


def back_up_and_restore(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    import keras

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise InterruptedError

    def callback() -> Any:
        return keras.callbacks.BackupAndRestore(os.path.join(args["directory"], "backup"))

    def train(model: Any, *callbacks: Any) -> Any:
        ctx.synchronize(model)
        return model.fit(own_share(args, ctx), epochs=5, verbose=0, callbacks=[callback(), *callbacks]).epoch

    first = net(optimizer=keras.optimizers.Adam(0.01))
    with pytest.raises(InterruptedError):
        train(first, Fails())
    # The others' weights are none that anyone has saved.
    second = net(seed=5 + ctx.index, optimizer=keras.optimizers.Adam(0.01))
    epochs = train(second)
    return {"epochs": epochs, "weights": second.get_weights(), "iterations": int(second.optimizer.iterations.numpy())}


def dropout(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    import keras

    def once() -> Any:
        model = net(lambda: keras.layers.Dropout(0.5))
        ctx.fit(model, batch_size=BATCH, label="y", columns=["x"], epochs=1)
        return model

    first, second = once(), once()
    masks = [np.asarray(m.layers[0](np.ones((4, 4), "float32"), training=True)) for m in (first, second)]
    return {"weights": first.get_weights(), "again": second.get_weights(), "masks": masks}


def predict(args: dict[str, Any], ctx: Any) -> int:
    return len(net().predict(own_share(args, ctx).map(lambda x, y: x), verbose=0))


def columns(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """A functional model takes the columns of its inputs' names, scalars as (1,) too."""
    import keras

    keras.utils.set_random_seed(1)
    x, n = keras.Input((4,), name="x"), keras.Input((1,), name="n")
    model = keras.Model([n, x], keras.layers.Dense(1)(keras.layers.Concatenate()([x, n])))
    model.compile("sgd", "mse")
    ctx.fit(model, batch_size=BATCH, label="y", epochs=1)
    other = keras.Model({"z": (z := keras.Input((1,), name="z"))}, keras.layers.Dense(1)(z))
    other.compile("sgd", "mse")
    return {
        "weights": model.get_weights(),
        "missing": refusal(lambda: ctx.fit(other, batch_size=BATCH, label="y", epochs=1)),
    }


def vectors(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.F1Score(name="f1")])
    return ctx.fit(
        model,
        batch_size=BATCH,
        label="y",
        columns=["x"],
        epochs=1,
        map_batch=lambda x, y: (x, keras.ops.one_hot(keras.ops.cast(y > 0, "int32"), 2)),
    )


def captured(args: dict[str, Any], ctx: Any) -> list[Any]:
    """A model that came from the driver, made before main was called."""
    model = args["model"]
    ctx.fit(model, batch_size=BATCH, label="y", columns=["x"], epochs=1)
    return model.get_weights()


def mistakes(args: dict[str, Any], ctx: Any) -> dict[str, str]:
    import keras
    import tensorflow as tf

    def alone() -> None:
        net().fit(ctx.dataset(BATCH, ["x"], label="y"), verbose=0)

    def loop_alone() -> None:
        model = net()
        for features, y in ctx.dataset(BATCH, ["x"], label="y"):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(features["x"])[:, 0] - y))
            model.optimizer.apply_gradients(zip(tape.gradient(loss, model.weights), model.weights, strict=True))

    def different_models() -> None:
        ctx.fit(net(lambda: keras.layers.Dense(2 + ctx.index)), batch_size=BATCH, label="y", columns=["x"], epochs=1)

    def split() -> None:
        ctx.fit(net(), batch_size=BATCH, label="y", columns=["x"], epochs=1, validation_split=0.5)

    def fit_to(label: str, loss: str) -> None:
        ctx.fit(net(loss=loss), batch_size=BATCH, label=label, columns=["x"], epochs=1)

    def fit_arrays(model: Any) -> None:
        ctx.synchronize(model)
        model.fit(args["x"], args["y"], batch_size=BATCH, verbose=0)

    def stateful() -> None:
        inputs = keras.Input(batch_shape=(BATCH, 4), name="x")
        steps = keras.layers.LSTM(2, stateful=True, name="memory")(keras.layers.Reshape((2, 2))(inputs))
        model = keras.Model(inputs, steps)
        model.compile("sgd", "mse")
        fit_arrays(model)

    def vocabulary(same: bool) -> None:
        words = keras.layers.IntegerLookup(output_mode="one_hot", max_tokens=4, name="words")
        words.adapt(np.arange(3) + (0 if same else ctx.index))
        inputs = keras.Input((4,), name="x")
        model = keras.Model(inputs, keras.layers.Dense(1)(words(keras.ops.cast(inputs, "int64"))))
        model.compile("sgd", "mse")
        fit_arrays(model)

    def under_a_condition() -> None:
        class EverySecond(keras.Model):
            def train_step(self, data: Any) -> dict[str, Any]:
                x, y = data
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(self(x)[:, 0] - y))
                gradients = tape.gradient(loss, self.trainable_variables)

                def apply() -> tf.Tensor:
                    self.optimizer.apply(gradients, self.trainable_variables)
                    return tf.constant(0)

                tf.cond(tf.shape(x)[0] % 2 == 0, apply, lambda: tf.constant(0))
                return {"loss": loss}

        inputs = keras.Input((4,), name="x")
        model = EverySecond(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse")
        fit_arrays(model)

    return {
        "stateful": refusal(stateful),
        "same_vocabulary": refusal(lambda: vocabulary(True)),
        "vocabularies": refusal(lambda: vocabulary(False)),
        "under_a_condition": refusal(under_a_condition),
        "steps": refusal(lambda: ctx.fit(net(), batch_size=BATCH, label="y", steps_per_epoch=2)),
        "alone": refusal(alone),
        "strings": refusal(lambda: fit_to("unused", "mse")),
        "loop_alone": refusal(loop_alone),
        "different_models": refusal(different_models),
        "split": refusal(split),
        "no_label": refusal(lambda: ctx.fit(net(), batch_size=BATCH, columns=["x"], epochs=1)),
        "not_compiled": refusal(lambda: ctx.fit(keras.Sequential(), batch_size=BATCH, label="y")),
        "too_many": refusal(lambda: ctx.fit(net(), batch_size=BATCH, label="y", epochs=1000)),
    }


def one_stops(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Only one worker sees what makes a callback stop."""
    import keras

    nan = float("nan") if ctx.index == 1 else 1.0
    model = net()
    ctx.synchronize(model)
    dataset = own_share(args, ctx).map(lambda x, y: (x, y * nan))
    history = model.fit(dataset, epochs=3, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
    return {"epochs": len(history.epoch), "loss": history.history["loss"]}


def large_table(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """A loop of one's own, without a scope, on an embedding table of which a step needs few rows."""
    import keras
    import tensorflow as tf

    from tfspark.node.keras.collectives import Group

    keras.utils.set_random_seed(2 + ctx.index)  # The workers begin with the chief's weights all the same.
    table = keras.layers.Embedding(200_000, 16)
    model = keras.Sequential([keras.Input((), dtype="int32"), table, keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    ctx.synchronize(model, optimizer)
    sent: list[int] = []
    dense = Group.sum_of_gradients

    def noting(self: Any, t: Any, *args: Any) -> Any:
        sent.append(t.shape.num_elements() or 0)
        return dense(self, t, *args)

    Group.sum_of_gradients = noting

    @tf.function
    def train_step(batch: Any) -> None:
        def step(features: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = ctx.average_loss((model(features["id"])[:, 0] - y) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        ctx.strategy().run(step, args=batch)

    try:
        for batch in ctx.distribute(ctx.dataset(BATCH, ["id"], label="y")):
            train_step(batch)
    finally:
        Group.sum_of_gradients = dense
    rows = model.weights[0].numpy()
    return {"weights": [rows[:60], model.weights[1].numpy()], "largest": max(sent), "steps": int(optimizer.iterations)}


def fits_again(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Fits of one model on batches of other parts, with callbacks that evaluate, some on the chief alone."""
    import keras

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if ctx.is_chief:
                alone.append(self.model.evaluate(args["x"], args["y"], verbose=0))
            together.append(ctx.evaluate(self.model, own_share(args, ctx))["loss"])

    alone: list[float] = []
    together: list[float] = []
    model = net(loss=keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"))
    ctx.synchronize(model)
    weighted = own_share(args, ctx).map(lambda x, y: (x, y, y * y))
    validation = (args["x"], args["y"])
    history = [
        model.fit(data, epochs=2, verbose=0, validation_data=validation, callbacks=[Evaluates()]).history["val_loss"]
        for data in (own_share(args, ctx), weighted, own_share(args, ctx))
    ]
    return {"weights": model.get_weights(), "history": history, "alone": alone, "together": together}


def everything(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    parts = (
        files,
        callbacks_that_write,
        back_up_and_restore,
        dropout,
        predict,
        columns,
        vectors,
        captured,
        one_stops,
        large_table,
        fits_again,
        shuffles_itself,
        mistakes,
    )
    import tensorflow as tf

    found = {part.__name__: part(args, ctx) for part in parts}
    return {**found, "threads": tf.config.threading.get_inter_op_parallelism_threads()}


@pytest.fixture(scope="module")
def done(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    rng = np.random.default_rng(0)
    n = sum(ROWS)
    x, y = rng.normal(size=(n, 4)).astype("float32"), rng.normal(size=n).astype("float32")
    args = {"directory": str(tmp_path_factory.mktemp("together")), "x": x, "y": y, "model": net(seed=9)}
    parts = [list(range(ROWS[0])), list(range(ROWS[0], n))]
    rows = [[(i, x[i].tolist(), float(y[i]), float(i % 3), f"word {i}") for i in part] for part in parts]
    rdd = spark.sparkContext.parallelize(rows, 2).flatMap(lambda p: p)
    df = spark.createDataFrame(rdd, "id int, x array<float>, y float, n float, unused string")
    # With one thread, whoever waits for the others must not hold up what they wait for.
    options = {"inter_op_threads": 1}
    with tfspark.Cluster(spark, everything, args, workers=2, tensorflow_options=options) as cluster:
        cluster.feed(df, epochs=EPOCHS_FED, shapes={"x": 4})
    return args, [cluster.results["worker", i] for i in (0, 1)]


def both(done: Any, part: str) -> tuple[Any, Any]:
    return tuple(worker[part] for worker in done[1])


def equal(first: list[Any], second: list[Any]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_workers_that_read_their_own_files_train_as_one_process(done: Any) -> None:
    import tensorflow as tf

    args, _ = done
    first, second = both(done, "files")
    equal(first["weights"], second["weights"])
    halves = [np.arange(ROWS[0]), np.arange(ROWS[0], sum(ROWS))]
    steps = [[h[i : i + BATCH] for i in range(0, len(h), BATCH)] for h in halves]
    batches = [np.concatenate([s[i] for s in steps if i < len(s)]) for i in range(max(map(len, steps)))]
    dataset = tf.data.Dataset.from_generator(
        lambda: ((args["x"][b], args["y"][b]) for b in batches),
        output_signature=(tf.TensorSpec([None, 4]), tf.TensorSpec([None])),
    )
    model = net(metrics=["mae"])
    validation = (args["x"][:21], args["y"][:21])
    history = model.fit(dataset, epochs=2, validation_data=validation, verbose=0).history
    for mine, expected in zip(first["weights"], model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)
    for key, values in history.items():
        np.testing.assert_allclose(first["history"][key], values, rtol=1e-4, err_msg=key)
        np.testing.assert_allclose(second["history"][key], values, rtol=1e-4, err_msg=key)


def test_callbacks_write_on_the_chief_alone(done: Any) -> None:
    place = Path(done[0]["directory"])
    first, second = both(done, "callbacks_that_write")
    for worker in (first, second):
        equal(worker["weights"], worker["read"])
        assert worker["paths"] == str(place / "w.weights.h5"), "a callback keeps the path that it was made with"
    assert (place / "log.csv").read_text().startswith("epoch,loss")
    assert len((place / "log.csv").read_text().splitlines()) == 4
    assert len(list((place / "board").rglob("events*"))) == 1


def test_what_a_backup_restores_reaches_all_workers(done: Any) -> None:
    first, second = both(done, "back_up_and_restore")
    assert first["epochs"] == second["epochs"] == [3, 4]
    assert first["iterations"] == second["iterations"] == 5 * 5
    equal(first["weights"], second["weights"])


def test_dropout_differs_by_worker_and_not_from_run_to_run(done: Any) -> None:
    first, second = both(done, "dropout")
    equal(first["weights"], second["weights"])
    equal(first["weights"], first["again"])
    for worker in (first, second):
        np.testing.assert_array_equal(*worker["masks"])
    assert not np.array_equal(first["masks"][0], second["masks"][0])


def test_tensorflow_is_told_what_it_takes_only_at_first(done: Any) -> None:
    assert both(done, "threads") == (1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 1}, "has no option 'threads'"),
        ({"memory_growth": 1}, "memory_growth must be True or False, got 1"),
        ({"intra_op_threads": 0}, "intra_op_threads must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_options_of_tensorflow_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        TensorFlowOptions.of(options)


def out_of_range(args: Any, ctx: Any) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    ctx.fit(model, batch_size=BATCH, label="id")


def unpicklable(args: Any, ctx: Any) -> Any:
    return iter(ctx.dataset(BATCH, ["x"]))


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (out_of_range, r"A label in column 'id' is \d+, but the model has 3 outputs: labels must be from 0 to 2"),
        (unpicklable, "main returned a OwnedIterator that cannot be pickled"),
    ],
)
def test_what_a_node_raises_says_what_to_do(spark: Any, main: Callable[..., Any], words: str) -> None:
    df = spark.range(0, 20, 1, 1).selectExpr("int(id) as id", "array(1f, 2f, 3f, 4f) as x")
    with pytest.raises(NodeFailed, match=words), tfspark.Cluster(spark, main, workers=1) as cluster:
        cluster.feed(df, shapes={"x": 4})


def test_each_worker_predicts_for_itself(done: Any) -> None:
    assert both(done, "predict") == (ROWS[0], ROWS[1])


def test_a_model_gets_the_columns_of_its_inputs(done: Any) -> None:
    first, second = both(done, "columns")
    equal(first["weights"], second["weights"])
    assert "No column is fed for the model inputs ['z']" in first["missing"]
    assert "'unused'" in first["missing"], "the columns that are there"


def test_metrics_that_are_vectors_come_back_as_lists(done: Any) -> None:
    first, second = both(done, "vectors")
    assert first == second
    assert [len(v) for v in first["f1"]] == [2]


def test_a_model_of_the_driver_trains_on_all_workers(done: Any) -> None:
    first, second = both(done, "captured")
    equal(first, second)
    assert not np.array_equal(first[0], done[0]["model"].get_weights()[0])


def test_a_callback_that_stops_one_worker_stops_all(done: Any) -> None:
    first, second = both(done, "one_stops")
    assert first["epochs"] == second["epochs"] == 1
    np.testing.assert_equal(first["loss"], second["loss"])


def test_of_a_large_table_only_the_rows_of_a_step_travel(done: Any) -> None:
    first, second = both(done, "large_table")
    equal(first["weights"], second["weights"])
    assert first["steps"] == second["steps"] == -(-max(ROWS) // BATCH)
    assert 0 < first["largest"] < 1000


def test_a_model_is_fitted_again_and_evaluated_in_callbacks(done: Any) -> None:
    first, second = both(done, "fits_again")
    equal(first["weights"], second["weights"])
    assert first["together"] == second["together"]
    np.testing.assert_allclose(first["alone"], first["together"], rtol=1e-5)
    np.testing.assert_allclose(np.ravel(first["history"]), first["together"], rtol=1e-5)
    assert second["alone"] == []


def test_data_learn_of_their_epochs(done: Any) -> None:
    first, second = both(done, "shuffles_itself")
    assert first["told"] == second["told"] == ["begin", "end"] * 2
    equal(first["weights"], second["weights"])


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("stateful", "The layers ['memory'] are stateful"),
        ("same_vocabulary", "no error"),
        ("vocabularies", "The workers have adapted the preprocessing layers ['words'] to different data"),
        ("under_a_condition", "The optimizer is applied only under a condition of the graph"),
        ("steps", "ctx.fit takes no steps_per_epoch"),
        ("alone", "this optimizer is not synchronized"),
        ("loop_alone", "this optimizer is not synchronized"),
        ("different_models", "The workers' models have different variables"),
        ("strings", "The label column 'unused' holds strings"),
        ("split", "validation_split does not work with several workers"),
        ("no_label", "ctx.fit was given no label"),
        ("not_compiled", "The model is not compiled"),
        ("too_many", "fit(epochs=1000) needs 1000 epochs, but only"),
    ],
)
def test_mistakes_are_told_before_the_workers_drift_apart(done: Any, mistake: str, words: str) -> None:
    for worker in both(done, "mistakes"):
        assert words in worker[mistake]


def leaves_early(args: Any, ctx: Any) -> None:
    if ctx.index == 0:
        model = net()
        ctx.synchronize(model)
        model.fit(own_share(args, ctx), epochs=1, verbose=0)


def test_workers_that_wait_for_one_another_are_shown_where_they_stand(spark: Any) -> None:
    args = {"x": np.zeros((50, 4), "float32"), "y": np.zeros(50, "float32")}
    with (
        pytest.raises(StepTimeout, match=r"worker 0 on .* has stood in a training step for \d+ s") as raised,
        tfspark.Cluster(spark, leaves_early, args, workers=2, step_timeout=12.0),
    ):
        pass
    assert "model.fit(own_share(args, ctx)" in str(raised.value)


def test_a_model_is_saved_with_its_own_activity_regularizer(tmp_path: Path) -> None:
    import keras

    from tfspark.node.keras.losses import GlobalRegularizer

    own = keras.regularizers.L2(0.25)
    layer = keras.layers.Dense(2, activity_regularizer=own)
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.activity_regularizer = GlobalRegularizer(own)
    model.save(tmp_path / "m.keras")
    saved = keras.models.load_model(tmp_path / "m.keras").layers[-1].activity_regularizer
    assert type(saved) is keras.regularizers.L2 and saved.get_config() == own.get_config()
    x = np.ones((4, 2), np.float32)
    assert float(GlobalRegularizer(own)(x)) == float(own(x)) == 2.0, "outside of a step it is the regularizer itself"
