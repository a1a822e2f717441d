"""`TFEstimator` and `TFModel`: training and inference as stages of Spark ML pipelines."""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyspark.ml.param.shared import Param, Params, TypeConverters
from pyspark.ml.pipeline import Estimator, Model

from tfspark.compat.tensorflowonspark import TFCluster, _notes, util
from tfspark.errors import ConfigurationError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)


class TFTypeConverters:
    """Converters of Params that Spark does not have."""

    @staticmethod
    def toDict(value: Any) -> dict[str, str]:
        """Return a dict unchanged.

        Raises
        ------
        TypeError
            If the value is not a dict.
        """
        if isinstance(value, dict):
            return value
        raise TypeError(f"Could not convert {value!r} to a dict.")


def _input_mode(value: Any) -> int:
    if value == TFCluster.InputMode.TENSORFLOW:
        raise ConfigurationError("input_mode must be InputMode.SPARK: a TFEstimator feeds a DataFrame.")
    return TypeConverters.toInt(value)


def _mixin(name: str, _defaults: Mapping[str, Any] | None = None, **params: tuple[str, Callable[..., Any], str]) -> Any:
    """Return a mixin of Params with setters and getters: ``param=(suffix of setter and getter, converter, doc)``."""
    members: dict[str, Any] = {}
    for param, (suffix, converter, doc) in params.items():
        members[param] = Param(Params._dummy(), param, doc, typeConverter=converter)
        members[f"set{suffix}"] = _setter(param)
        members[f"get{suffix}"] = _getter(param)

    def init(self: Any) -> None:
        super(mixin, self).__init__()  # type: ignore[arg-type]
        self._setDefault(**(_defaults or {}))

    docs = "; ".join(doc for _, _, doc in params.values())
    mixin = type(name, (Params,), {**members, "__init__": init, "__doc__": f"{docs}.", "__module__": __name__})
    return mixin


def _setter(param: str) -> Callable[[Any, Any], Any]:
    def set_param(self: Any, value: Any) -> Any:
        return self._set(**{param: value})

    return set_param


def _getter(param: str) -> Callable[[Any], Any]:
    def get_param(self: Any) -> Any:
        return self.getOrDefault(param)

    return get_param


_int, _str, _bool = TypeConverters.toInt, TypeConverters.toString, TypeConverters.toBoolean
_dict = TFTypeConverters.toDict

HasBatchSize: Any = _mixin("HasBatchSize", batch_size=("BatchSize", _int, "Number of rows per batch"))
HasClusterSize: Any = _mixin("HasClusterSize", cluster_size=("ClusterSize", _int, "Number of nodes in the cluster"))
HasEpochs: Any = _mixin("HasEpochs", epochs=("Epochs", _int, "Number of epochs to train"))
HasGraceSecs: Any = _mixin("HasGraceSecs", grace_secs=("GraceSecs", _int, "Not used: nodes have the time they need"))
HasInputMapping: Any = _mixin("HasInputMapping", input_mapping=("InputMapping", _dict, "Input column to input tensor"))
HasInputMode: Any = _mixin("HasInputMode", input_mode=("InputMode", _input_mode, "InputMode.SPARK"))
HasMasterNode: Any = _mixin("HasMasterNode", master_node=("MasterNode", _str, "Job name of the master or chief"))
HasModelDir: Any = _mixin("HasModelDir", model_dir=("ModelDir", _str, "Path of the model's checkpoints"))
HasNumPS: Any = _mixin(
    "HasNumPS",
    num_ps=("NumPS", _int, "Number of parameter servers"),
    driver_ps_nodes=("DriverPSNodes", _bool, "Not used: parameter servers run in executors"),
)
HasOutputMapping: Any = _mixin(
    "HasOutputMapping", output_mapping=("OutputMapping", _dict, "Output tensor to output column")
)
HasProtocol: Any = _mixin("HasProtocol", protocol=("Protocol", _str, "Not used: TensorFlow speaks grpc"))
HasReaders: Any = _mixin("HasReaders", readers=("Readers", _int, "Number of readers, for the program's own use"))
HasSteps: Any = _mixin("HasSteps", steps=("Steps", _int, "Most steps to train, for the program's own use"))
HasTensorboard: Any = _mixin("HasTensorboard", tensorboard=("Tensorboard", _bool, "Run TensorBoard"))
HasTFRecordDir: Any = _mixin("HasTFRecordDir", tfrecord_dir=("TFRecordDir", _str, "For the program's own use"))
HasExportDir: Any = _mixin("HasExportDir", export_dir=("ExportDir", _str, "Directory of the SavedModel"))
HasSignatureDefKey: Any = _mixin(
    "HasSignatureDefKey",
    {"signature_def_key": None},
    signature_def_key=("SignatureDefKey", _str, "Signature of the SavedModel"),
)
HasTagSet: Any = _mixin("HasTagSet", tag_set=("TagSet", _str, "Tags of the SavedModel, separated by commas"))


