"""`Cluster`: the handle by which a driver program starts, feeds, watches and stops TensorFlow on Spark."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle

from tfspark.driver import launcher
from tfspark.driver import lifecycle as lc
from tfspark.driver.display import Display
from tfspark.driver.feed_report import FeedReport
from tfspark.driver.gang import Gang, GangPlan
from tfspark.driver.journal import FeedEntry, Journal
from tfspark.driver.profiles import Resources
from tfspark.driver.recovery import replace_executors, worth_a_restart
from tfspark.driver.resources import Wishes
from tfspark.driver.results import Results
from tfspark.driver.sources import Columns, Source, is_rdd, pickled_source, planned, source_of
from tfspark.driver.status import Status, status_of
from tfspark.driver.streams import Streams
from tfspark.driver.termination import grace_after, leave_in_order
from tfspark.driver.tracking import Tracking, active_trackers
from tfspark.driver.watching import Watching, WatchOptions
from tfspark.errors import ClusterError, ClusterStopped, ConfigurationError, TFSparkError, first_line
from tfspark.schema import ColumnSpec, Shape, arrow_schema
from tfspark.spec import ClusterSpec, NodeId, Role, plan_nodes, plan_strategy, resuming_nodes, training_nodes
from tfspark.tensorflow_options import TensorFlowOptions
from tfspark.transport import messages as m
from tfspark.transport.auth import new_secret
from tfspark.transport.ports import Ports, check_ports
from tfspark.transport.spool import DEFAULT_CAPACITY_BYTES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery
    from pyspark.sql.types import StructType

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_REPORTS = 1000
"""Reports of a stream's batches that `Cluster.feed_reports` keeps."""


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
    evaluator
        Have a node beside the others that is fed nothing and evaluates checkpoints (``ctx.new_checkpoints()``) until
        training ends. It runs `main`, too, and sees ``ctx.role == "evaluator"``.
    strategy
        How the workers train together. ``"auto"``: plain Keras on every worker, and the optimizers meet (see
        docs/training.md), or ``ParameterServerStrategy`` if there are parameter servers. ``"none"``: each worker
        trains a model of its own. ``"multi_worker_mirrored"``: TensorFlow's ``MultiWorkerMirroredStrategy``, as
        TensorFlow defines it. Or a function that makes a strategy of a `NodeContext`.
    gpus_per_node
        GPUs of each chief and worker, as Spark assigns them; at most 1 of one GPU that nodes share. Parameter servers
        and evaluator never get any. By default what ``spark.task.resource.gpu.amount`` says.
    cpus_per_node
        CPUs that Spark sets aside for each node; by default ``spark.task.cpus``.
    spread
        Have at most one node on each executor.
    ports
        ``(first, last)`` of the ports that nodes and driver listen on; any by default.
    max_restarts
        How often nodes may be started again, all of them, when one has failed. `main` is then called anew, goes on
        from a checkpoint if it takes any (`checkpoint_dir`), and is fed again what came after it.
    checkpoint_dir
        Directory for checkpoints that all nodes share, a path or URL that TensorFlow can write to; see
        ``ctx.checkpoint``. ``ctx.fit`` saves there after each epoch, and goes on from there, also if an earlier
        program did not get to its end.
    start_timeout
        Seconds in which all nodes must have started.
    stop_grace
        Seconds that `main` has to return when the cluster is stopped before its processes are killed.
    hang_timeout
        Seconds for which a node's process may be silent, although it exists, before it counts as failed.
    stall_timeout
        Seconds that a worker may wait for rows, while a feed goes on, before the cluster is stopped; by default it
        may wait for ever, and a warning names it after half a minute.
    step_timeout
        Seconds that a worker may stand in a training step, while nobody waits for rows, compiles, evaluates or saves,
        before the cluster is stopped with an error that shows where each worker stands; ``None`` for ever.
    spool_bytes
        Bytes of rows that may wait unread in one node; beyond it, feeding is held back.
    env
        Environment variables for the nodes' processes.
    tensorflow_options
        What TensorFlow takes only before it is first used, which in nodes is before `main`: ``inter_op_threads``,
        ``intra_op_threads``, ``memory_growth``, ``gpu_memory_mb``, ``logical_cpus``; see
        `tfspark.tensorflow_options.TensorFlowOptions`.
    tls
        Encrypt what nodes, feeding tasks and driver say to each other, with a certificate made for this cluster; by
        default if Spark encrypts (``spark.ssl.enabled``, ``spark.network.crypto.enabled``) or authenticates
        (``spark.authenticate``). TensorFlow's own traffic between its processes is never encrypted.
    progress
        ``True`` for a live table, ``False`` for log lines; by default live in a notebook or a terminal.
    log_dir
        Directory for TensorBoard, ``ctx.log_dir`` in the nodes, which share it with the driver: Spark's metrics go
        there, and those of ``ctx.fit``.
    tensorboard
        Run TensorBoard on `log_dir`, beside the driver, as long as the cluster lives.
    profile
        First and last step for TensorFlow's profiler on the chief.
    debug_dumps
        Have TensorFlow's debugger dump what the nodes compute: ``True``, or how much it says of each tensor, such as
        ``"FULL_TENSOR"``. Slow.
    ui
        Serve a live page and Prometheus metrics; by default if Spark serves its UI (``spark.ui.enabled``).

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
        evaluator: bool = False,
        strategy: str | Callable[[Any], Any] = "auto",
        gpus_per_node: float | None = None,
        cpus_per_node: float | None = None,
        spread: bool = False,
        ports: Ports | None = None,
        max_restarts: int = 0,
        checkpoint_dir: str | None = None,
        start_timeout: float = 300.0,
        stop_grace: float = 5.0,
        hang_timeout: float = 60.0,
        stall_timeout: float | None = None,
        step_timeout: float | None = 600.0,
        spool_bytes: int = DEFAULT_CAPACITY_BYTES,
        env: Mapping[str, str] | None = None,
        tensorflow_options: Mapping[str, Any] | None = None,
        tls: bool | None = None,
        progress: bool | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        tensorboard: bool = False,
        profile: int | tuple[int, int] | None = None,
        debug_dumps: bool | str = False,
        ui: bool | None = None,
    ) -> None:
        self._node_ids = plan_nodes(workers, chief, ps, evaluator)
        own = strategy if callable(strategy) else None
        self._strategy = plan_strategy("auto" if callable(strategy) else strategy, self._node_ids)
        launcher.require_classic(spark)
        launcher.require_pandas()
        timeouts = {"hang_timeout": hang_timeout, "stall_timeout": stall_timeout, "step_timeout": step_timeout}
        for name, seconds in timeouts.items():
            if seconds is not None and seconds <= 0:
                raise ConfigurationError(f"{name}={seconds}: a time in seconds is greater than 0.")
        if isinstance(max_restarts, bool) or not isinstance(max_restarts, int) or max_restarts < 0:
            raise ConfigurationError(f"max_restarts must be a whole number of at least 0, not {max_restarts!r}.")
        if spool_bytes < 1:
            raise ConfigurationError(f"spool_bytes={spool_bytes}: a spool holds at least one byte.")
        self._spark = spark
        with_ui = launcher.has_ui(spark) if ui is None else ui
        watched = WatchOptions.of(log_dir, tensorboard, profile, debug_dumps, with_ui)
        self._resources = Resources(spark, self._node_ids, Wishes.of(gpus_per_node, cpus_per_node, spread))
        self._plan = GangPlan(
            nodes=self._node_ids,
            resources=self._resources,
            main=launcher.pickle_main(main, args, own),
            secret=new_secret(launcher.wants_tls(spark) if tls is None else tls),
            limits=lc.Limits(
                start=start_timeout, grace=stop_grace, hang=hang_timeout, stall=stall_timeout, step=step_timeout
            ),
            spool_bytes=spool_bytes,
            ports=check_ports(ports),
            options={
                "strategy": self._strategy.value,
                "own_strategy": own is not None,
                "tensorflow": TensorFlowOptions.of(tensorflow_options).given(),
                "checkpoint_dir": checkpoint_dir,
                **watched.for_nodes(),
            },
            env=dict(env or {}),
        )
        self._max_restarts = max_restarts
        self._tag = f"tfspark-{secrets.token_hex(6)}"
        self._tracking = Tracking([])
        self._watching = Watching(watched, self._tag)
        self._display = Display(progress, lambda: self._watching.links)
        self._journal = Journal(keep=max_restarts > 0)
        self._gang: Gang | None = None
        self._changing = threading.Lock()
        self._recovery = threading.Lock()
        self._stopping = False
        self._streams = Streams()
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
            If nodes did not come up in time.
        NodeFailed
            If a node failed on its way up.
        """
        if self._gang is not None:
            raise ConfigurationError("This cluster was started before.", hint="Make a new Cluster.")
        began = self._display.begin()
        self._tracking = Tracking(active_trackers())
        _live.add(self)
        leave_in_order(lambda: bool(_live), _stop_all)
        with self._guard():
            gang = self._next_gang()
            self._watching.start(self._spark, lambda: self._require_started().coordinator)
            try:
                gang.start(self._watching.description)
            except TFSparkError as e:
                self._recover(gang, e)
            self._watching.finish_start()
        self.start_seconds = time.monotonic() - began
        return self

    def _next_gang(self) -> Gang:
        with self._changing:
            if self._stopping:
                raise ClusterStopped("The cluster was stopped before it had finished: stop() was called.")
            n = len(self.restarts)
            tag = f"{self._tag}-{n}" if n else self._tag
            self._gang = Gang(self._spark, self._plan, tag, n, self._display)
            self._gang.coordinator.on_report = self._on_report
            return self._gang

    def _on_report(self, node: NodeId, step: int, metrics: dict[str, float]) -> None:
        self._tracking.report(node, step, metrics)
        self._watching.report(node, step, metrics)

    def _recovering(self, action: Callable[[Gang], T]) -> T:
        """Have the nodes do something; if one of them fails, start them again and have them do it again."""
        while True:
            gang = self._require_started()
            try:
                return action(gang)
            except TFSparkError as e:
                self._recover(gang, e)

    def _recover(self, gang: Gang, error: TFSparkError) -> None:
        """Start the nodes again and feed them what they had been fed.

        Raises
        ------
        TFSparkError
            `error` if no restart is left or can help, or what came of the last one.
        """
        with self._recovery:
            if self._gang is gang:
                self._restart(gang, error)

    def _restart(self, gang: Gang, error: TFSparkError) -> None:
        while True:
            if (
                self._stopping
                or self._streams.begun
                or not worth_a_restart(error)
                or len(self.restarts) >= self._max_restarts
            ):
                raise error
            self.restarts.append(error)
            logger.warning("%s Restart %d of %d.", first_line(error), len(self.restarts), self._max_restarts)
            silent = gang.silent_tasks()
            gang.stop("a node failed", grace=0.0)
            replace_executors(self._spark, silent)
            gang = self._next_gang()
            try:
                gang.start(self._watching.description)
                for entry in self._journal.entries:
                    gang.feed(entry)
                return
            except TFSparkError as e:
                error = e

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
        pickled
            Send the rows of an RDD as they are, whatever objects they are; ``ctx.rows()`` gives them back.
        workers
            Indices of the workers that get rows; all by default.
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
            If a node failed meanwhile, and no restart is left.
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
            same |= {"pickled": pickled, "workers": workers}
            seeds = itertools.count(seed) if seed is not None else itertools.repeat(None)
            reports = [self.feed(d, epochs, cache=cache, seed=s, **same) for d, s in zip(data, seeds, strict=False)]
            return FeedReport.total(reports)
        self._require_workers(workers)
        if is_rdd(data):
            # A task of its own looks at its first rows.
            self._resources.require_default_task()
        source = pickled_source(data) if pickled else source_of(self._spark, data, columns, mask, sparse)
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
            return self._feed(source, specs, terms, workers)
        each = (replace(terms, epochs=1, seed=terms.seed + e, epochs_to_come=epochs - e) for e in range(epochs))
        return FeedReport.total([self._feed(source, specs, t, workers) for t in each])

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

        ``ctx.stream(...)`` reads them as one dataset; ``ctx.epochs()`` counts each micro-batch as an epoch. It ends
        when the query has ended and the driver calls `wait` or leaves the ``with`` block, which wait for the query:
        stop an endless one before. Micro-batches without rows are left out.
        What a stream has given cannot be asked for again, so a failed node fails the query, whatever `max_restarts`:
        start both again, the query from its ``checkpointLocation``.

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

        def feed(batch: DataFrame) -> None:
            self.feed(batch, columns=columns, shapes=shapes, fill=fill, mask=mask, sparse=sparse)

        return self._streams.start(stream, feed, options)

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
        """Have the workers answer each row of a DataFrame: they are where ``main`` calls ``ctx.serve(fn)``.

        Parameters
        ----------
        df
            Any DataFrame.
        outputs
            Names and types of what `fn` returns, as Spark writes them: ``"label int, scores array<float>"``.
        columns, shapes, fill, mask, sparse
            What `fn` gets, as for `feed`.
        batch_size
            Most rows per call of `fn`.
        workers
            Indices of the workers that are asked; all by default.
        keep
            Columns of `df` that the result has beside the outputs, as for `tfspark.predict`; all by default.

        Returns
        -------
        DataFrame
            The columns of `df` that are kept, then the outputs. Lazy: it is computed by the workers whenever it is
            used, so use it before the ``with`` block is left.

        Raises
        ------
        SchemaError
            If a column has no tensor form.
        ConfigurationError
            If `outputs` is no schema, or names a column of `df`.
        """
        from tfspark.driver.predictions import predictions

        coordinator = self._running().coordinator
        self._resources.require_default_task()
        _, host = launcher.driver_addresses(self._spark)
        self._require_workers(workers)
        answering = [n for n in resuming_nodes(self._node_ids) if workers is None or n.index in workers]
        return predictions(
            df,
            outputs,
            workers=ClusterSpec(tuple(a for a in coordinator.spec.nodes if a.node in answering)),
            coordinator=(host, coordinator.port),
            secret=self._plan.secret,
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

        Streams that feed the cluster are waited for first; their rows are a part of what ``main`` reads.

        Parameters
        ----------
        timeout
            Seconds to wait; without end by default.
        workers
            Indices of the workers to wait for. The others go on, and the cluster with them, until `stop`.

        Raises
        ------
        NodeFailed
            If a node failed.
        FeedError
            If a stream failed.
        SchemaError
            If rows of a stream could not be fed.
        TimeoutError
            If `timeout` seconds have passed; the cluster goes on.
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
        """Raise why the cluster has failed; rows of a stream that could not be fed have stopped it."""
        if life.error is not None and not isinstance(life.error, ClusterStopped):
            raise life.error
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
        self._display.final(coordinator, "training")

    def stop(self, grace: float | None = None) -> None:
        """Stop the cluster now, from any thread; safe to call twice.

        Parameters
        ----------
        grace
            Seconds that ``main`` has to notice ``ctx.stopping`` and return; `stop_grace` by default.
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
        self._display.close()
        self._watching.close()
        self._tracking.close()
        _live.discard(self)

    def __enter__(self) -> Cluster:
        return self if self._gang is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self.stop(grace_after(error))

    # --- what is known

    @property
    def results(self) -> dict[tuple[str, int], Any]:
        """What ``main`` returned, by ``(role, index)``; only nodes that have finished."""
        coordinator = self._require_started().coordinator
        known = [n for n in self._node_ids if n in coordinator.results]
        return Results({n.key: cloudpickle.loads(coordinator.results[n]) for n in known})

    @property
    def nodes(self) -> ClusterSpec:
        """Addresses of the nodes."""
        return self._require_started().coordinator.spec

    def status(self) -> Status:
        """Return what is known of each node now, a `NodeStatus` for each, and the addresses to watch them at."""
        coordinator = self._require_started().coordinator
        nodes = coordinator.look(lambda: status_of(coordinator))
        return Status(nodes, self.tensorboard_url, self.ui_url)

    @property
    def tensorboard_url(self) -> str | None:
        """Address of this cluster's TensorBoard while it lives; ``None`` without ``tensorboard=True``."""
        return self._watching.tensorboard_url

    @property
    def ui_url(self) -> str | None:
        """Address of the live page while the cluster lives; its metrics for Prometheus are at ``metrics`` below it."""
        return self._watching.ui_url

    @property
    def startup_seconds(self) -> dict[tuple[str, int], dict[str, float]]:
        """Where each node's start-up went, in seconds."""
        return {n.key: dict(s) for n, s in self._require_started().coordinator.startup.items()}

    def __repr__(self) -> str:
        phase = self._gang.life.phase.value if self._gang else "not started"
        links = "".join(f", {name}: {url}" for name, url in self._watching.links.items())
        return f"Cluster({len(self._node_ids)} nodes, {phase}{links})"

    def _repr_html_(self) -> str:
        from tfspark.driver.html import snapshot_html

        return snapshot_html(self._watching.snapshot()) if self._gang else f"<p>{self!r}</p>"

    # --- inside

    def _require_started(self) -> Gang:
        if self._gang is None:
            raise ConfigurationError(
                "The cluster has not been started.", hint="Use it in a with statement, or call start()."
            )
        return self._gang

    def _running(self) -> Gang:
        """Return the nodes, started again if one has failed since someone last looked."""
        gang = self._require_started()
        if gang.life.error is not None and not isinstance(gang.life.error, ClusterStopped):
            with self._guard():
                self._recover(gang, gang.life.error)
            gang = self._require_started()
        if gang.closed or gang.life.phase is not lc.Phase.RUNNING:
            raise ClusterStopped(f"The cluster is {gang.life.phase.value}.", hint="Feed before wait() or stop().")
        return gang

    def _require_workers(self, workers: Sequence[int] | None) -> None:
        there = [n.index for n in training_nodes(self._node_ids) if n.role == Role.WORKER.value]
        if workers is not None and (not workers or not set(workers) <= set(there)):
            raise ConfigurationError(f"workers={list(workers)}: there are {there}.")

    def _feed(
        self, source: Source, specs: Sequence[ColumnSpec], terms: m.FeedBegins, workers: Sequence[int] | None
    ) -> FeedReport:
        self._running()
        profile = self._resources.feeding_profile(source.in_one_stage)
        entry = self._journal.open(FeedEntry(source, specs, terms, profile, workers, self._streams.begun))
        with self._guard():
            report = self._recovering(lambda gang: gang.feed(entry))
        self._journal.keep(entry)
        self.feed_reports.append(report)
        if self._streams.begun:
            del self.feed_reports[:-KEPT_REPORTS]
        return report

    def _guard(self, keep: type[BaseException] | None = None) -> _StopOnError:
        return _StopOnError(self, keep)


class _StopOnError:
    """Stops the cluster when the block raises; errors of type `keep` leave it running."""

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
"""Clusters that run, also those that the program has forgotten."""


def _stop_all(grace: float | None = None) -> None:
    for cluster in list(_live):
        cluster.stop(grace)


atexit.register(_stop_all, 0.0)


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
