"""The resources that nodes need, how nodes are grouped by them, and whether they fit: decisions only, without Spark.

A task holds CPUs and GPUs of one executor as long as it runs, and nodes run until the cluster ends. So all nodes and
one feed task must fit at the same time. `spark/profiles.py` reads Spark's resources and makes the resource profiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

from tfspark.errors import ConfigurationError, ResourceError
from tfspark.spec import ROLES_WITHOUT_GPUS, NodeId

Amount = Fraction | int
"""A whole number or an exact fraction: three times a third of a GPU is one GPU."""

GPU_SETTINGS = {
    "standalone": "spark.worker.resource.gpu.amount and .discoveryScript on the workers, and "
    "spark.executor.resource.gpu.amount for the application",
    "local-cluster": "spark.worker.resource.gpu.amount, spark.worker.resource.gpu.discoveryScript and "
    "spark.executor.resource.gpu.amount",
    "yarn": "spark.executor.resource.gpu.amount and spark.executor.resource.gpu.discoveryScript",
    "kubernetes": "spark.executor.resource.gpu.amount, .vendor and .discoveryScript",
}


class Manager(str, Enum):
    """The cluster manager, which gives Spark its executors."""

    LOCAL = "local"
    LOCAL_CLUSTER = "local-cluster"
    STANDALONE = "standalone"
    YARN = "yarn"
    KUBERNETES = "kubernetes"
    OTHER = "other"

    @classmethod
    def of(cls, master: str) -> Manager:
        """Return the cluster manager of a master URL."""
        for prefix, manager in (
            ("local-cluster", cls.LOCAL_CLUSTER),
            ("local", cls.LOCAL),
            ("spark:", cls.STANDALONE),
            ("yarn", cls.YARN),
            ("k8s:", cls.KUBERNETES),
        ):
            if master.startswith(prefix):
                return manager
        return cls.OTHER

    @property
    def has_profiles(self) -> bool:
        """Whether tasks can have other resources than those of ``spark.task.*``."""
        return self not in (Manager.LOCAL, Manager.OTHER)


@dataclass(frozen=True)
class TaskResources:
    """CPUs and GPUs that Spark reserves for one task."""

    cpus: Amount = 1
    gpus: Amount = 0

    def __str__(self) -> str:
        return f"{shown(self.cpus)} CPU(s)" + (f" and {shown(self.gpus)} GPU(s)" if self.gpus else "")


@dataclass(frozen=True)
class NodeResources:
    """Resources that the user requests for each node; ``None`` is the default of all tasks.

    Raises
    ------
    ConfigurationError
        If an amount given to `of` is invalid.
    """

    gpus: Amount | None = None
    cpus: Amount | None = None
    spread: bool = False

    @classmethod
    def of(cls, gpus_per_node: float | None, cpus_per_node: float | None, spread: bool) -> NodeResources:
        """Check the arguments of `Cluster`, and return the resources."""
        gpus, cpus = _amount("gpus_per_node", gpus_per_node), _amount("cpus_per_node", cpus_per_node)
        if gpus is not None and gpus > 1 and gpus.denominator != 1:
            raise ConfigurationError(
                f"gpus_per_node={gpus_per_node}: Spark shares one GPU among tasks, or gives each task whole GPUs.",
                hint="Pass a whole number, or at most 1.",
            )
        if cpus == 0:
            raise ConfigurationError("cpus_per_node must be > 0, got 0.")
        return cls(gpus, cpus, spread)


@dataclass(frozen=True)
class Settings:
    """Spark's settings that concern resources.

    Attributes
    ----------
    task
        Resources that a task holds by default.
    executor_cpus
        ``spark.executor.cores``; ``None`` if an executor takes all cores of its host.
    executor_gpus
        ``spark.executor.resource.gpu.amount``.
    dynamic
        Whether Spark starts and ends executors according to the tasks that wait (dynamic allocation).
    """

    manager: Manager
    task: TaskResources = TaskResources()
    executor_cpus: int | None = None
    executor_gpus: int = 0
    dynamic: bool = False


@dataclass(frozen=True)
class Executor:
    """CPUs and GPUs that one executor has for tasks."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Group:
    """Nodes that need the same resources, and so are tasks of one Spark job."""

    nodes: tuple[NodeId, ...]
    need: TaskResources