class Namespace:
    """Arguments as attributes, from a dict, an ``argparse.Namespace`` or a `Namespace`; a list of words goes to `argv`.

    Raises
    ------
    ConfigurationError
        If the arguments have another type.
    """

    argv: list[str] | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, d: Any) -> None:
        if isinstance(d, list):
            self.argv = d
        elif isinstance(d, dict):
            self.__dict__.update(d)
        elif isinstance(d, (argparse.Namespace, Namespace)):
            self.__dict__.update(vars(d))
        else:
            raise ConfigurationError(f"Arguments must be a list, a dict or a Namespace, got {type(d).__name__}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self.argv or self.__dict__)

    def __repr__(self) -> str:
        if self.argv:
            return repr(self.argv)
        return f"Namespace({', '.join(f'{k}={v!r}' for k, v in sorted(self.__dict__.items()))})"

    def __eq__(self, other: object) -> bool:
        if self.argv:
            return bool(self.argv == other)
        return isinstance(other, (Namespace, argparse.Namespace)) and self.__dict__ == vars(other)

    __hash__ = None  # type: ignore[assignment]


class TFParams(Params):  # type: ignore[misc]
    """Params, together with the program's own arguments."""

    args: Any = None

    def merge_args_params(self) -> Namespace:
        """Return the arguments, updated with the values of the Params."""
        merged = copy.copy(self.args)
        vars(merged).update({p.name: self.getOrDefault(p) for p in self.params})
        return merged


class TFEstimator(  # type: ignore[misc]
    Estimator,
    TFParams,
    HasInputMapping,
    HasClusterSize,
    HasNumPS,
    HasInputMode,
    HasMasterNode,
    HasProtocol,
    HasGraceSecs,
    HasTensorboard,
    HasModelDir,
    HasExportDir,
    HasTFRecordDir,
    HasBatchSize,
    HasEpochs,
    HasReaders,
    HasSteps,
):
    """Trains on a DataFrame; each ``fit`` starts a separate cluster.

    Parameters
    ----------
    train_fn
        ``train_fn(args, ctx)``; it exports a SavedModel to ``args.export_dir``.
    tf_args
        Its arguments; the Params are added to them.
    export_fn
        Not supported, as in the original with TensorFlow 2: ``fit`` raises an error if it is given.
    """

    def __init__(self, train_fn: Callable[..., Any], tf_args: Any, export_fn: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.train_fn, self.export_fn = train_fn, export_fn
        self.args = Namespace(tf_args)
        self._setDefault(
            input_mapping={},
            cluster_size=1,
            num_ps=0,
            driver_ps_nodes=False,
            input_mode=TFCluster.InputMode.SPARK,
            master_node="chief",
            protocol="grpc",
            tensorboard=False,
            model_dir=None,
            export_dir=None,
            tfrecord_dir=None,
            batch_size=100,
            epochs=1,
            readers=1,
            steps=1000,
            grace_secs=30,
        )

    @_notes.now("tfspark.ml.KerasEstimator, or cluster.feed(df)")
    def _fit(self, dataset: DataFrame) -> TFModel:
        if self.export_fn is not None:
            raise ConfigurationError("export_fn is not supported.", hint="Export the model in train_fn, on the chief.")
        args = self.merge_args_params()
        cluster = TFCluster.run(
            dataset.sparkSession.sparkContext,
            self.train_fn,
            args.argv or args,
            args.cluster_size,
            args.num_ps,
            args.tensorboard,
            TFCluster.InputMode.SPARK,
            driver_ps_nodes=False,
            master_node=args.master_node,
        )
        try:
            # The columns are in the order of their names, as DataFeed's input_mapping expects.
            cluster.train(dataset.select(sorted(self.getInputMapping())).rdd, args.epochs)
        except BaseException:
            cluster.cluster.stop(grace=0.0)
            raise
        cluster.shutdown(grace_secs=args.grace_secs)
        return self._copyValues(TFModel(self.args))


class TFModel(  # type: ignore[misc]
    Model,
    TFParams,
    HasInputMapping,
    HasOutputMapping,
    HasBatchSize,
    HasModelDir,
    HasExportDir,
    HasSignatureDefKey,
    HasTagSet,
):
    """Runs inference with a SavedModel, independently in every executor.

    Parameters
    ----------
    tf_args
        The program's own arguments.
    """

    def __init__(self, tf_args: Any) -> None:
        super().__init__()
        self.args = Namespace(tf_args)
        self._setDefault(
            input_mapping={},
            output_mapping={},
            batch_size=100,
            model_dir=None,
            export_dir=None,
            signature_def_key=None,
            tag_set=None,
        )

    @_notes.now("tfspark.predict(df, model, inputs=..., outputs=...)")
    def _transform(self, dataset: DataFrame) -> DataFrame:
        """Return the columns of the output mapping, in the order of their tensors' names."""
        from pyspark.sql import functions as F

        import tfspark

        args = self.merge_args_params()
        if not args.export_dir:
            raise ConfigurationError("A TFModel needs an export_dir that contains a SavedModel.")
        if args.tag_set not in (None, "serve"):
            raise ConfigurationError(
                f"tag_set must be 'serve', the tag of SavedModels of TensorFlow 2, got {args.tag_set!r}."
            )
        columns, outputs = args.input_mapping, dict(sorted(args.output_mapping.items()))
        # Outputs may have the names of input columns, because input columns are not passed through.
        inner = {tensor: f"output_{i}" for i, tensor in enumerate(outputs)}
        predicted = tfspark.predict(
            dataset.select(sorted(columns)),
            args.export_dir,
            inputs={tensor: column for column, tensor in columns.items()},
            outputs=inner,
            signature=args.signature_def_key or "serving_default",
            batch_size=args.batch_size,
        )
        kinds = {f.name: f for f in predicted.schema.fields}
        return predicted.select(*[_as_before(F.col(c), kinds[c]).alias(outputs[t]) for t, c in inner.items()])


_WIDER = {"float": "double", "integer": "bigint", "byte": "bigint", "short": "bigint"}


def _as_before(column: Any, field: Any) -> Any:
    """Return an output with the old API's type: double or long, and an array if a row's output has dimensions."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import ArrayType

    kind = field.dataType
    element = kind.elementType if isinstance(kind, ArrayType) else kind
    wider = _WIDER.get(element.typeName(), element.simpleString())
    if isinstance(kind, ArrayType):
        return column.cast(f"array<{wider}>")
    has_shape = field.metadata.get("tfspark.rank", 0) > 0
    return F.array(column.cast(wider)) if has_shape else column.cast(wider)


def single_node_env(args: Any) -> None:
    """Set ``sys.argv`` and the GPUs of this process from the program's arguments.

    Parameters
    ----------
    args
        A list of words, or a `Namespace` with ``num_gpus``.
    """
    argv = args if isinstance(args, list) else args.argv
    if argv:
        sys.argv = argv
    util.single_node_env(args.num_gpus if "num_gpus" in args else 1)


def get_meta_graph_def(saved_model_dir: str, tag_set: str) -> Any:
    """Return the graph of a SavedModel that has exactly these tags.

    Raises
    ------
    RuntimeError
        If there is no such graph.
    """
    from tensorflow.python.saved_model import loader_impl

    tags = set(tag_set.split(","))
    for graph in loader_impl.parse_saved_model(saved_model_dir).meta_graphs:
        if set(graph.meta_info_def.tags) == tags:
            return graph
    raise RuntimeError(f"{saved_model_dir} has no graph with the tags {sorted(tags)}.")


def yield_batch(iterable: Iterable[Any], batch_size: int, num_tensors: int = 1) -> Iterator[list[list[Any]]]:
    """Yield batches of up to `batch_size` rows, as a list of values for each tensor; a row of ``None`` ends them."""
    tensors: list[list[Any]] = [[] for _ in range(num_tensors)]
    for row in iterable:
        if row is None:
            break
        for i, values in enumerate(tensors):
            values.append(bytes(row[i]) if isinstance(row[i], bytearray) else row[i])
        if len(tensors[0]) >= batch_size:
            yield tensors
            tensors = [[] for _ in range(num_tensors)]
    if tensors[0]:
        yield tensors
