"""A node's connection with the coordinator: registration, the events it follows, and what it reports.

Owns the spool and the server that fills it. No TensorFlow in here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import ClusterStopped, FeedError, TFSparkError
from tfspark.schema import ColumnSpec
from tfspark.spec import ClusterSpec, NodeId, spec_from_json
from tfspark.transport import messages as m
from tfspark.transport.auth import Secret
from tfspark.transport.client import MessageClient
from tfspark.transport.receiver import Receiver
from tfspark.transport.serving import Serving
from tfspark.transport.spool import DEFAULT_MEMORY_BYTES, Feed, Spool, stopped_error
from tfspark.transport.step_clock import StepClock

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How long the coordinator may hold a poll back when there is nothing to say."""

PULSE_SECONDS = 1.0
"""How often the coordinator hears from the process itself."""

LAST_WORD_SECONDS = 1.0
"""How long the coordinator's last word may come after the supervisor's."""

COMMIT_TRIES = 3


class CoordinatorLink:
    """What one node knows of its cluster.

    Parameters
    ----------
    plan
        The header of the payload that the supervisor handed over.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.node = NodeId(plan["role"], plan["index"])
        self.nodes = tuple(NodeId(r, i) for r, i in plan["nodes"])
        self.host = plan["host"]
        self.stopping = threading.Event()
        self.spool = Spool(plan["spool_directory"], plan["spool_bytes"], min(DEFAULT_MEMORY_BYTES, plan["spool_bytes"]))
        secret = Secret.from_json(plan["secret"])
        self._client = MessageClient(plan["coordinator"][0], plan["coordinator"][1], secret.for_clients())
        self.serving = Serving()
        self._receiver = Receiver(
            self.host, secret, self.spool, self._may_commit, self._refused, self.serving, plan["ports"]
        )
        self._changed = threading.Condition()
        self._spec: ClusterSpec | None = None
        self.released = False
        self._has_last_word = False
        self.training_ended = threading.Event()
        self._resumed: int | None = None
        self.step = 0
        self.step_clock = StepClock()
        self._gpus = list(plan["options"].get("gpus", ()))
        self._leaving = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="events", daemon=True)
        self._pulse = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def register(self, port: int) -> None:
        """Tell the coordinator where this node listens, and begin to follow its events."""
        role, index = self.node.role, self.node.index
        self._client.send(m.Register(role, index, self.host, port, self._receiver.port, os.getpid()))
        self._follower.start()
        self._pulse.start()

    def wait_for_spec(self) -> ClusterSpec:
        """Wait until all nodes have registered; the coordinator holds the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: self._spec is not None or self.stopping.is_set())
            if self._spec is None:
                raise ClusterStopped("The cluster was stopped before all its nodes had started.")
            return self._spec

    def wait_for_release(self) -> None:
        """Wait until every node has finished: the others' collectives still need this process."""
        with self._changed:
            self._changed.wait_for(lambda: self.released or self.stopping.is_set())
            # The supervisor has its word with a heartbeat, which may be answered before the poll is.
            self._changed.wait_for(lambda: self.released or self._has_last_word, LAST_WORD_SECONDS)

    def resume(self, epochs: Sequence[int]) -> int:
        """Say which epochs this node can go on from, the first time it is asked; return the last one that all can.

        Raises
        ------
        ClusterStopped
            If the cluster is stopped meanwhile.
        """
        while self._resumed is None:
            if self.stopping.is_set():
                raise stopped_error("not all nodes had begun to train")
            message = m.Resume(self.node.role, self.node.index, list(epochs), POLL_SECONDS)
            self._resumed = self._client.ask(message, POLL_SECONDS + 10.0)["epochs"]
        return self._resumed

    def resume_without(self) -> None:
        """Say that the others need not wait for this node to go on, unless it has said more by then."""
        if self._resumed is None:
            self._client.send(m.Resume(self.node.role, self.node.index, None, 0.0))

    @property
    def resumed(self) -> int:
        """Epochs in the checkpoint that all nodes have gone on from; 0 if there is none, or none was asked for yet."""
        return self._resumed or 0

    def begin_epoch(self, feed: int, epoch: int) -> None:
        """Say which epoch the chief begins, for its workers to read."""
        self._client.send(m.EpochBegins(feed, epoch))

    def epoch_begun(self) -> tuple[int, int]:
        """Ask which epoch the chief has begun: feed, and number within it."""
        answer = m.EpochBegins.decode(self._client.send(m.WhichEpoch()))
        return answer.feed, answer.epoch

    def pids(self) -> dict[NodeId, int]:
        """Return the processes of all nodes as they are now."""
        with self._changed:
            return {a.node: a.pid for a in self._spec.nodes} if self._spec else {}

    def wait_for_news(self, seconds: float) -> None:
        """Wait for the next event, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def entered(self, seconds: dict[str, float]) -> None:
        """``main`` is about to be called."""
        self._client.send(m.Entered(self.node.role, self.node.index, seconds))

    def finished(self, result: bytes) -> None:
        """``main`` has returned."""
        self._client.send(m.Finished(self.node.role, self.node.index, result), timeout=60.0)
        self.spool.discard()

    def raised(self, reason: str, text: str, hint: str, final: bool) -> None:
        """``main`` has raised; `final` if it would do so again."""
        try:
            self._client.send(m.Raised(self.node.role, self.node.index, reason, text, hint, final))
        except flight.FlightError:
            logger.warning("the coordinator could not be told of the failure")

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Send metrics to the driver."""
        self._client.send(m.Report(self.node.role, self.node.index, step, metrics))

    def on_stop(self, reason: str) -> None:
        """The cluster is stopping: wake everyone who waits."""
        self.stopping.set()
        self.spool.fail(stopped_error(reason))
        self.serving.fail(stopped_error(reason))
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop following and receiving."""
        self._leaving.set()
        self.spool.fail(stopped_error("the node is leaving"))
        self.serving.fail(stopped_error("the node is leaving"))

    def _may_commit(self, header: m.PutHeader, rows: int, nbytes: int) -> bool:
        message = m.Commit(self.node.role, self.node.index, header.feed, header.partition, header.upload, rows, nbytes)
        for attempt in range(COMMIT_TRIES):
            try:
                return bool(self._client.ask(message)["committed"])
            except flight.FlightError as e:
                logger.warning("commit of partition %d: %s", header.partition, e)
                if attempt + 1 == COMMIT_TRIES:
                    # The coordinator may have counted the partition: going on could lose its rows.
                    self.spool.fail(FeedError(f"The coordinator did not answer a commit: {e}"))
                    raise
        raise AssertionError("unreachable")

    def _refused(self, header: m.PutHeader, error: TFSparkError) -> None:
        if not isinstance(error, ClusterStopped):
            kind = type(error).__name__
            self._client.send(m.FeedFailed(header.feed, header.partition, kind, error.message, error.hint or ""))

    def _beat(self) -> None:
        while not self._leaving.is_set():
            spool, seconds = self.spool, {s.value: t for s, t in self.spool.clock.seconds.items()}
            message = m.Pulse(
                self.node.role,
                self.node.index,
                spool.waiting_seconds,
                spool.rows_read,
                seconds,
                self.step,
                self._gpus,
                self.step_clock.step_seconds,
                self.step_clock.busy,
                self.step_clock.stack(),
            )
            # Who follows events notices a coordinator that is gone.
            with contextlib.suppress(flight.FlightError):
                self._client.send(message)
            self._leaving.wait(PULSE_SECONDS)

    def _follow(self) -> None:
        seen = 0
        failing_since: float | None = None
        while not self._leaving.is_set():
            try:
                body = self._client.send(
                    m.Poll(self.node.role, self.node.index, seen, POLL_SECONDS), POLL_SECONDS + 10.0
                )
                failing_since = None
            except flight.FlightError as e:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > 2 * POLL_SECONDS:
                    self._has_last_word = True
                    self.on_stop(f"the coordinator is gone: {e}")
                    return
                self.stopping.wait(0.5)
                continue
            for event in m.decode_events(body):
                seen += 1
                self._on_event(event)

    def _on_event(self, event: m.Message) -> None:
        match event:
            case m.SpecComplete(nodes):
                self._spec = spec_from_json(nodes)
            case m.FeedBegins():
                self.spool.begin_feed(_feed_of(event))
            case m.FeedEnds(feed, rows):
                self.spool.end_feed(feed, rows, rows.get(str(self.node), 0))
            case m.FeedCancelled(_, reason):
                self.spool.fail(FeedError(f"The feed was given up: {reason}"))
            case m.NoMoreFeeds():
                self.spool.no_more_feeds()
                self.serving.no_more()
            case m.NodeRejoined(node):
                (back,) = spec_from_json([node]).nodes
                assert self._spec is not None
                others = (a for a in self._spec.nodes if a.node != back.node)
                self._spec = ClusterSpec((*others, back))
            case m.TrainingEnded():
                self.training_ended.set()
            case m.AllFinished():
                self.released = True
            case m.Stop(_, reason):
                self._has_last_word = True
                self.on_stop(reason)
        with self._changed:
            self._changed.notify_all()


def tell_refusal(plan: dict[str, Any], error: TFSparkError) -> None:
    """Tell the coordinator why there will be no link."""
    host, port = plan["coordinator"]
    client = MessageClient(host, port, Secret.from_json(plan["secret"]).for_clients())
    reason = f"{type(error).__name__}: {error.message}"
    client.send(m.Raised(plan["role"], plan["index"], reason, "", error.hint or ""))
    client.close()


def _feed_of(event: m.FeedBegins) -> Feed:
    columns = tuple(ColumnSpec.from_json(c) for c in event.columns)
    schema = pa.ipc.read_schema(pa.py_buffer(event.arrow_schema))
    return Feed(
        event.feed,
        event.epochs,
        columns,
        schema,
        event.seed,
        event.in_memory,
        event.epochs_to_come,
        event.reproducible,
        event.base,
        event.first_epoch,
        event.name,
    )
