"""Starts, feeds and stops a cluster: `run`, and the `TFCluster` that it returns."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tfspark import compat
from tfspark.cluster import Cluster
from tfspark.columns import pickled_rows as objects
from tfspark.compat.tensorflowonspark import _members, _notes
from tfspark.errors import ClusterStopped, ConfigurationError, TFSparkError
from tfspark.settings import FROM_SETTINGS
from tfspark.spark.internals import default_file_system
from tfspark.spark.pickling import pickle_main
from tfspark.spark.profiles import require_room

if TYPE_CHECKING:
    from pyspark import RDD, SparkContext
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

QUEUES = ("input", "output", "error")

DEFAULT_EPOCHS = 10
"""Number of epochs that ``num_epochs=0`` stands for, as in the original."""

BLOCK_ROWS = 1 << 20
"""Largest number of rows in one inference batch for a node; Spark's own batches are smaller."""

LOOK_SECONDS = 0.2

tf_status: dict[str, str] = {}
"""``{"error": ...}`` after a cluster has failed."""


class InputMode:
    """Who reads the data: TensorFlow in the nodes, or Spark."""

    TENSORFLOW = 0
    SPARK = 1


class Server:
    """Takes the place of the reservation server; it only says whether the program has called ``terminate()``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def sated(self) -> set[int]:
        """Executor ids of the nodes that take no more rows."""
        return {status.index for status in self._cluster.status() if "terminated" in status.metrics}

    @property
    def done(self) -> bool:
        """Whether at least one node takes no more rows."""
        return bool(self.sated)

    def stop(self) -> None:
        """Do nothing: there is no thread to stop."""


class TFCluster:
    """A running cluster.

    Attributes
    ----------
    cluster
        The underlying `tfspark.Cluster`.
    cluster_info
        A dict for each node: ``executor_id``, ``host``, ``job_name``, ``task_index``, ``port``.
    """

    def __init__(
        self,
        sc: SparkContext,
        cluster: Cluster,
        members: Sequence[_members.Member],
        input_mode: int,
        meta: dict[str, Any],
    ) -> None:
        self.sc = sc
        self.cluster = cluster
        self.input_mode = input_mode
        self.num_executors = len(members)
        self.cluster_meta = self.meta = meta
        self.cluster_id = meta["id"]
        self.defaultFS, self.working_dir = meta["default_fs"], meta["working_dir"]
        self.queues = list(QUEUES)
        self.nodeRDD: Any = None
        self.server = Server(cluster)
        self.cluster_info = [
            {
                "executor_id": member.executor_id,
                "host": node.host,
                "job_name": member.job_name,
                "task_index": member.task_index,
                "port": node.port,
            }
            for member, node in zip(members, cluster.nodes.nodes, strict=True)
        ]
        self._fed = [m.executor_id for m in members if not m.in_background]
        self._has_background = len(self._fed) < len(members)

    @_notes.now("cluster.feed(df, epochs=n), or cluster.feed_stream(df)")
    def train(self, dataRDD: Any, num_epochs: int = 0, feed_timeout: float = 600, qname: str = "input") -> None:
        """Feed the rows of an RDD, or of each RDD of a DStream, to the nodes.

        For an RDD, return when all rows have been delivered.

        Parameters
        ----------
        dataRDD
            An RDD of any objects that can be pickled, or a DStream of such objects.
        num_epochs
            How often each row of an RDD is fed; 10 times by default. Rows of a DStream are fed once.
        feed_timeout
            Not used: tfspark detects nodes that fail or hang.
        qname
            Must be ``"input"``.

        Raises
        ------
        ConfigurationError
            If the cluster was not started with ``InputMode.SPARK``, or an argument is invalid.
        NodeFailed
            If a node failed.
        FeedError
            If rows could not be delivered.
        """
        self._require_feeding("train", qname)
        if num_epochs < 0:
            raise ConfigurationError(f"num_epochs must be >= 0, got {num_epochs}.")
        if _is_stream(dataRDD):
            dataRDD.foreachRDD(lambda rdd: self._feed(rdd, 1))
        else:
            self._feed(dataRDD, num_epochs or DEFAULT_EPOCHS)

    def _feed(self, rdd: RDD[Any], epochs: int) -> None:
        sated = self.server.sated
        hungry = [i for i in self._fed if i not in sated]
        if not hungry or rdd.isEmpty():
            return
        with _Noted():
            self.cluster.feed(rdd, epochs, pickled=True, workers=hungry)

    @_notes.now("cluster.predict(df, 'score float')")
    def inference(self, dataRDD: RDD[Any], feed_timeout: float = 600, qname: str = "input") -> RDD[Any]:
        """Return an RDD of the nodes' results, one for each row of an RDD.

        Parameters
        ----------
        dataRDD
            An RDD of any objects that can be pickled.
        feed_timeout
            Seconds within which ``map_fun`` must take a row or give a result, as long as results are missing. The time
            starts again with each of these.
        qname
            Must be ``"input"``.

        Returns
        -------
        pyspark.RDD
            The results, in the order of the rows. The RDD is lazy: use it before `shutdown`. An action on it raises an
            error that contains a `PredictError` if ``map_fun`` fails, with its traceback, or gives too few or too many
            results.

        Raises
        ------
        ConfigurationError
            If the cluster was not started with ``InputMode.SPARK``, or `feed_timeout` is not greater than 0.
        """
        from tfspark.compat.tensorflowonspark import _node

        self._require_feeding("inference", qname)
        if feed_timeout <= 0:
            raise ConfigurationError(f"feed_timeout must be > 0, got {feed_timeout}.")
        seconds = float(feed_timeout)
        rows = dataRDD.map(lambda row: (objects.dumps(row), seconds))
        df = _session(self.sc).createDataFrame(rows, f"{objects.COLUMN} binary, {_node.TIMEOUT_COLUMN} double")
        answered = self.cluster.predict(df, "result binary", batch_size=BLOCK_ROWS, workers=self._fed)
        return answered.select("result").rdd.map(lambda row: objects.loads(row.result))

    @_notes.now("leaving the with block of tfspark.Cluster, or cluster.wait(timeout)")
    def shutdown(self, ssc: Any = None, grace_secs: float = 0, timeout: float = 259200) -> None:
        """Wait until the program has returned on all nodes that train, then end the other nodes and the cluster.

        Parameters
        ----------
        ssc
            The StreamingContext, if rows come from a DStream; it is stopped when a node calls ``terminate()``.
        grace_secs
            Not used: nodes may run until `timeout`.
        timeout
            Longest time to wait, in seconds; -1 for no limit.

        Raises
        ------
        NodeFailed
            If a node failed.
        TimeoutError
            If nodes still run after `timeout` seconds; the cluster has then been stopped.
        """
        deadline = time.monotonic() + timeout if timeout > 0 else None
        with _Noted():
            try:
                if ssc is not None:
                    self._await_stream(ssc)
                self._await_nodes(None if deadline is None else max(0.0, deadline - time.monotonic()))
            finally:
                # The cluster is stopped after any error, and also to end parameter servers and the evaluator.
                self.cluster.stop(grace=0.0)

    def _await_stream(self, ssc: Any) -> None:
        try:
            while not ssc.awaitTerminationOrTimeout(LOOK_SECONDS):
                if self.server.done:
                    ssc.stop(stopSparkContext=False, stopGraceFully=True)
                    return
        except Exception:
            ssc.stop(stopSparkContext=False, stopGraceFully=False)
            with contextlib.suppress(TimeoutError):
                # If a node's failure is the cause, wait() raises that failure, which says more.
                self.cluster.wait(timeout=0.0)
            raise

    def _await_nodes(self, timeout: float | None) -> None:
        self.cluster.wait(timeout, workers=self._fed if self._has_background else None)

    @_notes.now("cluster.tensorboard_url")
    def tensorboard_url(self) -> str | None:
        """Return the address of TensorBoard, or ``None`` if there is none."""
        return self.cluster.tensorboard_url

    def _require_feeding(self, what: str, qname: str) -> None:
        if self.input_mode != InputMode.SPARK:
            raise ConfigurationError(f"{what}() needs a cluster that was run with InputMode.SPARK.")
        if qname != "input":
            raise ConfigurationError(f"The queue {qname!r} does not exist.", hint="Rows are fed to 'input'.")


@_notes.now("tfspark.Cluster(spark, main, args, workers=n), in a with statement, or tfspark.run(...)")
def run(
    sc: SparkContext,
    map_fun: Callable[..., Any],
    tf_args: Any,
    num_executors: int,
    num_ps: int,
    tensorboard: bool = False,
    input_mode: int = InputMode.TENSORFLOW,
    log_dir: str | None = None,
    driver_ps_nodes: bool = False,
    master_node: str | None = None,
    reservation_timeout: float = 600,
    queues: Sequence[str] = QUEUES,
    eval_node: bool = False,
    release_port: bool = True,
    *,
    stall_timeout: float | None = FROM_SETTINGS,
    hang_timeout: float = FROM_SETTINGS,
) -> TFCluster:
    """Start a cluster that runs ``map_fun(tf_args, ctx)`` in every node.

    Parameters
    ----------
    sc
        The SparkContext.
    map_fun
        Gets a `TFSparkNode.TFNodeContext`.
    tf_args
        Arguments of the program, for example from argparse, or a list, which becomes ``sys.argv`` of the nodes.
    num_executors
        Number of nodes of all kinds.
    num_ps
        Number of parameter servers among the nodes. `map_fun` runs there too, and is ended when the other nodes have
        returned.
    tensorboard
        Whether to run TensorBoard on the driver's machine.
    input_mode
        A value of `InputMode`.
    log_dir
        Directory that TensorBoard shows; nodes and driver must share it. ``tensorboard`` by default.
    driver_ps_nodes
        Not used: parameter servers run in executors.
    master_node
        ``"chief"`` or ``"master"``: adds a node with this name, and sets ``TF_CONFIG`` in all nodes.
    reservation_timeout
        Seconds within which all nodes must have started.
    queues
        Not used.
    eval_node
        Whether to add a node called ``"evaluator"``, which is ended when the other nodes have returned.
    release_port
        Not used: TensorFlow takes the port while tfspark holds it.
    stall_timeout
        Seconds that a node may wait for rows while other nodes are fed; ``None`` for no limit.
    hang_timeout
        Seconds for which an existing process of a node may be silent before the node counts as failed.

    Raises
    ------
    ConfigurationError
        If the numbers of nodes do not fit `num_executors`, or an argument does not fit the input mode.
    ResourceError
        If Spark has too few task slots: each node holds a slot until it ends, and feeding needs one more.
    StartTimeout, NodeFailed
        If nodes did not start.
    """
    from tfspark.compat.tensorflowonspark import _node

    if input_mode != InputMode.TENSORFLOW and (driver_ps_nodes or eval_node):
        raise ConfigurationError("driver_ps_nodes and eval_node need InputMode.TENSORFLOW.")
    members = _members.plan_members(num_executors, num_ps, master_node, eval_node)
    if driver_ps_nodes:
        logger.warning("driver_ps_nodes has no effect: parameter servers run in executors and need task slots there")
    spark = _session(sc)
    require_room(spark, num_executors, feeding=input_mode == InputMode.SPARK)
    if compat.is_installed():
        compat.install(sc)
    tf_status.clear()
    plan = _node.Plan(
        pickle_main(map_fun, tf_args),
        members,
        default_fs(sc),
        os.getcwd(),
        fed=input_mode == InputMode.SPARK,
    )
    with _Noted():
        cluster = Cluster(
            spark,
            _node.run,
            plan,
            workers=num_executors,
            strategy="none",
            start_timeout=reservation_timeout,
            stall_timeout=stall_timeout,
            hang_timeout=hang_timeout,
            log_dir=(log_dir or "tensorboard") if tensorboard else None,
            tensorboard=tensorboard,
        ).start()
    meta = {
        "id": secrets.randbits(64),
        "cluster_template": _template(members),
        "num_executors": num_executors,
        "default_fs": plan.default_fs,
        "working_dir": plan.working_dir,
        "release_port": release_port,
    }
    return TFCluster(sc, cluster, members, input_mode, meta)


def default_fs(sc: Any) -> str:
    """Return Spark's default file system, without a trailing slash."""
    fs = default_file_system(sc)
    return fs[:-1] if fs.startswith("file://") and len(fs) > len("file://") and fs.endswith("/") else fs


def _session(sc: Any) -> SparkSession:
    from pyspark.sql import SparkSession

    return SparkSession(sc)


def _is_stream(data: Any) -> bool:
    return any(c.__name__ == "DStream" for c in type(data).__mro__)


def _template(members: Sequence[_members.Member]) -> dict[str, list[int]]:
    template: dict[str, list[int]] = {}
    for m in members:
        template.setdefault(m.job_name, []).append(m.executor_id)
    return template


class _Noted:
    """Records an error in `tf_status` and lets it propagate."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: Any) -> None:
        if isinstance(error, TFSparkError) and not isinstance(error, (ClusterStopped, ConfigurationError)):
            tf_status["error"] = str(error)
