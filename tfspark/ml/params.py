"""The Params of `KerasEstimator` and `KerasModel`: Spark ML's own Params where they exist, and more in the same style.

Every Param has a getter and a setter, ``getEpochs()`` and ``setEpochs(3)``. A getter returns ``None`` if the Param is
not set and has no default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasBatchSize,
    HasFeaturesCol,
    HasLabelCol,
    HasLearningRate,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from tfspark.errors import ConfigurationError
from tfspark.ml.data import require_columns
from tfspark.ml.labels import check_label_types
from tfspark.ml.param_values import Configured, Pickled, as_json, is_keras_object

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class KerasFile:
    """The bytes of a ``.keras`` file: a Keras model that is not loaded."""

    data: bytes = field(repr=False)


def is_keras_model(value: Any) -> bool:
    """Return whether an object is a Keras model, without importing Keras."""
    named = all(hasattr(value, name) for name in ("layers", "compile", "fit", "save"))
    # A model class is not a model: it makes one when it is called, as a function does.
    return named and not isinstance(value, type)


def is_schedule(value: Any) -> bool:
    """Return whether an object, or its configuration, is a Keras LearningRateSchedule, without importing Keras."""
    if isinstance(value, Configured):
        return True
    return any(c.__name__ == "LearningRateSchedule" and c.__module__.startswith("keras.") for c in type(value).__mro__)


class KerasTypeConverters:
    """Converters for values that Spark's `TypeConverters` do not support; they raise ``TypeError`` for other values."""

    @staticmethod
    def toColumns(value: Any) -> dict[str, str]:
        """Accept ``{name: column}``, or a list of columns that have these names already."""
        if isinstance(value, Mapping) and all(isinstance(s, str) for pair in value.items() for s in pair):
            return dict(value)
        if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value):
            return {v: v for v in value}
        raise TypeError(f"Could not convert {value!r} to a mapping of names to columns")

    @staticmethod
    def toModel(value: Any) -> Any:
        """Accept a Keras model, a function or class that makes one, or the path of a ``.keras`` file."""
        if isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        if isinstance(value, (KerasFile, Pickled)) or is_keras_model(value) or callable(value):
            return value
        raise TypeError(f"A model is a Keras model, a function that makes one or a path, not {type(value).__name__}")

    @staticmethod
    def toKerasArgument(value: Any) -> Any:
        """Accept arguments of ``Model.compile``: names, Keras objects, functions, and lists and dicts of them."""
        if isinstance(value, (list, tuple)):
            return [KerasTypeConverters.toKerasArgument(v) for v in value]
        if isinstance(value, Mapping):
            return {str(k): KerasTypeConverters.toKerasArgument(v) for k, v in value.items()}
        known = isinstance(value, (str, int, float, Pickled, Configured)) and not isinstance(value, bool)
        if known or callable(value) or is_keras_object(value):
            return value
        raise TypeError(f"Keras takes names, objects and functions, not {value!r}")

    @staticmethod
    def toLearningRate(value: Any) -> Any:
        """Accept a number, or a Keras LearningRateSchedule."""
        if isinstance(value, Pickled) or is_schedule(value):
            return value
        try:
            return TypeConverters.toFloat(value)
        except TypeError:
            raise TypeError(f"A learning rate is a number or a Keras LearningRateSchedule, not {value!r}") from None

    @staticmethod
    def toCallbacks(value: Any) -> list[Any]:
        """Accept a list of Keras callbacks, or of functions that make one."""
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        for v in values:
            if not (isinstance(v, Pickled) or callable(v) or hasattr(v, "on_epoch_end")):
                raise TypeError(f"Callbacks are Keras callbacks, or functions that make one, not {v!r}")
        return values

    @staticmethod
    def toObjects(value: Any) -> dict[str, Any]:
        """Accept classes and functions, by the names that a saved model has for them."""
        if isinstance(value, Mapping) and all(
            isinstance(k, str) and (callable(v) or isinstance(v, Pickled)) for k, v in value.items()
        ):
            return dict(value)
        raise TypeError(f"Custom objects are classes and functions by name, not {value!r}")

    @staticmethod
    def toClassWeight(value: Any) -> str | dict[float, float]:
        """Accept ``"balanced"``, or the weight of each label."""
        if value == "balanced":
            return "balanced"
        try:
            return {float(k): float(v) for k, v in value.items()}
        except (AttributeError, TypeError, ValueError):
            raise TypeError(f"Class weights are 'balanced' or a weight for each label, not {value!r}") from None

    @staticmethod
    def toShapes(value: Any) -> dict[str, list[int | None]]:
        """Accept the shape of one row by column: whole numbers, with ``None`` first where lengths vary."""
        try:
            shapes = {str(k): [v] if v is None or isinstance(v, int) else list(v) for k, v in value.items()}
        except (AttributeError, TypeError):
            raise TypeError(f"Could not convert {value!r} to shapes by column") from None
        if all(d is None or (isinstance(d, int) and not isinstance(d, bool)) for s in shapes.values() for d in s):
            return shapes
        raise TypeError(f"Could not convert {value!r} to shapes by column")

    @staticmethod
    def toPadding(value: Any) -> dict[str, Any]:
        """Accept a number or a string by column."""
        if isinstance(value, Mapping) and all(
            isinstance(k, str) and isinstance(v, (int, float, str)) for k, v in value.items()
        ):
            return dict(value)
        raise TypeError(f"Padding values are numbers or strings by column, not {value!r}")

    @staticmethod
    def toOptions(value: Any) -> dict[str, Any]:
        """Accept a dict that can be written as JSON."""
        try:
            if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
                json.dumps(dict(value))
                return dict(value)
        except (TypeError, ValueError):
            pass
        raise TypeError(f"Options are a dict of plain values, not {value!r}")


