"""The life of a cluster as a pure state machine: events in, instructions out, no I/O.

    STARTING --all nodes registered--> RUNNING --every main returned--> FINISHED
        \\____________ a node failed, or a stop was asked ____________/--> STOPPING

The cluster is over (`Lifecycle.over`) when its Spark job has ended. Whoever feeds events in carries the
instructions out (`driver/coordinator.py`); time comes in with the events, so that tests need no clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from tfspark.driver.causes import KILLED_HINT, describe_exit, tells_of_a_peer
from tfspark.driver.events import (
    CancelJob,
    Conclude,
    Event,
    Instruction,
    JobEnded,
    NodeEntered,
    NodeExited,
    NodeFinished,
    NodeRaised,
    NodeRegistered,
    PublishLoss,
    PublishRejoined,
    PublishRelease,
    PublishSpec,
    PublishStop,
    PublishTrainingEnded,
    Pulse,
    Seen,
    StopAsked,
    TaskAttached,
    Tick,
    WarnOfStall,
)
from tfspark.errors import (
    ClusterError,
    ClusterStopped,
    FeedError,
    NodeFailed,
    StartTimeout,
    StepTimeout,
    TFSparkError,
)
from tfspark.spec import NodeAddress, NodeId, resuming_nodes

REJOINS_PER_NODE = 3
"""How often a worker of parameter servers that is lost may come back before its loss counts as a failure."""

SUSPICIOUS_SILENCE_SECONDS = 4.0
"""A node that has been silent for so long is to blame when another one fails."""

STANDSTILL_SECONDS = 2.0
"""A tick that is late by more has found the driver itself standing still: what was sent meanwhile is still unread."""

SPARK_IS_GONE = "Spark's JVM is gone"

CANCELLED = re.compile(rf"Job \d+ cancelled|has been cancelled|SparkContext was shut down|{SPARK_IS_GONE}")
"""Spark's words for a job that someone has ended."""


