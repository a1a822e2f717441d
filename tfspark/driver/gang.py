"""One incarnation of a cluster's nodes: its coordinator, the Spark job that holds the nodes, and what they are fed.

`Cluster` starts another gang when a node has failed and restarts are left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfspark.driver import events as ev
from tfspark.driver import launcher
from tfspark.driver import lifecycle as lc
from tfspark.driver.coordinator import Coordinator
from tfspark.driver.display import Display
from tfspark.driver.feed_report import FeedReport
from tfspark.driver.feeding import CLOSE_SECONDS, Feeding
from tfspark.driver.journal import FeedEntry
from tfspark.driver.profiles import Resources
from tfspark.driver.recovery import SilentTask
from tfspark.driver.resources import Group
from tfspark.errors import TFSparkError
from tfspark.spec import NodeId
from tfspark.transport.auth import Secret
from tfspark.transport.ports import Ports

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SILENT_SECONDS = 4.0
"""A task that has said nothing for so long when the gang failed takes its executor with it; see `recovery`."""

UNDECIDED_SECONDS = 30.0
"""So long after a feed was asked for, nodes are named that have not said which epoch they go on from."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GangPlan:
    """What each incarnation of a cluster's nodes is made of."""

    nodes: tuple[NodeId, ...]
    resources: Resources
    main: bytes
    secret: Secret
    limits: lc.Limits
    spool_bytes: int
    ports: Ports | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def resumes(self) -> bool:
        """Whether nodes say, before they are fed, which epoch they go on from."""
        return self.options.get("checkpoint_dir") is not None


class Gang:
    """The nodes of a cluster from their launch to their end.

    Parameters
    ----------
    spark
        The session.
    plan
        What they are made of.
    tag
        Tag of its Spark jobs; unique.
    restarts
        How many gangs there were before.
    display
        Shows progress.
    """

    def __init__(self, spark: SparkSession, plan: GangPlan, tag: str, restarts: int, display: Display) -> None:
        self._spark, self._plan, self._tag, self._restarts = spark, plan, tag, restarts
        self._display = display
        self._job: launcher.NodeJobs | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._fed: list[FeedEntry] = []
        bind, self._host = launcher.driver_addresses(spark)
        self.coordinator = Coordinator(bind, plan.secret, plan.nodes, plan.limits, self._cancel_job, plan.ports)
        self._feeding = Feeding(spark, tag, plan.nodes, plan.secret.for_clients(), plan.limits, display)
        if self.life.rejoining:
            self.coordinator.on_rejoin(self._feed_back)

    @property
    def life(self) -> lc.Lifecycle:
        """What is known of the nodes."""
        return self.coordinator.lifecycle

    def start(self, description: str | None = None) -> None:
        """Launch the nodes and wait until all have registered.

        Parameters
        ----------
        description
            Describes their Spark jobs in Spark's UI.

        Raises
        ------
        ResourceError
            If Spark has too few task slots or GPUs.
        StartTimeout
            If nodes did not come up in time.
        NodeFailed
            If a node failed on its way up.
        ClusterStopped
            If the cluster is stopped meanwhile.
        """
        # After a failure Spark may have to start executors first.
        groups = self._plan.resources.groups(patience=self._plan.limits.start if self._restarts else None)
        self._job = self._launch(groups, description)
        life = self.life
        self._display.until(self.coordinator, "starting", lambda: life.concluded or life.phase is not lc.Phase.STARTING)
        self._display.final(self.coordinator, "starting")
        if life.error is not None:
            raise life.error

    def _launch(self, groups: Sequence[Group], description: str | None) -> launcher.NodeJobs:
        from tfspark.executor.task import Launch

        plan, spark, coordinator = self._plan, self._spark, self.coordinator
        launch = Launch(
            nodes=plan.nodes,
            held=(),
            coordinator_host=self._host,
            coordinator_port=coordinator.port,
            secret=plan.secret,
            main=plan.main,
            spool_bytes=plan.spool_bytes,
            options={**plan.options, "restarts": self._restarts},
            env=dict(plan.env),
            ports=plan.ports,
        )
        return launcher.NodeJobs(spark, self._tag, launch, groups, plan.resources, coordinator.post, description)

    def feed(self, entry: FeedEntry) -> FeedReport:
        """Send what nodes have not yet seen of a feed; waits, if there are checkpoints, until they say where they are.

        Raises
        ------
        FeedError
            If rows could not be delivered, or there are none.
        SchemaError
            If a value breaks the rule of its column.
        NodeFailed
            If a node failed meanwhile.
        """
        first = 0
        if self._plan.resumes and not entry.terms.name:
            first = entry.epochs_in(self._resumed_epochs())
        if first >= entry.epochs:
            return FeedReport(0, 0, 0.0, {}, entry.epochs)
        if self.life.rejoining:
            self._fed.append(entry)
        return self._feeding.run(self.coordinator, entry, first)

    def _resumed_epochs(self) -> int:
        coordinator, life = self.coordinator, self.life

        def over() -> bool:
            return coordinator.resume_at is not None or life.phase is not lc.Phase.RUNNING

        self._display.begin()
        if not self._display.until(coordinator, "restoring", over, UNDECIDED_SECONDS):
            logger.warning(
                "cluster.feed waits for %s to restore a checkpoint, to read what is fed, or to return from main. "
                "If main waits for rows under a name, feed those first.",
                ", ".join(map(str, coordinator.look(lambda: coordinator.undecided))),
            )
            self._display.until(coordinator, "restoring", over)
        coordinator.wait(lambda: coordinator.resume_at is not None or life.concluded)
        if coordinator.resume_at is None:
            raise life.error or self._feeding.too_late()
        return coordinator.resume_at

    def _feed_back(self, node: NodeId) -> None:
        """Feed a node that was lost, and is back, what it had held; in a thread, as Flight's are waiting."""

        def run() -> None:
            try:
                for entry in [e for e in self._fed if e.terms.feed >= self.coordinator.feed_begun]:
                    self._feeding.again(self.coordinator, entry)
            except TFSparkError as e:
                self.coordinator.post(ev.NodeRaised(node, f"its rows could not be fed again: {e}", ""))

        threading.Thread(target=run, name=f"{self._tag}-again", daemon=True).start()

    def silent_tasks(self) -> list[SilentTask]:
        """Return the supervising tasks that have not been heard of for a while."""
        life = self.life
        return [
            SilentTask(r.stage, r.attempt)
            for r in life.records.values()
            if r.attempt is not None
            and r.exited is None
            and r.last_seen is not None
            and life.now - r.last_seen > SILENT_SECONDS
        ]

    def stop(self, reason: str, grace: float | None = None) -> None:
        """Have the nodes stop, and wait until everything is gone; safe to call twice and from any thread."""
        if not self._closed:
            if not self.life.concluded:
                self.coordinator.post(ev.StopAsked(reason, grace))
            self.close()

    def close(self) -> None:
        """Wait for the job to end, cancel it if it does not, and free everything."""
        with self._closing:
            if self._closed:
                return
            coordinator, job = self.coordinator, self._job
            try:
                if job is not None and not coordinator.wait(lambda: self.life.over, self.life.patience):
                    job.cancel()
                    coordinator.wait(lambda: self.life.over, CLOSE_SECONDS)
            finally:
                self._closed = True
                coordinator.close()
            if job is not None:
                job.join(CLOSE_SECONDS)

    @property
    def closed(self) -> bool:
        """Whether everything is gone."""
        return self._closed

    def _cancel_job(self) -> None:
        if self._job is not None:
            self._job.cancel()
