"""Metrics over the rows of all workers: their state variables are summed when an epoch or an evaluation ends.

This is exact for every metric with additive state, and all metrics of Keras have additive state. Two kinds need more in
a step. A mean of numbers for whole batches weights each number by its share of the rows of all workers. A function that
computes one number from a batch gets the rows of all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.node.keras.collectives import Group
from tfspark.node.keras.losses import gathered, is_by_row, mask_of
from tfspark.node.keras.replacing import replaced
from tfspark.node.keras.step import current


def leaves(metrics: Sequence[Any]) -> Iterator[Any]:
    """Yield all metrics, including those inside containers of metrics."""
    for metric in metrics:
        inner = getattr(metric, "metrics", None)
        if isinstance(inner, (list, tuple)):
            yield from leaves(inner)
        else:
            yield metric


def watch_metrics(metrics: Sequence[Any]) -> None:
    """Make mean metrics, in steps, weight each scalar by its share of the rows of all workers.

    A class that overrides ``update_state``, such as ``RootMeanSquaredError``, is unchanged: its values are per row.
    """
    wrappers = {keras.metrics.MeanMetricWrapper: _of_function, keras.metrics.Mean: _of_values}
    for metric in leaves(metrics):
        if hasattr(metric.update_state, "_tfspark_watched"):
            continue
        wrap = next((w for cls, w in wrappers.items() if type(metric).update_state is cls.update_state), None)
        if wrap is not None:
            metric.update_state = wrap(metric, metric.update_state)
            metric.update_state._tfspark_watched = True


def _of_values(metric: Any, update: Callable[..., Any]) -> Callable[..., Any]:
    def update_state(values: Any, sample_weight: Any = None) -> Any:
        step = current()
        if step is not None and step.group.size > 1 and sample_weight is None:
            values = tf.convert_to_tensor(values)
            if values.shape.rank == 0:
                sample_weight = step.rows / step.total_rows()
        return update(values, sample_weight=sample_weight)

    return update_state


def _of_function(metric: Any, update: Callable[..., Any]) -> Callable[..., Any]:
    def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        step = current()
        if step is None or step.group.size == 1:
            return update(y_true, y_pred, sample_weight=sample_weight)
        function = metric._fn
        values = tf.convert_to_tensor(function(y_true, y_pred, **metric._fn_kwargs))
        if not is_by_row(values, y_pred):
            values = function(*gathered(step, y_true, y_pred), **metric._fn_kwargs)
            if sample_weight is None and mask_of(y_pred) is None:
                sample_weight = step.rows / step.total_rows()
        metric._fn = lambda *_, **__: values
        try:
            return update(y_true, y_pred, sample_weight=sample_weight)
        finally:
            metric._fn = function

    return update_state


@contextmanager
def noted_results(metrics: Sequence[Any]) -> Iterator[list[tuple[str, Any, Callable[[], Any]]]]:
    """Yield a list to which each result that is read is added: its name, the result, and a function that reads it."""
    results: list[tuple[str, Any, Callable[[], Any]]] = []

    def noting(metric: Any, read: Callable[[], Any]) -> Callable[[], Any]:
        def result() -> Any:
            found = read()
            results.append((metric.name, found, read))
            if isinstance(found, dict):
                results.extend((name, value, entry(read, name)) for name, value in found.items())
            return found

        return result

    def entry(read: Callable[[], Any], name: str) -> Callable[[], Any]:
        return lambda: read()[name]

    # A metric of a layer within a layer is listed twice.
    with ExitStack() as stack:
        for metric in {id(m): m for m in metrics}.values():
            stack.enter_context(replaced(metric, "result", noting(metric, metric.result)))
        yield results


def sum_over_workers(metrics: Sequence[Any], group: Group, key: int, result: Callable[[], Any]) -> Any:
    """Return `result()`, computed from the metric states summed over all workers; the states themselves do not change.

    Raises
    ------
    ValueError
        If the workers' metrics differ.
    """
    variables = [v.value for v in {id(v): v for m in leaves(metrics) for v in m.variables}.values()]
    if group.size == 1 or not variables:
        return result()
    mine = [v.numpy() for v in variables]
    flat = np.concatenate([np.ravel(v).astype(np.float64) for v in mine])
    everyone = group.add(flat, key)
    parts = np.split(everyone, np.cumsum([v.size for v in mine])[:-1])
    for variable, part in zip(variables, parts, strict=True):
        variable.assign(tf.constant(part.reshape(variable.shape).astype(variable.dtype.as_numpy_dtype)))
    try:
        return tf.nest.map_structure(np.asarray, result())
    finally:
        for variable, value in zip(variables, mine, strict=True):
            variable.assign(value)
