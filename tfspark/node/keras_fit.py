"""Fit a Keras model on what each worker was fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


def fit(model: Any, dataset: tf.data.Dataset, *, strategy: tf.distribute.Strategy, **fit_args: Any) -> Any:
    """Run ``model.fit`` on this worker's own dataset and return the Keras ``History``.

    Under a multi-worker strategy the dataset is taken as it is: its batches are this worker's share of the global
    batch.
    """
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        dataset = strategy.distribute_datasets_from_function(lambda _: dataset)
    return model.fit(dataset, **fit_args)
