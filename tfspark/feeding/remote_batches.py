"""Micro-batches of a stream on Spark Connect, whose ``foreachBatch`` runs on the Spark server and not in the client.

On the server each batch becomes a global temporary view, and the client is asked to feed it. The client reads the view
with its own session, and answers when the rows have arrived.
"""

from __future__ import annotations

import atexit
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.messages import StreamBatch, StreamBatchAnswer
from tfspark.transport.auth import Secret
from tfspark.transport.client import MessageClient
from tfspark.transport.ports import Ports
from tfspark.transport.server import MessageServer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

WAIT_SECONDS = 5.0
"""Seconds that the client waits for a feed before it answers that the batch is not fed yet."""


@dataclass(frozen=True)
class BatchSender:
    """Asks the client to feed a micro-batch; it is sent to the Spark server and runs there.

    Attributes
    ----------
    host, port, secret
        Address and secret of the client's `BatchDesk`.
    stream
        Name of the stream that the client knows it by.
    driver_timeout
        Seconds after which a client that does not answer counts as gone.
    """

    host: str
    port: int
    secret: Secret
    stream: str
    driver_timeout: float

    def __call__(self, batch: DataFrame, _: int) -> None:
        """Ask the client to feed a micro-batch, and wait until it is fed; for ``foreachBatch``.

        Raises
        ------
        RuntimeError
            If the client could not feed the batch.
        """
        view = f"tfspark_{uuid.uuid4().hex}"
        batch.createGlobalTempView(view)
        client = MessageClient(self.host, self.port, self.secret)
        try:
            question = StreamBatch(self.stream, view, WAIT_SECONDS)
            while not (answer := client.insist(question, StreamBatchAnswer, self.driver_timeout)).done:
                pass
        finally:
            client.close()
            batch.sparkSession.catalog.dropGlobalTempView(view)
        if answer.error:
            raise RuntimeError(answer.error)


class _Work:
    """A micro-batch that is fed in its own thread."""

    def __init__(self, feed: Callable[[], None]) -> None:
        self._feed, self._error = feed, ""
        self._done = threading.Event()
        threading.Thread(target=self._run, name="tfspark-stream-batch", daemon=True).start()

    def _run(self) -> None:
        try:
            self._feed()
        except Exception as e:
            self._error = f"{type(e).__name__}: {e}"
        self._done.set()

    def answer(self, seconds: float) -> StreamBatchAnswer:
        done = self._done.wait(seconds)
        return StreamBatchAnswer(done, self._error if done else "")


class BatchDesk:
    """The client's side: feeds each micro-batch that it is asked for once.

    It outlives a failed cluster until the queries have ended, because they must still be told of the failure.

    Parameters
    ----------
    spark
        The client's session.
    bind, host
        The address to listen on, and the address by which Spark's driver reaches it.
    secret
        Secret of the cluster.
    ports
        Range of ports to listen on; any by default.
    """

    def __init__(self, spark: SparkSession, bind: str, host: str, secret: Secret, ports: Ports | None = None) -> None:
        self._spark, self._secret = spark, secret
        self._feeds: dict[str, Callable[[DataFrame, int], Any]] = {}
        self._works: dict[str, tuple[str, _Work]] = {}
        self._lock = threading.Lock()
        self._server = MessageServer(bind, secret, {StreamBatch: self._handle}, ports)
        self.reached_at = host, self._server.port
        atexit.register(self.close)

    def sender(self, feed: Callable[[DataFrame, int], Any], driver_timeout: float) -> BatchSender:
        """Return the function for ``foreachBatch`` of a stream; it makes this client `feed` each micro-batch."""
        stream = uuid.uuid4().hex
        self._feeds[stream] = feed
        return BatchSender(*self.reached_at, self._secret.for_clients(), stream, driver_timeout)

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        atexit.unregister(self.close)
        self._server.close()

    def _handle(self, message: StreamBatch) -> StreamBatchAnswer:
        """Return whether a micro-batch is fed; the first request for it starts the feed."""
        feed = self._feeds.get(message.stream)
        if feed is None:
            return StreamBatchAnswer(True, "The cluster does not know this stream.")
        with self._lock:
            view, work = self._works.get(message.stream, ("", None))
            if work is None or view != message.view:
                work = _Work(lambda: feed(self._spark.table(f"global_temp.{message.view}"), 0))
                # A stream has one micro-batch at a time.
                self._works[message.stream] = message.view, work
        return work.answer(message.seconds)
