"""`predict`: batch inference with a SavedModel over a DataFrame, lazily, in columns.

The model is loaded once per Spark Python worker and serves all its tasks and batches.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, SchemaError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

_models: dict[tuple[str, str], Any] = {}
_models_lock = threading.Lock()


def predict(
    df: DataFrame,
    model: str | os.PathLike[str],
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | Sequence[str] | None = None,
    signature: str = "serving_default",
    batch_size: int = 4096,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
) -> DataFrame:
    """Add a model's predictions to a DataFrame.

    Parameters
    ----------
    df
        Any DataFrame. Its columns are passed through.
    model
        A SavedModel directory, or a directory of numbered versions, of which the newest is taken. Executors must be
        able to read it.
    inputs
        Input name of the signature to column name; by default columns of the same names.
    outputs
        Names of the outputs to keep, or output name to column name; by default all, under their own names.
    signature
        Which signature of the SavedModel to call.
    batch_size
        Rows per call of the model.
    shapes
        Shape of one row for array columns; by default it is taken from the signature.

    Returns
    -------
    DataFrame
        Lazy; the columns of `df`, then one column per output: a scalar for outputs of shape ``(rows,)`` or
        ``(rows, 1)``, else an array.

    Raises
    ------
    ConfigurationError
        If there is no such model, signature, input or output.
    SchemaError
        If a column has no tensor form.
    """
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

    from tfspark.driver.sources import dataframe_source
    from tfspark.schema import plan_columns

    if not isinstance(df, DataFrame):
        raise ConfigurationError(f"predict() takes a Spark DataFrame, not {type(df).__name__}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    path = os.fspath(model)
    # Executors have working directories of their own.
    path = path if "://" in path else os.path.abspath(path)
    directory, found = _look_at_model(df.sparkSession, path, signature)
    columns = {name: (inputs or {}).get(name, name) for name in found["inputs"]}
    missing = sorted(c for c in columns.values() if c not in df.columns)
    if missing:
        raise ConfigurationError(
            f"The model's signature {signature!r} needs {missing}, which are no columns.",
            hint=f"Map input names to columns with inputs={{...}}. The columns are {df.columns}.",
        )
    wanted = _wanted_outputs(found["outputs"], outputs)
    clash = sorted(set(wanted.values()) & set(df.columns))
    if clash:
        raise ConfigurationError(
            f"Outputs {clash} have the names of columns.", hint="Rename them with outputs={output: column}."
        )
    arrays = {f.name for f in df.schema.fields if f.dataType.typeName() == "array"}
    declared: dict[str, Sequence[int] | int] = {}
    for name, (_, shape) in found["inputs"].items():
        known = tuple(d for d in shape if d is not None)
        if shape and len(known) == len(shape) and columns[name] in arrays:
            declared[columns[name]] = known
    declared.update(shapes or {})
    specs = plan_columns(dataframe_source(df, list(dict.fromkeys(columns.values()))).schema, declared)
    fields = [_spark_type(name, *found["outputs"][name]) for name in wanted]
    schema = StructType(list(df.schema.fields))
    for (name, column), spark_type in zip(wanted.items(), fields, strict=True):
        rank = len(found["outputs"][name][1])
        schema = schema.add(column, spark_type, True, {"tfspark.output": name, "tfspark.rank": rank})

    def apply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.inference import predict_batches

        return predict_batches(batches, directory, signature, columns, specs, wanted, batch_size)

    return df.mapInArrow(apply, schema)


def _look_at_model(spark: Any, model: str, signature: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Find and describe the model in a Spark task: it is there that it must be readable, and TensorFlow installed."""

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import socket

        import pyarrow as pa

        from tfspark.errors import ConfigurationError
        from tfspark.inference import describe_signature, newest_version

        for _ in batches:
            try:
                directory = newest_version(model)
                answer: dict[str, Any] = {"directory": directory, **describe_signature(directory, signature)}
            except ConfigurationError as e:
                answer = {"error": f"{e.message[:-1]} (on {socket.gethostname()}).", "hint": e.hint}
            yield pa.RecordBatch.from_pydict({"answer": [json.dumps(answer)]})

    rows = spark.range(0, 1, 1, 1).mapInArrow(look, "answer string").collect()
    answer = json.loads(rows[0]["answer"])
    if "error" in answer:
        raise ConfigurationError(answer["error"], hint=answer["hint"])
    described = {k: {n: (d, tuple(shape)) for n, (d, shape) in answer[k].items()} for k in ("inputs", "outputs")}
    return answer["directory"], described


def newest_version(directory: str) -> str:
    """Return `directory` if it is a SavedModel, else its highest numbered subdirectory that is one."""
    directory = directory.removeprefix("file://")
    if os.path.isfile(os.path.join(directory, "saved_model.pb")):
        return os.path.abspath(directory)
    versions = [d for d in os.listdir(directory) if d.isdigit()] if os.path.isdir(directory) else []
    for version in sorted(versions, key=int, reverse=True):
        path = os.path.join(directory, version)
        if os.path.isfile(os.path.join(path, "saved_model.pb")):
            return os.path.abspath(path)
    raise ConfigurationError(
        f"{directory!r} holds no SavedModel.", hint="Export one with ctx.export(model, directory) or model.export."
    )


