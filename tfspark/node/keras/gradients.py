"""Averages gradients over the workers: an optimizer applies the gradient of the global batch.

``apply`` of Keras' optimizers and their subclasses is wrapped once. In a step (see `tfspark.node.keras.step`) the
gradients of the outermost optimizer are averaged over the workers first. Clipping, accumulation, moving averages,
weight decay, loss scaling and constraints of the optimizer then see the same gradient as in one process.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.node.keras.collectives import VARYING_KEYS, buckets
from tfspark.node.keras.step import Step, current

BUCKET_BYTES = 16 << 20
"""Gradients are summed in pieces of this size; the first pieces are sent while others are still computed."""

_local = threading.local()


def install(refuse: Callable[[Any], None]) -> None:
    """Wrap the optimizers of this process; `refuse` is called with an optimizer that is applied outside of a step.

    Call it again when the user's program may have defined more optimizer classes.
    """
    root = keras.optimizers.Optimizer
    for cls in _classes(root):
        if cls is root or "apply" in vars(cls):
            original = getattr(cls.apply, "_tfspark_original", cls.apply)
            cls.apply = _meeting(original, refuse)
            cls.apply._tfspark_original = original
        if cls is not root and "apply_gradients" in vars(cls) and not cls.__module__.startswith("keras."):
            own = getattr(cls.apply_gradients, "_tfspark_original", cls.apply_gradients)
            cls.apply_gradients = _meeting_pairs(own, refuse)
            cls.apply_gradients._tfspark_original = own


def _classes(cls: Any) -> Iterator[Any]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _classes(subclass)


def _meeting_pairs(own: Callable[..., Any], refuse: Callable[[Any], None]) -> Callable[..., Any]:
    """Wrap an ``apply_gradients`` that a user's class overrides, because it may change the gradients."""

    @functools.wraps(own)
    def apply_gradients(self: Any, grads_and_vars: Any, *more: Any, **options: Any) -> Any:
        def update(self: Any, grads: Any, variables: Any) -> Any:
            return own(self, list(zip(grads, variables, strict=True)), *more, **options)

        pairs = list(grads_and_vars)
        result = _meeting(update, refuse)(self, [g for g, _ in pairs], [v for _, v in pairs])
        return self.iterations if result is None else result

    return apply_gradients


