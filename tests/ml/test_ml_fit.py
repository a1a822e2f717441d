"""Training, predicting and evaluating through `tfspark.ml`, on real workers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
from pyspark.sql import functions as F

from tfspark.errors import ConfigurationError, FeedError, NodeFailed, SchemaError
from tfspark.ml import KerasEstimator, KerasModel
from tfspark.ml.slots import SlotQueue

ROWS = 240


@pytest.fixture(scope="module")
def rows(spark: Any) -> Any:
    """Rows of which more than half of the partitions are empty, with every kind of feature."""
    df = spark.range(0, ROWS, 1, 2).selectExpr(
        "float(id % 7) / 7 as a",
        "double(id % 5) as b",
        "array('red', 'green', 'blue')[int(id % 3)] as colour",
        "concat_ws(' ', if(id % 2 = 0, 'good', 'bad'), 'day') as remark",
        "float(id % 7) / 7 + if(id % 2 = 0, 2, 0) as y",
        "double(id % 3) as kind",
        "id % 4 = 0 as held_back",
        "float(id % 3) as w",
        "id",
    )
    # The partitions stay as they are: by a key that has few values.
    return df.repartition(8, F.col("id") % 2).cache()


def build_two_headed() -> Any:
    """Vectors and strings in, a number and three classes out."""
    import keras

    inputs = [keras.Input((2,), name="numbers")]
    inputs += [keras.Input((1,), name=name, dtype="string") for name in ("colour", "remark")]
    colour = keras.layers.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")(inputs[1])
    words = keras.layers.TextVectorization(vocabulary=["good", "bad", "day"], output_mode="multi_hot")(inputs[2])
    x = keras.layers.Concatenate()([inputs[0], colour, keras.layers.Flatten()(words)])
    x = keras.layers.Dense(16, activation="relu")(keras.layers.BatchNormalization(momentum=0.8)(x))
    amount = keras.layers.Dense(1, name="amount")(x)
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(x)
    return keras.Model(inputs, [amount, kind])


def two_headed(**params: Any) -> Pipeline:
    columns = {
        "featuresCols": {"numbers": "features", "colour": "colour", "remark": "remark"},
        "labelCols": {"amount": "y", "kind": "kind"},
        "loss": {"amount": "mse", "kind": "sparse_categorical_crossentropy"},
        "metrics": {"amount": ["mae"], "kind": ["accuracy"]},
    }
    estimator = KerasEstimator(model=build_two_headed, optimizer="adam", learningRate=0.02, **columns, **params)
    return Pipeline(stages=[VectorAssembler(inputCols=["a", "b"], outputCol="features"), estimator])


@pytest.fixture(scope="module")
def fitted(rows: Any) -> Any:
    pipeline = two_headed(numWorkers=2, epochs=12, batchSize=16, validationIndicatorCol="held_back", seed=5)
    return pipeline.fit(rows)


def test_several_inputs_and_outputs_strings_and_vectors(fitted: Any, rows: Any) -> None:
    scored = fitted.transform(rows)
    kinds = {f.name: f.dataType.simpleString() for f in scored.schema.fields}
    assert scored.columns == [*rows.columns, "features", "prediction_amount", "prediction_kind"]
    assert (kinds["features"], kinds["prediction_amount"], kinds["prediction_kind"]) == (
        "vector",
        "float",
        "array<float>",
    )
    found = scored.collect()
    assert len(found) == ROWS
    right = [int(np.argmax(r.prediction_kind)) == r.kind for r in found]
    assert np.mean(right) > 0.95
    assert RegressionEvaluator(predictionCol="prediction_amount", labelCol="y").evaluate(scored) < 0.7
    keras_model = fitted.stages[-1].toKeras()
    import tensorflow as tf

    batch = {"numbers": tf.constant([r.features.toArray() for r in found], tf.float32)}
    batch |= {n: tf.constant([[r[n]] for r in found]) for n in ("colour", "remark")}
    amount, kind = keras_model(batch)
    np.testing.assert_allclose([r.prediction_amount for r in found], np.ravel(amount), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([r.prediction_kind for r in found], kind, rtol=1e-4, atol=1e-5)


def test_history_has_a_row_for_each_epoch_and_is_drawn(fitted: Any) -> None:
    model = fitted.stages[-1]
    history = model.history
    assert history.columns[0] == "epoch" and {"loss", "val_loss", "kind_accuracy", "val_kind_accuracy"} < set(
        history.columns
    )
    values = history.orderBy("epoch").collect()
    assert [r.epoch for r in values] == list(range(1, 13))
    assert values[-1].loss < values[0].loss / 2
    assert [r.val_loss for r in values] == list(model.summary.metrics["val_loss"])
    assert (model.summary.rows, model.summary.validationRows) == (ROWS * 3 // 4, ROWS // 4)
    figure = model.summary.plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert "loss" in titles and not any(t.startswith("val_") for t in titles)
    (loss,) = [axes for axes in figure.axes if axes.get_title() == "loss"]
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), [r.val_loss for r in values])


def test_validation_and_evaluation_are_exact_over_workers_with_unequal_rows(fitted: Any, rows: Any) -> None:
    model = fitted.stages[-1]
    held_back = fitted.stages[0].transform(rows.where("held_back"))
    found = model.transform(held_back).collect()
    squares = np.mean([(r.prediction_amount - r.y) ** 2 for r in found])
    cross = np.mean([-math.log(r.prediction_kind[int(r.kind)]) for r in found])
    expected = {
        "amount_mae": np.mean([abs(r.prediction_amount - r.y) for r in found]),
        "kind_accuracy": np.mean([np.argmax(r.prediction_kind) == r.kind for r in found]),
        "loss": squares + cross,
    }
    evaluated = model.evaluate(held_back)
    for name, value in expected.items():
        assert model.summary.metrics[f"val_{name}"][-1] == pytest.approx(value, rel=1e-4), name
        assert evaluated[name] == pytest.approx(value, rel=1e-4), name


def test_a_pipeline_model_comes_back_from_a_file(fitted: Any, rows: Any, spark: Any, tmp_path: Any) -> None:
    path = f"file://{tmp_path}/model"
    fitted.write().overwrite().save(path)
    loaded = PipelineModel.load(path)
    saved, again = fitted.stages[-1], loaded.stages[-1]
    assert again.uid == saved.uid and again.summary == saved.summary and again.trained == saved.trained
    assert again.extractParamMap().keys() == saved.extractParamMap().keys()
    columns = ["id", "prediction_amount", "prediction_kind"]
    expected, found = (m.transform(rows).select(*columns).orderBy("id").collect() for m in (fitted, loaded))
    for old, new in zip(expected, found, strict=True):
        assert new.prediction_amount == pytest.approx(old.prediction_amount, rel=1e-5)
        assert new.prediction_kind == pytest.approx(old.prediction_kind, rel=1e-5)
    again.write().overwrite().save(path)
    assert KerasModel.load(path).trained == saved.trained


def test_a_model_says_what_it_cannot_do(fitted: Any, rows: Any) -> None:
    model = fitted.stages[-1]
    features = fitted.stages[0].transform(rows)
    for params, message in (
        (
            {model.featuresCols: {"numbers": "features"}},
            r"inputs of the model, \['colour', 'numbers', 'remark'\]",
        ),
        ({model.predictionCols: {"price": "p"}}, r"unknown outputs \['price'\]; the model has \['amount', 'kind'\]"),
        ({model.predictionCols: {"amount": "y"}}, r"Columns \['y'\] exist already"),
        ({model.probabilityCol: "p"}, "A classifier must have one output"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            model.transform(features, params)
    with pytest.raises(ConfigurationError, match="has no trained model"):
        KerasModel().transform(rows)
    with pytest.raises(ConfigurationError, match="is not a local path"):
        model.export("hdfs:///models")


def test_an_export_is_what_predict_takes(fitted: Any, rows: Any, tmp_path: Any) -> None:
    import tfspark

    model = fitted.stages[-1]
    assert model.export(str(tmp_path)) == str(tmp_path / "1")
    assert model.export(str(tmp_path)) == str(tmp_path / "2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    arrays = rows.selectExpr("array(a, float(b)) as numbers", "colour", "remark", "id")
    expected = fitted.transform(rows).orderBy("id").collect()
    found = tfspark.predict(arrays, str(tmp_path)).orderBy("id").collect()
    np.testing.assert_allclose(
        [r.output_0 for r in found], [r.prediction_amount for r in expected], rtol=1e-4, atol=1e-5
    )


# --- weights


def build_line() -> Any:
    import keras

    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])


def fit_line(df: Any, **params: Any) -> KerasModel:
    # All rows in one batch, so that equal results are equal gradients.
    common = {"featuresCol": "x", "labelCol": "y", "batchSize": 1000, "epochs": 3, "shuffle": False}
    common |= {"optimizer": "sgd", "learningRate": 0.05, "loss": "mse", "metrics": ["mae"]}
    return KerasEstimator(**{"model": build_line, **common, **params}).fit(df)


def test_a_weight_counts_as_so_many_rows_and_trials_share_the_slots(spark: Any) -> None:
    """Four trials of two nodes each, of which Spark has slots for one at a time."""
    df = spark.range(0, 40, 1, 4).selectExpr(
        "array(float(id % 7), float(id % 3)) as x", "float(id % 7) * 2 - 1 as y", "int(id % 3) as w", "id"
    )
    duplicated = df.select("x", "y", F.explode(F.expr("array_repeat(0, w)")))
    by_label = df.withColumn("w", F.when(F.col("y") == 3, 3.0).otherwise(1.0))
    jobs: list[tuple[Any, dict[str, Any]]] = [
        (df, {"weightCol": "w"}),
        (duplicated, {}),
        (df, {"classWeight": {3: 3}}),
        (by_label, {"weightCol": "w"}),
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        models = list(pool.map(lambda job: fit_line(job[0], numWorkers=2, **job[1]), jobs))
    weights = [np.ravel(np.concatenate([w.ravel() for w in m.toKeras().get_weights()])) for m in models]
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)
    np.testing.assert_allclose(weights[2], weights[3], rtol=1e-5)
    assert np.abs(weights[0] - weights[2]).max() > 1e-3
    for name in ("loss", "mae"):
        np.testing.assert_allclose(models[0].summary.metrics[name], models[1].summary.metrics[name], rtol=1e-5)
    evaluated = [models[0].evaluate(df), models[1].evaluate(duplicated)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)


def test_losses_are_weighted_means_whatever_batches_rows_fall_into(spark: Any) -> None:
    """The batches weigh very differently: the weight goes with the order of the rows."""
    df = spark.range(0, 64, 1, 1).selectExpr(
        "array(float(id), 1f) as x", "float(id % 5) as y", "if(id < 32, 1.0, 10.0) as w", "id % 8 = 7 as held"
    )
    params = {"weightCol": "w", "validationIndicatorCol": "held", "batchSize": 8, "epochs": 1, "learningRate": 0.0}
    model = fit_line(df, **params)
    # The model gives 0, whatever comes.
    rows = df.selectExpr("y", "double(w) as w", "held").toPandas()
    loss = {held: np.average(r.y**2, weights=r.w) for held, r in rows.groupby("held")}
    assert model.summary.metrics["loss"] == pytest.approx([loss[False]], rel=1e-5)
    assert model.summary.metrics["val_loss"] == pytest.approx([loss[True]], rel=1e-5)
    found = model.evaluate(df)
    assert found["loss"] == pytest.approx(np.average(rows.y**2, weights=rows.w), rel=1e-5)
    assert found["mae"] == pytest.approx(np.average(rows.y, weights=rows.w), rel=1e-5)


def test_slots_are_granted_in_the_order_of_asking() -> None:
    queue, order, begun = SlotQueue(), [], threading.Semaphore(0)

    def trial(name: str, wanted: int) -> None:
        with queue.hold(wanted, 3):
            order.append(name)
            begun.release()

    with queue.hold(2, 3):
        # A trial that would fit does not overtake one that came before it.
        threads = []
        for i, (name, wanted) in enumerate([("large", 3), ("small", 1)]):
            threads.append(threading.Thread(target=trial, args=(name, wanted)))
            threads[-1].start()
            with queue._changed:
                queue._changed.wait_for(lambda n=i + 1: queue.waiting == n, 10)
        assert queue.waiting == 2 and order == []
    for t in threads:
        t.join(10)
    assert order == ["large", "small"] and queue.waiting == 0


# --- classifiers, tuning


def build_classifier() -> Any:
    import keras

    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")])


def test_tuning_chooses_the_learning_rate_that_learns(spark: Any) -> None:
    df = spark.range(0, 300, 1, 4).selectExpr("double(id % 13) / 13 as a", "double(id % 5) / 5 as b")
    df = df.withColumn("label", (F.col("a") > F.col("b")).cast("double"))
    estimator = KerasEstimator(
        model=build_classifier,
        loss="sparse_categorical_crossentropy",
        optimizer="adam",
        epochs=12,
        seed=3,
        probabilityCol="probability",
    )
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["a", "b"], outputCol="features"), estimator])
    grid = ParamGridBuilder().addGrid(estimator.learningRate, [1e-6, 0.05]).build()
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    tuned = TrainValidationSplit(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator, parallelism=2, seed=1
    ).fit(df)
    bad, good = tuned.validationMetrics
    assert good > 0.9 > bad
    scored = tuned.bestModel.transform(df)
    assert evaluator.evaluate(scored) > 0.9
    row = scored.first()
    assert row.prediction == float(np.argmax(row.probability.toArray())) and row.probability.toArray().sum() > 0.999
    assert tuned.bestModel.stages[-1].getLearningRate() == 0.05


def test_columns_with_dots_a_model_class_and_metadata(spark: Any) -> None:
    """Dots in all names; a class of models with a layer of one's own; what a classifier notes of its columns."""
    import keras
    from pyspark.ml.classification import LogisticRegression

    class Twice(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return 2 * inputs

    class Own(keras.Model):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.twice, self.dense = Twice(), keras.layers.Dense(2, "softmax")

        def call(self, inputs: Any) -> Any:
            return self.dense(self.twice(inputs))

    df = spark.range(0, 60, 1, 2).selectExpr(
        "array(float(id % 7), 1f) as `x.x`", "double(id % 7 > 3) as `y.y`", "float(1 + id % 2) as `w.w`",
        "id % 5 = 0 as `v.v`",
    )  # fmt: skip
    estimator = KerasEstimator(
        model=Own, featuresCol="x.x", labelCol="y.y", weightCol="w.w", validationIndicatorCol="v.v",
        predictionCol="p.p", probabilityCol="q.q", loss="sparse_categorical_crossentropy", metrics=["accuracy"],
        optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)), epochs=3,
    )  # fmt: skip
    model = estimator.fit(df)
    assert model.summary.rows == 48 and model.summary.validationRows == 12
    scored = model.transform(df)
    assert scored.columns == [*df.columns, "q.q", "p.p"]
    assert {r["p.p"] for r in scored.collect()} <= {0.0, 1.0}
    vectors = VectorAssembler(inputCols=["y", "w"], outputCol="features").transform(
        df.selectExpr("`y.y` as y", "`w.w` as w", "`y.y` as label")
    )
    of_spark = LogisticRegression(maxIter=1).fit(vectors).transform(vectors)
    for own, spark_own in (("q.q", "probability"), ("p.p", "prediction")):
        assert scored.schema[own].metadata == of_spark.schema[spark_own].metadata, own
    with pytest.raises(ConfigurationError, match=r"custom classes or functions that Keras does not know.*'Own'") as e:
        model.toKeras()
    assert e.value.hint == "Pass customObjects={'Own': Own}."
    with pytest.raises(NodeFailed, match=r"does not know: \['Own'\]"):
        model.evaluate(df)
    found = model.copy({model.customObjects: {"Own": Own}}).evaluate(df)
    assert set(found) == {"loss", "accuracy"}