def describe_signature(directory: str, signature: str) -> dict[str, dict[str, tuple[str, tuple[int | None, ...]]]]:
    """Read a signature from the SavedModel's own description, without loading the model.

    Returns
    -------
    dict
        ``{"inputs": {name: (dtype, shape of one row)}, "outputs": ...}``, names in alphabetical order.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    with open(os.path.join(directory, "saved_model.pb"), "rb") as f:
        proto.ParseFromString(f.read())
    graphs = [g for g in proto.meta_graphs if "serve" in g.meta_info_def.tags]
    defined = graphs[0].signature_def if graphs else {}
    if signature not in defined:
        names = sorted(n for n in defined if not n.startswith("__"))
        raise ConfigurationError(f"{directory} has no signature {signature!r}.", hint=f"It has {names}.")

    def tensors(infos: Any) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        out = {}
        for name in sorted(infos):
            info = infos[name]
            dims = tuple(None if d.size < 0 else int(d.size) for d in info.tensor_shape.dim[1:])
            out[name] = (tf.as_dtype(info.dtype).name, dims)
        return out

    return {"inputs": tensors(defined[signature].inputs), "outputs": tensors(defined[signature].outputs)}


def _wanted_outputs(found: Mapping[str, Any], outputs: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    if outputs is None:
        return {n: n for n in found}
    wanted = dict(outputs) if isinstance(outputs, Mapping) else {n: n for n in outputs}
    unknown = sorted(set(wanted) - set(found))
    if unknown:
        raise ConfigurationError(f"The model has no outputs {unknown}.", hint=f"It has {list(found)}.")
    return wanted


_SPARK_TYPES = {
    "bool": "boolean",
    "int8": "byte",
    "int16": "short",
    "uint8": "short",
    "int32": "integer",
    "uint16": "integer",
    "int64": "long",
    "uint32": "long",
    "float16": "float",
    "bfloat16": "float",
    "float32": "float",
    "float64": "double",
    "string": "binary",
}


def _spark_type(name: str, dtype: str, shape: tuple[int | None, ...]) -> Any:
    from pyspark.sql.types import ArrayType, _parse_datatype_string

    if dtype not in _SPARK_TYPES:
        raise SchemaError(f"Output {name!r} has dtype {dtype}, for which there is no Spark type.")
    value = _parse_datatype_string(_SPARK_TYPES[dtype])
    return value if shape in ((), (1,)) else ArrayType(value, False)


def _load(directory: str, signature: str) -> Any:
    """Load a model once per process; the Python worker is reused by later tasks."""
    with _models_lock:
        key = (directory, signature)
        if key not in _models:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            import tensorflow as tf

            loaded = tf.saved_model.load(directory)
            # The signature function does not keep its model alive.
            _models[key] = (loaded, loaded.signatures[signature])
        return _models[key][1]


def predict_batches(
    batches: Iterator[pa.RecordBatch],
    directory: str,
    signature: str,
    columns: Mapping[str, str],
    specs: Sequence[Any],
    wanted: Mapping[str, str],
    batch_size: int,
) -> Iterator[pa.RecordBatch]:
    """Body of the prediction task, for ``DataFrame.mapInArrow``."""
    import pyarrow as pa
    import tensorflow as tf

    from tfspark.arrays import column_arrays, to_arrow
    from tfspark.prepare import prepare_batch
    from tfspark.schema import arrow_schema

    function = None
    prepared_schema = arrow_schema(specs)
    by_column = {c.name: c for c in specs}
    for whole in batches:
        if whole.num_rows == 0:
            continue
        function = function or _load(directory, signature)
        expected = function.structured_input_signature[1]
        for start in range(0, whole.num_rows, batch_size):
            batch = whole.slice(start, batch_size)
            prepared = prepare_batch(batch.select(list(by_column)), specs, prepared_schema)
            feeds = {}
            for name, column in columns.items():
                spec = by_column[column]
                arrays = column_arrays(pa.chunked_array([prepared.column(column)]), spec)
                want = expected[name]
                array, *splits = arrays
                if want.shape.rank is not None and not spec.ragged and array.ndim < want.shape.rank:
                    array = array.reshape(*array.shape, *[1] * (want.shape.rank - array.ndim))
                tensor = tf.RaggedTensor.from_nested_row_splits(array, splits) if splits else tf.constant(array)
                feeds[name] = tensor if tensor.dtype == want.dtype else tf.cast(tensor, want.dtype)
            produced = function(**feeds)
            out = [to_arrow(produced[n], batch.num_rows, n) for n in wanted]
            yield pa.RecordBatch.from_arrays([*batch.columns, *out], names=[*batch.schema.names, *wanted.values()])
