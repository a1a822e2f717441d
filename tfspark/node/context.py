"""`NodeContext`: what ``main(args, ctx)`` sees of its cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, FeedError
from tfspark.node.debugging import Debugging
from tfspark.node.training import Trainer
from tfspark.spec import ClusterSpec, Role, StrategyName, is_chief, training_nodes

if TYPE_CHECKING:
    import pyarrow as pa
    import tensorflow as tf

    from tfspark.node.keras.checkpoint import TrainingCheckpoint
    from tfspark.node.link import CoordinatorLink

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
"""Reports that follow faster than this are dropped, the first of an epoch aside."""


class NodeContext:
    """One node's view of the cluster.

    Attributes
    ----------
    role
        ``"chief"``, ``"worker"`` or ``"evaluator"``; workers that do as a chief with parameter servers says have no
        `NodeContext`.
    index
        Index of this node among those of its role.
    cluster_spec
        Host and port of every node, as ``tf.train.ClusterSpec`` takes it.
    gpus
        Addresses of the GPUs that Spark gave this node.
    checkpoint_dir
        What ``Cluster(checkpoint_dir=...)`` said; ``None`` if nothing.
    restarts
        How often the nodes of this cluster have been started again.
    log_dir
        Directory that ``Cluster(log_dir=...)`` names for TensorBoard, ``None`` without one.
    """

    def __init__(self, link: CoordinatorLink, spec: ClusterSpec, options: Mapping[str, Any]) -> None:
        self._link = link
        self._options = options
        own = options.get("make_strategy")
        self._trainer = Trainer(
            link.node,
            link.nodes,
            options["strategy"],
            None if own is None else lambda: own(self),
            lambda: link.spool.is_read,
            link.step_clock,
        )
        self._loops: dict[Any, Any] = {}
        self._coordinator: tf.distribute.coordinator.ClusterCoordinator | None = None
        self._reported_at = 0.0
        self._checkpoints: list[TrainingCheckpoint] = []
        self._saver: tuple[Any, Any] | None = None
        self._metrics: dict[str, float] = {}
        self._restored_epochs_passed = 0
        self.role = link.node.role
        self.index = link.node.index
        self.cluster_spec: dict[str, list[str]] = spec.jobs
        self.gpus: tuple[str, ...] = tuple(options.get("gpus", ()))
        self.checkpoint_dir: str | None = options.get("checkpoint_dir")
        self.restarts: int = options.get("restarts", 0)
        if self._takes_checkpoints:
            # Whoever restores nothing begins at the beginning.
            link.spool.before_first_wait(lambda: link.resume(()))
        self._debugging = Debugging(options, f"{self.role}-{self.index}", self.is_chief)
        self.log_dir = self._debugging.log_dir

    def __repr__(self) -> str:
        return f"NodeContext({self.role} {self.index} of {self.num_workers})"

    @property
    def is_chief(self) -> bool:
        """Whether this node is the one that saves and exports."""
        return is_chief(self._link.node, self._link.nodes)

    @property
    def num_workers(self) -> int:
        """Number of nodes that train together."""
        return len(training_nodes(self._link.nodes))

    @property
    def stopping(self) -> bool:
        """Whether the cluster has been asked to stop; ``main`` should save and return soon."""
        return self._link.stopping.is_set()

    def strategy(self) -> tf.distribute.Strategy:
        """Return this cluster's distribution strategy, the same object at every call.

        Models, optimizers and metrics that are made ``with ctx.strategy().scope():`` train together with those of the
        other workers; ``ctx.fit`` needs no scope. It is a strategy of one local replica: every worker runs plain
        Keras on its own batches, and ``ctx.strategy().run(step, args=batch)`` is where the workers' optimizers meet.
        ``ParameterServerStrategy`` if there are parameter servers; ``MultiWorkerMirroredStrategy`` for
        ``Cluster(strategy="multi_worker_mirrored")``, to be asked for before other TensorFlow operations run.
        """
        return self._trainer.strategy()

    def synchronize(self, *objects: Any) -> None:
        """Have models and optimizers train together with those of the other workers.

        What ``with ctx.strategy().scope():`` does for those that are made within it. ``model.fit`` then trains on
        the batches of all workers; in a loop of your own, call the step by ``ctx.strategy().run`` on the batches of
        ``ctx.distribute(dataset)``. Call it on all workers. `fit` does it by itself.

        Parameters
        ----------
        objects
            Keras models and optimizers.

        Raises
        ------
        ConfigurationError
            If an object is neither, or the cluster has another strategy than ``"auto"``.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build()
        ...     model.compile("adam", "mse")
        ...     ctx.synchronize(model)
        ...     model.fit(ctx.dataset(256, label="y"), epochs=ctx.fed_epochs)
        """
        self._trainer.synchronize(*objects)

    def coordinator(self) -> tf.distribute.coordinator.ClusterCoordinator:
        """Return the ``ClusterCoordinator`` of a cluster with parameter servers, the same object at every call."""
        if self._coordinator is None:
            import tensorflow as tf

            self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self.strategy())
        return self._coordinator

    def train_epoch(self, step: Callable[..., Any], dataset_fn: Callable[[], tf.data.Dataset]) -> int:
        """Run an epoch of the fed rows with parameter servers: `step` on the workers, once for each batch.

        Every row is trained on once, however rows are spread over workers; a worker that has read all of its own
        waits for the others without holding them up. When a worker is lost, the others go on; it is started again, and
        trains in this epoch on all of its rows again, those included that it had done before.

        Parameters
        ----------
        step
            Called with the parts of a batch, on a worker, within ``strategy.run``: compute gradients and apply them.
            Pass the same function for every epoch, as it is traced once.
        dataset_fn
            Returns the dataset, of `dataset`: ``lambda: ctx.dataset(256, label="y")``. Each worker reads its own rows.
            The same function for every epoch, too.

        Returns
        -------
        int
            Rows read.

        Raises
        ------
        ConfigurationError
            If the cluster has no parameter servers.
        """
        from tfspark.node.parameter_server import EpochLoop

        if not self._has_servers:
            raise ConfigurationError("train_epoch() is for clusters with parameter servers: Cluster(..., ps=1).")
        if (step, dataset_fn) not in self._loops:
            self._loops[step, dataset_fn] = EpochLoop(self._link, self.coordinator(), step, dataset_fn)
        return self._loops[step, dataset_fn].run()

    def _refuse_evaluator(self) -> None:
        if self.role == Role.EVALUATOR.value:
            raise ConfigurationError(
                "The evaluator is not fed.", hint="Read what it evaluates on from files, or pass it in args."
            )

    def _refuse_servers(self, what: str) -> None:
        if self._has_servers:
            raise ConfigurationError(
                f"ctx.{what} does not work with parameter servers, as Keras 3 itself does not.",
                hint="Write a step and call ctx.train_epoch(step, dataset_fn).",
            )

    @property
    def _has_servers(self) -> bool:
        return StrategyName(self._options["strategy"]) is StrategyName.PARAMETER_SERVER

    def dataset(
        self,
        batch_size: int,
        columns: Sequence[str] | None = None,
        *,
        label: str | None = None,
        weight: str | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        drop_remainder: bool = False,
        name: str = "",
    ) -> tf.data.Dataset:
        """Return the rows fed to this worker; each iteration over it gives the next epoch.

        Waits until the driver calls ``cluster.feed``. With parameter servers it gives the rows of the worker that
        reads it: make it in the function that ``ClusterCoordinator.create_per_worker_dataset`` takes, or use
        `train_epoch`.

        Parameters
        ----------
        batch_size
            Rows per batch on this worker; the global batch is that of all workers together.
        columns
            Columns to keep as features; all others by default.
        label, weight
            Columns to give as labels and sample weights.
        shuffle
            Shuffle partitions, once all are here, and rows within a window of several batches.
        seed
            Makes the shuffling reproducible; by default it follows the seed of the feed.
        drop_remainder
            Drop this worker's last batch of an epoch if it is not full.
        name
            Read the rows that were fed under this name, all of them at each iteration.

        Returns
        -------
        tf.data.Dataset
            Of ``dict`` of tensors with first dimension at most `batch_size`; of ``(dict, label)`` or
            ``(dict, label, weight)`` if those are named.

        Raises
        ------
        FeedError
            If the driver feeds nothing.
        ConfigurationError
            If a column is not among those fed, or this is the evaluator.
        """
        from tfspark.node.dataset import DatasetTerms, fed_dataset

        self._refuse_evaluator()
        self._trainer.prepare()
        names = None if columns is None else tuple(columns)
        if name:
            self._refuse_servers("dataset(name=...)")
        terms = DatasetTerms(batch_size, names, label, weight, shuffle, seed, drop_remainder, name)
        return fed_dataset(self._link.spool, terms, remote=self._has_servers)

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """Return this worker's batches, and batches of 0 rows until all workers have read theirs.

        For loops of your own: ``for batch in ctx.distribute(ctx.dataset(32)): strategy.run(step, args=batch)`` takes
        one batch from every worker at each step. ``run`` does not call `step` with a batch of 0 rows: that worker
        joins the others' step with zeros. Call it on all workers, in the same order.

        Parameters
        ----------
        dataset
            Of `dataset` or any other; with one worker it is returned unchanged.
        """
        return self._trainer.distribute(dataset)

    def average_loss(self, losses: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return the mean loss over the rows of this worker's batch.

        The optimizer weighs the workers' gradients by their rows, so it applies the gradient of the mean over the
        global batch, however many rows each worker holds. Add regularizers as they are. Under
        ``strategy="multi_worker_mirrored"`` it is this replica's share of the mean over all replicas, which the
        optimizer adds up: divide regularizers by ``ctx.num_workers`` there.

        Parameters
        ----------
        losses
            Loss of each row, of any shape with the rows first, such as a loss with ``reduction="none"`` gives.
        sample_weight
            Weight of each row, which `losses` are multiplied by; the mean is still over the number of rows, as in
            Keras' ``"sum_over_batch_size"``.

        Returns
        -------
        tf.Tensor
            A scalar of the dtype of `losses`.
        """
        return self._trainer.average_loss(losses, sample_weight)

    def stream(
        self,
        batch_size: int,
        columns: Sequence[str] | None = None,
        *,
        label: str | None = None,
        weight: str | None = None,
    ) -> tf.data.Dataset:
        """Return all rows that are fed from now on as one dataset, to be iterated once.

        It waits for one feed after the other, epochs of all of them joined, and ends when the driver has stopped
        feeding. Batches run across feeds, so only the very last one may be short.

        Parameters
        ----------
        batch_size, columns, label, weight
            As for `dataset`.

        Returns
        -------
        tf.data.Dataset
            As for `dataset`.
        """
        from tfspark.node.dataset import DatasetTerms, fed_dataset

        self._refuse_servers("stream")
        self._trainer.prepare()
        names = None if columns is None else tuple(columns)
        return fed_dataset(self._link.spool, DatasetTerms(batch_size, names, label, weight), endless=True)

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows that are fed from now on as Arrow record batches, for programs without ``tf.data``.

        Goes on from epoch to epoch and from feed to feed, as `stream` does, and waits for rows where it must.

        Yields
        ------
        pyarrow.RecordBatch
            In the order in which partitions have arrived; columns as they travel, see `tfspark.schema`.
        """
        self._refuse_servers("record_batches")
        while (reader := self._link.spool.next_epoch()) is not None:
            for partition in reader.partitions():
                yield from partition.batches
            reader.complete()

    def rows(self) -> Iterator[Any]:
        """Yield the objects that ``cluster.feed(rdd, pickled=True)`` sends, one by one, as `record_batches` does."""
        from tfspark.objects import unpickled

        for batch in self.record_batches():
            yield from unpickled(batch)

    def serve(self, fn: Callable[[dict[str, Any]], Any], *, threads: int = 1) -> int:
        """Answer the rows that ``cluster.predict`` sends, until the driver leaves the ``with`` block or waits.

        Parameters
        ----------
        fn
            Called with a dict of tensors by column, with first dimension at most the ``batch_size`` of ``predict``.
            Returns a dict of arrays or tensors by output, one row for each of the input, or the array itself if there
            is one output.
        threads
            Calls of `fn` at the same time; more than one if it is safe to call from several threads.

        Returns
        -------
        int
            Rows answered.

        Raises
        ------
        ClusterStopped
            If the cluster is stopped.
        """
        from tfspark.node.serve import answering

        if self._takes_checkpoints:
            self._link.resume_without()
        return self._link.serving.run(answering(fn), threads)

    def checkpoint(self, *, keep: int = 3, **objects: Any) -> TrainingCheckpoint:
        """Return what saves and restores training in `checkpoint_dir`, epoch by epoch.

        ::

            saved = ctx.checkpoint(model=model, optimizer=optimizer)
            saved.restore()                  # the newest one, if there is one; the driver feeds what comes after it
            for epoch in ctx.epochs():
                ...
                saved.save()                 # the chief writes, atomically

        ``ctx.fit`` does this by itself.

        Parameters
        ----------
        keep
            How many checkpoints to keep.
        objects
            Keras models and optimizers, variables, and whatever else ``tf.train.Checkpoint`` takes, by name. A model
            brings the optimizer that it was compiled with.

        Raises
        ------
        ConfigurationError
            If the cluster has no `checkpoint_dir`.
        """
        from tfspark.node.keras.checkpoint import TrainingCheckpoint

        checkpoint = TrainingCheckpoint(
            self._checkpoint_directory(),
            objects,
            keep=keep,
            writes=self.is_chief or self._trainer.is_alone,
            agree=self._link.resume,
            epochs_read=lambda: self._link.spool.epochs_read,
            remote=self._has_servers,
        )
        self._checkpoints.append(checkpoint)
        return checkpoint

    def _checkpoint_directory(self) -> str:
        if self.checkpoint_dir is None:
            raise ConfigurationError(
                "This cluster has no directory for checkpoints.", hint="Pass Cluster(checkpoint_dir='/a/shared/path')."
            )
        if self._trainer.is_alone and self.num_workers > 1:
            return f"{self.checkpoint_dir.rstrip('/')}/{self.role}-{self.index}"
        return self.checkpoint_dir

    @property
    def _takes_checkpoints(self) -> bool:
        return self.checkpoint_dir is not None and self.role != Role.EVALUATOR.value

    def new_checkpoints(self, poll_seconds: float = 1.0) -> Iterator[str]:
        """Yield each new checkpoint's path until training has ended, the newest at the time; the last one in any case.

        For the evaluator: ``ctx.checkpoint(model=model).restore(path)`` takes it. A checkpoint that is written while
        an earlier one is evaluated is passed over if another one follows.

        Parameters
        ----------
        poll_seconds
            How often the directory is looked at.
        """
        from tfspark.node.keras.checkpoint import follow

        yield from follow(self._checkpoint_directory(), self._link.training_ended, self._link.stopping, poll_seconds)

    def run_finished(self) -> None:
        """Note in the checkpoints that the run they belong to has come to its end; called when all nodes have."""
        for checkpoint in self._checkpoints:
            checkpoint.finish()

    def epochs(self) -> Iterator[int]:
        """Count the fed epochs: yields as long as another iteration of `dataset` has rows to give.

        The count goes on from that of the checkpoint that was restored, if one was.
        """
        spool = self._link.spool
        while spool.wait_for_feed() is not None:
            yield spool.epochs_read

    @property
    def fed_epochs(self) -> int:
        """Number of epochs that the current call of ``cluster.feed`` has still to give; waits until there is one.

        Raises
        ------
        FeedError
            If no epoch comes any more.
        """
        epochs = self._link.spool.epochs_to_come()
        if not epochs:
            raise FeedError("Nothing was fed, or all of it has been read.", hint="Call cluster.feed(df) in the driver.")
        return epochs

    def _epochs_to_fit(self, wanted: int | None) -> int:
        """Return how many of the epochs that a fit is to have are still to be trained."""
        restored = self._link.resumed - self._restored_epochs_passed
        to_come = self._link.spool.epochs_to_come()
        if wanted is None:
            # All that was fed may be in the checkpoint.
            return to_come if restored else self.fed_epochs
        passed = min(restored, wanted)
        if wanted - passed > to_come:
            raise ConfigurationError(
                f"fit(epochs={wanted}) wants more epochs than the {passed + to_come} that are fed.",
                hint=f"Call cluster.feed(df, epochs={wanted}) in the driver, or leave epochs out of ctx.fit.",
            )
        self._restored_epochs_passed += passed
        return wanted - passed

    def fit(
        self,
        model: Any,
        *,
        batch_size: int,
        epochs: int | None = None,
        label: str | None = None,
        weight: str | None = None,
        columns: Sequence[str] | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        drop_remainder: bool = False,
        map_batch: Callable[..., Any] | None = None,
        validation_data: Any = None,
        callbacks: Sequence[Any] = (),
        verbose: int = 0,
        **fit_args: Any,
    ) -> dict[str, list[float]]:
        """Train a compiled Keras model on the fed rows, and report its metrics to the driver.

        Weights, metrics and history are those of one process that trains on the global batches (the union of the
        workers' batches of a step), however rows are spread over the workers; see docs/training.md. With a
        `checkpoint_dir` the model and its optimizer are saved there after each epoch, and training goes on from the
        newest checkpoint of a run that did not get to its end. With a `log_dir`, the chief writes the metrics for
        TensorBoard as well, by Keras' own callback.

        Parameters
        ----------
        model
            A compiled Keras 3 model. Its named inputs get the columns of these names; a model that does not say what
            it takes gets a dict of all columns.
        batch_size, label, weight, columns, shuffle, seed, drop_remainder
            As for `dataset`.
        epochs
            Epochs to train, those in the restored checkpoint included; by default as many as are fed and not yet
            read.
        map_batch
            Function of what `dataset` gives, in graph code, that returns what the model is to get: ``(x, y)`` or
            ``(x, y, sample_weight)``.
        validation_data
            Validated with after each epoch: a dataset of this worker's share, such as
            ``ctx.dataset(256, name="validation", label="y")`` of rows that were fed under a name, or arrays ``(x, y)``,
            the same on all workers, which are cut by worker. The metrics are those over the rows of all workers.
        callbacks
            Keras callbacks, called on every worker with the same metrics. Those of Keras that write files write on
            the chief alone.
        fit_args
            More arguments of ``model.fit``.

        Returns
        -------
        dict
            History: metric name to its value after each epoch trained by this call, a list for a metric that is a
            vector; empty if the checkpoint has seen them all.

        Raises
        ------
        ConfigurationError
            If the model is not compiled, an input of the model or a label is not fed, or workers build different
            models.
        FeedError
            If nothing is fed, or all of it has been read.
        """
        from tfspark.node.keras.fit import as_number
        from tfspark.node.keras.inputs import (
            arranged,
            check_label_kind,
            check_labels,
            columns_for,
            labels_in_words,
        )
        from tfspark.node.keras.reporting import ReportMetrics
        from tfspark.node.keras.writing import flat

        self._refuse_servers("fit")
        self._refuse_evaluator()
        saving = self._saving(model)
        to_train = self._epochs_to_fit(epochs)
        if not to_train:
            for callback in saving:
                callback.restore()
            return {}
        first = self._link.spool.epochs_read
        check_labels(model, label, map_batch)
        fed = self._link.spool.wait_for_feed()
        if columns is None and map_batch is None and fed is not None:
            columns = columns_for(model, [k for k in fed.features if k not in (label, weight)])
        dataset = self.dataset(
            batch_size,
            columns,
            label=label,
            weight=weight,
            shuffle=shuffle,
            seed=seed,
            drop_remainder=drop_remainder,
        )
        rows = arranged(dataset, model, map_batch)
        check_label_kind(rows, label)
        with labels_in_words(label):
            history = self._trainer.fit(
                model,
                rows,
                validation_data if map_batch is not None else arranged(validation_data, model),
                initial_epoch=first,
                epochs=first + to_train,
                callbacks=[*saving, *flat(callbacks), ReportMetrics(self), *self._debugging.callbacks(callbacks)],
                verbose=verbose,
                **fit_args,
            )
        return {k: [as_number(x) for x in v] for k, v in history.history.items()}

    def evaluate(self, model: Any, dataset: tf.data.Dataset) -> dict[str, Any]:
        """Evaluate a compiled model on each worker's rows and return the metrics over those of all.

        Call it on all workers.

        Parameters
        ----------
        dataset
            Of what the model takes, such as ``ctx.dataset(256, name="test", label="y")``: this worker's share.

        Returns
        -------
        dict
            Metric name to its value, a list for a metric that is a vector.
        """
        from tfspark.node.keras.inputs import arranged

        self._refuse_servers("evaluate")
        return self._trainer.evaluate(model, arranged(dataset, model))

    def _saving(self, model: Any) -> list[Any]:
        """Return the callback that saves and restores the model that is fitted, unless `main` does so itself."""
        if self.checkpoint_dir is None:
            return []
        if not self._checkpoints:
            from tfspark.node.keras.checkpoint import SaveEachEpoch

            self._saver = (model, SaveEachEpoch(self.checkpoint(model=model)))
            self._saver[1].agree()
        return [self._saver[1]] if self._saver is not None and self._saver[0] is model else []

    def report(self, step: int, *, flush: bool = False, **metrics: float) -> None:
        """Send metrics to the driver, where they show in the progress display and in ``cluster.status()``.

        Parameters
        ----------
        step
            How far training is.
        flush
            Send even if the last report was sent less than half a second ago.
        metrics
            Numbers by name.
        """
        self._metrics = {k: float(v) for k, v in metrics.items()}
        self._link.step = int(step)
        self._debugging.step_ended(self._link.step)
        now = time.monotonic()
        if flush or now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            self._link.report(int(step), self._metrics)

    def export(self, model: Any, directory: str, **options: Any) -> str:
        """Export a Keras model as a SavedModel in ``<directory>/<next version>``; only the chief writes.

        Parameters
        ----------
        model
            A built Keras model.
        directory
            Shared by all readers; a local or mounted path.
        options
            Those of `tfspark.saved_models.export.export_model`: ``keep``, ``preprocessing``, ``classes``, ... The
            model card gets the metrics that were reported last, and the columns and rows of the feed, unless
            ``metrics`` or ``data`` say otherwise.

        Returns
        -------
        str
            The directory of the version; on other nodes than the chief, `directory`.
        """
        if not self.is_chief:
            return directory
        from tfspark.node.export import export, training_data

        data = training_data(self._link.spool.last_feed, self.num_workers)
        return export(model, directory, metrics=self._metrics, data=data, options=options)

    def close(self) -> None:
        """Write what profiler and debugger still hold; called when ``main`` has ended."""
        self._debugging.close()
