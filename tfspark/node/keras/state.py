"""What the workers' models share outside of a step: moving statistics, counters, seeds, adapted layers.

The layers of a worker process only its own rows. Once per epoch, and before each evaluation, the state that training
has changed is merged: floating-point state becomes the mean over the workers, weighted by their rows; other state
becomes the maximum. ``BatchNormalization(synchronized=True)`` uses the statistics of the global batch in every step.
Weights that a training step assigns itself are those of a worker that has run all steps.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.node.keras.collectives import VARYING_KEYS, Group
from tfspark.node.keras.step import NeedsCollective, Step, current

logger = logging.getLogger(__name__)


def share_variables(group: Group, variables: Sequence[tf.Variable], key: int) -> None:
    """Copy the chief's values to all workers.

    Raises
    ------
    ConfigurationError
        If the workers' variables differ.
    """
    try:
        group.broadcast([v for v in variables if v.dtype != tf.string], key)
    except ValueError as e:
        raise ConfigurationError(
            f"{e}", hint="Build the same model on all workers; do not build it depending on ctx.index."
        ) from None


def layers_of(model: Any) -> list[Any]:
    """Return the model and all of its layers, including nested ones; the model is first."""
    return list(model._flatten_layers())


def seeds_of(model: Any) -> list[tf.Variable]:
    """Return the states of a model's seed generators, in order."""
    found = {id(s.state): s.state.value for layer in layers_of(model) for s in getattr(layer, "_seed_generators", ())}
    return list(found.values())


def differ_by_rank(seeds: list[tf.Variable], rank: int) -> None:
    """Set reproducible seeds that differ by worker; the chief keeps its seeds."""
    for seed in seeds:
        state = seed.numpy()
        # numpy's SeedSequence gives streams that do not overlap.
        state.flat[0] = (
            np.random.SeedSequence([int(state.flat[0]), rank]).generate_state(1)[0] if rank else state.flat[0]
        )
        seed.assign(state)


class SharedState:
    """Keeps a model's non-trainable state the same on all workers.

    Parameters
    ----------
    model
        A built model.
    group
        The workers.
    without
        Variables that are not merged.
    """

    def __init__(self, model: Any, group: Group, without: Sequence[tf.Variable] = ()) -> None:
        self._group, self._key = group, group.new_keys()
        others = {id(v) for v in without}
        seeds = {id(s) for s in seeds_of(model)}
        metrics = {id(v.value) for v in getattr(model, "metrics_variables", ())}
        variables = {id(v.value): v.value for v in model.non_trainable_variables}
        # Weights of frozen layers are in this list too; they do not change, so they cost only a comparison.
        self._variables = [
            v for i, v in variables.items() if i not in seeds | metrics | others and v.dtype != tf.string
        ]
        self.begin()

    def begin(self) -> None:
        """Remember the current state, which is the same on all workers."""
        self._before = [v.numpy() for v in self._variables]

    def merge(self, rows: float) -> None:
        """Merge the changes of the workers since `begin`; `rows` is the number of rows that this worker has read."""
        if not self._variables or self._group.size == 1:
            return
        now = [v.numpy() for v in self._variables]
        changed = [float((a != b).any()) for a, b in zip(now, self._before, strict=True)]
        counts = self._group.add([rows, 1.0, *changed], self._key)
        weight = rows / counts[0] if counts[0] else 1.0 / counts[1]
        # State that no worker has changed, such as the weights of frozen layers, is not sent.
        kept = [k for k in range(len(now)) if counts[2 + k]]
        means = [k for k in kept if self._variables[k].dtype.is_floating]
        changes = [(now[k].astype(np.float64) - self._before[k].astype(np.float64)) * weight for k in means]
        for k, change in zip(means, self._reduce(changes, "Add"), strict=True):
            self._variables[k].assign((self._before[k] + change).astype(now[k].dtype))
        others = [k for k in kept if k not in means]
        for k, value in zip(others, self._reduce([now[k] for k in others], "Max"), strict=True):
            self._variables[k].assign(value.astype(now[k].dtype))
        self.begin()

    def _reduce(self, values: list[np.ndarray], merge: str) -> list[np.ndarray]:
        if not values:
            return []
        key = self._key + VARYING_KEYS * (1 + (merge == "Max"))
        flat = tf.constant(np.concatenate([np.ravel(v).astype(np.float64) for v in values]))
        merged = self._group.all_reduce_varying(flat, key, merge).numpy()
        parts = np.split(merged, np.cumsum([v.size for v in values])[:-1])
        return [p.reshape(v.shape) for p, v in zip(parts, values, strict=True)]


def weights_of(model: Any) -> list[tf.Variable]:
    """Return the weights of a model, those of frozen layers too, and the variables of its optimizers."""
    optimizers = [o for o in [model.optimizer, *vars(model).values()] if isinstance(o, keras.optimizers.Optimizer)]
    weights = [v for layer in layers_of(model) for v in layer._trainable_variables]
    variables = [*weights, *(v for o in optimizers for v in o.variables)]
    return list({id(v.value): v.value for v in variables}.values())


