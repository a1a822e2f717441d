"""`predict`: run a model on a DataFrame."""

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
    uses them. Only the model's input columns are sent to Python; all others stay in Spark unchanged.

    Parameters
    ----------
    df
        Any DataFrame, also of Spark Connect.
    model
        A SavedModel directory; a directory of numbered versions, of which the newest is used; a ``.keras`` file; or a
        built Keras model. Executors must be able to read a local path. A model at ``hdfs://``, ``s3a://``, ``gs://``
        or any other URL that Spark reads is copied to each executor once. A Keras model is sent to the executors.
    inputs
        Mapping of input names of the signature to column names, or to fields of structs such as ``"customer.age"``; by
        default columns with the names of the inputs. If there is one input, the column alone.
    outputs
        Names of the outputs to keep, or a mapping of output names to column names; by default all outputs, under their
        own names. If there is one output, the new name alone. An output in nested dicts is called ``outer/inner``.
    signature
        Name of the signature of the SavedModel to call.
    batch_size
        Rows per call of the model, whatever batches Spark makes.
    shapes
        Shape of one row for array columns, where the signature leaves dimensions open. A fixed dimension of the
        signature is checked.
    fill
        Values that replace nulls, by column. By default these are the values that replaced nulls in training, if the
        export contains them, as an export of ``ctx.export`` does. ``{column: None}`` makes a null an error, as it is
        for columns without a value. For an array column, a single value also replaces nulls inside the arrays; a null
        array becomes an array full of this value, or an empty array where the signature leaves the length open. An
        array as the value replaces null arrays.
    padding_values
        Values with which arrays are padded to the longest array of their batch, by column, where the signature leaves
        their length open. By default the value that the model masks, if it is known (for a Keras model and a
        ``.keras`` file), else 0 or an empty string. A signature that takes a ``RaggedTensor`` gets one.
    keep
        Columns of `df` that the result has in addition to the outputs; by default all. A ``select`` afterwards gives
        the same result. On Spark Connect, or without the connector's jar, `keep` with a few short columns may be
        faster.

    Returns
    -------
    DataFrame
        A lazy DataFrame of the kept columns of `df`, then one column per output: a scalar for outputs of shape
        ``(rows,)`` or ``(rows, 1)``, else an array, nested if needed. Filters on the result run after the model; to
        run the model on fewer rows, filter `df`.

    Raises
    ------
    ConfigurationError
        If there is no such model, signature, input or output.
    SchemaError
        If columns cannot become tensors, or not the tensors of their inputs. If a value does not fit the type of its
        input, the Spark job fails with a `SchemaError` that names column, row and value: numbers are cast, but the
        rounding of floats is the only change of a value that is allowed.

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
    """Add the predictions of a plan to a DataFrame; see `predict`."""
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
    """Return the columns that become inputs, by name, and the rules for the inputs.

    Raises
    ------
    SchemaError
        If a column does not exist or cannot become its input; the error is raised here, before the job runs.
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
    """Return specs that decide which columns are sent as bytes; columns with nulls to fill inside arrays cannot be."""
    filled = {r.column for r in rules if r.fills_values}
    return [
        ColumnSpec(r.column, r.dtype, r.fixed, 0 if r.fixed else 1, levels=1 if r.fixed else 0)
        if r.depth == 1 and r.column not in filled
        else ColumnSpec(r.column, r.dtype)
        for r in rules
    ]


def _narrowed(rules: Sequence[InputRule]) -> set[str]:
    """Return the columns that become ``float32`` inputs only, so that Spark may send their doubles as floats."""
    return {r.column for r in rules} - {r.column for r in rules if r.dtype != "float32"}


def _with_udf(df: DataFrame, plan: PredictionPlan, columns: Mapping[str, Column], kept: Sequence[str]) -> DataFrame:
    """Return a DataFrame of kept columns, which stay in the JVM, and outputs."""
    # Spark may evaluate a deterministic function twice: for a filter on its result, and for the result itself.
    call = model_udf(plan, list(columns)).asNondeterministic()(*columns.values())
    return add_answers(df, call, kept, {c: plan.metadata_of(name) for name, c in plan.outputs.items()})


def _with_map(
    df: DataFrame, plan: PredictionPlan, columns: Mapping[str, Column], rules: Sequence[InputRule], kept: Sequence[str]
) -> DataFrame:
    """Return a DataFrame of kept columns, which are sent to Python and back, and outputs."""
    from pyspark.sql.types import StructType

    sent = sent_columns(df, columns, _travelling(rules), narrowed=_narrowed(rules), kept=kept)
    plan = replace(plan, packed=sent.packed)
    return sent.map(_task(plan, len(kept)), StructType([*[df.schema[c] for c in kept], *_outputs(plan)]))


def _task(plan: PredictionPlan, own: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function that runs in the Python worker: it yields the first `own` columns, and outputs for others."""

    def apply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.prediction.udf import predict_beside

        return predict_beside(plan, own, batches)

    return apply


def _outputs(plan: PredictionPlan) -> StructType:
    from pyspark.sql.types import StructField, StructType

    types = zip(plan.outputs, plan.output_type.fields, strict=True)
    return StructType([StructField(f.name, f.dataType, metadata=plan.metadata_of(name)) for name, f in types])
