"""Saving and loading of `KerasEstimator` and `KerasModel`, in Spark ML's form.

``metadata/`` holds the Params as JSON, as for any Spark ML instance. Functions among them are pickled and stay pickled
until a node needs them. ``model.keras`` is a file that Keras loads; ``saved_model.zip`` is an archive of the
SavedModel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter

from tfspark.ml.files import read_file, require_classic_writer, require_new, write_file
from tfspark.ml.param_values import as_json, restored
from tfspark.ml.params import PACKED, KerasFile
from tfspark.ml.plan import Tensor, TrainedModel
from tfspark.ml.summary import KerasTrainingSummary
from tfspark.spark.home import is_spark_3

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tfspark.ml.estimator import KerasEstimator
    from tfspark.ml.model import KerasModel

KERAS_FILE = "model.keras"
SAVED_MODEL_FILE = "saved_model.zip"


def _inside(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"


def _metadata_context(session: SparkSession) -> Any:
    """Return the argument that Spark's readers and writers of metadata take: in Spark 3.5 it is the SparkContext."""
    return session.sparkContext if is_spark_3() else session


def _packed_params(instance: Any) -> dict[str, Any]:
    params = {p.name: v for p, v in instance._paramMap.items() if p.name != "model"}
    return {name: as_json(v, name) if name in PACKED else v for name, v in params.items()}


def _set_params(instance: Any, metadata: dict[str, Any]) -> None:
    packed = metadata["paramMap"]
    instance._resetUid(metadata["uid"])
    DefaultParamsReader.getAndSetParams(
        instance, {**metadata, "paramMap": {k: restored(v) if k in PACKED else v for k, v in packed.items()}}
    )


class _Writer(MLWriter):
    """A writer that fails without a classic session, before ``overwrite()`` removes anything."""

    def save(self, path: str) -> None:
        """Save the instance in a directory; an existing directory is replaced only after ``overwrite()``.

        Raises
        ------
        ConfigurationError
            If the directory exists, or the session is one of Spark Connect.
        """
        require_classic_writer(self.sparkSession, path)
        super().save(path)


class EstimatorWriter(_Writer):
    """Saves a `KerasEstimator`."""

    def __init__(self, instance: KerasEstimator) -> None:
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        """Save the estimator in a directory that does not exist yet."""
        require_new(self.sparkSession, path)
        source = self.instance.source()
        in_file = isinstance(source, KerasFile)
        extra = {"model": {"file": KERAS_FILE} if in_file else {"value": as_json(source, "model")}}
        params = _packed_params(self.instance)
        if isinstance(source, KerasFile):
            write_file(self.sparkSession, _inside(path, KERAS_FILE), source.data)
        DefaultParamsWriter.saveMetadata(self.instance, path, _metadata_context(self.sparkSession), extra, params)


class EstimatorReader(MLReader["KerasEstimator"]):
    """Loads a `KerasEstimator`."""

    def __init__(self, cls: type[KerasEstimator]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> KerasEstimator:
        """Load the estimator that was saved in a directory."""
        metadata = DefaultParamsReader.loadMetadata(path, _metadata_context(self.sparkSession))
        instance = self.cls()
        _set_params(instance, metadata)
        saved = metadata["model"]
        if "file" in saved:
            instance._set(model=KerasFile(read_file(self.sparkSession, _inside(path, KERAS_FILE))))
        elif saved["value"] is not None:
            instance._set(model=restored(saved["value"]))
        return instance


class ModelWriter(_Writer):
    """Saves a `KerasModel`."""

    def __init__(self, instance: KerasModel) -> None:
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        """Save the model in a directory that does not exist yet."""
        require_new(self.sparkSession, path)
        trained = self.instance.trained
        extra = {
            "inputs": [t.to_json() for t in trained.inputs],
            "outputs": [t.to_json() for t in trained.outputs],
            "summary": self.instance.summary.to_json() if self.instance.hasSummary else None,
        }
        params = _packed_params(self.instance)
        write_file(self.sparkSession, _inside(path, KERAS_FILE), trained.keras)
        write_file(self.sparkSession, _inside(path, SAVED_MODEL_FILE), trained.saved_model)
        DefaultParamsWriter.saveMetadata(self.instance, path, _metadata_context(self.sparkSession), extra, params)


class ModelReader(MLReader["KerasModel"]):
    """Loads a `KerasModel`."""

    def __init__(self, cls: type[KerasModel]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> KerasModel:
        """Load the model that was saved in a directory."""
        metadata = DefaultParamsReader.loadMetadata(path, _metadata_context(self.sparkSession))
        trained = TrainedModel(
            read_file(self.sparkSession, _inside(path, KERAS_FILE)),
            read_file(self.sparkSession, _inside(path, SAVED_MODEL_FILE)),
            tuple(Tensor.from_json(t) for t in metadata["inputs"]),
            tuple(Tensor.from_json(t) for t in metadata["outputs"]),
        )
        summary = metadata["summary"]
        instance = self.cls(trained, KerasTrainingSummary.from_json(summary) if summary else None)
        _set_params(instance, metadata)
        return instance
