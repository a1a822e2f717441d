"""Writes DataFrames to TFRecord files and reads them back, with the TFRecord data source."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.compat.tensorflowonspark import _notes
from tfspark.errors import SchemaError
from tfspark.spark.session import add_connector

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row
    from pyspark.sql.types import DataType, StructType

loadedDF: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""The directory of each DataFrame that `loadTFRecords` returned, as long as the DataFrame is used."""

_KINDS = {
    "float_list": ("float", "double"),
    "int64_list": ("boolean", "tinyint", "smallint", "int", "bigint", "long"),
    "bytes_list": ("binary", "string"),
}


def isLoadedDF(df: Any) -> bool:
    """Return whether `loadTFRecords` returned this DataFrame."""
    return df in loadedDF


@_notes.now('df.write.format("tfrecord").save(path)')
def saveAsTFRecords(df: DataFrame, output_dir: str) -> None:
    """Write a DataFrame as files of ``tf.train.Example``.

    Parameters
    ----------
    df
        DataFrame with columns of numbers, strings, binary and arrays of these; nulls are omitted from the records.
    output_dir
        A directory that does not exist yet.
    """
    add_connector(df.sparkSession)
    df.write.format("tfrecord").save(output_dir)


@_notes.now('spark.read.format("tfrecord").load(path)')
def loadTFRecords(sc: Any, input_dir: str, binary_features: Sequence[str] = ()) -> DataFrame:
    """Read files of ``tf.train.Example``.

    Parameters
    ----------
    sc
        The SparkContext.
    input_dir
        Their directory.
    binary_features
        Features of bytes that are not text; other features of bytes become strings.

    Returns
    -------
    DataFrame
        Columns in the order of their names: ``bigint``, ``double``, ``string``, ``binary``, or arrays of these if
        records hold several values. The types are inferred from up to 1,000 records of up to 16 files.
    """
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

    spark = SparkSession(sc)
    add_connector(spark)
    reader = spark.read.format("tfrecord")
    found = reader.load(input_dir).schema
    fields = [(f.name, _as_before(f.dataType, f.name in binary_features)) for f in found.fields]
    schema = StructType()
    for name, kind in fields:
        schema = schema.add(name, kind)
    df = reader.schema(schema).load(input_dir)
    loadedDF[df] = input_dir
    return df


def _as_before(found: DataType, binary: bool) -> DataType:
    """Return the old API's type for an inferred type: double for float, and string for bytes unless `binary` is set."""
    from pyspark.sql import types as t

    if isinstance(found, t.ArrayType):
        return t.ArrayType(_as_before(found.elementType, binary))
    if isinstance(found, t.FloatType):
        return t.DoubleType()
    if isinstance(found, (t.StringType, t.BinaryType)):
        return t.BinaryType() if binary else t.StringType()
    return found


@_notes.now('df.write.format("tfrecord").save(path)')
def toTFExample(dtypes: Sequence[tuple[str, str]]) -> Callable[[Iterable[Row]], Iterator[tuple[bytearray, None]]]:
    """Return a function for ``rdd.mapPartitions`` that converts Rows to serialized ``tf.train.Example`` messages.

    Parameters
    ----------
    dtypes
        ``df.dtypes``.

    Raises
    ------
    SchemaError
        If an Example cannot hold a type.
    """
    kinds = {name: _kind_of(name, dtype) for name, dtype in dtypes}

    def to_examples(rows: Iterable[Row]) -> Iterator[tuple[bytearray, None]]:
        import tensorflow as tf

        for row in rows:
            example = tf.train.Example()
            for name, (kind, is_array) in kinds.items():
                if row[name] is not None:
                    values = [_plain(v, kind) for v in (row[name] if is_array else [row[name]])]
                    getattr(example.features.feature[name], kind).value.extend(values)
            yield bytearray(example.SerializeToString()), None

    return to_examples


def _kind_of(name: str, dtype: str) -> tuple[str, bool]:
    element = dtype[len("array<") : -1] if dtype.startswith("array<") else dtype
    for kind, types in _KINDS.items():
        if element in types:
            return kind, element != dtype
    raise SchemaError(f"Column {name!r} has type {dtype}, which a tf.train.Example cannot hold.")


def _plain(value: Any, kind: str) -> Any:
    if kind != "bytes_list":
        return int(value) if kind == "int64_list" else value
    return value.encode() if isinstance(value, str) else bytes(value)


@_notes.now('spark.read.format("tfrecord").load(path)')
def infer_schema(example: Any, binary_features: Sequence[str] = ()) -> StructType:
    """Return the schema that is inferred from one ``tf.train.Example``; see `loadTFRecords`."""
    from pyspark.sql import types as t

    kinds = {"int64_list": t.LongType(), "float_list": t.DoubleType(), "bytes_list": t.StringType()}
    schema = t.StructType()
    for name, feature in sorted(example.features.feature.items()):
        kind = feature.WhichOneof("kind") or "bytes_list"
        element = t.BinaryType() if name in binary_features else kinds[kind]
        several = len(getattr(feature, kind).value) > 1
        schema = schema.add(name, t.ArrayType(element) if several else element, True)
    return schema


@_notes.now('spark.read.format("tfrecord").load(path)')
def fromTFExample(iter: Iterable[Any], binary_features: Sequence[str] = ()) -> list[Row]:
    """Convert records ``(bytes of a tf.train.Example, None)`` to Rows; for ``rdd.mapPartitions``.

    Parameters
    ----------
    iter
        The records.
    binary_features
        As for `loadTFRecords`.
    """
    import tensorflow as tf
    from pyspark.sql import Row

    rows = []
    for record in iter:
        features = tf.train.Example.FromString(bytes(record[0])).features.feature
        rows.append(Row(**{name: _value_of(f, name in binary_features) for name, f in sorted(features.items())}))
    return rows


def _value_of(feature: Any, binary: bool) -> Any:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if kind == "bytes_list":
        values = [bytearray(v) if binary else v.decode() for v in values]
    return values if len(values) > 1 else next(iter(values), None)