def _param(name: str, doc: str, converter: Callable[[Any], Any]) -> Any:
    return Param(Params._dummy(), name, doc, typeConverter=converter)


def with_accessors(cls: C) -> C:
    """Add a getter and a setter for each Param to a class."""
    for name in dir(cls):
        if isinstance(getattr(cls, name), Param):
            title = name[0].upper() + name[1:]
            setattr(cls, f"get{title}", _getter(name))
            setattr(cls, f"set{title}", _setter(name))
    return cls


def _getter(name: str) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        return self.getOrDefault(name) if self.isDefined(name) else None

    get.__doc__ = f"Gets the value of {name} or its default value, or None."
    return get


def _setter(name: str) -> Callable[[Any, Any], Any]:
    def set(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    set.__doc__ = f"Sets the value of {name}."
    return set


class HasColumns(HasFeaturesCol, HasLabelCol, HasPredictionCol, HasProbabilityCol, HasRawPredictionCol, HasWeightCol):
    """Mixin for the columns: one of each kind, or several by the names of the model's inputs and outputs."""

    featuresCols: Param[dict[str, str]] = _param(
        "featuresCols",
        "columns of a model with several inputs: {input: column}, or a list of columns named as the inputs.",
        KerasTypeConverters.toColumns,
    )
    labelCols: Param[dict[str, str]] = _param(
        "labelCols",
        "label columns of a model with several outputs: {output: column}, or a list of columns named as the outputs.",
        KerasTypeConverters.toColumns,
    )
    predictionCols: Param[dict[str, str]] = _param(
        "predictionCols",
        "columns for the outputs of a model with several: {output: column}; by default prediction_<output>.",
        KerasTypeConverters.toColumns,
    )


class HasTraining(HasLearningRate, HasSeed, HasValidationIndicatorCol):
    """Mixin for the training of a model."""

    epochs: Param[int] = _param("epochs", "most epochs to train.", TypeConverters.toInt)
    shuffle: Param[bool] = _param(
        "shuffle", "whether rows come in a new order in each epoch.", TypeConverters.toBoolean
    )
    optimizer: Param[Any] = _param(
        "optimizer", "a Keras optimizer or its name; goes with loss.", KerasTypeConverters.toKerasArgument
    )
    learningRate: Param[Any] = _param(
        "learningRate",
        "learning rate of the optimizer: a number, or a Keras LearningRateSchedule.",
        KerasTypeConverters.toLearningRate,
    )
    callbacks: Param[list[Any]] = _param(
        "callbacks", "Keras callbacks, or functions that make one, for every worker.", KerasTypeConverters.toCallbacks
    )
    classWeight: Param[Any] = _param(
        "classWeight",
        "weight of the training rows by label, 1 for others; or 'balanced', for the same weight of all labels.",
        KerasTypeConverters.toClassWeight,
    )
    validationSplit: Param[float] = _param(
        "validationSplit", "share of the rows, chosen at random, to validate with.", TypeConverters.toFloat
    )
    earlyStoppingPatience: Param[int] = _param(
        "earlyStoppingPatience", "epochs without an improvement after which training stops.", TypeConverters.toInt
    )
    earlyStoppingMonitor: Param[str] = _param(
        "earlyStoppingMonitor",
        "the metric that has to improve; by default val_loss, or loss without validation.",
        TypeConverters.toString,
    )
    restoreBestWeights: Param[bool] = _param(
        "restoreBestWeights", "whether early stopping goes back to the best epoch's weights.", TypeConverters.toBoolean
    )


class HasCompiling(Params):
    """Mixin for the computation of loss and metrics, in training and in evaluation."""

    loss: Param[Any] = _param(
        "loss",
        "a Keras loss, its name or a function; by output if there are several. Compiles the model anew.",
        KerasTypeConverters.toKerasArgument,
    )
    lossWeights: Param[Any] = _param(
        "lossWeights", "weights of the outputs' losses; goes with loss.", KerasTypeConverters.toKerasArgument
    )
    metrics: Param[Any] = _param(
        "metrics",
        "Keras metrics or their names; by output if there are several. Weighted by weightCol. Goes with loss.",
        KerasTypeConverters.toKerasArgument,
    )
    customObjects: Param[dict[str, Any]] = _param(
        "customObjects", "classes and functions that a saved model names.", KerasTypeConverters.toObjects
    )


class HasCluster(HasBatchSize):
    """Mixin for the cluster that trains a model and for the rows that it gets."""

    numWorkers: Param[int] = _param("numWorkers", "TensorFlow workers that train together.", TypeConverters.toInt)
    shapes: Param[dict[str, list[int | None]]] = _param(
        "shapes",
        "shape of one row of array columns, None first where lengths vary; by default that of the first row.",
        KerasTypeConverters.toShapes,
    )
    paddingValues: Param[dict[str, Any]] = _param(
        "paddingValues",
        "what array columns are padded with to the longest row of a batch; by default what the model masks, or 0.",
        KerasTypeConverters.toPadding,
    )
    predictionBatchSize: Param[int] = _param(
        "predictionBatchSize", "rows per call of the model in transform.", TypeConverters.toInt
    )
    clusterOptions: Param[dict[str, Any]] = _param(
        "clusterOptions", "more arguments of tfspark.Cluster.", KerasTypeConverters.toOptions
    )


PACKED = ("optimizer", "learningRate", "loss", "lossWeights", "metrics", "callbacks", "customObjects")
"""Params whose values are objects; see `tfspark.ml.param_values`."""


class KerasModelParams(HasColumns, HasTraining, HasCompiling, HasCluster):
    """The Params that estimator and model share; a model keeps the Params of its training."""

    def _set_defaults(self) -> None:
        self._setDefault(probabilityCol="", rawPredictionCol="", numWorkers=1, batchSize=32, predictionBatchSize=1024)
        self._setDefault(epochs=1, shuffle=True, validationSplit=0.0, restoreBestWeights=True)

    def value(self, param: str) -> Any:
        """Return the value of a Param, or ``None``."""
        return self.getOrDefault(param) if self.isDefined(param) else None

    @property
    def input_columns(self) -> str | dict[str, str]:
        """The column of the features, or the column of each input."""
        columns: dict[str, str] | None = self.value("featuresCols")
        return columns or self.getFeaturesCol()

    @property
    def target_columns(self) -> str | dict[str, str]:
        """The column of the label, or the column of each output's label."""
        columns: dict[str, str] | None = self.value("labelCols")
        return columns or self.getLabelCol()

    @property
    def label_columns(self) -> list[str]:
        """The columns of the labels."""
        columns = self.target_columns
        return [columns] if isinstance(columns, str) else list(columns.values())

    @property
    def cluster_options(self) -> dict[str, Any]:
        """The arguments of `tfspark.Cluster` that no other Param sets."""
        return {"progress": False, **(self.value("clusterOptions") or {})}

    def compiling(self) -> dict[str, Any]:
        """Return, in packed form, the objects with which nodes load and compile the model."""
        names = {"loss": "loss", "loss_weights": "lossWeights", "metrics": "metrics", "custom_objects": "customObjects"}
        return {key: as_json(self.value(name), name) for key, name in names.items()}

    def require(self, df: Any, labels: bool = True) -> None:
        """Check columns and labels, and that only one of probability, raw prediction and several outputs is set."""
        scores = [n for n in ("probabilityCol", "rawPredictionCol") if self.value(n)]
        if len(scores) > 1 or (scores and self.value("predictionCols") is not None):
            raise ConfigurationError(
                f"Only one of {' and '.join([*scores, 'predictionCols'][:2])} can be set.",
                hint="A classifier takes probabilityCol or rawPredictionCol, and predictionCol for the class.",
            )
        many = {"featuresCols": self.input_columns, **({"labelCols": self.target_columns} if labels else {})}
        wanted = {
            name.removesuffix("s") if isinstance(columns, str) else name: [columns]
            if isinstance(columns, str)
            else list(columns.values())
            for name, columns in many.items()
        }
        if labels and self.value("weightCol"):
            wanted["weightCol"] = [self.getWeightCol()]
        require_columns(df, wanted)
        for name in ("labelCol", "labelCols"):
            check_label_types(df, name, wanted.get(name, []))


class KerasEstimatorParams(KerasModelParams):
    """The Params of `KerasEstimator`."""

    model: Param[Any] = _param(
        "model",
        "a Keras model, a function that makes one, or the path of a .keras file on any Hadoop file system.",
        KerasTypeConverters.toModel,
    )
