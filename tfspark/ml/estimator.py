"""`KerasEstimator`: trains a Keras model on a DataFrame, as a Spark ML Estimator."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from pyspark import keyword_only
from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLWritable

from tfspark.driver.sources import quoted
from tfspark.errors import ConfigurationError, FeedError
from tfspark.ml.data import WEIGHT, require_columns, shapes_of, split_frames, with_weights
from tfspark.ml.model import KerasModel
from tfspark.ml.packing import Pickled, pack, pickle
from tfspark.ml.params import KerasEstimatorParams, KerasFile, is_keras_model, with_accessors
from tfspark.ml.plan import VALIDATION, BatchPlan, FitPlan, ModelPlan
from tfspark.ml.slots import reserved
from tfspark.ml.summary import KerasTrainingSummary
from tfspark.ml.training import train

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
        A Keras 3 model; a function that makes one, in each worker; or the path of a ``.keras`` file. It may be
        compiled or not.
    featuresCol
        Column of the features: numbers, strings, arrays or ML vectors.
    featuresCols
        Columns of a model with several inputs, ``{input: column}``, or a list of columns named as the inputs.
    labelCol, labelCols
        Column of the labels; ``{output: column}`` for several outputs.
    predictionCol
        Column for the output; for its class, as Spark's classifiers have it, if `probabilityCol` or
        `rawPredictionCol` is set. ``""`` for none.
    predictionCols
        Columns of several outputs, ``{output: column}``; by default ``prediction_<output>``.
    probabilityCol
        For a classifier: vector column for the probabilities, of two classes if the model gives one number.
    rawPredictionCol
        For a classifier that gives logits: vector column for them.
    weightCol
        Weight of a row. A row of weight 2 counts as two rows in loss and metrics; only how weights relate matters.
    classWeight
        Weight of the training rows by label, 1 for those not named; or ``"balanced"``.
    validationIndicatorCol
        Boolean column that marks the rows to validate with after each epoch; they are not trained on.
    validationSplit
        Share of the rows to validate with instead, chosen at random.
    batchSize
        Rows per step on each worker.
    epochs
        Most epochs to train.
    numWorkers
        TensorFlow workers. Each holds a task slot of Spark; trials that run at the same time wait for one another.
    optimizer, loss, lossWeights, metrics
        What to compile the model with, as ``Model.compile`` takes it. With `loss` the model is compiled anew, the
        others go with it; without, it has to be compiled already.
    learningRate
        Learning rate of the optimizer, whoever chose it.
    callbacks
        Keras callbacks, or functions that make one, in each worker.
    earlyStoppingPatience, earlyStoppingMonitor, restoreBestWeights
        Stop after so many epochs without an improvement of a metric, by default ``val_loss``, or ``loss`` without
        validation; and go back to the best weights, which is the default.
    shuffle
        Whether rows come in a new order in each epoch, which is the default.
    seed
        Makes training reproducible: initial weights, order of the rows, the rows of `validationSplit`.
    shapes
        Shape of one row of array columns, for those whose first row does not tell it.
    customObjects
        Classes and functions that a saved model names.
    predictionBatchSize
        Rows per call of the model in ``transform``.
    clusterOptions
        More arguments of `tfspark.Cluster`, such as ``{"start_timeout": 600}``.

    Examples
    --------
    >>> estimator = KerasEstimator(model=build, loss="mse", optimizer="adam", epochs=5, numWorkers=2)
    >>> model = estimator.fit(train)
    >>> model.transform(test)
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
        learningRate: float | None = None,
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
        customObjects: Any = None,
        predictionBatchSize: int | None = None,
        clusterOptions: Any = None,
    ) -> None:
        super().__init__()
        self._set_defaults()
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(self, **kwargs: Any) -> KerasEstimator:
        """Set Params by name; ``None`` leaves one as it is."""
        return self._set(**{k: v for k, v in self._input_kwargs.items() if v is not None})

    def _fit(self, dataset: DataFrame) -> KerasModel:
        from tfspark.driver.cluster import Cluster
        from tfspark.driver.launcher import require_classic

        spark = dataset.sparkSession
        require_classic(spark)
        self._check(dataset)
        weight, class_weight = self.value("weightCol"), self.value("classWeight")
        label = self.target_columns
        weighted = bool(weight) or class_weight is not None
        training = BatchPlan(self.input_columns, label, WEIGHT if weighted else None)
        validation = BatchPlan(self.input_columns, label, WEIGHT if weight else None)
        columns = BatchPlan(self.input_columns, label, weight or None).columns
        workers, declared = self.getNumWorkers(), self.value("shapes") or {}
        indicator, share = self.value("validationIndicatorCol") or None, self.getValidationSplit()
        shapes = shapes_of(dataset, columns, declared)
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
                seed = self._chosen_seed
                validated = 0
                if validation_rows is not None:
                    validated = _feed_validation(cluster, validation_rows.select(*_quoted(validation)), shapes, seed)
                rows = rows.select(*_quoted(training))
                fed = cluster.feed(rows, epochs=self.getEpochs(), shapes=shapes, seed=seed)
        history, trained = next(r for r in cluster.results.values() if r is not None)
        summary = KerasTrainingSummary(history, fed.rows, validated, time.monotonic() - began)
        model = KerasModel(trained, summary)
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _check(self, df: DataFrame) -> None:
        """Refuse what cannot work, before anything is launched."""
        if self.value("model") is None:
            raise ConfigurationError("KerasEstimator has no model.", hint="KerasEstimator(model=build, ...).")
        for name in ("epochs", "batchSize", "numWorkers", "predictionBatchSize", "earlyStoppingPatience"):
            number = self.value(name)
            if number is not None and number < 1:
                raise ConfigurationError(f"{name}={number}: it has to be at least 1.")
        if not 0 <= self.getValidationSplit() < 1:
            raise ConfigurationError(f"validationSplit={self.getValidationSplit()}: a share lies between 0 and 1.")
        indicator = self.value("validationIndicatorCol")
        if indicator and self.getValidationSplit() > 0:
            raise ConfigurationError("validationIndicatorCol and validationSplit exclude each other.")
        alone = [n for n in ("optimizer", "metrics", "lossWeights") if self.value(n) is not None]
        if alone and self.value("loss") is None:
            raise ConfigurationError(
                f"{alone} are set without loss.", hint="Pass loss too, and the model is compiled with all of them."
            )
        if self.value("classWeight") is not None and not isinstance(self.target_columns, str):
            raise ConfigurationError("classWeight is for one label, and labelCols names several.")
        stopping = [n for n in ("earlyStoppingMonitor", "restoreBestWeights") if self.isSet(n)]
        if stopping and self.value("earlyStoppingPatience") is None:
            raise ConfigurationError(f"{stopping} are set without earlyStoppingPatience, so nothing stops early.")
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
            function=pack(source, "model") if isinstance(source, Pickled) else None,
            optimizer=pack(self.value("optimizer"), "optimizer"),
            learning_rate=self.value("learningRate"),
            weighted=training.weight is not None,
            **self.compiling(),
        )
        return FitPlan(
            model=model,
            training=training,
            validation=validation,
            batch_size=self.getBatchSize(),
            shuffle=self.getShuffle(),
            seed=self._chosen_seed,
            callbacks=pack(self.value("callbacks"), "callbacks"),
            early_stopping=stopping,
        )

    @property
    def _chosen_seed(self) -> int | None:
        """The seed, if one was set, as Keras and NumPy take it."""
        return self.getSeed() % 2**32 if self.isSet("seed") else None

    def source(self) -> KerasFile | Pickled | str | None:
        """Return where the model comes from, in the form in which it travels: file, pickled function or path."""
        model = self.value("model")
        if model is None or isinstance(model, (str, KerasFile, Pickled)):
            return model
        return KerasFile(keras_bytes(model)) if is_keras_model(model) else pickle(model, "model")

    def write(self) -> EstimatorWriter:
        """Return a writer that saves Params, functions and model."""
        from tfspark.ml.persistence import EstimatorWriter

        return EstimatorWriter(self)

    @classmethod
    def read(cls) -> EstimatorReader:
        """Return a reader of what `write` saved. It runs none of the functions that were saved."""
        from tfspark.ml.persistence import EstimatorReader

        return EstimatorReader(cls)


def _quoted(plan: BatchPlan) -> list[str]:
    return [quoted(c) for c in plan.columns]


def _feed_validation(cluster: Any, rows: DataFrame, shapes: Any, seed: int | None) -> int:
    try:
        return int(cluster.feed(rows, shapes=shapes, seed=seed, name=VALIDATION).rows)
    except FeedError as e:
        if e.message != "The data has no rows.":
            raise
        raise FeedError("No rows are set aside for validation.", hint="Check the column, or its share.") from e


def _read_keras(spark: SparkSession, path: str) -> bytes:
    from tfspark.ml.files import read_file

    if not path.endswith(".keras"):
        raise ConfigurationError(
            f"{path!r} is no .keras file.", hint="Keras 3 trains what model.save('model.keras') wrote."
        )
    return read_file(spark, path)


def keras_bytes(model: Any) -> bytes:
    """Return a Keras model as the bytes of a ``.keras`` file.

    Raises
    ------
    ConfigurationError
        If Keras cannot save it.
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
