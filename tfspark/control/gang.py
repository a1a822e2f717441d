"""The nodes of a cluster between two restarts: their coordinator, the Spark jobs that hold them, and their feeds.

`Cluster` starts another gang after a node has failed, if restarts are left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfspark.control import events as ev
from tfspark.control import lifecycle as lc
from tfspark.control.addresses import driver_addresses, needs_tunnel
from tfspark.control.coordinator import Coordinator
from tfspark.control.feeds import CLOSE_SECONDS, Feeding, NobodyReads
from tfspark.control.node_jobs import NodeJobs
from tfspark.control.progress import ProgressDisplay
from tfspark.control.recovery import SilentTask
from tfspark.control.tunnel import Tunnel
from tfspark.errors import ClusterStopped, ResourceError, TFSparkError
from tfspark.feeding.journal import FeedEntry
from tfspark.feeding.report import FeedReport
from tfspark.settings import Settings
from tfspark.spark.profiles import Resources
from tfspark.spark.resources import Group
from tfspark.spec import NodeId
from tfspark.transport.auth import Secret
from tfspark.transport.ports import Ports

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GangSpec:
    """Everything that a gang is started from."""

    nodes: tuple[NodeId, ...]
    resources: Resources
    main: bytes
    secret: Secret
    settings: Settings
    ports: Ports | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def resumes(self) -> bool:
        """Whether nodes report the epoch from which they resume before they are fed."""
        return self.options.get("checkpoint_dir") is not None


class Gang:
    """The nodes of a cluster from their launch to their end.

    Parameters
    ----------
    spark
        The Spark session.
    spec
        What the nodes are started from.
    tag
        Tag of the gang's Spark jobs; unique.
    restarts
        Number of earlier gangs of the cluster.
    progress
        Shows the progress.
    """

    def __init__(self, spark: SparkSession, spec: GangSpec, tag: str, restarts: int, progress: ProgressDisplay) -> None:
        self._spark, self._spec, self._tag, self._restarts = spark, spec, tag, restarts
        self._progress = progress
        self._job: NodeJobs | None = None
        self._closing = threading.Lock()
        self._closed = False
        self.growing = False
        self.starved: ResourceError | None = None
        self._fed: list[FeedEntry] = []
        bind, host = driver_addresses(spark, spec.ports)
        self.coordinator = Coordinator(bind, spec.secret, spec.nodes, spec.settings, self._cancel_job, spec.ports)
        self.coordinator.reached_at = host, self.coordinator.port
        self._tunnel: Tunnel | None = None
        if needs_tunnel(spark, spec.ports):
            self._tunnel = tunnel_of(spark, spec, f"{tag}-tunnel", self._cut_off)
        self._feeding = Feeding(spark, tag, spec.nodes, spec.secret.for_clients(), spec.settings, progress)
        if self.life.rejoining:
            self.coordinator.on_rejoin(self._feed_back)

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """All nodes."""
        return self._spec.nodes

    @property
    def life(self) -> lc.Lifecycle:
        """The state machine of the nodes."""
        return self.coordinator.lifecycle

    def start(self, description: str | None = None) -> None:
        """Launch the nodes and wait until all have registered.

        Parameters
        ----------
        description
            Description of the nodes' Spark jobs in Spark's UI.

        Raises
        ------
        ResourceError
            If Spark has too few task slots or GPUs.
        StartTimeout
            If nodes did not start in time.
        NodeFailed
            If a node failed while it started.
        ClusterStopped
            If the cluster was stopped while it started.
        """
        # After a failure, Spark may have to start executors first.
        groups = self._spec.resources.groups(patience=self._spec.settings.start_timeout if self._restarts else None)
        if self._tunnel is not None:
            self._open(self._tunnel)
        self._job = self._launch(groups, description)
        life = self.life
        self._progress.until(
            self.coordinator, "starting", lambda: life.concluded or life.phase is not lc.Phase.STARTING
        )
        self._progress.final(self.coordinator, "starting")
        if life.error is not None:
            raise life.error

    def _open(self, tunnel: Tunnel) -> None:
        host, port = self.coordinator.reached_at
        try:
            self.coordinator.reached_at = tunnel.open(host, port, lambda: self.life.concluded)
        except ClusterStopped as e:
            raise self.life.error or e from None

    def _launch(self, groups: Sequence[Group], description: str | None) -> NodeJobs:
        from tfspark.executor.task import Launch

        spec, spark, coordinator = self._spec, self._spark, self.coordinator
        host, port = coordinator.reached_at
        launch = Launch(
            nodes=spec.nodes,
            held=(),
            coordinator_host=host,
            coordinator_port=port,
            secret=spec.secret,
            main=spec.main,
            options={**spec.options, "restarts": self._restarts},
            env=dict(spec.env),
            ports=spec.ports,
            settings=spec.settings,
        )
        return NodeJobs(spark, self._tag, launch, groups, spec.resources, coordinator.post, description)

    def feed(self, entry: FeedEntry) -> FeedReport:
        """Send the epochs of a feed that the nodes have not read yet.

        With a checkpoint directory, it first waits until the nodes agree on the epoch from which they resume. If every
        ``main`` returns before all rows were sent, it logs a warning; for a stream it raises, which ends the stream.

        Raises
        ------
        FeedError
            If rows could not be delivered, or the data has no rows.
        SchemaError
            If a value breaks the rule of its column.
        NodeFailed
            If a node failed during the feed.
        """
        try:
            return self._feed(entry)
        except NobodyReads as e:
            if entry.streamed:
                raise
            logger.warning("%s", e)
            return FeedReport(e.arrived, 0, 0.0, {}, entry.epochs)

    def _feed(self, entry: FeedEntry) -> FeedReport:
        first = 0
        if self._spec.resumes and not entry.terms.name:
            first = entry.epochs_in(self._resumed_epochs())
        if first >= entry.epochs:
            return FeedReport(0, 0, 0.0, {}, entry.epochs)
        if self.life.rejoining:
            self._fed.append(entry)
        return self._feeding.run(self.coordinator, entry, first)

    @property
    def nobody_reads(self) -> bool:
        """Whether every ``main`` has returned, so that rows fed now are dropped."""
        return self.life.phase is lc.Phase.FINISHED and self.life.error is None and not self._closed

    def _resumed_epochs(self) -> int:
        coordinator, life = self.coordinator, self.life

        def over() -> bool:
            return coordinator.resume_at is not None or life.phase is not lc.Phase.RUNNING

        self._progress.begin()
        if not self._progress.until(coordinator, "restoring", over, self._spec.settings.restore_warning):
            logger.warning(
                "cluster.feed waits for %s to restore a checkpoint, to read what is fed, or to return from main. "
                "If main waits for rows under a name, feed those first.",
                ", ".join(map(str, coordinator.look(lambda: coordinator.undecided))),
            )
            self._progress.until(coordinator, "restoring", over)
        coordinator.wait(lambda: coordinator.resume_at is not None or life.concluded)
        if coordinator.resume_at is None:
            raise life.error or NobodyReads(0)
        return coordinator.resume_at

    def open_columns(self) -> Sequence[str]:
        """Wait for the chief to report which columns have arrays of any length; a ``main`` of `tfspark.ml` does this.

        Raises
        ------
        NodeFailed, ClusterStopped
            If a node failed, or the cluster was stopped, before the report.
        """
        coordinator, life = self.coordinator, self.life
        self._progress.begin()
        self._progress.until(
            coordinator, "building the model", lambda: coordinator.open_columns is not None or life.concluded
        )
        if coordinator.open_columns is None:
            raise life.error or ClusterStopped("The cluster has ended before the chief had built its model.")
        return coordinator.open_columns

    def _feed_back(self, node: NodeId) -> None:
        """Feed a node that has come back its rows again; runs in a thread, because the caller is a thread of Flight."""

        def run() -> None:
            try:
                for entry in [e for e in self._fed if e.terms.number >= self.coordinator.feed_begun]:
                    self._feeding.again(self.coordinator, entry)
            except TFSparkError as e:
                self.coordinator.post(ev.NodeRaised(node, f"its rows could not be fed again: {e}", ""))

        threading.Thread(target=run, name=f"{self._tag}-again", daemon=True).start()

    def silent_tasks(self) -> list[SilentTask]:
        """Return the supervising tasks that have been silent for longer than `suspicion_timeout`."""
        life = self.life
        return [
            SilentTask(r.stage, r.attempt)
            for r in life.records.values()
            if r.attempt is not None
            and r.exited is None
            and r.last_seen is not None
            and life.now - r.last_seen > self._spec.settings.suspicion_timeout
        ]

    def grow(self) -> None:
        """Stop these nodes, because a gang with all workers can be started instead."""
        self.growing = True
        self.coordinator.post(ev.StopAsked("all workers start again", 0.0))

    def starve(self, error: ResourceError) -> None:
        """Stop these nodes, because a gang with fewer workers can be fed instead."""
        self.starved = error
        self.coordinator.post(ev.StopAsked("Spark has no room for feed tasks", 0.0))

    def stop(self, reason: str, grace: float | None = None) -> None:
        """Stop the nodes and wait until all resources are freed. Any thread may call it, also more than once."""
        if not self._closed:
            if not self.life.concluded:
                self.coordinator.post(ev.StopAsked(reason, grace))
            self.close()

    def close(self) -> None:
        """Wait for the Spark jobs to end, cancel them if they do not, and free all resources."""
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
            if self._tunnel is not None:
                self._tunnel.close()

    @property
    def closed(self) -> bool:
        """Whether all resources are freed."""
        return self._closed

    def _cut_off(self, reason: str) -> None:
        self.coordinator.post(ev.DriverCutOff(reason))

    def _cancel_job(self) -> None:
        if self._job is not None:
            self._job.cancel()


def tunnel_of(spark: SparkSession, spec: GangSpec, tag: str, on_lost: Callable[[str], None] | None = None) -> Tunnel:
    """Return a tunnel for a cluster; `tag` is the tag of its Spark job."""
    return Tunnel(spark, tag, spec.settings, spec.ports, not spec.resources.settings.dynamic, on_lost)
