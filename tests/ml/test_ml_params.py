"""The Params of `tfspark.ml`: what they take, and that they come back from a file as they were."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.param import Param
from pyspark.ml.tuning import ParamGridBuilder

from tfspark.errors import ConfigurationError, SchemaError
from tfspark.ml import KerasEstimator, KerasModel
from tfspark.ml.param_values import Configured, Pickled, as_json, live, restored
from tfspark.ml.params import KerasFile


def build() -> Any:
    import keras

    return keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="y")])


def own_loss(y_true: Any, y_pred: Any) -> Any:
    return (y_true - y_pred) ** 4


def make_callback() -> Any:
    import keras

    return keras.callbacks.TerminateOnNaN()


# Given and kept, for every Param.
VALUES: dict[str, tuple[Any, Any]] = {
    "batchSize": (np.int64(64), 64),
    "callbacks": (make_callback, [make_callback]),
    "classWeight": ({0: 1, 1: 2.5}, {0.0: 1.0, 1.0: 2.5}),
    "clusterOptions": ({"start_timeout": 60}, {"start_timeout": 60}),
    "customObjects": ({"own_loss": own_loss}, {"own_loss": own_loss}),
    "earlyStoppingMonitor": ("val_mae", "val_mae"),
    "earlyStoppingPatience": (2, 2),
    "epochs": (3.0, 3),
    "featuresCol": ("f", "f"),
    "featuresCols": (["a", "b"], {"a": "a", "b": "b"}),
    "labelCol": ("l", "l"),
    "labelCols": ({"out": "l"}, {"out": "l"}),
    "learningRate": (1, 1.0),
    "loss": ({"out": own_loss, "other": "mse"}, {"out": own_loss, "other": "mse"}),
    "lossWeights": ({"out": 0.5}, {"out": 0.5}),
    "metrics": (("mae", own_loss), ["mae", own_loss]),
    "model": (build, build),
    "numWorkers": (2, 2),
    "optimizer": ("sgd", "sgd"),
    "paddingValues": ({"x": -1.0, "s": ""}, {"x": -1.0, "s": ""}),
    "predictionBatchSize": (100, 100),
    "predictionCol": ("p", "p"),
    "predictionCols": ({"out": "p"}, {"out": "p"}),
    "probabilityCol": ("q", "q"),
    "rawPredictionCol": ("r", "r"),
    "restoreBestWeights": (False, False),
    "seed": (7, 7),
    "shapes": ({"a": 3, "b": [None, 2]}, {"a": [3], "b": [None, 2]}),
    "shuffle": (False, False),
    "validationIndicatorCol": ("v", "v"),
    "validationSplit": (0.25, 0.25),
    "weightCol": ("w", "w"),
}

WRONG: dict[str, Any] = {
    "batchSize": "many",
    "callbacks": 3,
    "classWeight": "heavy",
    "clusterOptions": {"main": build},
    "customObjects": [own_loss],
    "featuresCols": "a",
    "labelCols": {"out": 3},
    "learningRate": "fast",
    "loss": object(),
    "metrics": [True],
    "model": 3,
    "paddingValues": {"a": [0]},
    "shapes": {"a": "3"},
}


def test_every_param_is_in_this_table() -> None:
    estimator = KerasEstimator()
    assert {p.name for p in estimator.params} == set(VALUES)
    assert {p.name for p in KerasModel().params} < set(VALUES)
    assert all(p.doc for p in estimator.params)


@pytest.mark.parametrize("name", VALUES)
def test_a_param_is_set_by_keyword_setter_and_param_map(name: str) -> None:
    given, kept = VALUES[name]
    title = name[0].upper() + name[1:]
    by_keyword = KerasEstimator(**{name: given})
    by_setter = getattr(KerasEstimator(), f"set{title}")(given)
    plain = KerasEstimator()
    by_map = plain.copy({plain.getParam(name): given})
    for estimator in (by_keyword, by_setter, by_map):
        assert getattr(estimator, f"get{title}")() == kept
        assert estimator.isSet(name)
    assert not plain.isSet(name) and by_map.uid == plain.uid
    (grid,) = ParamGridBuilder().addGrid(plain.getParam(name), [given]).build()
    assert grid == {plain.getParam(name): kept}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_a_param_cannot_take_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(TypeError, match=f'Invalid param value given for param "{name}"'):
        KerasEstimator(**{name: WRONG[name]})


def test_arguments_are_keywords_and_none_is_not_set() -> None:
    with pytest.raises(TypeError, match="keyword arguments"):
        KerasEstimator(build)  # type: ignore[misc]
    assert not KerasEstimator(weightCol=None).isSet("weightCol")
    assert KerasEstimator().getWeightCol() is None


def test_an_estimator_with_every_param_comes_back_from_a_file(spark: Any, tmp_path: Any) -> None:
    saved = KerasEstimator(**{name: given for name, (given, _) in VALUES.items()})
    saved.write().save(str(tmp_path / "estimator"))
    loaded = KerasEstimator.load(str(tmp_path / "estimator"))
    assert loaded.uid == saved.uid
    for name, (_, kept) in VALUES.items():
        # Functions stay pickled until a node needs them: loading runs nothing of what is in the file.
        assert labelled(loaded.getOrDefault(name)) == labelled(kept), name
    with pytest.raises(ConfigurationError, match="exists already"):
        loaded.save(str(tmp_path / "estimator"))
    again = str(tmp_path / "again")
    loaded.write().overwrite().save(again)
    assert KerasEstimator.load(again).getModel() == loaded.getModel()


def labelled(value: Any) -> Any:
    if isinstance(value, list):
        return [labelled(v) for v in value]
    if isinstance(value, dict):
        return {k: labelled(v) for k, v in value.items()}
    return value.label if isinstance(value, Pickled) else getattr(value, "__qualname__", value)


def test_loading_runs_no_code_of_the_file(spark: Any, tmp_path: Any) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "sprung"), "w"))

    estimator = KerasEstimator(model=build, callbacks=[build])
    estimator._paramMap[estimator.callbacks] = [Pickled(__import__("pickle").dumps(Trap()), "trap")]
    estimator.save(str(tmp_path / "estimator"))
    assert KerasEstimator.load(str(tmp_path / "estimator")).getCallbacks()[0].label == "trap"
    assert not (tmp_path / "sprung").exists()


def test_a_keras_model_and_keras_objects_come_back_from_a_file(spark: Any, tmp_path: Any) -> None:
    import keras

    model = build()
    optimizer = keras.optimizers.SGD(0.25, momentum=0.5)
    estimator = KerasEstimator(model=model, optimizer=optimizer, loss=keras.losses.Huber(2.0), metrics=["mae"])
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["a"], outputCol="f"), estimator])
    path = f"file://{tmp_path}/pipeline"
    pipeline.save(path)
    _, loaded = Pipeline.load(path).getStages()
    kept = loaded.getModel()
    assert isinstance(kept, KerasFile) and isinstance(loaded.getOptimizer(), Configured)
    (directory,) = (tmp_path / "pipeline" / "stages").glob("1_*")
    again = keras.saving.load_model(directory / "model.keras")
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    assert live(as_json(loaded.getOptimizer())).get_config() == optimizer.get_config()
    assert live(as_json(loaded.getLoss())).get_config() == estimator.getLoss().get_config()
    loaded.save(str(tmp_path / "again"))
    assert KerasEstimator.load(str(tmp_path / "again")).getModel() == kept


def test_packed_objects_are_json_and_live_again() -> None:
    import json

    value = {"a": [1, "two", own_loss], "b": None}
    packed = json.loads(json.dumps(as_json(value)))
    assert live(packed)["a"][2](3, 1) == 16
    kept = restored(packed)
    assert isinstance(kept["a"][2], Pickled) and as_json(kept) == packed


def test_what_cannot_be_pickled_is_named(spark: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"model: .*cannot be sent to the nodes"):
        KerasEstimator(model=lambda: spark).source()


def scheduled() -> Any:
    import keras

    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": (dict(model=None), "has no model"),
    "epochs": (dict(epochs=0), "epochs must be >= 1, got 0"),
    "workers": (dict(numWorkers=0), "numWorkers must be >= 1, got 0"),
    "split": (dict(validationSplit=1.0), "validationSplit must be >= 0 and < 1, got 1.0"),
    "two validations": (dict(validationSplit=0.5, validationIndicatorCol="v"), "cannot both be set"),
    "optimizer alone": (
        dict(loss=None, optimizer="sgd", metrics=["mae"]),
        r"\['optimizer', 'metrics'\] are set, but loss is not",
    ),
    "classes of several": (dict(labelCols={"y": "y"}, classWeight="balanced"), "classWeight works for one label"),
    "nothing stops": (dict(restoreBestWeights=False), "are set, but earlyStoppingPatience is not"),
    "two names": (
        dict(predictionCols={"y": "p"}, probabilityCol="q"),
        "Only one of probabilityCol and predictionCols can be set",
    ),
    "features": (dict(featuresCol="none"), r"featuresCol refers to unknown columns \['none'\]"),
    "several features": (dict(featuresCols=["x", "none"]), r"featuresCols refers to unknown columns \['none'\]"),
    "label": (dict(labelCol="none"), r"labelCol refers to unknown columns \['none'\]"),
    "label of strings": (dict(labelCol="s"), "labelCol names column 's' of type string"),
    "schedule and number": (dict(optimizer=scheduled, learningRate=0.1), "the optimizer SGD has a LearningRateSched"),
    "weight": (dict(weightCol="none"), r"weightCol refers to unknown columns \['none'\]"),
    "indicator": (dict(validationIndicatorCol="none"), r"validationIndicatorCol refers to unknown columns \['none'\]"),
    "shapes": (dict(shapes={"none": 2}), r"shapes refers to columns \['none'\] that are not fed"),
    "path": (dict(model="/somewhere/saved_model"), "is not a .keras file"),
    "missing file": (dict(model="file:///nowhere/m.keras"), r"nowhere/m\.keras' cannot be read"),
    "slots": (dict(numWorkers=4), r"4 task slot\(s\), but 5 are needed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_work_is_refused_before_anything_is_launched(spark: Any, fault: str) -> None:
    wrong, message = FAULTS[fault]
    df = spark.createDataFrame([([1.0, 2.0], 1.0, True, "s")], "x array<double>, y double, v boolean, s string")
    arguments = {"model": build, "featuresCol": "x", "labelCol": "y", "loss": "mse", **wrong}
    if arguments.get("optimizer") is scheduled:
        arguments["optimizer"] = scheduled()
    with pytest.raises((ConfigurationError, SchemaError), match=message):
        KerasEstimator(**arguments).fit(df)


def test_importing_needs_no_tensorflow() -> None:
    code = "import sys, tfspark.ml; assert 'pyspark' not in sys.modules; tfspark.ml.KerasEstimator(model=len);"
    code += "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_params_keep_their_class_through_copies() -> None:
    estimator = KerasEstimator(model=build)
    copied = estimator.copy()
    assert copied.getModel() is build and isinstance(copied.model, Param)
    copied.setEpochs(9)
    assert estimator.getEpochs() == 1
