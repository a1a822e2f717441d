"""One training step that all workers run together, including workers that have no rows left.

A worker with rows runs the step and records each collective in it. A worker without rows *joins*: it runs the same
collectives with zeros and applies the same update, but never runs the model on a batch of 0 rows. Both are branches of
one ``tf.cond`` on the batch, so no part of the step runs before there is a batch. Otherwise Keras would count one
optimizer iteration too many at the end of each epoch of a dataset of unknown length.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfspark.node.keras.collectives import KEYS_OF_STEP, SUMMED, VARYING_KEYS, Group

_local = threading.local()

_BRANCHES = {"CondBranchFuncGraph", "WhileBodyFuncGraph"}
"""TensorFlow's classes of graphs that run only under a condition."""


class NeedsCollective(Exception):
    """A collective is needed in code that XLA compiles; the step must run without XLA."""


def current() -> Step | None:
    """Return the step that this thread runs or traces, or ``None``."""
    return getattr(_local, "step", None)


def _current_graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class StopWish:
    """A worker's request to stop training, which is sent with the gradients of its next step.

    Attributes
    ----------
    wanted
        1.0 if this worker requests a stop.
    agreed
        Number of workers that requested a stop in the last step; the same on all workers.
    """

    def __init__(self) -> None:
        self.wanted = tf.Variable(0.0, trainable=False)
        self.agreed = tf.Variable(0.0, trainable=False)

    def clear(self) -> None:
        """Reset both values."""
        self.wanted.assign(0.0)
        self.agreed.assign(0.0)


