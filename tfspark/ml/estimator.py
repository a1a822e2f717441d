"""`KerasEstimator`: trains a Keras model on a DataFrame, as a Spark ML Estimator."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyspark import keyword_only
from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLWritable

from tfspark.errors import ConfigurationError, FeedError
from tfspark.ml.data import WEIGHT, fed_frame, fed_shapes, feed_rows, require_columns, split_frames, with_weights
from tfspark.ml.labels import class_counts
from tfspark.ml.model import KerasModel
from tfspark.ml.param_values import Configured, Pickled, as_json, is_keras_object, pickle
from tfspark.ml.params import KerasEstimatorParams, KerasFile, is_keras_model, is_schedule, with_accessors
from tfspark.ml.plan import VALIDATION, BatchPlan, FitPlan, ModelPlan, fed_name
from tfspark.ml.slots import reserved
from tfspark.ml.summary import KerasTrainingSummary
from tfspark.ml.training import scheduled_already, train

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.ml.persistence import EstimatorReader, EstimatorWriter

_saving = threading.Lock()


@with_accessors
class KerasEstimator(KerasEstimatorParams, Estimator[KerasModel], MLReadable["KerasEstimator"], MLWritable):
    """Trains a Keras model on the rows of a DataFrame, on TensorFlow workers inside Spark's executors.

    Every argument is a Param, with a getter and a setter, and can be part of a ``ParamGridBuilder``.

    Parameters
    ----------
    model
        A Keras 3 model; a function or a class that each worker calls to make one; or the path of a ``.keras`` file. The
        model may be compiled or not.
    featuresCol
        Column of the features: numbers, strings, arrays or ML vectors.
    featuresCols
        Columns of a model with several inputs: ``{input: column}``, or a list of columns with the names of the inputs.
    labelCol, labelCols
        Column of the labels; ``{output: column}`` for a model with several outputs.
    predictionCol
        Column for the output. If `probabilityCol` or `rawPredictionCol` is set, this column gets the class, as with
        Spark's classifiers. ``""`` adds no column.
    predictionCols
        Columns for several outputs, ``{output: column}``; by default ``prediction_<output>``.
    probabilityCol
        For a classifier: vector column for the probabilities; it has two classes if the model returns one number.
    rawPredictionCol
        For a classifier that returns logits: vector column for the logits.
    weightCol
        Weight of a row. A row of weight 2 counts as two rows in loss and metrics. Only the ratios of the weights
        matter.
    classWeight
        Weight of the training rows by label, 1 for labels that are not named; or ``"balanced"``.
    validationIndicatorCol
        Boolean column that marks the rows for validation after each epoch; these rows are not used for training.
    validationSplit
        Share of the rows for validation, chosen at random, instead of an indicator column.
    batchSize
        Rows per step on each worker.
    epochs
        Largest number of epochs.
    numWorkers
        Number of TensorFlow workers. Each holds a task slot of Spark. Trials that run at the same time wait for slots.
    optimizer, loss, lossWeights, metrics
        Arguments of ``Model.compile``. With `loss` the model is compiled again, with all of these arguments. Without
        `loss` the others must not be set, and the model must be compiled already.
    learningRate
        Learning rate of the optimizer, whether it comes from `optimizer` or from a compiled model: a number, or a
        ``keras.optimizers.schedules.LearningRateSchedule``.
    callbacks
        Keras callbacks, or functions that each worker calls to make one.
    earlyStoppingPatience, earlyStoppingMonitor, restoreBestWeights
        Stop after `earlyStoppingPatience` epochs without an improvement of the metric `earlyStoppingMonitor`, by
        default ``val_loss``, or ``loss`` without validation. By default, the best weights are restored.
    shuffle
        Whether rows come in a new order in each epoch; true by default.
    seed
        Makes training reproducible: initial weights, order of the rows, the rows of `validationSplit`.
    shapes
        Shape of one row of array columns. In a column that is not named, arrays may have any length if the input leaves
        the length open; otherwise they have the one length of the first rows.
    paddingValues
        The values with which array columns of different lengths are padded, to the longest row of a batch; by default
        the value that a ``Masking`` layer of the model masks, or 0.
    customObjects
        Custom classes and functions, by the names that a saved model or a Keras object has for them. Needed for a Keras
        model or a ``.keras`` file that contains any, and by ``KerasModel.evaluate`` and ``toKeras``.
    predictionBatchSize
        Rows per call of the model in ``transform``.
    clusterOptions
        More arguments of `tfspark.Cluster`, such as ``{"start_timeout": 600}``.

    Examples
    --------
    >>> def build():
    ...     import keras
    ...
    ...     return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> estimator = KerasEstimator(
    ...     model=build,
    ...     featuresCol="x",
    ...     labelCol="y",
    ...     loss="mse",
    ...     optimizer="sgd",
    ...     epochs=2,
    ...     batchSize=2,
    ... )
    >>> model = estimator.fit(df)
    >>> model.transform(df).columns
    ['x', 'y', 'prediction']
    """

    @keyword_only
    def __init__(
        self,
        *,
        model: Any = None,
        featuresCol: str | None = None,
        featuresCols: Any = None,
        labelCol: str | None = None,
        labelCols: Any = None,
        predictionCol: str | None = None,
        predictionCols: Any = None,
        probabilityCol: str | None = None,
        rawPredictionCol: str | None = None,
        weightCol: str | None = None,
        classWeight: Any = None,
        validationIndicatorCol: str | None = None,
        validationSplit: float | None = None,
        batchSize: int | None = None,
        epochs: int | None = None,
        numWorkers: int | None = None,
        optimizer: Any = None,
        learningRate: Any = None,
        loss: Any = None,
        lossWeights: Any = None,
        metrics: Any = None,
        callbacks: Any = None,
        earlyStoppingPatience: int | None = None,
        earlyStoppingMonitor: str | None = None,
        restoreBestWeights: bool | None = None,
        shuffle: bool | None = None,
        seed: int | None = None,
        shapes: Any = None,
        paddingValues: Any = None,
        customObjects: Any = None,
        predictionBatchSize: int | None = None,
        clusterOptions: Any = None,
    ) -> None:
        super().__init__()
        self._set_defaults()
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(self, **kwargs: Any) -> KerasEstimator:
        """Set Params by name; ``None`` leaves a Param unchanged.

        Examples
        --------
        >>> estimator.setParams(epochs=5).getEpochs()
        5
        """
        return self._set(**{k: v for k, v in self._input_kwargs.items() if v is not None})

    def _fit(self, dataset: DataFrame) -> KerasModel:
        from tfspark.cluster import Cluster
        from tfspark.spark.requirements import require_session

        spark = dataset.sparkSession
        require_session(spark)
        self._check(dataset)
        weight, class_weight = self.value("weightCol"), self.value("classWeight")
        label = self.target_columns
        weighted = bool(weight) or class_weight is not None
        padding, classes = self.value("paddingValues") or {}, class_counts(dataset, self.label_columns)
        training = BatchPlan(self.input_columns, label, WEIGHT if weighted else None, padding, classes)
        validation = BatchPlan(self.input_columns, label, WEIGHT if weight else None, padding, classes)
        columns = BatchPlan(self.input_columns, label, weight or None).columns
        workers, declared = self.getNumWorkers(), self.value("shapes") or {}
        indicator, share = self.value("validationIndicatorCol") or None, self.getValidationSplit()
        fed_shapes(dataset, columns, declared, ())
        options = self.cluster_options
        split = split_frames(dataset, columns, indicator, share, self.getSeed())
        with reserved(spark, workers, options), split as frames:
            plan = self._plan(spark, training, validation if frames.validation is not None else None)
            rows = frames.training
            if weighted:
                rows = with_weights(rows, weight or None, str(label), class_weight)
            validation_rows = frames.validation
            if weight and validation_rows is not None:
                validation_rows = with_weights(validation_rows, weight)
            began = time.monotonic()
            with Cluster(spark, train, plan, workers=workers, **options) as cluster:
                open_ = cluster._open_columns()
                shapes = fed_shapes(dataset, columns, declared, [c for c in columns if fed_name(c) in open_])
                seed = self._chosen_seed
                validated = 0
                if validation_rows is not None:
                    validated = _feed_validation(cluster, fed_frame(validation_rows, validation.columns), shapes, seed)
                rows = fed_frame(rows, training.columns)
                fed = feed_rows(cluster, rows, shapes, epochs=self.getEpochs(), seed=seed)
        history, trained = next(r for r in cluster.results.values() if r is not None)
        summary = KerasTrainingSummary(history, fed.rows, validated, time.monotonic() - began)
        model = KerasModel(trained, summary)
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _check(self, df: DataFrame) -> None:
        """Check the Params and the columns before anything is launched."""
        if self.value("model") is None:
            raise ConfigurationError("KerasEstimator has no model.", hint="KerasEstimator(model=build, ...).")
        for name in ("epochs", "batchSize", "numWorkers", "predictionBatchSize", "earlyStoppingPatience"):
            number = self.value(name)
            if number is not None and number < 1:
                raise ConfigurationError(f"{name} must be >= 1, got {number}.")
        if not 0 <= self.getValidationSplit() < 1:
            raise ConfigurationError(f"validationSplit must be >= 0 and < 1, got {self.getValidationSplit()}.")
        indicator = self.value("validationIndicatorCol")
        if indicator and self.getValidationSplit() > 0:
            raise ConfigurationError("validationIndicatorCol and validationSplit cannot both be set.")
        alone = [n for n in ("optimizer", "metrics", "lossWeights") if self.value(n) is not None]
        if alone and self.value("loss") is None:
            raise ConfigurationError(
                f"{alone} are set, but loss is not.", hint="Set loss, too: the model is then compiled with all of them."
            )
        if self.value("classWeight") is not None and not isinstance(self.target_columns, str):
            raise ConfigurationError("classWeight works for one label; labelCols names several.")
        rate, optimizer = self.value("learningRate"), self.value("optimizer")
        if rate is not None and not is_schedule(rate) and _has_schedule(optimizer):
            name = optimizer.config["class_name"] if isinstance(optimizer, Configured) else type(optimizer).__name__
            raise scheduled_already(name, rate)
        stopping = [n for n in ("earlyStoppingMonitor", "restoreBestWeights") if self.isSet(n)]
        if stopping and self.value("earlyStoppingPatience") is None:
            raise ConfigurationError(
                f"{stopping} are set, but earlyStoppingPatience is not.", hint="Set it, or nothing stops early."
            )
        self.require(df)
        require_columns(df, {"validationIndicatorCol": [indicator] if indicator else []})

    def _plan(self, spark: SparkSession, training: BatchPlan, validation: BatchPlan | None) -> FitPlan:
        stopping = None
        if self.value("earlyStoppingPatience") is not None:
            stopping = {
                "monitor": self.value("earlyStoppingMonitor") or ("val_loss" if validation else "loss"),
                "patience": self.getOrDefault("earlyStoppingPatience"),
                "restore_best_weights": self.getOrDefault("restoreBestWeights"),
            }
        source = self.source()
        if isinstance(source, str):
            source = KerasFile(_read_keras(spark, source))
        model = ModelPlan(
            keras=source.data if isinstance(source, KerasFile) else None,
            function=as_json(source, "model") if isinstance(source, Pickled) else None,
            optimizer=as_json(self.value("optimizer"), "optimizer"),
            learning_rate=as_json(self.value("learningRate"), "learningRate"),
            weighted=training.weight is not None,
            **self.compiling(),
        )
        return FitPlan(
            model=model,
            training=training.as_fed(),
            validation=validation and validation.as_fed(),
            batch_size=self.getBatchSize(),
            shuffle=self.getShuffle(),
            seed=self._chosen_seed,
            callbacks=as_json(self.value("callbacks"), "callbacks"),
            early_stopping=stopping,
        )

    @property
    def _chosen_seed(self) -> int | None:
        """The seed, if one was set, as Keras and NumPy take it."""
        return self.getSeed() % 2**32 if self.isSet("seed") else None

    def source(self) -> KerasFile | Pickled | str | None:
        """Return the model in the form in which it is sent to nodes: file, pickled function or path."""
        model = self.value("model")
        if model is None or isinstance(model, (str, KerasFile, Pickled)):
            return model
        return KerasFile(keras_bytes(model)) if is_keras_model(model) else pickle(model, "model")

    def write(self) -> EstimatorWriter:
        """Return a writer that saves Params, functions and model.

        Examples
        --------
        >>> estimator.write().overwrite().save(f"{directory}/estimator")
        """
        from tfspark.ml.persistence import EstimatorWriter

        return EstimatorWriter(self)

    @classmethod
    def read(cls) -> EstimatorReader:
        """Return a reader of estimators that `write` saved; it runs none of the saved functions.

        Examples
        --------
        >>> KerasEstimator.read().load(f"{directory}/estimator").getEpochs()
        5
        """
        from tfspark.ml.persistence import EstimatorReader

        return EstimatorReader(cls)


def _has_schedule(optimizer: Any) -> bool:
    """Return whether an optimizer has a LearningRateSchedule, as far as the driver can see."""
    if isinstance(optimizer, Configured):
        config = optimizer.config.get("config") or {}
    elif is_keras_object(optimizer):
        config = optimizer.get_config()
    else:
        return False
    return isinstance(config.get("learning_rate"), Mapping)


def _feed_validation(cluster: Any, rows: DataFrame, shapes: Any, seed: int | None) -> int:
    try:
        return int(feed_rows(cluster, rows, shapes, seed=seed, name=VALIDATION).rows)
    except FeedError as e:
        if e.message != "The data has no rows.":
            raise
        raise FeedError(
            "No rows are left for validation.", hint="Check validationIndicatorCol or validationSplit."
        ) from e


def _read_keras(spark: SparkSession, path: str) -> bytes:
    from tfspark.ml.files import read_file

    if not path.endswith(".keras"):
        raise ConfigurationError(f"{path!r} is not a .keras file.", hint="Write one with model.save('model.keras').")
    return read_file(spark, path)


def keras_bytes(model: Any) -> bytes:
    """Return a Keras model as the bytes of a ``.keras`` file.

    Raises
    ------
    ConfigurationError
        If Keras cannot save the model.
    """
    with _saving, tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        path = os.path.join(directory, "model.keras")
        try:
            model.save(path)
        except (ValueError, TypeError, NotImplementedError) as e:
            raise ConfigurationError(
                f"Keras cannot save the model: {e}", hint="Pass a function that makes it: model=build."
            ) from e
        with open(path, "rb") as f:
            return f.read()
