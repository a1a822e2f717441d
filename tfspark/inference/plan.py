"""What a prediction does, decided in the driver: a `PredictionPlan` travels to the tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, SchemaError
from tfspark.inference.source import ModelCall, PackedModel, StoredModel, source_of
from tfspark.saved_models.signatures import Signature, TensorInfo
from tfspark.schema import ColumnSpec, Shape, plan_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

RANK = "tfspark.rank"
"""Key, in the metadata of an output's column, of how many dimensions a row of it has in the model."""

DEFAULT_BATCH_SIZE = 1024
"""Rows per call of the model: beyond about so many a call costs nothing more, but tensors leave the CPU's caches."""


@dataclass(frozen=True)
class PredictionPlan:
    """What the tasks need to know.

    Attributes
    ----------
    inputs
        Input of the signature to the name of the column that becomes it.
    outputs
        Output of the signature to the name of the column that it becomes.
    packed
        Columns that travel as bytes, and the dtype of the values that they hold.
    """

    call: ModelCall
    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    batch_size: int
    shapes: Mapping[str, Shape]
    fill: Mapping[str, Any]
    packed: Mapping[str, str] = field(default_factory=dict)

    def columns(self, schema: pa.Schema) -> tuple[ColumnSpec, ...]:
        """Decide the tensors of the columns, which have this Arrow schema before any are packed.

        Raises
        ------
        SchemaError
            If a column has no tensor form, or not that of its input.
        """
        shapes: dict[str, Shape] = dict(self.shapes)
        for name, column in self.inputs.items():
            row = self.signature.inputs[name].row_shape
            if row and None not in row and column not in shapes and _is_list(schema.field(column).type):
                shapes[column] = row
        specs = plan_columns(schema, shapes, self.fill)
        by_name = {c.name: c for c in specs}
        for name, column in self.inputs.items():
            _check(name, self.signature.inputs[name], by_name[column])
        return specs

    @property
    def arrow_types(self) -> dict[str, pa.DataType]:
        """The Arrow types of the outputs that are kept, by output."""
        return {name: _arrow_type(self.signature.outputs[name]) for name in self.outputs}

    @property
    def output_type(self) -> StructType:
        """The Spark types of the outputs that are kept."""
        from pyspark.sql.types import StructType

        out = StructType()
        for name, column in self.outputs.items():
            out = out.add(column, _spark_type(name, self.signature.outputs[name]))
        return out

    def metadata_of(self, output: str) -> dict[str, Any]:
        """Return the metadata of the column that an output becomes."""
        row = self.signature.outputs[output].row_shape
        return {} if row is None else {RANK: len(row)}


