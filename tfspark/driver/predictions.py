"""The lazy DataFrame of `Cluster.predict`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.driver.arrow_udf import add_answers, answer_beside, arrow_udf, columns_for_map, kept_columns
from tfspark.driver.sources import Columns, arrow_schema_of, fed_columns, planned
from tfspark.errors import ConfigurationError, first_line
from tfspark.packing import packed_columns
from tfspark.schema import Shape
from tfspark.spec import ClusterSpec
from tfspark.transport.auth import Secret

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

    from tfspark.executor.predict_task import PredictPlan


def predictions(
    df: DataFrame,
    outputs: str | StructType,
    *,
    workers: ClusterSpec,
    coordinator: tuple[str, int],
    secret: Secret,
    batch_size: int,
    columns: Columns | None,
    shapes: Mapping[str, Shape] | None,
    fill: Mapping[str, Any] | None,
    mask: Sequence[str],
    sparse: Sequence[str],
    keep: Sequence[str] | None,
) -> DataFrame:
    """Return columns of `df`, and those that the workers answer; see `Cluster.predict`."""
    from pyspark.sql import DataFrame

    from tfspark.executor.predict_task import PredictPlan

    if not isinstance(df, DataFrame):
        raise ConfigurationError(f"predict() takes a Spark DataFrame, not {type(df).__name__}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    kept, answered = kept_columns(df, keep), _parse(outputs)
    clash = sorted(set(answered.names) & set(kept))
    if clash:
        raise ConfigurationError(f"Outputs {clash} have the names of columns.", hint="Name them otherwise.")
    fed = fed_columns(df, columns, mask, sparse)
    specs = planned(fed.schema, fed.shapes, shapes, fill, mask, sparse)
    sent, packed = packed_columns(df, fed.columns, specs)
    plan = PredictPlan(
        secrets.token_hex(6),
        specs,
        (),
        arrow_schema_of(answered),
        batch_size,
        workers,
        *coordinator,
        secret.for_clients(),
        packed,
    )
    return (_with_udf if answer_beside(df, kept, keep is None) else _with_map)(df, plan, sent, kept, answered)


def _with_udf(
    df: DataFrame, plan: PredictPlan, sent: Mapping[str, Column], kept: Sequence[str], answered: StructType
) -> DataFrame:
    """Return kept columns, which do not leave the JVM, and answers."""

    def ask_workers(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Array]:
        from tfspark.executor.predict_task import ask_for_structs

        return ask_for_structs(plan, batches)

    # Workers are to be asked once, whatever Spark makes of filters on their answers.
    call = arrow_udf(ask_workers, list(sent), answered).asNondeterministic()(*sent.values())
    return add_answers(df, call, kept, dict.fromkeys(answered.names))


def _with_map(
    df: DataFrame, plan: PredictPlan, sent: Mapping[str, Column], kept: Sequence[str], answered: StructType
) -> DataFrame:
    """Return kept columns, which travel both ways, and answers."""
    from pyspark.sql.types import StructType

    plan = replace(plan, kept=tuple(kept))
    wide = columns_for_map(df, kept, sent.values())

    def ask_workers(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.predict_task import ask

        return ask(plan, batches)

    return wide.mapInArrow(ask_workers, StructType([*[df.schema[c] for c in kept], *answered.fields]))


def _parse(outputs: str | StructType) -> StructType:
    from pyspark.errors import PySparkException
    from pyspark.sql.types import StructType, _parse_datatype_string

    if isinstance(outputs, StructType):
        parsed: Any = outputs
    else:
        try:
            parsed = _parse_datatype_string(outputs)
        except (PySparkException, TypeError, AttributeError) as e:
            raise ConfigurationError(
                f"outputs={outputs!r} is no schema: {first_line(e)}",
                hint="Write names and types: 'label int, scores array<float>'.",
            ) from None
    if not isinstance(parsed, StructType) or not parsed.fields:
        raise ConfigurationError(
            f"outputs={outputs!r} names no column.", hint="Write names and types: 'label int, scores array<float>'."
        )
    return parsed
