"""Roles, addresses, TF_CONFIG."""

from __future__ import annotations

import json

import pytest

from tfspark.errors import ConfigurationError
from tfspark.messages import SpecComplete
from tfspark.spec import ClusterSpec, NodeAddress, NodeId, is_chief, plan_nodes

pytestmark = pytest.mark.unit


def test_worker_zero_is_the_chief_unless_there_is_one() -> None:
    assert [is_chief(n, plan_nodes(2)) for n in plan_nodes(2)] == [True, False]
    assert [is_chief(n, plan_nodes(2, chief=True)) for n in plan_nodes(2, chief=True)] == [True, False, False]


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, None, "2"])
def test_a_count_that_is_no_positive_whole_number_is_refused(workers: object) -> None:
    with pytest.raises(ConfigurationError, match="workers"):
        plan_nodes(workers)  # type: ignore[arg-type]


def test_tf_config_names_every_node_and_brackets_ipv6() -> None:
    spec = ClusterSpec(
        (
            NodeAddress(NodeId("worker", 0), "10.0.0.1", 1, 2, 3),
            NodeAddress(NodeId("worker", 1), "fd00::2", 4, 5, 6),
        )
    )
    assert json.loads(spec.tf_config(NodeId("worker", 1))) == {
        "cluster": {"worker": ["10.0.0.1:1", "[fd00::2]:4"]},
        "task": {"type": "worker", "index": 1},
    }
    assert SpecComplete.decode(SpecComplete(spec.nodes).encode()).nodes == spec.nodes
