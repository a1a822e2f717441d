"""`predict`: a model over a DataFrame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.driver.arrow_udf import add_answers, answer_beside, columns_for_map, kept_columns
from tfspark.driver.sources import arrow_schema_of, leaves_of
from tfspark.errors import ConfigurationError, SchemaError
from tfspark.inference.plan import DEFAULT_BATCH_SIZE, PredictionPlan, plan_prediction
from tfspark.inference.udf import model_udf
from tfspark.packing import packed_columns
from tfspark.saved_models.signatures import DEFAULT
from tfspark.schema import ColumnSpec, Shape

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame


def predict(
    df: DataFrame,
    model: str | os.PathLike[str] | Any,
    *,
    inputs: Mapping[str, str] | str | None = None,
    outputs: Mapping[str, str] | Sequence[str] | str | None = None,
    signature: str = DEFAULT,
    batch_size: int = DEFAULT_BATCH_SIZE,
    shapes: Mapping[str, Shape] | None = None,
    fill: Mapping[str, Any] | None = None,
    keep: Sequence[str] | None = None,
) -> DataFrame:
    """Add a model's predictions to a DataFrame.

    The model is loaded once per Python worker and serves all its tasks and batches. A task to which Spark gave GPUs
    uses them. Only the model's input columns travel to Python; all others stay in Spark as they are.

    Parameters
    ----------
    df
        Any DataFrame; on Spark Connect too.
    model
        A SavedModel directory, or one of numbered versions, of which the newest is taken; a ``.keras`` file; or a
        built Keras model. Executors must be able to read a path; a Keras model travels to them.
    inputs
        Input name of the signature to column name; by default columns of the same names. The column alone, if there
        is but one input.
    outputs
        Names of the outputs to keep, or output name to column name; by default all, under their own names. The new
        name alone, if there is but one output.
    signature
        Which signature of the SavedModel to call.
    batch_size
        Rows per call of the model, whatever batches Spark makes.
    shapes
        Shape of one row for array columns; by default it is taken from the signature.
    fill
        Value that replaces nulls, by column; a null elsewhere is an error.
    keep
        Columns of `df` that the result has beside the outputs; by default all. With a few short ones, such as a key,
        rows may be through faster than with ``select`` afterwards: Spark need not hold the inputs until
        their predictions come back.

    Returns
    -------
    DataFrame
        Lazy; the columns of `df` that are kept, then one column per output: a scalar for outputs of shape ``(rows,)``
        or ``(rows, 1)``, else an array, of arrays if need be. Filters on it run after the model; filter `df` to spare
        the model rows.

    Raises
    ------
    ConfigurationError
        If there is no such model, signature, input or output.
    SchemaError
        If a column has no tensor form, or not that of its input.
    """
    from pyspark.sql import DataFrame

    if not isinstance(df, DataFrame):
        raise ConfigurationError(f"predict() takes a Spark DataFrame, not {type(df).__name__}.")
    plan = plan_prediction(
        df.sparkSession,
        model,
        signature=signature,
        inputs=inputs,
        outputs=outputs,
        batch_size=batch_size,
        shapes=shapes,
        fill=fill,
    )
    return add_predictions(df, plan, keep)


def add_predictions(df: DataFrame, plan: PredictionPlan, keep: Sequence[str] | None = None) -> DataFrame:
    """Add what a plan predicts to a DataFrame; see `predict`."""
    kept = kept_columns(df, keep)
    missing = sorted(c for c in plan.inputs.values() if c not in df.columns)
    if missing:
        raise ConfigurationError(
            f"The model's signature {plan.signature.name!r} needs {missing}, which are no columns.",
            hint=f"Map input names to columns with inputs={{...}}. The columns are {df.columns}.",
        )
    clash = sorted(set(plan.outputs.values()) & set(kept))
    if clash:
        raise ConfigurationError(
            f"Outputs {clash} have the names of columns.", hint="Rename them with outputs={output: column}."
        )
    columns, specs = _fed_columns(df, plan)
    wanted = {c: {plan.signature.inputs[n].dtype for n, of in plan.inputs.items() if of == c} for c in columns}
    columns, packed = packed_columns(df, columns, specs, [c for c, dtypes in wanted.items() if dtypes == {"float32"}])
    plan = replace(plan, packed=packed)
    return (_with_udf if answer_beside(df, kept, keep is None) else _with_map)(df, plan, columns, kept)


def _fed_columns(df: DataFrame, plan: PredictionPlan) -> tuple[dict[str, Column], tuple[ColumnSpec, ...]]:
    """Return the columns that become inputs by name, and the tensors that they become."""
    leaves = leaves_of(df, list(dict.fromkeys(plan.inputs.values())))
    nested = sorted({leaf.path[0] for leaf in leaves if len(leaf.path) > 1})
    if nested:
        raise SchemaError(f"Columns {nested} are structs, which are no tensors.", hint="Select their fields.")
    columns = {leaf.path[0]: leaf.column for leaf in leaves}
    # A column that cannot be its input is to be named now, and not when the job runs.
    return columns, plan.columns(arrow_schema_of(df.select(*[c.alias(n) for n, c in columns.items()]).schema))


def _with_udf(df: DataFrame, plan: PredictionPlan, columns: Mapping[str, Column], kept: Sequence[str]) -> DataFrame:
    """Return kept columns, which do not leave the JVM, and outputs."""
    # Spark may evaluate a deterministic function twice: for a filter on its result, and for the result.
    call = model_udf(plan, list(columns)).asNondeterministic()(*columns.values())
    return add_answers(df, call, kept, {c: plan.metadata_of(name) for name, c in plan.outputs.items()})


def _with_map(df: DataFrame, plan: PredictionPlan, columns: Mapping[str, Column], kept: Sequence[str]) -> DataFrame:
    """Return kept columns, which travel both ways, and outputs."""
    from pyspark.sql.types import StructField, StructType

    names = list(columns)
    types = zip(plan.outputs, plan.output_type.fields, strict=True)
    outputs = [StructField(f.name, f.dataType, metadata=plan.metadata_of(name)) for name, f in types]

    def apply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.inference.udf import predict_beside

        return predict_beside(plan, names, kept, batches)

    wide = columns_for_map(df, kept, columns.values())
    return wide.mapInArrow(apply, StructType([*[df.schema[c] for c in kept], *outputs]))