def plan_prediction(
    spark: SparkSession,
    model: Any,
    *,
    signature: str,
    inputs: Mapping[str, str] | str | None,
    outputs: Mapping[str, str] | Sequence[str] | str | None,
    batch_size: int,
    shapes: Mapping[str, Shape] | None = None,
    fill: Mapping[str, Any] | None = None,
) -> PredictionPlan:
    """Look at the model and decide what becomes of its inputs and outputs; see `predict`."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    call, found = look_at_model(spark, ModelCall(source_of(model), signature))
    return PredictionPlan(
        call,
        found,
        _columns_of_inputs(found, inputs),
        _wanted_outputs(found, outputs),
        batch_size,
        dict(shapes or {}),
        dict(fill or {}),
    )


def look_at_model(spark: SparkSession, call: ModelCall) -> tuple[ModelCall, Signature]:
    """Find and describe the model.

    One that is stored is looked at in a Spark task, as it is there that it must be readable.

    Raises
    ------
    ConfigurationError
        If there is no such model or signature.
    """
    source, signature = call.source, call.signature
    if isinstance(source, PackedModel):
        if source.signature is not None and source.signature.name == signature:
            return call, source.signature
        from tfspark.inference.loading import describe

        return call, describe(call)
    path = source.path

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from tfspark.inference.plan import answer_look

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"answer": [answer_look(path, signature)]})

    answer = json.loads(spark.range(0, 1, 1, 1).mapInArrow(look, "answer string").collect()[0]["answer"])
    if "error" in answer:
        raise ConfigurationError(answer["error"], hint=answer["hint"])
    return ModelCall(StoredModel(answer["path"]), signature), Signature.from_json(answer["signature"])


def answer_look(path: str, signature: str) -> str:
    """Body of the task that looks at a model: returns JSON."""
    import socket

    from tfspark.inference.loading import describe

    try:
        source = StoredModel(path).found()
        described = describe(ModelCall(source, signature))
        return json.dumps({"path": source.path, "signature": described.to_json()})
    except ConfigurationError as e:
        return json.dumps({"error": f"{e.message.removesuffix('.')} (on {socket.gethostname()}).", "hint": e.hint})


def _columns_of_inputs(found: Signature, inputs: Mapping[str, str] | str | None) -> dict[str, str]:
    names = list(found.inputs)
    if isinstance(inputs, str):
        if len(names) != 1:
            raise ConfigurationError(f"The model has the inputs {names}.", hint="Map each to a column: inputs={...}.")
        return {names[0]: inputs}
    unknown = sorted(set(inputs or {}) - set(names))
    if unknown:
        raise ConfigurationError(f"The model has no inputs {unknown}.", hint=f"It has {names}.")
    return {name: (inputs or {}).get(name, name) for name in names}


def _wanted_outputs(found: Signature, outputs: Mapping[str, str] | Sequence[str] | str | None) -> dict[str, str]:
    names = list(found.outputs)
    if outputs is None:
        return {n: n for n in names}
    if isinstance(outputs, str):
        if len(names) != 1:
            raise ConfigurationError(f"The model has the outputs {names}.", hint="Map those you want: outputs={...}.")
        return {names[0]: outputs}
    wanted = dict(outputs) if isinstance(outputs, Mapping) else {n: n for n in outputs}
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ConfigurationError(f"The model has no outputs {unknown}.", hint=f"It has {names}.")
    if not wanted or len(set(wanted.values())) != len(wanted):
        raise ConfigurationError(f"outputs={outputs!r} does not give each output a column of its own.")
    return wanted


def _is_list(t: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))


def _check(name: str, info: TensorInfo, column: ColumnSpec) -> None:
    if (info.dtype == "string") != (column.dtype == "string"):
        raise SchemaError(
            f"Input {name!r} takes {info.dtype}, but the column {column.name!r} holds {column.dtype}.",
            hint="Cast the column, or map another one: inputs={input: column}.",
        )
    row = info.row_shape
    if row is not None and len(column.shape) + column.ragged > len(row):
        raise SchemaError(f"Input {name!r} takes {info}, but the column {column.name!r} holds arrays.")


_OUTPUT_TYPES = {
    "bool": ("bool", "BooleanType"),
    "int8": ("int8", "ByteType"),
    "int16": ("int16", "ShortType"),
    "uint8": ("int16", "ShortType"),
    "int32": ("int32", "IntegerType"),
    "uint16": ("int32", "IntegerType"),
    "int64": ("int64", "LongType"),
    "uint32": ("int64", "LongType"),
    "float16": ("float32", "FloatType"),
    "bfloat16": ("float32", "FloatType"),
    "float32": ("float32", "FloatType"),
    "float64": ("float64", "DoubleType"),
    "string": ("binary", "BinaryType"),
}
"""Arrow type and Spark type of an output, by its dtype; Spark has no unsigned numbers, and none of 16 bits."""


def _spark_type(name: str, info: TensorInfo) -> Any:
    from pyspark.sql import types

    if info.dtype not in _OUTPUT_TYPES:
        raise SchemaError(
            f"Output {name!r} has dtype {info.dtype}, for which there is no Spark type.",
            hint="Keep other outputs with outputs=[...].",
        )
    value = getattr(types, _OUTPUT_TYPES[info.dtype][1])()
    for _ in range(_depth(info)):
        value = types.ArrayType(value, False)
    return value


def _arrow_type(info: TensorInfo) -> pa.DataType:
    import pyarrow as pa

    t = pa.type_for_alias(_OUTPUT_TYPES[info.dtype][0])
    for _ in range(_depth(info)):
        t = pa.list_(t)
    return t


def _depth(info: TensorInfo) -> int:
    """Return how many arrays are around the values of a row."""
    row = (None,) if info.row_shape is None else info.row_shape
    return 0 if row == (1,) else len(row)
