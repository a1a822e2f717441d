"""Copy files at URLs that Spark reads (``hdfs://``, ``s3a://``, ``gs://`` and others) to the driver and executors.

In a classic session Hadoop copies them, through the driver's JVM. On Spark Connect, where there is no JVM here, the
server reads them as rows of ``binaryFile``.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, first_line
from tfspark.spark.internals import hadoop_file_system, is_classic

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True)
class RemoteFile:
    """A file below a directory.

    Attributes
    ----------
    path
        URL of the file.
    stamp
        Text that changes when the file is written again.
    """

    path: str
    stamp: str


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, and not one of the local file system."""
    return bool(_URL.match(path)) and not path.startswith("file:")


def remote_files(spark: SparkSession, path: str) -> list[RemoteFile]:
    """Return the files at and below a URL; an empty list if there are none.

    Raises
    ------
    ConfigurationError
        If the URL cannot be read.
    """
    with _in_words(path):
        return _by_hadoop(spark, path) if is_classic(spark) else _by_spark(spark, path)


@contextmanager
def _in_words(path: str) -> Iterator[None]:
    from pyspark.errors import PySparkException

    try:
        yield
    except Exception as e:
        # Java errors have the types of py4j, which may be missing with Spark Connect alone; so do not import it here.
        java = getattr(e, "java_exception", None)
        if java is None and not isinstance(e, PySparkException):
            raise
        why = first_line(e) if java is None else str(java.toString()).splitlines()[0]
        raise ConfigurationError(
            f"{path!r} cannot be read: {why}",
            hint="Spark needs the connector and the credentials of that file system, as for reading data there.",
        ) from None


def _by_hadoop(spark: SparkSession, path: str) -> list[RemoteFile]:
    target, files = hadoop_file_system(spark, path)
    if not files.exists(target):
        return []
    if files.getFileStatus(target).isFile():
        status = files.getFileStatus(target)
        return [RemoteFile(path, f"{status.getModificationTime()}-{status.getLen()}")]
    found, listed = [], files.listFiles(target, True)
    # The file system lists fully qualified paths.
    base = str(files.makeQualified(target).toString()).rstrip("/")
    while listed.hasNext():
        status = listed.next()
        inner = str(status.getPath().toString()).removeprefix(base)
        found.append(RemoteFile(path.rstrip("/") + inner, f"{status.getModificationTime()}-{status.getLen()}"))
    return found


def _by_spark(spark: SparkSession, path: str) -> list[RemoteFile]:
    from pyspark.errors import AnalysisException

    reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    try:
        rows = reader.load(path).select("path", "modificationTime", "length").collect()
    except AnalysisException as e:
        if "PATH_NOT_FOUND" in str(e):
            return []
        raise
    # Spark writes file:/x for file:///x, and so on: compare only what follows the scheme.
    base = _bare(path)
    found = ((_bare(r.path).removeprefix(base), f"{r.modificationTime}-{r.length}") for r in rows)
    return [RemoteFile(path.rstrip("/") + inner, stamp) for inner, stamp in found]


def _bare(path: str) -> str:
    return re.sub(r"^[^:]+:/+", "/", path).rstrip("/")


def fetch(spark: SparkSession, files: list[RemoteFile], base: str, directory: str) -> None:
    """Copy files into a local directory, with the same relative paths as below `base`.

    Raises
    ------
    ConfigurationError
        If a file cannot be read, or is not below `base`.
    """
    for file in files:
        inner = file.path.removeprefix(base.rstrip("/")).lstrip("/") or os.path.basename(file.path)
        local = os.path.normpath(os.path.join(directory, inner))
        if not local.startswith(directory + os.sep):
            raise ConfigurationError(f"{file.path!r} is not below {base!r}.")
        os.makedirs(os.path.dirname(local), exist_ok=True)
        with _in_words(file.path):
            _copy(spark, file.path, local)


def _copy(spark: SparkSession, path: str, local: str) -> None:
    if is_classic(spark):
        source, files = hadoop_file_system(spark, path)
        target, _ = hadoop_file_system(spark, f"file://{local}")
        files.copyToLocalFile(False, source, target, True)
        return
    (row,) = spark.read.format("binaryFile").load(path).select("content").collect()
    with open(local, "wb") as f:
        f.write(row.content)


def ship(spark: SparkSession, directory: str, name: str) -> None:
    """Copy a local directory to each executor, once for as long as Spark runs; tasks find it with `shipped`.

    Spark copies it to an executor when the executor's first task begins.
    """
    # Keep the archive until the program ends: Spark also serves it to executors that start later.
    keep = tempfile.mkdtemp(prefix="tfspark-shipped-")
    atexit.register(shutil.rmtree, keep, ignore_errors=True)
    archive = shutil.make_archive(os.path.join(keep, name), "zip", directory)
    if is_classic(spark):
        spark.sparkContext.addArchive(f"{archive}#{name}")
    else:
        spark.addArtifacts(f"{archive}#{name}", archive=True)


def owner_of_files(spark: SparkSession) -> Any:
    """Return the SparkContext, or the Spark Connect session: files that `ship` has sent exist as long as it does."""
    return spark.sparkContext if is_classic(spark) else spark


def shipped(name: str) -> str:
    """Return the path of a directory that `ship` has sent; called in a task."""
    from pyspark import SparkFiles

    return SparkFiles.get(name)
