"""The streaming queries that feed a cluster, and waiting for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, FeedError, first_line

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming import StreamingQuery

    from tfspark.driver.coordinator import Coordinator

LOOK_SECONDS = 0.2
"""Between two looks at whether a query is still waited for."""


class Streams:
    """The streaming queries that feed one cluster."""

    def __init__(self) -> None:
        self._queries: list[StreamingQuery] = []
        self.begun = False
        """Whether a stream feeds the cluster, or did."""

    def start(self, stream: Any, feed: Callable[[DataFrame], Any], options: dict[str, Any]) -> StreamingQuery:
        """Start a query that feeds each micro-batch which has rows.

        Raises
        ------
        ConfigurationError
            If `stream` is not a streaming DataFrame.
        """
        if not getattr(stream, "isStreaming", False):
            raise ConfigurationError("feed_stream() takes a streaming DataFrame.", hint="feed() takes all others.")

        def feed_batch(batch: DataFrame, _: int) -> None:
            batch.persist()
            try:
                if not batch.isEmpty():
                    feed(batch)
            finally:
                batch.unpersist()

        writer = stream.writeStream.foreachBatch(feed_batch)
        if "trigger" in options:
            writer = writer.trigger(**options.pop("trigger"))
        if "queryName" in options:
            writer = writer.queryName(options.pop("queryName"))
        self.begun = True
        query: StreamingQuery = writer.options(**options).start()
        self._queries.append(query)
        return query

    def wait(self, coordinator: Coordinator, over: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until the queries that run have ended, or the cluster needs nothing more.

        A query that had failed before has told that to whoever has it.

        Parameters
        ----------
        coordinator
            Of the cluster.
        over
            Whether the cluster needs nothing more; evaluated under the coordinator's lock.
        timeout
            Seconds to wait; without end by default.

        Returns
        -------
        bool
            False if the time has passed.

        Raises
        ------
        FeedError
            If a query failed meanwhile.
        """
        if not self._queries:
            return True
        ended: list[BaseException | None] = []
        leaving = threading.Event()

        def watch() -> None:
            error: BaseException | None = None
            try:
                for query in list(self._queries):
                    while query.isActive and not leaving.is_set():
                        query.awaitTermination(LOOK_SECONDS)
            except Exception as e:
                error = e
            ended.append(error)
            coordinator.wake()

        # In a thread of its own: a signal must not interrupt a conversation with the JVM.
        thread = threading.Thread(target=watch, name="tfspark-streams", daemon=True)
        thread.start()
        try:
            if not coordinator.wait(lambda: bool(ended) or over(), timeout):
                return False
        finally:
            leaving.set()
            thread.join()
        if ended[0] is not None and not coordinator.look(over):
            raise FeedError(f"The stream that was fed has failed: {first_line(ended[0])}") from ended[0]
        return True
