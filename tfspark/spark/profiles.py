"""Spark's side of resources: its settings, the resources of its executors, and the profiles that ask for more.

Without dynamic allocation, a profile that describes only tasks runs on the existing executors. With it, every profile
gets its own executors, so the profile must describe them too; and Spark refuses barrier stages.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from copy import copy
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tfspark.errors import ResourceError
from tfspark.settings import Settings as Waits
from tfspark.spark import connect, internals
from tfspark.spark.conf import master_of, setting
from tfspark.spark.jobs import result_within
from tfspark.spark.resources import (
    Executor,
    Group,
    Manager,
    NodeResources,
    Settings,
    TaskResources,
    executors_of,
    feeding_need,
    find_shortage,
    plan_groups,
    shortage_error,
    without_tasks,
)
from tfspark.spec import NodeId, plan_nodes

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

LOCAL_PATIENCE_SECONDS = 2.0
"""Seconds to wait for the executor of ``local[n]``: it exists at once, but Spark's event queue reports it later."""

COUNT_SECONDS = 10.0
"""Seconds that the job that counts cores on Spark Connect may take; it needs a free core."""

_last_cores: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""The last number of cores that was counted, by session."""

_profiles: WeakKeyDictionary[Any, dict[TaskResources, ResourceProfile]] = WeakKeyDictionary()
_profiles_lock = threading.Lock()


class Resources:
    """The resources that the nodes of one cluster need, and whether Spark has them.

    Attributes
    ----------
    tunnels
        Number of tasks that hold a slot each beside the nodes: the cluster's tunnels (`tfspark.control.tunnel`).

    Parameters
    ----------
    spark
        The session.
    nodes
        All nodes of the cluster.
    requested
        Resources that the user requests for each node.
    patience
        Seconds to wait for executors that have not registered yet; Spark returns a session before they have.
    """

    def __init__(
        self,
        spark: SparkSession,
        nodes: Sequence[NodeId],
        requested: NodeResources,
        patience: float = Waits.slots_timeout,
    ) -> None:
        self._spark, self._patience = spark, patience
        self._nodes, self._requested = tuple(nodes), requested
        self.settings = read_settings(spark)
        self.tunnels = 0

    def groups(self, patience: float | None = None) -> tuple[Group, ...]:
        """Return the groups of nodes as soon as Spark has the resources they need.

        Wait at most `patience` seconds, by default the `patience` of the constructor.

        Raises
        ------
        ResourceError
            If Spark does not have the resources.
        """
        return self._fitting(feeding=None, patience=patience)[0]

    def of(self, nodes: Sequence[NodeId]) -> Resources:
        """Return the resources of other nodes for which the user requests the same per node."""
        other = copy(self)
        other._nodes = tuple(nodes)
        return other

    def has_room(self, feeding: bool) -> bool:
        """Return whether Spark has room now for the nodes and, if `feeding`, for a feed task beside them."""
        beside = self.settings.task if feeding else None
        try:
            groups, _ = self._fitting(beside, or_without_gpus=feeding, patience=0.0)
        except ResourceError:
            return False
        # Executors that Spark is about to kill are still listed, but take no tasks.
        return all(
            internals.concurrent_tasks(self._spark.sparkContext, self.profile(g.need))
            >= len(g.nodes) + (feeding and g.need == self.settings.task)
            for g in groups
        )

    def shortage_beside_feeding(self) -> ResourceError | None:
        """Return the error that says why no feed task can run beside all nodes now; ``None`` if one can."""
        try:
            self._fitting(self.settings.task, or_without_gpus=True, patience=0.0)
        except ResourceError as e:
            return e
        return None

    def groups_beside_feeding(self) -> tuple[Group, ...]:
        """Return the groups of nodes as soon as Spark has room for them and a feed task.

        Raises
        ------
        ResourceError
            If Spark does not have the room.
        """
        return self._fitting(self.settings.task, or_without_gpus=True)[0]

    @property
    def asks_for_gpus(self) -> bool:
        """Whether the user requests a number of GPUs per node, which may be 0, or Spark's settings give tasks GPUs."""
        return self._requested.gpus is not None or bool(self.settings.task.gpus)

    def feeding_profile(self, in_one_stage: Callable[[], bool]) -> ResourceProfile | None:
        """Return the profile of feed tasks as soon as Spark has room for one of them beside all nodes.

        Parameters
        ----------
        in_one_stage
            Returns whether the feed tasks are all tasks of the feed; other stages cannot be given a profile.

        Raises
        ------
        ResourceError
            If Spark does not have the room.
        """
        groups, executors = self._fitting(self.settings.task, or_without_gpus=True)
        need = feeding_need(groups, self.settings, executors)
        if need != self.settings.task and not in_one_stage():
            self.require_default_task()
        return self.profile(need)

    def require_default_task(self) -> None:
        """Make sure that a task with the default resources can run beside all nodes.

        Raises
        ------
        ResourceError
            If it cannot.
        """
        self._fitting(self.settings.task)

    def profile(self, need: TaskResources) -> ResourceProfile | None:
        """Return the profile of tasks with this need; ``None`` if the need is the default of all tasks."""
        return None if need == self.settings.task else profile_of(self._spark, need, self.settings)

    def _fitting(
        self, feeding: TaskResources | None, or_without_gpus: bool = False, patience: float | None = None
    ) -> tuple[tuple[Group, ...], Sequence[Executor]]:
        settings, spread = self.settings, self._requested.spread
        if settings.manager is Manager.LOCAL:
            patience = LOCAL_PATIENCE_SECONDS
        elif patience is None:
            patience = self._patience
        deadline = time.monotonic() + patience
        registering = threading.Event()
        while True:
            executors = read_executors(self._spark, settings)
            if executors is not None and self.tunnels:
                executors = without_tasks(executors, self.tunnels, settings.task)
            groups = plan_groups(self._nodes, self._requested, settings, executors or ())
            if settings.dynamic or executors is None:
                return groups, executors or ()
            need = feeding_need(groups, settings, executors) if or_without_gpus else feeding
            shortage = find_shortage(groups, need, executors)
            if shortage is None:
                return groups, executors
            if time.monotonic() > deadline:
                raise shortage_error(shortage, groups, need, executors, settings, spread)
            registering.wait(0.1)


