"""Converts a fed batch to the arguments of Keras; runs in nodes, as graph code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.ml.labels import in_range, label_ranges
from tfspark.ml.plan import BatchPlan
from tfspark.ml.value_checks import checked
from tfspark.node.keras.inputs import known_inputs
from tfspark.node.layout import graph
from tfspark.saved_models.masking import masked_values


def batch_function(model: Any, plan: BatchPlan) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return the function that converts a batch of columns to ``(x, y)`` or ``(x, y, sample_weight)``.

    Raises
    ------
    ConfigurationError
        If the plan does not fit the inputs and outputs of the model, or the classes of a label do not fit its output.
    """
    inputs = {t.name: t for t in model.inputs} if known_inputs(model) else {}
    columns = _columns(plan.inputs, list(inputs), "featuresCols", "inputs")
    targets = _columns(plan.targets, output_names(model), "labelCols", "outputs")
    masks = masked_values(model)
    padding = {name: plan.padding.get(c, masks.get(name)) for name, c in columns.items()}
    ranges = label_ranges(model, targets, _output_widths(model), plan.classes) if model.compiled else {}

    def labels(name: str, column: str, batch: dict[str, Any]) -> Any:
        value = _dense(batch[column])
        return in_range(value, ranges[name], column) if name in ranges else value

    def make(batch: dict[str, Any]) -> tuple[Any, ...]:
        x = {name: as_input(batch[c], inputs.get(name), c, padding[name]) for name, c in columns.items()}
        y = {name: labels(name, c, batch) for name, c in targets.items()}
        weight = (tf.cast(batch[plan.weight], tf.float32),) if plan.weight else ()
        return (
            _arranged(model, x, plan.inputs, "_inputs_struct"),
            _arranged(model, y, plan.targets, "_outputs_struct"),
            *weight,
        )

    return graph(make)


def open_columns(model: Any, plan: BatchPlan) -> list[str]:
    """Return the columns of inputs with an open dimension: the arrays of these columns may have any length."""
    if not known_inputs(model):
        return []
    columns = _columns(plan.inputs, [t.name for t in model.inputs], "featuresCols", "inputs")
    return [columns[t.name] for t in model.inputs if None in t.shape[1:]]


def _arranged(model: Any, values: dict[str, Any], columns: str | Mapping[str, str], struct: str) -> Any:
    """Return values in the form that Keras takes: a single value alone, unless the model takes or may take a dict."""
    wants_dict = isinstance(getattr(model, struct, None), dict)
    by_name = not isinstance(columns, str) and not known_inputs(model)
    return next(iter(values.values())) if len(values) == 1 and not wants_dict and not by_name else values


def output_names(model: Any) -> list[str]:
    """Return the names of a model's outputs: the keys of its dict, else names of layers; empty if they are unknown."""
    if not known_inputs(model):
        return []
    outputs = getattr(model, "_outputs_struct", None)
    return list(outputs) if isinstance(outputs, dict) else list(getattr(model, "output_names", []))


def _output_widths(model: Any) -> dict[str, int | None]:
    """Return the size of the last dimension of each output, by name; a single output without a name is ``""``."""
    if not known_inputs(model):
        return {}
    struct = getattr(model, "_outputs_struct", None)
    named = struct if isinstance(struct, dict) else zip(output_names(model) or [""], model.outputs, strict=False)
    return {name: t.shape[-1] if len(t.shape) > 1 else None for name, t in dict(named).items()}


def _columns(columns: str | Mapping[str, str], names: list[str], param: str, what: str) -> dict[str, str]:
    if isinstance(columns, str):
        if len(names) > 1:
            raise ConfigurationError(
                f"The model has the {what} {names}, but only one column was given, {columns!r}.",
                hint=f"Map each to a column: {param}={{name: column}}.",
            )
        return {names[0] if names else "": columns}
    if names and (unknown := sorted(set(columns) - set(names))):
        raise ConfigurationError(f"{param} refers to unknown {what} {unknown}; the model has {names}.")
    if names and param == "featuresCols" and (missing := sorted(set(names) - set(columns))):
        raise ConfigurationError(f"The inputs {missing} of the model have no column.", hint=f"Use {param}.")
    return dict(columns)


def as_input(value: Any, wanted: Any, column: str, padding: Any = None) -> Any:
    """Convert a column to the shape and dtype of its input.

    Parameters
    ----------
    padding
        The value with which rows of different lengths are padded; by default 0, or an empty string.

    Raises
    ------
    ConfigurationError
        If the column cannot be converted.
    """
    fixed = wanted is not None and None not in wanted.shape[1:]
    if fixed and isinstance(value, tf.RaggedTensor):
        value = _full_rows(value, wanted, column)
    elif isinstance(value, tf.RaggedTensor) and padding is not None:
        if value.dtype != tf.string and wanted is not None:
            # The dtype of the column may not be able to hold the masked value.
            value = tf.cast(value, wanted.dtype)
        value = value.to_tensor(default_value=tf.cast(padding, value.dtype))
    value = _dense(value)
    if wanted is None:
        return value if value.shape.rank != 1 else tf.expand_dims(value, 1)
    if (value.dtype == tf.string) != (wanted.dtype == "string"):
        raise ConfigurationError(
            f"Input {wanted.name!r} takes {wanted.dtype}, but column {column!r} holds {value.dtype.name}."
        )
    row = tuple(wanted.shape[1:])
    if fixed:
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


def _full_rows(value: tf.RaggedTensor, wanted: Any, column: str) -> tf.Tensor:
    """Return a ragged column as rows of the input's fixed shape; the graph fails if a row has another shape."""
    row = tuple(wanted.shape[1:])
    dense = value.to_tensor()
    longest = tf.reduce_prod(tf.shape(dense)[1:])
    full = (longest == math.prod(row)) & (tf.size(value.flat_values) == tf.size(dense))
    text = f"Input {wanted.name!r} takes rows of shape {row}, but column {column!r} holds arrays of other lengths."
    hint = "Cut or pad the arrays in Spark, or leave the length of the input open."
    return tf.reshape(checked(dense, full | (value.nrows() == 0), [text], hint), [-1, *row])


def _dense(value: Any) -> Any:
    return value.to_tensor() if isinstance(value, tf.RaggedTensor) else value
