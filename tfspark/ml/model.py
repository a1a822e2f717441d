"""`KerasModel`: a trained Keras model, as a Spark ML Transformer."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from pyspark.ml.base import Model
from pyspark.ml.util import MLReadable, MLWritable

from tfspark.columns.leaves import quoted
from tfspark.errors import ConfigurationError
from tfspark.ml.custom_objects import load_keras
from tfspark.ml.data import WEIGHT, fed_frame, fed_shapes, feed_rows, with_weights
from tfspark.ml.labels import class_counts
from tfspark.ml.param_values import as_json, live
from tfspark.ml.params import KerasModelParams, with_accessors
from tfspark.ml.plan import BatchPlan, EvaluationPlan, ModelPlan, TrainedModel
from tfspark.ml.slots import reserved
from tfspark.ml.summary import KerasTrainingSummary
from tfspark.ml.training import evaluate

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from tfspark.ml.persistence import ModelReader, ModelWriter


@with_accessors
class KerasModel(KerasModelParams, Model, MLReadable["KerasModel"], MLWritable):
    """A trained Keras model, as `KerasEstimator.fit` returns it.

    It predicts, evaluates, exports and can be saved. It has the Params of the estimator. Loading and ``transform`` also
    work on Spark Connect.

    Examples
    --------
    >>> model.transform(df).columns
    ['x', 'y', 'prediction']
    """

    def __init__(self, trained: TrainedModel | None = None, summary: KerasTrainingSummary | None = None) -> None:
        super().__init__()
        self._set_defaults()
        self._trained = trained
        self._summary = summary

    def __repr__(self) -> str:
        if self._trained is None:
            return f"KerasModel: uid={self.uid}"
        names = {"inputs": self._trained.inputs, "outputs": self._trained.outputs}
        return f"KerasModel: uid={self.uid}, " + ", ".join(f"{k}={[t.name for t in v]}" for k, v in names.items())

    # --- the trained model

    @property
    def trained(self) -> TrainedModel:
        """The model in its two forms, a ``.keras`` file and a SavedModel."""
        if self._trained is None:
            raise ConfigurationError(
                "This KerasModel has no trained model.", hint="Use the result of KerasEstimator.fit or KerasModel.load."
            )
        return self._trained

    @property
    def hasSummary(self) -> bool:
        """Whether the model has a summary of its training.

        Examples
        --------
        >>> model.hasSummary
        True
        """
        return self._summary is not None

    @property
    def summary(self) -> KerasTrainingSummary:
        """The summary of the training: history, rows and seconds.

        Examples
        --------
        >>> model.summary.rows
        2
        """
        if self._summary is None:
            raise ConfigurationError(
                "This KerasModel has no summary.", hint="Only models that KerasEstimator.fit returned have one."
            )
        return self._summary

    @property
    def history(self) -> DataFrame:
        """One row per epoch, with a column for each metric; see `KerasTrainingSummary.history`.

        Examples
        --------
        >>> model.history.columns
        ['epoch', 'loss']
        """
        return self.summary.history

    def toKeras(self) -> Any:
        """Return the Keras model; this imports Keras and TensorFlow in the driver.

        Raises
        ------
        ConfigurationError
            If the model has custom classes or functions that `customObjects` does not name.

        Examples
        --------
        >>> model.toKeras().count_params()
        3
        """
        custom = live(as_json(self.value("customObjects"), "customObjects")) or {}
        with tempfile.NamedTemporaryFile(suffix=".keras") as f:
            return load_keras(self.trained.keras, f.name, custom, compile=False)

    def export(self, base: str, keep: int | None = None) -> str:
        """Write the next version under `base`, for TensorFlow Serving, `tfspark serve` and `tfspark.predict`.

        Parameters
        ----------
        base
            A local or mounted directory.
        keep
            Number of the newest versions to keep; older versions are removed. By default all versions are kept.

        Returns
        -------
        str
            ``<base>/<version>``, a SavedModel.

        Examples
        --------
        >>> path = model.export(f"{directory}/served", keep=3)
        >>> tfspark.predict(df, f"{directory}/served", inputs="x", outputs="score").columns
        ['x', 'y', 'score']
        """
        from tfspark.prediction.model_source import EmbeddedModel
        from tfspark.saved_models.versions import new_version

        with new_version(base, keep) as version:
            EmbeddedModel.holding(self.trained.saved_model).unpack(version.staging)
        return version.path

    # --- prediction

    def _transform(self, dataset: DataFrame) -> DataFrame:
        from tfspark.ml.scoring import score

        inputs, outputs = self._inputs(), self._outputs()
        self.require(dataset, labels=False)
        added = self._added_columns()
        clash = sorted(set(added) & set(dataset.columns))
        if clash:
            raise ConfigurationError(
                f"Columns {clash} exist already.", hint="Set predictionCol, or drop what an earlier transform added."
            )
        if not outputs:
            return dataset
        shapes = self.value("shapes") or {}
        shapes = {c: s for c, s in shapes.items() if c in inputs.values()}
        padding = {c: v for c, v in (self.value("paddingValues") or {}).items() if c in inputs.values()}
        size = self.getOrDefault("predictionBatchSize")
        scored = score(dataset, self.trained, inputs, outputs, size, shapes, padding)
        if not self._classifies:
            return scored
        (output,) = outputs.values()
        own = [scored[quoted(c)] for c in dataset.columns]
        return scored.select(*own, *[c for name, c in self._class_columns(output).items() if name])

    def _inputs(self) -> dict[str, str]:
        columns, known = self.input_columns, [t.name for t in self.trained.inputs]
        if isinstance(columns, str):
            if len(known) != 1:
                raise ConfigurationError(f"The model has the inputs {known}.", hint="Set featuresCols={input: column}.")
            return {known[0]: columns}
        if sorted(columns) != sorted(known):
            raise ConfigurationError(f"featuresCols must name the inputs of the model, {known}, got {sorted(columns)}.")
        return columns

    def _outputs(self) -> dict[str, str]:
        """Return the column of each requested output."""
        known = [t.name for t in self.trained.outputs]
        chosen: dict[str, str] | None = self.value("predictionCols")
        if chosen is not None:
            if unknown := sorted(set(chosen) - set(known)):
                raise ConfigurationError(f"predictionCols refers to unknown outputs {unknown}; the model has {known}.")
            return chosen
        prediction = self.getPredictionCol()
        if self._classifies:
            if len(known) != 1:
                raise ConfigurationError(f"A classifier must have one output; this model has {known}.")
            return {known[0]: f"{self.uid}_output"}
        if len(known) == 1:
            return {known[0]: prediction} if prediction else {}
        return {name: f"{prediction}_{name}" for name in known} if prediction else {}

    @property
    def _classifies(self) -> bool:
        return bool(self.getProbabilityCol() or self.getRawPredictionCol())

    def _added_columns(self) -> list[str]:
        if not self._classifies:
            return list(self._outputs().values())
        return [c for c in (self.getRawPredictionCol(), self.getProbabilityCol(), self.getPredictionCol()) if c]

    def _class_columns(self, output: str) -> dict[str, Column]:
        """Return the columns that Spark's classifiers add: scores as a vector, the class number as a double."""
        from pyspark.ml.functions import array_to_vector
        from pyspark.sql import functions as F

        raw, probability, prediction = self.getRawPredictionCol(), self.getProbabilityCol(), self.getPredictionCol()
        (tensor,) = self.trained.outputs
        value = F.col(quoted(output))
        if tensor.shape in ((), (1,)):
            one = value.cast("double")
            scores = F.array(-one, one) if raw else F.array(1 - one, one)
            predicted = (one > (0.0 if raw else 0.5)).cast("double")
            classes: int | None = 2
        else:
            scores = value.cast("array<double>")
            # The function array_position takes no column as its second argument on Spark 3.5.
            predicted = (F.expr(f"array_position({quoted(output)}, array_max({quoted(output)}))") - 1).cast("double")
            classes = tensor.shape[-1]
        # Spark's own classifiers set this metadata, from which later stages read the number of classes.
        of_scores = {"ml_attr": {"num_attrs": classes}} if classes else {}
        of_prediction = {"ml_attr": {"type": "nominal", "num_vals": classes}} if classes else {}
        name = raw or probability
        return {
            name: array_to_vector(scores).alias(name, metadata=of_scores),
            prediction: predicted.alias(prediction or "prediction", metadata=of_prediction),
        }

    # --- evaluation

    def evaluate(self, dataset: DataFrame) -> dict[str, float]:
        """Return the loss and the metrics over all rows, computed by `numWorkers` workers.

        Rows count as in training: each row is weighted by `weightCol`, and it does not matter in which batch it is.

        Examples
        --------
        >>> list(model.evaluate(df))
        ['loss']
        """
        from tfspark.cluster import Cluster
        from tfspark.spark.requirements import require_session

        spark = dataset.sparkSession
        require_session(spark)
        self.require(dataset)
        weight = self.value("weightCol") or None
        columns = BatchPlan(self.input_columns, self.target_columns, weight).columns
        padding, classes = self.value("paddingValues") or {}, class_counts(dataset, self.label_columns)
        batch = BatchPlan(self.input_columns, self.target_columns, WEIGHT if weight else None, padding, classes)
        rows = dataset.select(*[quoted(c) for c in columns])
        inputs = self._inputs()
        open_ = [inputs[t.name] for t in self.trained.inputs if None in t.shape]
        shapes = fed_shapes(rows, columns, self.value("shapes") or {}, open_)
        if weight:
            rows = with_weights(rows, weight)
        model = ModelPlan(keras=self.trained.keras, weighted=weight is not None, **self.compiling())
        plan = EvaluationPlan(model, batch.as_fed(), self.getBatchSize())
        options = self.cluster_options
        workers = self.getNumWorkers()
        with reserved(spark, workers, options), Cluster(spark, evaluate, plan, workers=workers, **options) as cluster:
            feed_rows(cluster, fed_frame(rows, batch.columns), shapes)
        metrics: dict[str, float] = next(iter(cluster.results.values()))
        return metrics

    # --- persistence

    def write(self) -> ModelWriter:
        """Return a writer that saves Params, model and summary.

        Examples
        --------
        >>> model.write().overwrite().save(f"{directory}/model")
        """
        from tfspark.ml.persistence import ModelWriter

        return ModelWriter(self)

    @classmethod
    def read(cls) -> ModelReader:
        """Return a reader of models that `write` saved.

        Examples
        --------
        >>> KerasModel.read().load(f"{directory}/model").summary.totalIterations
        2
        """
        from tfspark.ml.persistence import ModelReader

        return ModelReader(cls)
