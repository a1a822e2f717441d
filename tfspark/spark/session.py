"""`configure` and `session`: a SparkSession with the TFRecord data source and the same Python everywhere.

Settings of the user, in code, in the environment, on spark-submit's command line or in ``spark-defaults.conf``, are
never overridden; the connector's jar is added to the user's own jars.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, DependencyError
from tfspark.spark import internals
from tfspark.spark.connect import is_connect
from tfspark.spark.connector import connector_jar
from tfspark.spark.expressions import register_functions
from tfspark.spark.home import ensure_pyspark
from tfspark.spark.java import ensure_java

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

ARROW_BATCH_BYTES = 15 << 18
"""Bytes per Arrow batch: Spark limits batches to 10,000 rows whatever their size, so wide rows need a limit in bytes.

Batches of a few MB stay in the CPU caches while they are sent. A batch and the row that exceeds the limit must fit into
one message of `tfspark.transport.shared_memory`.
"""

DEFAULTS = {
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(ARROW_BATCH_BYTES),
}


EXTENSION = "tfspark.tfrecord.TFRecordExtensions"
"""For ``spark.sql.extensions``: the SQL functions ``to_example`` and ``from_example``."""

_PROPERTY = re.compile(r"\s*([^\s#!=:][^\s=:]*)[\s=:]+(.*)")


def configure(builder: SparkSession.Builder) -> SparkSession.Builder:
    """Prepare a session builder for tfspark.

    This adds the TFRecord connector to ``spark.jars``, sets ``PYSPARK_PYTHON`` and ``PYSPARK_DRIVER_PYTHON`` to the
    running interpreter if they are unset, enables Arrow with a batch size in bytes, and finds Java. A session that is
    already running, or a Spark Connect session, gets the connector when the builder returns it.

    Parameters
    ----------
    builder
        ``SparkSession.builder``, with your own settings.

    Returns
    -------
    SparkSession.Builder
        The same builder.

    Raises
    ------
    DependencyError
        If there is no Java, or Java is too old, or Spark is older than 3.5.

    Examples
    --------
    >>> from pyspark.sql import SparkSession
    >>> spark = tfspark.configure(SparkSession.builder.appName("flights")).getOrCreate()
    """
    ensure_pyspark()
    options = internals.options_of(builder)
    if not _is_connect(options):
        _set_options(builder, options)
    else:
        # For a server that the builder starts here; tfspark cannot set the environment of any other server.
        _choose_python(options)
    for name in ("getOrCreate", "create"):
        if make := getattr(builder, name, None):
            setattr(builder, name, _giving_connector(make))
    return builder


def _set_options(builder: SparkSession.Builder, options: Mapping[str, Any]) -> None:
    """Set the options of a new classic session."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        ensure_java()
    settings = {**_settings_outside_the_builder(), **{k: str(v) for k, v in options.items()}}
    _choose_python(settings)
    jar = str(connector_jar())
    jars = [j for j in settings.get("spark.jars", "").split(",") if j]
    if jar not in jars:
        builder.config("spark.jars", ",".join([*jars, jar]))
        internals.add_to_class_path(jar)
    _add_extension(builder, settings)
    for key, value in DEFAULTS.items():
        if key not in settings:
            builder.config(key, value)


def _add_extension(builder: SparkSession.Builder, settings: Mapping[str, str]) -> None:
    """Add the connector's SQL functions to all sessions of a program that has no SparkContext yet."""
    extensions = [e for e in settings.get("spark.sql.extensions", "").split(",") if e]
    if EXTENSION not in extensions and internals.active_context() is None:
        builder.config("spark.sql.extensions", ",".join([*extensions, EXTENSION]))


def _giving_connector(make: Callable[[], SparkSession]) -> Callable[[], SparkSession]:
    """Return a function that makes a session, or finds a running one, and gives it the connector."""

    @functools.wraps(make)
    def made() -> SparkSession:
        spark = make()
        try:
            add_connector(spark)
        except DependencyError as e:
            # Installations of pyspark-client have no compiler; everything else works without the connector.
            logger.warning("the session cannot read or write format('tfrecord'): %s", e)
        return spark

    return made


