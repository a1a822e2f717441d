"""The driver's server: rendezvous, liveness, the feed ledger and the event log that nodes follow.

It turns messages into lifecycle events and carries out the instructions that come back. Nodes and Spark tasks call
it; it calls nobody.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tfspark.driver import events as ev
from tfspark.driver import lifecycle as lc
from tfspark.driver.bottleneck import InputTimes
from tfspark.driver.ledger import FeedLedger, Target
from tfspark.driver.monitor import Monitor, Sample
from tfspark.errors import FeedError, SchemaError, TFSparkError
from tfspark.spec import (
    ClusterSpec,
    NodeAddress,
    NodeId,
    rejoining_nodes,
    resuming_nodes,
    server_nodes,
    spec_to_json,
)
from tfspark.transport import messages as m
from tfspark.transport.auth import Secret
from tfspark.transport.ports import Ports
from tfspark.transport.server import MessageServer

logger = logging.getLogger(__name__)
node_logger = logging.getLogger("tfspark.node")

T = TypeVar("T")

TICK_SECONDS = 0.25
KEPT_LOG_LINES = 200


@dataclass(frozen=True)
class Reported:
    """The newest metrics a node has reported."""

    step: int
    metrics: dict[str, float]
    time: float


class Coordinator:
    """Serves one cluster.

    Parameters
    ----------
    host
        Address to bind.
    secret
        The cluster's.
    nodes
        Its nodes.
    limits
        Deadlines.
    cancel_job
        Cancels the Spark job; called from the coordinator's own thread.
    ports
        Range of the port to listen on; any by default.
    """

    def __init__(
        self,
        host: str,
        secret: Secret,
        nodes: Sequence[NodeId],
        limits: lc.Limits,
        cancel_job: Callable[[], None],
        ports: Ports | None = None,
    ) -> None:
        self.lifecycle = lc.Lifecycle(
            nodes, limits, time.monotonic(), server_nodes(nodes), rejoining_nodes(nodes), TICK_SECONDS
        )
        self.results: dict[NodeId, bytes] = {}
        self.reports: dict[NodeId, Reported] = {}
        self.startup: dict[NodeId, dict[str, float]] = {}
        self.monitor = Monitor(nodes)
        self.on_report: Callable[[NodeId, int, dict[str, float]], None] = lambda node, step, metrics: None
        self.log: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self.feed_error: TFSparkError | None = None
        self.ledger: FeedLedger | None = None
        self.ledgers: dict[int, FeedLedger] = {}
        self.losses = 0
        self._position = m.EpochBegins(-1, -1)
        self._on_rejoin: Callable[[NodeId], None] | None = None
        self.resume_at: int | None = None
        self._proposals: dict[NodeId, Sequence[int] | None] = {}
        self.began = self.feed_began = time.monotonic()
        self._feed = -1
        self._cancel_job = cancel_job
        self._events: list[m.Message] = []
        self._forgotten = 0
        self._polled = dict.fromkeys(nodes, 0)
        self._changed = threading.Condition(threading.RLock())
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
                m.Finished: self._on_finished,
                m.Raised: self._on_raised,
                m.Resume: self._on_resume,
                m.EpochBegins: self._on_epoch_begins,
                m.WhichEpoch: self._on_which_epoch,
                m.Report: self._on_report,
                m.Pulse: self._on_pulse,
                m.Commit: self._on_commit,
                m.Assign: self._on_assign,
                m.FeedFailed: self._on_feed_failed,
            },
            ports,
        )
        self.port = self._server.port
        self._ticker = threading.Thread(target=self._tick, name="tfspark-coordinator", daemon=True)
        self._ticker.start()

    # --- for the cluster handle

    def post(self, event: ev.Event) -> None:
        """Feed an event to the lifecycle and carry out what follows."""
        cancel, rejoined = False, None
        with self._changed:
            for instruction in self.lifecycle.handle(event, time.monotonic()):
                match instruction:
                    case ev.PublishSpec():
                        self._publish(m.SpecComplete(spec_to_json(self.spec)))
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
                    case ev.PublishLoss(node, reason):
                        logger.warning("%s was lost: %s. The others go on; it is started again.", node, reason)
                        self.losses += 1
                        for ledger in self.ledgers.values():
                            ledger.forget(node)
                    case ev.PublishRejoined(node):
                        logger.info("%s is back", node)
                        self._publish(m.NodeRejoined(spec_to_json(ClusterSpec((self.spec.address(node),)))[0]))
                        rejoined = node
                    case ev.CancelJob():
                        cancel = True
                    case ev.Conclude(error) if error is not None:
                        logger.debug("cluster concluded: %s", type(error).__name__)
            self._changed.notify_all()
        if cancel:
            self._cancel_job()
        if rejoined is not None and self._on_rejoin is not None:
            self._on_rejoin(rejoined)

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition` holds; it is evaluated under the coordinator's lock."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout))

    def look(self, at: Callable[[], T]) -> T:
        """Return what `at` returns, called while nothing changes."""
        with self._changed:
            return at()

    @property
    def feeding(self) -> bool:
        """Whether a feed is under way."""
        return self._feed >= 0

    @property
    def spec(self) -> ClusterSpec:
        """Addresses of all nodes that have registered."""
        addresses = [r.address for r in self.lifecycle.records.values() if r.address is not None]
        return ClusterSpec(tuple(addresses))

    def begin_feed(self, message: m.FeedBegins, targets: Sequence[Target]) -> FeedLedger:
        """Open the books of a feed and announce it."""
        with self._changed:
            self.ledger = FeedLedger(targets, message.seed if message.reproducible else None)
            self.ledgers[message.feed] = self.ledger
            self.feed_error = None
            self.feed_began = time.monotonic()
            self._feed = message.feed
            self._publish(message)
            return self.ledger

    def end_feed(self, feed: int) -> bool:
        """Announce that a feed is complete; false if rows are missing because a worker was lost."""
        with self._changed:
            ledger = self.ledgers[feed]
            if ledger.missing:
                return False
            self._feed = -1
            ledger.end()
            if not self.lifecycle.rejoining:
                del self.ledgers[feed]
            self._publish(m.FeedEnds(feed, {str(n): r for n, r in ledger.rows.items()}))
            return True

    def cancel_feed(self, feed: int, reason: str) -> None:
        """Announce that a feed was given up."""
        with self._changed:
            self._feed = -1
            del self.ledgers[feed]
            self._publish(m.FeedCancelled(feed, reason))

    def on_rejoin(self, call: Callable[[NodeId], None]) -> None:
        """Have `call` called with each node that has come back."""
        self._on_rejoin = call

    @property
    def away(self) -> set[NodeId]:
        """Nodes that were lost and are awaited."""
        return {n for n, r in self.lifecycle.records.items() if r.away_since is not None}

    @property
    def feed_begun(self) -> int:
        """Number of the feed that a chief with parameter servers has begun to read; -1 before the first."""
        return self._position.feed

    def publish(self, event: m.Message) -> None:
        """Append an event for every node."""
        with self._changed:
            self._publish(event)

    def _describe_stall(self, node: NodeId, seconds: float) -> str:
        ledger = self.ledger
        state = f" {ledger.describe(node)}" if ledger is not None and self._feed >= 0 else ""
        host = self.lifecycle.records[node].host
        return f"{node} on {host} has waited {seconds:.0f} s for rows; the others wait for it.{state}"

    def wake(self) -> None:
        """Have everyone who waits look at their condition again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the ticker, wake all waiters and stop serving."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if threading.current_thread() is not self._ticker:
            self._ticker.join()
        self._server.close()

    # --- handlers, called by Flight's threads

    def _publish(self, event: m.Message) -> None:
        self._events.append(event)
        self._changed.notify_all()

    def _tick(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            self.post(ev.Tick())

    def _on_attach(self, msg: m.Attach) -> bytes:
        if msg.version != m.PROTOCOL_VERSION:
            reason = f"executors have another version of tfspark (protocol {msg.version}, not {m.PROTOCOL_VERSION})"
            self.post(ev.NodeRaised(NodeId(msg.role, msg.index), reason, "", "Install the same one everywhere."))
            return b'{"go": false}'
        self.post(ev.TaskAttached(NodeId(msg.role, msg.index), msg.host, msg.attempt, msg.stage))
        go = self.lifecycle.phase is lc.Phase.STARTING
        return json.dumps({"go": go}).encode()

    def _on_heartbeat(self, msg: m.Heartbeat) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.monitor.nodes[node].memory_bytes = msg.rss_bytes
        self.monitor.nodes[node].lines.extend(msg.lines)
        for line in msg.lines:
            self.log.append(f"[{node}] {line}")
            node_logger.info("[%s] %s", node, line)
        self.post(ev.Seen(node, msg.stopped))
        return json.dumps({"stop_grace": self._release_grace, "kill": self.lifecycle.records[node].kill}).encode()

    def _on_exited(self, msg: m.Exited) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.post(ev.NodeExited(node, msg.code, tuple(msg.log_tail), msg.stopped_by_us, msg.out_of_memory))
        record = self.lifecycle.records[node]
        # TensorFlow knows it by its address.
        again = record.address.port if record.exited is None and record.address is not None else None
        return json.dumps({"respawn_port": again}).encode()

    def _on_register(self, msg: m.Register) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.post(ev.NodeRegistered(NodeAddress(node, msg.host, msg.port, msg.data_port, msg.pid)))
        return b"{}"

    def _on_poll(self, msg: m.Poll) -> bytes:
        def ready() -> bool:
            return self._forgotten + len(self._events) > msg.since or self._closing.is_set()

        with self._changed:
            self._forget_events(NodeId(msg.role, msg.index), msg.since)
            self._changed.wait_for(ready, msg.seconds)
            return m.encode_events(self._events[max(0, msg.since - self._forgotten) :])

    def _forget_events(self, node: NodeId, since: int) -> None:
        """Let go of events that all nodes have: a stream makes two with each of its batches."""
        self._polled[node] = max(self._polled[node], since)
        if not self.lifecycle.rejoining:
            # A node that comes back asks for all of them.
            had_by_all = min(self._polled.values())
            del self._events[: max(0, had_by_all - self._forgotten)]
            self._forgotten = max(self._forgotten, had_by_all)

    def _on_entered(self, msg: m.Entered) -> bytes:
        self.startup[NodeId(msg.role, msg.index)] = msg.seconds
        self.post(ev.NodeEntered(NodeId(msg.role, msg.index)))
        return b"{}"

    def _on_finished(self, msg: m.Finished) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.results[node] = msg.result
        self.post(ev.NodeFinished(node))
        with self._changed:
            self._agree_on_resuming()
        return b"{}"

    def _on_raised(self, msg: m.Raised) -> bytes:
        self.post(ev.NodeRaised(NodeId(msg.role, msg.index), msg.reason, msg.traceback, msg.hint, msg.final))
        return b"{}"

    def _on_resume(self, msg: m.Resume) -> bytes:
        with self._changed:
            node = NodeId(msg.role, msg.index)
            if msg.epochs is not None or node not in self._proposals:
                self._proposals[node] = msg.epochs
            self._agree_on_resuming()
            self._changed.wait_for(lambda: self.resume_at is not None or self._closing.is_set(), msg.seconds)
            return json.dumps({"epochs": self.resume_at}).encode()

    @property
    def undecided(self) -> list[NodeId]:
        """Nodes that have still to say which epoch they can go on from."""
        records = self.lifecycle.records
        needed = [n for n in resuming_nodes(self.lifecycle.nodes) if records[n].state is not lc.NodeState.FINISHED]
        return [n for n in needed if n not in self._proposals]

    def _agree_on_resuming(self) -> None:
        if self.resume_at is None and self.lifecycle.phase is lc.Phase.RUNNING and not self.undecided:
            said = [set(epochs) for epochs in self._proposals.values() if epochs is not None]
            self.resume_at = max(set.intersection(*said), default=0) if said else 0
            self._changed.notify_all()

    def _on_report(self, msg: m.Report) -> bytes:
        node = NodeId(msg.role, msg.index)
        with self._changed:
            self.reports[node] = Reported(msg.step, msg.metrics, time.monotonic())
            self.monitor.nodes[node].curve.add(msg.step, msg.metrics)
            self._changed.notify_all()
        self.on_report(node, msg.step, msg.metrics)
        return b"{}"

    def _on_pulse(self, msg: m.Pulse) -> bytes:
        node, spent = NodeId(msg.role, msg.index), msg.input_seconds
        times = InputTimes(*(spent.get(s, 0.0) for s in ("waiting", "preparing", "ahead")))
        self.monitor.nodes[node].gpus = tuple(msg.gpus)
        self.monitor.nodes[node].pulse(Sample(time.monotonic(), msg.rows_read, msg.step, times))
        self.post(ev.Pulse(node, msg.waiting_seconds, msg.step_seconds, msg.busy, msg.stack))
        return b"{}"

    def _on_commit(self, msg: m.Commit) -> bytes:
        with self._changed:
            ledger = self.ledgers.get(msg.feed)
            node = NodeId(msg.role, msg.index)
            counts = ledger is not None and ledger.commit(msg.partition, msg.upload, node, msg.rows, msg.bytes_)
            self._changed.notify_all()
        return json.dumps({"committed": counts}).encode()

    def _on_assign(self, msg: m.Assign) -> bytes:
        with self._changed:
            ledger = self.ledgers.get(msg.feed)
            if ledger is None:
                return b'{"done": true}'
            node = ledger.assign(msg.partition, msg.upload, msg.host, msg.attempt, self.away)
            if node is None:
                return b'{"done": true}'
            address = self.spec.address(node)
        return json.dumps({"host": address.host, "port": address.data_port, "node": str(node)}).encode()

    def _on_epoch_begins(self, msg: m.EpochBegins) -> bytes:
        with self._changed:
            self._position = msg
            for feed in [f for f in self.ledgers if f < msg.feed]:
                del self.ledgers[feed]
        return b"{}"

    def _on_which_epoch(self, _: m.WhichEpoch) -> bytes:
        return self._position.encode()

    def _on_feed_failed(self, msg: m.FeedFailed) -> bytes:
        cls = SchemaError if msg.kind == SchemaError.__name__ else FeedError
        with self._changed:
            if msg.feed == self._feed and self.feed_error is None:
                where = f"Feeding partition {msg.partition} failed: "
                self.feed_error = cls(where + msg.message, hint=msg.hint or None)
                self._changed.notify_all()
        return b"{}"
