"""Functions for use in main functions: paths, and the rows of ``InputMode.SPARK``."""

from __future__ import annotations

import getpass
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfspark.compat.tensorflowonspark import _notes
from tfspark.compat.tensorflowonspark.TFManager import TFManager
from tfspark.errors import ConfigurationError

logger = logging.getLogger(__name__)

FEED_FORM = "ctx.dataset(batch_size) gives the rows to tf.data, ctx.serve(fn) answers them"
"""The tfspark form of a `DataFeed`."""


def hdfs_path(ctx: Any, path: str) -> str:
    """Return a path with the scheme of its file system.

    Parameters
    ----------
    ctx
        A context; its ``defaultFS`` applies to paths without a scheme, its ``working_dir`` to relative local paths.
    path
        An absolute or relative path, or a URI, which is returned unchanged.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return path
    if path.startswith("/"):
        return f"{ctx.defaultFS}{path}"
    if ctx.defaultFS.startswith(("hdfs://", "viewfs://")):
        return f"{ctx.defaultFS}/user/{getpass.getuser()}/{path}"
    if ctx.defaultFS.startswith("file://"):
        return f"{ctx.defaultFS}/{ctx.working_dir[1:]}/{path}"
    logger.warning("%s has no user directories; %s is taken from its root", ctx.defaultFS, path)
    return f"{ctx.defaultFS}/{path}"


def start_cluster_server(ctx: Any, num_gpus: int = 1, rdma: bool = False) -> Any:
    """Raise `ConfigurationError`: with TensorFlow 2, strategies start servers, as the original says too."""
    raise _notes.gone("start_cluster_server", "Use ctx.strategy(), or tf.distribute.Server(ctx.cluster_spec, ...)")


def next_batch(mgr: Any, batch_size: int, qname: str = "input") -> Any:
    """Raise `ConfigurationError`: `DataFeed` has this method, as the original says too."""
    raise _notes.gone("TFNode.next_batch", "Use ctx.get_data_feed().next_batch(n)")


def batch_results(mgr: Any, results: Any, qname: str = "output") -> Any:
    """Raise `ConfigurationError`: `DataFeed` has this method, as the original says too."""
    raise _notes.gone("TFNode.batch_results", "Use ctx.get_data_feed(train_mode=False).batch_results(results)")


def terminate(mgr: Any, qname: str = "input") -> Any:
    """Raise `ConfigurationError`: `DataFeed` has this method, as the original says too."""
    raise _notes.gone("TFNode.terminate", "Use ctx.get_data_feed().terminate()")


def export_saved_model(sess: Any, export_dir: str, tag_set: str, signatures: Any) -> Any:
    """Raise `ConfigurationError`: TensorFlow 2 has no sessions, as the original says too."""
    raise _notes.gone("export_saved_model(sess, ...)", "Use ctx.export(model, directory), or model.export(directory)")


def release_port(ctx: Any) -> None:
    """Do nothing: TensorFlow takes the node's port while tfspark holds it, so that no other program can take it."""
    logger.debug("release_port() has nothing to release")


class DataFeed:
    """The rows of ``TFCluster.train`` and ``TFCluster.inference``, in batches.

    Parameters
    ----------
    mgr
        ``ctx.mgr``, or a manager from `TFManager.start`, whose queues are then read and written.
    train_mode
        ``False`` if main returns results.
    qname_in, qname_out
        Names of the queues of a manager from ``TFManager.start``; otherwise leave the defaults.
    input_mapping
        Tensor by column. `next_batch` then returns a dict of lists by tensor; the values of a row must be in the order
        of the columns' names.

    Attributes
    ----------
    done_feeding
        Whether the end has been reached.
    """

    def __init__(
        self,
        mgr: TFManager | None,
        train_mode: bool = True,
        qname_in: str = "input",
        qname_out: str = "output",
        input_mapping: Mapping[str, str] | None = None,
    ) -> None:
        _notes.note("TFNode.DataFeed", FEED_FORM)
        inbox = None if mgr is None else mgr.feed_of(qname_in, qname_out, train_mode)
        if mgr is None or inbox is None:
            raise ConfigurationError(
                "This node gets no rows.",
                hint="Run the cluster with InputMode.SPARK; parameter servers and evaluators are not fed.",
            )
        self.mgr, self.train_mode = mgr, train_mode
        self.qname_in, self.qname_out = qname_in, qname_out
        self.input_tensors = None if input_mapping is None else [t for _, t in sorted(input_mapping.items())]
        self._inbox = inbox

    @property
    def done_feeding(self) -> bool:
        """Whether all rows have been taken, or `terminate` was called."""
        return self._inbox.ended

    def next_batch(self, batch_size: int) -> Any:
        """Wait for the next rows and return them.

        Parameters
        ----------
        batch_size
            Largest number of rows to return; there are fewer at the end, and at the end of the rows of one partition of
            an inference.

        Returns
        -------
        list or dict of list
            The rows as they are in the RDD; with an ``input_mapping``, their values by tensor.
        """
        rows = self._inbox.take(batch_size)
        if self.input_tensors is None:
            return rows
        return {tensor: [row[i] for row in rows] for i, tensor in enumerate(self.input_tensors)}

    def should_stop(self) -> bool:
        """Return whether `next_batch` has reached the end, or `terminate` was called."""
        return self.done_feeding

    def batch_results(self, results: Iterable[Any]) -> None:
        """Send one result for each row of ``TFCluster.inference`` that `next_batch` returned, in the same order.

        Raises
        ------
        PredictError
            If there are more results than rows.
        """
        self._inbox.answer(results)

    def terminate(self) -> None:
        """Take no more rows; rows that the driver still feeds are dropped, and a stream of feeds ends."""
        self.mgr.terminate()
        self._inbox.close("called terminate()")
