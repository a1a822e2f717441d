"""The driver's server and what feeds rely on, without Spark."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tfspark.driver import events as ev
from tfspark.driver import lifecycle as lc
from tfspark.driver.coordinator import Coordinator
from tfspark.driver.display import Display
from tfspark.driver.feeding import Feeding
from tfspark.errors import ClusterStopped, FeedError
from tfspark.spec import NodeAddress, NodeId, plan_nodes
from tfspark.transport.auth import new_secret

Make = Callable[[tuple[NodeId, ...]], Coordinator]


@pytest.fixture
def running() -> Iterator[Make]:
    """Makes coordinators of nodes that have all registered."""
    made: list[Coordinator] = []

    def make(nodes: tuple[NodeId, ...]) -> Coordinator:
        coordinator = Coordinator("127.0.0.1", new_secret(), nodes, lc.Limits(last_words=0.1), lambda: None)
        made.append(coordinator)
        for i, node in enumerate(nodes):
            coordinator.post(ev.TaskAttached(node, "host", 0))
            coordinator.post(ev.NodeRegistered(NodeAddress(node, "host", 1000 + i, 2000 + i, 3000 + i)))
        assert coordinator.lifecycle.phase is lc.Phase.RUNNING
        return coordinator

    yield make
    for coordinator in made:
        coordinator.close()


def feeding_of(coordinator: Coordinator) -> Feeding:
    nodes = tuple(coordinator.lifecycle.nodes)
    spark: Any = None
    return Feeding(spark, "tag", nodes, new_secret(), coordinator.lifecycle.limits, Display(False))


def test_a_feed_whose_job_did_not_even_end_when_cancelled_is_not_taken_for_delivered(running: Make) -> None:
    nodes = plan_nodes(1)
    coordinator = running(nodes)
    coordinator.post(ev.NodeFinished(nodes[0]))
    sending: Any = None
    with pytest.raises(FeedError, match="Every main had returned"):
        feeding_of(coordinator)._raise_failure(coordinator, [], sending, 0)
    feeding_of(coordinator)._raise_failure(coordinator, [None], sending, 0)


@pytest.mark.parametrize("comes_back", [True, False])
def test_rows_that_only_a_lost_worker_can_take_wait_until_it_is_back(
    running: Make, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    nodes = plan_nodes(2, ps=1)
    coordinator = running(nodes)
    feeding = feeding_of(coordinator)
    lost = NodeId("worker", 1)
    away: list[set[NodeId]] = []

    def later() -> None:
        if comes_back:
            coordinator.post(ev.NodeRegistered(NodeAddress(lost, "host", 1, 2, 3)))
        else:
            coordinator.post(ev.StopAsked("it takes too long"))

    def run_job(*_: Any) -> None:
        away.append(coordinator.away)
        if len(away) == 1:
            coordinator.post(ev.NodeExited(lost, -9))
            threading.Timer(0.3, later).start()
            raise FeedError("worker 1 did not take the rows")

    monkeypatch.setattr(feeding, "_run_job", run_job)
    entry: Any = None
    if comes_back:
        feeding._deliver(coordinator, entry)
        assert away == [set(), set()]
    else:
        with pytest.raises(ClusterStopped, match="it takes too long"):
            feeding._deliver(coordinator, entry)
        assert len(away) == 1
