"""The lazy DataFrame of `Cluster.predict`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.checks import check_whole_number
from tfspark.columns.leaves import Columns, fed_columns, planned
from tfspark.columns.packed_arrays import packed_columns
from tfspark.columns.sent import map_beside, sent_columns
from tfspark.columns.spec import Shape
from tfspark.columns.types import arrow_schema_of
from tfspark.errors import ConfigurationError, first_line
from tfspark.prediction.arrow_udf import add_answers, answer_beside, arrow_udf, kept_columns
from tfspark.prediction.frame_columns import beside_repeated, has_repeated
from tfspark.spark.internals import parse_type
from tfspark.spec import ClusterSpec
from tfspark.transport.auth import Secret

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

    from tfspark.prediction.worker_task import PredictTask


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
    """Return a DataFrame of kept columns of `df` and the answers of the workers; see `Cluster.predict`."""
    from pyspark.sql import DataFrame

    from tfspark.prediction.worker_task import PredictTask

    if not isinstance(df, DataFrame):
        raise ConfigurationError(f"predict() takes a Spark DataFrame, got {type(df).__name__}.")
    check_whole_number("batch_size", batch_size, 1)
    kept, answered = kept_columns(df, keep), _parse(outputs)
    clash = sorted(set(answered.names) & set(kept))
    if clash:
        raise ConfigurationError(
            f"Outputs {clash} have the same names as columns.", hint="Give the outputs other names."
        )
    if has_repeated(df):
        needed = set(df.columns if columns is None else columns.values() if isinstance(columns, Mapping) else columns)
        wanted = None if keep is None else kept
        given: dict[str, Any] = {"workers": workers, "coordinator": coordinator, "secret": secret}
        given |= {"columns": columns, "shapes": shapes, "fill": fill, "mask": mask, "sparse": sparse, "keep": wanted}
        return beside_repeated(
            df, needed, wanted, lambda renamed: predictions(renamed, outputs, batch_size=batch_size, **given)
        )
    fed = fed_columns(df, columns, mask, sparse)
    specs = planned(fed.schema, fed.shapes, shapes, fill, mask, sparse)
    task = PredictTask(
        secrets.token_hex(6),
        specs,
        (),
        arrow_schema_of(answered),
        batch_size,
        workers,
        *coordinator,
        secret.for_clients(),
    )
    if (added := map_beside(df, fed.columns, kept, _asking(task), answered)) is not None:
        return added
    return (_with_udf if answer_beside(df, kept, keep is None) else _with_map)(df, task, fed.columns, kept, answered)


def _with_udf(
    df: DataFrame, task: PredictTask, columns: Mapping[str, Column], kept: Sequence[str], answered: StructType
) -> DataFrame:
    """Return a DataFrame of kept columns, which stay in the JVM, and answers."""
    sent, packed = packed_columns(df, columns, task.columns)
    task = replace(task, packed=packed)

    def ask_workers(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Array]:
        from tfspark.prediction.worker_task import ask_for_structs

        return ask_for_structs(task, batches)

    # Spark may evaluate a deterministic function twice, for a filter on its result; workers must be asked only once.
    call = arrow_udf(ask_workers, list(sent), answered).asNondeterministic()(*sent.values())
    return add_answers(df, call, kept, dict.fromkeys(answered.names))


def _with_map(
    df: DataFrame, task: PredictTask, columns: Mapping[str, Column], kept: Sequence[str], answered: StructType
) -> DataFrame:
    """Return a DataFrame of kept columns, which are sent to Python and back, and answers."""
    from pyspark.sql.types import StructType

    sent = sent_columns(df, columns, task.columns, kept=kept)
    task = replace(task, kept=tuple(kept), packed=sent.packed)
    return sent.map(_asking(task), StructType([*[df.schema[c] for c in kept], *answered.fields]))


def _asking(task: PredictTask) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function that runs in the Python worker; it yields the columns that `task` keeps, and the answers."""

    def ask_workers(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.prediction.worker_task import ask

        return ask(task, batches)

    return ask_workers


def _parse(outputs: str | StructType) -> StructType:
    from pyspark.sql.types import StructType

    if isinstance(outputs, StructType):
        parsed: Any = outputs
    else:
        try:
            parsed = parse_type(outputs)
        except ValueError as e:
            raise ConfigurationError(
                f"outputs={outputs!r} is not a schema: {first_line(e)}",
                hint="Write names and types: 'label int, scores array<float>'.",
            ) from None
    if not isinstance(parsed, StructType) or not parsed.fields:
        raise ConfigurationError(
            f"outputs must name at least one column, got {outputs!r}.",
            hint="Write names and types: 'label int, scores array<float>'.",
        )
    return parsed
