"""`Cluster`: the handle by which a driver program starts, feeds, watches and stops TensorFlow on Spark."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cloudpickle

from tfspark.driver import launcher
from tfspark.driver import lifecycle as lc
from tfspark.driver.coordinator import Coordinator
from tfspark.driver.display import Display, NodeStatus, status_of
from tfspark.driver.feed_report import FeedReport
from tfspark.driver.feeding import CLOSE_SECONDS, Feeding
from tfspark.driver.sources import Columns, Source, planned, source_of
from tfspark.driver.tracking import Tracking, trackers_for
from tfspark.errors import ClusterError, ClusterStopped, ConfigurationError
from tfspark.schema import ColumnSpec, Shape, arrow_schema
from tfspark.spec import ClusterSpec, plan_nodes, plan_strategy, server_nodes
from tfspark.transport import messages as m
from tfspark.transport.auth import new_secret
from tfspark.transport.spool import DEFAULT_CAPACITY_BYTES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery
    from pyspark.sql.types import StructType

logger = logging.getLogger(__name__)


class Cluster:
    """TensorFlow processes inside Spark executors.

    Parameters
    ----------
    spark
        A classic SparkSession.
    main
        ``main(args, ctx)``: runs in every node; what it returns comes back in `results`.
    args
        First argument of `main`; anything that cloudpickle can carry.
    workers
        Number of workers.
    ps
        Number of parameter servers. With any, `main` runs in a chief of its own alone, and workers and parameter
        servers do what it schedules.
    chief
        Have a chief beside the workers; without one, worker 0 is the chief.
    strategy
        What ``ctx.strategy()`` gives: ``"multi_worker_mirrored"``, ``"parameter_server"``, ``"none"`` for nodes that
        train independently, or a function that makes it of a `NodeContext`; ``"auto"`` chooses by the nodes.
    start_timeout
        Seconds in which all nodes must have started.
    stop_grace
        Seconds that `main` has to return when the cluster is stopped before its processes are killed.
    hang_timeout
        Seconds for which a node's process may be silent, although it exists, before it counts as failed.
    stall_timeout
        Seconds that a worker may wait for rows, while a feed goes on, before the cluster is stopped; by default it
        may wait for ever, and a warning names it after half a minute.
    spool_bytes
        Bytes of rows that may wait unread in one node; beyond it, feeding is held back.
    env
        Environment variables for the nodes' processes.
    tls
        Encrypt what nodes, feeding tasks and driver say to each other, with a certificate made for this cluster; by
        default if Spark encrypts (``spark.ssl.enabled``, ``spark.network.crypto.enabled``) or authenticates
        (``spark.authenticate``). TensorFlow's own traffic between its processes is never encrypted.
    progress
        ``True`` for a live table, ``False`` for log lines; by default what suits standard error.
    log_dir
        Directory, of the driver, in which reported metrics are written as TensorBoard's event files. They go to MLflow
        as well if a run is active when the cluster is started.

    Raises
    ------
    ConfigurationError
        If an argument cannot work.
    """

    def __init__(
        self,
        spark: SparkSession,
        main: Callable[..., Any],
        args: Any = None,
        *,
        workers: int,
        ps: int = 0,
        chief: bool = False,
        strategy: str | Callable[[Any], Any] = "auto",
        start_timeout: float = 300.0,
        stop_grace: float = 5.0,
        hang_timeout: float = 60.0,
        stall_timeout: float | None = None,
        spool_bytes: int = DEFAULT_CAPACITY_BYTES,
        env: Mapping[str, str] | None = None,
        tls: bool | None = None,
        progress: bool | None = None,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._node_ids = plan_nodes(workers, chief, ps)
        own = strategy if callable(strategy) else None
        self._strategy = plan_strategy("auto" if callable(strategy) else strategy, self._node_ids)
        launcher.require_classic(spark)
        launcher.require_pandas()
        for name, seconds in (("hang_timeout", hang_timeout), ("stall_timeout", stall_timeout)):
            if seconds is not None and seconds <= 0:
                raise ConfigurationError(f"{name}={seconds}: a time in seconds is greater than 0.")
        if spool_bytes < 1:
            raise ConfigurationError(f"spool_bytes={spool_bytes}: a spool holds at least one byte.")
        self._spark = spark
        self._main = launcher.pickle_main(main, args, own)
        self._limits = lc.Limits(start=start_timeout, grace=stop_grace, hang=hang_timeout, stall=stall_timeout)
        self._spool_bytes = spool_bytes
        self._env = dict(env or {})
        self._display = Display(progress)
        self._log_dir = None if log_dir is None else os.fspath(log_dir)
        self._tracking = Tracking([])
        self._secret = new_secret(launcher.wants_tls(spark) if tls is None else tls)
        self._tag = f"tfspark-{secrets.token_hex(6)}"
        self._feeding = Feeding(
            spark, self._tag, self._node_ids, self._secret.for_clients(), self._limits, self._display
        )
        self._coordinator: Coordinator | None = None
        self._job: launcher.TaggedJob | None = None
        self._closing = threading.Lock()
        self._closed = False
        self.start_seconds: float | None = None
        self.feed_reports: list[FeedReport] = []

    # --- life

    def start(self) -> Cluster:
        """Launch the nodes and wait until all of them have registered.

        Raises
        ------
        ResourceError
            If Spark has too few task slots.
        StartTimeout
            If nodes did not come up in time.
        NodeFailed
            If a node failed on its way up.
        """
        if self._coordinator is not None:
            raise ConfigurationError("This cluster was started before.", hint="Make a new Cluster.")
        launcher.check_slots(self._spark, len(self._node_ids), feeding=False)
        began = self._display.begin()
        bind, host = launcher.driver_addresses(self._spark)
        self._coordinator = Coordinator(bind, self._secret, self._node_ids, self._limits, self._cancel_job)
        self._tracking = Tracking(trackers_for(self._log_dir))
        self._coordinator.on_report = self._tracking.report
        _live.add(self)
        self._job = self._launch(host, self._coordinator)
        with self._guard():
            life = self._coordinator.lifecycle
            coordinator = self._coordinator
            self._display.until(coordinator, "starting", lambda: life.concluded or life.phase is not lc.Phase.STARTING)
            self._display.final(coordinator, "starting")
            if life.error is not None:
                raise life.error
        self.start_seconds = time.monotonic() - began
        return self

    def _launch(self, host: str, coordinator: Coordinator) -> launcher.TaggedJob:
        from tfspark.executor.task import Launch

        launch = Launch(
            nodes=self._node_ids,
            coordinator_host=host,
            coordinator_port=coordinator.port,
            secret=self._secret,
            main=self._main,
            spool_bytes=self._spool_bytes,
            options={"strategy": self._strategy.value},
            env=self._env,
        )

        def ended(_: Any, error: BaseException | None) -> None:
            coordinator.post(launcher.job_ended(error))

        spark = self._spark
        return launcher.TaggedJob(spark, self._tag, lambda: launcher.node_job(spark, launch).collect(), ended)

    def feed(
        self,
        data: Any,
        epochs: int = 1,
        *,
        columns: Columns | None = None,
        shapes: Mapping[str, Shape] | None = None,
        fill: Mapping[str, Any] | None = None,
        mask: Sequence[str] = (),
        sparse: Sequence[str] = (),
        cache: str | None = "disk",
        seed: int | None = None,
        name: str = "",
    ) -> FeedReport:
        """Send data, partition by partition, to the workers; returns when every row has been delivered.

        Each row reaches one worker, whatever tasks Spark repeats. Later epochs replay what the workers keep.

        Parameters
        ----------
        data
            A Spark DataFrame; an RDD of tuples, dicts, Rows, numpy arrays or single values; a pandas DataFrame; or an
            iterator of these, which are fed one after the other, each as epochs of its own.
        epochs
            How often workers see the rows.
        columns
            Columns to send, in this order; all by default. A mapping gives them other names: ``{name: column}``.
        shapes
            Shape of one row for array columns that are to be dense tensors, ``None`` for dimensions of any length;
            other array columns become ragged. Numpy arrays bring theirs.
        fill
            Value that replaces nulls, by column; a null elsewhere is an error.
        mask
            Columns ``x`` of a DataFrame that may hold nulls: another column ``x_mask`` is fed, true where there is a
            value, and nulls are replaced by `fill`, or by zero.
        sparse
            Columns of ML vectors that become ``SparseTensor``; others become dense.
        cache
            Where workers keep the rows for later epochs: ``"disk"``, Spark's local directories, after the first 256
            MB, which stay in memory; ``"memory"``, as far as ``spool_bytes`` goes, and then the disk; ``None``,
            nowhere: Spark computes and sends them again for each epoch.
        seed
            Makes the feed reproducible: which worker gets which rows, in which order, and what
            ``ctx.dataset(shuffle=True)`` makes of it. Workers then begin to read when all rows have arrived.
        name
            Keeps the rows beside the epochs, such as those to validate with: ``ctx.dataset(name=...)`` reads them, as
            often as it is iterated. Feed them before those to train on, so that they are there when they are wanted.

        Raises
        ------
        SchemaError
            If a column has no tensor form or a value breaks its rule.
        FeedError
            If rows could not be delivered, or there are none.
        NodeFailed
            If a node failed meanwhile.
        """
        self._running()
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ConfigurationError(f"epochs must be a whole number of at least 1, not {epochs!r}.")
        if cache not in ("disk", "memory", None):
            raise ConfigurationError(f"cache must be 'disk', 'memory' or None, not {cache!r}.")
        if name and (epochs != 1 or cache is None or isinstance(data, Iterator)):
            raise ConfigurationError(
                f"Rows that are fed under a name ({name!r}) are kept and can be read any number of times: no epochs, "
                "cache=None or iterators go with it."
            )
        if isinstance(data, Iterator):
            same: dict[str, Any] = {"columns": columns, "shapes": shapes, "fill": fill, "mask": mask, "sparse": sparse}
            seeds = itertools.count(seed) if seed is not None else itertools.repeat(None)
            reports = [self.feed(d, epochs, cache=cache, seed=s, **same) for d, s in zip(data, seeds, strict=False)]
            return FeedReport.total(reports)
        source = source_of(self._spark, data, columns, mask, sparse)
        specs = planned(source.schema, source.shapes, shapes, fill, mask, sparse)
        terms = m.FeedBegins(
            feed=-1,
            epochs=epochs,
            columns=[c.to_json() for c in specs],
            arrow_schema=arrow_schema(specs).serialize().to_pybytes(),
            seed=seed or 0,
            in_memory=cache == "memory",
            epochs_to_come=epochs,
            reproducible=seed is not None,
            name=name,
        )
        if cache is not None:
            return self._feed(source, specs, terms)
        each = (replace(terms, epochs=1, seed=terms.seed + e, epochs_to_come=epochs - e) for e in range(epochs))
        return FeedReport.total([self._feed(source, specs, t) for t in each])

    def feed_stream(
        self,
        stream: DataFrame,
        *,
        columns: Columns | None = None,
        shapes: Mapping[str, Shape] | None = None,
        fill: Mapping[str, Any] | None = None,
        mask: Sequence[str] = (),
        sparse: Sequence[str] = (),
        **options: Any,
    ) -> StreamingQuery:
        """Feed every micro-batch of a streaming DataFrame, as it comes, until the query or the cluster is stopped.

        ``ctx.stream(...)`` reads them as one dataset, which ends when the driver calls `wait`, or leaves the
        ``with`` block; ``ctx.epochs()`` counts each micro-batch as an epoch. Micro-batches without rows are left out.

        Parameters
        ----------
        stream
            A streaming DataFrame.
        columns, shapes, fill, mask, sparse
            As for `feed`.
        options
            For ``DataStreamWriter``: ``trigger={"availableNow": True}``, ``queryName=...``, and any option of the
            query, such as ``checkpointLocation``, with which it goes on after a restart where it had stopped.

        Returns
        -------
        StreamingQuery
            Running; a failure of the cluster fails it, with the node's error in its exception.

        Raises
        ------
        ConfigurationError
            If `stream` is not a streaming DataFrame.
        """
        self._running()
        if not getattr(stream, "isStreaming", False):
            raise ConfigurationError("feed_stream() takes a streaming DataFrame.", hint="feed() takes all others.")

        def feed_batch(batch: DataFrame, _: int) -> None:
            batch.persist()
            try:
                if not batch.isEmpty():
                    self.feed(batch, columns=columns, shapes=shapes, fill=fill, mask=mask, sparse=sparse)
            finally:
                batch.unpersist()

        writer = stream.writeStream.foreachBatch(feed_batch)
        if "trigger" in options:
            writer = writer.trigger(**options.pop("trigger"))
        if "queryName" in options:
            writer = writer.queryName(options.pop("queryName"))
        return writer.options(**options).start()

    def predict(
        self,
        df: DataFrame,
        outputs: str | StructType,
        *,
        columns: Columns | None = None,
        shapes: Mapping[str, Shape] | None = None,
        fill: Mapping[str, Any] | None = None,
        mask: Sequence[str] = (),
        sparse: Sequence[str] = (),
        batch_size: int = 1024,
    ) -> DataFrame:
        """Have the workers answer each row of a DataFrame: they are where ``main`` calls ``ctx.serve(fn)``.

        Parameters
        ----------
        df
            Any DataFrame. Its columns are passed through, in its order.
        outputs
            Names and types of what `fn` returns, as Spark writes them: ``"label int, scores array<float>"``.
        columns, shapes, fill, mask, sparse
            What `fn` gets, as for `feed`.
        batch_size
            Most rows per call of `fn`.

        Returns
        -------
        DataFrame
            Lazy: it is computed by the workers whenever it is used, so use it before the ``with`` block is left.

        Raises
        ------
        SchemaError
            If a column has no tensor form.
        ConfigurationError
            If `outputs` is no schema, or names a column of `df`.
        """
        from tfspark.driver.predictions import predictions

        coordinator = self._running()
        launcher.check_slots(self._spark, len(self._node_ids), feeding=True)
        _, host = launcher.driver_addresses(self._spark)
        main_nodes = set(self._node_ids) - set(server_nodes(self._node_ids))
        return predictions(
            df,
            outputs,
            workers=ClusterSpec(tuple(a for a in coordinator.spec.nodes if a.node in main_nodes)),
            coordinator=(host, coordinator.port),
            secret=self._secret,
            batch_size=batch_size,
            columns=columns,
            shapes=shapes,
            fill=fill,
            mask=mask,
            sparse=sparse,
        )

    def wait(self, timeout: float | None = None) -> dict[tuple[str, int], Any]:
        """Wait until ``main`` has returned on every node, shut down, and return the results.

        Raises
        ------
        NodeFailed
            If a node failed.
        TimeoutError
            If `timeout` seconds have passed; the cluster goes on.
        """
        coordinator = self._require_started()
        life = coordinator.lifecycle
        if not self._closed:
            with self._guard(keep=TimeoutError):
                coordinator.publish(m.NoMoreFeeds())
                self._display.begin()
                if not self._display.until(coordinator, "training", lambda: life.concluded, timeout):
                    raise TimeoutError(f"main has not returned on all nodes within {timeout} s.")
                if life.error is None:
                    self._display.final(coordinator, "training")
            self._close()
        if life.error is not None:
            raise life.error
        return self.results

    def stop(self, grace: float | None = None) -> None:
        """Stop the cluster now, from any thread; safe to call twice.

        Parameters
        ----------
        grace
            Seconds that ``main`` has to notice ``ctx.stopping`` and return; `stop_grace` by default.
        """
        if self._coordinator is not None and not self._closed:
            if not self._coordinator.lifecycle.concluded:
                self._coordinator.post(lc.StopAsked("stop() was called", grace))
            self._close()

    def _close(self) -> None:
        """Wait for the job to end, cancel it if it does not, and free everything."""
        coordinator, job = self._coordinator, self._job
        assert coordinator is not None
        with self._closing:
            if self._closed:
                return
            limits = self._limits
            patience = limits.grace + limits.job_end
            try:
                if job is not None and not coordinator.wait(lambda: coordinator.lifecycle.over, patience):
                    job.cancel()
                    coordinator.wait(lambda: coordinator.lifecycle.over, CLOSE_SECONDS)
            finally:
                self._closed = True
                coordinator.close()
                self._tracking.close()
                self._display.close()
                _live.discard(self)
            if job is not None:
                job.join(CLOSE_SECONDS)

    def __enter__(self) -> Cluster:
        return self if self._coordinator is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self.stop(grace=0.0)

    # --- what is known

    @property
    def results(self) -> dict[tuple[str, int], Any]:
        """What ``main`` returned, by ``(role, index)``; only nodes that have finished."""
        coordinator = self._require_started()
        return {n.key: cloudpickle.loads(coordinator.results[n]) for n in self._node_ids if n in coordinator.results}

    @property
    def nodes(self) -> ClusterSpec:
        """Addresses of the nodes."""
        return self._require_started().spec

    def status(self) -> list[NodeStatus]:
        """Return what is known of each node now."""
        return status_of(self._require_started())

    @property
    def startup_seconds(self) -> dict[tuple[str, int], dict[str, float]]:
        """Where each node's start-up went, in seconds."""
        return {n.key: dict(s) for n, s in self._require_started().startup.items()}

    def __repr__(self) -> str:
        phase = self._coordinator.lifecycle.phase.value if self._coordinator else "not started"
        return f"Cluster({len(self._node_ids)} nodes, {phase})"

    # --- inside

    def _require_started(self) -> Coordinator:
        if self._coordinator is None:
            raise ConfigurationError(
                "The cluster has not been started.", hint="Use it in a with statement, or call start()."
            )
        return self._coordinator

    def _running(self) -> Coordinator:
        coordinator = self._require_started()
        life = coordinator.lifecycle
        if life.error is not None and not isinstance(life.error, ClusterStopped):
            raise life.error
        if self._closed or life.phase is not lc.Phase.RUNNING:
            raise ClusterStopped(f"The cluster is {life.phase.value}.", hint="Feed before wait() or stop().")
        return coordinator

    def _cancel_job(self) -> None:
        if self._job is not None:
            self._job.cancel()

    def _feed(self, source: Source, specs: Sequence[ColumnSpec], terms: m.FeedBegins) -> FeedReport:
        coordinator = self._running()
        launcher.check_slots(self._spark, len(self._node_ids), feeding=True)
        with self._guard():
            report = self._feeding.run(coordinator, source, specs, terms)
        self.feed_reports.append(report)
        return report

    def _guard(self, keep: type[BaseException] | None = None) -> _StopOnError:
        return _StopOnError(self, keep)


class _StopOnError:
    """Stops the cluster when the block raises; errors of kind `keep` leave it running."""

    def __init__(self, cluster: Cluster, keep: type[BaseException] | None) -> None:
        self._cluster, self._keep = cluster, keep

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None or (self._keep is not None and isinstance(error, self._keep)):
            return
        try:
            self._cluster.stop(grace=0.0)
        except ClusterError:
            logger.exception("stopping the cluster failed")


_live: weakref.WeakSet[Cluster] = weakref.WeakSet()


@atexit.register
def _stop_all_at_exit() -> None:
    for cluster in list(_live):
        cluster.stop(grace=0.0)


def run(
    spark: SparkSession, main: Callable[..., Any], args: Any = None, *, workers: int, **options: Any
) -> dict[tuple[str, int], Any]:
    """Run ``main(args, ctx)`` on a cluster of its own and return the results; nothing is fed.

    Takes the arguments of `Cluster` and raises its errors.

    Returns
    -------
    dict
        What each ``main`` returned, by ``(role, index)``.
    """
    with Cluster(spark, main, args, workers=workers, **options) as cluster:
        return cluster.wait()
