"""The context that main functions get, and internal names of the original, which programs do not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfspark.compat.tensorflowonspark import TFNode, _notes
from tfspark.compat.tensorflowonspark.TFManager import TFManager


class TFNodeContext:
    """One node's view of the cluster.

    Parameters
    ----------
    executor_id
        Number of the node; also ``worker_num``.
    job_name, task_index
        The node's role, as the old API names it, and its index within the role.
    cluster_spec
        Addresses of all nodes by job name.
    defaultFS
        Spark's default file system.
    working_dir
        Working directory of the driver.
    mgr
        Manager of the node, for `TFNode.DataFeed`.
    tmp_socket
        Not used: tfspark holds the port.

    Attributes
    ----------
    num_workers
        Number of nodes that train.
    """

    def __init__(
        self,
        executor_id: int = 0,
        job_name: str = "",
        task_index: int = 0,
        cluster_spec: Mapping[str, Sequence[str]] = {},
        defaultFS: str = "file://",
        working_dir: str = ".",
        mgr: TFManager | None = None,
        tmp_socket: Any = None,
    ) -> None:
        self.worker_num = self.executor_id = executor_id
        self.job_name, self.task_index = job_name, task_index
        self.cluster_spec = {job: list(hosts) for job, hosts in cluster_spec.items()}
        self.num_workers = sum(len(self.cluster_spec.get(job, ())) for job in ("master", "chief", "worker"))
        self.defaultFS, self.working_dir = defaultFS, working_dir
        self.mgr = mgr
        self.tmp_socket = tmp_socket

    def absolute_path(self, path: str) -> str:
        """Return a path with the scheme of its file system; see `TFNode.hdfs_path`."""
        return TFNode.hdfs_path(self, path)

    def start_cluster_server(self, num_gpus: int = 1, rdma: bool = False) -> Any:
        """Raise `ConfigurationError`; see `TFNode.start_cluster_server`."""
        return TFNode.start_cluster_server(self, num_gpus, rdma)

    def export_saved_model(self, sess: Any, export_dir: str, tag_set: str, signatures: Any) -> Any:
        """Raise `ConfigurationError`; see `TFNode.export_saved_model`."""
        return TFNode.export_saved_model(sess, export_dir, tag_set, signatures)

    @_notes.now(TFNode.FEED_FORM)
    def get_data_feed(
        self,
        train_mode: bool = True,
        qname_in: str = "input",
        qname_out: str = "output",
        input_mapping: Mapping[str, str] | None = None,
    ) -> TFNode.DataFeed:
        """Return the `TFNode.DataFeed` from which main takes the fed rows."""
        return TFNode.DataFeed(self.mgr, train_mode, qname_in, qname_out, input_mapping)

    def release_port(self) -> None:
        """Do nothing; see `TFNode.release_port`."""
        TFNode.release_port(self)


class TFSparkNode:
    """A class without state; in the original, it held the state of each executor."""

    mgr = None
    cluster_id = None


def run(*args: Any, **kwargs: Any) -> Any:
    """Raise `ConfigurationError`: nodes are started by `TFCluster.run`."""
    raise _notes.gone("TFSparkNode.run", "Use TFCluster.run, or tfspark.Cluster")


def train(*args: Any, **kwargs: Any) -> Any:
    """Raise `ConfigurationError`: rows are fed by `TFCluster.TFCluster.train`."""
    raise _notes.gone("TFSparkNode.train", "Use TFCluster.train, or cluster.feed")


def inference(*args: Any, **kwargs: Any) -> Any:
    """Raise `ConfigurationError`: results for rows are returned by `TFCluster.TFCluster.inference`."""
    raise _notes.gone("TFSparkNode.inference", "Use TFCluster.inference, or cluster.predict")


def shutdown(*args: Any, **kwargs: Any) -> Any:
    """Raise `ConfigurationError`: nodes are stopped by `TFCluster.TFCluster.shutdown`."""
    raise _notes.gone("TFSparkNode.shutdown", "Use TFCluster.shutdown, or cluster.wait")