def build_logit() -> Any:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), keras.losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def record_workers() -> Any:
    import keras

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["epoch_seen"] = float(epoch)

    return Record()


def test_a_compiled_keras_model_is_trained_until_it_stops_improving(spark: Any) -> None:
    """A Keras object, its own optimizer and loss, callbacks, early stopping, a binary classifier with one logit."""
    df = spark.range(0, 200, 1, 3).selectExpr("array(float(id % 9) - 4, 1.0f) as x", "int(id % 9 > 4) as label", "id")
    estimator = KerasEstimator(
        model=build_logit(),
        featuresCol="x",
        rawPredictionCol="raw",
        epochs=200,
        learningRate=0.0,
        callbacks=[record_workers],
        earlyStoppingPatience=2,
        validationSplit=0.3,
        seed=11,
    )
    model = estimator.fit(df)
    # A learning rate of 0 improves nothing after the first epoch.
    assert model.summary.totalIterations == 3
    assert list(model.summary.metrics["epoch_seen"]) == [0.0, 1.0, 2.0]
    assert model.summary.rows + model.summary.validationRows == 200 and 30 < model.summary.validationRows < 90
    np.testing.assert_array_equal(model.toKeras().get_weights()[0], estimator.getModel().get_weights()[0])
    scored = model.transform(df)
    assert scored.columns == ["x", "label", "id", "raw", "prediction"]
    for row in scored.take(20):
        low, high = row.raw.toArray()
        assert low == -high and row.prediction == float(high > 0)