def session(app: str, master: str | None = None, *, remote: str | None = None, **conf: Any) -> SparkSession:
    """Return a SparkSession for tfspark: the running one if there is one, else a new one.

    Parameters
    ----------
    app
        Name of the application.
    master
        For example ``"local[4]"``, ``"local-cluster[2,2,1024]"`` or ``"spark://host:7077"``; by default the master
        given to spark-submit or in ``spark-defaults.conf``, else ``local[*]``.
    remote
        A Spark Connect server to use instead, such as ``"sc://host:15002"``; ``"local[4]"`` and
        ``"local-cluster[2,2,1024]"`` start a server here.
    conf
        Spark settings: ``**{"spark.executor.memory": "4g"}``, or ``spark_executor_memory="4g"``.

    Returns
    -------
    pyspark.sql.SparkSession
        A session that can read and write ``format("tfrecord")``.

    Raises
    ------
    DependencyError
        As `configure`.
    ConfigurationError
        If a name in `conf` is not a Spark setting, or both `master` and `remote` are given.

    Examples
    --------
    >>> spark = tfspark.session("flights")
    >>> spark.range(3).count()
    3
    """
    ensure_pyspark()
    from pyspark.sql import SparkSession

    # Spark 4 makes a new SparkSession.builder at each access, so it has no settings of an earlier session.
    builder = SparkSession.builder.appName(app)
    if master is not None and remote is not None:
        raise ConfigurationError(
            f"master={master!r} and remote={remote!r} cannot both be set.",
            hint="remote is the server of a Spark Connect session, which knows its master.",
        )
    if master is not None:
        builder = builder.master(master)
    if remote is not None:
        builder = builder.remote(remote)
    # Spark's progress bars would overwrite tfspark's progress, and the job of the nodes shows one until they end.
    for key, value in {"spark.ui.showConsoleProgress": "false", **_named(conf)}.items():
        builder = builder.config(key, value)
    with warnings.catch_warnings():
        # A Spark Connect server that is already running does not accept this setting.
        warnings.filterwarnings("ignore", message="Failed to set spark.ui.showConsoleProgress")
        return configure(builder).getOrCreate()


def add_connector(spark: SparkSession) -> None:
    """Give a running session the TFRecord connector, if it does not have it yet.

    The connector provides the format ``tfrecord`` and, in a classic session, the SQL functions ``to_example`` and
    ``from_example``.

    Parameters
    ----------
    spark
        A classic or a Spark Connect session.

    Examples
    --------
    >>> add_connector(spark)
    >>> df.write.format("tfrecord").save(f"{directory}/records")
    >>> spark.read.format("tfrecord").load(f"{directory}/records").count()
    2
    """
    jar = connector_jar()
    if is_connect(spark):
        spark.addArtifacts(str(jar))
        return
    if not any(Path(name).name == jar.name for name in _jars_of(spark)):
        spark.sql(f"ADD JAR '{jar}'")
    register_functions(spark)


def _jars_of(spark: SparkSession) -> Iterator[str]:
    """Yield the jars of a classic session: first those of ``spark.jars``, then those that were added."""
    yield from spark.sparkContext.getConf().get("spark.jars", "").split(",")  # type: ignore[union-attr]
    yield from (row[0] for row in spark.sql("LIST JARS").collect())


def _named(conf: Mapping[str, Any]) -> dict[str, str]:
    named = {}
    for key, value in conf.items():
        name = key.replace("_", ".") if key.startswith("spark_") else key
        if not name.startswith("spark."):
            raise ConfigurationError(
                f"{key!r} is not a Spark setting.", hint="Names of Spark settings begin with 'spark.'."
            )
        named[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return named


def _is_connect(options: Mapping[str, Any]) -> bool:
    if "spark.master" in options:
        return False
    return bool(options.get("spark.remote") or os.environ.get("SPARK_REMOTE"))


def _choose_python(settings: Mapping[str, str]) -> None:
    """Make executors run this interpreter: ``python3`` on their PATH is rarely the one with TensorFlow."""
    # pyspark itself reads only the environment variable.
    if "spark.pyspark.python" in settings:
        os.environ["PYSPARK_PYTHON"] = settings["spark.pyspark.python"]
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if "spark.pyspark.driver.python" not in settings:
        os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)


def _settings_outside_the_builder() -> dict[str, str]:
    """Return settings that a new session gets: from the running JVM, else from the command line and defaults file."""
    context = internals.active_context()
    if context is not None:
        return dict(context.getConf().getAll())
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return internals.settings_of_gateway()
    return {**_defaults_file(), **_submit_arguments(os.environ.get("PYSPARK_SUBMIT_ARGS", ""))}


def _submit_arguments(line: str) -> dict[str, str]:
    settings = {}
    words = iter(shlex.split(line))
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("--conf", "-c"):
            key, _, value = (value or next(words, "")).partition("=")
            settings[key] = value
        elif flag == "--jars":
            settings["spark.jars"] = value or next(words, "")
    return settings


def _defaults_file() -> dict[str, str]:
    """Return the settings in ``spark-defaults.conf``; a line is a name, white space, ``=`` or ``:``, and the value.

    This is the syntax of Java's Properties.
    """
    directory = os.environ.get("SPARK_CONF_DIR") or os.path.join(internals.find_spark_home(), "conf")
    path = Path(directory) / "spark-defaults.conf"
    settings = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        found = _PROPERTY.match(line)
        if found:
            settings[found[1]] = found[2].strip()
    return settings
