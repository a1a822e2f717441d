"""Runs the feeds of one cluster, one at a time: a Spark job beside the nodes', its books, and what may go wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.driver import launcher
from tfspark.driver import lifecycle as lc
from tfspark.driver.coordinator import Coordinator
from tfspark.driver.display import Display
from tfspark.driver.feed_report import FeedReport
from tfspark.driver.journal import FeedEntry
from tfspark.driver.ledger import Target
from tfspark.driver.sources import FeedJob
from tfspark.errors import FeedError
from tfspark.spec import NodeId, training_nodes
from tfspark.transport.auth import Secret

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CLOSE_SECONDS = 5.0
"""How long a cancelled feed job may take to end."""


class Feeding:
    """The feeds of one cluster.

    Parameters
    ----------
    spark
        The session.
    tag
        Beginning of the tags of the feeds' Spark jobs.
    nodes
        All nodes of the cluster.
    secret
        What feeding tasks present.
    limits
        Deadlines.
    display
        Shows progress.
    """

    def __init__(
        self,
        spark: SparkSession,
        tag: str,
        nodes: Sequence[NodeId],
        secret: Secret,
        limits: lc.Limits,
        display: Display,
    ) -> None:
        self._spark, self._tag, self._nodes, self._secret = spark, tag, nodes, secret
        self._limits, self._display = limits, display
        self._one_at_a_time = threading.Lock()

    def run(self, coordinator: Coordinator, entry: FeedEntry, first_epoch: int = 0) -> FeedReport:
        """Send all rows of a feed to the workers, which read it from `first_epoch` on.

        Raises
        ------
        FeedError
            If rows could not be delivered, or there are none.
        SchemaError
            If a value breaks the rule of its column.
        NodeFailed
            If a node failed meanwhile.
        """
        with self._one_at_a_time:
            number = entry.terms.feed
            readers = [n for n in training_nodes(self._nodes) if entry.workers is None or n.index in entry.workers]
            targets = [Target(a.node, a.host) for a in coordinator.spec.nodes if a.node in readers]
            ledger = coordinator.begin_feed(entry.announcement(first_epoch), targets)
            began = self._display.begin()
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
            self._display.final(coordinator, "feeding")
            by_worker = {n.key: r for n, r in rows.items()}
            return FeedReport(sum(rows.values()), ledger.nbytes, seconds, by_worker, entry.epochs)

    def again(self, coordinator: Coordinator, entry: FeedEntry) -> None:
        """Send a worker that was lost and is back its rows of a feed that had ended.

        Raises
        ------
        FeedError
            If they could not be delivered.
        """
        ledger = coordinator.ledgers.get(entry.terms.feed)
        while ledger is not None and ledger.ended and ledger.missing:
            self._deliver(coordinator, entry, shown=False)

    def _deliver(self, coordinator: Coordinator, entry: FeedEntry, shown: bool = True) -> None:
        """Run the Spark job that sends what has not arrived, again if a worker that comes back was lost meanwhile."""
        life = coordinator.lifecycle
        while True:
            losses = coordinator.losses
            try:
                return self._run_job(coordinator, entry, shown)
            except FeedError:
                if coordinator.losses == losses or life.concluded:
                    raise
            # There are partitions that only the lost worker can take.
            coordinator.wait(lambda: life.concluded or not coordinator.away, self._limits.start)
            if life.error is not None:
                raise life.error

    def _run_job(self, coordinator: Coordinator, entry: FeedEntry, shown: bool) -> None:
        from tfspark.executor.feed_task import FeedPlan

        _, host = launcher.driver_addresses(self._spark)
        number = entry.terms.feed
        plan = FeedPlan(number, tuple(entry.columns), host, coordinator.port, self._secret)
        ended: list[BaseException | None] = []

        def on_end(_: Any, error: BaseException | None) -> None:
            ended.append(error)
            coordinator.wake()

        sending = entry.source.job(plan, entry.profile)
        job = launcher.TaggedJob(self._spark, f"{self._tag}-feed-{number}", sending.run, on_end)
        life = coordinator.lifecycle
        try:
            wait = partial(self._display.until, coordinator, "feeding") if shown else coordinator.wait
            wait(lambda: bool(ended) or life.concluded or (shown and coordinator.feed_error is not None))
            if not ended and not life.concluded and life.phase is not lc.Phase.RUNNING:
                coordinator.wait(lambda: life.concluded, self._limits.last_words + 1.0)
        finally:
            if not ended:
                job.cancel()
                coordinator.wait(lambda: bool(ended), CLOSE_SECONDS)
        self._raise_failure(coordinator, ended, sending, number)

    @staticmethod
    def too_late() -> FeedError:
        """The error of feeding nodes that have finished."""
        return FeedError(
            "Every main had returned before all rows were fed.",
            hint="main must read the dataset to its end: for example ctx.fit(...) without steps_per_epoch.",
        )

    def _raise_failure(
        self, coordinator: Coordinator, ended: Sequence[BaseException | None], sending: FeedJob, number: int
    ) -> None:
        life = coordinator.lifecycle
        error = ended[0] if ended else None
        if coordinator.feed_error is not None:
            raise coordinator.feed_error
        if error is not None and not life.concluded:
            # A worker's death breaks its uploads a moment before the coordinator knows of it.
            coordinator.wait(lambda: life.concluded, self._limits.last_words)
        # A job that does not even end when it is cancelled has not sent all rows.
        if life.concluded and (life.error is not None or error is not None or not ended):
            raise life.error or self.too_late()
        if error is not None:
            raise FeedError(f"The feed job failed: {launcher.describe_job_error(error)}") from error
        ledger = coordinator.ledgers.get(number)
        if ledger is not None and ledger.recomputed and sending.indeterminate():
            raise FeedError(
                "Spark lost and recomputed what it was feeding, and its rows can fall into other partitions each time: "
                "some may be missing, and others have come twice.",
                hint="Feed data that stays the same: df.checkpoint(), or a table written before.",
            )