def require_room(spark: SparkSession, workers: int, feeding: bool = True) -> None:
    """Make sure that `workers` workers and, if `feeding`, a feed task beside them can run at once.

    Raises
    ------
    ResourceError
        If they cannot.
    """
    resources = Resources(spark, plan_nodes(workers), NodeResources())
    if feeding:
        resources.require_default_task()
    else:
        resources.groups()


def task_slots(spark: SparkSession) -> int | None:
    """Return how many tasks Spark can run at once now; ``None`` if a Spark Connect server does not reveal it."""
    if not connect.is_connect(spark):
        return internals.concurrent_tasks(spark.sparkContext)
    cores = _count_cores(spark)
    return None if cores is None else int(cores // read_settings(spark).task.cpus)


def read_settings(spark: SparkSession) -> Settings:
    """Return Spark's settings that concern resources."""
    manager = Manager.of(master_of(spark))
    cpus = Fraction(setting(spark, "spark.task.cpus") or "1")
    if manager is Manager.LOCAL:
        return Settings(manager, TaskResources(cpus))
    cores = setting(spark, "spark.executor.cores") or ("1" if manager in (Manager.YARN, Manager.KUBERNETES) else None)
    return Settings(
        manager,
        TaskResources(cpus, Fraction(setting(spark, "spark.task.resource.gpu.amount") or "0")),
        int(cores) if cores else None,
        int(setting(spark, "spark.executor.resource.gpu.amount") or "0"),
        (setting(spark, "spark.dynamicAllocation.enabled") or "false").lower() == "true",
    )


def read_executors(spark: SparkSession, settings: Settings) -> list[Executor] | None:
    """Return the resources of Spark's executors of the default profile; ``None`` if Spark does not reveal them."""
    if not connect.is_connect(spark):
        return [Executor(cpus, gpus) for cpus, gpus in internals.executors_of_default_profile(spark.sparkContext)]
    cores = _count_cores(spark)
    return None if cores is None else executors_of(cores, master_of(spark), settings)


def _count_cores(spark: SparkSession) -> int | None:
    """Count the cores in a session of Spark Connect; if no core is free to do it, return the last number."""
    tag = f"tfspark-cores-{uuid.uuid4().hex}"
    try:
        cores: int | None = result_within(spark, tag, lambda: connect.count_cores(spark), COUNT_SECONDS)
    except TimeoutError:
        return _last_cores.get(spark)
    if cores is not None:
        _last_cores[spark] = cores
    return cores


def profile_of(spark: SparkSession, need: TaskResources, settings: Settings) -> ResourceProfile:
    """Return the profile of tasks with this need, the same one each time: equal profiles get separate executors."""
    with _profiles_lock:
        known = _profiles.setdefault(spark if connect.is_connect(spark) else spark.sparkContext, {})
        if need not in known:
            known[need] = _build(spark, need, settings)
        return known[need]


def _build(spark: SparkSession, need: TaskResources, settings: Settings) -> ResourceProfile:
    from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder, TaskResourceRequests

    task = TaskResourceRequests().cpus(_number(need.cpus))
    if need.gpus:
        task = task.resource("gpu", float(need.gpus))
    builder = ResourceProfileBuilder().require(task)
    if settings.dynamic:
        cores = settings.executor_cpus or -(-need.cpus // 1)
        memory = setting(spark, "spark.executor.memory") or "1g"
        executor = ExecutorResourceRequests().cores(int(cores)).memory(memory)
        if overhead := setting(spark, "spark.executor.memoryOverhead"):
            executor = executor.memoryOverhead(overhead)
        if need.gpus:
            amount = settings.executor_gpus or -(-need.gpus // 1)
            script = setting(spark, "spark.executor.resource.gpu.discoveryScript") or ""
            vendor = setting(spark, "spark.executor.resource.gpu.vendor") or ""
            executor = executor.resource("gpu", int(amount), script, vendor)
        builder = builder.require(executor)
    profile: Any = builder.build
    if connect.is_connect(spark):
        connect.register_profile(spark, profile)
    else:
        internals.register_profile(spark.sparkContext, profile)
    return profile


def _number(amount: Fraction | int) -> float | int:
    # Before Spark 4.3, CPUs were whole numbers.
    return int(amount) if amount == int(amount) else float(amount)
