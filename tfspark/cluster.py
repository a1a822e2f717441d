"""`Cluster`: the handle with which a driver program starts, feeds, watches and stops TensorFlow on Spark."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from tfspark import messages as m
from tfspark.cluster_options import ClusterOptions
from tfspark.columns.leaves import Columns, planned
from tfspark.columns.spec import Shape
from tfspark.control import lifecycle as lc
from tfspark.control.addresses import driver_addresses, needs_tunnel
from tfspark.control.elastic import watch_room, workers_that_fit
from tfspark.control.gang import Gang, GangSpec, tunnel_of
from tfspark.control.recovery import replace_executors, worth_a_restart
from tfspark.control.termination import grace_after, leave_in_order
from tfspark.control.tunnel import Tunnel
from tfspark.errors import ClusterError, ClusterStopped, ConfigurationError, ResourceError, TFSparkError, first_line
from tfspark.feeding.journal import FeedEntry, Journal
from tfspark.feeding.remote_batches import BatchDesk
from tfspark.feeding.report import FeedReport
from tfspark.feeding.sources import Source, count_rows, is_rdd, pickled_source, source_of
from tfspark.feeding.streams import ForBatch, Streams
from tfspark.feeding.terms import FeedTerms
from tfspark.feeding.unread import ADVICE
from tfspark.monitoring.configuration import configuration_of
from tfspark.monitoring.console_log import ensure_log_lines
from tfspark.monitoring.display import Display
from tfspark.monitoring.dump import Known, dump
from tfspark.monitoring.results import Results
from tfspark.monitoring.status import Status, status_of
from tfspark.monitoring.tracking import Tracking, active_trackers
from tfspark.monitoring.watching import Watching
from tfspark.settings import FROM_SETTINGS
from tfspark.spark.connect import is_connect
from tfspark.spark.profiles import Resources
from tfspark.spark.requirements import require_pandas, require_session
from tfspark.spec import ClusterSpec, NodeId, Role, resuming_nodes, training_nodes
from tfspark.transport.ports import Ports

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery
    from pyspark.sql.types import StructType

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_REPORTS = 1000
"""Number of reports that `Cluster.feed_reports` keeps once a stream has begun."""


class Cluster:
    """TensorFlow processes inside Spark executors.

    Parameters
    ----------
    spark
        A SparkSession, classic or of Spark Connect (docs/clusters/connect.md).
    main
        ``main(args, ctx)``: runs in every node; its return value is in `results`.
    args
        First argument of `main`; anything that cloudpickle can pickle.
    workers
        Number of workers.
    ps
        Number of parameter servers. If there are any, `main` runs only in a separate chief, and workers and parameter
        servers run the operations that the chief schedules.
    chief
        Start a chief in addition to the workers; without one, worker 0 is the chief.
    evaluator
        Start an additional node that gets no rows and evaluates checkpoints (``ctx.new_checkpoints()``) until training
        ends. It also runs `main`, with ``ctx.role == "evaluator"``.
    strategy
        How the workers train together. ``"auto"``: plain Keras on every worker, with the gradients of all workers
        averaged in the optimizer (see docs/training.md), or ``ParameterServerStrategy`` if there are parameter servers.
        ``"none"``: each worker trains a separate model. ``"multi_worker_mirrored"``: TensorFlow's
        ``MultiWorkerMirroredStrategy``, as TensorFlow defines it. Or a function that takes a `NodeContext` and returns
        a strategy.
    gpus_per_node
        GPUs of each chief and worker, as Spark assigns them: a whole number, or a number below 1 for nodes that share
        one GPU. Parameter servers and the evaluator never get a GPU. By default the value of
        ``spark.task.resource.gpu.amount``.
    cpus_per_node
        CPUs that Spark reserves for each node; by default ``spark.task.cpus``, which is 1 unless it is set. TensorFlow
        uses as many threads, unless `tensorflow_options` sets their number or a CPU quota allows fewer.
    spread
        Start at most one node on each executor.
    ports
        ``(first, last)`` of the ports that nodes and driver listen on; any port by default.
    max_restarts
        How often all nodes may be started again after a node has failed. `main` is then called again, and the data is
        fed again. With checkpoints (`checkpoint_dir`), `main` continues from one and is fed only the data after it.
    min_workers
        Least number of workers after a restart. If Spark has no room for all workers within the setting
        ``shrink_timeout``, the cluster continues with fewer, but at least this many; each further restart tries to
        start all of them again. ``ctx.num_workers`` is the current number. By default a restart waits for all workers
        (`start_timeout`).
    grow
        With `min_workers`: when an epoch of ``ctx.fit`` ends with fewer than `workers` workers, start all of them if
        Spark has room for all. The nodes start again from the checkpoint of that epoch; this does not count as one of
        `max_restarts`.
    checkpoint_dir
        Directory for checkpoints that all nodes share, a path or URL that TensorFlow can write to; see
        ``ctx.checkpoint``. ``ctx.fit`` saves there after each epoch and continues from the checkpoint there, also from
        one of an earlier program that did not finish.
    start_timeout
        Seconds within which all nodes must have started; default 300. This argument and the next six are also settings:
        without an argument, the value comes from Spark's settings or the environment, see docs/settings.md.
    stop_grace
        Seconds within which `main` can return after the cluster is stopped; then its processes are killed. Default 5.
    hang_timeout
        Seconds that a node's process may be silent, although it exists, before it counts as failed; default 60.
    stall_timeout
        Seconds that a worker may wait for rows during a feed before the cluster is stopped. No limit by default; a
        warning names the worker after 30 s.
    step_timeout
        Seconds that a worker may be in one training step while no node waits for rows, compiles, evaluates or saves.
        After that the cluster is stopped with an error that shows the stack of each worker. Default 600; ``None`` for
        no limit.
    driver_timeout
        Seconds that nodes and feed tasks continue without an answer from the driver; then they end. Default 120.
    spool_bytes
        Bytes of rows that may wait unread in one node; above this limit, feed tasks wait. Default 1 GB.
    settings
        Other times and sizes by name, such as ``{"silence_timeout": 20.0}``; docs/settings.md lists them.
    env
        Environment variables for the nodes' processes.
    tensorflow_options
        Options that TensorFlow accepts only before its first use, which in nodes is before `main`:
        ``inter_op_threads``, ``intra_op_threads``, ``memory_growth``, ``gpu_memory_mb``, ``logical_cpus``; see
        `tfspark.tensorflow_options.TensorFlowOptions`.
    tls
        Encrypt the traffic between nodes, feed tasks and driver, with a certificate made for this cluster; by default
        if Spark encrypts (``spark.ssl.enabled``, ``spark.ssl.rpc.enabled``, ``spark.network.crypto.enabled``, an
        encrypted connection of Spark Connect) or authenticates (``spark.authenticate``). TensorFlow's own traffic
        between its processes is never encrypted.
    progress
        ``True`` for a live table, ``False`` for log lines; by default a live table in a notebook or a terminal.
    log_dir
        Directory for TensorBoard, ``ctx.log_dir`` in the nodes; nodes and driver must share it. Spark's metrics and the
        metrics of ``ctx.fit`` are written there.
    tensorboard
        Run TensorBoard on `log_dir`, on the driver's host, until the cluster ends.
    profile
        First and last step for TensorFlow's profiler on the chief.
    debug_dumps
        Make TensorFlow's debugger dump the computations of the nodes: ``True``, or its level of detail for tensors,
        such as ``"FULL_TENSOR"``. Slow.
    ui
        Serve a live page and Prometheus metrics; by default if Spark serves its UI (``spark.ui.enabled``).
    report
        HTML file on the driver's host that contains the last state of the live page, also after a failure: curves,
        reports of feeds, restarts, configuration and log in one file. By default ``report.html`` in `log_dir`, if
        `log_dir` is given.

    Raises
    ------
    ConfigurationError
        If an argument cannot work.

    Examples
    --------
    >>> def main(args, ctx):
    ...     import keras
    ...
    ...     model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
    ...     model.compile(optimizer="sgd", loss="mse")
    ...     return ctx.fit(model, batch_size=args["batch_size"], label="y")
    >>> rows = [([1.0, 2.0], 3.0), ([0.0, 1.0], 1.0)]
    >>> df = spark.createDataFrame(rows, "x array<float>, y float")
    >>> with Cluster(spark, main, {"batch_size": 2}, workers=1) as cluster:
    ...     report = cluster.feed(df, epochs=3, shapes={"x": 2})
    >>> len(cluster.results["worker", 0]["loss"])
    3
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
        evaluator: bool = False,
        strategy: str | Callable[[Any], Any] = "auto",
        gpus_per_node: float | None = None,
        cpus_per_node: float | None = None,
        spread: bool = False,
        ports: Ports | None = None,
        max_restarts: int = 0,
        min_workers: int | None = None,
        grow: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        start_timeout: float = FROM_SETTINGS,
        stop_grace: float = FROM_SETTINGS,
        hang_timeout: float = FROM_SETTINGS,
        stall_timeout: float | None = FROM_SETTINGS,
        step_timeout: float | None = FROM_SETTINGS,
        driver_timeout: float = FROM_SETTINGS,
        spool_bytes: int = FROM_SETTINGS,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        tensorflow_options: Mapping[str, Any] | None = None,
        tls: bool | None = None,
        progress: bool | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        tensorboard: bool = False,
        profile: int | tuple[int, int] | None = None,
        debug_dumps: bool | str = False,
        ui: bool | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        require_session(spark)
        require_pandas()
        options = ClusterOptions(
            workers=workers,
            ps=ps,
            chief=chief,
            evaluator=evaluator,
            strategy=strategy,
            gpus_per_node=gpus_per_node,
            cpus_per_node=cpus_per_node,
            spread=spread,
            ports=ports,
            max_restarts=max_restarts,
            min_workers=min_workers,
            grow=grow,
            checkpoint_dir=checkpoint_dir,
            start_timeout=start_timeout,
            stop_grace=stop_grace,
            hang_timeout=hang_timeout,
            stall_timeout=stall_timeout,
            step_timeout=step_timeout,
            driver_timeout=driver_timeout,
            spool_bytes=spool_bytes,
            settings=settings,
            env=env,
            tensorflow_options=tensorflow_options,
            tls=tls,
            progress=progress,
            log_dir=log_dir,
            tensorboard=tensorboard,
            profile=profile,
            debug_dumps=debug_dumps,
            ui=ui,
            report=report,
        ).decided(spark)
        self._spark, self._options = spark, options
        self._resources = Resources(spark, options.nodes, options.node_resources, options.resolved.slots_timeout)
        if min_workers is not None and is_connect(spark):
            raise ConfigurationError(
                f"min_workers={min_workers} does not work on Spark Connect, whose clients do not see executors.",
                hint="Leave min_workers out, or use a classic session.",
            )
        if min_workers is not None and self._resources.settings.dynamic:
            raise ConfigurationError(
                f"min_workers={min_workers} does not work with spark.dynamicAllocation.enabled=true: Spark then always "
                "promises more executors.",
                hint="Leave min_workers out, or switch dynamic allocation off.",
            )
        self._spec = options.gang_spec(main, args, self._resources)
        self._tag = f"tfspark-{secrets.token_hex(6)}"
        self._tracking = Tracking([])
        self._watching = Watching(options.watching, self._tag, lambda: (self.feed_reports, self.restarts))
        self._display = Display(progress, lambda: self._watching.links)
        self._journal = Journal(keep=max_restarts > 0)
        self._gang: Gang | None = None
        self._changing = threading.Lock()
        self._recovery = threading.Lock()
        self._stopping = False
        self._streams = Streams()
        self._stories: list[str] = []
        self._growths = 0
        self._desk: BatchDesk | None = None
        self._desk_tunnel: Tunnel | None = None
        self.restarts: list[TFSparkError] = []
        self.start_seconds: float | None = None
        self.feed_reports: list[FeedReport] = []

    # --- life

    def start(self) -> Cluster:
        """Launch the nodes and wait until all of them have registered.

        Raises
        ------
        ResourceError
            If Spark has too few task slots or GPUs.
        StartTimeout
            If nodes did not start in time.
        NodeFailed
            If a node failed while it started.

        Examples
        --------
        >>> cluster = Cluster(spark, main, workers=1).start()
        """
        if self._gang is not None:
            raise ConfigurationError("The cluster has already been started.", hint="Make a new Cluster.")
        ensure_log_lines()
        began = self._display.begin()
        self._tracking = Tracking(active_trackers())
        _live.add(self)
        leave_in_order(lambda: bool(_live), _stop_all)
        with self._guard():
            self._resources.tunnels = int(needs_tunnel(self._spark, self._spec.ports))
            gang = self._next_gang(self._spec)
            configuration = configuration_of(self._spark, self._options)
            self._watching.start(self._spark, lambda: self._require_started().coordinator, configuration)
            try:
                gang.start(self._watching.description)
            except TFSparkError as e:
                self._recover(gang, e)
            self._watching.finish_start()
        self.start_seconds = time.monotonic() - began
        return self

    @property
    def _node_ids(self) -> tuple[NodeId, ...]:
        """All nodes; after a restart there may be fewer workers than at the start."""
        return self._gang.nodes if self._gang is not None else self._options.nodes

    def _next_gang(self, spec: GangSpec) -> Gang:
        with self._changing:
            if self._stopping:
                raise ClusterStopped("The cluster was stopped before it had finished: stop() was called.")
            n = len(self.restarts) + self._growths
            tag = f"{self._tag}-{n}" if n else self._tag
            self._gang = Gang(self._spark, spec, tag, n, self._display)
            self._gang.coordinator.on_report = self._on_report
            if self._options.grow and len(spec.nodes) < len(self._options.nodes):
                self._gang.coordinator.on_epoch_ended = partial(self._on_epoch_ended, self._gang)
            return self._gang

    def _on_epoch_ended(self, gang: Gang, epoch: int, epochs: int) -> None:
        """Start all workers again if Spark has room for them; runs in a thread, because a node waits for the answer."""

        def grow() -> None:
            if not gang.growing and not gang.life.concluded and self._has_room(self._options.workers):
                gang.grow()

        if epoch < epochs:
            threading.Thread(target=grow, name=f"{self._tag}-grow", daemon=True).start()

    def _on_report(self, node: NodeId, step: int, metrics: dict[str, float]) -> None:
        self._tracking.report(node, step, metrics)
        self._watching.report(node, step, metrics)

    def _recovering(self, action: Callable[[Gang], T]) -> T:
        """Call `action` on the gang; if a node fails, start all nodes again and repeat it."""
        while True:
            gang = self._require_started()
            try:
                return action(gang)
            except TFSparkError as e:
                self._recover(gang, e)

    def _recover(self, gang: Gang, error: TFSparkError) -> None:
        """Start the nodes again and repeat the feeds of the journal.

        Raises
        ------
        TFSparkError
            `error` if no restart is left or a restart cannot help, or the error of the last restart.
        """
        with self._recovery:
            if self._gang is gang:
                self._restart(gang, error)

    def _restart(self, gang: Gang, error: TFSparkError) -> None:
        while True:
            error = gang.starved or error
            if (
                self._stopping
                or self._streams.begun
                or not (gang.growing or gang.starved or worth_a_restart(error, self._options.min_workers is not None))
                or (not gang.growing and len(self.restarts) >= self._options.max_restarts)
            ):
                raise error
            if gang.growing:
                self._growths += 1
                logger.info("Spark has room for all %d workers again: they start.", self._options.workers)
            else:
                self.restarts.append(error)
                most = self._options.max_restarts
                logger.warning("%s Restart %d of %d.", first_line(error), len(self.restarts), most)
            self._stories.append(gang.life.story.tell())
            silent = gang.silent_tasks()
            gang.stop("a node failed", grace=0.0)
            replace_executors(self._spark, silent)
            gang = self._next_gang(self._spec_that_fits())
            try:
                gang.start(self._watching.description)
                for entry in self._journal.entries:
                    self._feed_gang(gang, entry)
                return
            except TFSparkError as e:
                error = e

    def _spec_that_fits(self) -> GangSpec:
        """Return the spec of the next gang: with fewer workers if Spark does not have room for all in time."""
        options, least = self._options, self._options.min_workers
        if least is None:
            return self._spec
        patience = self._spec.settings.shrink_timeout
        workers = workers_that_fit(self._has_room, options.workers, least, patience, lambda: self._stopping)
        if workers == options.workers:
            return self._spec
        logger.warning(
            "Spark has no room for %d workers within %.0f s: %d go on. The next restart tries %d again.",
            options.workers,
            patience,
            workers,
            options.workers,
        )
        nodes = options.nodes_with(workers)
        return replace(self._spec, nodes=nodes, resources=self._resources.of(nodes))

    def _has_room(self, workers: int) -> bool:
        return self._resources.of(self._options.nodes_with(workers)).has_room(feeding=self._journal.begun)

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
        pickled: bool = False,
        workers: Sequence[int] | None = None,
        name: str = "",
    ) -> FeedReport:
        """Send data to the workers, partition by partition, and return when every row has been delivered.

        Each row reaches exactly one worker, even if Spark repeats tasks. Later epochs replay the rows that the workers
        keep. Rows for workers whose ``main`` has returned are dropped, and a warning says how many.

        Parameters
        ----------
        data
            A Spark DataFrame; an RDD of tuples, dicts, Rows, numpy arrays or single values; a pandas DataFrame; or an
            iterator of these, which are fed one after the other, each with its own epochs.
        epochs
            How often workers read the rows.
        columns
            Columns to send, in this order; all by default. A mapping renames them: ``{name: column}``.
        shapes
            Shape of one row for array columns, by column: ``784``, ``(28, 28)``, ``(None, 3)`` with dimensions of any
            length first, ``None`` for a ``RaggedTensor``. Numpy arrays need no shape here. For other array columns
            the first rows decide: dense if all their arrays have the same length, ragged otherwise.
        fill
            Value that replaces nulls, by column; a null in any other column is an error.
        mask
            Columns ``x`` of a DataFrame that may contain nulls: an additional column ``x_mask`` is fed, true where
            there is a value, and nulls are replaced by `fill`, or by zero.
        sparse
            Columns of ML vectors that become ``SparseTensor``; others become dense.
        cache
            Where workers keep the rows for later epochs. ``"disk"``: in Spark's local directories, except the first
            256 MB or more (the setting ``spool_memory_bytes``), which stay in memory. ``"memory"``: in memory up to
            ``spool_bytes``, then on disk. ``None``: nowhere; Spark computes and sends the rows again for each epoch.
        seed
            Makes the feed reproducible: which worker gets which rows, in which order, and how
            ``ctx.dataset(shuffle=True)`` shuffles them. Workers then start to read only when all rows have
            arrived.
        pickled
            Send the rows of an RDD unchanged, as pickled Python objects of any type; ``ctx.rows()`` returns them.
        workers
            Indices of the workers that get rows; all by default.
        name
            Keep the rows separate from the training epochs, for example for validation: ``ctx.dataset(name=...)`` reads
            them each time it is iterated. Feed them before the training rows, so that they are there when needed.

        Raises
        ------
        SchemaError
            If a column has no tensor form or a value breaks the rule of its column, such as an array whose length
            differs from that in the first rows.
        FeedError
            If rows could not be delivered, or the data has no rows.
        NodeFailed
            If a node failed during the feed and no restart is left.

        Examples
        --------
        >>> report = cluster.feed(df, epochs=2, shapes={"x": 2})
        >>> report.rows
        2
        """
        FeedTerms.check(epochs, cache, name, seed, isinstance(data, Iterator))
        if self._require_started().nobody_reads:
            return self._drop(data, epochs)
        self._running()
        same: dict[str, Any] = {"columns": columns, "fill": fill, "mask": mask, "sparse": sparse}
        same |= {"cache": cache, "pickled": pickled, "workers": workers, "name": name}
        settled: dict[str, Shape] = {}
        if not isinstance(data, Iterator):
            return self._feed_settling(settled, data, epochs, shapes, seed=seed, **same)
        seeds = itertools.count(seed) if seed is not None else itertools.repeat(None)
        feeds = (
            self._feed_settling(settled, d, epochs, shapes, seed=s, **same) for d, s in zip(data, seeds, strict=False)
        )
        return FeedReport.total(self._while_read(feeds))

    def _while_read(self, feeds: Iterable[FeedReport]) -> list[FeedReport]:
        """Run the feeds one after the other until every ``main`` has returned; return their reports."""
        reports: list[FeedReport] = []
        for report in feeds:
            reports.append(report)
            if self._require_started().nobody_reads:
                break
        return reports

    def _drop(self, data: Any, epochs: int) -> FeedReport:
        """Log how many rows are dropped because every ``main`` has returned, and return an empty report."""
        rows = "its rows" if isinstance(data, Iterator) else f"its {count_rows(data) * epochs:,} rows"
        logger.warning("main returned on every node before this feed began: %s were dropped. %s", rows, ADVICE)
        return FeedReport(0, 0, 0.0, {}, epochs)

    def _feed_settling(
        self,
        settled: dict[str, Shape],
        data: Any,
        epochs: int = 1,
        shapes: Mapping[str, Shape] | None = None,
        *,
        columns: Columns | None,
        fill: Mapping[str, Any] | None,
        mask: Sequence[str],
        sparse: Sequence[str],
        cache: str | None = "disk",
        seed: int | None = None,
        pickled: bool = False,
        workers: Sequence[int] | None = None,
        name: str = "",
    ) -> FeedReport:
        """Feed one part of a sequence that is read as one dataset.

        `settled` contains the shapes of the earlier parts; the shapes of this part are added to it.
        """
        self._require_workers(workers)
        if is_rdd(data):
            # A separate task reads the first rows of an RDD.
            self._resources.of(self._node_ids).require_default_task()
        ragged = [c for c, s in (shapes or {}).items() if s is None]
        source = pickled_source(data) if pickled else source_of(self._spark, data, columns, mask, sparse, ragged)
        known = {c: s for c, s in settled.items() if c in source.schema.names}
        specs = planned(source.schema, {**source.shapes, **known}, shapes, fill, mask, sparse)
        terms = FeedTerms.of(specs, epochs, cache, seed, name)
        each = [terms] if cache is not None else terms.each_epoch()
        report = FeedReport.total(self._while_read(self._feed(source, t, workers) for t in each))
        settled.update(terms.shapes.found())
        return report

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
        """Feed each micro-batch of a streaming DataFrame when it arrives, until the query or the cluster is stopped.

        ``ctx.stream(...)`` reads all micro-batches as one dataset; ``ctx.epochs()`` counts each micro-batch as an
        epoch. The dataset ends when the query has ended and the driver calls `wait` or leaves the ``with`` block. Both
        wait for the query, so stop an endless query first. Micro-batches without rows are skipped.

        The rows of a stream cannot be read again, so a failed node fails the query, also with `max_restarts`. Start
        both again, the query from its ``checkpointLocation``.

        Parameters
        ----------
        stream
            A streaming DataFrame.
        columns, shapes, fill, mask, sparse
            As for `feed`.
        options
            For ``DataStreamWriter``: ``trigger={"availableNow": True}``, ``queryName=...``, ``outputMode="update"``,
            and any option of the query, such as ``checkpointLocation``, from which the query continues after a restart.

        Returns
        -------
        StreamingQuery
            The running query. If the cluster fails, the query fails with the node's error in its exception.

        Raises
        ------
        ConfigurationError
            If `stream` is not a streaming DataFrame.

        Examples
        --------
        >>> stream = spark.readStream.schema(df.schema).parquet(f"{directory}/arriving")
        >>> query = cluster.feed_stream(stream, shapes={"x": 2}, trigger={"availableNow": True})
        >>> query.awaitTermination(60)
        True
        """
        self._running()

        settled: dict[str, Shape] = {}

        def feed(batch: DataFrame) -> None:
            self._feed_settling(settled, batch, shapes=shapes, columns=columns, fill=fill, mask=mask, sparse=sparse)

        return self._streams.start(stream, feed, options, self._relayed)

    def _relayed(self, feed_batch: ForBatch) -> ForBatch:
        """Return the function that Spark calls with each micro-batch.

        On Spark Connect, Spark calls it on the server's side, not in this process. So the function sends a message to
        this process, which feeds the micro-batch.
        """
        if not is_connect(self._spark):
            return feed_batch
        if self._desk is None:
            bind, host = driver_addresses(self._spark)
            desk = BatchDesk(self._spark, bind, host, self._spec.secret, self._spec.ports)
            if needs_tunnel(self._spark):
                self._open_tunnel(desk)
            self._desk = desk
        return self._desk.sender(feed_batch, self._spec.settings.driver_timeout)

    def _open_tunnel(self, desk: BatchDesk) -> None:
        """Make `desk` reachable for Spark; this takes a task slot beside the nodes and a feed task."""
        self._resources.tunnels = 2
        try:
            self._resources.of(self._node_ids).require_default_task()
            self._desk_tunnel = tunnel_of(self._spark, self._spec, f"{self._tag}-stream-tunnel")
            desk.reached_at = self._desk_tunnel.open(*desk.reached_at)
        except TFSparkError:
            desk.close()
            raise

    def _close_desk(self) -> None:
        assert self._desk is not None
        self._desk.close()
        if self._desk_tunnel is not None:
            self._desk_tunnel.close()

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
        workers: Sequence[int] | None = None,
        keep: Sequence[str] | None = None,
    ) -> DataFrame:
        """Compute predictions for each row of a DataFrame in the workers; ``main`` must call ``ctx.serve(fn)``.

        Parameters
        ----------
        df
            Any DataFrame.
        outputs
            Names and types of the values that `fn` returns, as a Spark schema: ``"label int, scores array<float>"``.
        columns, shapes, fill, mask, sparse
            The input of `fn`; as for `feed`.
        batch_size
            Largest number of rows per call of `fn`.
        workers
            Indices of the workers that compute predictions; all by default.
        keep
            Columns of `df` that the result contains in addition to the outputs, as for `tfspark.predict`; all by
            default.

        Returns
        -------
        DataFrame
            The kept columns of `df`, then the outputs. It is lazy: the workers compute it each time it is used, so use
            it before the ``with`` block ends.

        Raises
        ------
        SchemaError
            If a column has no tensor form.
        ConfigurationError
            If `outputs` is not a schema, or contains the name of a column of `df`.

        Examples
        --------
        >>> def main(args, ctx):
        ...     ctx.serve(lambda columns: 2.0 * columns["y"])
        >>> with Cluster(spark, main, workers=1) as cluster:
        ...     rows = cluster.predict(df, "doubled float", columns=["y"]).collect()
        >>> [(row.y, row.doubled) for row in rows]
        [(3.0, 6.0), (1.0, 2.0)]
        """
        from tfspark.prediction.by_workers import predictions

        coordinator = self._running().coordinator
        self._resources.of(self._node_ids).require_default_task()
        self._require_workers(workers)
        answering = [n for n in resuming_nodes(self._node_ids) if workers is None or n.index in workers]
        return predictions(
            df,
            outputs,
            workers=ClusterSpec(tuple(a for a in coordinator.spec.nodes if a.node in answering)),
            coordinator=coordinator.reached_at,
            secret=self._spec.secret,
            batch_size=batch_size,
            columns=columns,
            shapes=shapes,
            fill=fill,
            mask=mask,
            sparse=sparse,
            keep=keep,
        )

    def wait(self, timeout: float | None = None, *, workers: Sequence[int] | None = None) -> dict[tuple[str, int], Any]:
        """Wait until ``main`` has returned on every node, shut down, and return the results.

        It first waits for the streams that feed the cluster, because ``main`` reads their rows.

        Parameters
        ----------
        timeout
            Seconds to wait; no limit by default.
        workers
            Indices of the workers to wait for. The other workers and the cluster continue until `stop`.

        Raises
        ------
        NodeFailed
            If a node failed.
        FeedError
            If a stream failed.
        SchemaError
            If rows of a stream could not be fed.
        TimeoutError
            If `timeout` seconds have passed; the cluster continues.

        Examples
        --------
        >>> results = cluster.wait(timeout=600)
        >>> list(results)
        [('worker', 0)]
        """
        gang = self._require_started()
        self._require_workers(workers)
        if not gang.closed:
            deadline = None if timeout is None else time.monotonic() + timeout
            with self._guard(keep=TimeoutError):
                self._recovering(lambda gang: self._await_results(gang, timeout, deadline, workers))
            if self._require_started().life.concluded:
                self._close()
        self._raise_failure(self._require_started().life)
        return self.results

    def _raise_failure(self, life: lc.Lifecycle) -> None:
        """Raise the error of the cluster, or of a stream that stopped it because rows could not be fed, if any."""
        if life.error is not None and not isinstance(life.error, ClusterStopped):
            raise life.error
        if life.error is not None:
            self._streams.settle()
        if (error := self._streams.error or life.error) is not None:
            raise error

    def _await_results(
        self, gang: Gang, timeout: float | None, deadline: float | None, workers: Sequence[int] | None
    ) -> None:
        coordinator, life = gang.coordinator, gang.life
        awaited = [life.records[NodeId(Role.WORKER.value, i)] for i in workers or ()]

        def over() -> bool:
            some = bool(awaited) and all(r.state is lc.NodeState.FINISHED for r in awaited)
            return life.concluded or some

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        if not self._streams.wait(coordinator, over, left()):
            raise TimeoutError(f"The streams that feed the cluster have not ended within {timeout} s.")
        self._raise_failure(life)
        if self._streams.ended:
            coordinator.publish(m.NoMoreFeeds())
        self._display.begin()
        if not self._display.until(coordinator, "training", over, left()):
            raise TimeoutError(f"main has not returned on all nodes within {timeout} s.")
        self._raise_failure(life)
        if not life.concluded:
            self._display.final(coordinator, "training")

    def stop(self, grace: float | None = None) -> None:
        """Stop the cluster now. Any thread may call it, also more than once.

        Parameters
        ----------
        grace
            Seconds within which ``main`` can notice ``ctx.stopping`` and return; `stop_grace` by default.

        Examples
        --------
        >>> cluster.stop(grace=10.0)
        """
        with self._changing:
            self._stopping = True
            gang = self._gang
        if gang is not None:
            gang.stop("stop() was called", grace)
            self._close()

    def _close(self) -> None:
        if self._gang is not None:
            self._gang.close()
            if self in _live:
                self._display.end(self._gang.coordinator)
                self._watching.write_report(self._gang.coordinator)
        self._display.close()
        self._watching.close()
        self._tracking.close()
        if self._desk is not None:
            self._streams.after_end(self._close_desk)
        _live.discard(self)

    def __enter__(self) -> Cluster:
        return self if self._gang is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self.stop(grace_after(error))

    # --- state

    @property
    def results(self) -> dict[tuple[str, int], Any]:
        """The return values of ``main`` by ``(role, index)``, for nodes that have finished.

        A result is unpickled on first access; until then a large result is kept in a temporary file.

        Examples
        --------
        >>> list(cluster.results)
        [('worker', 0)]
        """
        coordinator = self._require_started().coordinator
        known = [n for n in self._node_ids if n in coordinator.results]
        return Results({n.key: coordinator.results.load(n) for n in known}, [n.key for n in self._node_ids])

    @property
    def nodes(self) -> ClusterSpec:
        """Addresses of the nodes.

        Examples
        --------
        >>> list(cluster.nodes.jobs)
        ['worker']
        """
        return self._require_started().coordinator.spec

    def status(self) -> Status:
        """Return the current `NodeStatus` of each node, and the addresses of TensorBoard and of the live page.

        Examples
        --------
        >>> [node.name for node in cluster.status()]
        ['worker 0']
        """
        coordinator = self._require_started().coordinator
        return Status(status_of(coordinator), self.tensorboard_url, self.ui_url)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write the state of the cluster to one text file, for a bug report; also after a failure.

        The file contains settings, versions, the events of the cluster, status and last log lines of each node, and
        stacks. It does not contain the cluster's token and keys, nor values of Spark's settings and of `env` whose
        names look like those of secrets. It contains the output of ``main``: check it before you send it.

        Parameters
        ----------
        path
            The file; an existing one is replaced.

        Raises
        ------
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> cluster.dump(f"{directory}/cluster.txt")
        """
        options = self._options.told()
        coordinator = self._gang.coordinator if self._gang is not None else None
        known = Known(
            self._spark, self._spec.settings, options, self._spec.secret, coordinator, self._stories, self.restarts
        )
        Path(path).write_text(dump(known))

    @property
    def tensorboard_url(self) -> str | None:
        """Address of this cluster's TensorBoard while it runs; ``None`` without ``tensorboard=True``.

        Examples
        --------
        >>> cluster.tensorboard_url is None
        True
        """
        return self._watching.tensorboard_url

    @property
    def ui_url(self) -> str | None:
        """Address of the live page while the cluster runs; the Prometheus metrics are at ``metrics`` below it.

        Examples
        --------
        >>> cluster = Cluster(spark, main, workers=1, ui=False)
        >>> cluster.ui_url is None
        True
        """
        return self._watching.ui_url

    @property
    def startup_seconds(self) -> dict[tuple[str, int], dict[str, float]]:
        """Seconds that each part of a node's start took, by node.

        Examples
        --------
        >>> seconds = cluster.startup_seconds["worker", 0]
        >>> sum(seconds.values()) > 0
        True
        """
        return {n.key: dict(s) for n, s in self._require_started().coordinator.startup.items()}

    def __repr__(self) -> str:
        phase = self._gang.life.phase.value if self._gang else "not started"
        links = "".join(f", {name}: {url}" for name, url in self._watching.links.items())
        return f"Cluster({len(self._node_ids)} nodes, {phase}{links})"

    def _repr_html_(self) -> str:
        from tfspark.monitoring.html import snapshot_html

        return snapshot_html(self._watching.snapshot()) if self._gang else f"<p>{self!r}</p>"

    # --- internal

    def _require_started(self) -> Gang:
        if self._gang is None:
            raise ConfigurationError(
                "The cluster has not been started.", hint="Use it in a with statement, or call start()."
            )
        return self._gang

    def _running(self) -> Gang:
        """Return the current gang; if a node has failed since the last call, start the nodes again first."""
        gang = self._require_started()
        if gang.life.error is not None and not isinstance(gang.life.error, ClusterStopped):
            with self._guard():
                self._recover(gang, gang.life.error)
            gang = self._require_started()
        if gang.closed or gang.life.phase is not lc.Phase.RUNNING:
            raise ClusterStopped(f"The cluster is {gang.life.phase.value}.", hint="Feed before wait() or stop().")
        return gang

    def _open_columns(self) -> Sequence[str]:
        """Return the columns whose arrays may have any length; only a ``main`` of `tfspark.ml` reports them."""
        self._running()
        with self._guard():
            return self._recovering(lambda gang: gang.open_columns())

    def _require_workers(self, workers: Sequence[int] | None) -> None:
        nodes = self._options.nodes_with(self._options.min_workers or self._options.workers)
        there = [n.index for n in training_nodes(nodes) if n.role == Role.WORKER.value]
        if workers is not None and (not workers or not set(workers) <= set(there)):
            raise ConfigurationError(f"workers refers to unknown workers {list(workers)}; the cluster has {there}.")

    def _feed(self, source: Source, terms: FeedTerms, workers: Sequence[int] | None) -> FeedReport:
        self._journal.begun = True
        self._running()
        profile = self._feeding_profile(source)
        entry = self._journal.open(FeedEntry(source, terms, profile, workers, self._streams.begun))
        with self._guard():
            report = self._recovering(lambda gang: self._feed_gang(gang, entry))
        self._journal.keep(entry)
        self.feed_reports.append(report)
        if self._streams.begun:
            del self.feed_reports[:-KEPT_REPORTS]
        return report

    def _feeding_profile(self, source: Source) -> ResourceProfile | None:
        """Return the resource profile of feed tasks; if they have no room, start fewer workers if that is allowed."""
        while True:
            gang = self._require_started()
            try:
                return self._resources.of(gang.nodes).feeding_profile(source.in_one_stage)
            except ResourceError as e:
                if not self._can_shrink(gang):
                    raise
                gang.starved = e
                with self._guard():
                    self._recover(gang, e)

    def _feed_gang(self, gang: Gang, entry: FeedEntry) -> FeedReport:
        """Feed a gang; if feed tasks have no room for too long and fewer workers may start, stop it."""
        if not self._can_shrink(gang):
            return gang.feed(entry)
        resources, patience = self._resources.of(gang.nodes), self._spec.settings.shrink_timeout
        with watch_room(resources.shortage_beside_feeding, patience, gang.starve, f"{self._tag}-room"):
            return gang.feed(entry)

    def _can_shrink(self, gang: Gang) -> bool:
        """Return whether a restart is left, and may start fewer workers than there are."""
        options = self._options
        if options.min_workers is None or self._streams.begun or len(self.restarts) >= options.max_restarts:
            return False
        return len(gang.nodes) > len(options.nodes_with(options.min_workers))

    def _guard(self, keep: type[BaseException] | None = None) -> _StopOnError:
        return _StopOnError(self, keep)


class _StopOnError:
    """Context manager that stops the cluster if the block raises; after errors of type `keep` it stays running."""

    def __init__(self, cluster: Cluster, keep: type[BaseException] | None) -> None:
        self._cluster, self._keep = cluster, keep

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None or type(error) is self._keep:
            return
        try:
            self._cluster.stop(grace_after(error))
        except ClusterError:
            logger.exception("stopping the cluster failed")


_live: set[Cluster] = set()
"""Clusters that run, also those that the program no longer refers to."""


def _stop_all(grace: float | None = None) -> None:
    for cluster in list(_live):
        cluster.stop(grace)


atexit.register(_stop_all, 0.0)


def run(
    spark: SparkSession, main: Callable[..., Any], args: Any = None, *, workers: int, **options: Any
) -> dict[tuple[str, int], Any]:
    """Run ``main(args, ctx)`` on a new cluster without feeding rows, and return the results.

    Takes the arguments of `Cluster` and raises its errors.

    Returns
    -------
    dict
        The return values of ``main`` by ``(role, index)``.

    Examples
    --------
    >>> def main(args, ctx):
    ...     return args["factor"] * ctx.num_workers
    >>> run(spark, main, {"factor": 21}, workers=1)
    {('worker', 0): 21}
    """
    with Cluster(spark, main, args, workers=workers, **options) as cluster:
        return cluster.wait()
