"""`predict`: a model over a DataFrame."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.columns.packed_arrays import packed_columns
from tfspark.columns.sent import map_beside, sent_columns
from tfspark.columns.spec import ColumnSpec, Shape
from tfspark.columns.types import arrow_schema_of
from tfspark.errors import ConfigurationError, SchemaError, all_of
from tfspark.prediction.arrow_udf import add_answers, answer_beside, kept_columns
from tfspark.prediction.frame_columns import as_array, at_path, beside_repeated, has_repeated, path_of
from tfspark.prediction.inputs import InputRule
from tfspark.prediction.plan import DEFAULT_BATCH_SIZE, PredictionPlan, plan_prediction
from tfspark.prediction.udf import model_udf
from tfspark.saved_models.signatures import DEFAULT

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType


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
    padding_values: Mapping[str, Any] | None = None,
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
        built Keras model. Executors must be able to read a local path; what is at ``hdfs://``, ``s3a://``, ``gs://``
        or any other URL that Spark reads is copied to each executor once, and a Keras model travels to them.
    inputs
        Input name of the signature to column name, or to a field of a struct, ``"customer.age"``; by default columns
        of the same names. The column alone, if there is but one input.
    outputs
        Names of the outputs to keep, or output name to column name; by default all, under their own names. The new
        name alone, if there is but one output. An output in nested dicts is called ``outer/inner``.
    signature
        Which signature of the SavedModel to call.
    batch_size
        Rows per call of the model, whatever batches Spark makes.
    shapes
        Shape of one row for array columns, where the signature leaves dimensions open. A fixed dimension of the
        signature is checked.
    fill
        What replaces nulls, by column; by default what replaced them in training, if the export says so, as one of
        ``ctx.export`` does. ``{column: None}`` makes a null an error, as it is for other columns. For an array column,
        a single value replaces nulls inside the arrays too, and a null array becomes one that is full of it, or empty
        where the signature leaves its length open; an array replaces null arrays.
    padding_values
        What arrays are padded with to the longest of their batch, where the signature leaves their length open, by
        column; by default what the model masks, as far as that is known (of a Keras model and a ``.keras`` file), or
        0, or an empty string. A signature that takes a ``RaggedTensor`` is given one.
    keep
        Columns of `df` that the result has beside the outputs; by default all. A ``select`` afterwards gives the
        same; on Spark Connect and without the connector's jar `keep` may be faster, with a few short columns.

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
        If columns have no tensor form, or not that of their inputs. The Spark job fails with one that names column,
        row and value if a value is not one of its input's type: numbers are cast, but a value changes by the rounding
        of floats, and by nothing else.

    Examples
    --------
    >>> tfspark.predict(df, model_directory, inputs="x", outputs="score").columns
    ['x', 'y', 'score']
    """
    from pyspark.sql import DataFrame

    if not isinstance(df, DataFrame):
        raise ConfigurationError(f"predict() takes a Spark DataFrame, got {type(df).__name__}.")
    plan = plan_prediction(
        df.sparkSession,
        model,
        signature=signature,
        inputs=inputs,
        outputs=outputs,
        batch_size=batch_size,
        shapes=shapes,
        fill=fill,
        padding=padding_values,
    )
    return add_predictions(df, plan, keep)


def add_predictions(df: DataFrame, plan: PredictionPlan, keep: Sequence[str] | None = None) -> DataFrame:
    """Add what a plan predicts to a DataFrame; see `predict`."""
    kept = kept_columns(df, keep)
    clash = sorted(set(plan.outputs.values()) & set(kept))
    if clash:
        raise ConfigurationError(
            f"Outputs {clash} have the same names as columns.", hint="Rename them with outputs={output: column}."
        )
    if has_repeated(df):
        needed = {path[0] for c in plan.columns if (path := path_of(df.schema, c))}
        wanted = None if keep is None else kept
        return beside_repeated(df, needed, wanted, lambda renamed: add_predictions(renamed, plan, wanted))
    columns, rules = _input_columns(df, plan)
    if (added := map_beside(df, columns, kept, _task(plan, 0), _outputs(plan))) is not None:
        return added
    if not answer_beside(df, kept, keep is None):
        return _with_map(df, plan, columns, rules, kept)
    columns, packed = packed_columns(df, columns, _travelling(rules), _narrowed(rules))
    return _with_udf(df, replace(plan, packed=packed), columns, kept)