def quartic(y_true: Any, y_pred: Any) -> Any:
    import keras

    return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)


def test_a_saved_model_goes_on_training_with_a_loss_of_ones_own(spark: Any, tmp_path: Any) -> None:
    build_line().save(tmp_path / "line.keras")
    df = spark.range(0, 64, 1, 2).selectExpr("array(float(id % 7) / 7, 1.0f) as x", "float(id % 7) / 7 as y")
    common = {"featuresCol": "x", "labelCol": "y", "loss": quartic, "optimizer": "adam", "learningRate": 0.05}
    estimator = KerasEstimator(model=f"file://{tmp_path}/line.keras", epochs=5, **common)
    model = estimator.fit(df)
    found = model.transform(df).collect()
    expected = np.mean([(r.prediction - r.y) ** 4 for r in found])
    assert model.evaluate(df)["loss"] == pytest.approx(expected, rel=1e-4)
    model.save(str(tmp_path / "model"))
    loaded = KerasModel.load(str(tmp_path / "model"))
    assert loaded.evaluate(df)["loss"] == pytest.approx(expected, rel=1e-4)


def test_faults_in_a_fit_are_told_and_leave_the_slots_free(spark: Any) -> None:
    df = spark.range(0, 20, 1, 2).selectExpr("array(float(id), 1.0f) as x", "float(id) as y", "false as v")
    with pytest.raises(NodeFailed, match="must return a Keras model, got dict"):
        KerasEstimator(model=dict, featuresCol="x", labelCol="y", loss="mse").fit(df)
    with pytest.raises(FeedError, match="No rows are left for validation"):
        fit_line(df, validationIndicatorCol="v", numWorkers=3)
    with pytest.raises(FeedError, match="The data has no rows"):
        fit_line(df.where("y < 0"), numWorkers=3)
    with pytest.raises(SchemaError, match=r"Column 'y' holds 1 null") as e:
        fit_line(df.selectExpr("x", "if(y = 7, null, y) as y"), numWorkers=3)
    assert e.value.hint == "Drop or fill the nulls in Spark: df.dropna() or df.fillna(value)."
    labelled = df.selectExpr("x", "int(y) as y")
    with pytest.raises(
        NodeFailed, match=r"Column 'y' holds the label \d+, but the loss takes whole numbers from 0 to 1"
    ):
        fit_line(labelled, model=build_classifier, loss="sparse_categorical_crossentropy", metrics=None)


