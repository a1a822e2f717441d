"""From a fed batch to what Keras takes. Runs in nodes, as graph code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.ml.plan import BatchPlan
from tfspark.node.keras.inputs import known_inputs
from tfspark.node.layout import graph


def batch_function(model: Any, plan: BatchPlan) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return the function that makes ``(x, y)`` or ``(x, y, sample_weight)`` of a batch of columns.

    Raises
    ------
    ConfigurationError
        If the plan does not fit the inputs and outputs of the model.
    """
    inputs = {t.name: t for t in model.inputs} if known_inputs(model) else {}
    columns = _columns(plan.inputs, list(inputs), "featuresCols", "inputs")
    targets = _columns(plan.targets, output_names(model), "labelCols", "outputs")

    def make(batch: dict[str, Any]) -> tuple[Any, ...]:
        x = {name: as_input(batch[c], inputs.get(name), c) for name, c in columns.items()}
        y = {name: _dense(batch[c]) for name, c in targets.items()}
        weight = (tf.cast(batch[plan.weight], tf.float32),) if plan.weight else ()
        return (
            _arranged(model, x, plan.inputs, "_inputs_struct"),
            _arranged(model, y, plan.targets, "_outputs_struct"),
            *weight,
        )

    return graph(make)


def _arranged(model: Any, values: dict[str, Any], columns: str | Mapping[str, str], struct: str) -> Any:
    """Return values as Keras takes them: the only one alone, unless the model wants, or may want, a dict."""
    wants_dict = isinstance(getattr(model, struct, None), dict)
    by_name = not isinstance(columns, str) and not known_inputs(model)
    return next(iter(values.values())) if len(values) == 1 and not wants_dict and not by_name else values


def output_names(model: Any) -> list[str]:
    """Return the names of a model's outputs: keys if it gives a dict, else of the layers; none if it does not say."""
    if not known_inputs(model):
        return []
    outputs = getattr(model, "_outputs_struct", None)
    return list(outputs) if isinstance(outputs, dict) else list(getattr(model, "output_names", []))


def _columns(columns: str | Mapping[str, str], names: list[str], param: str, what: str) -> dict[str, str]:
    if isinstance(columns, str):
        if len(names) > 1:
            raise ConfigurationError(
                f"The model has the {what} {names}, but one column was named, {columns!r}.",
                hint=f"Say which column is which: {param}={{name: column}}.",
            )
        return {names[0] if names else "": columns}
    if names and (unknown := sorted(set(columns) - set(names))):
        raise ConfigurationError(f"{param} names {unknown}, which are no {what} of the model.", hint=f"It has {names}.")
    if names and param == "featuresCols" and (missing := sorted(set(names) - set(columns))):
        raise ConfigurationError(f"No column is named for the inputs {missing} of the model.", hint=f"Use {param}.")
    return dict(columns)


def as_input(value: Any, wanted: Any, column: str) -> Any:
    """Give a column the shape and dtype of the input that it becomes.

    Raises
    ------
    ConfigurationError
        If that cannot be.
    """
    value = _dense(value)
    if wanted is None:
        return value if value.shape.rank != 1 else tf.expand_dims(value, 1)
    if (value.dtype == tf.string) != (wanted.dtype == "string"):
        raise ConfigurationError(
            f"Input {wanted.name!r} takes {wanted.dtype}, but column {column!r} holds {value.dtype.name}."
        )
    row = tuple(wanted.shape[1:])
    if None not in row:
        size = value.shape[1:].num_elements()
        if size is not None and size != math.prod(row):
            raise ConfigurationError(
                f"Input {wanted.name!r} takes rows of shape {row}, but column {column!r} holds {size} values a row."
            )
        value = tf.reshape(value, [-1, *row])
    elif value.shape.rank is not None:
        for _ in range(len(row) + 1 - value.shape.rank):
            value = tf.expand_dims(value, -1)
    return value if wanted.dtype == "string" else tf.cast(value, wanted.dtype)


def _dense(value: Any) -> Any:
    return value.to_tensor() if isinstance(value, tf.RaggedTensor) else value
