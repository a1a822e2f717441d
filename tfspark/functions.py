"""Column functions that convert records that are not in files, such as those of Kafka topics.

Classic sessions with the connector also have them as SQL functions with the same names. ``import tfspark`` does not
import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.errors import ConfigurationError, DependencyError
from tfspark.records.columns import decoded, encoded
from tfspark.records.example import RecordType
from tfspark.spark.expressions import bridge_of_column

if TYPE_CHECKING:
    from pyspark.sql import Column
    from pyspark.sql.types import StructType

__all__ = ["from_example", "to_example"]


def to_example(column: Column | str, options: Mapping[str, str] | None = None) -> Column:
    """Return structs as serialized ``tf.train.Example`` or ``tf.train.SequenceExample``.

    Parameters
    ----------
    column
        A column of structs. Each field becomes a feature; null fields are omitted. A null struct becomes null.
    options
        ``recordType`` (``Example`` or ``SequenceExample``) and ``vectors``, as when writing ``format("tfrecord")``.

    Returns
    -------
    pyspark.sql.Column
        A binary column.

    Examples
    --------
    >>> from pyspark.sql.functions import struct
    >>> rows = spark.createDataFrame([(1, [0.5, 2.0])], "id long, weights array<float>")
    >>> messages = rows.select(to_example(struct("id", "weights")).alias("value"))
    >>> messages.schema.simpleString()
    'struct<value:binary>'
    """
    column, given = _column(column), _strings(options)
    bridge = bridge_of_column(column)
    if bridge is not None:
        return bridge.column(bridge.record_functions.toExample(bridge.expression(column), bridge.java_map(given)))
    record_type = _record_type(given)

    def to_example(structs: pa.Array) -> pa.Array:
        return encoded(structs, record_type)

    return _arrow_udf()(to_example, returnType="binary")(column)


def from_example(column: Column | str, schema: StructType | str, options: Mapping[str, str] | None = None) -> Column:
    """Return serialized ``tf.train.Example`` or ``tf.train.SequenceExample`` as structs.

    Parameters
    ----------
    column
        A binary column. Null becomes null.
    schema
        The features to read, as a type or as ``"id long, weights array<float>"``.
    options
        ``recordType`` (``Example`` or ``SequenceExample``), ``mode`` (``FAILFAST`` or ``PERMISSIVE``),
        ``columnNameOfCorruptRecord`` and ``vectors``, as when reading ``format("tfrecord")``.

    Returns
    -------
    pyspark.sql.Column
        A column of structs.

    Examples
    --------
    >>> from pyspark.sql.functions import struct
    >>> rows = spark.createDataFrame([(1, [0.5, 2.0])], "id long, weights array<float>")
    >>> messages = rows.select(to_example(struct("id", "weights")).alias("value"))
    >>> row = from_example("value", "id long, weights array<float>").alias("row")
    >>> messages.select(row).select("row.*").collect()
    [Row(id=1, weights=[0.5, 2.0])]
    """
    column, given = _column(column), _strings(options)
    bridge = bridge_of_column(column)
    if bridge is not None:
        text = schema if isinstance(schema, str) else schema.json()
        return bridge.column(
            bridge.record_functions.fromExample(bridge.expression(column), text, bridge.java_map(given))
        )
    return _from_example_udf(column, schema, given)


def _from_example_udf(column: Column, schema: StructType | str, given: Mapping[str, str]) -> Column:
    from pyspark.sql import SparkSession
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructType

    kind = StructType.fromDDL(schema) if isinstance(schema, str) else schema
    settings = SparkSession.active().conf
    record_type, arrow = _record_type(given), to_arrow_schema(kind)
    tolerant = given.get("mode", "failfast").lower() == "permissive"
    case_sensitive = settings.get("spark.sql.caseSensitive", "false") == "true"
    corrupt = given.get("columnnameofcorruptrecord") or settings.get(
        "spark.sql.columnNameOfCorruptRecord", "_corrupt_record"
    )
    corrupt = str(corrupt)

    def from_example(records: pa.Array) -> pa.Array:
        return decoded(records, arrow, record_type, tolerant=tolerant, case_sensitive=case_sensitive, corrupt=corrupt)

    return _arrow_udf()(from_example, returnType=kind)(column)


def _column(column: Column | str) -> Column:
    from pyspark.sql import functions as F

    return F.col(column) if isinstance(column, str) else column


def _strings(options: Mapping[str, Any] | None) -> dict[str, str]:
    return {k.lower(): str(v) for k, v in (options or {}).items()}


def _record_type(given: Mapping[str, str]) -> RecordType:
    """Check the options that the JVM would check, and return the type of the records."""
    if given.get("vectors", "dense").lower() != "dense":
        raise ConfigurationError(
            "vectors=sparse needs a classic SparkSession with the connector; this session has no connector.",
            hint="Make the session with tfspark.session(...), or leave the option vectors out.",
        )
    if given.get("mode", "failfast").lower() not in ("failfast", "permissive"):
        raise ConfigurationError(f"mode must be FAILFAST or PERMISSIVE, got {given['mode']!r}.")
    name = given.get("recordtype", "Example")
    for known in (RecordType.EXAMPLE, RecordType.SEQUENCE_EXAMPLE):
        if known.value.lower() == name.lower():
            return known
    raise ConfigurationError(f"recordType must be Example or SequenceExample, got {name!r}.")


def _arrow_udf() -> Any:
    try:
        from pyspark.sql.functions import arrow_udf
    except ImportError as e:
        raise DependencyError(
            "to_example and from_example need pyspark >= 4.1 in sessions without the connector.",
            hint="Make the session with tfspark.session(...), or upgrade pyspark.",
        ) from e
    return arrow_udf
