"""Losses of the global batch that are not a mean over rows.

A worker's gradient is weighted by its rows. For a loss that is a mean over rows, this gives the gradient of the global
batch, so such a loss is not changed. Other losses of a worker are scaled with sums over the workers:

- a mean over other items than rows (unmasked steps, sample weights, a varying number of elements);
- a sum;
- an activity regularizer of Keras, which is a sum before Keras 3.14, and divided by the number of rows since then;
- a number that is computed from a whole batch at once, such as ``keras.losses.Dice``: it is computed from the labels
  and predictions of all workers, and each worker gets the gradient of its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from packaging.version import Version

from tfspark.errors import DependencyError
from tfspark.node.keras.replacing import replaced
from tfspark.node.keras.state import layers_of
from tfspark.node.keras.step import Step, current

_SUMS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def watch_losses(model: Any) -> None:
    """Make the losses of a compiled model the losses of the global batch in steps."""
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None:
        return
    if not hasattr(compiled, "_flat_losses") or not compiled.built:
        raise DependencyError(
            f"This tfspark does not support Keras {keras.__version__}: it stores the losses of a model in another way.",
            hint="Install a version of Keras that docs/training.md lists.",
        )
    compiled._flat_losses = [
        entry if isinstance(entry.loss, GlobalLoss) else entry._replace(loss=GlobalLoss(entry.loss))
        for entry in compiled._flat_losses
    ]


def watch_regularizers(model: Any) -> None:
    """Make activity regularizers that are sums over rows count for the rows of all workers in steps."""
    if Version(keras.__version__) >= Version("3.14"):
        return
    for layer in layers_of(model):
        of_activity = getattr(layer, "activity_regularizer", None)
        if isinstance(of_activity, _SUMS) and type(of_activity) is not GlobalRegularizer:
            layer.activity_regularizer = GlobalRegularizer(of_activity)


def noting_reduction(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a model's ``compute_loss``: the gradients of a non-scalar loss are summed, as TensorFlow's tape does."""
    import functools

    @functools.wraps(compute_loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        step = current()
        if step is not None and loss is not None and len(loss.shape) > 0:
            step.sums_gradients = True
        return loss

    return wrapped


class GlobalRegularizer:
    """Replaces an activity regularizer; outside of a step, and when a model is saved, it is that regularizer."""

    def __init__(self, regularizer: Any) -> None:
        self._regularizer = regularizer

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The class under which Keras saves it."""
        return type(self._regularizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._regularizer, name)

    def __call__(self, x: Any) -> Any:
        """Return the sum over the rows of all workers, as far as the gradient of this worker's rows is concerned."""
        value, step = self._regularizer(x), current()
        if step is None or step.group.size == 1:
            return value
        return value * tf.cast(step.total_rows() / step.rows, value.dtype)


class GlobalLoss:
    """Replaces one loss of a compiled model; outside of a step it behaves like that loss.

    Parameters
    ----------
    loss
        A ``keras.losses.Loss``.
    """

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self.name = getattr(loss, "name", "loss")

    def __getattr__(self, name: str) -> Any:
        if name == "_loss":
            raise AttributeError(name)
        return getattr(self._loss, name)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of a batch."""
        step = current()
        if step is None or step.group.size == 1:
            return self._loss(y_true, y_pred, sample_weight)
        values, call = [], self._loss.call

        def noted(y_true: Any, y_pred: Any) -> Any:
            values.append(call(y_true, y_pred))
            return values[-1]

        with replaced(self._loss, "call", noted):
            loss = self._loss(y_true, y_pred, sample_weight)
        if not values:  # A loss that overrides __call__: only one loss for each row can be split over the workers.
            return loss if len(loss.shape) else self._of_all_rows(step, y_true, y_pred, sample_weight)
        if not is_by_row(values[0], y_pred):
            return self._of_all_rows(step, y_true, y_pred, sample_weight)
        return self._share(step, loss, values[0], y_pred, sample_weight)

    def _of_all_rows(self, step: Step, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        return step.share(self._loss(*gathered(step, y_true, y_pred, sample_weight)))

    def _share(self, step: Step, loss: tf.Tensor, values: tf.Tensor, y_pred: Any, sample_weight: Any) -> tf.Tensor:
        reduction = self._loss.reduction
        if reduction not in (*_MEANS, "sum"):
            return loss  # One loss per row: gradients are summed.
        if reduction == "sum":
            return loss * tf.cast(step.total_rows() / step.rows, loss.dtype)
        mask = mask_of(y_pred)
        if mask is None:
            mask = mask_of(values)
        by_weight = reduction == "mean_with_sample_weight" and sample_weight is not None
        if mask is None and not by_weight and self._counts_rows(values):
            return loss
        divisor = _divisor(values, mask, sample_weight if by_weight else None)
        everywhere = step.all_reduce(tf.stack([divisor, step.rows]))
        # loss * divisor is this worker's sum; its gradient will be multiplied by rows / all rows.
        scale = tf.math.divide_no_nan(divisor * everywhere[1], everywhere[0] * step.rows)
        return loss * tf.cast(scale, loss.dtype)

    def _counts_rows(self, values: tf.Tensor) -> bool:
        """Return whether the number of values per row is the same on all workers."""
        function = getattr(self._loss, "fn", type(self._loss))
        from_keras = getattr(function, "__module__", "").split(".")[0] == "keras"
        return from_keras and values.shape[1:].is_fully_defined()


def mask_of(tensor: Any) -> Any:
    """Return the Keras mask of a tensor, or ``None``."""
    return getattr(tensor, "_keras_mask", None)


def is_by_row(values: Any, y_pred: Any) -> bool:
    """Return whether a function of labels and predictions has a result for each row."""
    shape, rows = values.shape, tf.nest.flatten(y_pred)[0].shape
    if shape.rank is None:
        return True
    if shape.rank == 0:
        return False
    return rows.rank is None or rows.rank == 0 or shape[0] == rows[0] or shape[0] is None


def gathered(step: Step, *structures: Any) -> list[Any]:
    """Return the rows of all workers for each of the structures, with their masks."""

    def one(tensor: Any) -> Any:
        if tensor is None:
            return None
        result, mask = step.gather(tensor), mask_of(tensor)
        if mask is not None:
            result._keras_mask = step.gather(mask)
        return result

    return [tf.nest.map_structure(one, s) for s in structures]


def _divisor(values: tf.Tensor, mask: Any, sample_weight: Any) -> tf.Tensor:
    """Return the number by which Keras divides a sum of losses, as float32."""
    if mask is None and sample_weight is None:
        return tf.cast(tf.size(values), tf.float32)
    weights = tf.ones([]) if sample_weight is None else tf.cast(sample_weight, tf.float32)
    if mask is not None:
        mask = tf.cast(mask, tf.float32)
        if weights.shape.rank and weights.shape.rank < mask.shape.rank:
            weights = tf.reshape(
                weights, tf.concat([tf.shape(weights), [1] * (mask.shape.rank - weights.shape.rank)], 0)
            )
        weights *= mask
    return tf.reduce_sum(weights)
