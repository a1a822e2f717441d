"""Everything about a cluster that is Spark's business: hosts, the jobs that hold nodes, cancelling by tag."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import sysconfig
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from tfspark.driver.events import JobEnded
from tfspark.driver.lifecycle import SPARK_IS_GONE
from tfspark.driver.profiles import Resources
from tfspark.driver.resources import Group
from tfspark.errors import ConfigurationError, DependencyError
from tfspark.spec import NodeId

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.executor.task import Launch

logger = logging.getLogger(__name__)

_pickling = threading.Lock()


def require_classic(spark: Any) -> None:
    """Refuse what is no classic SparkSession.

    Raises
    ------
    ConfigurationError
        If `spark` is something else, a Spark Connect session included, or is stopped.
    """
    from pyspark.sql import SparkSession

    if not isinstance(spark, SparkSession) or not hasattr(spark, "_jsparkSession"):
        raise ConfigurationError(
            f"Cluster needs a classic SparkSession, not {type(spark).__module__}.{type(spark).__name__}.",
            hint="Nodes live in barrier tasks whose driver must be reachable from executors, which a Spark Connect "
            "client is not. Run the program with spark-submit, or make the session with tfspark.session(...).",
        )
    if spark.sparkContext._jsc is None:  # type: ignore[attr-defined]
        raise ConfigurationError("The SparkSession is stopped.", hint="Make a new one with tfspark.session(...).")


def pickle_main(main: Callable[..., Any], args: Any, strategy: Callable[..., Any] | None = None) -> bytes:
    """Pickle `main`, its arguments and the user's strategy for the nodes, code that they cannot import by value.

    Raises
    ------
    ConfigurationError
        If it is not callable or cannot be pickled.
    """
    if not callable(main):
        raise ConfigurationError(
            f"main must be a function main(args, ctx), not {type(main).__name__}.", hint="Pass it without calling it."
        )
    module = sys.modules.get(getattr(main, "__module__", None) or "")
    by_value = module is not None and module.__name__ != "__main__" and not _is_installed(module)
    try:
        return _dump((main, args, strategy), module if by_value else None)
    except Exception as e:
        raise ConfigurationError(
            f"main or its args cannot be sent to the nodes: {e}",
            hint="Sessions, DataFrames, locks, open files and TensorFlow objects cannot travel: make them inside main, "
            "and pass plain values in args.",
        ) from e


def _dump(value: Any, by_value: ModuleType | None) -> bytes:
    buffer = io.BytesIO()
    # What cloudpickle is told about modules holds for all threads.
    with _pickling:
        if by_value is not None:
            cloudpickle.register_pickle_by_value(by_value)
        try:
            _MainPickler(buffer).dump(value)
        finally:
            if by_value is not None:
                cloudpickle.unregister_pickle_by_value(by_value)
    return buffer.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, parts, *rest = cloudpickle.Pickler.dispatch_table[CodeType](code)
    # Since 3.1.3 cloudpickle leaves the file out, and tracebacks would not say where main failed.
    return (make, tuple(code.co_filename if p == "<dynamic-code>" else p for p in parts), *rest)


class _MainPickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[ChainMap[type, Callable[..., Any]]] = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    roots = {sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(os.path.realpath(file).startswith(os.path.realpath(r) + os.sep) for r in roots)


def driver_addresses(spark: SparkSession) -> tuple[str, str]:
    """Return the address the coordinator binds, and the one by which executors reach it."""
    sc = spark.sparkContext
    if sc.master.startswith("local"):
        return "127.0.0.1", "127.0.0.1"
    conf = sc.getConf()
    host = (conf.get("spark.driver.host") or "127.0.0.1").strip("[]")
    bind = (conf.get("spark.driver.bindAddress") or host).strip("[]")
    return bind, host


def wants_tls(spark: SparkSession) -> bool:
    """Tell whether Spark is set to protect what it sends, so that tfspark should as well."""
    conf = spark.sparkContext.getConf()
    keys = ("spark.ssl.enabled", "spark.authenticate", "spark.network.crypto.enabled", "spark.ssl.rpc.enabled")
    return any((conf.get(k) or "false").lower() == "true" for k in keys)


def has_ui(spark: SparkSession) -> bool:
    """Tell whether Spark serves its web UI."""
    return (spark.sparkContext.getConf().get("spark.ui.enabled") or "true").lower() == "true"


class TaggedJob:
    """A Spark job in a thread of its own that can be cancelled.

    Parameters
    ----------
    spark
        The session.
    tag
        Spark job tag; unique.
    action
        Runs the job; called in the thread.
    on_end
        Called in the thread with the result or with the exception.
    """

    def __init__(
        self,
        spark: SparkSession,
        tag: str,
        action: Callable[[], Any],
        on_end: Callable[[Any, BaseException | None], None],
    ) -> None:
        from pyspark import InheritableThread

        self._spark, self.tag = spark, tag
        self._action, self._on_end = action, on_end
        self._thread = InheritableThread(target=self._run, name=tag, daemon=True, session=spark)
        self._thread.start()

    def _run(self) -> None:
        result, error = None, None
        try:
            self._spark.sparkContext.addJobTag(self.tag)
            result = self._action()
        except BaseException as e:
            error = e
        self._on_end(result, error)

    def cancel(self) -> None:
        """Cancel the job; nothing happens if it has ended or Spark is gone."""
        try:
            # Not interruptTag: it knows only the tags of the thread that calls it, and of those that thread came from.
            self._spark.sparkContext.cancelJobsWithTag(self.tag)
        except Exception as e:
            logger.debug("could not cancel %s: %s", self.tag, e)

    def join(self, timeout: float) -> bool:
        """Wait for the thread; tell whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