def plan_groups(
    nodes: Sequence[NodeId], requested: NodeResources, settings: Settings, executors: Sequence[Executor] = ()
) -> tuple[Group, ...]:
    """Group nodes by the resources that each of them needs; groups with GPUs come first.

    Parameters
    ----------
    executors
        The existing executors; they give the CPUs of an executor if no setting does.

    Raises
    ------
    ResourceError
        If Spark does not support the request, or no executor can ever fulfil it.
    """
    cpus = requested.cpus or settings.task.cpus
    if requested.spread and settings.dynamic and settings.executor_cpus is None:
        raise ResourceError(
            "spread=True needs executors of a known size.",
            hint="With dynamic allocation, set spark.executor.cores.",
        )
    if requested.spread:
        cpus = max(cpus, _cpus_of_executor(settings, executors) // 2 + 1)
    gpus = settings.task.gpus if requested.gpus is None else requested.gpus
    first = [n for n in nodes if n.role not in ROLES_WITHOUT_GPUS]
    rest = [n for n in nodes if n.role in ROLES_WITHOUT_GPUS]
    needs = (
        [(first, TaskResources(cpus, gpus)), (rest, TaskResources(cpus, 0))]
        if gpus
        else [(list(nodes), TaskResources(cpus, 0))]
    )
    groups = tuple(Group(tuple(ns), need) for ns, need in needs if ns)
    for group in groups:
        _require_possible(group.need, requested, settings)
    return groups


def _require_possible(need: TaskResources, requested: NodeResources, settings: Settings) -> None:
    if need != settings.task and not settings.manager.has_profiles:
        _refuse_without_profiles(need, requested, settings)
    if need.gpus > settings.executor_gpus and (settings.executor_gpus or not settings.dynamic):
        has = f"spark.executor.resource.gpu.amount is {settings.executor_gpus or 'not set'}"
        raise ResourceError(
            f"Each node needs {shown(need.gpus)} GPU(s), but an executor has {settings.executor_gpus}: {has}.",
            hint=f"Set {GPU_SETTINGS.get(settings.manager.value, 'it')}, or pass gpus_per_node=0.",
        )
    if settings.executor_cpus is not None and need.cpus > settings.executor_cpus:
        raise ResourceError(
            f"Each node needs {shown(need.cpus)} CPUs, but an executor has {settings.executor_cpus}.",
            hint="Raise spark.executor.cores, or lower cpus_per_node (spark.task.cpus if it is not given).",
        )


def _refuse_without_profiles(need: TaskResources, requested: NodeResources, settings: Settings) -> None:
    asked = [
        f"{name}={shown(value)}"
        for name, value in (("gpus_per_node", requested.gpus), ("cpus_per_node", requested.cpus))
        if value is not None
    ] + (["spread=True"] if requested.spread else [])
    raise ResourceError(
        f"{', '.join(asked) or str(need)} per node: with this master Spark gives every task {settings.task}.",
        hint="Master local[n] knows no GPUs and no resource profiles: use local-cluster[executors,cores,MB], a "
        "standalone master, YARN or Kubernetes. One node alone can be shown a GPU by "
        'Cluster(env={"CUDA_VISIBLE_DEVICES": "0"}).',
    )


def _cpus_of_executor(settings: Settings, executors: Iterable[Executor]) -> int:
    # A node with more than half of the CPUs of the largest executor leaves no room for a second node on any executor.
    return settings.executor_cpus or max((e.cpus for e in executors), default=1)


def feeding_need(groups: Sequence[Group], settings: Settings, executors: Sequence[Executor]) -> TaskResources:
    """Return the resources of a feed task: the default of all tasks, or no GPU if the nodes leave none."""
    task = settings.task
    if not task.gpus or settings.dynamic or not settings.manager.has_profiles:
        return task
    starves = find_shortage(groups, task, executors) is not None
    return (
        TaskResources(task.cpus, 0)
        if starves and find_shortage(groups, TaskResources(task.cpus), executors) is None
        else task
    )


def executors_of(cores: int, master: str, settings: Settings) -> list[Executor]:
    """Return executors that have `cores` in all: of the size in `master` or the settings, else one with all cores."""
    local_cluster = re.match(r"local-cluster\[\s*\d+\s*,\s*(\d+)", master)
    each = int(local_cluster[1]) if local_cluster else settings.executor_cpus or cores
    return [Executor(each, settings.executor_gpus)] * max(1, cores // each)


def without_tasks(executors: Sequence[Executor], tasks: int, need: TaskResources) -> list[Executor]:
    """Return what executors have left beside `tasks` tasks, each on the executor with the most CPUs left."""
    left = list(executors)
    for _ in range(tasks if left else 0):
        left.sort(key=lambda e: e.cpus)
        left[-1] = replace(left[-1], cpus=max(0, left[-1].cpus - -(-need.cpus // 1)))
    return left


# --- does it fit


@dataclass(frozen=True)
class Shortage:
    """A task that finds no executor.

    Attributes
    ----------
    group
        Group of the node whose task it is; ``None`` for a feed task.
    of_gpus
        Whether GPUs are missing; otherwise CPUs are.
    """

    group: Group | None
    of_gpus: bool


class _Room:
    """CPUs and GPUs that an executor has left."""

    def __init__(self, executor: Executor) -> None:
        self.cpus = Fraction(executor.cpus)
        self.gpus = [Fraction(1)] * executor.gpus

    def gives_gpus(self, need: TaskResources) -> bool:
        if need.gpus > 1:
            return self.gpus.count(Fraction(1)) >= need.gpus
        return not need.gpus or any(g >= need.gpus for g in self.gpus)

    def take(self, need: TaskResources) -> bool:
        if self.cpus < need.cpus or not self.gives_gpus(need):
            return False
        self.cpus -= need.cpus
        # As Spark does it: take whole GPUs that are free, or a share of the first GPU that has enough left.
        for _ in range(int(need.gpus) if need.gpus >= 1 else bool(need.gpus)):
            share = min(Fraction(1), Fraction(need.gpus))
            self.gpus[next(i for i, g in enumerate(self.gpus) if g >= share)] -= share
        return True


def find_shortage(
    groups: Sequence[Group], feeding: TaskResources | None, executors: Sequence[Executor]
) -> Shortage | None:
    """Return the task that finds no executor if all nodes and a feed task run at once; ``None`` if all tasks fit."""
    rooms = [_Room(e) for e in executors]
    for group in groups:
        for _ in group.nodes:
            # Spark spreads tasks over executors.
            rooms.sort(key=lambda r: -r.cpus)
            if not any(r.take(group.need) for r in rooms):
                return Shortage(group, _lacks_gpus(rooms, group.need))
    if feeding is not None and not any(r.take(feeding) for r in rooms):
        return Shortage(None, _lacks_gpus(rooms, feeding))
    return None


def _lacks_gpus(rooms: Sequence[_Room], need: TaskResources) -> bool:
    return bool(need.gpus) and not any(r.gives_gpus(need) for r in rooms)


def shortage_error(
    shortage: Shortage,
    groups: Sequence[Group],
    feeding: TaskResources | None,
    executors: Sequence[Executor],
    settings: Settings,
    spread: bool = False,
) -> ResourceError:
    """Return the error of a shortage: what Spark has, what is needed, and which setting to change."""
    if not shortage.of_gpus and spread and shortage.group is not None:
        return _too_few_executors(groups, executors)
    if not shortage.of_gpus:
        return _too_few_cpus(groups, feeding, executors, settings)
    if shortage.group is None:
        assert feeding is not None
        share = shown(feeding.gpus)
        return ResourceError(
            f"A feed task needs {share} GPU(s) as spark.task.resource.gpu.amount is {share}, and the nodes leave none.",
            hint="Unset spark.task.resource.gpu.amount or lower it: gpus_per_node= asks for the GPUs of nodes, and "
            "nothing else needs any.",
        )
    nodes, need = shortage.group.nodes, shortage.group.need
    total = sum(e.gpus for e in executors)
    return ResourceError(
        f"Spark has {total} GPU(s) on {len(executors)} executor(s), but {len(nodes)} nodes need {shown(need.gpus)} "
        f"each: {shown(len(nodes) * need.gpus)} are needed.",
        hint="Ask for fewer workers, for gpus_per_node=0, or for more executors: spark.executor.instances, and on a "
        "standalone master spark.executor.cores and spark.cores.max, say how many there are, "
        "spark.executor.resource.gpu.amount how many GPUs each has.",
    )


def _too_few_executors(groups: Sequence[Group], executors: Sequence[Executor]) -> ResourceError:
    nodes = sum(len(g.nodes) for g in groups)
    cpus = groups[0].need.cpus
    fit = sum(e.cpus >= cpus for e in executors)
    return ResourceError(
        f"spread=True asks for {nodes} executors of at least {shown(cpus)} CPU(s), one for each node, but Spark has "
        f"{fit}.",
        hint="Raise spark.executor.instances, or ask for fewer workers. On a standalone master an executor takes "
        "all cores of its host unless spark.executor.cores says fewer.",
    )


def _too_few_cpus(
    groups: Sequence[Group], feeding: TaskResources | None, executors: Sequence[Executor], settings: Settings
) -> ResourceError:
    nodes = sum(len(g.nodes) for g in groups)
    cpus = max(g.need.cpus for g in groups)
    slots = sum(int(e.cpus // cpus) for e in executors)
    needed = nodes + (1 if feeding else 0)
    each = "" if cpus == 1 else f" of {shown(cpus)} CPU(s)"
    extra = " and 1 to feed them" if feeding else ""
    return ResourceError(
        f"Spark has {slots} task slot(s){each}, but {needed} are needed: {nodes} for the nodes, which hold theirs "
        f"until they end{extra}.",
        hint=_slots_hint(settings, needed, cpus),
    )


def _slots_hint(settings: Settings, needed: int, cpus: Amount) -> str:
    cores = -(-needed * cpus // 1)
    if settings.manager is Manager.LOCAL_CLUSTER:
        return f"Use a master of at least {cores} cores in all, such as local-cluster[2,{-(-cores // 2)},1024]."
    if settings.manager is Manager.LOCAL:
        return f"Use master local[{cores}] or fewer workers."
    return (
        f"Raise spark.executor.instances or spark.executor.cores to {cores} cores in all (a node takes {shown(cpus)}), "
        "raise spark.cores.max if it is set, or ask for fewer workers."
    )


def shown(amount: Amount) -> str:
    """Return an amount as users write it."""
    return str(int(amount)) if amount == int(amount) else f"{float(amount):g}"


def _amount(name: str, value: float | None) -> Fraction | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 31:
        raise ConfigurationError(f"{name} must be a number >= 0, got {value!r}.")
    return Fraction(str(value))
