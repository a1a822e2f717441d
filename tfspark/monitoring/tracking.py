"""Sends the metrics that nodes report to experiment trackers, that is, to the active run of MLflow.

The coordinator queues reports and a separate thread writes them, so a slow tracking server delays nothing else.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tfspark.spec import NodeId

logger = logging.getLogger(__name__)

KEPT_REPORTS = 10_000
"""Largest number of reports that wait for a tracker; further reports are dropped with a warning."""

CLOSE_SECONDS = 30.0
"""Longest time that the end of a cluster waits until trackers have written all reports."""


@dataclass(frozen=True)
class Entry:
    """Metrics of one node at one step; ``time`` is in seconds since 1970, by the driver's clock."""

    node: NodeId
    step: int
    metrics: Mapping[str, float]
    time: float = field(default_factory=time.time)


class Tracker(Protocol):
    """A destination of metrics."""

    name: str

    def log(self, entries: Sequence[Entry]) -> None:
        """Write entries; may raise any exception."""

    def close(self) -> None:
        """Flush."""


class Tracking:
    """Passes reports to trackers in its own thread; a tracker that fails is dropped with a warning.

    Parameters
    ----------
    trackers
        Trackers, such as those of `active_trackers`.
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
        """Queue a report without waiting."""
        if self._thread is None:
            return
        try:
            self._entries.put_nowait(Entry(node, step, metrics))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write the queued reports, for at most `CLOSE_SECONDS`, and end the thread. Calling it again does nothing."""
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
            logger.warning("%d reports were not tracked: trackers were too slow", self._dropped)

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
        """Wait for a queued report and return all of them; ``None`` marks the end and is last."""
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
                logger.warning("Stopped tracking with %s: %s: %s", tracker.name, type(e).__name__, e)


def active_trackers() -> list[Tracker]:
    """Return the trackers for a cluster that this thread starts now."""
    run = _active_run()
    return [] if run is None else [run]


# --- MLflow


class MLflowRun:
    """A run of MLflow: metrics of the chief (or worker 0) keep their names, others are named ``worker_1/loss``.

    Parameters
    ----------
    client
        An ``MlflowClient``.
    run_id
        Id of the run.
    """

    name = "MLflow"
    BATCH = 1000
    """Largest number of metrics that MLflow accepts in one call."""

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
    # Without a chief, worker 0 takes its place.
    return name if node.role == "chief" or node.key == ("worker", 0) else f"{node.role}_{node.index}/{name}"


def _active_run() -> MLflowRun | None:
    """Return the active run of MLflow in this thread, or ``None``."""
    # If the program has not imported mlflow, there is no active run.
    if "mlflow" not in sys.modules or importlib.util.find_spec("mlflow") is None:
        return None
    import mlflow

    active = mlflow.active_run()
    return None if active is None else MLflowRun(mlflow.MlflowClient(), active.info.run_id)
