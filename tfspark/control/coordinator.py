"""The driver's server: registration, liveness, the feed ledgers and the event log that nodes follow.

It turns messages into lifecycle events and carries out the instructions that the lifecycle returns. Nodes and Spark
tasks call it; it never calls them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tfspark import messages as m
from tfspark.control import events as ev
from tfspark.control import lifecycle as lc
from tfspark.control.node_history import EndedEpoch, InputTimes, NodeHistory, Sample
from tfspark.control.results import ResultStore
from tfspark.control.story import IllegalTransition
from tfspark.errors import FeedError, SchemaError, TFSparkError
from tfspark.feeding.ledger import FeedLedger, Target
from tfspark.feeding.shapes import Shapes
from tfspark.feeding.unread import UnreadRows
from tfspark.settings import Settings
from tfspark.spec import ClusterSpec, NodeId, is_chief, rejoining_nodes, resuming_nodes, server_nodes
from tfspark.transport.auth import Secret
from tfspark.transport.ports import Ports
from tfspark.transport.server import MessageServer

logger = logging.getLogger(__name__)
node_logger = logging.getLogger("tfspark.node")

T = TypeVar("T")

TICK_SECONDS = 0.25
KEPT_LOG_LINES = 200

MANY_NODES = 100
"""From this number of nodes on, nodes send heartbeats and pulses at common times.

