"""Runs the feeds of one cluster, one at a time: the Spark job of each feed, its ledger and its errors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.control import lifecycle as lc
from tfspark.control.coordinator import Coordinator
from tfspark.control.progress import ProgressDisplay
from tfspark.errors import FeedError, TFSparkError, first_line
from tfspark.feeding.journal import FeedEntry
from tfspark.feeding.ledger import Target
from tfspark.feeding.report import FeedReport
from tfspark.feeding.sources import FeedJob
from tfspark.settings import Settings
from tfspark.spark.jobs import TaggedJob, describe_job_error, failed_by_data
from tfspark.spec import NodeId, training_nodes
from tfspark.transport.auth import Secret

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("tfspark")

CLOSE_SECONDS = 5.0
"""Seconds to wait for a cancelled feed job to end."""


class NobodyReads(FeedError):
    """Every ``main`` has returned, so the rest of a feed was not sent."""

    def __init__(self, arrived: int) -> None:
        super().__init__(
            f"main returned on every node before all rows were fed: {arrived:,} rows that had arrived were dropped, "
            "the rest was not sent.",
            hint="main must read the dataset to its end: for example ctx.fit(...) without steps_per_epoch.",
        )
        self.arrived = arrived


class Feeding:
    """The feeds of one cluster.

    Parameters
    ----------
    spark
        The Spark session.
    tag
        Prefix of the tags of the feeds' Spark jobs.
    nodes
        All nodes of the cluster.
    secret
        The credentials of the feed tasks.
    settings
        The settings of the cluster.
    progress
        Shows the progress of feeds.
    """

    def __init__(
        self,
        spark: SparkSession,
        tag: str,
        nodes: Sequence[NodeId],
        secret: Secret,
        settings: Settings,
        progress: ProgressDisplay,
    ) -> None:
        self._spark, self._tag, self._nodes, self._secret = spark, tag, nodes, secret
        self._settings, self._progress = settings, progress
        self._one_at_a_time = threading.Lock()

    def run(self, coordinator: Coordinator, entry: FeedEntry, first_epoch: int = 0) -> FeedReport:
        """Send all rows of a feed to the workers, which read it from `first_epoch` on.

        Raises
        ------
        FeedError
            If rows could not be delivered, or the data has no rows.
        SchemaError
            If a value breaks the rule of its column.
        NodeFailed
            If a node failed during the feed.
        NobodyReads
            If every ``main`` returned before all rows were sent.
        """
        with self._one_at_a_time:
            number = entry.terms.number
            readers = [n for n in training_nodes(self._nodes) if entry.workers is None or n.index in entry.workers]
            targets = [Target(a.node, a.host) for a in coordinator.spec.nodes if a.node in readers]
            ledger = coordinator.begin_feed(entry.terms.announcement(first_epoch), targets, entry.terms.shapes)
            began = self._progress.begin()
            try:
                while True:
                    self._deliver(coordinator, entry)
                    if not ledger.committed:
                        raise FeedError("The data has no rows.", hint="Check its filters and its source.")
                    if coordinator.end_feed(number):
                        break
            except BaseException as e:
                coordinator.cancel_feed(number, str(e))
                raise
            rows = ledger.rows
            seconds = time.monotonic() - began
            self._progress.final(coordinator, "feeding")
            by_worker = {n.key: r for n, r in rows.items()}
            return FeedReport(sum(rows.values()), ledger.nbytes, seconds, by_worker, entry.epochs)

    def again(self, coordinator: Coordinator, entry: FeedEntry) -> None:
        """Send a worker that has come back its rows of a feed that had already ended.

        Raises
        ------
        FeedError
            If the rows could not be delivered.
        """
        ledger = coordinator.ledgers.get(entry.terms.number)
        while ledger is not None and ledger.ended and ledger.missing:
            self._deliver(coordinator, entry, shown=False)

    def _deliver(self, coordinator: Coordinator, entry: FeedEntry, shown: bool = True) -> None:
        """Run the Spark job that sends the missing partitions; repeat it if a worker was lost that comes back."""
        life = coordinator.lifecycle
        while True:
            losses = coordinator.losses
            try:
                return self._run_job(coordinator, entry, shown)
            except FeedError:
                if coordinator.losses == losses or life.concluded:
                    raise
            # Only the lost worker can take some of the partitions.
            coordinator.wait(lambda: life.concluded or not coordinator.away, self._settings.start_timeout)
            if life.error is not None:
                raise life.error

    def _run_job(self, coordinator: Coordinator, entry: FeedEntry, shown: bool) -> None:
        from tfspark.feeding.feed_task import FeedTask

        number = entry.terms.number
        if coordinator.lifecycle.concluded:
            raise self._nobody_takes(coordinator, number)
        task = FeedTask(
            number,
            entry.terms.columns,
            *coordinator.reached_at,
            self._secret,
            settings=self._settings,
        )
        ended: list[BaseException | None] = []

        def on_end(_: Any, error: BaseException | None) -> None:
            ended.append(error)
            coordinator.wake()

        sending = entry.source.job(task, entry.profile)
        job = TaggedJob(self._spark, f"{self._tag}-feed-{number}", sending.run, on_end)
        coordinator.on_feed_error = job.cancel
        life = coordinator.lifecycle
        try:
            wait = partial(self._progress.until, coordinator, "feeding") if shown else coordinator.wait
            wait(lambda: bool(ended) or life.concluded or (shown and coordinator.feed_error is not None))
            if not ended and not life.concluded and life.phase is not lc.Phase.RUNNING:
                coordinator.wait(lambda: life.concluded, self._settings.last_words_timeout + 1.0)
        finally:
            if not ended:
                job.cancel()
            job.join(CLOSE_SECONDS)
        self._raise_failure(coordinator, ended, sending, number)

    @staticmethod
    def _nobody_takes(coordinator: Coordinator, number: int) -> TFSparkError:
        """Return the error of a feed whose nodes have ended."""
        arrived = coordinator.ledgers.get(number)
        return coordinator.lifecycle.error or NobodyReads(sum(arrived.rows.values()) if arrived is not None else 0)

    def _raise_failure(
        self, coordinator: Coordinator, ended: Sequence[BaseException | None], sending: FeedJob, number: int
    ) -> None:
        life = coordinator.lifecycle
        error = ended[0] if ended else None
        if coordinator.feed_error is not None:
            raise coordinator.feed_error
        if error is not None and not life.concluded:
            # When a worker dies, its uploads fail shortly before the coordinator detects its death.
            coordinator.wait(lambda: life.concluded, self._settings.last_words_timeout)
        # A job that has not ended, although it was cancelled, has not sent all rows.
        if life.concluded and (life.error is not None or error is not None or not ended):
            if error is not None and failed_by_data(error):
                # When Spark ends a job, it may kill Python workers, and with them the nodes that they supervise.
                if life.error is not None:
                    logger.warning("While the feed job failed: %s", first_line(life.error))
                raise FeedError(f"The feed job failed: {describe_job_error(error)}") from error
            raise self._nobody_takes(coordinator, number)
        if error is not None:
            raise FeedError(f"The feed job failed: {describe_job_error(error)}") from error
        ledger = coordinator.ledgers.get(number)
        if ledger is not None and ledger.recomputed and sending.indeterminate():
            raise FeedError(
                "Spark lost and recomputed a part of the data during the feed, and its rows can move to other "
                "partitions each time: some rows may be missing, and others may be fed twice.",
                hint="Feed data that does not change when it is computed again: df.checkpoint(), or a written table.",
            )
