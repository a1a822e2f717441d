"""All calls of tfspark to Spark's private API: py4j, classes of the JVM, underscored names of pyspark.

Other modules call these functions. Each function has a test (``tests/spark/test_internals.py``) that fails if a Spark
version lacks the API it uses. Those that need a JVM do not work on Spark Connect, whose private API
`tfspark.spark.connect` uses.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark import RDD, SparkContext
    from pyspark.resource import ResourceProfile
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType

logger = logging.getLogger(__name__)

# --- the session and its JVM


def is_classic(session: Any) -> bool:
    """Return whether a session has a JVM in this program, unlike a session of Spark Connect."""
    return hasattr(session, "_jsparkSession")


def is_stopped(session: SparkSession) -> bool:
    """Return whether a classic session has been stopped."""
    return session.sparkContext._jsc is None  # type: ignore[attr-defined]


def jvm_of(session: SparkSession) -> Any | None:
    """Return py4j's view of the JVM of a session; ``None`` on Spark Connect, which has none."""
    try:
        return session._jvm  # type: ignore[attr-defined]
    except Exception as e:
        # Spark Connect raises its own error class.
        logger.debug("the session has no JVM: %s", e)
        return None


def jvm_of_column(column: Column) -> Any | None:
    """Return py4j's view of the JVM of a column; ``None`` for a column of Spark Connect."""
    context = active_context()
    return context._jvm if context is not None and hasattr(column, "_jc") else None  # type: ignore[attr-defined]


def java_session(session: SparkSession) -> Any:
    """Return the JVM's SparkSession of a classic session."""
    return session._jsparkSession  # type: ignore[attr-defined]


def active_context() -> SparkContext | None:
    """Return the SparkContext of this program, if there is one."""
    from pyspark import SparkContext

    return SparkContext._active_spark_context


def settings_of_gateway() -> dict[str, str]:
    """Return the settings of the JVM that spark-submit started before this program."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    return dict(SparkConf().getAll())


def options_of(builder: SparkSession.Builder) -> dict[str, Any]:
    """Return the options that a session builder has been given."""
    return builder._options  # type: ignore[attr-defined,no-any-return]


def find_spark_home() -> str:
    """Return the directory of the Spark installation that pyspark uses."""
    from pyspark.find_spark_home import _find_spark_home

    return str(_find_spark_home())


def add_to_class_path(jar: str) -> None:
    """Let the JVM that spark-submit started load classes of a jar; it reads ``spark.jars`` only when it starts."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    if gateway is None:
        return
    loader = gateway.jvm.java.lang.Thread.currentThread().getContextClassLoader()
    if "MutableURLClassLoader" in loader.getClass().getName():
        loader.addURL(gateway.jvm.java.io.File(jar).toURI().toURL())


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error means that the JVM no longer answers."""
    from py4j.protocol import Py4JNetworkError

    return isinstance(error, (OSError, Py4JNetworkError))


# --- types and expressions


def parse_type(text: str) -> DataType:
    """Parse a type as Spark writes it: ``"label int, scores array<float>"``.

    Raises
    ------
    ValueError
        If `text` is not a type.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql.types import _parse_datatype_string

    try:
        return _parse_datatype_string(text)
    except (PySparkException, TypeError, AttributeError) as e:
        raise ValueError(str(e)) from e


_classes: dict[tuple[Any, str], Any] = {}
"""Classes that `java_class` has found, by JVM and name."""


def java_class(jvm: Any | None, name: str) -> Any | None:
    """Return a class of the JVM by its full name; ``None`` if there is no such class, or no JVM.

    py4j looks up each part of the name, which takes some 5 ms for each package, so classes are kept.
    """
    from py4j.java_gateway import JavaClass

    if jvm is None:
        return None
    kept = _classes.get((jvm, name))
    if kept is not None:
        return kept
    found = functools.reduce(getattr, name.split("."), jvm)
    return _classes.setdefault((jvm, name), found) if isinstance(found, JavaClass) else None


