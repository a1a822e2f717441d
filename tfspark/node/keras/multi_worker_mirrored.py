"""Fixes for bugs of Keras 3 that prevent training under ``MultiWorkerMirroredStrategy``.

Two functions of ``keras/src/backend/tensorflow/trainer.py`` have a bug, see
https://github.com/keras-team/keras/issues/20585:

- ``TensorFlowTrainer._maybe_symbolic_build`` takes the mean of a distributed batch, which fails for integers and
  strings and returns ``PerReplica`` values. It needs only the shapes and dtypes of one local replica.
- ``reduce_per_replica`` takes the mean of scalars over a batch axis that scalars do not have.

`mend` changes only versions of Keras that have these bugs.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

logger = logging.getLogger(__name__)

_FAULTY_BUILD = 'self.distribute_strategy.reduce(\n                        "MEAN"'
_FAULTY_REDUCE = 'strategy.reduce("MEAN", v, axis=0)'


def faults() -> dict[str, bool]:
    """Return, for each of the two functions, whether the installed Keras has its bug."""
    from keras.src.backend.tensorflow import trainer

    build = inspect.getsource(trainer.TensorFlowTrainer._maybe_symbolic_build)
    reduce = inspect.getsource(trainer.reduce_per_replica)
    return {"symbolic_build": _FAULTY_BUILD in build, "reduce_per_replica": _FAULTY_REDUCE in reduce}


def mend() -> bool:
    """Fix Keras in this process if it has the bugs; return whether it had them. A second call does nothing."""
    from keras.src.backend.tensorflow import trainer

    found = faults()
    if found["symbolic_build"]:
        trainer.TensorFlowTrainer._maybe_symbolic_build = _maybe_symbolic_build
    if found["reduce_per_replica"]:
        trainer.reduce_per_replica = _with_scalar_reduction(trainer.reduce_per_replica)
    if any(found.values()):
        logger.debug("fixed Keras for multi-worker training: %s", found)
    return any(found.values())


def _maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
    if self._distribute_strategy is None:
        return
    if iterator is not None:
        from keras import tree

        # The original reads a batch to learn its shape. The element spec is enough, does not consume a dataset that can
        # be read only once, and is known even if a worker has no rows.
        spec = iterator._distributed_dataset.element_spec
        data_batch = tree.map_structure(example_of, spec)
    with self.distribute_strategy.scope():
        self._symbolic_build(data_batch=data_batch)


def example_of(spec: Any) -> Any:
    """Return one row of a spec; for a spec per replica, one row of a local replica."""
    import tensorflow as tf

    spec = spec._value_specs[0] if hasattr(spec, "_value_specs") else spec
    if isinstance(spec, tf.RaggedTensorSpec):
        inner = [0 if d is None else d for d in (spec.shape or ())[1 + spec.ragged_rank :]]
        value: Any = tf.zeros([0, *inner], spec.dtype)
        for rows in (*[0] * (spec.ragged_rank - 1), 1):
            value = tf.RaggedTensor.from_row_splits(value, tf.zeros([rows + 1], spec.row_splits_dtype))
        return value
    return tf.zeros([1 if d is None else d for d in spec.shape], spec.dtype)


def _with_scalar_reduction(original: Any) -> Any:
    import tensorflow as tf
    from keras import tree

    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if not multi_worker or reduction not in ("auto", "mean"):
            return original(values, strategy, reduction)

        def reduce(v: Any) -> Any:
            local = strategy.experimental_local_results(v)[0]
            rank = getattr(getattr(local, "shape", None), "rank", None)
            return strategy.reduce("MEAN", v, axis=None if rank == 0 else 0)

        return tree.map_structure(reduce, values)

    return reduce_per_replica


def average_loss(losses: Any, sample_weight: Any = None, *, over_replicas: bool) -> Any:
    """Return the mean of a worker's losses; with `over_replicas`, its share of the mean over all replicas.

    With TensorFlow's own strategies, optimizers sum these shares; the engine weights a worker's mean by its rows.
    """
    import tensorflow as tf

    losses = tf.convert_to_tensor(losses)
    count = tf.cast(tf.size(losses), losses.dtype)
    if sample_weight is not None:
        weight = tf.cast(sample_weight, losses.dtype)
        losses *= tf.reshape(weight, [-1] + [1] * (losses.shape.rank - 1))
    replica = tf.distribute.get_replica_context()
    if over_replicas and replica is not None and replica.num_replicas_in_sync > 1:
        count = replica.all_reduce(tf.distribute.ReduceOp.SUM, count)
    return tf.math.divide_no_nan(tf.reduce_sum(losses), count)
