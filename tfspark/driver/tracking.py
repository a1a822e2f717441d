"""What nodes report goes on to experiment trackers: MLflow's active run, and TensorBoard's event files.

The coordinator hands reports over; a thread of their own writes them, so that a slow tracking server holds up nobody.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from tfspark.spec import NodeId

logger = logging.getLogger(__name__)

KEPT_REPORTS = 10_000
"""Reports that wait for a tracker; beyond it new ones are dropped, and a warning says so."""

CLOSE_SECONDS = 30.0
"""How long the end of a cluster waits for trackers to take what waits."""


@dataclass(frozen=True)
class Entry:
    """Metrics of one node at one step; ``time`` is that of the driver's clock, in seconds since 1970."""

    node: NodeId
    step: int
    metrics: Mapping[str, float]
    time: float = field(default_factory=time.time)


class Tracker(Protocol):
    """Somewhere metrics go."""

    name: str

    def log(self, entries: Sequence[Entry]) -> None:
        """Write entries; raises what it likes."""

    def close(self) -> None:
        """Flush."""


class Tracking:
    """Hands reports to trackers from a thread of its own; a tracker that fails is left out, with a warning.

    Parameters
    ----------
    trackers
        See `trackers_for`.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)
        self._entries: queue.Queue[Entry | None] = queue.Queue(KEPT_REPORTS)
        self._dropped = 0
        self._thread: threading.Thread | None = None
        if self._trackers:
            self._thread = threading.Thread(target=self._run, name="tfspark-tracking", daemon=True)
            self._thread.start()

    def report(self, node: NodeId, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of a report, without waiting."""
        if self._thread is None:
            return
        try:
            self._entries.put_nowait(Entry(node, step, metrics))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for as long as `CLOSE_SECONDS`, and end the thread; safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._entries.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            logger.warning("the trackers did not take all metrics within %.0f s", CLOSE_SECONDS)
            return
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            logger.warning("the trackers did not take all metrics within %.0f s", CLOSE_SECONDS)
        if self._dropped:
            logger.warning("%d reports were not tracked: they came faster than they could be written", self._dropped)

    def _run(self) -> None:
        over = False
        while not over:
            entries = self._waiting()
            over = entries[-1] is None
            kept = [e for e in entries if e is not None]
            if kept:
                self._each("log", kept)
        self._each("close")

    def _waiting(self) -> list[Entry | None]:
        """Return all that waits, at least one; the end, if it is among them, is the last."""
        entries = [self._entries.get()]
        while entries[-1] is not None:
            try:
                entries.append(self._entries.get_nowait())
            except queue.Empty:
                break
        return entries

    def _each(self, method: str, *args: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*args)
            except Exception as e:
                self._trackers.remove(tracker)
                logger.warning("%s took no more metrics: %s: %s", tracker.name, type(e).__name__, e)


def trackers_for(log_dir: str | None) -> list[Tracker]:
    """Return the trackers of a cluster that is started now, by this thread.

    Parameters
    ----------
    log_dir
        Where TensorBoard's event files go, one subdirectory for each node; ``None`` for none.
    """
    trackers: list[Tracker] = []
    run = _active_run()
    if run is not None:
        trackers.append(run)
    if log_dir is not None:
        trackers.append(EventFiles(log_dir))
    return trackers


# --- MLflow


class MLflowRun:
    """A run of MLflow: the first worker's or the chief's metrics by their names, those of others as ``worker_1/loss``.

    Parameters
    ----------
    client
        An ``MlflowClient``.
    run_id
        Which run.
    """

    name = "MLflow"
    BATCH = 1000
    """What MLflow takes at once."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_qualified(e.node, name), value, int(e.time * 1000), e.step)
            for e in entries
            for name, value in e.metrics.items()
        ]
        for i in range(0, len(metrics), self.BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + self.BATCH])

    def close(self) -> None:
        pass


def _qualified(node: NodeId, name: str) -> str:
    # The roles that may report are the chief and, without one, the workers, of whom the first leads.
    return name if node.role == "chief" or node.key == ("worker", 0) else f"{node.role}_{node.index}/{name}"


def _active_run() -> MLflowRun | None:
    """Return the run of MLflow that is active in this thread, if there is one."""
    # Nobody has started a run with what was never imported.
    if "mlflow" not in sys.modules or importlib.util.find_spec("mlflow") is None:
        return None
    import mlflow

    active = mlflow.active_run()
    return None if active is None else MLflowRun(mlflow.MlflowClient(), active.info.run_id)


# --- TensorBoard


class EventFiles:
    """TensorBoard's event files, written without TensorFlow: ``<log_dir>/<role>_<index>/events.out.tfevents...``."""

    name = "TensorBoard"

    def __init__(self, log_dir: str) -> None:
        self._log_dir = log_dir
        self._files: dict[NodeId, tuple[IO[bytes], Any]] = {}

    def log(self, entries: Sequence[Entry]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for e in entries:
            values = [Summary.Value(tag=n, simple_value=v) for n, v in e.metrics.items() if not math.isnan(v)]
            event = Event(wall_time=e.time, step=e.step, summary=Summary(value=values))
            self._writer(e.node).write(event.SerializeToString())
        for file, _ in self._files.values():
            file.flush()

    def _writer(self, node: NodeId) -> Any:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if node not in self._files:
            directory = os.path.join(self._log_dir, f"{node.role}_{node.index}")
            os.makedirs(directory, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.tfspark"
            file = open(os.path.join(directory, name), "ab")  # noqa: SIM115 - see close
            writer = RecordWriter(file)
            writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            self._files[node] = (file, writer)
        return self._files[node][1]

    def close(self) -> None:
        for file, _ in self._files.values():
            file.close()
        self._files.clear()