def fail_at_first_schema_error(session: SparkSession) -> None:
    """Let a Spark job fail as soon as one of its Python tasks raises `SchemaError`, instead of at its last attempt.

    Without the connector's jar and on Spark Connect, Spark makes all its attempts.
    """
    watcher = java_class(jvm_of(session), "org.apache.spark.scheduler.tfspark.SchemaErrors")
    if watcher is not None:
        watcher.watch(_java_context(session.sparkContext))


def expression_of(utils: Any, column: Column) -> Any:
    """Return the expression of a column; `utils` is Spark's ``ExpressionUtils``."""
    return utils.expression(column._jc)  # type: ignore[attr-defined]


def column_of(utils: Any, expression: Any) -> Column:
    """Return an expression as a column; `utils` is Spark's ``ExpressionUtils``."""
    from pyspark.sql.classic.column import Column as ClassicColumn

    return ClassicColumn(utils.column(expression))


# --- plans


def with_plan(df: DataFrame, change: Callable[[Any], Any]) -> DataFrame | None:
    """Return a DataFrame of the plan that `change` makes of the logical plan of `df`; ``None`` if it returns none."""
    from pyspark.sql import DataFrame as AnyDataFrame

    plan = change(df._jdf.logicalPlan())  # type: ignore[operator]
    if plan is None:
        return None
    jvm, sql = jvm_of(df.sparkSession), "org.apache.spark.sql"
    # Spark 3.5 has classic sessions only.
    dataset = java_class(jvm, f"{sql}.classic.Dataset") or java_class(jvm, f"{sql}.Dataset")
    assert dataset is not None
    made = dataset.ofRows(java_session(df.sparkSession), plan)
    return AnyDataFrame(made, df.sparkSession)


def java_schema(df: DataFrame) -> Any:
    """Return the JVM's schema of a DataFrame."""
    return df._jdf.schema()  # type: ignore[operator]


def executed_plan(df: DataFrame) -> str:
    """Return the physical plan of a DataFrame as Spark writes it."""
    return str(df._jdf.queryExecution().executedPlan().toString())  # type: ignore[operator]


def rows_can_move(data: DataFrame | RDD[Any]) -> bool:
    """Return whether Spark may put rows into other partitions when it computes them again."""
    jrdd = data._jdf.queryExecution().toRdd() if hasattr(data, "_jdf") else data._jrdd.rdd()  # type: ignore[operator]
    return str(jrdd.outputDeterministicLevel().toString()) == "INDETERMINATE"


def with_resources(df: DataFrame, profile: ResourceProfile) -> DataFrame:
    """Return a DataFrame of the same rows whose last stage runs with a resource profile, for Spark 3.5.

    It contains the RDD of the plan, because Spark 3.5 accepts profiles for RDDs only.
    """
    from pyspark.sql import DataFrame

    rows = df._jdf.queryExecution().toRdd().withResources(_java_profile(profile))  # type: ignore[operator]
    session = df.sparkSession
    made = java_session(session).internalCreateDataFrame(rows, df._jdf.schema(), False)  # type: ignore[operator]
    return DataFrame(made, session)


# --- in a Python worker of Spark


def input_of_worker() -> Any | None:
    """Return the stream from which Spark's Python worker reads, if it runs the function that calls this."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "pyspark.worker" and hasattr(frame.f_locals.get("infile"), "peek"):
            return frame.f_locals["infile"]
        frame = frame.f_back
    logger.debug("the stream from Spark was not found")
    return None


def input_is_complete() -> bool:
    """Return whether Spark has sent all rows of the task that this Python worker runs; call it after the last row.

    If the JVM part of a task fails, Spark closes the stream to Python. If it does so between two messages, the reader
    takes this for the end of the rows. Only what follows shows the difference: Spark sends more bytes when it is done.
    Where the stream is not found, this is not known, and the rows count as complete.
    """
    stream = input_of_worker()
    return stream is None or bool(stream.peek(1))


# --- executors and resources


def concurrent_tasks(context: SparkContext, profile: ResourceProfile | None = None) -> int:
    """Return how many tasks with a profile can run at once now, counted as in Spark's check of barrier stages."""
    jsc = _java_context(context)
    default = jsc.resourceProfileManager().defaultResourceProfile()
    return int(jsc.maxNumConcurrentTasks(default if profile is None else _java_profile(profile)))


