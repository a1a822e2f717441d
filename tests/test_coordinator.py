"""The driver's server and what feeds rely on, without Spark."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from tfspark.driver import cluster as cluster_module
from tfspark.driver import events as ev
from tfspark.driver import gang
from tfspark.driver import lifecycle as lc
from tfspark.driver.coordinator import Coordinator
from tfspark.driver.display import Display
from tfspark.driver.feeding import Feeding
from tfspark.errors import ClusterStopped, FeedError
from tfspark.spec import NodeAddress, NodeId, plan_nodes
from tfspark.transport import messages as m
from tfspark.transport.auth import new_secret

pytestmark = pytest.mark.unit

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


def said(coordinator: Coordinator, index: int, epochs: list[int] | None) -> int | None:
    answer = json.loads(coordinator._on_resume(m.Resume("worker", index, epochs, 0.0)))
    agreed: int | None = answer["epochs"]
    return agreed


@pytest.mark.parametrize(
    ("first", "second", "agreed"),
    [([3, 4, 5], [2, 3, 4], 4), ([4, 5, 6], [1, 2, 3], 0), ([3], [], 0), ([2, 3], None, 3), (None, None, 0)],
)
def test_nodes_go_on_from_the_last_epoch_that_all_have(running: Make, first: Any, second: Any, agreed: int) -> None:
    coordinator = running(plan_nodes(2))
    assert said(coordinator, 0, first) is None
    assert coordinator.undecided == [NodeId("worker", 1)]
    assert said(coordinator, 1, second) == agreed == coordinator.resume_at


def test_a_node_that_has_said_what_it_has_and_serves_besides_is_waited_for(running: Make) -> None:
    coordinator = running(plan_nodes(2))
    assert said(coordinator, 0, [1]) is said(coordinator, 0, None) is None
    assert said(coordinator, 1, [1, 2]) == 1


def test_a_node_that_has_finished_is_not_waited_for(running: Make) -> None:
    for first in (True, False):
        coordinator = running(plan_nodes(2))
        if first:
            assert said(coordinator, 0, [3]) is None
        coordinator._on_finished(m.Finished("worker", 1, b""))
        assert coordinator.resume_at == (3 if first else None)
        assert said(coordinator, 0, [3]) == 3


def test_nobody_goes_on_when_all_have_finished(running: Make) -> None:
    coordinator = running(plan_nodes(1))
    coordinator._on_finished(m.Finished("worker", 0, b""))
    assert coordinator.resume_at is None and coordinator.undecided == []


def test_who_does_not_say_where_it_goes_on_is_named(
    running: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gang, "UNDECIDED_SECONDS", 0.1)
    coordinator = running(plan_nodes(2))
    said(coordinator, 0, [5])
    threading.Timer(0.5, said, (coordinator, 1, [5])).start()
    starting: Any = SimpleNamespace(coordinator=coordinator, life=coordinator.lifecycle, _display=Display(False))
    assert gang.Gang._resumed_epochs(starting) == 5
    assert "waits for worker 1 to restore" in caplog.text and "worker 0" not in caplog.text


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


@pytest.mark.parametrize("ps", [0, 1])
def test_events_that_all_nodes_have_are_let_go_of_unless_one_may_come_back(running: Make, ps: int) -> None:
    nodes = plan_nodes(2, ps=ps)
    coordinator = running(nodes)
    for i in range(10):
        coordinator.publish(m.FeedCancelled(i, ""))

    def poll(node: NodeId, since: int) -> list[Any]:
        return m.decode_events(coordinator._on_poll(m.Poll(node.role, node.index, since, 0.0)))

    assert all(len(poll(n, 0)) == 11 for n in nodes)
    assert [e.feed for e in poll(nodes[0], 9)] == [8, 9]
    for node in nodes[1:]:
        poll(node, 7)
    assert len(coordinator._events) == (11 if ps else 4)
    assert [e.feed for e in poll(nodes[1], 7)] == [6, 7, 8, 9]
    assert [e.feed for e in poll(nodes[0], 10)] == [9] and poll(nodes[0], 11) == []
    coordinator.publish(m.FeedCancelled(10, ""))
    assert [e.feed for e in poll(nodes[0], 11)] == [10]
    for node in nodes:
        poll(node, 12)
    assert len(coordinator._events) == (12 if ps else 0)


@pytest.mark.parametrize("streaming", [True, False])
def test_of_a_stream_the_newest_reports_are_kept(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    monkeypatch.setattr(cluster_module, "KEPT_REPORTS", 3)
    cluster: Any = MagicMock(feed_reports=[], _streams=MagicMock(begun=streaming))
    cluster._recovering.side_effect = range(5)
    for _ in range(5):
        cluster_module.Cluster._feed(cluster, MagicMock(), (), MagicMock(), None)
    assert cluster.feed_reports == ([2, 3, 4] if streaming else [0, 1, 2, 3, 4])
