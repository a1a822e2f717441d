"""Spark's side of resources: what it is set to, what its executors have, and the profiles that ask for more.

Without dynamic allocation a profile of tasks alone runs on the executors that there are. With it, every profile gets
executors of its own, so it says what these shall have; and Spark refuses barrier stages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tfspark.driver.resources import (
    Executor,
    Group,
    Manager,
    Need,
    Settings,
    Wishes,
    feeding_need,
    find_shortage,
    plan_groups,
    shortage_error,
)
from tfspark.spec import NodeId, plan_nodes

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

PATIENCE_SECONDS = 20.0
"""How long executors that have not yet registered are waited for; a session is handed out before they have."""

LOCAL_PATIENCE_SECONDS = 2.0
"""The same for ``local[n]``, whose one executor is there, but is told of by Spark's event queue."""

_profiles: WeakKeyDictionary[SparkContext, dict[Need, ResourceProfile]] = WeakKeyDictionary()
_profiles_lock = threading.Lock()


class Resources:
    """What the nodes of one cluster need, and whether Spark has it.

    Parameters
    ----------
    spark
        The session.
    nodes
        All nodes of the cluster.
    wishes
        What the user asks for each.
    """

    def __init__(self, spark: SparkSession, nodes: Sequence[NodeId], wishes: Wishes) -> None:
        self._sc = spark.sparkContext
        self._nodes, self._wishes = tuple(nodes), wishes
        self.settings = read_settings(self._sc)

    def groups(self, patience: float | None = None) -> tuple[Group, ...]:
        """Return the groups of nodes, once Spark has what they need; within `patience` seconds, by default a few.

        Raises
        ------
        ResourceError
            If Spark does not have it.
        """
        return self._fitting(feeding=None, patience=patience)[0]

    def groups_beside_feeding(self) -> tuple[Group, ...]:
        """Return the groups of nodes, once Spark has room for them and a feeding task.

        Raises
        ------
        ResourceError
            If Spark does not have it.
        """
        return self._fitting(self.settings.task, or_without_gpus=True)[0]

    @property
    def asks_for_gpus(self) -> bool:
        """Whether the user or Spark's settings say how many GPUs a node gets, none included."""
        return self._wishes.gpus is not None or bool(self.settings.task.gpus)

    def feeding_profile(self, in_one_stage: Callable[[], bool]) -> ResourceProfile | None:
        """Return the profile of feeding tasks, once Spark has room for one beside all nodes.

        Parameters
        ----------
        in_one_stage
            Whether they are all tasks of the feed: other stages cannot be given a profile.

        Raises
        ------
        ResourceError
            If Spark does not have it.
        """
        groups, executors = self._fitting(self.settings.task, or_without_gpus=True)
        need = feeding_need(groups, self.settings, executors)
        if need != self.settings.task and not in_one_stage():
            self.require_default_task()
        return self.profile(need)

    def require_default_task(self) -> None:
        """Make sure that tasks of which we know nothing can run beside all nodes.

        Raises
        ------
        ResourceError
            If they cannot.
        """
        self._fitting(self.settings.task)

    def profile(self, need: Need) -> ResourceProfile | None:
        """Return the profile of tasks with this need; ``None`` if it is what any task gets."""
        return None if need == self.settings.task else profile_of(self._sc, need, self.settings)

    def _fitting(
        self, feeding: Need | None, or_without_gpus: bool = False, patience: float | None = None
    ) -> tuple[tuple[Group, ...], Sequence[Executor]]:
        settings, spread = self.settings, self._wishes.spread
        if settings.manager is Manager.LOCAL:
            patience = LOCAL_PATIENCE_SECONDS
        elif patience is None:
            patience = PATIENCE_SECONDS
        deadline = time.monotonic() + patience
        registering = threading.Event()
        while True:
            executors = read_executors(self._sc)
            groups = plan_groups(self._nodes, self._wishes, settings, executors)
            if settings.dynamic:
                return groups, executors
            need = feeding_need(groups, settings, executors) if or_without_gpus else feeding
            shortage = find_shortage(groups, need, executors)
            if shortage is None:
                return groups, executors
            if time.monotonic() > deadline:
                raise shortage_error(shortage, groups, need, executors, settings, spread)
            registering.wait(0.1)


