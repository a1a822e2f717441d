"""``ctx.strategy()`` of the engine: one local replica; objects made in its scope are synchronized."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfspark.node.keras.metrics import sum_over_workers, watch_metrics
from tfspark.node.keras.step import SynchronizedFunction, current

if TYPE_CHECKING:
    from tfspark.node.keras.engine import Engine


class LocalStrategy(tf.distribute.Strategy):  # type: ignore[misc]
    """TensorFlow's default strategy, with steps that all workers run together.

    Parameters
    ----------
    engine
        The engine of this process.
    """

    def __init__(self, engine: Engine) -> None:
        self._default = tf.distribute.get_strategy()
        super().__init__(self._default.extended)
        self._engine = engine
        self._by_place: dict[Any, SynchronizedFunction] = {}

    @contextmanager
    def scope(self) -> Iterator[LocalStrategy]:  # type: ignore[override]
        """Synchronize the models, optimizers and metrics that are made in this scope."""
        made: list[Any] = []
        with _noting(keras.Model, made), _noting(keras.optimizers.Optimizer, made), _noting(keras.Metric, made):
            yield self
        metrics = [o for o in made if isinstance(o, keras.Metric)]
        self._engine.synchronize(*(o for o in made if o not in metrics))
        if self._engine.group.size > 1:
            watch_metrics(metrics)
            for metric in metrics:
                self._sum_when_read(metric)

    def _sum_when_read(self, metric: Any) -> None:
        """Make ``metric.result()`` return the result over all workers, outside of steps; all workers must call it."""
        result, key = metric.result, self._engine.group.new_keys()

        def over_all() -> Any:
            if current() is not None or not tf.executing_eagerly():
                return result()
            numbers = sum_over_workers([metric], self._engine.group, key, lambda: {"": result()})
            return numbers[""]

        metric.result = over_all

    def run(self, fn: Callable[..., Any], args: Any = (), kwargs: Any = None, options: Any = None) -> Any:
        """Run a step on a batch; a worker whose batch has 0 rows joins the other workers without calling `fn`.

        Pass the same function in each call, or a function that is defined at the same place in the program.
        """
        if current() is not None or self._engine.group.size == 1:
            return self._default.run(fn, args, kwargs, options)
        with tf.init_scope():
            self._engine.align()
        return self._synchronized(fn)(*args, **(kwargs or {}))

    def _synchronized(self, fn: Callable[..., Any]) -> SynchronizedFunction:
        # A nested function is a new object in each call of the outer function, but its code is the same object.
        place = getattr(fn, "__code__", fn)
        if place not in self._by_place:
            self._by_place[place] = SynchronizedFunction(fn, self._engine.group)
        found = self._by_place[place]
        found.function = fn
        return found

    def distribute_datasets_from_function(self, dataset_fn: Callable[..., Any], options: Any = None) -> Any:
        """Return this worker's batches, and batches of 0 rows until all workers have read their batches."""
        return self._engine.distribute(dataset_fn(tf.distribute.InputContext()))

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Return this worker's batches, and batches of 0 rows until all workers have read their batches."""
        return self._engine.distribute(dataset)

    def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
        """Reduce a value over all workers; all workers must call it.

        With an `axis`, reduce over this axis too; each row has the same weight.
        """
        group = self._engine.group
        if current() is not None or group.size == 1:
            return self._default.reduce(reduce_op, value, axis)
        mean = str(getattr(reduce_op, "value", reduce_op)).upper() == "MEAN"
        key = self._reduce_key

        def one(t: Any) -> Any:
            t = tf.convert_to_tensor(t)
            summed = t if axis is None else tf.reduce_sum(t, axis)
            count = 1 if axis is None else tf.shape(t)[axis]
            total = group.all_reduce(tf.cast(summed, tf.float64), key)
            if mean:
                total /= group.all_reduce(tf.cast(count, tf.float64), key + 1)
            return tf.cast(total, t.dtype)

        return tf.nest.map_structure(one, value)

    @functools.cached_property
    def _reduce_key(self) -> int:
        return self._engine.group.new_keys()


@contextmanager
def _noting(cls: Any, made: list[Any]) -> Iterator[None]:
    """Collect the objects of a class that are made in this context."""
    owner = next(c for c in cls.__mro__ if "__init__" in c.__dict__)
    original = owner.__init__

    @functools.wraps(original)
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if isinstance(self, cls) and not any(o is self for o in made):
            made.append(self)

    owner.__init__ = noting
    try:
        yield
    finally:
        owner.__init__ = original
