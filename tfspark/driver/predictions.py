"""The lazy DataFrame of `Cluster.predict`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.driver.sources import Columns, arrow_schema_of, planned, widen
from tfspark.errors import ConfigurationError
from tfspark.schema import Shape
from tfspark.spec import ClusterSpec
from tfspark.transport.auth import Secret

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType


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
) -> DataFrame:
    """Return `df` with the columns that the workers answer; see `Cluster.predict`."""
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

    from tfspark.executor.predict_task import PredictPlan

    if not isinstance(df, DataFrame):
        raise ConfigurationError(f"predict() takes a Spark DataFrame, not {type(df).__name__}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    answered = _parse(outputs)
    clash = sorted(set(answered.names) & set(df.columns))
    if clash:
        raise ConfigurationError(f"Outputs {clash} have the names of columns.", hint="Name them otherwise.")
    wide = widen(df, columns, mask, sparse)
    specs = planned(wide.schema, wide.shapes, shapes, fill, mask, sparse)
    plan = PredictPlan(
        secrets.token_hex(6),
        specs,
        wide.sources,
        len(df.columns),
        arrow_schema_of(answered),
        batch_size,
        workers,
        *coordinator,
        secret.for_clients(),
    )

    def ask_workers(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.predict_task import ask

        return ask(plan, batches)

    return wide.df.mapInArrow(ask_workers, StructType([*df.schema.fields, *answered.fields]))


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
                f"outputs={outputs!r} is no schema: {str(e).splitlines()[0]}",
                hint="Write names and types: 'label int, scores array<float>'.",
            ) from None
    if not isinstance(parsed, StructType) or not parsed.fields:
        raise ConfigurationError(
            f"outputs={outputs!r} names no column.", hint="Write names and types: 'label int, scores array<float>'."
        )
    return parsed
