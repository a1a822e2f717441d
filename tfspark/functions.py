"""Column functions for records that are in no file, such as those of Kafka topics.

The same are SQL functions in classic sessions that have the connector. Not imported by ``import tfspark``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.errors import ConfigurationError, DependencyError
from tfspark.expressions import bridge_of_column
from tfspark.records.columns import decoded, encoded
from tfspark.records.example import RecordType

if TYPE_CHECKING:
    from pyspark.sql import Column
    from pyspark.sql.types import StructType

__all__ = ["from_example", "to_example"]


def to_example(column: Column | str, options: Mapping[str, str] | None = None) -> Column:
    """Return structs as serialized ``tf.train.Example`` or ``tf.train.SequenceExample``.

    Parameters
    ----------
    column
        A column of structs; each field is a feature, a null field is left out. A null struct is null.
    options
        ``recordType`` (``Example`` or ``SequenceExample``) and ``vectors``, as when writing ``format("tfrecord")``.

    Returns
    -------
    pyspark.sql.Column
        Of type binary.

    Examples
    --------
    >>> df.select(to_example(struct("id", "weights")).alias("value"))
    """
    column, given = _column(column), _strings(options)
    bridge = bridge_of_column(column)
    if bridge is not None:
        functions = bridge.connector.RecordFunctions
        return bridge.column(functions.toExample(bridge.expression(column), bridge.java_map(given)))
    record_type = _record_type(given)

    def to_example(structs: pa.Array) -> pa.Array:
        return encoded(structs, record_type)

    return _arrow_udf()(to_example, returnType="binary")(column)


def from_example(column: Column | str, schema: StructType | str, options: Mapping[str, str] | None = None) -> Column:
    """Return serialized ``tf.train.Example`` or ``tf.train.SequenceExample`` as structs.

    Parameters
    ----------
    column
        A binary column; a null is null.
    schema
        The features to read, as a type or as ``"id long, weights array<float>"``.
    options
        ``recordType`` (``Example`` or ``SequenceExample``), ``mode`` (``FAILFAST`` or ``PERMISSIVE``),
        ``columnNameOfCorruptRecord`` and ``vectors``, as when reading ``format("tfrecord")``.

    Returns
    -------
    pyspark.sql.Column
        Of structs.

    Examples
    --------
    >>> df.select(from_example("value", "id long, weights array<float>").alias("row")).select("row.*")
    """
    column, given = _column(column), _strings(options)
    bridge = bridge_of_column(column)
    if bridge is not None:
        text = schema if isinstance(schema, str) else schema.json()
        functions = bridge.connector.RecordFunctions
        return bridge.column(functions.fromExample(bridge.expression(column), text, bridge.java_map(given)))
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
        raise ConfigurationError("vectors=sparse needs a classic SparkSession with the connector.")
    if given.get("mode", "failfast").lower() not in ("failfast", "permissive"):
        raise ConfigurationError(f"mode must be FAILFAST or PERMISSIVE, not {given['mode']!r}.")
    name = given.get("recordtype", "Example")
    for known in (RecordType.EXAMPLE, RecordType.SEQUENCE_EXAMPLE):
        if known.value.lower() == name.lower():
            return known
    raise ConfigurationError(f"recordType must be Example or SequenceExample, not {name!r}.")


def _arrow_udf() -> Any:
    try:
        from pyspark.sql.functions import arrow_udf
    except ImportError as e:
        raise DependencyError(
            "to_example and from_example need pyspark 4.1 or newer in sessions without the connector's JVM.",
            hint="Use a classic session that tfspark.session has made, or upgrade pyspark.",
        ) from e
    return arrow_udf
