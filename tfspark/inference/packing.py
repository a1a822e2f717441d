"""Arrays of numbers that travel from Spark to Python as bytes.

Spark writes arrays to Arrow value by value, which takes longer than a small model does. The connector's jar holds an
expression that makes bytes of them, which are copied whole (``connectors/tfrecord/src/PackedArray.scala``). Where it
is not to be had (Spark Connect, a session without the jar), arrays travel as they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.errors import SchemaError
from tfspark.inference.plan import PredictionPlan

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

logger = logging.getLogger(__name__)

SHORTEST = 16
"""Arrays of fewer values gain nothing by it."""

_PACKED = {"float": "float32", "double": "float64", "int": "int32", "bigint": "int64"}


def packed_columns(
    df: DataFrame, columns: Mapping[str, Column], plan: PredictionPlan
) -> tuple[dict[str, Column], dict[str, str]]:
    """Return the columns as they go to Python, and the dtype of those that go as bytes."""
    expression = _expression(df)
    if expression is None:
        return dict(columns), {}
    out, dtypes = dict(columns), {}
    schema: StructType = df.select(*[c.alias(n) for n, c in columns.items()]).schema
    for name, element, narrow in _candidates(schema, plan):
        out[name] = expression(columns[name], name, narrow)
        dtypes[name] = "float32" if narrow else _PACKED[element]
    return out, dtypes


def _candidates(schema: StructType, plan: PredictionPlan) -> list[tuple[str, str, bool]]:
    """Return the columns to pack: name, type of the values, and whether doubles are wanted as floats."""
    from tfspark.driver.sources import arrow_schema_of

    shapes = {c.name: c for c in plan.columns(arrow_schema_of(schema))}
    found = []
    for f in schema.fields:
        spec, kind = shapes[f.name], f.dataType
        element = getattr(kind, "elementType", None)
        simple = "" if element is None else element.simpleString()
        if simple not in _PACKED or spec.ragged or spec.levels != 1 or math.prod(spec.shape) < SHORTEST:
            continue
        wanted = {plan.signature.inputs[n].dtype for n, c in plan.inputs.items() if c == f.name}
        found.append((f.name, simple, simple == "double" and wanted == {"float32"}))
    return found


def _expression(df: DataFrame) -> Any:
    """Return a function that makes the packing column, or None if this session does not have it."""
    try:
        from py4j.java_gateway import JavaClass
        from pyspark.sql.classic.column import Column as ClassicColumn

        jvm: Any = df.sparkSession._jvm  # type: ignore[attr-defined]
        packed, bridge = jvm.tfspark.tfrecord.PackedArray, jvm.org.apache.spark.sql.classic.ExpressionUtils
    except (ImportError, AttributeError):
        return None
    except Exception as e:
        # Spark Connect has no JVM and says so with an error of its own.
        logger.debug("arrays travel as they are: %s", e)
        return None
    if not isinstance(packed, JavaClass) or not isinstance(bridge, JavaClass):
        return None

    def column(of: Column, name: str, narrow: bool) -> Column:
        return ClassicColumn(bridge.column(packed(bridge.expression(of._jc), name, narrow)))  # type: ignore[attr-defined]

    return column


def unpacked(array: pa.Array, dtype: str, shape: tuple[int, ...], name: str) -> pa.Array:
    """Return a packed column as the array column that it was.

    Raises
    ------
    SchemaError
        If a row is null, or has another number of values than `shape` says.
    """
    width = math.prod(shape)
    value = pa.type_for_alias(dtype)
    size = value.bit_width // 8
    if array.null_count:
        raise SchemaError(
            f"Column {name!r} holds {array.null_count} null(s) in {len(array)} rows.",
            hint="Drop or fill them in Spark.",
        )
    _, offsets, data = array.buffers()
    index = pa.int64() if pa.types.is_large_binary(array.type) else pa.int32()
    bounds = pa.Array.from_buffers(index, len(array) + 1, [None, offsets], offset=array.offset).to_numpy()
    lengths = bounds[1:] - bounds[:-1]
    if (lengths != width * size).any():
        found = lengths[lengths != width * size][0] // size
        raise SchemaError(
            f"Column {name!r} was declared with shape {shape} ({width} values a row), but a row holds {found} values."
        )
    start = int(bounds[0]) if len(array) else 0
    values = pa.Array.from_buffers(value, len(array) * width, [None, data.slice(start)])
    return pa.FixedSizeListArray.from_arrays(values, width)
