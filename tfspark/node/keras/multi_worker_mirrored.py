"""Mend what keeps Keras 3 from training under ``MultiWorkerMirroredStrategy``.

Two functions of ``keras/src/backend/tensorflow/trainer.py`` are at fault, see
https://github.com/keras-team/keras/issues/20585:

- ``TensorFlowTrainer._maybe_symbolic_build`` reduces a distributed batch to one by its mean, which fails for integers
  and strings and hands on ``PerReplica`` values; the shapes and dtypes of one local replica are what it needs.
- ``reduce_per_replica`` takes the mean of scalars over a batch axis that they do not have.

`mend` changes only a Keras that still has the faults.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

logger = logging.getLogger(__name__)

_FAULTY_BUILD = 'self.distribute_strategy.reduce(\n                        "MEAN"'
_FAULTY_REDUCE = 'strategy.reduce("MEAN", v, axis=0)'


def faults() -> dict[str, bool]:
    """Tell which of the two functions of the installed Keras has its fault."""
    from keras.src.backend.tensorflow import trainer

    build = inspect.getsource(trainer.TensorFlowTrainer._maybe_symbolic_build)
    reduce = inspect.getsource(trainer.reduce_per_replica)
    return {"symbolic_build": _FAULTY_BUILD in build, "reduce_per_replica": _FAULTY_REDUCE in reduce}


def mend() -> bool:
    """Mend the installed Keras in this process if it needs it; tell whether it did. Safe to call again."""
    from keras.src.backend.tensorflow import trainer

    found = faults()
    if found["symbolic_build"]:
        trainer.TensorFlowTrainer._maybe_symbolic_build = _maybe_symbolic_build
    if found["reduce_per_replica"]:
        trainer.reduce_per_replica = _with_scalar_reduction(trainer.reduce_per_replica)
    if any(found.values()):
        logger.debug("mended Keras for multi-worker training: %s", found)
    return any(found.values())


def _maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
    if self._distribute_strategy is None:
        return
    if iterator is not None:
        from keras import tree

        # The original reads a first batch to see its shape. What the dataset says of itself is enough, does not use
        # up a dataset that can be read only once, and holds also where a worker has no rows.
        spec = iterator._distributed_dataset.element_spec
        data_batch = tree.map_structure(example_of, spec)
    with self.distribute_strategy.scope():
        self._symbolic_build(data_batch=data_batch)


def example_of(spec: Any) -> Any:
    """Make one row that a spec describes; of a spec per replica, for one of this worker's replicas."""
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
    """Return the mean of a worker's losses; `over_replicas` returns its share of the mean over those of all replicas.

    Optimizers add the shares up under TensorFlow's own strategies; the engine's weigh a worker's mean by its rows.
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
