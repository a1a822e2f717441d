"""Datasets with the same number of batches on all workers: batches of 0 rows follow a worker's own batches.

For feeds and arrays, the numbers of rows of all workers are known, so the number of batches of 0 rows is known too. For
files and streams, the workers agree before each batch on whether any of them has another batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.node.keras.collectives import Group
from tfspark.node.keras.step import rows_of

AGREEING_THREADS = 2
"""Threads of a dataset whose workers agree, in addition to one per core: they block while workers wait."""


def with_joins(dataset: tf.data.Dataset, group: Group) -> tf.data.Dataset:
    """Return a dataset of this worker's batches, then batches of 0 rows until all workers have read their batches.

    Call it on all workers, in the same order. A dataset that has joins already is returned unchanged. A dataset whose
    number of batches on all workers is known has an attribute for it, see `tfspark.node.dataset.Steps`.
    """
    if group.size == 1 or getattr(dataset, "_tfspark_has_joins", False):
        return dataset
    group.meet()
    steps: Any = getattr(dataset, "_tfspark_steps", None)
    known = _all_know(steps, group)
    joined = dataset.concatenate(_empty(dataset, steps.joins)) if known else _agreeing(dataset, group)
    joined._tfspark_has_joins = True
    return joined


def _all_know(steps: Any, group: Group) -> bool:
    """Return whether all workers know the other workers' numbers of batches and have the same batch size."""
    mine = [0.0, 0.0] if steps is None else [float(steps.batch_size), float(steps.drop_remainder)]
    key = group.new_keys()
    low, high = (group.all_reduce(tf.constant(mine, tf.float64), key + i, m) for i, m in enumerate(("Min", "Max")))
    return steps is not None and bool(tf.reduce_all(low == high))


def _empty(dataset: tf.data.Dataset, joins: Callable[[], int]) -> tf.data.Dataset:
    def batches(_: tf.Tensor) -> tf.data.Dataset:
        count = tf.numpy_function(lambda: np.int64(joins()), [], tf.int64)
        count.set_shape([])
        return _empty_batch(dataset).repeat(count)

    return tf.data.Dataset.range(1).flat_map(tf.autograph.experimental.do_not_convert(batches))


def _empty_batch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(tf.nest.map_structure(_no_rows, dataset.element_spec))


def _no_rows(spec: Any) -> Any:
    if isinstance(spec, tf.RaggedTensorSpec):
        inner = [d or 0 for d in (spec.shape or ())[1 + spec.ragged_rank :]]
        value: Any = tf.zeros([0, *inner], spec.dtype)
        for _ in range(spec.ragged_rank):
            value = tf.RaggedTensor.from_row_splits(value, tf.zeros([1], spec.row_splits_dtype))
        return value
    if isinstance(spec, tf.SparseTensorSpec):
        shape = [0, *(d or 0 for d in spec.shape[1:])]
        return tf.SparseTensor(tf.zeros([0, len(shape)], tf.int64), tf.zeros([0], spec.dtype), shape)
    return tf.zeros([0, *(d or 0 for d in spec.shape[1:])], spec.dtype)


def _agreeing(dataset: tf.data.Dataset, group: Group) -> tf.data.Dataset:
    key = group.new_keys()

    def anyone(rows: tf.Tensor) -> tf.Tensor:
        return group.all_reduce(tf.cast(rows, tf.int64), key) > 0

    def agreed(*batch: Any) -> tuple[Any, tf.Tensor]:
        goes_on = tf.py_function(anyone, [rows_of(batch)], tf.bool)
        goes_on.set_shape([])
        return batch, goes_on

    graph = tf.autograph.experimental.do_not_convert
    joined = dataset.concatenate(_empty_batch(dataset).repeat()).map(graph(agreed))
    joined = joined.take_while(graph(lambda batch, goes_on: goes_on))
    has_parts = isinstance(dataset.element_spec, tuple)
    joined = joined.map(graph(lambda batch, goes_on: batch if has_parts else batch[0]))
    options = tf.data.Options()
    options.threading.private_threadpool_size = len(os.sched_getaffinity(0)) + AGREEING_THREADS
    return joined.with_options(options)
