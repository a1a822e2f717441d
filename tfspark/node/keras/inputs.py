"""Maps the columns of a fed batch to the inputs of a Keras model by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.node.layout import graph


def known_inputs(model: Any) -> bool:
    """Return whether the inputs of a model are known, as for Functional and built Sequential models."""
    try:
        return bool(model.inputs)
    except (AttributeError, ValueError):
        return False


def input_names(model: Any) -> list[str]:
    """Return the columns that a model takes: the keys of its input dict, or its input names; empty if unknown."""
    if not known_inputs(model):
        return []
    struct = getattr(model, "_inputs_struct", None)
    if isinstance(struct, dict):
        return [str(k) for k in struct]
    return [str(t.name) for t in model.inputs]


def columns_for(model: Any, features: Sequence[str]) -> list[str] | None:
    """Return the fed columns that a model takes; ``None`` for all columns.

    If the model has one input and one column is fed, their names need not be the same.

    Raises
    ------
    ConfigurationError
        If an input is not fed.
    """
    names = input_names(model)
    if not names or (len(names) == 1 and len(features) == 1):
        return None
    missing = [n for n in names if n not in features]
    if missing:
        raise ConfigurationError(
            f"No column is fed for the model inputs {missing}; the inputs are {names}, the fed columns are "
            f"{list(features)}.",
            hint="Name the inputs after the columns, or pass map_batch to rearrange the columns.",
        )
    return names


def as_inputs(model: Any) -> Callable[[Any], Any] | None:
    """Return a function from the features of a batch to the inputs of a model; ``None`` if the inputs are unknown.

    A dict of columns becomes the inputs, in the structure that the model was made with. A scalar becomes a vector of
    size 1 if the input has the shape ``(1,)``. Features that are not a dict stay unchanged.
    """
    if not known_inputs(model):
        return None
    struct = getattr(model, "_inputs_struct", None)
    names = input_names(model)
    inputs = dict(zip(names, (struct[k] for k in struct) if isinstance(struct, dict) else model.inputs, strict=True))
    as_dict = isinstance(struct, dict)

    def arrange(features: Any) -> Any:
        if not isinstance(features, dict) or any(isinstance(v, dict) for v in features.values()):
            return features
        if len(names) == 1 and len(features) == 1:
            features = {names[0]: next(iter(features.values()))}
        columns_for(model, list(features))
        found = {n: _shaped(features[n], inputs[n]) for n in names}
        if as_dict:
            return found
        # tf.data converts a list to one tensor.
        return found[names[0]] if len(names) == 1 else tuple(found[n] for n in names)

    return arrange


def arranged(dataset: Any, model: Any, map_batch: Callable[..., Any] | None = None) -> Any:
    """Return a dataset with the inputs of a model; a dataset without dicts of columns stays unchanged."""
    if not isinstance(dataset, tf.data.Dataset):
        return dataset
    steps = getattr(dataset, "_tfspark_steps", None)
    if map_batch is not None:
        dataset = dataset.map(map_batch)
    arrange = as_inputs(model)
    spec = dataset.element_spec
    features = spec[0] if isinstance(spec, tuple) and spec else spec
    if arrange is not None and isinstance(features, dict):
        dataset = dataset.map(graph(lambda x, *rest: (arrange(x), *rest) if isinstance(spec, tuple) else arrange(x)))
    # map does not change the number of batches.
    dataset._tfspark_steps = steps
    return dataset


def check_labels(model: Any, label: str | None, map_batch: Callable[..., Any] | None) -> None:
    """Check that a model with a loss gets labels.

    Raises
    ------
    ConfigurationError
        If the model gets no labels, or is not compiled.
    """
    if not getattr(model, "compiled", False):
        raise ConfigurationError(
            "The model is not compiled.",
            hint="Call model.compile(optimizer=..., loss=...) before ctx.fit.",
        )
    if label is None and map_batch is None and getattr(model, "_compile_loss", None) is not None:
        raise ConfigurationError(
            "The model has a loss, but ctx.fit was given no label.",
            hint='Pass the name of the label column: ctx.fit(model, ..., label="y").',
        )


def check_label_kind(dataset: tf.data.Dataset, label: str | None) -> None:
    """Check that labels are numbers.

    Raises
    ------
    ConfigurationError
        If the labels are strings.
    """
    spec = dataset.element_spec
    if label is not None and isinstance(spec, tuple) and len(spec) > 1 and getattr(spec[1], "dtype", None) == tf.string:
        raise ConfigurationError(
            f"The label column {label!r} holds strings, but losses need numbers.",
            hint="Convert the labels in Spark (pyspark.ml.feature.StringIndexer) or in map_batch.",
        )


@contextmanager
def labels_in_words(label: str | None) -> Iterator[None]:
    """Replace TensorFlow's error for a label that is out of range by an error with the column and the valid range.

    Raises
    ------
    ConfigurationError
        If a label is out of range.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as e:
        found = re.search(r"label value of (-?\d+) which is outside the valid range of \[0, (\d+)\)", str(e))
        if found is None:
            raise
        column = "the labels" if label is None else f"column {label!r}"
        raise ConfigurationError(
            f"A label in {column} is {found[1]}, but the model has {found[2]} outputs: labels must be from 0 to "
            f"{int(found[2]) - 1}.",
            hint="Give the last layer one unit per class, and number the classes from 0.",
        ) from e


def _shaped(value: Any, wanted: Any) -> Any:
    """Add or remove dimensions of size 1, so that the column has the rank of the input."""
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor)) or value.shape.rank is None or wanted.shape is None:
        return value
    row, given = tuple(wanted.shape[1:]), tuple(value.shape[1:])
    if len(row) == len(given) or None in row or None in given or math.prod(row) != math.prod(given):
        return value
    return tf.reshape(value, [-1, *row])
