"""A node's connection with the coordinator: registration, events and reports.

`CoordinatorLink` owns the spool and the Flight server that fills it. This module does not use TensorFlow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Sequence
from typing import IO, Any, TypeVar

import pyarrow.flight as flight

from tfspark import messages as m
from tfspark.columns.spec import arrow_schema
from tfspark.errors import ClusterStopped, ConfigurationError, FeedError, TFSparkError
from tfspark.node.mailbox import Mailbox
from tfspark.node.pulses import PulseCarrier
from tfspark.node.questions import Questions
from tfspark.node.receiver import Receiver
from tfspark.node.spool import Feed, Spool, stopped_error
from tfspark.node.step_clock import StepClock
from tfspark.settings import Settings
from tfspark.spec import ClusterSpec, NodeAddress, NodeId
from tfspark.transport.auth import Secret
from tfspark.transport.client import MessageClient, without_context

logger = logging.getLogger(__name__)

LAST_WORD_SECONDS = 1.0
"""Seconds that a stopping node waits for the coordinator's stop event after the supervisor's stop command."""

DRAIN_SECONDS = 2.0
"""Seconds that a failed node waits for its last reports to be sent."""

M = TypeVar("M", bound=m.Message)


class CoordinatorLink:
    """A node's connection with its cluster.

    Parameters
    ----------
    plan
        The header of the payload from the supervisor.
    carrier
        The supervising task, which carries the pulses; without it, the node sends them itself.
    """

    def __init__(self, plan: dict[str, Any], carrier: PulseCarrier | None = None) -> None:
        self.node = NodeId(plan["role"], plan["index"])
        self.nodes = tuple(NodeId(r, i) for r, i in plan["nodes"])
        self.host = plan["host"]
        self.stopping = threading.Event()
        settings = self.settings = Settings(**plan["settings"])
        self._patience = settings.driver_timeout
        in_memory = min(plan["spool_memory_bytes"], settings.spool_bytes)
        self.spool = Spool(plan["spool_directories"], settings.spool_bytes, in_memory, settings.upload_timeout)
        secret = Secret.from_json(plan["secret"])
        self._client = MessageClient(
            plan["coordinator"][0], plan["coordinator"][1], secret.for_clients(), settings.call_timeout
        )
        self._mailbox = Mailbox(self._client.send)
        self.questions = Questions(settings.serve_timeout)
        self._receiver = Receiver(
            self.host, secret, self.spool, self._may_commit, self._refused, self.questions, plan["ports"]
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
        self._carrier = carrier
        self._leaving = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="events", daemon=True)
        self._pulse = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def register(self, port: int) -> None:
        """Tell the coordinator where this node listens, and start to follow the coordinator's events."""
        address = NodeAddress(self.node, self.host, port, self._receiver.port, os.getpid())
        self._tell(m.Register(address))
        self._follower.start()
        self._pulse.start()

    def wait_for_spec(self) -> ClusterSpec:
        """Wait until all nodes have registered and return the cluster spec; the coordinator enforces the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: self._spec is not None or self.stopping.is_set())
            if self._spec is None:
                raise ClusterStopped("The cluster was stopped before all of its nodes had started.")
            return self._spec

    def wait_for_release(self) -> None:
        """Wait until every node has finished, because collectives of the other nodes still need this process."""
        with self._changed:
            self._changed.wait_for(lambda: self.released or self.stopping.is_set())
            # The supervisor gets the stop in the answer to its heartbeat, which may come before the answer to this
            # node's poll.
            self._changed.wait_for(lambda: self.released or self._has_last_word, LAST_WORD_SECONDS)

    def resume(self, epochs: Sequence[int]) -> int:
        """Agree on the checkpoint to resume from; only the first call asks the coordinator.

        Parameters
        ----------
        epochs
            Numbers of epochs for which this node has a checkpoint.

        Returns
        -------
        int
            The largest number of epochs for which all nodes have a checkpoint; 0 if there is none.

        Raises
        ------
        ClusterStopped
            If the cluster is stopped while this node waits for the others.
        """
        while self._resumed is None:
            if self.stopping.is_set():
                raise stopped_error("some nodes had not called ctx.checkpoint or ctx.fit yet")
            message = m.Resume(self.node, list(epochs), self.settings.poll_interval)
            self._resumed = self._ask(message, m.ResumeAnswer, self._poll_timeout).epochs
        return self._resumed

    def resume_without(self) -> None:
        """Tell the other nodes not to wait for this node's checkpoints, unless `resume` was called before."""
        if self._resumed is None:
            self._tell(m.Resume(self.node, None, 0.0))

    @property
    def resumed(self) -> int:
        """Epochs of the checkpoint that all nodes resumed from; 0 if there is none, or before `resume`."""
        return self._resumed or 0

    def begin_epoch(self, feed: int, epoch: int) -> None:
        """Tell the coordinator which epoch the chief begins; the workers ask the coordinator for it."""
        self._tell(m.EpochBegins(feed, epoch))

    def epoch_begun(self) -> tuple[int, int]:
        """Return the epoch that the chief has begun, as the number of the feed and the number of the epoch in it."""
        answer = self._ask(m.WhichEpoch(), m.EpochBegins)
        return answer.feed, answer.epoch

    def exported(self, base: str, number: int, path: str) -> None:
        """Tell the other nodes the `path` of this chief's export number `number` under `base`."""
        self._tell(m.Exported(base, number, path))

    def path_of_export(self, base: str, number: int) -> str:
        """Wait for the chief's export number `number` under `base` and return its path.

        Raises
        ------
        ConfigurationError
            If the chief's ``main`` has returned without that export.
        ClusterStopped
            If the cluster is stopped during the wait.
        """
        while not self.stopping.is_set():
            message = m.WhichExport(base, number, self.settings.poll_interval)
            answer = self._ask(message, m.WhichExportAnswer, self._poll_timeout)
            if answer.path is not None:
                return answer.path
            if answer.returned:
                raise ConfigurationError(
                    f"{self.node} called ctx.export for {base!r} {number} time(s), the chief less often.",
                    hint="Call ctx.export equally often on all nodes, or on the chief alone: if ctx.is_chief.",
                )
        raise stopped_error("the chief had not exported yet")

    def pids(self) -> dict[NodeId, int]:
        """Return the current process id of each node."""
        with self._changed:
            return {a.node: a.pid for a in self._spec.nodes} if self._spec else {}

    def wait_for_news(self, seconds: float) -> None:
        """Wait for the next event, at most `seconds`."""
        with self._changed:
            self._changed.wait(seconds)

    def entered(self, seconds: dict[str, float]) -> None:
        """Report that ``main`` is about to be called."""
        self._tell(m.Entered(self.node, seconds))

    def finished(self, result: IO[bytes]) -> None:
        """Report that ``main`` has returned: send its pickled result and close the file that holds it."""
        spool = self.spool
        self._mailbox.drain(self._patience)
        sent = 0
        with result:
            result.seek(0)
            while part := result.read(self.settings.result_part_bytes):
                self._tell(m.ResultPart(self.node, sent, part), self.settings.result_part_timeout)
                sent += len(part)
        self._tell(m.Finished(self.node, sent, spool.rows_completed, spool.is_read))
        self.spool.discard()

    def raised(self, reason: str, text: str, hint: str, final: bool) -> None:
        """Report that ``main`` has raised; `final` if a restart would fail in the same way."""
        self._mailbox.drain(DRAIN_SECONDS)
        try:
            self._tell(m.Raised(self.node, reason, text, hint, final))
        except flight.FlightError:
            logger.warning("could not report the failure to the coordinator: %s", reason)

    def tell_open_columns(self, columns: Sequence[str]) -> None:
        """Tell the driver which columns may have arrays of any length; the driver waits for this before it feeds."""
        self._tell(m.OpenColumns(list(columns)))

    def report(self, step: int, metrics: dict[str, float], keep: bool = False) -> None:
        """Queue metrics for the driver without waiting; with `keep`, a newer report does not replace them."""
        self._mailbox.put(m.Report(self.node, step, metrics), keep)

    def epoch_ended(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Queue the metrics of a whole epoch for the driver without waiting."""
        self._mailbox.put(m.EpochEnded(self.node, epoch, epochs, metrics), keep=True)

    def on_stop(self, reason: str) -> None:
        """Handle a stop of the cluster: wake all waiting threads."""
        self.stopping.set()
        self.spool.fail(stopped_error(reason))
        self.questions.fail(stopped_error(reason))
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop following events and receiving rows."""
        self._leaving.set()
        self._mailbox.close()
        self.spool.fail(stopped_error("the node is leaving"))
        self.questions.fail(stopped_error("the node is leaving"))

    def _may_commit(self, header: m.PutHeader, rows: int, nbytes: int) -> bool:
        message = m.Commit(self.node, header.feed, header.partition, header.upload, rows, nbytes)
        try:
            return self._ask(message, m.CommitAnswer).committed
        except flight.FlightError as e:
            # The coordinator may have counted the partition as committed. Without this error, its rows would be lost
            # silently.
            self.spool.fail(
                FeedError(
                    f"The coordinator did not answer the commit of partition {header.partition}: {without_context(e)}"
                )
            )
            raise

    @property
    def _poll_timeout(self) -> float:
        return self.settings.poll_interval + self.settings.call_timeout

    def _tell(self, message: m.Message, timeout: float | None = None) -> None:
        """Send a message that must arrive: retry while the driver does not answer, until `driver_timeout` or a stop."""
        self._client.insist_on_sending(message, self._patience, timeout, self.stopping.wait)

    def _ask(self, message: m.Message, answer: type[M], timeout: float | None = None) -> M:
        return self._client.insist(message, answer, self._patience, timeout, self.stopping.wait)

    def _refused(self, header: m.PutHeader, error: TFSparkError) -> None:
        if not isinstance(error, ClusterStopped):
            kind = type(error).__name__
            self._client.send(m.FeedFailed(header.feed, header.partition, kind, error.message, error.hint or ""))

    def _beat(self) -> None:
        while not self._leaving.is_set():
            spool, seconds = self.spool, {s.value: t for s, t in self.spool.clock.seconds.items()}
            message = m.Pulse(
                self.node,
                spool.waiting_seconds,
                spool.rows_read,
                seconds,
                self.step,
                self._gpus,
                self.step_clock.step_seconds,
                self.step_clock.busy,
                self.step_clock.stack(),
            )
            carried = 0.0 if self._carrier is None else self._carrier.takes(message)
            if carried:
                # Each heartbeat must find a new pulse.
                seconds_to_next = min(self.settings.pulse_interval, self.settings.heartbeat_interval, carried)
            else:
                seconds_to_next = self.settings.pulse_interval
                # If the coordinator is gone, `_follow` handles it.
                with contextlib.suppress(flight.FlightError):
                    seconds_to_next = self._client.ask(message, m.PulseAnswer).seconds
            self._leaving.wait(seconds_to_next)

    def _follow(self) -> None:
        """Follow the coordinator's events; if that fails, stop the node, which would otherwise wait forever."""
        try:
            self._follow_events()
        except Exception as e:
            logger.exception("the node cannot follow the coordinator's events")
            reason = f"it cannot follow the coordinator's events: {type(e).__name__}: {e}"
            self.raised(reason, traceback.format_exc(), "", final=True)
            self._has_last_word = True
            self.on_stop(reason)

    def _follow_events(self) -> None:
        seen = 0
        answered_at = time.monotonic()
        while not self._leaving.is_set():
            try:
                poll = m.Poll(self.node, seen, self.settings.poll_interval)
                events = self._client.ask(poll, m.Events, self._poll_timeout).events
                answered_at = time.monotonic()
            except flight.FlightError as e:
                if time.monotonic() - answered_at > self._patience:
                    self._has_last_word = True
                    self.on_stop(f"the coordinator cannot be reached: {without_context(e)}")
                    return
                self.stopping.wait(0.5)
                continue
            for event in events:
                seen += 1
                self._on_event(event)

    def _on_event(self, event: m.Event) -> None:
        match event:
            case m.SpecComplete(nodes):
                self._spec = ClusterSpec(nodes)
            case m.FeedBegins():
                self.spool.begin_feed(_feed_of(event))
            case m.ShapesSettled(feed, columns):
                self.spool.settle(feed, columns)
            case m.FeedEnds(feed, rows):
                self.spool.end_feed(feed, rows, rows.get(str(self.node), 0))
            case m.FeedCancelled(_, reason):
                self.spool.fail(FeedError(f"The feed was cancelled: {reason}"))
            case m.NoMoreFeeds():
                self.spool.no_more_feeds()
                self.questions.no_more()
            case m.NodeRejoined(back):
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
    """Tell the coordinator why this node cannot connect."""
    host, port = plan["coordinator"]
    client = MessageClient(host, port, Secret.from_json(plan["secret"]).for_clients())
    reason = f"{type(error).__name__}: {error.message}"
    client.send(m.Raised(NodeId(plan["role"], plan["index"]), reason, "", error.hint or ""))
    client.close()


def _feed_of(event: m.FeedBegins) -> Feed:
    return Feed(
        event.feed,
        event.epochs,
        event.columns,
        arrow_schema(event.columns),
        event.seed,
        event.in_memory,
        event.epochs_to_come,
        event.reproducible,
        event.base,
        event.first_epoch,
        event.name,
        event.fill,
    )