@pytest.mark.long
def test_a_saved_model_predicts_on_spark_connect_and_another_is_fitted(spark: Any, tmp_path: Any) -> None:
    df = spark.createDataFrame([([1.0, 2.0], 3.0), ([3.0, 4.0], 7.0)], "x array<float>, y float")
    model = fit_line(df, epochs=1)
    model.save(str(tmp_path / "model"))
    program = Path(__file__).parents[1] / "programs" / "ml_connect.py"
    ran = subprocess.run([sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout.splitlines()[-1])
    assert ".connect." in answer["kind"]
    expected = [r.prediction for r in model.transform(df).orderBy("y").collect()]
    assert sorted(answer["predictions"]) == pytest.approx(sorted(expected))
    here = model.evaluate(spark.createDataFrame([([1.0, 2.0], 0.5), ([3.0, 4.0], 0.25)], "x array<float>, y float"))
    assert answer["evaluated"] == pytest.approx(here)
    fitted = answer["fitted"]
    assert fitted["epochs"] == 3 and fitted["columns"] == ["x", "y", "prediction"]
    assert sum(fitted["rows"]) == 8 and min(fitted["rows"]) > 0
    for how in ("save", "overwrite", "estimator", "pipeline"):
        assert "cannot be written from Spark Connect" in answer[how], how
    assert (tmp_path / "model" / "model.keras").exists() and not (tmp_path / "again").exists()


def build_masked() -> Any:
    """The mean of a row of any length, without what is masked."""
    import keras

    x = keras.Input((None, 1), name="x")
    mean = keras.layers.GlobalAveragePooling1D()(keras.layers.Masking(-1.0)(x))
    return keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones", name="out")(mean))


def test_the_model_decides_how_long_arrays_may_be_not_the_first_rows(spark: Any) -> None:
    # The first batch of each worker has arrays of one length.
    x = "array_repeat(1f, if(id % 150000 < 140000, 2, 3)) as x"
    df = spark.range(0, 300000, 1, 2).selectExpr("id", x, "1f as label")
    means = KerasEstimator(
        model=build_masked, loss="mse", featuresCol="x", learningRate=0.0, optimizer="sgd", numWorkers=2, batchSize=5000
    )
    assert means.fit(df).history.first()["loss"] == pytest.approx(0.0, abs=1e-9)
    fixed = means.copy({means.getParam("model"): build_pairs})
    with pytest.raises(SchemaError, match="Column 'x' has arrays of length 2 in the first rows, but a later row has"):
        fixed.fit(df)
    with pytest.raises(NodeFailed, match=r"Input 'x' takes rows of shape \(2,\), but column 'x' holds arrays of other"):
        fixed.fit(df.where("id % 150000 >= 139999"))


def build_pairs() -> Any:
    import keras

    x = keras.Input((2,), name="x")
    return keras.Model(x, keras.layers.Dense(1, name="out")(x))


def test_rows_of_any_length_are_padded_with_what_the_model_masks(spark: Any, tmp_path: Path) -> None:
    x = "transform(sequence(0, id % 4), i -> float(i * id)) as x"
    df = spark.range(0, 40, 1, 4).selectExpr("id", x, "float(id) as label")
    masked = KerasEstimator(model=build_masked, loss="mse", featuresCol="x", learningRate=0.0, optimizer="sgd")
    model = masked.fit(df)
    # Weights stay as they were: the history is that of the mean itself.
    means = {i: i * (i % 4) / 2 for i in range(40)}
    loss = np.mean([(means[i] - i) ** 2 for i in range(40)])
    assert model.history.first()["loss"] == pytest.approx(loss, rel=1e-4)
    model.write().save(f"file://{tmp_path}/masked")
    for found in (model, KerasModel.load(f"file://{tmp_path}/masked")):
        for partitions in (1, 3):
            rows = found.transform(df.repartition(partitions)).collect()
            assert {r.id: r.prediction for r in rows} == pytest.approx(means, rel=1e-5)
        assert found.evaluate(df)["loss"] == pytest.approx(loss, rel=1e-4)
    exported = model.export(str(tmp_path / "exported"))
    import tfspark

    rows = tfspark.predict(df.repartition(1), exported).collect()
    assert {r.id: r[-1] for r in rows} == pytest.approx(means, rel=1e-5)
    padded = model.setPaddingValues({"x": 0.0}).transform(df.where("id < 4").coalesce(1)).orderBy("id").collect()
    assert [r.prediction for r in padded] == pytest.approx([0, 1 / 4, 6 / 4, 18 / 4], rel=1e-5)
    with pytest.raises(Exception, match=r"'x' holds 1 null(.|\n)*Drop or fill the nulls in Spark: df.dropna"):
        model.transform(df.selectExpr("id", "if(id = 3, null, x) as x")).collect()
