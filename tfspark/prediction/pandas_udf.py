"""A model as a pandas UDF, for Spark before 4.1, which has no Arrow UDFs; slower, as values are converted to pandas.

pandas does not distinguish NaN and null. Both count as null here, and `tfspark.predict_udf` refuses nulls, so that no
value is silently taken for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tfspark.errors import SchemaError
from tfspark.prediction.arrow_udf import Answer, argument_batch
from tfspark.spark.worker_socket import read_without_delay

if TYPE_CHECKING:
    from pyspark.sql.types import DataType


def pandas_udf(answer: Answer, columns: Sequence[str], returned: DataType) -> Any:
    """Return a UDF that takes these columns, or one struct with fields of these names, as `arrow_udf` does."""
    from pyspark.sql import functions as F

    names = tuple(columns)

    def apply(arguments: Iterator[Any]) -> Iterator[Any]:
        from tfspark.prediction.pandas_udf import answered

        return answered(answer, names, arguments)

    apply.__annotations__ = _hints()
    return F.pandas_udf(apply, returned)  # type: ignore[call-overload]


def _hints() -> dict[str, Any]:
    """Return the type hints from which Spark infers the kind of pandas UDF."""
    import pandas as pd

    # Structs are still passed and returned as DataFrames.
    series: Any = pd.Series
    return {"arguments": Iterator[tuple[series, ...]], "return": Iterator[series]}


# --- in the task


def answered(answer: Answer, names: Sequence[str], arguments: Iterator[Any]) -> Iterator[Any]:
    """Run the UDF; this is its body, which takes and returns pandas objects.

    Raises
    ------
    SchemaError
        If a value is null or NaN.
    """
    for found in answer(argument_batch(names, _arrays(names, a)) for a in read_without_delay(arguments)):
        yield _to_pandas(found)


def _arrays(names: Sequence[str], arguments: Any) -> Any:
    if hasattr(arguments, "columns"):
        # Spark passes a struct as a DataFrame.
        fields = [to_array(arguments[c], str(c)) for c in arguments.columns]
        return pa.StructArray.from_arrays(fields, names=[str(c) for c in arguments.columns])
    several = arguments if isinstance(arguments, tuple) else (arguments,)
    if len(several) == 1 and hasattr(several[0], "columns"):
        return _arrays(names, several[0])
    known = names if len(names) == len(several) else [f"argument {i}" for i in range(len(several))]
    return tuple(to_array(s, name) for name, s in zip(known, several, strict=True))


def to_array(series: Any, name: str) -> pa.Array:
    """Return a pandas column as an Arrow array.

    Raises
    ------
    SchemaError
        If a value is null or NaN, also inside an array.
    """
    array = _array(series.to_numpy())
    values = array
    while pa.types.is_list(values.type):
        values = values.flatten() if not values.null_count else values
        if values.null_count:
            break
    if values.null_count:
        raise SchemaError(
            f"Column {name!r} holds {values.null_count} value(s) that are null or NaN.",
            hint="Drop or replace them in Spark; with Spark 4.1 or newer NaN may stay, and tfspark.predict takes it.",
        )
    return array


def _array(values: np.ndarray) -> pa.Array:
    """Return values, which may be arrays of different lengths, as an Arrow array; NaN becomes null."""
    if values.dtype != object or not any(isinstance(v, np.ndarray) for v in values):
        return pa.array(values, from_pandas=True)
    present = [v if v is not None else np.empty(0) for v in values]
    ends = np.cumsum([0, *[len(v) for v in present]])
    inner = _array(np.concatenate(present))
    missing = np.array([v is None for v in values])
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), inner, mask=pa.array(missing) if missing.any() else None
    )


def _to_pandas(array: pa.Array) -> Any:
    import pandas as pd

    if pa.types.is_struct(array.type):
        return pd.DataFrame({f.name: _to_pandas(array.field(i)) for i, f in enumerate(array.type)})
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return pd.Series(array.to_pylist(), dtype=object)
    return array.to_pandas()