class NodeJobs:
    """The Spark jobs that hold the nodes, one for each group, all under one tag.

    A barrier stage starts all nodes of a group together or none. With dynamic allocation, for which Spark has no
    barrier stages, the nodes are ordinary tasks: they wait for each other in any case.

    Parameters
    ----------
    spark
        The session.
    tag
        Spark job tag; unique.
    launch
        What all nodes need to know.
    groups
        Who goes together.
    resources
        Knows the profiles of the groups.
    on_end
        Called, in a thread, when the first of the jobs has failed, which cancels the others, or when all have ended.
    description
        Describes them in Spark's UI.
    """

    def __init__(
        self,
        spark: SparkSession,
        tag: str,
        launch: Launch,
        groups: Sequence[Group],
        resources: Resources,
        on_end: Callable[[JobEnded], None],
        description: str | None = None,
    ) -> None:
        self._on_end, self._description = on_end, description
        self._running = len(groups)
        self._failed = False
        self._lock = threading.Lock()
        barrier = not resources.settings.dynamic
        # Spark's own check of a barrier stage counts only profiles that it has heard of.
        jobs = [(group, resources.profile(group.need)) for group in groups]
        with self._lock:
            self._jobs = [
                self._start(spark, tag, launch_of(launch, group, resources), profile, barrier)
                for group, profile in jobs
            ]

    def _start(
        self, spark: SparkSession, tag: str, launch: Launch, profile: ResourceProfile | None, barrier: bool
    ) -> TaggedJob:
        def ended(_: Any, error: BaseException | None) -> None:
            self._ended(launch, error)

        def hold() -> Any:
            if self._description is not None:
                spark.sparkContext.setJobDescription(self._description)
            return node_job(spark, launch, profile, barrier).collect()

        return TaggedJob(spark, tag, hold, ended)

    def _ended(self, launch: Launch, error: BaseException | None) -> None:
        with self._lock:
            self._running -= 1
            tell = not self._failed and (error is not None or self._running == 0)
            self._failed = self._failed or error is not None
            cancel = tell and self._running > 0
        if cancel:
            self.cancel()
        if tell:
            self._on_end(job_ended(error, launch.held))

    def cancel(self) -> None:
        """Cancel all jobs; nothing happens to those that have ended."""
        self._jobs[0].cancel()

    def join(self, timeout: float) -> bool:
        """Wait for all threads; tell whether they have ended."""
        deadline = time.monotonic() + timeout
        return all([job.join(max(0.0, deadline - time.monotonic())) for job in self._jobs])


def launch_of(launch: Launch, group: Group, resources: Resources) -> Launch:
    """Return what the nodes of a group need to know."""
    return replace(launch, held=group.nodes, gpus=float(group.need.gpus) if resources.asks_for_gpus else None)


def node_job(spark: SparkSession, launch: Launch, profile: ResourceProfile | None, barrier: bool) -> DataFrame:
    """Return the job that holds nodes, one task each."""
    from tfspark.executor.task import RESULT_DDL

    def hold_node(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.task import supervise

        return supervise(launch, batches)

    n = len(launch.held)
    return spark.range(0, n, 1, n).mapInArrow(hold_node, RESULT_DDL, barrier=barrier, profile=profile)


def job_ended(error: BaseException | None, nodes: Sequence[NodeId]) -> JobEnded:
    """Say how a job that held `nodes` ended."""
    from py4j.protocol import Py4JNetworkError

    if error is None:
        return JobEnded()
    if isinstance(error, (OSError, Py4JNetworkError)):
        return JobEnded(f"{SPARK_IS_GONE}: {error}")
    # Spark's words when one task of a barrier stage is lost; the number is its partition, which is the node's.
    blamed = re.search(r"barrier task ResultTask\(\d+, (\d+)\)", str(error))
    lost = "PythonException" not in str(error)
    return JobEnded(describe_job_error(error), nodes[int(blamed[1])] if blamed and lost else None)


def describe_job_error(error: BaseException) -> str:
    """Say in a line or a few what Spark's exception means."""
    text = str(error)
    if "No module named 'tfspark" in text:
        return (
            "the Python of the executors has no tfspark. Install the same environment there, ship one with "
            "--archives, or point PYSPARK_PYTHON to one that has it"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:12]) or type(error).__name__


def require_pandas() -> None:
    """Refuse early what ``mapInArrow`` refuses late.

    Raises
    ------
    DependencyError
        If pandas is missing.
    """
    try:
        import pandas  # noqa: F401
    except ImportError as e:
        raise DependencyError(
            "pandas is not installed in the driver's Python, and Spark's mapInArrow needs it.",
            hint='Install "pandas>=2.2,<3" here and on the executors.',
        ) from e
