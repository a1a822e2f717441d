"""`NodeContext`: the second argument of ``main(args, ctx)``."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.checks import check_shared_path
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


class NodeContext:
    """A node's access to its cluster: rows, training, checkpoints, metrics and export.

    Attributes
    ----------
    role
        ``"chief"``, ``"worker"`` or ``"evaluator"``. In a cluster with parameter servers, only the chief and the
        evaluator call ``main`` and have a `NodeContext`.
    index
        Index of this node among the nodes of its role.
    cluster_spec
        Addresses of the nodes by role, ``{"worker": ["host:port", ...]}``, as ``tf.train.ClusterSpec`` takes them.
    gpus
        Addresses of the GPUs that Spark gave this node.
    checkpoint_dir
        The argument ``Cluster(checkpoint_dir=...)``, or ``None``.
    restarts
        Number of times that the nodes of this cluster have been restarted.
    log_dir
        The argument ``Cluster(log_dir=...)``, the directory for TensorBoard, or ``None``.

    Examples
    --------
    In the examples of this class the fed rows have a column ``x`` of two floats and a column ``y``, and
    ``build_model`` returns a compiled Keras model with the input ``x``.

    >>> def main(args, ctx):
    ...     history = ctx.fit(build_model(), batch_size=256, label="y")
    ...     return history["loss"][-1]
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
        self._exports: Counter[str] = Counter()
        self.role = link.node.role
        self.index = link.node.index
        self.cluster_spec: dict[str, list[str]] = spec.jobs
        self.gpus: tuple[str, ...] = tuple(options.get("gpus", ()))
        self.checkpoint_dir: str | None = options.get("checkpoint_dir")
        self.restarts: int = options.get("restarts", 0)
        if self._takes_checkpoints:
            # A node that waits for rows without restoring a checkpoint begins with the first epoch.
            link.spool.before_first_wait(lambda: link.resume(()))
        self._debugging = Debugging(options, f"{self.role}-{self.index}", self.is_chief)
        self.log_dir = self._debugging.log_dir

    def __repr__(self) -> str:
        return f"NodeContext({self.role} {self.index} of {self.num_workers})"

    @property
    def is_chief(self) -> bool:
        """Whether this node saves and exports for the cluster: the chief does, or worker 0 if there is no chief.

        Examples
        --------
        >>> def main(args, ctx):
        ...     if ctx.is_chief:
        ...         print("training on", ctx.num_workers, "workers")
        """
        return is_chief(self._link.node, self._link.nodes)

    @property
    def num_workers(self) -> int:
        """Number of nodes that train together.

        Examples
        --------
        >>> def main(args, ctx):
        ...     global_batch_size = 64
        ...     batch_size = global_batch_size // ctx.num_workers
        ...     ctx.fit(build_model(), batch_size=batch_size, label="y")
        """
        return len(training_nodes(self._link.nodes))

    @property
    def stopping(self) -> bool:
        """Whether the cluster is stopping; ``main`` should save and return soon.

        Examples
        --------
        >>> def main(args, ctx):
        ...     for step in range(1000):
        ...         if ctx.stopping:
        ...             break
        ...         ctx.report(step)
        """
        return self._link.stopping.is_set()

    def strategy(self) -> tf.distribute.Strategy:
        """Return the distribution strategy of this cluster; every call returns the same object.

        You need it for your own training loop; `fit` does not need it. Models, optimizers and metrics that are made
        in its scope are synchronized with those of the other workers. It has one local replica: every worker runs
        plain Keras on its own batches, and ``strategy.run(step, args=batch)`` averages the gradients of all workers
        in the optimizer.

        With parameter servers it is a ``ParameterServerStrategy``. With
        ``Cluster(strategy="multi_worker_mirrored")`` it is a ``MultiWorkerMirroredStrategy``: call this method before
        any other TensorFlow operation.

        Examples
        --------
        >>> def main(args, ctx):
        ...     strategy = ctx.strategy()
        ...     with strategy.scope():
        ...         model = build_model()
        ...
        ...     def step(features, y):
        ...         with tf.GradientTape() as tape:
        ...             loss = ctx.average_loss(tf.square(model(features["x"])[:, 0] - y))
        ...         variables = model.trainable_variables
        ...         model.optimizer.apply(tape.gradient(loss, variables), variables)
        ...
        ...     for batch in ctx.distribute(ctx.dataset(256, label="y")):
        ...         strategy.run(step, args=batch)
        """
        return self._trainer.strategy()

    def synchronize(self, *objects: Any) -> None:
        """Synchronize models and optimizers with those of the other workers.

        Objects made in ``ctx.strategy().scope()`` are synchronized already, and `fit` synchronizes its model. After
        this call, ``model.fit`` trains on the batches of all workers. In your own loop, call each step with
        ``ctx.strategy().run`` on the batches of ``ctx.distribute(dataset)``. Call this method on all workers.

        Parameters
        ----------
        objects
            Keras models and optimizers.

        Raises
        ------
        ConfigurationError
            If an object is neither a model nor an optimizer, or the cluster has another strategy than ``"auto"``.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     ctx.synchronize(model)
        ...     model.fit(ctx.dataset(256, label="y"), epochs=ctx.fed_epochs, verbose=0)
        """
        self._trainer.synchronize(*objects)

    def coordinator(self) -> tf.distribute.coordinator.ClusterCoordinator:
        """Return TensorFlow's ``ClusterCoordinator`` for a cluster with parameter servers; always the same object.

        Examples
        --------
        >>> def main(args, ctx):
        ...     coordinator = ctx.coordinator()
        ...     future = coordinator.schedule(tf.function(lambda: tf.constant(42)))
        ...     return int(future.fetch())
        """
        if self._coordinator is None:
            import tensorflow as tf

            self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self.strategy())
        return self._coordinator

    def train_epoch(self, step: Callable[..., Any], dataset_fn: Callable[[], tf.data.Dataset]) -> int:
        """Train on one epoch of the fed rows with parameter servers: run `step` on the workers, once for each batch.

        Every row is used once, and the workers may have different numbers of rows. If a worker fails, the others
        continue. The worker is restarted and then uses all of its rows of this epoch again, including those that it
        had used before.

        Parameters
        ----------
        step
            Called on a worker, inside ``strategy.run``, with the parts of a batch. It computes gradients and applies
            them. Pass the same function for every epoch, because it is traced once.
        dataset_fn
            Returns a dataset of fed rows, such as ``lambda: ctx.dataset(256, label="y")``. Each worker reads its own
            rows. Pass the same function for every epoch.

        Returns
        -------
        int
            Number of rows that the workers have read.

        Raises
        ------
        ConfigurationError
            If the cluster has no parameter servers.

        Examples
        --------
        >>> def main(args, ctx):
        ...     with ctx.strategy().scope():
        ...         weights = tf.Variable([0.0, 0.0])
        ...         optimizer = keras.optimizers.SGD(0.01)
        ...         optimizer.build([weights])
        ...
        ...     def step(features, y):
        ...         with tf.GradientTape() as tape:
        ...             error = tf.linalg.matvec(features["x"], weights) - y
        ...             loss = tf.reduce_mean(tf.square(error))
        ...         optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        ...
        ...     for epoch in ctx.epochs():
        ...         rows = ctx.train_epoch(step, lambda: ctx.dataset(256, label="y"))
        """
        from tfspark.node.parameter_server import EpochLoop

        if not self._has_servers:
            raise ConfigurationError(
                "ctx.train_epoch() needs a cluster with parameter servers.",
                hint="Pass Cluster(..., ps=1), or use ctx.fit.",
            )
        if (step, dataset_fn) not in self._loops:
            self._loops[step, dataset_fn] = EpochLoop(self._link, self.coordinator(), step, dataset_fn)
        return self._loops[step, dataset_fn].run()

    def _refuse_evaluator(self) -> None:
        if self.role == Role.EVALUATOR.value:
            raise ConfigurationError(
                "The evaluator gets no fed rows.", hint="Read its data from files, or pass them in args."
            )

    def _refuse_servers(self, what: str) -> None:
        if self._has_servers:
            raise ConfigurationError(
                f"ctx.{what} does not work with parameter servers, because Keras 3 does not support them.",
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
        """Return a dataset of the rows that are fed to this worker; each iteration gives the next epoch.

        Waits until the driver calls ``cluster.feed``. With parameter servers a dataset gives the rows of the worker
        that reads it: make it in the function that you pass to `train_epoch` or to
        ``ClusterCoordinator.create_per_worker_dataset``.

        Parameters
        ----------
        batch_size
            Rows per batch on this worker. The global batch of a step is the batches of all workers together.
        columns
            Columns that become features; by default all except `label` and `weight`.
        label, weight
            Columns that become labels and sample weights.
        shuffle
            Shuffle the partitions, if all have arrived when the epoch begins, and the rows within a window of several
            batches.
        seed
            Seed of the shuffling; by default the seed of the feed.
        drop_remainder
            Drop the last batch of an epoch if it is not full.
        name
            Read the rows of ``cluster.feed(..., name=name)`` instead; each iteration gives all of them.

        Returns
        -------
        tf.data.Dataset
            Elements are a ``dict`` of tensors by column, ``(dict, label)``, or ``(dict, label, weight)``. The first
            dimension of each tensor is the rows, at most `batch_size`.

        Raises
        ------
        FeedError
            If the driver feeds no rows.
        ConfigurationError
            If a column is not fed, or this node is the evaluator.

        Examples
        --------
        >>> def main(args, ctx):
        ...     for features, y in ctx.dataset(256, label="y"):
        ...         print(features["x"].shape, y.shape)
        """
        from tfspark.node.chunks import DatasetTerms
        from tfspark.node.dataset import fed_dataset

        self._refuse_evaluator()
        self._trainer.prepare()
        names = None if columns is None else tuple(columns)
        if name:
            self._refuse_servers("dataset(name=...)")
        settings = self._link.settings
        sizes = settings.chunk_bytes, settings.shuffle_chunk_bytes
        terms = DatasetTerms(batch_size, names, label, weight, shuffle, seed, drop_remainder, name, *sizes)
        return fed_dataset(self._link.spool, terms, remote=self._has_servers)

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """Return this worker's batches, followed by batches of 0 rows until all workers have read their batches.

        Use it in your own training loop, so that all workers run the same number of steps. For a batch of 0 rows,
        ``strategy.run`` does not call the step function: the worker contributes zeros to the step of the other workers.
        Call this method on all workers, in the same order.

        Parameters
        ----------
        dataset
            A dataset that the method `dataset` returned, or any other dataset. With one worker it is returned
            unchanged.

        Examples
        --------
        >>> def main(args, ctx):
        ...     steps = 0
        ...     for features, y in ctx.distribute(ctx.dataset(256, label="y")):
        ...         steps += 1
        ...     return steps
        """
        return self._trainer.distribute(dataset)

    def average_loss(self, losses: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return the mean loss of the rows of this worker's batch.

        The optimizer weights each worker's gradient by its number of rows, so it applies the gradient of the mean over
        the global batch. Add regularization losses unchanged. With ``strategy="multi_worker_mirrored"`` the result is
        this replica's share of the mean over all replicas, and the optimizer sums the gradients: divide regularization
        losses by ``ctx.num_workers`` there.

        Parameters
        ----------
        losses
            Loss of each row, for example from a loss with ``reduction="none"``. The first dimension is the rows.
        sample_weight
            Weight of each row. `losses` are multiplied by it; the sum is divided by the number of rows, as with Keras'
            ``"sum_over_batch_size"``.

        Returns
        -------
        tf.Tensor
            A scalar with the dtype of `losses`.

        Examples
        --------
        >>> def main(args, ctx):
        ...     squared = keras.losses.MeanSquaredError(reduction="none")
        ...     for features, y in ctx.dataset(256, label="y"):
        ...         loss = ctx.average_loss(squared(y[:, None], features["x"]))
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
        """Return one dataset of all rows that are fed from now on; iterate it once.

        It gives the epochs of one feed after another and ends when the driver has stopped feeding. A batch may have
        rows of two feeds, so only the last batch may be smaller than `batch_size`.

        Parameters
        ----------
        batch_size, columns, label, weight
            As for `dataset`.

        Returns
        -------
        tf.data.Dataset
            As for `dataset`.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     for features, y in ctx.stream(256, label="y"):
        ...         model.train_on_batch(features["x"], y)
        """
        from tfspark.node.chunks import DatasetTerms
        from tfspark.node.dataset import fed_dataset

        self._refuse_servers("stream")
        self._trainer.prepare()
        names = None if columns is None else tuple(columns)
        terms = DatasetTerms(batch_size, names, label, weight, chunk_bytes=self._link.settings.chunk_bytes)
        return fed_dataset(self._link.spool, terms, endless=True)

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows that are fed from now on as Arrow record batches, for programs that do not use ``tf.data``.

        Like `stream`, it gives the epochs of one feed after another, waits for rows, and ends when the driver has
        stopped feeding.

        Yields
        ------
        pyarrow.RecordBatch
            Rows in the order in which partitions arrive. `tfspark.columns.spec` describes the columns.

        Examples
        --------
        >>> def main(args, ctx):
        ...     return sum(batch.num_rows for batch in ctx.record_batches())
        """
        self._refuse_servers("record_batches")
        while (reader := self._link.spool.next_epoch()) is not None:
            for partition in reader.partitions():
                yield from partition.batches
            reader.complete()

    def rows(self) -> Iterator[Any]:
        """Yield the objects of ``cluster.feed(rdd, pickled=True)`` one by one; ends as `record_batches` does.

        Examples
        --------
        >>> def main(args, ctx):
        ...     return sorted(str(row) for row in ctx.rows())
        """
        from tfspark.columns.pickled_rows import unpickled

        for batch in self.record_batches():
            yield from unpickled(batch)

    def serve(self, fn: Callable[[dict[str, Any]], Any], *, threads: int = 1) -> int:
        """Compute the predictions of ``cluster.predict``, until the driver calls `wait` or leaves the ``with`` block.

        Parameters
        ----------
        fn
            Called with a dict of tensors by column; the first dimension is the rows, at most the ``batch_size`` of
            ``predict``. It returns a dict of arrays or tensors by output, with the same number of rows, or the array
            itself if there is one output.
        threads
            Number of threads that call `fn`. Pass more than 1 only if `fn` is thread-safe.

        Returns
        -------
        int
            Number of rows predicted.

        Raises
        ------
        ClusterStopped
            If the cluster is stopped.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     return ctx.serve(lambda columns: model(columns["x"]))
        """
        from tfspark.node.serve import answering

        if self._takes_checkpoints:
            self._link.resume_without()
        return self._link.questions.run(answering(fn), threads)

    def checkpoint(self, *, keep: int = 3, **objects: Any) -> TrainingCheckpoint:
        """Return an object that saves and restores training in `checkpoint_dir`, epoch by epoch.

        ``restore()`` restores the newest checkpoint that all nodes have, if there is one; the driver then feeds the
        epochs after it. ``save()`` writes atomically, on the chief only. `fit` saves and restores by itself.

        Parameters
        ----------
        keep
            Number of checkpoints to keep.
        objects
            Keras models, optimizers, variables and other objects that ``tf.train.Checkpoint`` takes, by name. A
            compiled model includes its optimizer.

        Raises
        ------
        ConfigurationError
            If the cluster has no `checkpoint_dir`.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     ctx.synchronize(model)
        ...     checkpoint = ctx.checkpoint(model=model)
        ...     checkpoint.restore()
        ...     for epoch in ctx.epochs():
        ...         model.fit(ctx.dataset(256, label="y"), verbose=0)
        ...         checkpoint.save()
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
                "This cluster has no checkpoint directory.", hint="Pass Cluster(checkpoint_dir='/a/shared/path')."
            )
        if self._trainer.is_alone and self.num_workers > 1:
            return f"{self.checkpoint_dir.rstrip('/')}/{self.role}-{self.index}"
        return self.checkpoint_dir

    @property
    def _takes_checkpoints(self) -> bool:
        return self.checkpoint_dir is not None and self.role != Role.EVALUATOR.value

    def new_checkpoints(self, poll_seconds: float = 1.0) -> Iterator[str]:
        """Yield the path of the newest checkpoint whenever there is a new one, until training ends.

        Call it on the evaluator. Checkpoints may be skipped if several are written while the evaluator works on an
        earlier one. The last checkpoint is always yielded.

        Parameters
        ----------
        poll_seconds
            Seconds between two checks of the directory.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     checkpoint = ctx.checkpoint(model=model)
        ...     for path in ctx.new_checkpoints():
        ...         epochs = checkpoint.restore(path)
        ...         print(epochs, model.predict(np.ones((1, 2)), verbose=0))
        """
        from tfspark.node.keras.checkpoint import follow

        def read() -> list[str | None]:
            return [c.last_read for c in self._checkpoints]

        directory = self._checkpoint_directory()
        yield from follow(directory, self._link.training_ended, self._link.stopping, poll_seconds, read)

    def run_finished(self) -> None:
        """Mark the run as finished in its checkpoints. tfspark calls it when all nodes have finished."""
        for checkpoint in self._checkpoints:
            checkpoint.finish()

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch that is fed, until there are no more; iterate `dataset` once for each.

        If `dataset` is not iterated to its end, the other rows of the epoch are skipped, and a warning is logged.
        Numbers begin at 0, or after the epochs of the restored checkpoint.

        Examples
        --------
        >>> def main(args, ctx):
        ...     dataset = ctx.dataset(256, label="y")
        ...     for epoch in ctx.epochs():
        ...         print("epoch", epoch, "has", sum(len(y) for features, y in dataset), "rows")
        """
        spool = self._link.spool
        while spool.wait_for_feed() is not None:
            epoch = spool.epochs_read
            yield epoch
            if spool.epochs_read == epoch and (reader := spool.next_epoch()) is not None:
                logger.warning("Epoch %d was not read to its end, so its other rows are skipped.", epoch)
                reader.skip()

    @property
    def fed_epochs(self) -> int:
        """Number of epochs of the current ``cluster.feed`` that are not read yet; waits for a feed if there is none.

        Raises
        ------
        FeedError
            If the driver feeds no more epochs.

        Examples
        --------
        >>> def main(args, ctx):
        ...     dataset = ctx.dataset(256, label="y")
        ...     for epoch in range(ctx.fed_epochs):
        ...         rows = sum(len(y) for features, y in dataset)
        """
        epochs = self._link.spool.epochs_to_come()
        if not epochs:
            raise FeedError("Nothing was fed, or all of it has been read.", hint="Call cluster.feed(df) in the driver.")
        return epochs

    def _epochs_to_fit(self, wanted: int | None) -> int:
        """Return the number of epochs that ``fit(epochs=wanted)`` has to train after the restored checkpoint."""
        restored = self._link.resumed - self._restored_epochs_passed
        to_come = self._link.spool.epochs_to_come()
        if wanted is None:
            # The restored checkpoint may include all fed epochs.
            return to_come if restored else self.fed_epochs
        passed = min(restored, wanted)
        if wanted - passed > to_come:
            raise ConfigurationError(
                f"ctx.fit(epochs={wanted}) needs {wanted} epochs, but only {passed + to_come} are fed.",
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
        """Train a compiled Keras model on the fed rows and report its metrics to the driver.

        Weights, metrics and history are the same as for one process that trains on the global batches (the batches of
        all workers of a step together), for any distribution of rows over the workers; see docs/training.md. With a
        `checkpoint_dir`, the model and its optimizer are saved there after each epoch, and training resumes from the
        newest checkpoint if the last run did not finish. With a `log_dir`, the chief writes the metrics for
        TensorBoard with Keras' callback.

        Parameters
        ----------
        model
            A compiled Keras 3 model. Each input gets the column of its name. A model without known inputs, such as a
            subclass of ``keras.Model``, gets a dict of all columns.
        batch_size, label, weight, columns, shuffle, seed, drop_remainder
            As for `dataset`.
        epochs
            Number of epochs, including those of the restored checkpoint; by default all fed epochs that are not read
            yet.
        map_batch
            Graph function that takes an element of `dataset` and returns the input of the model: ``(x, y)`` or ``(x,
            y, sample_weight)``.
        validation_data
            Data for validation after each epoch: a dataset with this worker's share of the rows, such as
            ``ctx.dataset(256, name="validation", label="y")``, or arrays ``(x, y)`` that are the same on all workers;
            each worker takes its share of them. The metrics are over the rows of all workers.
        callbacks
            Keras callbacks; they run on every worker with the same metrics. Keras' own callbacks write files on the
            chief only.
        fit_args
            More arguments of ``model.fit``, but not ``steps_per_epoch``: an epoch is all rows that were fed for it.

        Returns
        -------
        dict
            History: metric name to its values after the epochs of this call; the value of a vector metric is a list.
            Empty if the restored checkpoint includes all epochs.

        Raises
        ------
        ConfigurationError
            If the model is not compiled, a column for an input or the label is not fed, the workers build different
            models, or ``steps_per_epoch`` is given.
        FeedError
            If the driver feeds no rows, or all rows have been read.

        Examples
        --------
        >>> def main(args, ctx):
        ...     history = ctx.fit(build_model(), batch_size=256, label="y", shuffle=True)
        ...     return history["loss"]
        """
        from tfspark.node.keras.fit import as_number
        from tfspark.node.keras.inputs import arranged, check_label_kind, check_labels, columns_for, labels_in_words
        from tfspark.node.keras.reporting import ReportMetrics
        from tfspark.node.keras.writing import flat

        self._refuse_servers("fit")
        self._refuse_evaluator()
        if fit_args.pop("steps_per_epoch", None) is not None:
            raise ConfigurationError(
                "ctx.fit takes no steps_per_epoch: an epoch is all rows that were fed for it.",
                hint="Leave it out. To train on fewer rows, feed fewer, for example df.sample(0.1).",
            )
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
        """Evaluate a compiled model on the rows of all workers.

        Call it on all workers; every worker gets the metrics over all rows.

        Parameters
        ----------
        dataset
            Dataset with this worker's share of the rows, such as ``ctx.dataset(256, name="test", label="y")``.

        Returns
        -------
        dict
            Metric name to its value; the value of a vector metric is a list.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     ctx.fit(model, batch_size=256, label="y")
        ...     return ctx.evaluate(model, ctx.dataset(256, name="test", label="y"))["loss"]
        """
        from tfspark.node.keras.inputs import arranged

        self._refuse_servers("evaluate")
        return self._trainer.evaluate(model, arranged(dataset, model))

    def _saving(self, model: Any) -> list[Any]:
        """Return the callback that saves and restores the fitted model, unless `main` uses `checkpoint` itself."""
        if self.checkpoint_dir is None:
            return []
        if not self._checkpoints:
            from tfspark.node.keras.checkpoint import SaveEachEpoch

            self._saver = (model, SaveEachEpoch(self.checkpoint(model=model)))
            self._saver[1].agree()
        return [self._saver[1]] if self._saver is not None and self._saver[0] is model else []

    def report(self, step: int, *, flush: bool = False, **metrics: float) -> None:
        """Send metrics to the driver, which shows them in the progress display and in ``cluster.status()``.

        Reports are sent in the background, so training neither waits for the driver nor fails if the driver does not
        answer. A new report replaces a report that still waits, unless that one has `flush`.

        Parameters
        ----------
        step
            Number of the training step.
        flush
            Send the report even if the last one was less than ``report_interval`` (0.5 s) ago, and keep it while the
            driver does not answer. Up to 100 such reports are kept.
        metrics
            Numbers by name.

        Examples
        --------
        >>> def main(args, ctx):
        ...     for step in range(100):
        ...         ctx.report(step, loss=1.0 / (step + 1))
        """
        self._metrics = {k: float(v) for k, v in metrics.items()}
        self._link.step = int(step)
        self._debugging.step_ended(self._link.step)
        now = time.monotonic()
        if flush or now - self._reported_at >= self._link.settings.report_interval:
            self._reported_at = now
            self._link.report(int(step), self._metrics, keep=flush)

    def export(self, model: Any, directory: str, **options: Any) -> str:
        """Export a Keras model as a SavedModel in ``<directory>/<next version>``; only the chief writes.

        Parameters
        ----------
        model
            A built Keras model.
        directory
            Directory of the versions, a local or mounted path that all readers share.
        options
            Arguments of `tfspark.saved_models.export.export_model`, such as ``keep``, ``preprocessing`` and
            ``classes``. By default ``metrics`` of the model card are those of the last `report`, ``data`` describes
            the fed rows, and ``fill`` is that of the feed.

        Returns
        -------
        str
            Directory of the new version, on all nodes. Nodes other than the chief wait until the chief has written it.

        Raises
        ------
        ConfigurationError
            If the model cannot be exported, `directory` is relative and the master is not ``local[n]``, or the chief's
            ``main`` returns after fewer exports to `directory` than this node has started.

        Examples
        --------
        >>> def main(args, ctx):
        ...     model = build_model()
        ...     ctx.fit(model, batch_size=256, label="y")
        ...     return ctx.export(model, args["directory"], keep=3)
        """
        base = os.fspath(directory)
        if not self._options["local"]:
            check_shared_path("The directory of ctx.export", base)
        self._exports[base] += 1
        number = self._exports[base]
        if not self.is_chief:
            return self._link.path_of_export(base, number)
        from tfspark.node.export import export

        path = export(model, base, self._link.spool.last_feed, self.num_workers, self._metrics, options)
        self._link.exported(base, number, path)
        return path

    def close(self) -> None:
        """Write the remaining data of profiler and debugger. tfspark calls it when ``main`` has ended."""
        self._debugging.close()
