"""The near end of a tunnel: executors reach a port of a client of Spark Connect, though they cannot reach the client.

A Spark task, which takes one slot, listens for executors (`tfspark.executor.tunnel_task`). Both ends talk to the Spark
Connect server, so neither needs to reach the other.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tfspark.errors import ClusterStopped, ConfigurationError, StartTimeout
from tfspark.executor.tunnel_task import ADDRESS, FAR, NEAR, RESULT_DDL, WORD, TunnelOrder
from tfspark.settings import Settings
from tfspark.spark.arrow_jobs import map_in_arrow
from tfspark.spark.connect import SharedValues, shared_session
from tfspark.spark.jobs import TaggedJob, describe_job_error
from tfspark.transport.ports import Ports
from tfspark.transport.tunnel import Parcels, TunnelEnd

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""Pause between two questions whether the task listens."""

CLOSE_SECONDS = 5.0
"""Seconds to wait for the task to end after the client has left; then its job is cancelled."""


class Tunnel:
    """A port of this host that executors reach through a Spark task.

    Parameters
    ----------
    spark
        A session of Spark Connect.
    tag
        Tag of the task's job; unique.
    settings
        Settings of the cluster.
    ports
        Range of ports for the task to listen on; any by default.
    barrier
        Whether Spark supports barrier stages: Spark starts no second copy of a task of such a stage.
    on_lost
        Called once, in a thread, with the reason if the tunnel ends before it is closed.
    """

    def __init__(
        self,
        spark: SparkSession,
        tag: str,
        settings: Settings,
        ports: Ports | None = None,
        barrier: bool = True,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._spark, self._tag, self._settings, self._ports, self._barrier = spark, tag, settings, ports, barrier
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ended = threading.Event()
        self._fault = ""
        self._job: TaggedJob | None = None
        self._values: SharedValues | None = None
        self._end: TunnelEnd | None = None
        self._thread: threading.Thread | None = None

    def open(self, host: str, port: int, over: Callable[[], bool] = lambda: False) -> tuple[str, int]:
        """Start the task, and return the host and port at which executors reach `port` of this `host`.

        Parameters
        ----------
        over
            Returns whether the tunnel is not needed any more.

        Raises
        ------
        ConfigurationError
            If the task's host cannot reach the Spark Connect server.
        StartTimeout
            If the task does not start within ``start_timeout``.
        ClusterStopped
            If the tunnel was closed, or `over` returned true, before the task had started.
        """
        session = shared_session(self._spark)
        assert session is not None, "checked when the session's addresses were looked for"
        with self._lock:
            self._require_open(over)
            values = self._values = session.connect()
            order = TunnelOrder(session, secrets.token_bytes(16), self._settings.driver_timeout, self._ports)
            values.set(WORD, order.word)
            self._job = TaggedJob(
                self._spark, self._tag, lambda: tunnel_job(self._spark, order, self._barrier), self._on_end
            )
        address = self._await_address(values, over)
        with self._lock:
            self._require_open(over)
            self._end = TunnelEnd(Parcels(values, NEAR, FAR), self._settings.driver_timeout, (host, port))
            self._thread = threading.Thread(target=self._carry, args=(self._end,), name="tfspark-tunnel", daemon=True)
            self._thread.start()
        if self._ended.is_set():
            # Before the end existed, nobody was told.
            raise self._unreachable()
        logger.debug("executors reach %s:%d of this client at %s", host, port, address)
        far_host, _, far_port = address.rpartition(":")
        return far_host, int(far_port)

    def close(self) -> None:
        """End the task and remove what the server keeps for the tunnel; a second call does nothing."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        if self._end is not None and self._thread is not None:
            self._end.close()
            self._thread.join(CLOSE_SECONDS)
        if self._job is not None:
            # Only an end that carries bytes hears that the client leaves.
            if self._end is None or not self._ended.wait(CLOSE_SECONDS):
                self._job.cancel()
            self._job.join(CLOSE_SECONDS)
        if self._values is not None:
            try:
                self._values.release()
            except Exception as e:
                logger.debug("could not end the tunnel's session: %s", e)

    def _require_open(self, over: Callable[[], bool]) -> None:
        if self._closed.is_set() or over():
            raise ClusterStopped("The cluster was stopped before all of its nodes had started.")

    def _await_address(self, values: SharedValues, over: Callable[[], bool]) -> str:
        deadline = time.monotonic() + self._settings.start_timeout
        while (address := values.get(ADDRESS)) is None:
            self._require_open(over)
            if self._ended.wait(LOOK_SECONDS):
                raise self._unreachable()
            if time.monotonic() > deadline:
                raise StartTimeout(
                    f"The tunnel task, by which executors reach this client, did not start within "
                    f"{self._settings.start_timeout:g} s.",
                    hint="It needs a free task slot beside the nodes.",
                )
        return address.decode()

    def _unreachable(self) -> ConfigurationError:
        return ConfigurationError(
            f"Executors can reach neither this client nor the Spark Connect server: {self._fault}.",
            hint="Run the program in the network of the Spark cluster: docs/clusters/connect.md.",
        )

    def _on_end(self, rows: Any, error: BaseException | None) -> None:
        if error is not None:
            logger.debug("the tunnel task has failed", exc_info=error)
            self._fault = describe_job_error(error).partition("\n")[0]
        else:
            self._fault = rows[0].fault if rows else "the client was silent"
        self._ended.set()
        if self._end is not None:
            self._lost(self._fault)
            self._end.close()

    def _carry(self, end: TunnelEnd) -> None:
        try:
            asyncio.run(end.run())
        except Exception as e:
            self._lost(f"{type(e).__name__}: {e}")

    def _lost(self, reason: str) -> None:
        with self._lock:
            on_lost, self._on_lost = self._on_lost, None
            if self._closed.is_set():
                return
        logger.warning("Messages cannot pass through the tunnel any more: %s", reason)
        if on_lost is not None:
            on_lost(reason)


def tunnel_job(spark: SparkSession, order: TunnelOrder, barrier: bool) -> Any:
    """Run the job of the tunnel task, and return its rows."""

    def hold(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.executor.tunnel_task import hold_tunnel

        return hold_tunnel(order, batches)

    return map_in_arrow(spark.range(0, 1, 1, 1), hold, RESULT_DDL, barrier=barrier).collect()
