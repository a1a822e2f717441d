"""Make every row weigh the same when the workers' batches differ in size, or are empty.

Keras divides a worker's loss by the rows of its own batch and by the number of workers. That is the mean over the
global batch only if all workers hold equally many rows; at the end of an epoch they do not, and TensorFlow gives a
worker that has no rows left batches of 0 rows until the others are done. Here, within a replica:

- a mean loss is the local sum divided by the count of all workers' rows (or weights, or unmasked steps), so that the
  gradients that the optimizer adds up are those of the global batch;
- the tracked ``loss`` is the global batch's, weighted by its rows;
- a batch of 0 rows leaves the moving statistics of ``BatchNormalization`` as they are, where it would make them NaN.

A loss function that reduces to a scalar itself cannot be corrected: it is taken as it is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from tfspark.errors import DependencyError

logger = logging.getLogger(__name__)

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")

# Lines of the installed Keras that the functions below stand in for.
_KNOWN_LINES = {
    "reduce_values": ("loss = ops.divide_no_nan(loss, divisor)", "loss = scale_loss_for_distribution(loss)"),
    "apply_mask": ('if reduction in ("mean", "sum_over_batch_size"):',),
    "unscale_loss_for_distribution": ("value = ops.multiply(value, ops.cast(num_replicas, value.dtype))",),
    "_moments": ("synchronized=self.synchronized",),
}

_done = False


def unknown_functions() -> list[str]:
    """Name the functions of the installed Keras that are not as this module knows them."""
    from keras.src.layers import BatchNormalization
    from keras.src.losses import loss

    homes = {"_moments": BatchNormalization}
    unknown = []
    for name, lines in _KNOWN_LINES.items():
        function = getattr(homes.get(name, loss), name, None)
        # What is already replaced remembers what it replaces.
        source = inspect.getsource(getattr(function, "__wrapped__", function)) if function else ""
        if any(line not in source for line in lines):
            unknown.append(name)
    return unknown


def make_exact() -> None:
    """Have the Keras of this process weigh all rows the same. Safe to call again.

    Raises
    ------
    DependencyError
        If the installed Keras computes its losses in a way that this module does not know.
    """
    global _done
    if _done:
        return
    unknown = unknown_functions()
    if unknown:
        import keras

        raise DependencyError(
            f"Keras {keras.__version__} computes {unknown} in a way that tfspark does not know, so that rows would not "
            "weigh the same on all workers.",
            hint="Install a Keras that this version of tfspark was tested with, 3.12 to 3.15.",
        )
    from keras.src.layers import BatchNormalization
    from keras.src.losses import loss

    loss.reduce_values = _replaces(loss.reduce_values)(_reduce_values)
    loss.apply_mask = _replaces(loss.apply_mask)(_apply_mask)
    loss.unscale_loss_for_distribution = _replaces(loss.unscale_loss_for_distribution)(_unscale)
    BatchNormalization._moments = _replaces(BatchNormalization._moments)(_moments)
    _done = True


def _replaces(original: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(replacement: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs) if _in_replica() else original(*args, **kwargs)

        function.__wrapped__ = original  # type: ignore[attr-defined]
        return function

    return decorate


def _in_replica() -> bool:
    """Whether this code runs in one of several replicas that reduce over all of them."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return (
        replica is not None
        and replica.num_replicas_in_sync > 1
        and isinstance(replica.strategy, tf.distribute.MultiWorkerMirroredStrategy)
    )


def all_sum(value: Any) -> Any:
    """Add a tensor up over all replicas."""
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def average_loss(losses: Any, sample_weight: Any = None) -> Any:
    """Return the sum of this replica's losses divided by the number of those of all replicas."""
    import tensorflow as tf

    losses = tf.convert_to_tensor(losses)
    count = _size(losses)
    if sample_weight is not None:
        weight = tf.cast(sample_weight, losses.dtype)
        losses *= tf.reshape(weight, [-1] + [1] * (losses.shape.rank - 1))
    return tf.math.divide_no_nan(tf.reduce_sum(losses), all_sum(count) if _in_replica() else count)


def _size(values: Any) -> Any:
    import tensorflow as tf

    return tf.cast(tf.size(values), values.dtype)


def _reduce_values(
    original: Callable[..., Any], values: Any, sample_weight: Any = None, reduction: str | None = "sum_over_batch_size"
) -> Any:
    import tensorflow as tf

    if reduction not in _MEANS or tuple(values.shape) == ():
        return original(values, sample_weight, reduction)
    by_weight = reduction == "mean_with_sample_weight" and sample_weight is not None
    divisor = tf.cast(tf.reduce_sum(sample_weight), values.dtype) if by_weight else _size(values)
    return tf.math.divide_no_nan(tf.reduce_sum(values), all_sum(divisor))


def _apply_mask(original: Callable[..., Any], sample_weight: Any, mask: Any, dtype: Any, reduction: str | None) -> Any:
    import tensorflow as tf

    if mask is None or reduction not in ("mean", "sum_over_batch_size"):
        return original(sample_weight, mask, dtype=dtype, reduction=reduction)
    valid = tf.reduce_sum(tf.cast(mask, dtype))
    total = tf.cast(tf.size(mask), valid.dtype)
    everywhere = all_sum(tf.stack([total, valid]))
    # What the original does after it has made 0 and 1 of the mask; its own ratio is of this worker's rows alone.
    weights = original(sample_weight, mask, dtype=dtype, reduction="sum")
    return weights * tf.cast(tf.math.divide_no_nan(everywhere[0], everywhere[1]), weights.dtype)


def _unscale(original: Callable[..., Any], value: Any) -> Any:
    """The worker's share of the loss becomes the loss of the global batch."""
    return all_sum(value)


def _moments(original: Callable[..., Any], layer: Any, inputs: Any, mask: Any) -> Any:
    import tensorflow as tf

    mean, variance = original(layer, inputs, mask)
    empty = tf.equal(tf.size(inputs), 0)
    kept = (tf.cast(layer.moving_mean, mean.dtype), tf.cast(layer.moving_variance, variance.dtype))
    return tf.where(empty, kept[0], mean), tf.where(empty, kept[1], variance)
