"""The streaming queries that feed a cluster: start them, and wait for them to end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tfspark.errors import ClusterStopped, ConfigurationError, FeedError, TFSparkError, first_line

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming import StreamingQuery

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Seconds between two checks of whether to go on waiting for a query."""

PATIENCE_SECONDS = 30.0
"""Seconds of waiting after which a warning says which query is waited for."""

LEAVE_SECONDS = 5.0
"""Seconds to wait for a thread that calls a JVM which does not answer."""


ForBatch = Callable[["DataFrame", int], None]
"""The function that ``foreachBatch`` takes."""


class Waitable(Protocol):
    """An object on which threads wait for a condition, and are woken to check it again."""

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition` holds, and return whether it does."""

    def wake(self) -> None:
        """Make all waiting threads check their conditions again."""


@dataclass
class _Stream:
    """One query, and the errors of its micro-batches that could not be fed."""

    query: StreamingQuery
    causes: list[TFSparkError]

    @property
    def not_fed(self) -> TFSparkError | None:
        """The first error of a micro-batch, other than that the cluster was stopped."""
        return next((e for e in self.causes if not isinstance(e, ClusterStopped)), None)

    def failure(self) -> TFSparkError | None:
        """Return the error of a query that failed for a reason other than feeding, else ``None``."""
        failed = None if self.causes else self.query.exception()
        return None if failed is None else FeedError(f"The stream that feeds the cluster failed: {first_line(failed)}")


class Streams:
    """The streaming queries that feed one cluster.

    Attributes
    ----------
    begun
        Whether a stream feeds or has fed the cluster.
    ended
        Whether no query has been started since the last `wait` that saw all queries end.
    """

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        self.begun = False
        self.ended = True
        self._failed: TFSparkError | None = None
        self._busy = 0
        self._fed = threading.Condition()

    @property
    def error(self) -> TFSparkError | None:
        """The error of a micro-batch that could not be fed, or of a query that had failed at the last `wait`."""
        return next((s.not_fed for s in list(self._streams) if s.not_fed is not None), self._failed)

    def start(
        self,
        stream: Any,
        feed: Callable[[DataFrame], Any],
        options: dict[str, Any],
        relayed: Callable[[ForBatch], ForBatch] = lambda f: f,
    ) -> StreamingQuery:
        """Start a query that feeds each micro-batch that has rows.

        Parameters
        ----------
        relayed
            Takes the function that feeds a micro-batch and returns the function that Spark calls. They differ on Spark
            Connect, where Spark calls its function on the server.

        Raises
        ------
        ConfigurationError
            If `stream` is not a streaming DataFrame.
        """
        if not getattr(stream, "isStreaming", False):
            raise ConfigurationError("feed_stream() takes a streaming DataFrame.", hint="Use feed() for other data.")
        causes: list[TFSparkError] = []

        def feed_batch(batch: DataFrame, _: int) -> None:
            with self._feeding():
                batch.persist()
                try:
                    if not batch.isEmpty():
                        feed(batch)
                except TFSparkError as e:
                    causes.append(e)
                    raise
                finally:
                    batch.unpersist()

        writer = stream.writeStream.foreachBatch(relayed(feed_batch))
        if "trigger" in options:
            writer = writer.trigger(**options.pop("trigger"))
        if "queryName" in options:
            writer = writer.queryName(options.pop("queryName"))
        if "outputMode" in options:
            writer = writer.outputMode(options.pop("outputMode"))
        before, self.begun = self.begun, True
        try:
            query: StreamingQuery = writer.options(**options).start()
        except BaseException:
            self.begun = before
            raise
        # A query that continues from its checkpoint replaces its earlier run, whose failure no longer counts.
        self._streams = [s for s in self._streams if s.query.id != query.id] + [_Stream(query, causes)]
        self.ended = False
        return query

    @contextlib.contextmanager
    def _feeding(self) -> Iterator[None]:
        with self._fed:
            self._busy += 1
        try:
            yield
        finally:
            with self._fed:
                self._busy -= 1
                self._fed.notify_all()

    def settle(self) -> None:
        """Wait until running feeds have ended, so that their errors are known: a failed feed has stopped the cluster.

        Wait at most `LEAVE_SECONDS`.
        """
        with self._fed:
            self._fed.wait_for(lambda: self._busy == 0, LEAVE_SECONDS)

    def wait(self, cluster: Waitable, over: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until all queries have ended, or the cluster needs nothing more.

        Parameters
        ----------
        cluster
            The object to wait on: the coordinator.
        over
            Returns whether the cluster needs nothing more; called under the coordinator's lock.
        timeout
            Seconds to wait; ``None`` waits without limit.

        Returns
        -------
        bool
            False if the time has passed.
        """
        if not self._streams:
            return True
        self.ended = False
        watched = threading.Event()
        leaving = threading.Event()

        def watch() -> None:
            try:
                self._watch(leaving)
            except Exception as e:
                self._failed = FeedError(f"The state of the stream that feeds the cluster is unknown: {first_line(e)}")
            watched.set()
            cluster.wake()

        # In its own thread: a signal must not interrupt a call to the JVM.
        thread = threading.Thread(target=watch, name="tfspark-streams", daemon=True)
        thread.start()
        try:
            return cluster.wait(lambda: watched.is_set() or over(), timeout)
        finally:
            leaving.set()
            thread.join(LEAVE_SECONDS)

    def after_end(self, call: Callable[[], None]) -> None:
        """Call `call` when all queries have ended: at once, or in a thread that waits for them.

        Until a query has ended it may send requests, and it can end after the cluster.
        """
        if self.ended:
            call()
            return

        def follow() -> None:
            from pyspark.errors import StreamingQueryException

            # If the session does not answer, its queries have ended.
            with contextlib.suppress(Exception):
                while (query := self._first_active()) is not None:
                    with contextlib.suppress(StreamingQueryException):
                        query.awaitTermination(LOOK_SECONDS)
            call()

        threading.Thread(target=follow, name="tfspark-streams-end", daemon=True).start()

    def _watch(self, leaving: threading.Event) -> None:
        from pyspark.errors import StreamingQueryException

        patient_until = time.monotonic() + PATIENCE_SECONDS
        while not leaving.is_set() and (query := self._first_active()) is not None:
            try:
                query.awaitTermination(LOOK_SECONDS)
            except StreamingQueryException:
                continue
            if time.monotonic() > patient_until:
                name = query.name or query.id
                logger.warning("Waiting for the stream %s that feeds the cluster to end. query.stop() ends it.", name)
                patient_until = float("inf")
        self.ended = self._first_active() is None
        self._failed = next((e for s in list(self._streams) if (e := s.failure()) is not None), None)

    def _first_active(self) -> StreamingQuery | None:
        return next((s.query for s in list(self._streams) if s.query.isActive), None)
