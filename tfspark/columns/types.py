"""The one table of types: which tensor an Arrow column becomes, and which Arrow and Spark column a tensor becomes.

Spark types are looked up by Spark's own Arrow schema. This module never imports TensorFlow, and imports Spark only in
`arrow_schema_of` and `spark_type_of`: the driver plans with it, feed tasks prepare batches by it, and nodes read tensor
specs from it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.errors import SchemaError

if TYPE_CHECKING:
    from pyspark.sql.types import DataType, StructType


@dataclass(frozen=True)
class OutputType:
    """The column that a tensor of one dtype becomes; Spark has no unsigned integers and no 16-bit floats.

    Attributes
    ----------
    arrow
        Arrow type of the column.
    spark
        Name of the class of its Spark type in ``pyspark.sql.types``.
    """

    arrow: pa.DataType
    spark: str


OUTPUTS = {
    "bool": OutputType(pa.bool_(), "BooleanType"),
    "int8": OutputType(pa.int8(), "ByteType"),
    "int16": OutputType(pa.int16(), "ShortType"),
    "uint8": OutputType(pa.int16(), "ShortType"),
    "int32": OutputType(pa.int32(), "IntegerType"),
    "uint16": OutputType(pa.int32(), "IntegerType"),
    "int64": OutputType(pa.int64(), "LongType"),
    "uint32": OutputType(pa.int64(), "LongType"),
    "float16": OutputType(pa.float32(), "FloatType"),
    "bfloat16": OutputType(pa.float32(), "FloatType"),
    "float32": OutputType(pa.float32(), "FloatType"),
    "float64": OutputType(pa.float64(), "DoubleType"),
    "string": OutputType(pa.binary(), "BinaryType"),
}
"""The column that a tensor becomes, by the name of its TensorFlow dtype."""

_DTYPES: dict[pa.DataType, str] = {
    # If several dtypes become the same column, the column becomes the dtype that has exactly its range of values.
    **{t.arrow: dtype for dtype, t in OUTPUTS.items() if dtype in ("bool", "int8", "int16", "int32", "int64")},
    **{OUTPUTS[dtype].arrow: dtype for dtype in ("float32", "float64", "string")},
    # Spark columns do not have these types, but numpy arrays do.
    **{pa.type_for_alias(dtype): dtype for dtype in ("uint8", "uint16", "uint32", "uint64", "float16")},
    pa.string(): "string",
    pa.large_string(): "string",
    pa.large_binary(): "string",
    pa.date32(): "int32",
}
"""The dtype of the tensor that a column becomes, by the Arrow type of its values."""


def dtype_of(t: pa.DataType) -> str | None:
    """Return the name of the TensorFlow dtype for values of an Arrow type; ``None`` if there is none."""
    if pa.types.is_timestamp(t):
        return "int64"
    if pa.types.is_decimal(t):
        return "float64"
    return _DTYPES.get(t)


def spark_type_of(dtype: str) -> DataType:
    """Return the Spark type for values of a tensor; `dtype` is one of `OUTPUTS`."""
    from pyspark.sql import types

    made: DataType = getattr(types, OUTPUTS[dtype].spark)()
    return made


def is_list(t: pa.DataType) -> bool:
    """Return whether an Arrow type is an array type."""
    return bool(pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))


def list_levels(t: pa.DataType) -> tuple[list[int | None], pa.DataType]:
    """Return the size of each array level (``None`` where it varies) and the type of the innermost values."""
    sizes: list[int | None] = []
    while True:
        if pa.types.is_fixed_size_list(t):
            sizes.append(t.list_size)
        elif pa.types.is_list(t) or pa.types.is_large_list(t):
            sizes.append(None)
        else:
            return sizes, t
        t = t.value_type


def leaf_of(t: pa.DataType) -> pa.DataType:
    """Return the type of the innermost values of an array type, or the type itself if it is not an array type."""
    return list_levels(t)[1]


def zero_of(t: pa.DataType) -> Any:
    """Return the value that replaces nulls in a masked column."""
    if pa.types.is_string(t) or pa.types.is_large_string(t):
        return ""
    if pa.types.is_binary(t) or pa.types.is_large_binary(t):
        return b""
    if pa.types.is_temporal(t) or pa.types.is_decimal(t):
        return pa.scalar(0).cast(pa.int32() if pa.types.is_date32(t) else pa.int64()).cast(t).as_py()
    return False if pa.types.is_boolean(t) else 0


def arrow_schema_of(schema: StructType) -> pa.Schema:
    """Return the Arrow schema in which Spark sends rows to Python.

    Raises
    ------
    SchemaError
        If a column's type has no Arrow type.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import to_arrow_type

    # Before Spark 4.1, UTC was the default and the argument was a different one.
    utc = {"timezone": "UTC"} if "timezone" in inspect.signature(to_arrow_type).parameters else {}
    fields = []
    for f in schema.fields:
        try:
            fields.append(pa.field(f.name, to_arrow_type(f.dataType, **utc), f.nullable))
        except (PySparkException, TypeError):
            raise SchemaError(
                f"Column {f.name!r} has type {f.dataType.simpleString()}, which cannot become a tensor.",
                hint="Cast it, select its fields, or drop it.",
            ) from None
    return pa.schema(fields)
