"""The cluster's state machine: what it decides on, in every order in which things may happen."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspark.control import events as ev
from tfspark.control import lifecycle as lc
from tfspark.control.story import KEPT_ENTRIES, IllegalTransition
from tfspark.errors import ClusterError, ClusterStopped, FeedError, NodeFailed, StartTimeout, StepTimeout
from tfspark.spec import NodeAddress, NodeId

pytestmark = pytest.mark.unit

NODES = (NodeId("worker", 0), NodeId("worker", 1))
LIMITS = lc.Limits(start=100.0, silence=8.0, last_words=2.0, grace=5.0, job_end=8.0)


class Machine:
    """A lifecycle and what it has told to do."""

    def __init__(self) -> None:
        self.life = lc.Lifecycle(NODES, LIMITS, 0.0)
        self.told: list[Any] = []
        self.now = 0.0

    def __call__(self, *events: Any, after: float = 0.0) -> list[Any]:
        self.now += after
        told = [i for e in events for i in self.life.handle(e, self.now)]
        self.told += told
        return told

    def start(self) -> Machine:
        for n in NODES:
            self(ev.TaskAttached(n, "host", 0), ev.NodeRegistered(address(n)))
        self(*(ev.NodeEntered(n) for n in NODES))
        return self

    @property
    def error(self) -> Any:
        concluded = [i for i in self.told if isinstance(i, ev.Conclude)]
        assert len(concluded) == 1
        return concluded[0].error


def address(node: NodeId) -> NodeAddress:
    return NodeAddress(node, "host", 1000 + node.index, 2000 + node.index, 3000 + node.index)


def kinds(instructions: list[Any]) -> list[str]:
    return [type(i).__name__ for i in instructions]


def test_a_good_life() -> None:
    m = Machine()
    assert m(ev.TaskAttached(NODES[0], "host", 0), ev.NodeRegistered(address(NODES[0]))) == []
    assert kinds(m(ev.NodeRegistered(address(NODES[1])))) == ["PublishSpec"]
    assert m(*(ev.NodeEntered(n) for n in NODES), ev.NodeFinished(NODES[1])) == []
    assert kinds(m(ev.NodeFinished(NODES[0]))) == ["PublishRelease", "Conclude"]
    assert m(ev.NodeExited(NODES[0], 0), ev.NodeExited(NODES[1], 0), ev.JobEnded()) == []
    assert m.error is None and m.life.over and m.life.phase is lc.Phase.FINISHED


def test_an_exception_in_main_waits_for_the_last_log_lines() -> None:
    m = Machine().start()
    raised = ev.NodeRaised(NODES[1], "ValueError: no", "Traceback ...", "try again")
    assert kinds(m(raised)) == ["PublishStop"]
    m(ev.NodeExited(NODES[1], 1, ("the last", "words")))
    assert isinstance(m.error, NodeFailed)
    assert (m.error.index, m.error.reason, m.error.log_tail) == (1, "ValueError: no", ("the last", "words"))
    assert m.error.hint == "try again"


def test_last_words_are_not_waited_for_for_ever() -> None:
    m = Machine().start()
    m(ev.NodeRaised(NODES[0], "ValueError: no", ""))
    assert m(ev.Tick(), after=1.9) == []
    assert kinds(m(ev.Tick(), after=0.2)) == ["Conclude"]
    assert m.error.reason == "ValueError: no"


def test_the_first_failure_is_the_one_that_is_told() -> None:
    m = Machine().start()
    m(ev.NodeExited(NODES[0], -9, ("killed",)), ev.NodeRaised(NODES[1], "UnavailableError: peer is gone", ""))
    m(ev.NodeExited(NODES[1], 1), ev.JobEnded("the job failed"))
    assert m.error.index == 0 and "SIGKILL" in m.error.reason and "out-of-memory" in m.error.hint


def test_what_the_kernel_killed_for_want_of_memory_is_told_as_such() -> None:
    m = Machine().start()
    m(ev.NodeExited(NODES[1], -9, out_of_memory=True))
    assert "SIGKILL: its host or container was out of memory" in m.error.reason
    assert "memoryOverhead" in m.error.hint


PEER_LOST = "tensorflow.python.framework.errors_impl.UnavailableError: Connection reset by peer"


def test_a_node_that_only_noticed_the_death_of_another_is_not_named() -> None:
    m = Machine().start()
    assert kinds(m(ev.NodeRaised(NODES[0], PEER_LOST, ""), ev.NodeExited(NODES[0], 1))) == ["PublishStop"]
    assert m(ev.Tick(), after=1.0) == []
    assert kinds(m(ev.NodeExited(NODES[1], -11))) == ["Conclude"]
    assert m.error.index == 1 and "SIGSEGV" in m.error.reason


def test_its_task_was_lost_or_its_host_is_silent() -> None:
    for loss, reason in (
        (ev.TaskAttached(NODES[1], "other", 1), "task was lost"),
        (ev.JobEnded("ExecutorLostFailure", NODES[1]), "task was lost"),
        (ev.Tick(), "no sign of life"),
    ):
        m = Machine().start()
        m(ev.NodeRaised(NODES[0], PEER_LOST, ""), ev.NodeExited(NODES[0], 1))
        m(loss, after=7.9)
        assert m(ev.Tick(), ev.Tick(), after=0.2) is not None
        assert m.error.index == 1 and reason in m.error.reason, m.error


def test_a_node_that_raised_such_an_error_of_its_own_accord_is_named_when_the_others_have_ended() -> None:
    m = Machine().start()
    m(ev.NodeRaised(NODES[0], PEER_LOST, ""), ev.NodeExited(NODES[0], 1))
    assert kinds(m(ev.NodeExited(NODES[1], -15, stopped_by_us=True))) == ["Conclude"]
    assert m.error.index == 0 and "UnavailableError" in m.error.reason


def test_silence_is_death() -> None:
    m = Machine().start()
    m(ev.Seen(NODES[0]), after=5.0)
    assert m(ev.Tick(), after=2.9) == []
    told = m(ev.Tick(), after=0.2)
    assert kinds(told)[0] == "PublishStop"
    m(ev.Tick(), after=0.1)
    assert m.error.index == 1 and "no sign of life for 8 s" in m.error.reason


def test_a_process_that_exists_but_says_nothing_hangs() -> None:
    m = Machine().start()
    m(*(ev.Pulse(n, 0.0) for n in NODES))
    for _ in range(10):
        assert m(*(ev.Seen(n) for n in NODES), ev.Pulse(NODES[0], 0.0), ev.Tick(), after=6.0) == []
    assert kinds(m(*(ev.Seen(n) for n in NODES), ev.Pulse(NODES[0], 0.0), ev.Tick(), after=1.0)) == ["PublishStop"]
    m(ev.Tick(), after=2.1)
    assert m.error.index == 1 and "has not answered for 61 s" in m.error.reason


def test_the_silent_one_is_to_blame_when_another_fails() -> None:
    m = Machine().start()
    m(*(ev.Pulse(n, 0.0) for n in NODES))
    m(ev.Seen(NODES[1]), ev.Pulse(NODES[0], 0.0), after=5.0)
    m(ev.NodeRaised(NODES[0], "UnavailableError: heartbeats", ""), ev.NodeExited(NODES[0], 1), ev.JobEnded())
    assert m.error.index == 1 and "has not answered for 5 s" in m.error.reason


def test_a_host_that_nothing_is_heard_of_is_to_blame_and_is_not_waited_for() -> None:
    m = Machine().start()
    m(*(ev.Seen(n) for n in NODES), *(ev.Pulse(n, 0.0) for n in NODES))
    m(ev.Seen(NODES[0]), ev.Pulse(NODES[0], 0.0), after=5.0)
    m(ev.NodeRaised(NODES[0], "UnavailableError: heartbeats", ""), ev.NodeExited(NODES[0], 1))
    assert kinds(m(ev.Tick(), after=0.1)) == ["Conclude"]
    assert m.error.index == 1 and "no sign of life for 5 s" in m.error.reason and "cut off" in m.error.hint
    assert m(ev.Tick(), after=2.8) == []
    assert kinds(m(ev.Tick(), after=0.2)) == ["CancelJob"]


def test_of_two_silent_processes_the_stopped_one_is_to_blame() -> None:
    m = Machine().start()
    m(ev.Pulse(NODES[0], 0.0))
    m(ev.Pulse(NODES[1], 0.0), after=1.0)
    for _ in range(10):
        m(ev.Seen(NODES[0]), ev.Seen(NODES[1], stopped=True), ev.Tick(), after=6.0)
    m(ev.Tick(), after=2.1)
    assert m.error.index == 1 and "it is stopped" in m.error.reason and "SIGSTOP" in m.error.hint


def test_a_process_that_is_stopped_before_its_first_pulse_is_named() -> None:
    m, hang = Machine(), 10.0
    m.life = lc.Lifecycle(NODES, replace(LIMITS, hang=hang), 0.0)
    m(*(ev.TaskAttached(n, "host", 1) for n in NODES))
    m(ev.Seen(NODES[0], stopped=True), ev.Seen(NODES[1]), ev.Tick(), after=1.0)
    for _ in range(3):
        assert m(ev.Seen(NODES[0], stopped=True), ev.Seen(NODES[1]), ev.Tick(), after=hang / 4) == []
    # One that has gone on has its time for the start again.
    m(ev.Seen(NODES[0]), ev.Seen(NODES[0], stopped=True))
    m(ev.Seen(NODES[0], stopped=True), ev.Seen(NODES[1]), ev.Tick(), after=hang / 2)
    assert m.life.phase is lc.Phase.STARTING
    m(ev.Seen(NODES[0], stopped=True), ev.Seen(NODES[1]), ev.Tick(), after=hang)
    m(ev.Tick(), after=LIMITS.last_words + 1)
    assert m.error.index == NODES[0].index and "it is stopped" in m.error.reason


def test_a_worker_without_data_is_named_and_is_not_dead() -> None:
    m = Machine().start()
    assert m(ev.Pulse(NODES[1], 29.0), ev.Pulse(NODES[0], 0.0)) == []
    assert m(ev.Pulse(NODES[1], 31.0), ev.Pulse(NODES[1], 32.0)) == [ev.WarnOfStall(NODES[1], 31.0)]
    assert m(ev.Pulse(NODES[1], 0.0), ev.Pulse(NODES[1], 50.0)) == [ev.WarnOfStall(NODES[1], 50.0)]
    assert m.life.phase is lc.Phase.RUNNING
    m.life.limits = replace(LIMITS, stall=60.0)
    assert kinds(m(ev.Pulse(NODES[1], 61.0))) == ["PublishStop", "Conclude"]
    assert isinstance(m.error, FeedError) and "worker 1 on host has waited 61 s" in str(m.error)


def test_workers_that_wait_for_one_another_in_a_step_are_shown_where_they_stand() -> None:
    m = Machine().start()
    m.life.limits = replace(LIMITS, step=60.0)
    m(ev.NodeEntered(NODES[0]), ev.NodeEntered(NODES[1]))
    stands = ev.Pulse(NODES[0], 0.0, 61.0, False, "in fit\n")
    for excuse in (ev.Pulse(NODES[1], 5.0), ev.Pulse(NODES[1], 0.0, busy=True)):
        assert m(excuse, stands) == []
    told = m(ev.Pulse(NODES[1], 0.0, 0.0, False, "in main\n"), stands)
    assert kinds(told) == ["PublishStop", "Conclude"]
    assert isinstance(m.error, StepTimeout)
    assert "worker 0 on host has stood in a training step for 61 s" in m.error.message
    assert "worker 1 on host stands here ---\nin main" in m.error.message


def test_a_task_that_starts_again_was_lost() -> None:
    m = Machine().start()
    m(ev.TaskAttached(NODES[1], "other", 1))
    m(ev.Tick(), after=0.1)
    assert m.error.index == 1 and "lost and started again" in m.error.reason


def test_nodes_that_do_not_come_are_named() -> None:
    m = Machine()
    m(ev.TaskAttached(NODES[0], "host", 0), ev.NodeRegistered(address(NODES[0])))
    for _ in range(25):
        m(ev.Seen(NODES[0]), after=4.0)
    told = m(ev.Tick(), after=1.0)
    assert kinds(told) == ["PublishStop", "CancelJob", "Conclude"]
    assert isinstance(m.error, StartTimeout) and "worker 1" in str(m.error) and "worker 0" not in str(m.error)


def test_a_job_that_fails_before_any_node_came() -> None:
    m = Machine()
    m(ev.JobEnded("no module named tfspark"))
    assert isinstance(m.error, ClusterError) and "no module named tfspark" in str(m.error)


def test_a_job_whose_spark_is_gone_was_stopped() -> None:
    from tfspark.control.node_jobs import job_ended

    m = Machine().start()
    m(job_ended(ConnectionRefusedError(111, "Connection refused"), NODES))
    assert isinstance(m.error, ClusterStopped) and "Spark's JVM is gone" in str(m.error)


def test_a_lost_task_names_its_node() -> None:
    m = Machine().start()
    m(ev.JobEnded("ExecutorLostFailure", blamed=NODES[1]))
    assert isinstance(m.error, NodeFailed) and m.error.index == 1


def test_stopping_takes_its_grace_and_then_cancels() -> None:
    m = Machine().start()
    told = m(ev.StopAsked("the user wants it"))
    assert kinds(told) == ["PublishStop", "Conclude"] and told[0].grace == 5.0
    assert isinstance(m.error, ClusterStopped) and "the user wants it" in str(m.error)
    assert m(ev.StopAsked("again"), ev.Seen(NODES[0]), ev.Tick(), after=12.9) == []
    assert kinds(m(ev.Tick(), after=0.2)) == ["CancelJob"]
    assert m(ev.Tick(), ev.JobEnded("cancelled"), after=100.0) == []
    assert m.life.over


EVENTS = st.one_of(
    st.builds(ev.TaskAttached, st.sampled_from(NODES), st.just("host"), st.integers(0, 1)),
    st.sampled_from([ev.NodeRegistered(address(n)) for n in NODES]),
    st.builds(ev.NodeEntered, st.sampled_from(NODES)),
    st.builds(ev.Seen, st.sampled_from(NODES)),
    st.builds(ev.Pulse, st.sampled_from(NODES), st.floats(0, 100)),
    st.builds(ev.NodeFinished, st.sampled_from(NODES)),
    st.builds(ev.NodeRaised, st.sampled_from(NODES), st.just("reason"), st.just("traceback")),
    st.builds(ev.NodeExited, st.sampled_from(NODES), st.sampled_from([0, 1, -9])),
    st.builds(ev.JobEnded, st.none() | st.just("error"), st.none() | st.sampled_from(NODES)),
    st.builds(ev.StopAsked, st.just("reason")),
    st.builds(ev.DriverCutOff, st.just("reason")),
    st.just(ev.Tick()),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 20)), max_size=30))
def test_whatever_happens_it_ends_and_concludes_once(history: list[tuple[Any, float]]) -> None:
    m = Machine()
    for event, after in history:
        with contextlib.suppress(IllegalTransition):
            m(event, after=after)
    # A cluster that nothing more is heard of is given up by its own deadlines.
    m(ev.Tick(), after=LIMITS.start + 1)
    for _ in range(3):
        m(ev.Tick(), after=LIMITS.silence + LIMITS.grace + LIMITS.job_end)
    stop = m(ev.StopAsked("the end"), ev.Tick(), after=1.0)
    stop += m(ev.Tick(), after=LIMITS.grace + LIMITS.job_end + 1)
    assert m.life.over or "CancelJob" in kinds(m.told) or m.life.phase is lc.Phase.FINISHED
    m(ev.JobEnded(None))
    assert kinds(m.told).count("Conclude") == 1
    assert kinds(m.told).count("CancelJob") <= 1 and kinds(m.told).count("PublishSpec") <= 1
    assert m.life.over


CHIEF, WORKER, SERVER, EVALUATOR = (NodeId(r, 0) for r in ("chief", "worker", "ps", "evaluator"))


def machine_of(*nodes: NodeId, servers: tuple[NodeId, ...] = (), rejoining: tuple[NodeId, ...] = ()) -> Machine:
    m = Machine()
    m.life = lc.Lifecycle(nodes, LIMITS, 0.0, servers, rejoining)
    for n in nodes:
        m(ev.TaskAttached(n, "host", 0, 3), ev.NodeRegistered(address(n)), ev.NodeEntered(n))
    return m


def test_the_evaluator_ends_after_the_others() -> None:
    m = machine_of(WORKER, EVALUATOR)
    assert kinds(m(ev.NodeFinished(WORKER))) == ["PublishTrainingEnded"]
    assert kinds(m(ev.NodeFinished(EVALUATOR))) == ["PublishRelease", "Conclude"]
    m = machine_of(WORKER, EVALUATOR)
    assert m(ev.NodeFinished(EVALUATOR)) == []
    assert kinds(m(ev.NodeFinished(WORKER))) == ["PublishRelease", "Conclude"]


def test_a_worker_of_parameter_servers_may_be_lost_and_come_back() -> None:
    m = machine_of(CHIEF, WORKER, SERVER, servers=(WORKER, SERVER), rejoining=(WORKER,))
    for _ in range(LIMITS.rejoins):
        assert m(ev.NodeExited(WORKER, -9)) == [ev.PublishLoss(WORKER, "its process was killed by SIGKILL")]
        assert m.life.records[WORKER].exited is None and m.life.phase is lc.Phase.RUNNING
        assert m(ev.NodeRegistered(replace(address(WORKER), pid=9))) == [ev.PublishRejoined(WORKER)]
        m(ev.NodeEntered(WORKER))
    assert kinds(m(ev.NodeExited(WORKER, -9))) == ["PublishStop", "Conclude"]
    assert m.error.role == "worker" and "SIGKILL" in m.error.reason


def test_a_worker_of_parameter_servers_that_hangs_is_killed_and_others_end_the_cluster() -> None:
    m = machine_of(CHIEF, WORKER, SERVER, servers=(WORKER, SERVER), rejoining=(WORKER,))
    for n in (CHIEF, WORKER, SERVER):
        m(ev.Pulse(n, 0.0))
    m.now += LIMITS.hang + 1
    m(*(ev.Seen(n, n == WORKER) for n in (CHIEF, WORKER, SERVER)), ev.Pulse(CHIEF, 0.0), ev.Pulse(SERVER, 0.0))
    assert m(ev.Tick()) == [] and m.life.records[WORKER].kill
    assert kinds(m(ev.NodeExited(WORKER, -9))) == ["PublishLoss"]
    assert not m.life.records[WORKER].kill
    assert kinds(m(ev.NodeExited(SERVER, -9))) == ["PublishStop", "Conclude"]


def test_nobody_hangs_while_a_lost_worker_is_awaited_which_has_its_time() -> None:
    for comes_back in (True, False):
        m = machine_of(CHIEF, WORKER, SERVER, servers=(WORKER, SERVER), rejoining=(WORKER,))
        m(ev.Pulse(CHIEF, 0.0), ev.NodeExited(WORKER, -9))
        m.now += LIMITS.hang + 1
        seen = [ev.Seen(n) for n in (CHIEF, WORKER, SERVER)]
        assert m(*seen, ev.Tick()) == []
        if comes_back:
            m(ev.NodeRegistered(address(WORKER)), ev.Tick())
            m.now += LIMITS.hang + 1
            assert kinds(m(*seen, ev.Tick())) == ["PublishStop"] and m.life.records[CHIEF].raised is not None
        else:
            m.now += LIMITS.start
            m(*seen, ev.Tick())
            m(ev.Tick(), after=0.5)
            assert m.error.role == "worker" and "did not come back" in m.error.reason


def test_a_cancelled_job_is_a_stop_and_a_lost_one_a_failure() -> None:
    for text in (
        "[SPARK_JOB_CANCELLED] Job 3 cancelled as part of cancellation of all jobs SQLSTATE: XXKDA",
        "Job 3 cancelled because SparkContext was shut down",
    ):
        m = Machine().start()
        m(ev.JobEnded(text))
        assert isinstance(m.error, ClusterStopped) and "Job 3" in str(m.error)
    m = Machine().start()
    m(ev.JobEnded("(org.apache.spark.SparkSQLException) [OPERATION_CANCELED] Operation has been canceled."))
    assert isinstance(m.error, ClusterStopped)
    m = Machine().start()
    m(ev.JobEnded("ExecutorLostFailure"))
    assert type(m.error) is ClusterError


def test_nodes_that_cannot_reach_the_driver_are_ended_by_spark() -> None:
    m = Machine().start()
    assert kinds(m(ev.DriverCutOff("its executor was lost"))) == ["CancelJob", "Conclude"]
    assert type(m.error) is ClusterError and "its executor was lost" in str(m.error)
    assert m(ev.DriverCutOff("again"), ev.Tick()) == []
    m = Machine().start()
    m(ev.DriverCutOff("[OPERATION_CANCELED] Operation has been canceled."))
    assert isinstance(m.error, ClusterStopped)


def test_mistakes_are_told_from_failures() -> None:
    for final in (False, True):
        m = Machine().start()
        m(ev.NodeRaised(NODES[0], "E", "", final=final), ev.NodeExited(NODES[0], 1))
        assert m.error.final is final


def ticking() -> Machine:
    m = Machine()
    m.life = lc.Lifecycle(NODES, LIMITS, 0.0, tick_seconds=0.25)
    m.start()
    m(*(ev.Pulse(n, 0.0) for n in NODES))
    return m


def test_time_in_which_the_driver_stood_still_is_nobodys_silence() -> None:
    for first in (ev.Tick(), ev.Seen(NODES[0])):
        m = ticking()
        m(ev.Tick(), after=0.25)
        assert m(first, ev.Tick(), after=LIMITS.hang + 10.0) == []
        for _ in range(30):
            assert m(*(ev.Seen(n) for n in NODES), ev.Pulse(NODES[0], 0.0), ev.Tick(), after=0.25) == []
        assert m.life.phase is lc.Phase.RUNNING


def test_who_is_silent_after_a_standstill_too_is_found_dead() -> None:
    m = ticking()
    m(ev.Tick(), after=20.0)
    for _ in range(31):
        assert m(ev.Seen(NODES[0]), ev.Tick(), after=0.25) == []
    assert kinds(m(ev.Seen(NODES[0]), ev.Tick(), after=0.25)) == ["PublishStop"]
    m(ev.Tick(), after=0.25)
    assert m.error.index == 1 and "no sign of life for 8 s" in m.error.reason


def test_a_peer_that_could_not_be_heard_during_a_standstill_is_not_blamed() -> None:
    m = ticking()
    m(ev.NodeRaised(NODES[0], "ValueError: no", ""), ev.NodeExited(NODES[0], 1), after=10.0)
    assert m.error.index == 0


def test_a_starting_cluster_has_its_time_though_the_driver_stands_still() -> None:
    m = Machine()
    m.life = lc.Lifecycle(NODES, LIMITS, 0.0, tick_seconds=0.25)
    assert m(ev.Tick(), after=LIMITS.start + 1.0) == []


def test_a_late_result_does_not_revive_a_failed_node_and_tells_the_story() -> None:
    m = Machine().start()
    m(ev.NodeRaised(NODES[0], "ValueError: no", "Traceback " + "x" * 10_000))
    with pytest.raises(IllegalTransition, match="worker 0 must not become finished: it is failed") as raised:
        m(ev.NodeFinished(NODES[0]))
    assert m.life.records[NODES[0]].state is lc.NodeState.FAILED
    assert "NodeRaised" in str(raised.value) and "PublishStop" in str(raised.value)
    assert len(str(raised.value)) < 20 * 1000


def test_the_story_is_bounded_and_leaves_out_signs_of_life() -> None:
    m = Machine().start()
    before = m.life.story.tell()
    for _ in range(1000):
        m(ev.Seen(NODES[0]), ev.Pulse(NODES[0], 0.0), ev.Tick())
    assert m.life.story.tell() == before
    for i in range(1000):
        m(ev.NodeRaised(NODES[0], f"error {i}", ""))
    assert m.life.story.tell().count("\n") == KEPT_ENTRIES - 1 and "error 999" in m.life.story.tell()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 1.0, 9.0, 70.0])), max_size=40))
def test_what_holds_after_every_event(steps: list[tuple[Any, float]]) -> None:
    life, now, concluded = lc.Lifecycle(NODES, LIMITS, 0.0), 0.0, 0
    order = {lc.Phase.STARTING: 0, lc.Phase.RUNNING: 1, lc.Phase.FINISHED: 2, lc.Phase.STOPPING: 2}
    for event, seconds in steps:
        now += seconds
        phase = life.phase
        states = {n: r.state for n, r in life.records.items()}
        try:
            told = kinds(life.handle(event, now))
        except IllegalTransition:
            assert {n: r.state for n, r in life.records.items()} == states and life.phase is phase
            continue
        concluded += told.count("Conclude")
        assert concluded == life.concluded, "it concludes once"
        assert life.phase is phase or order[life.phase] > order[phase], "phases go one way"
        if life.phase is lc.Phase.FINISHED:
            assert all(r.state is lc.NodeState.FINISHED for r in life.records.values()) and life.error is None
        if life.phase is lc.Phase.RUNNING:
            assert all(r.address for r in life.records.values())
        for n, r in life.records.items():
            assert states[n] is not lc.NodeState.FAILED or r.state is lc.NodeState.FAILED, "nothing revives a node"


def test_a_task_that_is_silent_while_its_node_pulses_is_told_and_waited_for_longer() -> None:
    m = Machine().start()
    for _ in range(29):
        told = m(ev.Seen(NODES[0]), ev.Pulse(NODES[0], 0.0), ev.Pulse(NODES[1], 0.0), ev.Tick(), after=1.0)
        assert told == ([ev.WarnOfSilence(NODES[1], 9.0)] if m.now == 9.0 else [])
    # Heard of again: the next silence is another one.
    m(ev.Seen(NODES[1]))
    for _ in range(30):
        told = m(ev.Seen(NODES[0]), ev.Pulse(NODES[0], 0.0), ev.Pulse(NODES[1], 0.0), ev.Tick(), after=1.0)
        assert kinds(told) == (["WarnOfSilence"] if m.now == 38.0 else [])
    m(ev.Seen(NODES[0]), ev.Pulse(NODES[1], 0.0), ev.Tick(), after=1.0)
    m(ev.Tick(), after=LIMITS.last_words + 0.1)
    assert m.error.index == 1 and "its own process answers" in m.error.reason
    assert m.error.reason.startswith("the Spark task that supervises it has said nothing for 31 s")


def test_a_node_whose_process_falls_silent_too_is_not_waited_for() -> None:
    m = Machine().start()
    for _ in range(6):
        m(ev.Seen(NODES[0]), ev.Pulse(NODES[0], 0.0), ev.Pulse(NODES[1], 0.0), ev.Tick(), after=1.0)
    for _ in range(5):
        assert m.life.phase is lc.Phase.RUNNING
        m(ev.Seen(NODES[0]), ev.Pulse(NODES[0], 0.0), ev.Tick(), after=1.0)
    m(ev.Tick(), after=LIMITS.last_words + 0.1)
    assert m.error.index == 1 and m.error.reason.startswith("no sign of life for ")
