"""Gathers facts of a Spark application and its executors: starts a session, looks into all at once, ends it."""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.doctor import packages, probe
from tfspark.driver import launcher
from tfspark.driver.profiles import require_room, task_slots
from tfspark.errors import ResourceError, TFSparkError
from tfspark.executor import host

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_TASKS = 1000
"""So many slots are looked at; beyond them executors may be missed."""

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    # What is broken does not get better by trying again.
    "spark.task.maxFailures": "1",
    "spark.stage.maxConsecutiveAttempts": "1",
}
"""The doctor's own, where the user has set nothing else."""


@dataclass
class Survey:
    """What was found out; None and empty where it was not.

    Attributes
    ----------
    master, settings
        Of the running application.
    slots
        Tasks that can run at once.
    shortage
        The error that a cluster of the wanted number of workers would end with, for want of slots.
    missing_jars
        Entries of ``spark.jars`` that are no files here.
    connector_error
        Why ``format("tfrecord")`` is not known to Spark.
    tasks
        The facts that `probe` has gathered, those of one task of each executor in full.
    job_error
        Why the job that gathers them failed.
    paths
        What is wrong with shared directories as the driver sees them, None for nothing; by path.
    seen
        Files that executors have left in each of them.
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
        """The full facts, one of each executor."""
        return [t for t in self.tasks if "python" in t]

    @property
    def is_local(self) -> bool:
        """Whether driver and executor are one process."""
        return self.master == "local" or self.master.startswith("local[")


def survey(master: str | None, conf: Mapping[str, str], paths: Sequence[str], workers: int, timeout: float) -> Survey:
    """Start an application, look at everything, and end it; one that is running already is left running.

    Raises
    ------
    TFSparkError
        If there is no session to be had.
    """
    import tfspark

    running = _running_session()
    try:
        spark = tfspark.session("tfspark doctor", master, **{**SETTINGS, **conf})
    except TFSparkError:
        raise
    except Exception as e:
        raise TFSparkError(
            f"Spark does not start: {launcher.describe_job_error(e)}",
            hint="The lines above, Spark's own, say why. Try the same master with spark-shell.",
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
    found.slots = task_slots(spark)
    if found.slots:
        word = f"tfspark-doctor-{secrets.token_hex(8)}"
        with _marked(paths, word, found):
            _probe(spark, word, [p for p, complaint in found.paths.items() if complaint is None], found, timeout)
    return found


def _probe(spark: SparkSession, word: str, paths: Sequence[str], found: Survey, timeout: float) -> None:
    bind, reached_at = launcher.driver_addresses(spark)
    with probe.Listener(bind, word) as listener:
        names = tuple(r.name for r in packages.requirements())
        order = probe.Order((reached_at, listener.port), word, names, tuple(paths))
        outcome: list[Any] = []
        ended = threading.Event()

        def end(result: Any, error: BaseException | None) -> None:
            outcome.extend([result, error])
            ended.set()

        job = launcher.TaggedJob(spark, word, lambda: _run(spark, order, min(found.slots, MAX_TASKS)), end)
        if not ended.wait(timeout):
            job.cancel()
            found.job_error = f"looking at the executors took longer than {timeout:.0f} s"
        elif outcome[1] is not None:
            found.job_error = launcher.describe_job_error(outcome[1])
        else:
            found.tasks = [json.loads(line) for line in outcome[0]]
        job.join(timeout)


def _run(spark: SparkSession, order: probe.Order, tasks: int) -> list[str]:
    """An RDD, as DataFrames would need the very pandas and pyarrow on executors that are to be checked."""
    from pyspark import cloudpickle

    modules = (probe, host)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        sc = spark.sparkContext
        profile = _gpu_profile(spark)
        if profile is not None:
            java_profile = profile._java_resource_profile
            sc._jsc.sc().resourceProfileManager().addResourceProfile(java_profile)  # type: ignore[attr-defined]
            tasks = min(tasks, int(sc._jsc.sc().maxNumConcurrentTasks(java_profile)))  # type: ignore[attr-defined]
        rdd = sc.parallelize(range(tasks), tasks)
        if profile is not None:
            rdd = rdd.withResources(profile)
        return list(rdd.barrier().mapPartitions(probe.examine(order)).collect())
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _gpu_profile(spark: SparkSession) -> Any:
    """Have each task be given a GPU, as a node would be, where executors have some but tasks get none by default."""
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
            return launcher.describe_job_error(e)
    return None


def _uri(path: str) -> str:
    """Name a directory so that Arrow finds it from any working directory."""
    if path.startswith(("s3a:", "s3n:")):
        return f"s3{path[3:]}"
    return path if "://" in path else os.path.abspath(path)


@contextmanager
def _marked(paths: Sequence[str], word: str, found: Survey) -> Iterator[None]:
    """Put a file into each shared directory for executors to find; count theirs and remove all of them at the end."""
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
    """Say which Python executors are told to run."""
    told = settings.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON")
    return told or f"python3 of their PATH (this is {sys.executable})"
