"""Collects facts about a Spark application and its executors.

It starts a session, examines all executors at once, and stops the session.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.doctor import packages, probe
from tfspark.errors import ResourceError, TFSparkError
from tfspark.executor import host
from tfspark.spark.conf import driver_addresses, is_local
from tfspark.spark.internals import concurrent_tasks, register_profile
from tfspark.spark.jobs import describe_job_error, result_within
from tfspark.spark.profiles import require_room, task_slots

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_TASKS = 1000
"""Largest number of tasks; with more slots, some executors may not be checked."""

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    # A retry does not fix a broken setup.
    "spark.task.maxFailures": "1",
    "spark.stage.maxConsecutiveAttempts": "1",
}
"""The doctor's default settings; settings of the user override them."""


@dataclass
class Survey:
    """The collected facts; None or empty if a fact is unknown.

    Attributes
    ----------
    master, settings
        Master and settings of the running application.
    slots
        Number of tasks that can run at once.
    shortage
        The error that a cluster with the requested number of workers would raise, if there are too few slots.
    missing_jars
        Entries of ``spark.jars`` that do not exist.
    connector_error
        Why Spark does not have ``format("tfrecord")``.
    tasks
        The facts from `probe`; they are complete for one task of each executor.
    job_error
        Why the job of `probe` failed.
    paths
        What is wrong with each shared directory on the driver, or None, by path.
    seen
        Number of executors' files that the driver finds in each directory.
    """

    master: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    slots: int = 0
    shortage: ResourceError | None = None
    missing_jars: Sequence[str] = ()
    connector_error: str | None = None
    tasks: Sequence[dict[str, Any]] = ()
    job_error: str | None = None
    paths: dict[str, str | None] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def executors(self) -> list[dict[str, Any]]:
        """The complete facts, one per executor."""
        return [t for t in self.tasks if "python" in t]

    @property
    def is_local(self) -> bool:
        """Whether driver and executor are the same process."""
        return is_local(self.master)


def survey(master: str | None, conf: Mapping[str, str], paths: Sequence[str], workers: int, timeout: float) -> Survey:
    """Start an application, collect facts and stop it; an application that was already running is not stopped.

    Raises
    ------
    TFSparkError
        If the session cannot be created.
    """
    import tfspark

    running = _running_session()
    try:
        spark = tfspark.session("tfspark doctor", master, **{**SETTINGS, **conf})
    except TFSparkError:
        raise
    except Exception as e:
        raise TFSparkError(
            f"Spark does not start: {describe_job_error(e)}",
            hint="Read Spark's own lines above. Try the same master with spark-shell.",
        ) from e
    try:
        return _look(spark, [_uri(p) for p in paths], workers, timeout)
    finally:
        if running is None:
            spark.stop()


def _running_session() -> SparkSession | None:
    from pyspark.sql import SparkSession

    return SparkSession.getActiveSession()


def _look(spark: SparkSession, paths: Sequence[str], workers: int, timeout: float) -> Survey:
    found = Survey(master=spark.sparkContext.master, settings=dict(spark.sparkContext.getConf().getAll()))
    jars = [j for j in found.settings.get("spark.jars", "").split(",") if j and "://" not in j]
    found.missing_jars = [j for j in jars if not Path(j.removeprefix("file:")).is_file()]
    found.connector_error = _connector_error(spark)
    try:
        require_room(spark, workers)
    except ResourceError as e:
        found.shortage = e
    found.slots = task_slots(spark) or 0
    if found.slots:
        word = f"tfspark-doctor-{secrets.token_hex(8)}"
        with _marked(paths, word, found):
            _probe(spark, word, [p for p, complaint in found.paths.items() if complaint is None], found, timeout)
    return found


def _probe(spark: SparkSession, word: str, paths: Sequence[str], found: Survey, timeout: float) -> None:
    bind, reached_at = driver_addresses(spark)
    with probe.Listener(bind, word) as listener:
        names = tuple(r.name for r in packages.requirements())
        order = probe.Order((reached_at, listener.port), word, names, tuple(paths))
        try:
            lines = result_within(spark, word, lambda: _run(spark, order, min(found.slots, MAX_TASKS)), timeout)
            found.tasks = [json.loads(line) for line in lines]
        except TimeoutError:
            found.job_error = f"the check of the executors took longer than {timeout:.0f} s"
        except Exception as e:
            found.job_error = describe_job_error(e)


def _run(spark: SparkSession, order: probe.Order, tasks: int) -> list[str]:
    """Run the probe on an RDD, because a DataFrame would need pandas and pyarrow, which the probe must check."""
    from pyspark import cloudpickle

    modules = (probe, host)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        sc = spark.sparkContext
        profile = _gpu_profile(spark)
        if profile is not None:
            register_profile(sc, profile)
            tasks = min(tasks, concurrent_tasks(sc, profile))
        rdd = sc.parallelize(range(tasks), tasks)
        if profile is not None:
            rdd = rdd.withResources(profile)
        return list(rdd.barrier().mapPartitions(probe.examine(order)).collect())
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _gpu_profile(spark: SparkSession) -> Any:
    """Return a profile that gives each task a GPU, if executors have GPUs but tasks get none by default."""
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    conf = spark.sparkContext.getConf()
    wanted = int(conf.get("spark.executor.resource.gpu.amount") or "0")
    if not wanted or conf.get("spark.task.resource.gpu.amount") or spark.sparkContext.master.startswith("local["):
        return None
    request = TaskResourceRequests().cpus(int(conf.get("spark.task.cpus") or "1")).resource("gpu", 1)
    return ResourceProfileBuilder().require(request).build


def _connector_error(spark: SparkSession) -> str | None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tfspark-doctor-") as empty:
        try:
            spark.read.format("tfrecord").schema("x long").load(f"file://{empty}")
        except Exception as e:
            return describe_job_error(e)
    return None


def _uri(path: str) -> str:
    """Return a directory as a URI or an absolute path, which Arrow opens from any working directory."""
    if path.startswith(("s3a:", "s3n:")):
        return f"s3{path[3:]}"
    return path if "://" in path else os.path.abspath(path)


@contextmanager
def _marked(paths: Sequence[str], word: str, found: Survey) -> Iterator[None]:
    """Write a file into each shared directory; at the end, count the executors' files and remove all these files."""
    from pyarrow import fs

    marked = []
    for path in paths:
        try:
            filesystem, inner = fs.FileSystem.from_uri(path)
            with filesystem.open_output_stream(f"{inner}/{word}") as f:
                f.write(word.encode())
            marked.append((path, filesystem, inner))
            found.paths[path] = None
        except (OSError, ValueError) as e:
            found.paths[path] = str(e)
    try:
        yield
    finally:
        for path, filesystem, inner in marked:
            there = filesystem.get_file_info(fs.FileSelector(inner))
            ours = [i.path for i in there if i.base_name.startswith(word)]
            found.seen[path] = sum(not p.endswith(word) for p in ours)
            for name in ours:
                filesystem.delete_file(name)


def describe_python(settings: Mapping[str, str]) -> str:
    """Return the Python that executors will run."""
    told = settings.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON")
    return told or f"python3 of their PATH (this is {sys.executable})"
