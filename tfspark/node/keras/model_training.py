"""The steps of one compiled model during a fit: all workers run them together.

`ModelTraining` also merges over the workers what Keras keeps outside of steps: weights at the start, moving statistics,
results of metrics, logs, and the wish to stop.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.node.keras.collectives import VARYING_KEYS, Group
from tfspark.node.keras.losses import noting_reduction, watch_losses, watch_regularizers
from tfspark.node.keras.metrics import noted_results, sum_over_workers, watch_metrics
from tfspark.node.keras.replacing import replaced
from tfspark.node.keras.state import (
    SharedState,
    differ_by_rank,
    refuse_stateful,
    seeds_of,
    share_adaptation,
    share_variables,
    take_longest,
    watch_normalization,
    weights_of,
)
from tfspark.node.keras.step import StopWish, SynchronizedFunction, current
from tfspark.node.keras.xla import Compiled
from tfspark.node.step_clock import StepClock

logger = logging.getLogger(__name__)

_WEIGHTS, _EPOCH, _END, _METRICS, _LOGS, _STOP, _SIZES, _ADAPTED, _ASSIGNED = range(9)
"""What the workers exchange outside of steps, by number; each exchange has its own keys."""


class ModelTraining:
    """The training and evaluation steps of a compiled model, which all workers run together.

    Parameters
    ----------
    model
        A compiled Keras model.
    group
        The workers.
    clock
        Measures the steps.
    """

    def __init__(self, model: Any, group: Group, clock: StepClock) -> None:
        self._model, self._clock = model, clock
        self._group = group
        self._compiled_as = self._compilation()
        self._key = group.new_keys()
        self._functions: dict[str, Any] = {}
        self._steps: dict[str, SynchronizedFunction] = {}
        self._last_logs: dict[str, Any] = {}
        self._last_kind = "train"
        self._results_of_logs: dict[str, dict[str, Callable[[], Any]]] = {}
        self._last_rows = tf.Variable(0.0, trainable=False)
        self._of_epoch = tf.Variable([0.0, 0.0], trainable=False, dtype=tf.float64)  # Rows and steps.
        self._state: SharedState | None = None
        self._stop = StopWish()
        self._evaluate: Callable[..., Any] | None = None

    def _key_of(self, what: int) -> int:
        return self._key + what * 2 * VARYING_KEYS

    def _compilation(self) -> tuple[Any, ...]:
        m = self._model
        return m.optimizer, m._compile_loss, m._compile_metrics, m._loss_tracker, m.run_eagerly, m.steps_per_execution

    def is_current(self) -> bool:
        """Return whether the model has not been compiled again."""
        return all(a is b for a, b in zip(self._compiled_as, self._compilation(), strict=True))

    def build(self, spec: Any) -> None:
        """Create all variables of the model, its metrics and its optimizer, for batches of this `spec`."""
        m = self._model
        if self._group.size > 1:
            refuse_stateful(m)
        try:
            m._symbolic_build(data_batch=tf.nest.map_structure(_one_row, spec))
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            # A model with its own training step, such as a GAN, may have a `call` that does not accept a batch.
            if not self._is_own("train_step"):
                raise
        if m.optimizer is not None and not m.optimizer.built and m.trainable_variables:
            m.optimizer.build(m.trainable_variables)
        self._watch()

    def build_by_step(self, spec: Any) -> None:
        """Trace the model's own training step to create the variables that only this step creates; call in `in_place`.

        All workers must have these variables before the chief's values are copied.
        """
        layers = self._model._flatten_layers(include_self=False)
        is_built = all(layer.built for layer in layers) and self._has_losses()
        if self._group.size > 1 and self._is_own("train_step") and not is_built:
            self._steps["train"].note(spec)
            self._watch()

    def _has_losses(self) -> bool:
        losses = self._model._compile_loss
        return losses is None or losses.built

    def _watch(self) -> None:
        if self._has_losses() or not self._is_own("train_step"):
            watch_losses(self._model)
        watch_regularizers(self._model)
        watch_metrics(self._model.metrics)
        watch_normalization(self._model)

    def _is_own(self, step_name: str) -> bool:
        """Return whether the model's class overrides this step."""
        return getattr(type(self._model), step_name) is not getattr(keras.Model, step_name)

    def begin(self) -> None:
        """Copy the chief's weights, optimizer and state to all workers; then set different seeds on each worker.

        Raises
        ------
        ConfigurationError
            If the workers' models differ.
        """
        m = self._model
        if self._group.size > 1:
            self._group.meet()
            optimizer = [v.value for v in m.optimizer.variables] if m.optimizer is not None else []
            variables = {id(v): v for v in [*(v.value for v in m.variables), *optimizer]}
            share_variables(self._group, list(variables.values()), self._key_of(_WEIGHTS))
            share_adaptation(m, self._group, self._key_of(_ADAPTED))
            epoch = -1 if m._initial_epoch is None else m._initial_epoch
            agreed = self._group.add([epoch if self._group.rank == 0 else 0], self._key_of(_EPOCH))[0]
            m._initial_epoch = None if agreed < 0 else int(agreed)
            differ_by_rank(seeds_of(m), self._group.rank)
            self._stop.clear()
        self._state = SharedState(m, self._group, self._assigned())

    def _assigned(self) -> list[tf.Variable]:
        """Return the variables that a training step may assign itself: none if it is Keras' own."""
        return weights_of(self._model) if self._is_own("train_step") else []

    def begin_epoch(self) -> None:
        """Reset the counts of this worker's rows and steps."""
        self._of_epoch.assign([0.0, 0.0])

    def merge_state(self) -> None:
        """Merge the non-trainable state of the workers, such as moving statistics."""
        rows, steps = map(float, self._of_epoch.numpy())
        if self._state is not None:
            self._state.merge(rows)
        if self._group.size > 1 and (assigned := self._assigned()):
            take_longest(self._group, assigned, steps, self._key_of(_ASSIGNED))

    def agree_to_stop(self, *, now: bool = False) -> None:
        """End the fit of all workers if a callback on any worker has set ``stop_training``.

        The request is sent with the next step. With `now`, the workers exchange it at once.
        """
        if self._group.size == 1:
            return
        if self._model.stop_training:
            self._stop.wanted.assign(1.0)
        wanted = float(self._stop.wanted)
        agreed = self._group.add([wanted], self._key_of(_STOP))[0] if now else float(self._stop.agreed)
        self._model.stop_training = bool(agreed)

    def wait_for_all(self) -> None:
        """Wait until all workers have called this, so that the files of the chief are complete."""
        if self._group.size > 1:
            self._group.add([1.0], self._key_of(_END))

    @contextmanager
    def in_place(self, spec: Any) -> Iterator[Callable[..., Any]]:
        """Replace the model's training and evaluation steps by steps that all workers run together.

        Yields a function that evaluates over all workers. ``model.evaluate`` itself still evaluates this worker only,
        except for the validation in ``fit``.

        Parameters
        ----------
        spec
            ``element_spec`` of the dataset.
        """
        m = self._model
        if self._evaluate is not None:  # A callback calls evaluate within a fit.
            yield self._evaluate
            return
        own = {name: getattr(m, name) for name in ("train_function", "test_function")}
        result, compute_loss, evaluate = m.get_metrics_result, m.compute_loss, m.evaluate

        def evaluate_alone(*args: Any, **options: Any) -> Any:
            if options.get("_use_cached_eval_dataset"):
                return evaluate(*args, **options)
            together, m.test_function, m.get_metrics_result = m.test_function, own["test_function"], result
            try:
                return evaluate(*args, **options)
            finally:
                own["test_function"], m.test_function = m.test_function, together
                m.get_metrics_result = result_of_all

        def result_of_all() -> Any:
            return self._result(result)

        self._evaluate = evaluate
        with (
            replaced(m, "get_metrics_result", result_of_all),
            replaced(m, "compute_loss", noting_reduction(compute_loss)),
            replaced(m, "evaluate", evaluate_alone),
        ):
            try:
                for name in own:
                    setattr(m, name, self._function(name, spec))
                yield evaluate
            finally:
                self._evaluate = None
                for name, function in own.items():
                    setattr(m, name, function)

    def _result(self, result: Callable[[], Any]) -> Any:
        if current() is not None or not tf.executing_eagerly():
            return result()
        if self._group.size == 1:
            return result()
        of_logs = self._results_of_logs.get(self._last_kind, {})

        def results() -> tuple[Any, dict[str, Any]]:
            return result(), {key: read() for key, read in of_logs.items()}

        over_all, by_key = sum_over_workers(self._model.metrics, self._group, self._key_of(_METRICS), results)
        logs = self._last_logs
        if isinstance(logs, dict) and set(logs) != set(over_all):
            # If the keys of the logs are not those of the metrics, Keras returns the logs of the last step instead.
            logs.update(by_key_or_average(logs, by_key, self._average))
        return over_all

    def _average(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the mean of numbers and arrays of the last step, weighted by the rows of each worker.

        Arrays whose size differs by worker, such as one number for each row, are left out.
        """
        alike = self._group.are_equal([np.size(v) for v in values.values()], self._key_of(_SIZES))
        arrays = {k: np.asarray(v, np.float64) for (k, v), same in zip(values.items(), alike, strict=True) if same}
        rows = float(self._last_rows)
        flat = np.concatenate([[1.0], *(a.ravel() for a in arrays.values())]) * rows
        total, *sums = self._group.add(flat, self._key_of(_LOGS))
        parts = np.split(np.asarray(sums) / max(total, 1.0), np.cumsum([a.size for a in arrays.values()])[:-1])
        return {k: p.reshape(a.shape)[()] for (k, a), p in zip(arrays.items(), parts, strict=False)}

    def _function(self, name: str, spec: Any) -> Any:
        """Return the replacement of ``model.train_function`` or ``model.test_function``."""
        if name not in self._functions:
            self._functions[name] = self._make(name.removesuffix("_function"))
        step = self._steps[name.removesuffix("_function")]
        if self._model.run_eagerly and self._group.size > 1 and not step.is_noted(spec):
            step.note(spec)
        return self._functions[name]

    def _make(self, kind: str) -> Any:
        m, step_name = self._model, f"{kind}_step"
        own, jit = getattr(m, step_name), m.jit_compile
        overridden = self._is_own(step_name)
        function = own
        if jit and overridden:
            logger.info("%s overrides %s, so the step runs without XLA", type(m).__name__, step_name)
        elif jit and not m.run_eagerly:
            function = Compiled(own)
        if self._group.size > 1:
            function = self._noting_metrics(kind, function)
        counting = _counting(function, self._last_rows, self._of_epoch if kind == "train" else None)
        self._steps[kind] = SynchronizedFunction(counting, self._group, self._joined_logs, self._stop)
        m.jit_compile = False  # XLA must not compile the collectives.
        saved = getattr(m, f"{kind}_function")
        try:
            setattr(m, f"{kind}_function", None)
            with replaced(m, step_name, self._steps[kind]):
                getattr(m, f"make_{kind}_function")()
            made = getattr(m, f"{kind}_function")
        finally:
            m.jit_compile = jit
            setattr(m, f"{kind}_function", saved)

        traced = False

        def run(iterator: Any) -> Any:
            nonlocal traced
            # The first call compiles, so the clock does not count it as a step.
            with self._clock.step() if traced else contextlib.nullcontext():
                self._last_logs = made(iterator)
            traced, self._last_kind = True, kind
            return self._last_logs

        return run

    def _noting_metrics(self, kind: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """Note which logs of a step are results of metrics, because their keys may be other than the names."""

        def run(*batch: Any) -> Any:
            with noted_results(self._model.metrics) as results:
                logs = step(*batch)
            if isinstance(logs, dict) and results:
                by_value = {key: read for key, value in logs.items() for _, result, read in results if result is value}
                # A tf.function within the step returns other tensors.
                by_name = {name: read for name, _, read in results if name in logs}
                self._results_of_logs[kind] = {**by_name, **by_value}
            return logs

        return run

    def _joined_logs(self, zeros: Any) -> Any:
        """Return the logs of a worker that joins: the current values of its metrics."""
        self._last_rows.assign(0.0)
        if not isinstance(zeros, dict):
            return zeros
        own = self._model.get_metrics_result()
        if set(own) != set(zeros):
            return zeros
        return tf.nest.map_structure(lambda mine, z: tf.cast(mine, z.dtype), {k: own[k] for k in zeros}, zeros)


def by_key_or_average(
    logs: dict[str, Any], by_key: dict[str, Any], average: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return the logs of a step over all workers: the results of metrics, and the means of other numbers."""
    found = {k: by_key[k] for k in logs if k in by_key}
    # numpy has no kind of its own for bfloat16.
    numbers = {k: v for k, v in logs.items() if k not in found and np.asarray(v).dtype.kind not in "OSUc"}
    return {**found, **(average(numbers) if numbers else {})}


def _counting(function: Callable[..., Any], last_rows: tf.Variable, of_epoch: tf.Variable | None) -> Callable[..., Any]:
    """Count the rows of the last step, and the rows and the steps of an epoch."""

    def step(*batch: Any) -> Any:
        here = current()
        if here is not None:
            last_rows.assign(here.rows)
            if of_epoch is not None:
                of_epoch.assign_add([tf.cast(here.rows, of_epoch.dtype), 1.0])
        return function(*batch)

    return step


def _one_row(spec: Any) -> Any:
    from tfspark.node.keras.multi_worker_mirrored import example_of

    return example_of(spec)