def _input_columns(df: DataFrame, plan: PredictionPlan) -> tuple[dict[str, Column], list[InputRule]]:
    """Return the columns that become inputs by name, and how they do.

    Raises
    ------
    SchemaError
        If a column does not exist or cannot be its input: that is to be known now, and not when the job runs.
    """
    import pyarrow as pa
    from pyspark.sql.types import StructType

    paths = {c: path_of(df.schema, c) for c in plan.columns}
    problems = []
    if missing := sorted(c for c, path in paths.items() if path is None):
        problems.append(
            SchemaError(
                f"The model's signature {plan.signature.name!r} needs {missing}, which the DataFrame does not have.",
                hint=f"Map input names to columns with inputs={{...}}. The columns are {df.columns}.",
            )
        )
    columns = {c: at_path(path) for c, path in paths.items() if path is not None}
    kinds = df.select(*[column.alias(c) for c, column in columns.items()]).schema
    columns = {c: as_array(column, kinds[c].dataType) for c, column in columns.items()}
    fields: list[pa.Field] = []
    for f in df.select(*[column.alias(c) for c, column in columns.items()]).schema:
        try:
            fields.extend(arrow_schema_of(StructType([f])))
        except SchemaError as e:
            problems.append(e)
    rules = plan.rules(pa.schema(fields), problems)
    if problems:
        raise all_of(problems)
    return columns, rules


def _travelling(rules: Sequence[InputRule]) -> list[ColumnSpec]:
    """Return what decides which columns travel as bytes; those with nulls to fill inside of arrays cannot."""
    filled = {r.column for r in rules if r.fills_values}
    return [
        ColumnSpec(r.column, r.dtype, r.fixed, 0 if r.fixed else 1, levels=1 if r.fixed else 0)
        if r.depth == 1 and r.column not in filled
        else ColumnSpec(r.column, r.dtype)
        for r in rules
    ]


def _narrowed(rules: Sequence[InputRule]) -> set[str]:
    """Return the columns of which doubles are wanted as floats, and nothing else."""
    return {r.column for r in rules} - {r.column for r in rules if r.dtype != "float32"}


def _with_udf(df: DataFrame, plan: PredictionPlan, columns: Mapping[str, Column], kept: Sequence[str]) -> DataFrame:
    """Return kept columns, which do not leave the JVM, and outputs."""
    # Spark may evaluate a deterministic function twice: for a filter on its result, and for the result.
    call = model_udf(plan, list(columns)).asNondeterministic()(*columns.values())
    return add_answers(df, call, kept, {c: plan.metadata_of(name) for name, c in plan.outputs.items()})


def _with_map(
    df: DataFrame, plan: PredictionPlan, columns: Mapping[str, Column], rules: Sequence[InputRule], kept: Sequence[str]
) -> DataFrame:
    """Return kept columns, which travel both ways, and outputs."""
    from pyspark.sql.types import StructType

    sent = sent_columns(df, columns, _travelling(rules), narrowed=_narrowed(rules), kept=kept)
    plan = replace(plan, packed=sent.packed)
    return sent.map(_task(plan, len(kept)), StructType([*[df.schema[c] for c in kept], *_outputs(plan)]))


def _task(plan: PredictionPlan, own: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return what runs in Python: it returns the first `own` columns, and outputs for those that follow."""

    def apply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.prediction.udf import predict_beside

        return predict_beside(plan, own, batches)

    return apply


def _outputs(plan: PredictionPlan) -> StructType:
    from pyspark.sql.types import StructField, StructType

    types = zip(plan.outputs, plan.output_type.fields, strict=True)
    return StructType([StructField(f.name, f.dataType, metadata=plan.metadata_of(name)) for name, f in types])