def take_longest(group: Group, variables: Sequence[tf.Variable], steps: float, key: int) -> None:
    """If the workers' variables differ, copy those of the worker that ran the most steps to all workers.

    A training step may assign weights after the optimizer, as the clipping of a WGAN does. The worker with the most
    steps has run all of them, because a worker that joins does so until the end of the epoch. Uses three times
    `VARYING_KEYS` keys.
    """
    digest = 0
    for v in variables:
        digest = zlib.crc32(np.ascontiguousarray(v.numpy()).tobytes(), digest)
    if group.are_equal([digest], key).all():
        return
    (best,) = group.max([steps * group.size + group.size - 1 - group.rank], key)
    root = group.size - 1 - int(best) % group.size
    logger.info("train_step assigns weights itself: all workers take those of worker %d, which ran all steps", root)
    group.broadcast(variables, key + VARYING_KEYS, root)


def share_adaptation(model: Any, group: Group, key: int) -> None:
    """Normalize with the chief's statistics on all workers; compare what layers have learned in no variable.

    Raises
    ------
    ConfigurationError
        If the vocabularies or the bins of the workers' preprocessing layers differ.
    """
    learned = []
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with constants that it makes of its variables.
        elif isinstance(layer, keras.layers.Discretization):
            learned.append((layer.name, list(layer.bin_boundaries or ())))
        elif isinstance(layer, (keras.layers.StringLookup, keras.layers.IntegerLookup)):
            weights = getattr(layer, "idf_weights", None)
            learned.append(
                (layer.name, [layer.get_vocabulary(), None if weights is None else weights.numpy().tolist()])
            )
    if not learned:
        return
    equal = group.are_equal([zlib.crc32(repr(values).encode()) for _, values in learned], key)
    differing = [name for (name, _), same in zip(learned, equal, strict=True) if not same]
    if differing:
        raise ConfigurationError(
            f"The workers have adapted the preprocessing layers {differing} to different data.",
            hint="Call adapt() on the same data on all workers, or in the driver, and pass the vocabulary or the bins.",
        )


def refuse_stateful(model: Any) -> None:
    """Reject recurrent layers that keep their state from batch to batch.

    Raises
    ------
    ConfigurationError
        If the model has such a layer.
    """
    found = [layer.name for layer in layers_of(model) if isinstance(layer, keras.layers.RNN) and layer.stateful]
    if found:
        raise ConfigurationError(
            f"The layers {found} are stateful: they expect that a batch continues the rows of the batch before, but "
            "several workers share out the rows.",
            hint="Use stateful=False, or train on one worker.",
        )


def watch_normalization(model: Any) -> None:
    """Make layers with ``synchronized=True`` use the moments of the global batch in steps.

    Spectral normalization assigns its kernel in each call, so workers that join must assign it too.
    """
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.SpectralNormalization) and not hasattr(layer.call, "_tfspark_watched"):
            layer.call = _normalizing_everywhere(layer, layer.call)
            layer.call._tfspark_watched = True
        synchronized = isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized
        if synchronized and not hasattr(layer._moments, "_tfspark_watched"):
            layer._moments = _global_moments(layer, layer._moments)
            layer._moments._tfspark_watched = True


def _normalizing_everywhere(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    def joined() -> None:
        """Update the kernel as the layer's call does; the update does not depend on the rows."""
        kept = (layer.vector_u.value, layer.kernel.value)
        u, kernel = keras.ops.cond(
            keras.ops.all(keras.ops.equal(layer.kernel.value, 0)), lambda: kept, layer.normalized_weights
        )
        layer.vector_u.assign(u)
        layer.kernel.assign(kernel)

    @functools.wraps(call)
    def watched(inputs: Any, training: Any = False) -> Any:
        step = current()
        if step is not None and training:
            if step.compiling and step.group.size > 1:
                raise NeedsCollective  # Workers that join run `joined` without XLA; both must round alike.
            step.replays.append(joined)
        return call(inputs, training=training)

    return watched


def _global_moments(layer: Any, local_moments: Callable[..., Any]) -> Callable[..., Any]:
    def moments(inputs: Any, mask: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        step = current()
        if step is None or step.group.size == 1:
            return local_moments(inputs, mask)
        return _moments(step, inputs, mask, layer)

    return moments


def _moments(step: Step, inputs: tf.Tensor, mask: Any, layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    axes = layer._reduction_axes
    x = tf.cast(inputs, tf.float32) if inputs.dtype.size < 4 else inputs
    present = tf.ones_like(x)
    if mask is not None:
        present = tf.cast(tf.broadcast_to(tf.expand_dims(mask, -1), tf.shape(x)), x.dtype)
    sums = [tf.reduce_sum(t, axes) for t in (x * present, tf.square(x) * present, present)]
    local = tf.ensure_shape(tf.stack(sums), [3, *layer.moving_mean.shape])

    def moments_of(total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values, squares, number = tf.unstack(total)
        number += keras.config.epsilon() if mask is not None else 0.0
        mean = values / number
        return mean, tf.maximum(squares / number - tf.square(mean), 0.0)

    def joined(total: tf.Tensor) -> None:
        _move(layer, *moments_of(total))

    mean, variance = moments_of(step.all_sum_with_gradient(local, joined))
    return tf.cast(mean, inputs.dtype), tf.cast(variance, inputs.dtype)


def _move(layer: Any, mean: tf.Tensor, variance: tf.Tensor) -> None:
    """Update the moving statistics of a layer in the same way as its own call."""
    if getattr(layer, "renorm", False):
        layer._update_renorm_statistics(mean, variance)
        return
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + tf.cast(value, moving.dtype) * (1.0 - layer.momentum))
