"""The plan of a prediction: the driver decides it, and sends it to the tasks as a `PredictionPlan`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfspark.checks import check_whole_number
from tfspark.columns.spec import Shape
from tfspark.columns.types import OUTPUTS, spark_type_of
from tfspark.errors import ConfigurationError, SchemaError, all_of
from tfspark.prediction.inputs import InputRule, rule_of
from tfspark.prediction.model_source import EmbeddedModel, ModelCall, ShippedModel, StoredModel, model_source_of
from tfspark.saved_models.signatures import Signature, TensorInfo
from tfspark.spark.internals import fail_at_first_schema_error

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

RANK = "tfspark.rank"
"""Key in the metadata of an output's column; the value is the number of dimensions of a row in the model."""

DEFAULT_BATCH_SIZE = 1024
"""Rows per call of the model; beyond about so many the cost of a call is negligible, but tensors exceed CPU caches."""


@dataclass(frozen=True)
class PredictionPlan:
    """All that the tasks need to know.

    Attributes
    ----------
    inputs
        For each input of the signature, the name of its column.
    outputs
        For each kept output of the signature, the name of its column.
    packed
        Columns that are sent as bytes, and the dtype of their values.
    padding
        Values with which arrays of different lengths are padded, by column.
    asked_by
        Name of the function that the user called, for hints: ``"predict"``, ``"predict_udf"`` or ``"transform"``.
    """

    call: ModelCall
    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    batch_size: int
    shapes: Mapping[str, Shape]
    fill: Mapping[str, Any]
    padding: Mapping[str, Any] = field(default_factory=dict)
    packed: Mapping[str, str] = field(default_factory=dict)
    asked_by: str = "predict"

    @property
    def columns(self) -> list[str]:
        """The columns that become inputs, each once."""
        return list(dict.fromkeys(self.inputs.values()))

    def rules(self, schema: pa.Schema, problems: list[SchemaError] | None = None) -> list[InputRule]:
        """Return the rules by which columns become inputs.

        Inputs whose columns are not in `schema` are left out.

        Parameters
        ----------
        schema
            Arrow schema of the columns before any column is packed.
        problems
            List to which errors are added instead of being raised.

        Raises
        ------
        SchemaError
            If columns cannot become tensors, or not the tensors of their inputs; the error names all such columns.
        """
        rules, found = [], []
        for name, column in self.inputs.items():
            if column not in schema.names:
                continue
            given = (self.shapes.get(column), self.fill.get(column), self.padding.get(column))
            splits = self.signature.splits_of(name)
            try:
                rules.append(rule_of(name, self.signature.inputs[name], len(splits), schema.field(column), *given))
            except SchemaError as e:
                found.append(e)
        if problems is not None:
            problems.extend(found)
        elif found:
            raise all_of(found)
        return rules

    def hint_for_nulls(self, columns: Sequence[str]) -> str:
        """Return a hint that says what to do about nulls in columns."""
        values = ", ".join(f"{c!r}: value" for c in columns)
        if self.asked_by == "predict":
            return f"Pass fill={{{values}}} to predict(), or drop or fill the nulls in Spark."
        if self.asked_by == "predict_udf":
            return "Drop the nulls, or fill them with coalesce(column, value)."
        return f"Drop or fill the nulls in Spark: df.dropna(subset={list(columns)}), or df.fillna({{{values}}})."

    @property
    def arrow_types(self) -> dict[str, pa.DataType]:
        """The Arrow types of the kept outputs, by output."""
        return {name: _arrow_type(self.signature.outputs[name]) for name in self.outputs}

    @property
    def output_type(self) -> StructType:
        """The Spark types of the kept outputs."""
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
    padding: Mapping[str, Any] | None = None,
    asked_by: str = "predict",
) -> PredictionPlan:
    """Read the model's signature and return the plan for its inputs and outputs; see `predict`."""
    check_whole_number("batch_size", batch_size, 1)
    fail_at_first_schema_error(spark)
    call, found = look_at_model(spark, ModelCall(model_source_of(spark, model), signature))
    columns = _columns_of_inputs(found, inputs)
    given = {"shapes": dict(shapes or {}), "fill": dict(fill or {}), "padding_values": dict(padding or {})}
    for what, by_column in given.items():
        taken = sorted(set(columns.values()))
        if unknown := sorted(set(by_column) - set(taken)):
            raise SchemaError(f"{what} refers to columns {unknown} that are not inputs; the inputs are {taken}.")
    masks = {columns[n]: info.mask for n, info in found.inputs.items() if n in columns and info.mask is not None}
    fills = {columns[n]: info.fill for n, info in found.inputs.items() if n in columns and info.fill is not None}
    return PredictionPlan(
        call,
        found,
        columns,
        _wanted_outputs(found, outputs),
        batch_size,
        given["shapes"],
        {**fills, **given["fill"]},
        {**masks, **given["padding_values"]},
        asked_by=asked_by,
    )