class Phase(str, Enum):
    """Where a cluster is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPING = "stopping"


class NodeState(str, Enum):
    """Where a node is in its life."""

    PENDING = "pending"
    LAUNCHED = "launched"
    REGISTERED = "registered"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True)
class Limits:
    """Deadlines, in seconds."""

    start: float = 300.0
    silence: float = 7.0
    last_words: float = 2.0
    grace: float = 5.0
    job_end: float = 8.0
    hang: float = 60.0
    stall_warning: float = 30.0
    stall: float | None = None
    step: float | None = None


# --- events


@dataclass
class NodeRecord:
    """What is known of one node."""

    node: NodeId
    state: NodeState = NodeState.PENDING
    host: str = "?"
    address: NodeAddress | None = None
    attempt: int | None = None
    stage: int = -1
    last_seen: float | None = None
    last_pulse: float | None = None
    waiting: float = 0.0
    step_seconds: float = 0.0
    busy: bool = False
    stack: str = ""
    warned: bool = False
    stopped: bool = False
    rejoins: int = 0
    away_since: float | None = None
    kill: bool = False
    raised: NodeRaised | None = None
    exited: NodeExited | None = None


@dataclass
class Lifecycle:
    """All that is known of a cluster, and what follows from each event.

    With `tick_seconds`, how often a tick is due, time in which this process itself stood still counts for nobody's
    silence.
    """

    nodes: Sequence[NodeId]
    limits: Limits
    now: float
    servers: Sequence[NodeId] = ()
    rejoining: Sequence[NodeId] = ()
    tick_seconds: float | None = None
    phase: Phase = Phase.STARTING
    over: bool = False
    concluded: bool = False
    error: TFSparkError | None = None
    records: dict[NodeId, NodeRecord] = field(default_factory=dict)
    _failed: NodeId | None = None
    _failed_at: float = 0.0
    _stop_at: float | None = None
    _grace: float | None = None
    _cancelled: bool = False

    def __post_init__(self) -> None:
        self.records = {n: NodeRecord(n) for n in self.nodes}
        self._started_at = self._ticked_at = self.now

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take note of an event and say what to do about it."""
        self.now = now
        self._allow_for_standstill(isinstance(event, Tick))
        node = getattr(event, "node", None) or getattr(getattr(event, "address", None), "node", None)
        # A process that was stopped cannot speak for its supervisor, nor the other way round.
        if node is not None and not isinstance(event, Pulse):
            self.records[node].last_seen = now
        out: list[Instruction] = []
        match event:
            case TaskAttached():
                out += self._attached(event)
            case NodeRegistered(address):
                record = self.records[address.node]
                if self.phase is Phase.RUNNING and record.address is not None:
                    out += self._rejoined(record)
                record.address, record.state = address, NodeState.REGISTERED
                if self.phase is Phase.STARTING and all(r.address for r in self.records.values()):
                    self.phase = Phase.RUNNING
                    out.append(PublishSpec())
            case NodeEntered():
                self.records[event.node].state = NodeState.RUNNING
            case Seen():
                self.records[event.node].stopped = event.stopped
            case Pulse():
                out += self._pulse(event)
            case NodeFinished():
                self.records[event.node].state = NodeState.FINISHED
                out += self._finished()
            case NodeRaised():
                out += self._raised(event)
            case NodeExited():
                out += self._exited(event)
            case JobEnded():
                out += self._job_ended(event)
            case StopAsked():
                out += self._stop_asked(event)
            case Tick():
                out += self._tick()
        return out

    def _allow_for_standstill(self, tick: bool) -> None:
        """Move all that deadlines count from by the time in which the driver stood still."""
        late = 0.0 if self.tick_seconds is None else self.now - self._ticked_at - self.tick_seconds
        stood_still = late > STANDSTILL_SECONDS
        if tick or stood_still:
            self._ticked_at = self.now
        if not stood_still:
            return

        def moved(time: float) -> float:
            return min(time + late, self.now)

        self._started_at, self._failed_at = moved(self._started_at), self._failed_at and moved(self._failed_at)
        self._stop_at = None if self._stop_at is None else moved(self._stop_at)
        for r in self.records.values():
            r.last_seen = None if r.last_seen is None else moved(r.last_seen)
            r.last_pulse = None if r.last_pulse is None else moved(r.last_pulse)
            r.away_since = None if r.away_since is None else moved(r.away_since)

    @property
    def patience(self) -> float:
        """Seconds in which the Spark job ends by itself once a stop was asked, or a node has failed."""
        if self._failed is not None:
            return self.limits.job_end
        return (self.limits.grace if self._grace is None else self._grace) + self.limits.job_end

    def _every_main_returned(self) -> bool:
        return all(r.state is NodeState.FINISHED for n, r in self.records.items() if n not in self.servers)

    def _finished(self) -> list[Instruction]:
        if self.phase is not Phase.RUNNING:
            return []
        if self._every_main_returned():
            self.phase = Phase.FINISHED
            return [PublishRelease(), *self._conclude(None)]
        if all(self.records[n].state is NodeState.FINISHED for n in resuming_nodes(self.nodes)):
            return [PublishTrainingEnded()]
        return []

    def _attached(self, event: TaskAttached) -> list[Instruction]:
        record = self.records[event.node]
        if record.attempt is not None and event.attempt != record.attempt:
            self._blame_instead(event.node, "its Spark task was lost")
            return self._lost(event.node, "its Spark task was lost and started again")
        record.attempt, record.host, record.stage = event.attempt, event.host, event.stage
        if record.state is NodeState.PENDING:
            record.state = NodeState.LAUNCHED
        return []

    def _exited(self, event: NodeExited) -> list[Instruction]:
        record = self.records[event.node]
        if self._may_rejoin(record):
            reason, _ = describe_exit(event.code)
            record.state, record.last_pulse, record.kill = NodeState.LAUNCHED, None, False
            record.rejoins += 1
            record.away_since = self.now
            return [PublishLoss(event.node, reason)]
        record.exited = event
        if record.state is NodeState.FINISHED or self.phase in (Phase.FINISHED, Phase.STOPPING):
            if record.state is not NodeState.FAILED:
                record.state = NodeState.GONE if record.state is not NodeState.FINISHED else record.state
            if self._failed is not None and event.code and not event.stopped_by_us and record.raised is None:
                self._blame_instead(event.node)
            return self._conclude_if_clear()
        record.state = NodeState.FAILED
        return self._fail(event.node)

    def _may_rejoin(self, record: NodeRecord) -> bool:
        return (
            record.node in self.rejoining
            and self.phase is Phase.RUNNING
            and record.raised is None
            and record.rejoins < REJOINS_PER_NODE
        )

    def _rejoined(self, record: NodeRecord) -> list[Instruction]:
        record.away_since = None
        for other in self.records.values():
            other.last_pulse = None if other.last_pulse is None else self.now
        return [PublishRejoined(record.node)]

    def _pulse(self, event: Pulse) -> list[Instruction]:
        record = self.records[event.node]
        record.last_pulse, record.waiting = self.now, event.waiting
        record.step_seconds, record.busy, record.stack = event.step_seconds, event.busy, event.stack
        if self.phase is not Phase.RUNNING:
            return []
        out: list[Instruction] = []
        if event.waiting < self.limits.stall_warning:
            record.warned = False
        elif not record.warned:
            record.warned = True
            out.append(WarnOfStall(event.node, event.waiting))
        if self.limits.stall is not None and event.waiting > self.limits.stall:
            out += self._stalled(record)
        elif self._stands_in_step(record):
            out += self._step_timed_out(record)
        return out

    def _stands_in_step(self, record: NodeRecord) -> bool:
        """Whether a worker has waited too long in a step, though nobody waits for rows, compiles or saves."""
        if self.limits.step is None or record.step_seconds <= self.limits.step:
            return False
        return not any(r.waiting > 0 or r.busy for r in self.records.values() if r.state is NodeState.RUNNING)

    def _step_timed_out(self, record: NodeRecord) -> list[Instruction]:
        self.phase = Phase.STOPPING
        self._stop_at = self.now
        running = [r for r in self.records.values() if r.stack and r.state in (NodeState.RUNNING, NodeState.FINISHED)]
        stacks = "".join(f"\n--- {r.node} on {r.host} stands here ---\n{r.stack.rstrip()}" for r in running)
        error = StepTimeout(
            f"{record.node} on {record.host} has stood in a training step for {record.step_seconds:.0f} s: the workers "
            f"wait for one another.{stacks}",
            hint="All workers must make the same steps: look where each stands. step_timeout= waits longer.",
        )
        return [PublishStop(0.0, f"{record.node} stands in a step"), *self._conclude(error)]

    def _stalled(self, record: NodeRecord) -> list[Instruction]:
        self.phase = Phase.STOPPING
        self._stop_at = self.now
        error = FeedError(
            f"{record.node} on {record.host} has waited {record.waiting:.0f} s for rows.",
            hint="The partitions that it waits for are slow to compute, or Spark has no free slot for their tasks: "
            "the Spark UI shows them. stall_timeout= waits longer.",
        )
        return [PublishStop(0.0, f"{record.node} had no data"), *self._conclude(error)]

    def _unheard(self, record: NodeRecord) -> list[Instruction]:
        return self._lost(record.node, *self._silence(record))

    def _silence(self, record: NodeRecord) -> tuple[str, str]:
        return (
            f"no sign of life for {self.now - (record.last_seen or 0.0):.0f} s",
            "Its host is down or cut off from the network, or the executor or its Python worker was killed or stopped.",
        )

    def _lost(self, node: NodeId, reason: str, hint: str = KILLED_HINT) -> list[Instruction]:
        record = self.records[node]
        if self.phase in (Phase.FINISHED, Phase.STOPPING) or record.state is NodeState.FINISHED:
            return []
        record.state = NodeState.FAILED
        record.raised = record.raised or NodeRaised(node, reason, "", hint)
        self._failed_at = self.now - self.limits.last_words
        return self._fail(node)

    def _raised(self, event: NodeRaised) -> list[Instruction]:
        if self.phase is Phase.RUNNING:
            for r in self.records.values():
                # TensorFlow gives up on a peer that does not answer and fails in those that do.
                if r.node != event.node and self._is_silent(r, SUSPICIOUS_SILENCE_SECONDS):
                    return self._hung(self._to_blame(r))
        record = self.records[event.node]
        if record.raised is None:
            record.raised, record.state = event, NodeState.FAILED
        return self._fail(event.node)

    def _to_blame(self, silent: NodeRecord) -> NodeRecord:
        """Return the node that the others wait for: TensorFlow may hold Python's lock while it waits for a peer."""
        silents = [r for r in self.records.values() if self._is_silent(r, SUSPICIOUS_SILENCE_SECONDS)]
        return next((r for r in silents if r.stopped), silent)

    def _someone_is_away(self) -> bool:
        # TensorFlow holds Python's lock in the chief until a lost worker can be reached again.
        return any(r.away_since is not None for r in self.records.values())

    def _is_silent(self, r: NodeRecord, seconds: float) -> bool:
        alive = r.exited is None and r.state not in (NodeState.FINISHED, NodeState.FAILED)
        return alive and r.last_pulse is not None and self.now - r.last_pulse > seconds

    def _is_unheard(self, r: NodeRecord, seconds: float) -> bool:
        """Tell whether not even the task that supervises a node has been heard of."""
        return r.last_seen is not None and r.exited is None and self.now - r.last_seen > seconds

    def _hung(self, record: NodeRecord) -> list[Instruction]:
        if self._is_unheard(record, SUSPICIOUS_SILENCE_SECONDS):
            return self._unheard(record)
        if self._may_rejoin(record):
            # Its exit will tell the rest.
            record.kill = True
            return []
        record.state = NodeState.FAILED
        seconds = self.now - (record.last_pulse or 0.0)
        reason = f"its process exists, but has not answered for {seconds:.0f} s"
        hint = "Its host swaps, or one call into native code keeps Python's lock for so long: then raise hang_timeout=."
        if record.stopped:
            reason += ": it is stopped"
            hint = "Someone sent it SIGSTOP, or holds it in a debugger."
        record.raised = record.raised or NodeRaised(record.node, reason, "", hint)
        return self._fail(record.node)

    def _fail(self, node: NodeId) -> list[Instruction]:
        out: list[Instruction] = []
        if self._failed is None and self.phase not in (Phase.FINISHED, Phase.STOPPING):
            self._failed = node
            self._failed_at = max(self._failed_at, self.now) if not self._failed_at else self._failed_at
            self.phase = Phase.STOPPING
            self._stop_at = self.now
            out.append(PublishStop(0.0, f"{node} failed"))
        return out + self._conclude_if_clear()

    def _conclude_if_clear(self) -> list[Instruction]:
        """Name the node that failed once its process has ended, and no other can have been the cause."""
        if self._failed is None or self.records[self._failed].exited is None:
            return []
        if self._only_noticed() and any(self._is_unaccounted(r) for r in self.records.values()):
            return []
        return self._conclude(self._node_failed(self._failed))

    def _only_noticed(self) -> bool:
        """Tell whether what failed first may only have noticed the loss of another node."""
        raised = self.records[self._failed].raised if self._failed is not None else None
        return raised is not None and tells_of_a_peer(raised.reason)

    @staticmethod
    def _is_unaccounted(r: NodeRecord) -> bool:
        return r.exited is None and r.attempt is not None and r.state is not NodeState.FINISHED

    def _blame_instead(self, node: NodeId, reason: str = "", hint: str = KILLED_HINT) -> None:
        """Take another node for the cause of the failure, if the one that raised first may only have noticed."""
        if node == self._failed or self.concluded or not self._only_noticed():
            return
        record = self.records[node]
        self._failed, record.state = node, NodeState.FAILED
        if reason:
            record.raised = NodeRaised(node, reason, "", hint)

    def _node_failed(self, node: NodeId) -> NodeFailed:
        record = self.records[node]
        raised, exited = record.raised, record.exited
        tail = exited.log_tail if exited else ()
        if raised is not None:
            return NodeFailed(
                node.role,
                node.index,
                record.host,
                raised.reason,
                raised.traceback,
                tail,
                raised.hint or None,
                raised.final,
            )
        reason, hint = describe_exit(exited.code if exited else 0, exited is not None and exited.out_of_memory)
        return NodeFailed(node.role, node.index, record.host, reason, "", tail, hint)

    def _job_ended(self, event: JobEnded) -> list[Instruction]:
        self.over = True
        if self.concluded:
            return []
        if self._failed is not None:
            if event.error is not None and event.blamed is not None:
                self._blame_instead(event.blamed, "its Spark task was lost")
            return self._conclude(self._node_failed(self._failed))
        if event.error is not None and event.blamed is not None and self.phase is not Phase.STOPPING:
            self._lost(event.blamed, "its Spark task was lost")
            return self._conclude(self._node_failed(event.blamed))
        if event.error is not None and CANCELLED.search(event.error):
            # By cancelAllJobs, cancelJobGroup, spark.stop() or the web page: someone wants it gone.
            reason = event.error.splitlines()[0]
            return self._conclude(ClusterStopped(f"The Spark job that held the cluster was cancelled: {reason}"))
        if event.error is not None and self.phase is not Phase.STOPPING:
            return self._conclude(ClusterError(f"The Spark job that held the cluster failed: {event.error}"))
        if self._every_main_returned():
            return self._conclude(None)
        reason = "the Spark job that held the cluster ended"
        return self._conclude(ClusterStopped(f"The cluster was stopped before it had finished: {reason}."))

    def _stop_asked(self, event: StopAsked) -> list[Instruction]:
        if self._stop_at is not None or self.over:
            return []
        self._stop_at = self.now
        grace = self._grace = self.limits.grace if event.grace is None else event.grace
        if self.phase is Phase.FINISHED:
            return []
        self.phase = Phase.STOPPING
        out: list[Instruction] = [PublishStop(grace, event.reason)]
        return out + self._conclude(ClusterStopped(f"The cluster was stopped before it had finished: {event.reason}."))

    def _tick(self) -> list[Instruction]:
        out: list[Instruction] = []
        limits = self.limits
        if self.phase is Phase.STARTING and self.now - self._started_at > limits.start:
            out += self._start_timed_out()
        if self._failed is not None and not self.concluded:
            out += self._wait_for_last_words(self._failed)
        if self.phase in (Phase.STARTING, Phase.RUNNING):
            for r in self.records.values():
                if r.state is not NodeState.FINISHED and self._is_unheard(r, limits.silence):
                    out += self._unheard(r)
                    break
                if r.away_since is not None and self.now - r.away_since > limits.start:
                    out += self._lost(r.node, f"it was lost and did not come back within {limits.start:.0f} s")
                    break
                if self._is_silent(r, limits.hang) and not self._someone_is_away():
                    out += self._hung(self._to_blame(r))
                    break
        late = self._stop_at is not None and self.now - self._stop_at > self.patience
        if not self.over and not self._cancelled and (late or self._only_unheard_left()):
            self._cancelled = True
            out.append(CancelJob())
        return out

    def _wait_for_last_words(self, failed: NodeId) -> list[Instruction]:
        """Name the node that failed without its last words, or another one that has fallen silent meanwhile."""
        waited = self.now - self._failed_at
        suspects = [r for r in self.records.values() if r.node != failed and self._is_unaccounted(r)]
        if self._only_noticed() and suspects and waited < self.limits.silence + self.limits.last_words:
            silent = [r for r in suspects if self._is_unheard(r, self.limits.silence)]
            if not silent:
                return []
            self._blame_instead(silent[0].node, *self._silence(silent[0]))
        elif waited <= self.limits.last_words:
            return []
        return self._conclude(self._node_failed(self._failed or failed))

    def _only_unheard_left(self) -> bool:
        """Tell whether all nodes have gone that can be told to: nothing is heard of those that are left."""
        left = [r for r in self.records.values() if r.exited is None]
        unheard = all(self._is_unheard(r, self.limits.silence) for r in left)
        return self._stop_at is not None and bool(left) and unheard

    def _start_timed_out(self) -> list[Instruction]:
        missing = [str(n) for n, r in self.records.items() if r.address is None]
        self.phase = Phase.STOPPING
        self._stop_at = self.now
        self._cancelled = True
        error = StartTimeout(
            f"{len(missing)} of {len(self.records)} nodes did not start within {self.limits.start:.0f} s: "
            f"{', '.join(missing)}.",
            hint="Is the cluster busy with other jobs? Its executors' logs say what they wait for; "
            "start_timeout= waits longer.",
        )
        return [PublishStop(0.0, "start timed out"), CancelJob(), *self._conclude(error)]

    def _conclude(self, error: TFSparkError | None) -> list[Instruction]:
        if self.concluded:
            return []
        self.concluded = True
        self.error = error
        return [Conclude(error)]
