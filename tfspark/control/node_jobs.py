"""The Spark jobs that hold the nodes: one barrier job for each group of nodes with the same resource needs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.control.events import JobEnded
from tfspark.control.lifecycle import SPARK_IS_GONE
from tfspark.spark.arrow_jobs import map_in_arrow
from tfspark.spark.internals import is_connection_error
from tfspark.spark.jobs import TaggedJob, describe_job_error
from tfspark.spark.profiles import Resources
from tfspark.spark.resources import Group, Manager
from tfspark.spec import NodeId

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.executor.task import Launch


class NodeJobs:
    """The Spark jobs that hold the nodes, one for each group, all under one tag.

    A barrier stage starts all nodes of a group together, or none of them. Spark does not support barrier stages with
    dynamic allocation, so the nodes are ordinary tasks there; nodes wait for each other in both cases.

    Parameters
    ----------
    spark
        The Spark session.
    tag
        Spark job tag; unique.
    launch
        The launch data of all nodes.
    groups
        The nodes of each job.
    resources
        Has the resource profiles of the groups.
    on_end
        Called once, in a thread: when the first job has failed (the other jobs are then cancelled), or when all jobs
        have ended.
    description
        Description of the jobs in Spark's UI.
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
        # Spark's check of a barrier stage knows only profiles that exist already, so all of them are made first.
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
        """Cancel all jobs; jobs that have ended are not affected."""
        for job in self._jobs:
            job.cancel()

    def join(self, timeout: float) -> bool:
        """Wait for all threads, at most `timeout` seconds in total; return whether they have ended."""
        deadline = time.monotonic() + timeout
        return all([job.join(max(0.0, deadline - time.monotonic())) for job in self._jobs])


def launch_of(launch: Launch, group: Group, resources: Resources) -> Launch:
    """Return the launch data of the nodes of a group."""
    gpus = float(group.need.gpus) if resources.asks_for_gpus else None
    # On a local master CPUs cannot be requested, and 1 is the value of Spark if nothing is set.
    shared = resources.settings.manager is Manager.LOCAL and group.need.cpus == 1
    return replace(launch, held=group.nodes, gpus=gpus, cpus=None if shared else float(group.need.cpus))


def node_job(spark: SparkSession, launch: Launch, profile: ResourceProfile | None, barrier: bool) -> DataFrame:
    """Return the job that holds nodes: one task per node."""
    from tfspark.executor.task import RESULT_DDL

    def hold_node(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.task import supervise

        return supervise(launch, batches)

    n = len(launch.held)
    return map_in_arrow(spark.range(0, n, 1, n), hold_node, RESULT_DDL, barrier=barrier, profile=profile)


def job_ended(error: BaseException | None, nodes: Sequence[NodeId]) -> JobEnded:
    """Return the event for the end of a job that held `nodes`."""
    if error is None:
        return JobEnded()
    if is_connection_error(error):
        return JobEnded(f"{SPARK_IS_GONE}: {error}")
    # Spark's message when a task of a barrier stage is lost; the number is its partition, which is the node's position.
    blamed = re.search(r"barrier task ResultTask\(\d+, (\d+)\)", str(error))
    lost = "PythonException" not in str(error)
    return JobEnded(describe_job_error(error), nodes[int(blamed[1])] if blamed and lost else None)