def look_at_model(spark: SparkSession, call: ModelCall) -> tuple[ModelCall, Signature]:
    """Find the model, and return it with the description of its signature.

    A stored or shipped model is read in a Spark task, because tasks must be able to read it.

    Raises
    ------
    ConfigurationError
        If there is no such model or signature.
    """
    source, signature = call.source, call.signature
    if isinstance(source, EmbeddedModel):
        if source.signature is not None and source.signature.name == signature:
            return call, source.signature
        from tfspark.prediction.loading import describe

        return call, describe(call)

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from tfspark.prediction.plan import answer_look

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"answer": [answer_look(source, signature)]})

    answer = json.loads(spark.range(0, 1, 1, 1).mapInArrow(look, "answer string").collect()[0]["answer"])
    if "error" in answer:
        raise ConfigurationError(answer["error"], hint=answer["hint"])
    found = source if isinstance(source, ShippedModel) else StoredModel(answer["path"])
    return ModelCall(found, signature), Signature.from_json(answer["signature"])


def answer_look(looked_at: StoredModel | ShippedModel, signature: str) -> str:
    """Return the path and signature of a model, or the error, as JSON; this is the body of the task."""
    import socket

    from tfspark.prediction.loading import describe

    try:
        source = looked_at.found()
        described = describe(ModelCall(source, signature))
        return json.dumps({"path": source.path, "signature": described.to_json()})
    except ConfigurationError as e:
        return json.dumps({"error": f"{e.message.removesuffix('.')} (on {socket.gethostname()}).", "hint": e.hint})


def _columns_of_inputs(found: Signature, inputs: Mapping[str, str] | str | None) -> dict[str, str]:
    names = [n for n, info in found.inputs.items() if not info.splits_of]
    if isinstance(inputs, str):
        if len(names) != 1:
            raise ConfigurationError(f"The model has the inputs {names}.", hint="Map each to a column: inputs={...}.")
        return {names[0]: inputs}
    unknown = sorted(set(inputs or {}) - set(names))
    if unknown:
        raise ConfigurationError(f"inputs refers to unknown inputs {unknown}; the model has {names}.")
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
        raise ConfigurationError(f"outputs refers to unknown outputs {unknown}; the model has {names}.")
    if not wanted or len(set(wanted.values())) != len(wanted):
        raise ConfigurationError(f"outputs must give each output a column of its own, got {outputs!r}.")
    return wanted


def _spark_type(name: str, info: TensorInfo) -> Any:
    from pyspark.sql.types import ArrayType

    if info.dtype not in OUTPUTS:
        raise SchemaError(
            f"Output {name!r} has dtype {info.dtype}, which has no Spark type.",
            hint="Keep other outputs with outputs=[...].",
        )
    value = spark_type_of(info.dtype)
    for _ in range(_depth(info)):
        value = ArrayType(value, False)
    return value


def _arrow_type(info: TensorInfo) -> pa.DataType:
    import pyarrow as pa

    t = OUTPUTS[info.dtype].arrow
    for _ in range(_depth(info)):
        t = pa.list_(t)
    return t


def _depth(info: TensorInfo) -> int:
    """Return the depth of the arrays that contain the values of a row."""
    row = (None,) if info.row_shape is None else info.row_shape
    return 0 if row == (1,) else len(row)
