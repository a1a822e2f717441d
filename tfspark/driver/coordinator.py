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

from tfspark.driver import lifecycle as lc
from tfspark.driver.ledger import FeedLedger, Target
from tfspark.errors import FeedError, SchemaError, TFSparkError
from tfspark.spec import ClusterSpec, NodeAddress, NodeId, server_nodes, spec_to_json
from tfspark.transport import messages as m
from tfspark.transport.auth import Secret
from tfspark.transport.server import MessageServer

logger = logging.getLogger(__name__)
node_logger = logging.getLogger("tfspark.node")

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
    """

    def __init__(
        self,
        host: str,
        secret: Secret,
        nodes: Sequence[NodeId],
        limits: lc.Limits,
        cancel_job: Callable[[], None],
    ) -> None:
        self.lifecycle = lc.Lifecycle(nodes, limits, time.monotonic(), server_nodes(nodes))
        self.results: dict[NodeId, bytes] = {}
        self.reports: dict[NodeId, Reported] = {}
        self.on_report: Callable[[NodeId, int, dict[str, float]], None] = lambda node, step, metrics: None
        self.startup: dict[NodeId, dict[str, float]] = {}
        self.log: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self.feed_error: TFSparkError | None = None
        self.ledger: FeedLedger | None = None
        self._feed = -1
        self._cancel_job = cancel_job
        self._events: list[m.Message] = []
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
                m.Report: self._on_report,
                m.Pulse: self._on_pulse,
                m.Commit: self._on_commit,
                m.Assign: self._on_assign,
                m.FeedFailed: self._on_feed_failed,
            },
        )
        self.port = self._server.port
        self._ticker = threading.Thread(target=self._tick, name="tfspark-coordinator", daemon=True)
        self._ticker.start()

    # --- for the cluster handle

    def post(self, event: lc.Event) -> None:
        """Feed an event to the lifecycle and carry out what follows."""
        cancel = False
        with self._changed:
            for instruction in self.lifecycle.handle(event, time.monotonic()):
                match instruction:
                    case lc.PublishSpec():
                        self._publish(m.SpecComplete(spec_to_json(self.spec)))
                    case lc.PublishRelease():
                        self._release_grace = self.lifecycle.limits.grace
                        self._publish(m.AllFinished())
                    case lc.PublishStop(grace, reason):
                        self._release_grace = grace
                        self._publish(m.Stop(grace, reason))
                    case lc.WarnOfStall(node, seconds):
                        logger.warning("%s", self._describe_stall(node, seconds))
                    case lc.CancelJob():
                        cancel = True
                    case lc.Conclude(error) if error is not None:
                        logger.debug("cluster concluded: %s", type(error).__name__)
            self._changed.notify_all()
        if cancel:
            self._cancel_job()

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition` holds; it is evaluated under the coordinator's lock."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout))

    @property
    def spec(self) -> ClusterSpec:
        """Addresses of all nodes that have registered."""
        addresses = [r.address for r in self.lifecycle.records.values() if r.address is not None]
        return ClusterSpec(tuple(addresses))

    def begin_feed(self, message: m.FeedBegins, targets: Sequence[Target]) -> FeedLedger:
        """Open the books of a feed and announce it."""
        with self._changed:
            self.ledger = FeedLedger(targets, message.seed if message.reproducible else None)
            self.feed_error = None
            self._feed = message.feed
            self._publish(message)
            return self.ledger

    def end_feed(self, message: m.FeedEnds | m.FeedCancelled) -> None:
        """Announce that a feed is complete, or was given up."""
        with self._changed:
            self._feed = -1
            self._publish(message)

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
            self.post(lc.Tick())

    def _on_attach(self, msg: m.Attach) -> bytes:
        if msg.version != m.PROTOCOL_VERSION:
            reason = f"executors have another version of tfspark (protocol {msg.version}, not {m.PROTOCOL_VERSION})"
            self.post(lc.NodeRaised(NodeId(msg.role, msg.index), reason, "", "Install the same one everywhere."))
            return b'{"go": false}'
        self.post(lc.TaskAttached(NodeId(msg.role, msg.index), msg.host, msg.attempt))
        go = self.lifecycle.phase is lc.Phase.STARTING
        return json.dumps({"go": go}).encode()

    def _on_heartbeat(self, msg: m.Heartbeat) -> bytes:
        node = NodeId(msg.role, msg.index)
        for line in msg.lines:
            self.log.append(f"[{node}] {line}")
            node_logger.info("[%s] %s", node, line)
        self.post(lc.Seen(node, msg.stopped))
        return json.dumps({"stop_grace": self._release_grace}).encode()

    def _on_exited(self, msg: m.Exited) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.post(lc.NodeExited(node, msg.code, tuple(msg.log_tail), msg.stopped_by_us))
        return b"{}"

    def _on_register(self, msg: m.Register) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.post(lc.NodeRegistered(NodeAddress(node, msg.host, msg.port, msg.data_port, msg.pid)))
        return b"{}"

    def _on_poll(self, msg: m.Poll) -> bytes:
        def ready() -> bool:
            return len(self._events) > msg.since or self._closing.is_set()

        with self._changed:
            self._changed.wait_for(ready, msg.seconds)
            return m.encode_events(self._events[msg.since :])

    def _on_entered(self, msg: m.Entered) -> bytes:
        self.startup[NodeId(msg.role, msg.index)] = msg.seconds
        self.post(lc.NodeEntered(NodeId(msg.role, msg.index)))
        return b"{}"

    def _on_finished(self, msg: m.Finished) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.results[node] = msg.result
        self.post(lc.NodeFinished(node))
        return b"{}"

    def _on_raised(self, msg: m.Raised) -> bytes:
        self.post(lc.NodeRaised(NodeId(msg.role, msg.index), msg.reason, msg.traceback, msg.hint))
        return b"{}"

    def _on_report(self, msg: m.Report) -> bytes:
        node = NodeId(msg.role, msg.index)
        self.on_report(node, msg.step, msg.metrics)
        with self._changed:
            self.reports[node] = Reported(msg.step, msg.metrics, time.monotonic())
            self._changed.notify_all()
        return b"{}"

    def _on_pulse(self, msg: m.Pulse) -> bytes:
        self.post(lc.Pulse(NodeId(msg.role, msg.index), msg.waiting_seconds))
        return b"{}"

    def _on_commit(self, msg: m.Commit) -> bytes:
        with self._changed:
            counts = (
                msg.feed == self._feed
                and self.ledger is not None
                and self.ledger.commit(msg.partition, msg.upload, NodeId(msg.role, msg.index), msg.rows, msg.bytes_)
            )
            self._changed.notify_all()
        return json.dumps({"committed": counts}).encode()

    def _on_assign(self, msg: m.Assign) -> bytes:
        with self._changed:
            if msg.feed != self._feed or self.ledger is None:
                return b'{"done": true}'
            node = self.ledger.assign(msg.partition, msg.upload, msg.host, msg.attempt)
            if node is None:
                return b'{"done": true}'
            address = self.spec.address(node)
        return json.dumps({"host": address.host, "port": address.data_port, "node": str(node)}).encode()

    def _on_feed_failed(self, msg: m.FeedFailed) -> bytes:
        cls = SchemaError if msg.kind == SchemaError.__name__ else FeedError
        with self._changed:
            if msg.feed == self._feed and self.feed_error is None:
                where = f"Feeding partition {msg.partition} failed: "
                self.feed_error = cls(where + msg.message, hint=msg.hint or None)
                self._changed.notify_all()
        return b"{}"
