"""Writes the driver's metrics of each node as TensorBoard events, without TensorFlow.

Each node is a run such as ``spark/worker-0``, so one chart shows all nodes. Metrics that a node reports are written at
the node's steps. For measurements of the driver, the step is the number of seconds since the start.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO

from tfspark.control.coordinator import Coordinator
from tfspark.monitoring.status import NodeStatus, status_of
from tfspark.records.framing import masked_crc
from tfspark.spec import NodeId

logger = logging.getLogger("tfspark")

SAMPLE_SECONDS = 2.0
"""Pause between two measurements."""


def framed(data: bytes) -> bytes:
    """Return a record in the framing of TFRecord files."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


class EventFile:
    """One event file.

    Parameters
    ----------
    directory
        Directory of the file; created if it does not exist.
    """

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}.spark"
        # Unbuffered, so that a concurrent reader sees whole records.
        self._file: IO[bytes] = open(os.path.join(directory, name), "wb", buffering=0)  # noqa: SIM115
        self._write(file_version="brain.Event:2")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars at a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        listed = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=listed))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._file.write(framed(Event(wall_time=time.time(), **fields).SerializeToString()))


class SummaryWriter:
    """Writes the events of a cluster in its own thread.

    Parameters
    ----------
    current
        Function that returns the coordinator of the cluster; each restart creates a new coordinator.
    log_dir
        Directory that TensorBoard reads.
    """

    def __init__(self, current: Callable[[], Coordinator], log_dir: str) -> None:
        self._current = current
        self._began = time.monotonic()
        nodes = current().lifecycle.records
        self._files = {n: EventFile(os.path.join(log_dir, "spark", f"{n.role}-{n.index}")) for n in nodes}
        self._reports: queue.SimpleQueue[tuple[NodeId, int, Mapping[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tfspark-summaries", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write the remaining events and end the thread."""
        self._reports.put(None)
        self._thread.join()
        for file in self._files.values():
            file.close()

    def report(self, node: NodeId, step: int, metrics: Mapping[str, float]) -> None:
        """Queue a report of a node."""
        self._reports.put((node, step, metrics))

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except OSError as e:
            logger.warning("Stopped writing the driver's metrics for TensorBoard: %s", e)

    def _write_until_closed(self) -> None:
        due = time.monotonic() + SAMPLE_SECONDS
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._sample()
                due += SAMPLE_SECONDS
                continue
            if report is None:
                self._sample()
                return
            node, step, metrics = report
            self._files[node].scalars(step, {f"reported/{k}": v for k, v in metrics.items()})

    def _sample(self) -> None:
        coordinator = self._current()
        seconds = int(time.monotonic() - self._began)
        for status in status_of(coordinator):
            self._files[NodeId(status.role, status.index)].scalars(seconds, measured(status))


def measured(status: NodeStatus) -> dict[str, float]:
    """Return the driver's measurements of a node, by tag."""
    times = status.input_times
    values = {
        "spark/rows_fed": float(status.rows),
        "spark/rows_read": float(status.rows_read),
        "spark/rows_per_second": status.rows_per_second,
        "spark/waiting_seconds": times.waiting,
        "spark/preparing_seconds": times.preparing,
        "spark/memory_bytes": float(status.memory_bytes),
    }
    if status.step_seconds is not None:
        values["spark/step_seconds"] = status.step_seconds
    if times.waiting_share is not None:
        values["spark/waiting_share"] = times.waiting_share
    return values
