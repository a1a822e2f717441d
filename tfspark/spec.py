"""Who is in a cluster: roles, node identities, addresses, and the TF_CONFIG made from them.

Pure data; used by every process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tfspark.errors import ConfigurationError


class Role(str, Enum):
    """A node's job in the cluster, in TensorFlow's own words."""

    CHIEF = "chief"
    WORKER = "worker"
    PS = "ps"
    EVALUATOR = "evaluator"


ROLES_WITHOUT_GPUS = (Role.PS.value, "evaluator")
"""They wait most of the time, and those that train would miss a GPU."""


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
    """Where a node listens: ``port`` is TensorFlow's, ``data_port`` the one its rows are fed to."""

    node: NodeId
    host: str
    port: int
    data_port: int
    pid: int


def plan_nodes(workers: int, chief: bool = False, ps: int = 0, evaluator: bool = False) -> tuple[NodeId, ...]:
    """List the nodes of a cluster, chief first. Parameter servers need a chief, which is there then in any case.

    Raises
    ------
    ConfigurationError
        If a count is not a whole number or there is no node to train on.
    """
    for name, value in (("workers", workers), ("ps", ps)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{name} must be a whole number, not {value!r}.")
    if ps < 0:
        raise ConfigurationError(f"ps={ps}: there cannot be fewer than no parameter servers.")
    if workers < 1:
        raise ConfigurationError(
            f"workers={workers}: a cluster needs at least one worker.",
            hint="Pass workers=1 for training in one process, more to train in parallel.",
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
        If `strategy` is no name of one, or does not go with the nodes.
    """
    try:
        name = StrategyName(strategy)
    except ValueError:
        known = [s.value for s in StrategyName]
        raise ConfigurationError(f"strategy must be a function or one of {known}, not {strategy!r}.") from None
    has_ps = any(n.role == Role.PS.value for n in nodes)
    if name is StrategyName.AUTO:
        if has_ps:
            return StrategyName.PARAMETER_SERVER
        return name
    if has_ps != (name is StrategyName.PARAMETER_SERVER):
        raise ConfigurationError(
            f"strategy={name.value!r} with {'' if has_ps else 'no '}parameter servers.",
            hint="Pass ps=1 or more with strategy='parameter_server', and only with it.",
        )
    return name


def training_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that are fed: with parameter servers the workers, else workers and chief."""
    if any(n.role == Role.PS.value for n in nodes):
        return tuple(n for n in nodes if n.role == Role.WORKER.value)
    return tuple(n for n in nodes if n.role != Role.EVALUATOR.value)


def server_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that do as the chief says instead of calling ``main``."""
    if any(n.role == Role.PS.value for n in nodes):
        return tuple(n for n in nodes if n.role in (Role.WORKER.value, Role.PS.value))
    return ()


def rejoining_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that may be lost and come back while the others go on: the workers of parameter servers."""
    return tuple(n for n in server_nodes(nodes) if n.role == Role.WORKER.value)


def resuming_nodes(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes that agree on the checkpoint that training goes on from: all that call ``main`` and train."""
    servers = server_nodes(nodes)
    return tuple(n for n in nodes if n not in servers and n.role != Role.EVALUATOR.value)


@dataclass(frozen=True)
class ClusterSpec:
    """The addresses of all nodes, in the order of `plan_nodes`."""

    nodes: tuple[NodeAddress, ...]

    def address(self, node: NodeId) -> NodeAddress:
        """Return where `node` listens."""
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
            host = f"[{a.host}]" if ":" in a.host else a.host
            jobs.setdefault(a.node.role, []).append(f"{host}:{a.port}")
        return jobs

    def tf_config(self, node: NodeId) -> str:
        """Return the value of the ``TF_CONFIG`` variable for `node`."""
        return json.dumps({"cluster": self.jobs, "task": {"type": node.role, "index": node.index}})


def is_chief(node: NodeId, nodes: Sequence[NodeId]) -> bool:
    """Tell whether `node` is the one that saves and exports: the chief, else worker 0."""
    has_chief = any(n.role == Role.CHIEF.value for n in nodes)
    leader = NodeId(Role.CHIEF.value if has_chief else Role.WORKER.value, 0)
    return node == leader


def spec_to_json(spec: ClusterSpec) -> list[dict[str, Any]]:
    """Encode a cluster spec for the wire."""
    return [
        {"role": a.node.role, "index": a.node.index, "host": a.host, "port": a.port,
         "data_port": a.data_port, "pid": a.pid}
        for a in spec.nodes
    ]  # fmt: skip


def spec_from_json(data: Sequence[dict[str, Any]]) -> ClusterSpec:
    """Decode what `spec_to_json` made."""
    return ClusterSpec(
        tuple(NodeAddress(NodeId(d["role"], d["index"]), d["host"], d["port"], d["data_port"], d["pid"]) for d in data)
    )
