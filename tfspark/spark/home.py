"""Find the installed Spark: the pyspark package, or a distribution that ``SPARK_HOME`` or findspark points to."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tfspark.errors import DependencyError

_HINT = "pip install 'pyspark>=3.5', or set SPARK_HOME to an unpacked distribution of Spark 3.5 or newer."


def ensure_pyspark() -> None:
    """Make ``import pyspark`` work; if pyspark is not installed, use an existing ``SPARK_HOME``.

    Raises
    ------
    DependencyError
        If there is no Spark, or it is older than 3.5.
    """
    if importlib.util.find_spec("pyspark") is None:
        import findspark

        try:
            findspark.init()
        except Exception as e:
            raise DependencyError(f"Spark was not found: {e}", hint=_HINT) from e
        if importlib.util.find_spec("pyspark") is None:
            raise DependencyError(f"{findspark.find()} contains no Python sources of Spark.", hint=_HINT)
    version = spark_version()
    if _minor(version) < (3, 5):
        raise DependencyError(f"tfspark needs Spark 3.5 or newer; this is {version}.", hint=_HINT)


def spark_version() -> str:
    """Return the version of pyspark, which is the version of Spark."""
    import pyspark

    return str(pyspark.__version__)


def spark_minor() -> str:
    """Return the minor version of Spark, such as ``4.3``."""
    return ".".join(map(str, _minor(spark_version())))


def scala_minor() -> str:
    """Return the minor version of Spark's Scala, such as ``2.13``; pyspark's own if Spark's jars are elsewhere."""
    from tfspark.spark.internals import find_spark_home

    for jar in (Path(find_spark_home()) / "jars").glob("scala-library-2.*.jar"):
        return ".".join(jar.name.removeprefix("scala-library-").split(".")[:2])
    return "2.12" if is_spark_3() else "2.13"


def is_spark_3() -> bool:
    """Return whether this is Spark 3, which lacks some arguments that Spark 4 has."""
    return _minor(spark_version())[0] == 3


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def spark_jars() -> Path:
    """Return the directory of Spark's own jars.

    Raises
    ------
    DependencyError
        If there are no such jars, as in an installation of ``pyspark-client``.
    """
    ensure_pyspark()
    from tfspark.spark.internals import find_spark_home

    jars = Path(find_spark_home()) / "jars"
    if not any(jars.glob("scala-compiler*.jar")):
        raise DependencyError(f"{jars} contains no Scala compiler: the Spark installation is incomplete.", hint=_HINT)
    return jars
