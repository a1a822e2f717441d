"""TFRecord files made by TensorFlow, and read by Spark, for the tests of the connector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf


def feature(kind: str, values: list[Any]) -> Any:
    if kind == "int64":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if kind == "float":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def example(**features: tuple[str, list[Any]]) -> bytes:
    made = {k: feature(*v) for k, v in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def write(path: Path, *records: bytes, compression: str = "") -> str:
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for r in records:
            writer.write(r)
    return str(path)


def read(spark: Any, path: Any, schema: str | None = None, **options: Any) -> Any:
    reader = spark.read.format("tfrecord").options(**options)
    return (reader.schema(schema) if schema else reader).load(str(path))


def files(directory: Path, end: str = ".tfrecord") -> list[str]:
    return sorted(str(p) for p in directory.rglob(f"part-*{end}"))
