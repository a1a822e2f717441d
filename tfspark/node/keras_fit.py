"""Fit a Keras model on what each worker was fed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    import tensorflow as tf


def fit(
    model: Any,
    dataset: tf.data.Dataset,
    *,
    strategy: tf.distribute.Strategy,
    rows_read: Callable[[], int],
    callbacks: list[Any],
    validation_data: Any = None,
    **fit_args: Any,
) -> Any:
    """Run ``model.fit`` on this worker's own dataset and return the Keras ``History``.

    Under a multi-worker strategy the dataset is taken as it is: its batches are this worker's share of the global
    batch. Moving statistics of ``BatchNormalization``, which every worker keeps of its own rows, are averaged over
    the workers after each epoch, before it is validated.

    Parameters
    ----------
    rows_read
        Tells how many rows this worker read in the epoch that has just ended.
    """
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        dataset = distributed(dataset, strategy)
        validation_data = distributed(validation_data, strategy)
        callbacks = [AverageStatistics(strategy, rows_read), *callbacks]
    with _of_unknown_length():
        return model.fit(dataset, callbacks=callbacks, validation_data=validation_data, **fit_args)


def evaluate(model: Any, dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> dict[str, float]:
    """Run ``model.evaluate`` on each worker's own rows and return the metrics over those of all."""
    with _of_unknown_length():
        values = model.evaluate(distributed(dataset, strategy), verbose=0, return_dict=True)
    return {k: float(v) for k, v in values.items()}


@contextmanager
def _of_unknown_length() -> Iterator[None]:
    """A fed dataset knows its length only when it has ended: not worth a warning each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        warnings.filterwarnings("ignore", message="`shuffle=True` was passed")
        yield


def distributed(dataset: Any, strategy: tf.distribute.Strategy) -> Any:
    """Hand a dataset of this worker's own rows to a multi-worker strategy as it is; anything else is returned."""
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset) or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return dataset
    return strategy.distribute_datasets_from_function(lambda _: dataset)


class AverageStatistics(keras.callbacks.Callback):
    """Averages the moving statistics of ``BatchNormalization`` over the workers, weighted by the rows each read."""

    def __init__(self, strategy: tf.distribute.Strategy, rows_read: Callable[[], int]) -> None:
        super().__init__()
        self._strategy, self._rows_read = strategy, rows_read

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Average them before they are used."""
        self.on_epoch_end(0)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Average them."""
        import tensorflow as tf

        moving = [
            v
            for layer in self.model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
            for v in (layer.moving_mean, layer.moving_variance)
        ]
        if not moving:
            return

        local = [tf.reshape(self._strategy.experimental_local_results(v.value)[0], [-1]) for v in moving]
        rows = tf.constant(float(self._rows_read()))
        both = tf.concat([[1.0], *(tf.cast(v, tf.float32) for v in local)], 0)
        weighted, plain = tf.split(_all_sum(self._strategy, tf.concat([both * rows, both], 0)), 2)
        # An epoch that was not read to its end counts no rows.
        total = weighted if weighted[0] > 0 else plain
        averages = tf.split(total[1:] / total[0], [v.shape[0] for v in local])
        for variable, value in zip(moving, averages, strict=True):
            variable.assign(tf.reshape(value, variable.shape))


def _all_sum(strategy: tf.distribute.Strategy, value: tf.Tensor) -> tf.Tensor:
    """Add a tensor up over all workers, each of which calls this."""
    import tensorflow as tf

    @tf.function
    def reduce(t: tf.Tensor) -> tf.Tensor:
        return strategy.run(lambda x: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(x)), args=(t,))

    summed = strategy.experimental_local_results(reduce(value))
    # Each of this worker's replicas has added the value once.
    return summed[0] / len(summed)
