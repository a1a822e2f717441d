"""Files of bytes on any file system that Spark can use: they are written through Hadoop and read by Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfspark.errors import ConfigurationError, first_line
from tfspark.spark.internals import hadoop_file_system, is_classic

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CHUNK_BYTES = 8 << 20
"""Bytes that one call passes to the JVM; py4j holds several copies of them."""


def require_classic_writer(spark: SparkSession, path: str) -> None:
    """Check that files can be written in this session.

    Raises
    ------
    ConfigurationError
        If it is a session of Spark Connect.
    """
    if not is_classic(spark):
        raise ConfigurationError(
            f"{path!r} cannot be written from Spark Connect: files are written through the driver's JVM.",
            hint="Save with the classic session that trained the model. Loading and transforming work on Connect.",
        )


def require_new(spark: SparkSession, path: str) -> None:
    """Check that a path does not exist yet, and that it can be written.

    Raises
    ------
    ConfigurationError
        If the path exists, or the session is one of Spark Connect.
    """
    require_classic_writer(spark, path)
    target, files = hadoop_file_system(spark, path)
    if files.exists(target):
        raise ConfigurationError(
            f"{path!r} exists already.", hint="To replace it, call write().overwrite().save(path)."
        )


def write_file(spark: SparkSession, path: str, data: bytes) -> None:
    """Write a file that does not exist yet, in a classic session."""
    target, files = hadoop_file_system(spark, path)
    out = files.create(target, False)
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            out.write(bytearray(data[start : start + CHUNK_BYTES]))
    finally:
        out.close()


def read_file(spark: SparkSession, path: str) -> bytes:
    """Read a file; this works on Spark Connect too.

    Raises
    ------
    ConfigurationError
        If the path cannot be read, or is not exactly one file.
    """
    from pyspark.errors import PySparkException

    try:
        rows = spark.read.format("binaryFile").load(path).select("content").collect()
    except PySparkException as e:
        raise ConfigurationError(f"{path!r} cannot be read: {first_line(e)}") from None
    if len(rows) != 1:
        raise ConfigurationError(f"Expected one file at {path!r}, found {len(rows)}.")
    return bytes(rows[0]["content"])