def require_room(spark: SparkSession, workers: int, feeding: bool = True) -> None:
    """Make sure that so many workers, and a feeding task beside them, can run at once.

    Raises
    ------
    ResourceError
        If they cannot.
    """
    resources = Resources(spark, plan_nodes(workers), Wishes())
    if feeding:
        resources.require_default_task()
    else:
        resources.groups()


def task_slots(spark: SparkSession) -> int:
    """Return how many tasks Spark can run at once now, as its own check of barrier stages counts them."""
    jsc = spark.sparkContext._jsc.sc()  # type: ignore[attr-defined]
    profile = jsc.resourceProfileManager().defaultResourceProfile()
    return int(jsc.maxNumConcurrentTasks(profile))


def read_settings(sc: SparkContext) -> Settings:
    """Read what Spark is set to."""
    conf, manager = sc.getConf(), Manager.of(sc.master)
    cpus = Fraction(conf.get("spark.task.cpus") or "1")
    if manager is Manager.LOCAL:
        return Settings(manager, Need(cpus))
    cores = conf.get("spark.executor.cores") or ("1" if manager in (Manager.YARN, Manager.KUBERNETES) else None)
    return Settings(
        manager,
        Need(cpus, Fraction(conf.get("spark.task.resource.gpu.amount") or "0")),
        int(cores) if cores else None,
        int(conf.get("spark.executor.resource.gpu.amount") or "0"),
        (conf.get("spark.dynamicAllocation.enabled") or "false").lower() == "true",
    )


def read_executors(sc: SparkContext) -> list[Executor]:
    """Ask Spark what its executors have, those of the default profile."""
    listed = sc._jsc.sc().statusStore().executorList(True)  # type: ignore[attr-defined]
    executors = []
    for i in range(listed.size()):
        e = listed.apply(i)
        if e.totalCores() and not e.isExcluded() and e.resourceProfileId() == 0:
            gpus = e.resources().get("gpu")
            executors.append(Executor(e.totalCores(), len(gpus.get().addresses()) if gpus.isDefined() else 0))
    return executors


def profile_of(sc: SparkContext, need: Need, settings: Settings) -> ResourceProfile:
    """Return the profile of tasks with this need, the same one each time: equal ones get executors of their own."""
    with _profiles_lock:
        known = _profiles.setdefault(sc, {})
        if need not in known:
            known[need] = _build(sc, need, settings)
        return known[need]


def _build(sc: SparkContext, need: Need, settings: Settings) -> ResourceProfile:
    from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder, TaskResourceRequests

    task = TaskResourceRequests().cpus(_number(need.cpus))
    if need.gpus:
        task = task.resource("gpu", float(need.gpus))
    builder = ResourceProfileBuilder().require(task)
    if settings.dynamic:
        conf = sc.getConf()
        cores = settings.executor_cpus or -(-need.cpus // 1)
        executor = ExecutorResourceRequests().cores(int(cores)).memory(conf.get("spark.executor.memory") or "1g")
        if overhead := conf.get("spark.executor.memoryOverhead"):
            executor = executor.memoryOverhead(overhead)
        if need.gpus:
            amount = settings.executor_gpus or -(-need.gpus // 1)
            script = conf.get("spark.executor.resource.gpu.discoveryScript") or ""
            vendor = conf.get("spark.executor.resource.gpu.vendor") or ""
            executor = executor.resource("gpu", int(amount), script, vendor)
        builder = builder.require(executor)
    profile: Any = builder.build
    # Spark refuses here, with a clear word, what it can never give.
    sc._jsc.sc().resourceProfileManager().addResourceProfile(profile._java_resource_profile)  # type: ignore[attr-defined]
    return profile


def _number(amount: Fraction | int) -> float | int:
    # Before Spark 4.3 CPUs were whole numbers.
    return int(amount) if amount == int(amount) else float(amount)
