"""``Model.fit`` on several workers.

`guard` replaces ``Model.fit`` in this process; the engine replaces ``Optimizer.apply``, and no other function of
Keras. Callbacks then write files on the chief only, synchronized models train with the engine, and other models cannot
train on fed rows, because each worker has different rows.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.node.dataset import Steps
from tfspark.node.keras.engine import Engine
from tfspark.node.keras.model_training import ModelTraining
from tfspark.node.keras.writing import flat, only_chief_writes

DEFAULT_BATCH_ROWS = 32
"""The default batch size of Keras."""

_local = threading.local()


def guard(is_chief: bool, engine: Engine | None = None) -> None:
    """Replace ``Model.fit`` in this process."""
    original = getattr(keras.Model.fit, "__wrapped__", keras.Model.fit)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_local, "inside", False):
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        given.pop("self")
        _local.inside = True
        try:
            with only_chief_writes(flat(given.get("callbacks")), is_chief):
                if engine is not None and engine.is_synchronized(self):
                    return _fit(engine, self, original, **given)
                if engine is not None and engine.group.size > 1:
                    given["callbacks"] = _added(given.get("callbacks"), self, last=_RefuseFedRows(engine))
                return original(self, **given)
        finally:
            _local.inside = False

    keras.Model.fit = fit


def _fit(
    engine: Engine,
    model: Any,
    original: Callable[..., Any],
    *,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    shuffle: Any = True,
    class_weight: Any = None,
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    validation_batch_size: int | None = None,
    **others: Any,
) -> Any:
    if validation_split:
        raise ConfigurationError(
            "validation_split does not work with several workers.",
            hint="Pass validation_data: arrays, or a dataset with this worker's share of the rows.",
        )
    if not model.compiled:
        raise ConfigurationError("The model is not compiled.", hint="Call model.compile(optimizer=..., loss=...).")
    adapter = None
    if not isinstance(x, tf.data.Dataset):
        adapter = _adapter(x, y, sample_weight, batch_size, shuffle)
        x = adapter.get_tf_dataset()
    dataset = engine.distribute(x)
    validation = _validation(engine, validation_data, validation_batch_size or batch_size or DEFAULT_BATCH_ROWS)
    training = engine.training(model)
    training.build(dataset.element_spec)
    with of_unknown_length(), engine.clock.fit(), training.in_place(dataset.element_spec):
        training.build_by_step(dataset.element_spec)
        history = original(
            model,
            dataset,
            class_weight=class_weight,
            callbacks=_added(callbacks, model, first=_MergeState(training, adapter), last=_Meet(training)),
            validation_data=validation,
            **others,
        )
    engine.note_fit(model)
    return history


def _adapter(x: Any, y: Any, sample_weight: Any, batch_size: int | None, shuffle: Any) -> Any:
    """Return Keras' own adapter of data that is no dataset."""
    from keras.src.trainers.data_adapters import get_data_adapter

    return get_data_adapter(
        x=x, y=y, sample_weight=sample_weight, batch_size=batch_size, shuffle=shuffle, class_weight=None
    )


def _validation(engine: Engine, data: Any, batch_size: int) -> Any:
    if data is None or isinstance(data, tf.data.Dataset):
        return engine.distribute(data)
    if not isinstance(data, (tuple, list)):
        return _refuse_validation(data)
    arrays = tuple(part for part in data if part is not None)
    size, rank = engine.group.size, engine.group.rank
    rows = len(tf.nest.flatten(arrays)[0])
    mine = tf.nest.map_structure(lambda a: a[rank::size], arrays)
    dataset = tf.data.Dataset.from_tensor_slices(mine).batch(batch_size)
    counts = [len(range(i, rows, size)) for i in range(size)]
    dataset._tfspark_steps = Steps(batch_size, False, lambda: (counts[rank], counts))
    return engine.distribute(dataset)


def _refuse_validation(data: Any) -> Any:
    raise ConfigurationError(
        f"validation_data must be arrays (x, y) or a tf.data.Dataset on several workers, got {type(data).__name__}."
    )


def _added(callbacks: Any, model: Any, *, first: Any = None, last: Any) -> Any:
    """Return the callbacks with `first` before and `last` after them."""
    own = [c for c in (first, last) if c is not None]
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*own[:-1], *flat(callbacks), last]
    for callback in own:
        callback.set_model(model)
    kept = [c for c in callbacks.callbacks if not isinstance(c, (_MergeState, _Meet, _RefuseFedRows))]
    callbacks.callbacks[:] = [*own[:-1], *kept, last]
    return callbacks


def evaluate(engine: Engine, model: Any, dataset: tf.data.Dataset) -> dict[str, Any]:
    """Run ``model.evaluate`` on the rows of each worker and return the metrics over all rows."""
    dataset = engine.distribute(dataset)
    training = engine.training(model)
    training.build(dataset.element_spec)
    with of_unknown_length(), training.in_place(dataset.element_spec) as evaluate_together:
        return as_numbers(evaluate_together(dataset, verbose=0, return_dict=True))


def as_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Return metrics as Python numbers, and vector metrics as lists."""
    return {k: as_number(v) for k, v in values.items()}


def as_number(value: Any) -> Any:
    """Return the value of a metric as a Python number or a list of numbers."""
    if isinstance(value, dict):
        return {k: as_number(v) for k, v in value.items()}
    return np.asarray(value, dtype=np.float64).tolist()


@contextmanager
def of_unknown_length() -> Iterator[None]:
    """Silence Keras' warnings about datasets of unknown length: a fed dataset's length is not known in advance."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        warnings.filterwarnings("ignore", message="`shuffle=True` was passed")
        yield


class _MergeState(keras.callbacks.Callback):
    """The first callback: merges state, so that the other callbacks see and save the same state on all workers.

    It also tells the data about epochs, because Keras knows only the dataset that was made of them.
    """

    def __init__(self, training: ModelTraining, adapter: Any) -> None:
        super().__init__()
        self._training, self._adapter = training, adapter

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._training.begin_epoch()
        if self._adapter is not None:
            self._adapter.on_epoch_begin()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._training.merge_state()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._training.merge_state()
        if self._adapter is not None:
            self._adapter.on_epoch_end()


class _Meet(keras.callbacks.Callback):
    """The last callback: runs after the others, which may have restored weights or written files on the chief."""

    def __init__(self, training: ModelTraining) -> None:
        super().__init__()
        self._training = training

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._training.begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._training.agree_to_stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._training.agree_to_stop(now=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._training.wait_for_all()


class _RefuseFedRows(keras.callbacks.Callback):
    """Ends a fit with an error after its first step if the workers' weights would diverge."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._engine.refuse(self.model.optimizer)