Waking up for each message would cost the driver more than handling it.
"""

TOGETHER_SECONDS = 0.25
"""Interval of the common times."""

LOOK_SECONDS = 0.25
"""Longest pause between two evaluations of a condition in `Coordinator.wait`."""


@dataclass(frozen=True)
class Reported:
    """The last metrics that a node has reported."""

    step: int
    metrics: dict[str, float]
    time: float


class Coordinator:
    """The server of one cluster.

    Parameters
    ----------
    host
        Address to bind.
    secret
        The secret of the cluster.
    nodes
        The nodes of the cluster.
    settings
        The settings of the cluster.
    cancel_job
        Cancels the Spark job; called from the coordinator's own thread.
    ports
        Range to take the port from; any port by default.
    """

    def __init__(
        self,
        host: str,
        secret: Secret,
        nodes: Sequence[NodeId],
        settings: Settings,
        cancel_job: Callable[[], None],
        ports: Ports | None = None,
    ) -> None:
        limits = lc.Limits.of(settings)
        self._settings = settings
        self.lifecycle = lc.Lifecycle(
            nodes, limits, time.monotonic(), server_nodes(nodes), rejoining_nodes(nodes), TICK_SECONDS
        )
        self.results = ResultStore()
        self.reports: dict[NodeId, Reported] = {}
        self.startup: dict[NodeId, dict[str, float]] = {}
        self.histories = {node: NodeHistory() for node in nodes}
        self.on_epoch_ended: Callable[[int, int], None] = lambda epoch, epochs: None
        self.on_report: Callable[[NodeId, int, dict[str, float]], None] = lambda node, step, metrics: None
        self.log: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self.feed_error: TFSparkError | None = None
        self.on_feed_error: Callable[[], None] = lambda: None
        self.ledger: FeedLedger | None = None
        self.ledgers: dict[int, FeedLedger] = {}
        self._ended: dict[int, FeedLedger] = {}
        self._shapes: dict[int, Shapes] = {}
        self._unread = UnreadRows(nodes, self.lifecycle.servers)
        self._epochs_to_read = 0
        self.losses = 0
        self._position = m.EpochBegins(-1, -1)
        self._exports: dict[tuple[str, int], str] = {}
        self._on_rejoin: Callable[[NodeId], None] | None = None
        self.resume_at: int | None = None
        self.open_columns: Sequence[str] | None = None
        self._proposals: dict[NodeId, Sequence[int] | None] = {}
        self.began = self.feed_began = time.monotonic()
        self._feed = -1
        self._cancel_job = cancel_job
        self._events: list[m.Event] = []
        self._forgotten = 0
        self._polled = dict.fromkeys(nodes, 0)
        self._exits: dict[NodeId, tuple[int, m.ExitedAnswer]] = {}
        # Few threads, all of the driver, wait for a change; a call of every node waits for the next published event.
        lock = threading.RLock()
        self._changed, self._published = threading.Condition(lock), threading.Condition(lock)
        self._closing = threading.Event()
        self._release_grace: float | None = None
        self._server = MessageServer(
            host,
            secret,
            {
                m.Attach: self._on_attach,
                m.Heartbeat: self._on_heartbeat,
                m.Exited: self._on_exited,
                m.Register: self._on_register,
                m.Poll: self._on_poll,
                m.Entered: self._on_entered,
                m.ResultPart: self._on_result_part,
                m.Finished: self._on_finished,
                m.Raised: self._on_raised,
                m.Resume: self._on_resume,
                m.EpochBegins: self._on_epoch_begins,
                m.WhichEpoch: self._on_which_epoch,
                m.Exported: self._on_exported,
                m.WhichExport: self._on_which_export,
                m.OpenColumns: self._on_open_columns,
                m.EpochEnded: self._on_epoch_ended,
                m.Report: self._on_report,
                m.Pulse: self._on_pulse,
                m.Commit: self._on_commit,
                m.Assign: self._on_assign,
                m.LengthVaries: self._on_length_varies,
                m.FeedFailed: self._on_feed_failed,
            },
            ports,
        )
        self.port = self._server.port
        self.reached_at = (host, self.port)
        self._ticker = threading.Thread(target=self._tick, name="tfspark-coordinator", daemon=True)
        self._ticker.start()

    # --- for the cluster handle

    def post(self, event: ev.Event) -> None:
        """Pass an event to the lifecycle and carry out the instructions that it returns."""
        cancel, rejoined = False, None
        with self._changed:
            try:
                instructions = self.lifecycle.handle(event, time.monotonic())
            except IllegalTransition as e:
                # For example a late message of a node that counts as lost.
                logger.warning("%s", e)
                return
            for instruction in instructions:
                match instruction:
                    case ev.PublishSpec():
                        self._publish(m.SpecComplete(self.spec.nodes))
                    case ev.PublishTrainingEnded():
                        self._publish(m.TrainingEnded())
                    case ev.PublishRelease():
                        self._release_grace = self.lifecycle.limits.grace
                        self._publish(m.AllFinished())
                    case ev.PublishStop(grace, reason):
                        self._release_grace = grace
                        self._publish(m.Stop(grace, reason))
                    case ev.WarnOfStall(node, seconds):
                        logger.warning("%s", self._describe_stall(node, seconds))
                    case ev.WarnOfSilence(node, seconds):
                        logger.warning("%s", self._describe_silence(node, seconds))
                    case ev.PublishLoss(node, reason):
                        logger.warning("%s was lost: %s. The other nodes continue; it is started again.", node, reason)
                        self.losses += 1
                        for ledger in self.ledgers.values():
                            ledger.forget(node)
                    case ev.PublishRejoined(node):
                        logger.info("%s is back", node)
                        self._publish(m.NodeRejoined(self.spec.address(node)))
                        rejoined = node
                    case ev.CancelJob():
                        cancel = True
                    case ev.Conclude(error) if error is not None:
                        logger.debug("cluster concluded: %s", type(error).__name__)
            if instructions or not isinstance(event, (ev.Seen, ev.Pulse, ev.Tick)):
                self._changed.notify_all()
        if cancel:
            self._cancel_job()
        if rejoined is not None and self._on_rejoin is not None:
            self._on_rejoin(rejoined)

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition` holds; return whether it does. It is evaluated under the coordinator's lock.

        Frequent changes, such as reports and commits, do not wake the waiting threads; these detect such changes within
        `LOOK_SECONDS`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def look(self, at: Callable[[], T]) -> T:
        """Call `at` under the coordinator's lock and return its result."""
        with self._changed:
            return at()

    @property
    def feeding(self) -> bool:
        """Whether a feed is running."""
        return self._feed >= 0

    @property
    def spec(self) -> ClusterSpec:
        """Addresses of all nodes that have registered."""
        addresses = [r.address for r in self.lifecycle.records.values() if r.address is not None]
        return ClusterSpec(tuple(addresses))

    def begin_feed(self, message: m.FeedBegins, targets: Sequence[Target], shapes: Shapes | None = None) -> FeedLedger:
        """Open the ledger of a feed; announce the feed to the nodes, and its `shapes` if they are settled."""
        with self._changed:
            shapes = self._shapes[message.feed] = shapes or Shapes(message.columns)
            shapes.begin()
            self.ledger = FeedLedger(targets, message.seed if message.reproducible else None)
            self.ledgers[message.feed] = self.ledger
            self.feed_error = None
            self.feed_began = time.monotonic()
            self._feed = message.feed
            self._epochs_to_read = 0 if message.name else message.epochs - message.first_epoch
            self._publish(message)
            if shapes.has_open and shapes.settled is not None:
                self._publish(m.ShapesSettled(message.feed, shapes.settled))
            return self.ledger

    def end_feed(self, feed: int) -> bool:
        """Announce that a feed is complete; return False if rows are missing because a worker was lost.

        Raises
        ------
        SchemaError
            If some rows do not fit the shapes that result from all rows.
        """
        with self._changed:
            ledger = self.ledgers[feed]
            if ledger.missing:
                return False
            self._settle(feed)
            if self.feed_error is not None:
                raise self.feed_error
            self._feed = -1
            ledger.end()
            if not self.lifecycle.rejoining:
                # A commit that has been counted arrives again if its answer got lost.
                self._ended = {feed: ledger}
                del self.ledgers[feed], self._shapes[feed]
            rows = ledger.rows
            self._publish(m.FeedEnds(feed, {str(n): r for n, r in rows.items()}))
            for warning in self._unread.fed(rows, self._epochs_to_read):
                logger.warning("%s", warning)
            return True

    def cancel_feed(self, feed: int, reason: str) -> None:
        """Announce that a feed has failed or was cancelled."""
        with self._changed:
            self._feed = -1
            del self.ledgers[feed], self._shapes[feed]
            self._publish(m.FeedCancelled(feed, reason))

    def _settle(self, feed: int) -> None:
        shapes = self._shapes[feed]
        if shapes.settled is not None:
            return
        try:
            self._publish(m.ShapesSettled(feed, shapes.settle()))
        except SchemaError as e:
            self.feed_error = self.feed_error or e
            self._changed.notify_all()

    def on_rejoin(self, call: Callable[[NodeId], None]) -> None:
        """Register `call`, which is called with each lost node that has come back."""
        self._on_rejoin = call

    @property
    def away(self) -> set[NodeId]:
        """Lost nodes that are expected to come back."""
        return {n for n, r in self.lifecycle.records.items() if r.away_since is not None}

    @property
    def feed_begun(self) -> int:
        """Number of the feed that a chief with parameter servers has last begun to read; -1 before the first feed."""
        return self._position.feed

    def publish(self, event: m.Event) -> None:
        """Append an event to the event log of all nodes."""
        with self._changed:
            self._publish(event)

    def _describe_stall(self, node: NodeId, seconds: float) -> str:
        ledger = self.ledger
        state = f" {ledger.describe(node)}" if ledger is not None and self._feed >= 0 else ""
        host = self.lifecycle.records[node].host
        return f"{node} on {host} has waited {seconds:.0f} s for rows; the others wait for it.{state}"

    def _describe_silence(self, node: NodeId, seconds: float) -> str:
        host, limits = self.lifecycle.records[node].host, self.lifecycle.limits
        return (
            f"The Spark task that supervises {node} on {host} has said nothing for {seconds:.0f} s, though the node's "
            f"own process answers. It counts as lost after {limits.patience:.0f} s (setting silence_patience)."
        )

    def wake(self) -> None:
        """Make all threads in `wait` evaluate their conditions again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the ticker, wake all waiting threads and stop the server."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
            self._published.notify_all()
        if threading.current_thread() is not self._ticker:
            self._ticker.join()
        self._server.close()

    # --- handlers, called by Flight's threads

    def _publish(self, event: m.Event) -> None:
        self._events.append(event)
        self._published.notify_all()

    def _tick(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            self.post(ev.Tick())

    def _on_attach(self, msg: m.Attach) -> m.Message:
        if msg.version != m.PROTOCOL_VERSION:
            reason = f"executors have another version of tfspark (protocol {msg.version}, not {m.PROTOCOL_VERSION})"
            self.post(ev.NodeRaised(msg.node, reason, "", "Install the same one everywhere."))
            return m.AttachAnswer(go=False)
        self.post(ev.TaskAttached(msg.node, msg.host, msg.attempt, msg.stage))
        return m.AttachAnswer(self.lifecycle.phase is lc.Phase.STARTING)

    def _on_heartbeat(self, msg: m.Heartbeat) -> m.Message:
        node = msg.node
        history = self.histories[node]
        history.memory_bytes = msg.rss_bytes
        history.lines.extend(msg.lines)
        for line in msg.lines:
            self.log.append(f"[{node}] {line}")
            node_logger.info("[%s] %s", node, line)
        self.post(ev.Seen(node, msg.stopped))
        if msg.pulse is not None:
            self._take_pulse(msg.pulse)
        return m.HeartbeatAnswer(
            self._release_grace, self.lifecycle.records[node].kill, self._interval(self._settings.heartbeat_interval)
        )

    def _interval(self, usual: float) -> float:
        """Return the seconds until a node's next heartbeat or pulse; with many nodes the interval is longer."""
        settings = self._settings
        seconds = max(usual, min(len(self.histories) / settings.signs_per_second, settings.longest_interval))
        if len(self.histories) < MANY_NODES:
            return seconds
        return seconds - (time.monotonic() + seconds) % TOGETHER_SECONDS

    def _on_exited(self, msg: m.Exited) -> m.Message:
        known = self._exits.get(msg.node)
        if known is not None and known[0] == msg.process:
            return known[1]
        self.post(ev.NodeExited(msg.node, msg.code, tuple(msg.log_tail), msg.stopped_by_us, msg.out_of_memory))
        record = self.lifecycle.records[msg.node]
        # A new process must listen on the same port, because TensorFlow in the other nodes knows this address.
        again = record.address.port if record.exited is None and record.address is not None else None
        answer = m.ExitedAnswer(again)
        self._exits[msg.node] = (msg.process, answer)
        return answer

    def _on_register(self, msg: m.Register) -> None:
        self.post(ev.NodeRegistered(msg.address))

    def _on_poll(self, msg: m.Poll) -> m.Message:
        def ready() -> bool:
            return self._forgotten + len(self._events) > msg.since or self._closing.is_set()

        with self._changed:
            self._forget_events(msg.node, msg.since)
            self._published.wait_for(ready, msg.seconds)
            return m.Events(self._events[max(0, msg.since - self._forgotten) :])

    def _forget_events(self, node: NodeId, since: int) -> None:
        """Delete events that all nodes have received; a stream adds two events for each of its micro-batches."""
        self._polled[node] = max(self._polled[node], since)
        if not self.lifecycle.rejoining:
            # A node that comes back needs all events.
            had_by_all = min(self._polled.values())
            del self._events[: max(0, had_by_all - self._forgotten)]
            self._forgotten = max(self._forgotten, had_by_all)

    def _on_entered(self, msg: m.Entered) -> None:
        self.startup[msg.node] = msg.seconds
        self.post(ev.NodeEntered(msg.node))

    def _on_result_part(self, msg: m.ResultPart) -> None:
        self.results.write(msg.node, msg.offset, msg.part)

    def _on_finished(self, msg: m.Finished) -> None:
        if msg.node in self.results:
            # The node sends the message again because the first answer got lost.
            return
        self.results.complete(msg.node, msg.result_bytes)
        with self._changed:
            self.histories[msg.node].finished(time.monotonic(), msg.rows_read)
            warning = self._unread.returned(msg.node, msg.rows_read, msg.is_reading)
        # If the chief runs a custom loop with parameter servers, the workers count the rows that they read.
        reads_itself = self._position.feed >= 0 or not any(h.latest.rows_read for h in self.histories.values())
        if warning is not None and (reads_itself or not self.lifecycle.rejoining):
            logger.warning("%s", warning)
        self.post(ev.NodeFinished(msg.node))
        with self._changed:
            self._agree_on_resuming()
            # Nodes may wait for an export that the chief has not written.
            self._published.notify_all()

    def _on_raised(self, msg: m.Raised) -> None:
        self.post(ev.NodeRaised(msg.node, msg.reason, msg.traceback, msg.hint, msg.final))

    def _on_resume(self, msg: m.Resume) -> m.Message:
        with self._changed:
            if msg.epochs is not None or msg.node not in self._proposals:
                self._proposals[msg.node] = msg.epochs
            self._agree_on_resuming()
            self._published.wait_for(self._is_resuming_decided, msg.seconds)
            return m.ResumeAnswer(self.resume_at)

    def _is_resuming_decided(self) -> bool:
        return self.resume_at is not None or self._release_grace is not None or self._closing.is_set()

    @property
    def undecided(self) -> list[NodeId]:
        """Nodes that have not yet reported the epochs from which they can resume."""
        records = self.lifecycle.records
        needed = [n for n in resuming_nodes(self.lifecycle.nodes) if records[n].state is not lc.NodeState.FINISHED]
        return [n for n in needed if n not in self._proposals]

    def _agree_on_resuming(self) -> None:
        if self.resume_at is None and self.lifecycle.phase is lc.Phase.RUNNING and not self.undecided:
            said = [set(epochs) for epochs in self._proposals.values() if epochs is not None]
            self.resume_at = max(set.intersection(*said), default=0) if said else 0
            self._changed.notify_all()
            self._published.notify_all()

    def _on_exported(self, msg: m.Exported) -> None:
        with self._changed:
            self._exports[msg.base, msg.number] = msg.path
            self._published.notify_all()

    def _on_which_export(self, msg: m.WhichExport) -> m.Message:
        chief = next(r for n, r in self.lifecycle.records.items() if is_chief(n, self.lifecycle.nodes))

        def path() -> str | None:
            return self._exports.get((msg.base, msg.number))

        def returned() -> bool:
            return chief.state is lc.NodeState.FINISHED

        with self._changed:
            self._published.wait_for(lambda: path() or returned() or self._closing.is_set(), msg.seconds)
            return m.WhichExportAnswer(path(), returned())

    def _on_open_columns(self, msg: m.OpenColumns) -> None:
        with self._changed:
            self.open_columns = msg.columns
            self._changed.notify_all()

    def _on_report(self, msg: m.Report) -> None:
        self.reports[msg.node] = Reported(msg.step, msg.metrics, time.monotonic())
        self.histories[msg.node].curve.add(msg.step, msg.metrics)
        self.on_report(msg.node, msg.step, msg.metrics)

    def _on_epoch_ended(self, msg: m.EpochEnded) -> None:
        self.histories[msg.node].epoch_ended(EndedEpoch(msg.epoch, msg.epochs, time.monotonic(), msg.metrics))
        self.on_epoch_ended(msg.epoch, msg.epochs)

    def _on_pulse(self, msg: m.Pulse) -> m.Message:
        self._take_pulse(msg)
        return m.PulseAnswer(self._interval(self._settings.pulse_interval))

    def _take_pulse(self, msg: m.Pulse) -> None:
        spent = msg.input_seconds
        times = InputTimes(*(spent.get(s, 0.0) for s in ("waiting", "preparing", "ahead")))
        history = self.histories[msg.node]
        history.gpus = tuple(msg.gpus)
        # A node that has finished has said how many rows it has read; the pulse may have been sent before.
        least = history.latest.rows_read if msg.node in self.results else 0
        history.pulse(Sample(time.monotonic(), max(msg.rows_read, least), msg.step, times))
        self.post(ev.Pulse(msg.node, msg.waiting_seconds, msg.step_seconds, msg.busy, msg.stack))

    def _on_commit(self, msg: m.Commit) -> m.Message:
        with self._changed:
            ledger = self.ledgers.get(msg.feed) or self._ended.get(msg.feed)
            counts = ledger is not None and ledger.commit(msg.partition, msg.upload, msg.node, msg.rows, msg.bytes_)
        return m.CommitAnswer(counts)

    def _on_assign(self, msg: m.Assign) -> m.Message:
        with self._changed:
            ledger = self.ledgers.get(msg.feed)
            away = self.away if self.lifecycle.rejoining else ()
            node = ledger.assign(msg.partition, msg.upload, msg.host, msg.attempt, away) if ledger else None
            if ledger is None or node is None:
                return m.AssignAnswer(None)
            shapes = self._shapes[msg.feed]
            shapes.saw(node, msg.lengths)
            if shapes.settled is None and shapes.has_seen({t.node for t in ledger.targets} - self.away):
                self._settle(msg.feed)
            return m.AssignAnswer(self.lifecycle.records[node].address, shapes.settled)

    def _on_length_varies(self, msg: m.LengthVaries) -> m.Message:
        with self._changed:
            shapes = self._shapes.get(msg.feed)
            if shapes is None:
                return m.LengthVariesAnswer(None)
            shapes.saw_other(msg.other)
            return m.LengthVariesAnswer(shapes.settled)

    def _on_epoch_begins(self, msg: m.EpochBegins) -> None:
        with self._changed:
            self._position = msg
            for feed in [f for f in self.ledgers if f < msg.feed]:
                del self.ledgers[feed], self._shapes[feed]

    def _on_which_epoch(self, _: m.WhichEpoch) -> m.Message:
        return self._position

    def _on_feed_failed(self, msg: m.FeedFailed) -> None:
        cls = SchemaError if msg.kind == SchemaError.__name__ else FeedError
        with self._changed:
            if msg.feed != self._feed:
                return
            where = f"Feeding partition {msg.partition} failed: "
            self.feed_error = self.feed_error or cls(where + msg.message, hint=msg.hint or None)
            self._changed.notify_all()
        # Cancel the job before the task gets its answer and fails, so that Spark does not retry the task.
        self.on_feed_error()
