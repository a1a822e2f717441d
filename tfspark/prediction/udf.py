"""`predict_udf`: a model as an Arrow UDF (before Spark 4.1 a pandas UDF), for columns and for SQL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError
from tfspark.prediction.arrow_udf import arrow_udf, arrow_udfs
from tfspark.prediction.pandas_udf import pandas_udf
from tfspark.prediction.plan import DEFAULT_BATCH_SIZE, PredictionPlan, plan_prediction
from tfspark.saved_models.signatures import DEFAULT

if TYPE_CHECKING:
    import pyarrow as pa


def predict_udf(
    model: str | os.PathLike[str] | Any,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | str | None = None,
    signature: str = DEFAULT,
    batch_size: int = DEFAULT_BATCH_SIZE,
    padding_values: Mapping[str, Any] | None = None,
) -> Any:
    """Return a model as a user defined function over columns.

    ``spark.udf.register("late", tfspark.predict_udf(directory))`` makes it a SQL function. It takes one column per
    input, or one struct whose fields have the names of the inputs: ``late(distance, hour)``,
    ``late(struct(*))``.

    Parameters
    ----------
    model, signature, batch_size
        As for `predict`.
    inputs
        Names of the inputs in the order of the arguments; by default alphabetical.
    outputs
        Outputs to keep; by default all. With one output the function returns its value, else a struct of all of them.
    padding_values
        As for `predict`, by input.

    Returns
    -------
    UserDefinedFunction
        A function that takes columns and returns a column. Spark assumes that it is deterministic, and may call the
        model twice for a row if a filter needs the result; ``.asNondeterministic()`` prevents that. Before Spark 4.1 it
        is a pandas UDF, which cannot tell NaN from null and refuses both.

    Raises
    ------
    ConfigurationError
        If there is no active session, or no such model, signature, input or output.

    Examples
    --------
    >>> score = tfspark.predict_udf(model_directory)
    >>> df.select("y", score("x").alias("score")).columns
    ['y', 'score']
    """
    from pyspark.sql import SparkSession

    spark = SparkSession.getActiveSession()
    if spark is None:
        raise ConfigurationError("predict_udf needs an active SparkSession.", hint="Make one: tfspark.session(...).")
    kept = [outputs] if isinstance(outputs, str) else outputs
    plan = plan_prediction(
        spark,
        model,
        signature=signature,
        inputs=None,
        outputs=kept,
        batch_size=batch_size,
        padding=padding_values,
        asked_by="predict_udf",
    )
    order = list(plan.inputs) if inputs is None else list(inputs)
    if sorted(order) != sorted(plan.inputs):
        raise ConfigurationError(f"inputs must be those of the model, {list(plan.inputs)}, got {order}.")
    return model_udf(plan, order, unpack=True)


def model_udf(plan: PredictionPlan, columns: Sequence[str], unpack: bool = False) -> Any:
    """Return the UDF of a plan; it takes these columns and returns a struct of the outputs.

    Parameters
    ----------
    unpack
        Whether the UDF returns the value itself if one output is kept.
    """
    alone = unpack and len(plan.outputs) == 1

    def answer(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Array]:
        from tfspark.prediction.udf import predicted

        return predicted(plan, alone, batches)

    output_type = plan.output_type
    make = arrow_udf if arrow_udfs() else pandas_udf
    return make(answer, columns, output_type.fields[0].dataType if alone else output_type)


# --- in the task


def predicted(plan: PredictionPlan, alone: bool, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Array]:
    """Run the UDF; this is its body, which yields as many rows in all as it takes, in batches of the plan's size."""
    import pyarrow as pa

    from tfspark.prediction.batches import Predictor, rebatched

    predictor = None
    for batch in rebatched(batches, plan.batch_size):
        predictor = predictor or Predictor(plan, batch.schema)
        outputs = predictor(batch)
        yield outputs[0] if alone else pa.StructArray.from_arrays(outputs, names=list(plan.outputs.values()))


def predict_beside(plan: PredictionPlan, own: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the first `own` columns, then the outputs for the other columns; this is the ``mapInArrow`` task's body."""
    import pyarrow as pa

    from tfspark.prediction.batches import Predictor, rebatched

    predictor = None
    for batch in rebatched(batches, plan.batch_size):
        if not batch.num_rows:
            continue
        names = batch.schema.names
        fed = pa.RecordBatch.from_arrays(batch.columns[own:], names=names[own:])
        predictor = predictor or Predictor(plan, fed.schema)
        columns = [*batch.columns[:own], *predictor(fed)]
        yield pa.RecordBatch.from_arrays(columns, names=[*names[:own], *plan.outputs.values()])