def _meeting(original: Callable[..., Any], refuse: Callable[[Any], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if getattr(_local, "inside", False):
            return original(self, grads, trainable_variables)
        step = current()
        if step is None:
            refuse(self)
            return original(self, grads, trainable_variables)
        if step.group.size > 1 and step.is_within_branch():
            raise ConfigurationError(
                "The optimizer is applied only under a condition of the graph (an `if`, a loop or tf.cond on a "
                "tensor), but a worker that has no rows left cannot know whether the others apply it.",
                hint="Apply it in each step. To apply the sum of n steps, pass gradient_accumulation_steps=n to it.",
            )
        grads = list(grads)
        variables = None if trainable_variables is None else list(trainable_variables)
        captured = getattr(_local, "captured", None)
        if captured is not None:
            captured.append((functools.partial(apply, self), grads, variables))
            return None
        update = functools.partial(_apply, step, functools.partial(original, self), variables)
        if step.group.size > 1:
            if not self.built:
                self.build(variables)
            known = self._trainable_variables if variables is None else variables
            meeting = GradientSum(step, grads, [tuple(v.shape) for v in known])
            shared_update = same_code(update, grads)
            step.replays.append(lambda: shared_update(meeting(tf.zeros([]), meeting.nothing())))
            return shared_update(meeting(step.weight, grads))
        return update(grads)

    return apply


def same_code(apply: Callable[[list[Any]], Any], like: Sequence[Any]) -> Callable[[list[Any]], Any]:
    """Return `apply` as one graph function for workers with rows and for workers that join.

    If each branch had its own operations, TensorFlow would optimize them differently (a division by a constant becomes
    a product), and the workers' weights would differ in the last bit.
    """
    if tf.executing_eagerly():
        return apply

    def body(*present: Any) -> None:
        rest = iter(present)
        apply([None if g is None else next(rest) for g in like])

    function = tf.function(body, autograph=False, experimental_attributes={"_noinline": True})
    made: list[Any] = []

    def call(grads: list[Any]) -> None:
        present = [g for g in grads if g is not None]
        if not made:
            made.append(function.get_concrete_function(*map(tf.type_spec_from_value, present)))
        made[0](*present)

    return call


def _apply(step: Step, original: Callable[..., Any], variables: list[Any] | None, grads: list[Any]) -> Any:
    _local.inside = step.is_applying = True
    try:
        return original(grads, variables)
    finally:
        _local.inside = step.is_applying = False


class captured:
    """A context in which optimizers record (function, gradients, variables) instead of applying the gradients."""

    def __enter__(self) -> list[tuple[Callable[..., Any], list[Any], list[Any] | None]]:
        self._outer = getattr(_local, "captured", None)
        _local.captured = []
        return _local.captured

    def __exit__(self, *exc: object) -> None:
        _local.captured = self._outer


class GradientSum:
    """The weighted sum of one optimizer's gradients over the workers; the same for workers with and without rows.

    Parameters
    ----------
    step
        The step of the gradients.
    grads
        This worker's gradients; only their structure, shapes and dtypes are used.
    shapes
        Shapes of the variables of the gradients.
    """

    def __init__(self, step: Step, grads: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> None:
        self._step, self._group, self._sums = step, step.group, step.sums_gradients
        self._shapes = [tuple(shape) for shape in shapes]
        self._specs = [_spec(g, shape) for g, shape in zip(grads, shapes, strict=True)]
        self._dense = [i for i, g in enumerate(grads) if g is not None and not isinstance(g, tf.IndexedSlices)]
        self._sparse = [i for i, g in enumerate(grads) if isinstance(g, tf.IndexedSlices)]
        self._on_gpu = bool(tf.config.list_logical_devices("GPU"))
        kinds: dict[tf.DType, list[int]] = {tf.float32: [], tf.float64: []}
        # The last layers' gradients are computed first.
        for i in reversed(self._dense):
            kinds[tf.float64 if grads[i].dtype == tf.float64 else tf.float32].append(i)
        self._buckets = [
            (kind, [indices[k] for k in bucket], step.key())
            for kind, indices in kinds.items()
            for bucket in buckets([math.prod(shapes[i]) * kind.size for i in indices], BUCKET_BYTES)
        ]
        if not kinds[tf.float32]:
            self._buckets.insert(0, (tf.float32, [], step.key()))
        self._sparse_key = step.key()
        self._sparse_keys = {i: (step.key(VARYING_KEYS), step.key(VARYING_KEYS)) for i in self._sparse}

    def nothing(self) -> list[Any]:
        """Return zero gradients, for a worker without rows."""
        return [None if s is None else s() for s in self._specs]

    def __call__(self, weight: tf.Tensor, grads: Sequence[Any]) -> list[Any]:
        """Return the mean of the workers' gradients, weighted by `weight`, or their sum if the step sums gradients."""
        merged: list[Any] = [None] * len(grads)
        total: Any = None
        stop = self._step.stop
        for kind, indices, key in self._buckets:
            parts = [tf.reshape(tf.cast(grads[i], kind), [-1]) for i in indices]
            flat = tf.concat(parts, 0) * tf.cast(weight, kind) if parts else tf.zeros([0], kind)
            if total is None:
                flat = tf.concat([tf.stack([weight, 0.0 if stop is None else stop.wanted]), flat], 0)
            summed = self._step.in_order(lambda: self._group.sum_of_gradients(flat, key, self._on_gpu))  # noqa: B023
            if total is None:
                total, wishes, summed = summed[0], summed[1], summed[2:]
                if stop is not None:
                    stop.agreed.assign(wishes)
            if not self._sums:
                summed = tf.math.divide_no_nan(summed, tf.cast(total, kind))
            for i, part in zip(indices, tf.split(summed, [tf.size(p) for p in parts]) if parts else (), strict=True):
                merged[i] = tf.cast(tf.reshape(part, self._shapes[i]), grads[i].dtype)
        self._gather(merged, grads, weight, total)
        return merged

    def _gather(self, merged: list[Any], grads: Sequence[Any], weight: tf.Tensor, total: tf.Tensor) -> None:
        """Concatenate the sparse gradients of all workers; as in one process, the optimizer sums equal indices."""
        if not self._sparse:
            return
        lengths = tf.stack([tf.shape(grads[i].indices)[0] for i in self._sparse])
        gathered = self._step.in_order(lambda: self._group.all_gather(lengths, self._sparse_key))
        by_worker = tf.reshape(gathered, [self._group.size, -1])
        factor = weight if self._sums else tf.math.divide_no_nan(weight, total)
        for k, i in enumerate(self._sparse):
            g, rows = grads[i], by_worker[:, k]
            values = tf.cast(g.values, tf.float32 if g.values.dtype != tf.float64 else tf.float64)
            values *= tf.cast(factor, values.dtype)
            indices_key, values_key = self._sparse_keys[i]
            gathered = tf.cast(self._group.all_gather_varying(values, rows, values_key), g.values.dtype)
            indices = self._group.all_gather_varying(g.indices, rows, indices_key)
            shape = self._shapes[i]
            # `same_code` needs the same kind of gradient on all workers, including those that join.
            merged[i] = tf.IndexedSlices(
                tf.ensure_shape(gathered, [None, *shape[1:]]),
                tf.ensure_shape(indices, [None]),
                tf.constant(shape, indices.dtype),
            )


def _spec(grad: Any, shape: tuple[int, ...]) -> Callable[[], Any] | None:
    """Return a function that makes a zero gradient of this kind."""
    if grad is None:
        return None
    if not isinstance(grad, tf.IndexedSlices):
        dtype = grad.dtype
        return lambda: tf.zeros(shape, dtype)
    values, indices = grad.values.dtype, grad.indices.dtype
    return lambda: tf.IndexedSlices(
        tf.zeros([0, *shape[1:]], values), tf.zeros([0], indices), tf.constant(shape, indices)
    )
