"""The nodes of a cluster of the old API: their job names, the cluster spec and ``TF_CONFIG``. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfspark.errors import ConfigurationError

BACKGROUND = ("ps", "evaluator")
"""Job names of background nodes: they get no rows, and end when the other nodes have ended."""


@dataclass(frozen=True)
class Member:
    """One node; its ``executor_id`` is the index of its tfspark worker."""

    executor_id: int
    job_name: str
    task_index: int

    @property
    def in_background(self) -> bool:
        """Whether the node is a background node."""
        return self.job_name in BACKGROUND


def plan_members(
    num_executors: int, num_ps: int, master_node: str | None = None, eval_node: bool = False
) -> tuple[Member, ...]:
    """Return the nodes of a cluster: parameter servers, then master, evaluator and workers.

    Raises
    ------
    ConfigurationError
        If the numbers of nodes do not fit `num_executors`, or no node trains.
    """
    masters, evaluators = int(bool(master_node)), int(bool(eval_node))
    workers = num_executors - num_ps - masters - evaluators
    if num_ps < 0 or workers < 0:
        raise ConfigurationError(
            f"{num_ps} parameter servers, {masters} master and {evaluators} evaluator need more than "
            f"{num_executors} executors."
        )
    if masters + workers < 1:
        raise ConfigurationError(
            f"No executor is left for a worker: all {num_executors} would be parameter servers or evaluator.",
            hint="num_executors counts every node; leave at least one for a worker or a master.",
        )
    names = ["ps"] * num_ps + [str(master_node)] * masters + ["evaluator"] * evaluators + ["worker"] * workers
    return tuple(Member(i, name, names[:i].count(name)) for i, name in enumerate(names))


def cluster_spec(members: Sequence[Member], addresses: Sequence[str]) -> dict[str, list[str]]:
    """Return the addresses of all nodes by job name, in the order of `members`."""
    spec: dict[str, list[str]] = {}
    for member, address in zip(members, addresses, strict=True):
        spec.setdefault(member.job_name, []).append(address)
    return spec


def tf_config(member: Member, spec: Mapping[str, Sequence[str]]) -> str | None:
    """Return the ``TF_CONFIG`` of a node; ``None`` if there is no master or chief, so that each worker trains alone.

    TensorFlow 2 has a ``chief`` instead of a ``master``, and requires that the cluster does not list the evaluator.
    """
    if not {"chief", "master"} & set(spec):
        return None
    names = {"master": "chief"}
    cluster = {names.get(job, job): list(hosts) for job, hosts in spec.items() if job != "evaluator"}
    task = {"type": names.get(member.job_name, member.job_name), "index": member.task_index}
    return json.dumps({"cluster": cluster, "task": task, "environment": "cloud"})
