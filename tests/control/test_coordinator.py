"""The driver's server and what feeds rely on, without Spark."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cloudpickle
import pytest

from tfspark import cluster as cluster_module
from tfspark import messages as m
from tfspark.control import events as ev
from tfspark.control import gang
from tfspark.control import lifecycle as lc
from tfspark.control.coordinator import TOGETHER_SECONDS, Coordinator
from tfspark.control.feeds import Feeding
from tfspark.errors import ClusterStopped, FeedError, NodeFailed
from tfspark.feeding.ledger import Target
from tfspark.monitoring.display import Display
from tfspark.settings import Settings
from tfspark.spec import NodeAddress, NodeId, plan_nodes
from tfspark.transport.auth import new_secret

pytestmark = pytest.mark.unit

Make = Callable[[tuple[NodeId, ...]], Coordinator]


@pytest.fixture
def running() -> Iterator[Make]:
    """Makes coordinators of nodes that have all registered."""
    made: list[Coordinator] = []

    def make(nodes: tuple[NodeId, ...]) -> Coordinator:
        coordinator = Coordinator("127.0.0.1", new_secret(), nodes, Settings(last_words_timeout=0.1), lambda: None)
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
    return Feeding(spark, "tag", nodes, new_secret(), Settings(last_words_timeout=0.1), Display(False))


def said(coordinator: Coordinator, index: int, epochs: list[int] | None) -> int | None:
    answer = coordinator._on_resume(m.Resume(NodeId("worker", index), epochs, 0.0))
    assert isinstance(answer, m.ResumeAnswer)
    return answer.epochs


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
        coordinator._on_finished(m.Finished(NodeId("worker", 1), 0))
        assert coordinator.resume_at == (3 if first else None)
        assert said(coordinator, 0, [3]) == 3


def test_nobody_goes_on_when_all_have_finished(running: Make) -> None:
    coordinator = running(plan_nodes(1))
    coordinator._on_finished(m.Finished(NodeId("worker", 0), 0))
    assert coordinator.resume_at is None and coordinator.undecided == []


def test_who_does_not_say_where_it_goes_on_is_named(
    running: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = running(plan_nodes(2))
    said(coordinator, 0, [5])
    threading.Timer(0.5, said, (coordinator, 1, [5])).start()
    spec = SimpleNamespace(settings=Settings(restore_warning=0.1))
    life = coordinator.lifecycle
    starting: Any = SimpleNamespace(coordinator=coordinator, life=life, _spec=spec, _progress=Display(False))
    assert gang.Gang._resumed_epochs(starting) == 5
    assert "waits for worker 1 to restore" in caplog.text and "worker 0" not in caplog.text


def test_a_feed_whose_job_did_not_even_end_when_cancelled_is_not_taken_for_delivered(running: Make) -> None:
    nodes = plan_nodes(1)
    coordinator = running(nodes)
    coordinator.post(ev.NodeFinished(nodes[0]))
    sending: Any = None
    with pytest.raises(FeedError, match="main returned on every node before all rows"):
        feeding_of(coordinator)._raise_failure(coordinator, [], sending, 0)
    feeding_of(coordinator)._raise_failure(coordinator, [None], sending, 0)


UDF_RAISED = """Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times, most recent failure: Lost task 0.3
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "job.py", line 7, in clean
ValueError: no number: 'n/a'
"""

WORKER_GONE = """Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times, most recent failure:
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
RuntimeError: worker 0 at host:2000 did not take the rows: Flight returned unavailable error
"""


@pytest.mark.parametrize(
    ("job_error", "raised", "words"),
    [
        (UDF_RAISED, FeedError, "ValueError: no number: 'n/a'"),
        ("[DIVIDE_BY_ZERO] Division by zero. SQLSTATE: 22012", FeedError, "Division by zero"),
        (WORKER_GONE, NodeFailed, "worker 0 on host failed: .* SIGKILL"),
        ("Job 7 cancelled part of cancelled job tags SQLSTATE: XXKDA", NodeFailed, "SIGKILL"),
        ("Job aborted: ExecutorLostFailure (executor 1 exited)", NodeFailed, "SIGKILL"),
    ],
)
def test_what_a_udf_raises_is_not_taken_for_the_loss_of_the_node_that_goes_with_it(
    running: Make, caplog: pytest.LogCaptureFixture, job_error: str, raised: type[Exception], words: str
) -> None:
    nodes = plan_nodes(1)
    coordinator = running(nodes)
    coordinator.post(ev.NodeExited(nodes[0], -signal.SIGKILL))
    sending: Any = None
    with pytest.raises(raised, match=words):
        feeding_of(coordinator)._raise_failure(coordinator, [RuntimeError(job_error)], sending, 0)
    assert ("While the feed job failed: worker 0 on host failed" in caplog.text) is (raised is FeedError)


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
        return coordinator._on_poll(m.Poll(node, since, 0.0)).events

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
        cluster_module.Cluster._feed(cluster, MagicMock(), MagicMock(), None)
    assert cluster.feed_reports == ([2, 3, 4] if streaming else [0, 1, 2, 3, 4])


def feed_of(number: int) -> m.FeedBegins:
    return m.FeedBegins(number, (), epochs=1, seed=0, in_memory=True, epochs_to_come=0, reproducible=False)


def test_messages_whose_answers_got_lost_may_come_twice(running: Make) -> None:
    nodes = plan_nodes(1)
    coordinator, node = running(nodes), nodes[0]
    address = coordinator.spec.address(node)
    for _ in range(2):
        coordinator._on_attach(m.Attach(node, 0, "host"))
        coordinator._on_register(m.Register(address))
        coordinator._on_entered(m.Entered(node))
    assert coordinator.lifecycle.records[node].state is lc.NodeState.RUNNING
    assert sum(isinstance(e, m.SpecComplete) for e in coordinator._events) == 1
    coordinator.begin_feed(feed_of(0), [Target(node, "host")])
    ask = m.Assign(0, 0, "upload", "host")
    assert coordinator._on_assign(ask) == coordinator._on_assign(ask) == m.AssignAnswer(address, ())
    commit = m.Commit(node, 0, 0, "upload", 3, 30)
    assert coordinator._on_commit(commit) == m.CommitAnswer(True)
    assert coordinator.end_feed(0)
    assert coordinator._on_commit(commit) == m.CommitAnswer(True), "it has been counted"
    assert coordinator._on_commit(m.Commit(node, 0, 0, "twin", 3, 30)) == m.CommitAnswer(False)
    result = cloudpickle.dumps(["done"] * 3)
    for offset in (0, 0, 5, 5):
        coordinator._on_result_part(
            m.ResultPart(node, offset, result[offset : offset + 5] if offset == 0 else result[5:])
        )
    for _ in range(2):
        coordinator._on_finished(m.Finished(node, len(result)))
    assert coordinator.results.load(node) == ["done"] * 3


def test_the_end_of_a_process_that_is_told_twice_is_one_loss(running: Make) -> None:
    nodes = plan_nodes(1, chief=True, ps=1)
    coordinator, node = running(nodes), NodeId("worker", 0)
    port = coordinator.spec.address(node).port
    for process in (0, 0, 1, 1):
        assert coordinator._on_exited(m.Exited(node, -9, process=process)) == m.ExitedAnswer(port)
    assert coordinator.losses == coordinator.lifecycle.records[node].rejoins == 2


def test_a_heartbeat_brings_the_pulse_of_the_process(running: Make) -> None:
    coordinator, node = running(plan_nodes(2)), NodeId("worker", 1)
    assert coordinator.lifecycle.records[node].last_pulse is None
    coordinator._on_heartbeat(m.Heartbeat(node))
    assert coordinator.lifecycle.records[node].last_pulse is None
    coordinator._on_heartbeat(m.Heartbeat(node, pulse=m.Pulse(node, 0.0, 42)))
    assert coordinator.lifecycle.records[node].last_pulse is not None
    assert coordinator.histories[node].latest.rows_read == 42
    coordinator._on_finished(m.Finished(node, 0, rows_read=50))
    coordinator._on_heartbeat(m.Heartbeat(node, pulse=m.Pulse(node, 0.0, 43)))
    assert coordinator.histories[node].latest.rows_read == 50, "the pulse was sent before the end"


def test_many_nodes_send_their_signs_of_life_later_and_together(running: Make) -> None:
    def due(nodes: int, kind: str) -> tuple[float, float]:
        coordinator = running(plan_nodes(nodes))
        node = NodeId("worker", 0)
        if kind == "heartbeat":
            answer: Any = coordinator._on_heartbeat(m.Heartbeat(node))
        else:
            answer = coordinator._on_pulse(m.Pulse(node, 0.0, 0))
        return answer.seconds, (time.monotonic() + answer.seconds) % TOGETHER_SECONDS

    assert due(2, "heartbeat")[0] == Settings.heartbeat_interval and due(2, "pulse")[0] == Settings.pulse_interval
    longest = Settings.longest_interval
    for nodes, least, most in [(400, 1.0, 4 / 3), (2000, longest - TOGETHER_SECONDS, longest)]:
        for kind in ("heartbeat", "pulse"):
            seconds, phase = due(nodes, kind)
            assert least <= seconds <= most
            # A moment later than the time that it was made for.
            assert min(phase, TOGETHER_SECONDS - phase) < 0.1
