"""Bytes in files on any file system that Spark reaches: written through Hadoop, read by Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CHUNK_BYTES = 8 << 20
"""Handed to the JVM at a time; py4j holds it several times over."""


def require_new(spark: SparkSession, path: str) -> None:
    """Refuse a path that exists already, or that cannot be written.

    Raises
    ------
    ConfigurationError
        If there is something, or the session is one of Spark Connect.
    """
    if not hasattr(spark, "_jsparkSession"):
        raise ConfigurationError(
            f"{path!r} cannot be written from Spark Connect: files are written through the driver's JVM.",
            hint="Save with the classic session that trained the model. Loading and transforming work on Connect.",
        )
    target, files = _on_its_file_system(spark, path)
    if files.exists(target):
        raise ConfigurationError(
            f"{path!r} exists already.", hint="To replace it, call write().overwrite().save(path)."
        )


def write_file(spark: SparkSession, path: str, data: bytes) -> None:
    """Write a file that does not exist yet, in a classic session."""
    target, files = _on_its_file_system(spark, path)
    out = files.create(target, False)
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            out.write(bytearray(data[start : start + CHUNK_BYTES]))
    finally:
        out.close()


def _on_its_file_system(spark: SparkSession, path: str) -> tuple[Any, Any]:
    session: Any = spark
    target = session._jvm.org.apache.hadoop.fs.Path(path)
    return target, target.getFileSystem(session._jsparkSession.sessionState().newHadoopConf())


def read_file(spark: SparkSession, path: str) -> bytes:
    """Read a file, on Spark Connect too.

    Raises
    ------
    ConfigurationError
        If there is no such file.
    """
    from pyspark.errors import PySparkException

    try:
        rows = spark.read.format("binaryFile").load(path).select("content").collect()
    except PySparkException as e:
        raise ConfigurationError(f"{path!r} cannot be read: {first_line(e)}") from None
    if len(rows) != 1:
        raise ConfigurationError(f"{path!r} is {len(rows)} files, and not one.")
    return bytes(rows[0]["content"])