def register_profile(context: SparkContext, profile: ResourceProfile) -> None:
    """Register a resource profile with Spark, which raises a clear error if it can never fulfil it."""
    _java_context(context).resourceProfileManager().addResourceProfile(_java_profile(profile))


def executors_of_default_profile(context: SparkContext) -> list[tuple[int, int]]:
    """Return the CPUs and GPUs of each executor of the default resource profile that Spark may use."""
    executors = _told_at_once(context, _java_context(context).statusStore().executorList(True))
    usable = [e for e in executors if e["totalCores"] and not e["isExcluded"] and e["resourceProfileId"] == 0]
    return [(int(e["totalCores"]), len(e["resources"].get("gpu", {}).get("addresses", ()))) for e in usable]


def executors_of_task(context: SparkContext, stage: int, task: int) -> list[str]:
    """Return the ids of the executors that run a task, given Spark's stage id and task id."""
    store = _java_context(context).statusStore()
    attempt = store.lastStageAttempt(stage).attemptId()
    tasks = _told_at_once(context, store.taskList(stage, attempt, 1 << 16))
    return [t["executorId"] for t in tasks if t["taskId"] == task]


def replace_executor(context: SparkContext, executor: str) -> None:
    """Make Spark kill an executor and start another one."""
    _java_context(context).killAndReplaceExecutor(executor)


# --- Hadoop's file systems


def hadoop_file_system(session: SparkSession, path: str) -> tuple[Any, Any]:
    """Return the Hadoop ``Path`` of a path or URL, and its ``FileSystem``."""
    target = session._jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[attr-defined]
    return target, target.getFileSystem(java_session(session).sessionState().newHadoopConf())


def default_file_system(context: SparkContext) -> str:
    """Return the URL of Hadoop's default file system."""
    return str(context._jsc.hadoopConfiguration().get("fs.defaultFS"))  # type: ignore[attr-defined]


# --- Spark's web UI


def add_redirect(session: SparkSession, path: str, url: str) -> Callable[[], None] | None:
    """Redirect a path of Spark's web UI to another address.

    Returns
    -------
    callable or None
        A function that removes the path; ``None`` if Spark serves no UI.
    """
    ui = _java_context(session.sparkContext).ui()
    if ui.isEmpty():
        return None
    jetty = session._jvm.org.apache.spark.ui.JettyUtils  # type: ignore[attr-defined]
    # Spark 4.3 has one argument more than Spark 4.0; both have defaults for all arguments after the second.
    defaults = [getattr(jetty, f"createRedirectHandler$default${i}")() for i in (3, 4, 5)]
    try:
        defaults.append(getattr(jetty, "createRedirectHandler$default$6")())
    except Exception:
        logger.debug("createRedirectHandler of this Spark takes five arguments")
    handler = jetty.createRedirectHandler(path, url, *defaults)
    ui.get().attachHandler(handler)
    return lambda: ui.get().detachHandler(handler)


def java_map(jvm: Any, values: Mapping[str, str]) -> Any:
    """Return a Java map of strings."""
    made = jvm.java.util.HashMap()
    for key, value in values.items():
        made.put(key, value)
    return made


def _told_at_once(context: SparkContext, listed: Any) -> Any:
    """Return a list of Spark's status store, fetched as one JSON text as in Spark's REST API.

    Separate calls for each entry would take seconds for a thousand entries.
    """
    writer = context._jvm.org.apache.spark.status.api.v1.JacksonMessageWriter()  # type: ignore[union-attr]
    return json.loads(writer.mapper().writeValueAsString(listed))


def _java_context(context: SparkContext) -> Any:
    return context._jsc.sc()  # type: ignore[attr-defined]


def _java_profile(profile: ResourceProfile) -> Any:
    return profile._java_resource_profile  # type: ignore[attr-defined]
