"""Arrow UDFs, which Spark has since 4.1: columns are sent to Python in batches, and Python returns as many rows.

All other columns of the DataFrame stay in the JVM meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.columns.leaves import quoted
from tfspark.errors import ConfigurationError, SchemaError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

Answer = Callable[[Iterator["pa.RecordBatch"]], Iterator["pa.Array"]]
"""Takes batches and yields arrays with as many rows in all as the batches have."""


def arrow_udfs() -> bool:
    """Return whether this Spark has Arrow UDFs."""
    from pyspark.sql import functions as F

    return hasattr(F, "arrow_udf")


def arrow_udf(answer: Answer, columns: Sequence[str], returned: DataType) -> Any:
    """Return a UDF that takes these columns, or one struct with fields of these names."""
    from pyspark.sql import functions as F

    names = tuple(columns)

    def apply(arguments: Iterator[Any]) -> Iterator[Any]:
        from tfspark.prediction.arrow_udf import argument_batch
        from tfspark.spark.worker_socket import read_without_delay

        return answer(argument_batch(names, a) for a in read_without_delay(arguments))

    apply.__annotations__ = _hints()
    return F.arrow_udf(apply, returned)


def _hints() -> dict[str, Any]:
    """Return the type hints from which Spark infers the kind of Arrow UDF."""
    from collections.abc import Iterator

    import pyarrow as pa

    return {"arguments": Iterator[tuple[pa.Array, ...]], "return": Iterator[pa.Array]}


FEW = 8
"""Kept columns that may be sent to Python and back, in addition to the model's inputs."""


def kept_columns(df: DataFrame, keep: Sequence[str] | None) -> list[str]:
    """Return the columns of `df` that the result keeps beside the answers; all by default.

    Raises
    ------
    ConfigurationError
        If `keep` names an unknown column, or a column twice.
    """
    if keep is None:
        return df.columns
    if isinstance(keep, str):
        raise ConfigurationError(f"keep must be a list of columns, got {keep!r}.")
    kept = list(keep)
    if unknown := [c for c in kept if c not in df.columns]:
        raise ConfigurationError(f"keep refers to unknown columns {unknown}; the columns are {df.columns}.")
    if len(set(kept)) < len(kept):
        raise ConfigurationError(f"keep names a column more than once: {kept}.", hint="Name each column once.")
    return kept


def answer_beside(df: DataFrame, kept: Sequence[str], all_kept: bool) -> bool:
    """Return whether to use an Arrow UDF; else use ``mapInArrow``, which also sends the kept columns to Python.

    With a UDF, Spark buffers whole rows, including the inputs, until their answers return. With ``mapInArrow``, all
    kept columns are sent to Python and back. This is better if few short columns are kept. Spark before
    4.1 has only ``mapInArrow``.
    """
    from pyspark.sql import types as T

    short = (T.NumericType, T.BooleanType, T.StringType, T.DateType, T.TimestampType, T.TimestampNTZType)
    cheap = len(kept) <= FEW and all(isinstance(df.schema[c].dataType, short) for c in kept)
    return arrow_udfs() and (all_kept or not cheap)


def add_answers(df: DataFrame, call: Column, kept: Sequence[str], fields: Mapping[str, Any]) -> DataFrame:
    """Return a DataFrame of the kept columns and the fields of the struct that `call` returns.

    Parameters
    ----------
    kept
        Names of the kept columns.
    fields
        Metadata of the column of each field, or ``None``.
    """
    from pyspark.sql import functions as F

    together = f"tfspark_{secrets.token_hex(4)}"
    added = df.withColumn(together, call)
    own = [added[quoted(c)] for c in kept]
    answers = [F.col(f"{together}.{quoted(f)}").alias(f, metadata=metadata) for f, metadata in fields.items()]
    return added.select(*own, *answers)


def argument_batch(names: Sequence[str], arguments: Any) -> pa.RecordBatch:
    """Return a UDF's arguments as a batch of these columns; called in the task.

    Raises
    ------
    SchemaError
        If the number of arguments is wrong, or the struct of the inputs is null in some rows.
    """
    import pyarrow as pa

    # Spark passes a single argument without a tuple.
    arrays = list(arguments) if isinstance(arguments, tuple) else [arguments]
    if len(arrays) == 1 and pa.types.is_struct(arrays[0].type) and {f.name for f in arrays[0].type} >= set(names):
        fields = {f.name: i for i, f in enumerate(arrays[0].type)}
        if arrays[0].null_count:
            raise SchemaError("The struct of the model's inputs is null in some rows.", hint="Drop those rows.")
        flat = arrays[0].flatten()
        arrays = [flat[fields[n]] for n in names]
    if len(arrays) != len(names):
        raise SchemaError(
            f"The model takes {len(names)} columns, {list(names)}, but was called with {len(arrays)}.",
            hint="Or call it with one struct whose fields have these names.",
        )
    return pa.RecordBatch.from_arrays(arrays, names=list(names))
