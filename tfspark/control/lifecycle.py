"""The lifecycle of a cluster as a pure state machine: events in, instructions out, no I/O.

    STARTING --all nodes registered--> RUNNING --every main returned--> FINISHED
        \\____________ a node failed, or a stop was asked ____________/--> STOPPING

The cluster is over (`Lifecycle.over`) when its Spark job has ended. The caller (`control/coordinator.py`) passes events
in and carries the instructions out. The time comes with each event, so tests need no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from tfspark.control.causes import KILLED_HINT, describe_exit, tells_of_a_peer
from tfspark.control.events import (
    CancelJob,
    Conclude,
    DriverCutOff,
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
    WarnOfSilence,
    WarnOfStall,
)
from tfspark.control.story import SHOWN_ENTRIES, IllegalTransition, Story
from tfspark.errors import ClusterError, ClusterStopped, FeedError, NodeFailed, StartTimeout, StepTimeout, TFSparkError
from tfspark.settings import Settings
from tfspark.spark.jobs import CANCELLED
from tfspark.spec import NodeAddress, NodeId, resuming_nodes

STANDSTILL_SECONDS = 2.0
"""If a tick is late by more than this, the driver itself was stopped, and messages of that time are still unread."""

SPARK_IS_GONE = "Spark's JVM is gone"


class Phase(str, Enum):
    """The phase of a cluster."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPING = "stopping"


class NodeState(str, Enum):
    """The state of a node."""

    PENDING = "pending"
    LAUNCHED = "launched"
    REGISTERED = "registered"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    GONE = "gone"


MAY_BECOME = {
    NodeState.REGISTERED: {NodeState.PENDING, NodeState.LAUNCHED, NodeState.REGISTERED},
    NodeState.RUNNING: {NodeState.REGISTERED, NodeState.RUNNING},
    NodeState.FINISHED: {NodeState.REGISTERED, NodeState.RUNNING, NodeState.FINISHED},
}
"""For each state that a node reports, the states that it may be in before."""


@dataclass(frozen=True)
class Limits:
    """Deadlines in seconds, and how often a node may come back; `tfspark.settings` documents each."""

    start: float = Settings.start_timeout
    silence: float = Settings.silence_timeout
    patience: float = Settings.silence_patience
    suspicion: float = Settings.suspicion_timeout
    last_words: float = Settings.last_words_timeout
    grace: float = Settings.stop_grace
    job_end: float = Settings.job_end_timeout
    hang: float = Settings.hang_timeout
    stall_warning: float = Settings.stall_warning
    stall: float | None = None
    step: float | None = None
    rejoins: int = Settings.rejoins_per_worker

    @classmethod
    def of(cls, s: Settings) -> Limits:
        """Return the limits of a cluster with these settings."""
        return cls(
            start=s.start_timeout,
            silence=s.silence_timeout,
            patience=max(s.silence_timeout, s.silence_patience),
            suspicion=s.suspicion_timeout,
            last_words=s.last_words_timeout,
            grace=s.stop_grace,
            job_end=s.job_end_timeout,
            hang=s.hang_timeout,
            stall_warning=s.stall_warning,
            stall=s.stall_timeout,
            step=s.step_timeout,
            rejoins=s.rejoins_per_worker,
        )


# --- state


@dataclass
class NodeRecord:
    """The state of one node and the times of its last messages."""

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
    silence_told: bool = False
    stopped_since: float | None = None
    rejoins: int = 0
    away_since: float | None = None
    kill: bool = False
    raised: NodeRaised | None = None
    exited: NodeExited | None = None


