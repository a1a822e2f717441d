"""The nodes of a cluster: roles, node identities, addresses, and the TF_CONFIG made from them.

Pure data; used by every process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tfspark.errors import ConfigurationError
from tfspark.host_names import in_url


class Role(str, Enum):
    """A node's role in the cluster; the names are TensorFlow's."""

    CHIEF = "chief"
    WORKER = "worker"
    PS = "ps"
    EVALUATOR = "evaluator"


ROLES_WITHOUT_GPUS = (Role.PS.value, "evaluator")
"""Roles that get no GPU: they wait most of the time, and training nodes need the GPUs."""


class StrategyName(str, Enum):
    """How the nodes of a cluster train together; the values that ``Cluster(strategy=...)`` takes.

    ``auto`` is tfspark's own engine (see `tfspark.node.keras`), or, with parameter servers, TensorFlow's
    ``ParameterServerStrategy``.
    """

    AUTO = "auto"
    MULTI_WORKER_MIRRORED = "multi_worker_mirrored"
    PARAMETER_SERVER = "parameter_server"
    NONE = "none"


@dataclass(frozen=True, order=True)
class NodeId:
    """One node: its role and its index within the role."""

    role: str
    index: int

    def __str__(self) -> str:
        return f"{self.role} {self.index}"

    @property
    def key(self) -> tuple[str, int]:
        """The key under which `Cluster.results` holds this node's return value."""
        return (self.role, self.index)


@dataclass(frozen=True)
class NodeAddress:
    """The address on which a node listens: ``port`` is for TensorFlow, ``data_port`` for the rows that are fed."""

    node: NodeId
    host: str
    port: int
    data_port: int
    pid: int


def plan_nodes(workers: int, chief: bool = False, ps: int = 0, evaluator: bool = False) -> tuple[NodeId, ...]:
    """List the nodes of a cluster, chief first. A cluster with parameter servers always has a chief.

    Raises
    ------
    ConfigurationError
        If a count is not a whole number, ``ps`` is negative, or ``workers`` is less than 1.
    """
    for name, value in (("workers", workers), ("ps", ps)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{name} must be a whole number, got {value!r}.")
    if ps < 0:
        raise ConfigurationError(f"ps must be >= 0, got {ps}.")
    if workers < 1:
        raise ConfigurationError(
            f"workers must be >= 1, got {workers}.",
            hint="Pass workers=1 to train in one process, or more to train in parallel.",
        )
    nodes = [NodeId(Role.CHIEF.value, 0)] if chief or ps else []
    nodes += [NodeId(Role.WORKER.value, i) for i in range(workers)]
    nodes += [NodeId(Role.PS.value, i) for i in range(ps)]
    nodes += [NodeId(Role.EVALUATOR.value, 0)] if evaluator else []
    return tuple(nodes)


def plan_strategy(strategy: str, nodes: Sequence[NodeId]) -> StrategyName:
    """Decide how nodes train together.

    Raises
    ------
    ConfigurationError
        If `strategy` is not the name of a strategy, or does not fit the nodes.
    """
    try:
        name = StrategyName(strategy)
    except ValueError:
        known = [s.value for s in StrategyName]
        raise ConfigurationError(f"strategy must be a function or one of {known}, got {strategy!r}.") from None
    has_ps = any(n.role == Role.PS.value for n in nodes)
    if name is StrategyName.AUTO:
        if has_ps:
            return StrategyName.PARAMETER_SERVER
        return name
    if has_ps != (name is StrategyName.PARAMETER_SERVER):
        raise ConfigurationError(
            f"strategy={name.value!r} does not work with {'' if has_ps else 'no '}parameter servers.",
            hint="Pass strategy='parameter_server' with ps=1 or more; pass the other strategies with ps=0.",
        )
    return name


def training_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that are fed rows: with parameter servers the workers, else the workers and the chief."""
    if any(n.role == Role.PS.value for n in nodes):
        return tuple(n for n in nodes if n.role == Role.WORKER.value)
    return tuple(n for n in nodes if n.role != Role.EVALUATOR.value)


def server_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that run TensorFlow's server for the chief instead of calling ``main``."""
    if any(n.role == Role.PS.value for n in nodes):
        return tuple(n for n in nodes if n.role in (Role.WORKER.value, Role.PS.value))
    return ()


def rejoining_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that may fail and rejoin while the others continue: workers of a parameter server cluster."""
    return tuple(n for n in server_nodes(nodes) if n.role == Role.WORKER.value)


def resuming_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that agree on the checkpoint to resume from: all nodes that call ``main`` and train."""
    servers = server_nodes(nodes)
    return tuple(n for n in nodes if n not in servers and n.role != Role.EVALUATOR.value)


@dataclass(frozen=True)
class ClusterSpec:
    """The addresses of all nodes, in the order of `plan_nodes`."""

    nodes: tuple[NodeAddress, ...]

    def address(self, node: NodeId) -> NodeAddress:
        """Return the address of `node`."""
        for address in self.nodes:
            if address.node == node:
                return address
        raise KeyError(node)

    @property
    def jobs(self) -> dict[str, list[str]]:
        """``{"worker": ["host:port", ...]}``, as ``tf.train.ClusterSpec`` takes it: without the evaluator."""
        jobs: dict[str, list[str]] = {}
        for a in self.nodes:
            if a.node.role == Role.EVALUATOR.value:
                continue
            jobs.setdefault(a.node.role, []).append(f"{in_url(a.host)}:{a.port}")
        return jobs

    def tf_config(self, node: NodeId) -> str:
        """Return the value of the ``TF_CONFIG`` variable for `node`."""
        return json.dumps({"cluster": self.jobs, "task": {"type": node.role, "index": node.index}})


def is_chief(node: NodeId, nodes: Sequence[NodeId]) -> bool:
    """Return whether `node` saves and exports for the cluster: the chief does, or worker 0 if there is no chief."""
    has_chief = any(n.role == Role.CHIEF.value for n in nodes)
    leader = NodeId(Role.CHIEF.value if has_chief else Role.WORKER.value, 0)
    return node == leader
