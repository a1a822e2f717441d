"""Everything about a cluster that is Spark's business: slots, hosts, the barrier job, cancelling by tag."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import sysconfig
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from tfspark.driver.lifecycle import JobEnded
from tfspark.errors import ConfigurationError, DependencyError, ResourceError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.executor.task import Launch

logger = logging.getLogger(__name__)

_pickling = threading.Lock()

SLOTS_PATIENCE_SECONDS = 20.0
"""How long executors that have not yet registered are waited for; a session is handed out before they have."""


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


def task_slots(spark: SparkSession) -> int:
    """Return how many tasks Spark can run at once now, as its own check of barrier stages counts them."""
    jsc = spark.sparkContext._jsc.sc()  # type: ignore[attr-defined]
    profile = jsc.resourceProfileManager().defaultResourceProfile()
    return int(jsc.maxNumConcurrentTasks(profile))


def check_slots(spark: SparkSession, nodes: int, feeding: bool) -> None:
    """Make sure that all nodes, and a feeding task beside them, can run at once.

    Raises
    ------
    ResourceError
        If there are too few task slots.
    """
    needed = nodes + (1 if feeding else 0)
    conf = spark.sparkContext.getConf()
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return
    local = spark.sparkContext.master.startswith("local[") or spark.sparkContext.master == "local"
    patience = 0.0 if local else SLOTS_PATIENCE_SECONDS
    slots = _await_slots(spark, needed, patience)
    if slots >= needed:
        return
    extra = " and 1 to feed them" if feeding else ""
    cpus = int(conf.get("spark.task.cpus", "1") or 1)
    raise ResourceError(
        f"Spark has {slots} task slot(s), but {needed} are needed: {nodes} for the nodes, which hold theirs until "
        f"they end{extra}.",
        hint=_slots_hint(spark.sparkContext.master, needed, cpus),
    )


def _await_slots(spark: SparkSession, needed: int, patience: float) -> int:
    import time

    deadline = time.monotonic() + patience
    registering = threading.Event()
    while (slots := task_slots(spark)) < needed and time.monotonic() < deadline:
        registering.wait(0.2)
    return slots


def _slots_hint(master: str, needed: int, cpus: int) -> str:
    if master.startswith("local-cluster"):
        return f"Use a master of at least {needed} cores in all, such as local-cluster[2,{-(-needed // 2)},1024]."
    if master.startswith("local"):
        return f"Use master local[{needed * cpus}] or fewer workers."
    return (
        f"Raise spark.executor.instances or spark.executor.cores to {needed * cpus} cores in all (spark.task.cpus is "
        f"{cpus}), raise spark.cores.max if it is set, or ask for fewer workers."
    )


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
            self._spark.addTag(self.tag)
            result = self._action()
        except BaseException as e:
            error = e
        self._on_end(result, error)

    def cancel(self) -> None:
        """Cancel the job; nothing happens if it has ended or Spark is gone."""
        try:
            self._spark.interruptTag(self.tag)
        except Exception as e:
            logger.debug("could not cancel %s: %s", self.tag, e)

    def join(self, timeout: float) -> bool:
        """Wait for the thread; tell whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


def node_job(spark: SparkSession, launch: Launch) -> DataFrame:
    """Return the barrier job that holds the nodes, one task each."""
    from tfspark.executor.task import RESULT_DDL

    def hold_node(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.task import supervise

        return supervise(launch, batches)

    n = len(launch.nodes)
    return spark.range(0, n, 1, n).mapInArrow(hold_node, RESULT_DDL, barrier=True)


def job_ended(error: BaseException | None) -> JobEnded:
    """Say how the job that held the nodes ended."""
    if error is None:
        return JobEnded()
    # Spark's words when one task of a barrier stage is lost; the number is its partition, which is the node's.
    blamed = re.search(r"barrier task ResultTask\(\d+, (\d+)\)", str(error))
    lost = "PythonException" not in str(error)
    return JobEnded(describe_job_error(error), int(blamed[1]) if blamed and lost else None)


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