@dataclass
class Lifecycle:
    """The state of a cluster, and the transition that follows from each event.

    `tick_seconds` is the interval of ticks. If it is given, a time in which this process itself was stopped does not
    count as silence of the nodes.
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
        self.story = Story(self.now)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Handle an event and return the instructions that follow from it.

        Raises
        ------
        IllegalTransition
            If the event is not possible in the node's state; the state then stays the same.
        """
        out = self._handle(event, now)
        self.story.add(now, event, out)
        return out

    def _handle(self, event: Event, now: float) -> list[Instruction]:
        self.now = now
        self._allow_for_standstill(isinstance(event, Tick))
        node = getattr(event, "node", None) or getattr(getattr(event, "address", None), "node", None)
        # A pulse proves only that the node's process is alive, not that its supervising task is.
        if node is not None and not isinstance(event, Pulse):
            self.records[node].last_seen, self.records[node].silence_told = now, False
        out: list[Instruction] = []
        match event:
            case TaskAttached():
                out += self._attached(event)
            case NodeRegistered(address):
                record = self.records[address.node]
                if record.address == address and record.state not in (NodeState.PENDING, NodeState.LAUNCHED):
                    # A node registers again if the first answer got lost.
                    return out
                self._require(record, NodeState.REGISTERED)
                if self.phase is Phase.RUNNING and record.address is not None:
                    out += self._rejoined(record)
                record.address, record.state = address, NodeState.REGISTERED
                if self.phase is Phase.STARTING and all(r.address for r in self.records.values()):
                    self.phase = Phase.RUNNING
                    out.append(PublishSpec())
            case NodeEntered():
                self._move(event.node, NodeState.RUNNING)
            case Seen():
                record = self.records[event.node]
                record.stopped_since = (record.stopped_since or now) if event.stopped else None
            case Pulse():
                out += self._pulse(event)
            case NodeFinished():
                self._move(event.node, NodeState.FINISHED)
                out += self._finished()
            case NodeRaised():
                out += self._raised(event)
            case NodeExited():
                out += self._exited(event)
            case JobEnded():
                out += self._job_ended(event)
            case DriverCutOff(reason):
                out += self._cut_off(reason)
            case StopAsked():
                out += self._stop_asked(event)
            case Tick():
                out += self._tick()
        return out

    def _move(self, node: NodeId, state: NodeState) -> None:
        self._require(self.records[node], state)
        self.records[node].state = state

    def _require(self, record: NodeRecord, state: NodeState) -> None:
        if record.state not in MAY_BECOME[state]:
            raise IllegalTransition(
                f"{record.node} must not become {state.value}: it is {record.state.value}. What happened before:\n"
                f"{self.story.tell(SHOWN_ENTRIES)}"
            )

    def _allow_for_standstill(self, tick: bool) -> None:
        """Shift the start times of all deadlines by the time in which the driver was stopped."""
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
            r.stopped_since = None if r.stopped_since is None else moved(r.stopped_since)
            r.away_since = None if r.away_since is None else moved(r.away_since)

    @property
    def patience(self) -> float:
        """Seconds that the Spark job has to end by itself after a stop was requested or a node has failed."""
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
            and record.rejoins < self.limits.rejoins
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
        """Return whether a worker has been in a step for too long, while no running node waits for rows or is busy."""
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
        if self._pulses(record):
            return (
                f"the Spark task that supervises it has said nothing for {self.now - (record.last_seen or 0.0):.0f} s, "
                "though its own process answers",
                "The Python worker of its executor is stopped, or gets no processor time. The setting silence_patience "
                "waits longer.",
            )
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
                # If a node does not answer, TensorFlow fails in the nodes that do: the silent node is the cause.
                if r.node != event.node and self._is_silent(r, self.limits.suspicion):
                    return self._hung(self._to_blame(r))
        record = self.records[event.node]
        if record.raised is None:
            record.raised, record.state = event, NodeState.FAILED
        return self._fail(event.node)

    def _to_blame(self, silent: NodeRecord) -> NodeRecord:
        """Return the cause of a silence: a silent node whose process is stopped, else `silent`.

        Other nodes may be silent only because TensorFlow holds Python's lock while it waits for the stopped one.
        """
        silents = [r for r in self.records.values() if self._is_silent(r, self.limits.suspicion)]
        return next((r for r in silents if r.stopped_since is not None), silent)

    def _someone_is_away(self) -> bool:
        # TensorFlow holds Python's lock in the chief until a lost worker can be reached again.
        return any(r.away_since is not None for r in self.records.values())

    def _is_silent(self, r: NodeRecord, seconds: float) -> bool:
        alive = r.exited is None and r.state not in (NodeState.FINISHED, NodeState.FAILED)
        since = self._silent_since(r)
        return alive and since is not None and self.now - since > seconds

    def _silent_since(self, r: NodeRecord) -> float | None:
        """Return the time of a node's last pulse; if it was stopped before its first pulse, the time of this."""
        return r.stopped_since if r.last_pulse is None else r.last_pulse

    def _is_unheard(self, r: NodeRecord, seconds: float) -> bool:
        """Return whether nothing except pulses has arrived from a node and its supervising task for `seconds`."""
        return r.last_seen is not None and r.exited is None and self.now - r.last_seen > seconds

    def _pulses(self, r: NodeRecord) -> bool:
        """Return whether a pulse of the node has arrived within the last `suspicion` seconds."""
        return r.last_pulse is not None and self.now - r.last_pulse <= self.limits.suspicion

    def _is_lost(self, r: NodeRecord) -> bool:
        """Return whether a node has been silent for too long; the limit is longer if its process still pulses."""
        return self._is_unheard(r, self.limits.patience if self._pulses(r) else self.limits.silence)

    def _silences_to_tell(self) -> list[Instruction]:
        """Return a warning for each task that is silent while its node pulses; each silence is reported once."""
        silent = [r for r in self.records.values() if not r.silence_told and r.state is not NodeState.FINISHED]
        silent = [r for r in silent if self._pulses(r) and self._is_unheard(r, self.limits.silence)]
        for r in silent:
            r.silence_told = True
        return [WarnOfSilence(r.node, self.now - (r.last_seen or 0.0)) for r in silent]

    def _hung(self, record: NodeRecord) -> list[Instruction]:
        if self._is_unheard(record, self.limits.suspicion):
            return self._unheard(record)
        if self._may_rejoin(record):
            # The supervising task kills the process, and `NodeExited` follows.
            record.kill = True
            return []
        record.state = NodeState.FAILED
        seconds = self.now - (self._silent_since(record) or 0.0)
        reason = f"its process exists, but has not answered for {seconds:.0f} s"
        hint = "Its host swaps, or one call into native code keeps Python's lock for so long: then raise hang_timeout=."
        if record.stopped_since is not None:
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
        """Conclude with the failed node if its process has ended and no other node can be the cause."""
        if self._failed is None or self.records[self._failed].exited is None:
            return []
        if self._only_noticed() and any(self._is_unaccounted(r) for r in self.records.values()):
            return []
        return self._conclude(self._node_failed(self._failed))

    def _only_noticed(self) -> bool:
        """Return whether the error of the failed node may only be a consequence of the loss of another node."""
        raised = self.records[self._failed].raised if self._failed is not None else None
        return raised is not None and tells_of_a_peer(raised.reason)

    @staticmethod
    def _is_unaccounted(r: NodeRecord) -> bool:
        return r.exited is None and r.attempt is not None and r.state is not NodeState.FINISHED

    def _blame_instead(self, node: NodeId, reason: str = "", hint: str = KILLED_HINT) -> None:
        """Make `node` the cause of the failure, if the first error may only be a consequence of its loss."""
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
        if event.error is not None and (CANCELLED.search(event.error) or SPARK_IS_GONE in event.error):
            # A user cancelled it: by cancelAllJobs, cancelJobGroup, spark.stop() or on Spark's web page.
            reason = event.error.splitlines()[0]
            return self._conclude(ClusterStopped(f"The Spark job that held the cluster was cancelled: {reason}"))
        if event.error is not None and self.phase is not Phase.STOPPING:
            return self._conclude(ClusterError(f"The Spark job that held the cluster failed: {event.error}"))
        if self._every_main_returned():
            return self._conclude(None)
        reason = "the Spark job that held the cluster ended"
        return self._conclude(ClusterStopped(f"The cluster was stopped before it had finished: {reason}."))

    def _cut_off(self, reason: str) -> list[Instruction]:
        if self.phase not in (Phase.STARTING, Phase.RUNNING):
            return []
        self.phase = Phase.STOPPING
        self._stop_at = self.now
        # No instruction reaches the nodes, so Spark ends their tasks.
        self._cancelled = True
        error: TFSparkError
        if CANCELLED.search(reason):
            error = ClusterStopped(f"The Spark job of the cluster's tunnel was cancelled: {reason}")
        else:
            error = ClusterError(
                f"Nodes cannot reach this client any more, because the tunnel task has ended: {reason}",
                hint="The log of its executor may say why. With max_restarts= the nodes start again with another "
                "tunnel.",
            )
        return [CancelJob(), *self._conclude(error)]

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
            out += self._silences_to_tell()
            for r in self.records.values():
                if r.state is not NodeState.FINISHED and self._is_lost(r):
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
        """Conclude after the deadline for the failed node's last log lines.

        If its error may be a consequence of the loss of another node, wait longer, and blame a node that becomes silent
        in this time.
        """
        waited = self.now - self._failed_at
        suspects = [r for r in self.records.values() if r.node != failed and self._is_unaccounted(r)]
        if self._only_noticed() and suspects and waited < self.limits.silence + self.limits.last_words:
            silent = [r for r in suspects if self._is_lost(r)]
            if not silent:
                return []
            self._blame_instead(silent[0].node, *self._silence(silent[0]))
        elif waited <= self.limits.last_words:
            return []
        return self._conclude(self._node_failed(self._failed or failed))

    def _only_unheard_left(self) -> bool:
        """Return whether, after a stop, some nodes have not exited and all of these are silent."""
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
