"""Find the installed Spark: the pyspark package, or a distribution that ``SPARK_HOME`` or findspark knows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tfspark.errors import DependencyError

_HINT = "pip install 'pyspark>=4.0', or set SPARK_HOME to an unpacked Spark 4 distribution."


def ensure_pyspark() -> None:
    """Make ``import pyspark`` work, from an existing ``SPARK_HOME`` if pyspark is not installed.

    Raises
    ------
    DependencyError
        If there is no Spark, or one older than 4.0.
    """
    if importlib.util.find_spec("pyspark") is None:
        import findspark

        try:
            findspark.init()
        except Exception as e:
            raise DependencyError(f"There is no Spark here: {e}", hint=_HINT) from e
        if importlib.util.find_spec("pyspark") is None:
            raise DependencyError(f"{findspark.find()} holds no Python sources of Spark.", hint=_HINT)
    version = spark_version()
    if int(version.split(".")[0]) < 4:
        raise DependencyError(f"tfspark needs Spark 4.0 or newer; this is {version}.", hint=_HINT)


def spark_version() -> str:
    """Return the version of pyspark, which is that of Spark."""
    import pyspark

    return str(pyspark.__version__)


def spark_jars() -> Path:
    """Return the directory of Spark's own jars.

    Raises
    ------
    DependencyError
        If there is none, as in an installation of ``pyspark-client``.
    """
    ensure_pyspark()
    from pyspark.find_spark_home import _find_spark_home

    jars = Path(_find_spark_home()) / "jars"
    if not any(jars.glob("scala-compiler*.jar")):
        raise DependencyError(f"{jars} holds no Scala compiler, so this is no complete Spark.", hint=_HINT)
    return jars
