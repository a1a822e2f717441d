"""The streaming queries that feed a cluster, and waiting for them."""

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
"""Between two looks at whether a query is still waited for."""

PATIENCE_SECONDS = 30.0
"""After so long it is said what is waited for."""

LEAVE_SECONDS = 5.0
"""How long a thread that talks to a JVM which does not answer is waited for."""


ForBatch = Callable[["DataFrame", int], None]
"""What ``foreachBatch`` takes."""


class Waitable(Protocol):
    """Where threads wait for a condition, and are woken to look at it again."""

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition` holds; return whether it does."""

    def wake(self) -> None:
        """Have everyone who waits look at their condition again."""


@dataclass
class _Stream:
    """One query, and why a micro-batch of it could not be fed, if that is so."""

    query: StreamingQuery
    causes: list[TFSparkError]

    @property
    def not_fed(self) -> TFSparkError | None:
        """Why a micro-batch could not be fed, other than that the cluster was stopped."""
        return next((e for e in self.causes if not isinstance(e, ClusterStopped)), None)

    def failure(self) -> TFSparkError | None:
        """Return why the query has failed, if it has, in what it does beside feeding."""
        failed = None if self.causes else self.query.exception()
        return None if failed is None else FeedError(f"The stream that feeds the cluster failed: {first_line(failed)}")


class Streams:
    """The streaming queries that feed one cluster.

    Attributes
    ----------
    begun
        Whether a stream feeds the cluster, or did.
    ended
        Whether no query has been started since they were waited for to the end.
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
        """Why a micro-batch could not be fed, or why a query had failed when they were last waited for."""
        return next((s.not_fed for s in list(self._streams) if s.not_fed is not None), self._failed)

    def start(
        self,
        stream: Any,
        feed: Callable[[DataFrame], Any],
        options: dict[str, Any],
        relayed: Callable[[ForBatch], ForBatch] = lambda f: f,
    ) -> StreamingQuery:
        """Start a query that feeds each micro-batch which has rows.

        Parameters
        ----------
        relayed
            Makes of what is to be done with a micro-batch what Spark calls; on Spark Connect it calls it elsewhere.

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
        before = self.begun, self.ended
        self.begun, self.ended = True, False
        try:
            query: StreamingQuery = writer.options(**options).start()
        except BaseException:
            self.begun, self.ended = before
            raise
        # What has failed and goes on from its checkpoint has not failed.
        self._streams = [s for s in self._streams if s.query.id != query.id] + [_Stream(query, causes)]
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
        """Wait until what failed in a micro-batch is known: it has stopped the cluster, and is still on its way out."""
        with self._fed:
            self._fed.wait_for(lambda: self._busy == 0, LEAVE_SECONDS)

    def wait(self, cluster: Waitable, over: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until all queries have ended, or the cluster needs nothing more.

        Parameters
        ----------
        cluster
            What is waited at, the coordinator.
        over
            Whether the cluster needs nothing more; evaluated under its lock.
        timeout
            Seconds to wait; without end by default.

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

        # In a thread of its own: a signal must not interrupt a conversation with the JVM.
        thread = threading.Thread(target=watch, name="tfspark-streams", daemon=True)
        thread.start()
        try:
            return cluster.wait(lambda: watched.is_set() or over(), timeout)
        finally:
            leaving.set()
            thread.join(LEAVE_SECONDS)

    def after_end(self, call: Callable[[], None]) -> None:
        """Call `call` when all queries have ended: at once, or in a thread that waits for them.

        A query may ask for an answer until it has ended, which can be after the cluster.
        """
        if self.ended:
            call()
            return

        def follow() -> None:
            from pyspark.errors import StreamingQueryException

            # A session that does not answer has no queries any more.
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