class Step:
    """The context for the hooks of a step: the rows of its batch, and collectives in the same order on all workers.

    Attributes
    ----------
    rows
        float32 scalar: number of rows of this worker's batch.
    stop
        The worker's request to stop, or ``None``.
    is_applying
        Whether an optimizer is applying gradients that are already summed over the workers.
    sums_gradients
        Whether gradients are summed over rows instead of averaged, as for a loss without reduction.
    """

    def __init__(self, group: Group, first_key: int, rows: tf.Tensor, stop: StopWish | None = None) -> None:
        self.group, self.rows, self.stop = group, rows, stop
        self._first_key, self._next = first_key, 0
        self.replays: list[Callable[[], None]] = []
        self.sums_gradients = False
        self.compiling = False
        self.is_applying = False
        self._total_rows: tf.Tensor | None = None
        self._last: tf.Tensor | None = None

    def __enter__(self) -> Step:
        self._outer, _local.step = current(), self
        self._graph = _current_graph()
        return self

    def __exit__(self, *exc: object) -> None:
        _local.step = self._outer

    def is_within_branch(self) -> bool:
        """Return whether the caller is traced within a ``tf.cond`` or ``tf.while_loop`` of the step."""
        graph = _current_graph()
        while graph is not None and graph is not self._graph:
            if type(graph).__name__ in _BRANCHES:
                return True
            graph = getattr(graph, "outer_graph", None)
        return False

    @property
    def weight(self) -> tf.Tensor:
        """float32 scalar: the weight of this worker's gradient."""
        return tf.ones([]) if self.sums_gradients else self.rows

    def key(self, count: int = 1) -> int:
        """Return the next collective's key, or the first of several."""
        if self.compiling:
            raise NeedsCollective
        if self._next + count > KEYS_OF_STEP:
            raise RuntimeError(f"A training step needs more than {KEYS_OF_STEP} keys for its collectives.")
        self._next += count
        return self._first_key + self._next - count

    def in_order(self, collective: Callable[[], tf.Tensor]) -> tf.Tensor:
        """Run a collective after the earlier collectives of the step.

        Workers of one host wait for each other inside an operation, which blocks a thread. With few threads, two such
        operations at the same time could deadlock.
        """
        if self.group.shared is None or tf.executing_eagerly():
            return collective()
        within = self._last is not None and self._last.graph is tf.compat.v1.get_default_graph()
        with tf.control_dependencies([self._last] if within else []):
            self._last = collective()
        return self._last

    def all_reduce(self, value: tf.Tensor, joined: Callable[[tf.Tensor], None] | None = None) -> tf.Tensor:
        """Sum a tensor of static shape over the workers; workers that join add zeros and call `joined` with the sum.

        Raises
        ------
        ValueError
            If the shape is not known when the step is traced.
        """
        if not value.shape.is_fully_defined():
            raise ValueError(f"A sum over the workers needs a tensor of static shape, got shape {value.shape}.")
        key, shape, dtype = self.key(), value.shape, value.dtype

        def join() -> None:
            total = self.in_order(lambda: self.group.all_reduce(tf.zeros(shape, dtype), key))
            if joined is not None:
                joined(total)

        self.replays.append(join)
        return self.in_order(lambda: self.group.all_reduce(value, key))

    def all_sum_with_gradient(self, value: tf.Tensor, joined: Callable[[tf.Tensor], None] | None = None) -> tf.Tensor:
        """Sum a tensor over the workers; the gradient flows back to each worker's value.

        The optimizer weights each worker's gradient by `weight`, so the gradient is divided by it here.
        """

        @tf.custom_gradient
        def add(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            weight = tf.cast(self.weight, x.dtype)
            return self.all_reduce(x, joined), lambda dy: self.all_reduce(dy * weight) / weight

        return add(value)

    def total_rows(self) -> tf.Tensor:
        """Return the rows of all workers in this step, a float32 scalar."""
        if self._total_rows is None:
            self._total_rows = self.all_reduce(self.rows)
        return self._total_rows

    def gather(self, value: Any) -> tf.Tensor:
        """Concatenate the rows of all workers, in order of rank; the gradient flows to this worker's rows.

        Apply `share` to a number that is computed from the result, because its gradient covers only this worker's rows.
        """
        original = tf.convert_to_tensor(value)
        if original.dtype == tf.string:
            raise NotImplementedError("A loss or metric over the rows of all workers does not support strings.")
        value = _summable(original)
        inner, rank = value.shape[1:], self.group.rank
        size_key, key = self.key(), self.key(VARYING_KEYS)

        def sizes(rows: tf.Tensor, dims: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Return the number of rows of each worker, and the shape of a row."""
            mine = tf.one_hot(rank, self.group.size, rows, 0, dtype=tf.int32)
            both = self.in_order(lambda: self.group.all_reduce(tf.concat([mine, dims], 0), size_key, "Max"))
            return both[: self.group.size], both[self.group.size :]

        def join() -> None:
            counts, dims = sizes(tf.constant(0), tf.zeros([len(inner)], tf.int32))
            empty = tf.zeros([tf.reduce_sum(counts) * tf.reduce_prod(dims)], value.dtype)
            self.in_order(lambda: self.group.all_reduce_varying(empty, key))

        self.replays.append(join)
        counts, _ = sizes(tf.shape(value)[0], tf.shape(value)[1:])
        before, after = tf.reduce_sum(counts[:rank]), tf.reduce_sum(counts[rank + 1 :])
        padding = tf.concat([[[before, after]], tf.zeros([len(inner), 2], tf.int32)], 0)

        @tf.custom_gradient
        def gathered(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            padded = tf.pad(x, padding)
            everyone = self.in_order(lambda: self.group.all_reduce_varying(tf.reshape(padded, [-1]), key))
            return tf.reshape(everyone, tf.shape(padded)), lambda dy: dy[before : before + tf.shape(x)[0]]

        result = gathered(value)
        result.set_shape([None, *inner])
        return tf.cast(result, original.dtype)

    def share(self, value: tf.Tensor) -> tf.Tensor:
        """Scale the gradient of a number that all workers compute from all rows; its value does not change."""
        factor = tf.cast(self.total_rows() / self.rows, value.dtype)
        return value * factor + tf.stop_gradient(value - value * factor)

    def replay(self, replays: list[Callable[[], None]]) -> None:
        """Run the collectives and updates of a step without rows."""
        self._last = None
        with self:
            for replay in replays:
                replay()


def _summable(value: tf.Tensor) -> tf.Tensor:
    if value.dtype in SUMMED:
        return value
    if value.dtype.is_floating:
        return tf.cast(value, tf.float32)
    return tf.cast(value, tf.int64 if value.dtype.size > 2 else tf.int32)


class WorkerContext(tf.distribute.ReplicaContext):  # type: ignore[misc]
    """The replica context within a step; its ``all_reduce`` is over all workers.

    ``tf.distribute.get_replica_context()`` returns it.

    Parameters
    ----------
    step
        The step.
    """

    def __init__(self, step: Step) -> None:
        super().__init__(tf.distribute.get_strategy(), replica_id_in_sync_group=0)
        self._step = step

    def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
        """Reduce a structure of tensors over the workers; workers that join add zeros."""
        if self._step.group.size == 1 or self._step.is_applying:
            return value
        mean = str(getattr(reduce_op, "value", reduce_op)).upper() == "MEAN"

        def one(t: Any) -> Any:
            t = tf.convert_to_tensor(t)
            total = tf.cast(self._step.all_sum_with_gradient(_summable(t)), t.dtype)
            return total / tf.cast(self._step.group.size, t.dtype) if mean else total

        return tf.nest.map_structure(one, value)


def has_rows(batch: Any) -> bool:
    """Return whether a structure contains a tensor with rows."""
    return any(getattr(getattr(t, "shape", None), "rank", 0) != 0 for t in tf.nest.flatten(batch) if t is not None)


def rows_of(batch: Any) -> tf.Tensor:
    """Return the number of rows of a batch, an int32 scalar.

    Raises
    ------
    ValueError
        If the batch holds no tensor that has rows.
    """
    for leaf in tf.nest.flatten(batch):
        if isinstance(leaf, tf.RaggedTensor):
            return tf.cast(leaf.nrows(), tf.int32)
        if isinstance(leaf, tf.SparseTensor):
            return tf.cast(leaf.dense_shape[0], tf.int32)
        if leaf is not None and getattr(leaf, "shape", None) is not None and leaf.shape.rank != 0:
            return tf.shape(leaf)[0]
    raise ValueError("The batch has no tensor with rows.")


class SynchronizedFunction:
    """A function of a batch that all workers call together, some of them with 0 rows.

    Parameters
    ----------
    function
        Called with the batch, or its parts; returns a structure of tensors and numbers, or ``None``.
    group
        The workers.
    joined
        Called with zeros in the structure of the other workers' results; returns the result of a worker that joins.
    stop
        The worker's request to stop, which is sent to the other workers.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        group: Group,
        joined: Callable[[Any], Any] | None = None,
        stop: StopWish | None = None,
    ) -> None:
        self._stop = stop
        self.function, self._group, self._joined = function, group, joined
        self._noted: dict[str, _Noted] = {}

    def __call__(self, *batch: Any, **more: Any) -> Any:
        """Run the step, or join it if the batch has 0 rows; without a batch, all workers run it."""
        noted = self._noted_of(batch, more)
        if not has_rows((batch, more)):
            return self._run(noted, self._step(noted, tf.constant(1)), batch, more)
        count = rows_of((batch, more))
        step = self._step(noted, count)
        if not tf.inside_function():
            if noted.replays is None:
                self.note(*tf.nest.map_structure(_spec_of, batch))
            return self._run(noted, step, batch, more) if int(count) > 0 else self._join(noted, step)
        return tf.cond(count > 0, lambda: self._run(noted, step, batch, more), lambda: self._join(noted, step))

    def _noted_of(self, batch: Any, more: Any) -> _Noted:
        """Return the record for batches of this kind; each kind has its own collectives and keys."""
        kind = str(tf.nest.map_structure(_kind_of, (batch, more)))
        if kind not in self._noted:
            self._noted[kind] = _Noted(self._group.new_keys())
        return self._noted[kind]

    def _step(self, noted: _Noted, rows: tf.Tensor) -> Step:
        return Step(self._group, noted.first_key, tf.cast(rows, tf.float32), self._stop)

    def is_noted(self, *batch_spec: Any) -> bool:
        """Return whether the collectives of the function are recorded for batches like these."""
        return self._noted_of(batch_spec, {}).replays is not None

    def note(self, *batch_spec: Any) -> None:
        """Trace the function to record its collectives, for a worker that joins eagerly before it has run the step."""

        @tf.function(autograph=False)
        def traced(*batch: Any) -> None:
            noted = self._noted_of(batch, {})
            self._run(noted, self._step(noted, rows_of(batch)), batch, {})

        traced.get_concrete_function(*batch_spec)

    def _run(self, noted: _Noted, step: Step, batch: tuple[Any, ...], more: dict[str, Any]) -> Any:
        with step, WorkerContext(step):
            result = self.function(*batch, **more)
        noted.replays = step.replays
        result = tf.nest.map_structure(_as_tensor, result)
        noted.like = tf.nest.map_structure(_zeros_like, result)
        return result

    def _join(self, noted: _Noted, step: Step) -> Any:
        assert noted.replays is not None
        step.replay(noted.replays)
        zeros = tf.nest.map_structure(lambda make: make and make(), noted.like)
        if self._joined is None:
            return zeros
        with step:
            return self._joined(zeros)


@dataclass
class _Noted:
    """The record of a function that was run or traced: its collectives and the structure of its result."""

    first_key: int
    replays: list[Callable[[], None]] | None = None
    like: Any = None


def _kind_of(value: Any) -> str:
    """Describe a part of a batch by properties that are equal on all workers and in graphs, so not by its shape."""
    if getattr(value, "dtype", None) is None:
        return type(value).__name__
    sparse, ragged = (tf.SparseTensor, tf.SparseTensorSpec), (tf.RaggedTensor, tf.RaggedTensorSpec)
    layout = "sparse" if isinstance(value, sparse) else "ragged" if isinstance(value, ragged) else "dense"
    return f"{layout} {tf.as_dtype(value.dtype).name} {tf.TensorShape(value.shape).rank}"


def _spec_of(value: Any) -> Any:
    """Return the spec of batches like this one, with any number of rows."""
    if value is None:
        return None
    spec = tf.type_spec_from_value(value)
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype) if isinstance(spec, tf.TensorSpec) else spec


def _as_tensor(value: Any) -> Any:
    return value if value is None or isinstance(value, tf.RaggedTensor) else tf.convert_to_tensor(value)


def _zeros_like(value: Any) -> Callable[[], tf.Tensor] | None:
    if value is None:
        return None
    shape, dtype = [d or 0 for d in value.shape], value.dtype
    return lambda: tf.zeros(shape, dtype)
