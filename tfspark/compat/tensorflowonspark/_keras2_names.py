"""Returns, for models of Keras 3, the names that Keras 2 gave to a model's inputs and outputs.

Keras numbers layers without a name by the objects of a class that the process has made so far: ``dense``, ``dense_1``.
This module numbers the layers of each model separately, so that the same model always has the same names. It does not
change names that the program gave.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_AS_BEFORE = {"functional": "model"}
"""Prefixes of names that differ between Keras 3 (key) and Keras 2 (value)."""

_UNNAMED_INPUT = re.compile(r"(?:keras_tensor|input_layer)(?:_(\d+))?$")


def input_names(model: Any) -> list[str]:
    """Return the names of a model's inputs, in the order in which Keras flattens them.

    In a Sequential model, an input without a name is called ``<first layer>_input``. In other models, its name is its
    key in a dict of inputs, or ``input_1``, ``input_2`` and so on, in the order in which the inputs were made.
    """
    import keras

    structure = model.inputs if isinstance(model, keras.Sequential) else getattr(model, "_inputs_struct", model.inputs)
    tensors = keras.tree.flatten(structure)
    keys = _keys(structure)
    unnamed = sorted((t.name for t in tensors if _UNNAMED_INPUT.match(t.name)), key=_number)
    return [_input_name(model, t.name, key, unnamed) for t, key in zip(tensors, keys, strict=True)]


def _input_name(model: Any, name: str, key: str | None, unnamed: list[str]) -> str:
    import keras

    if name not in unnamed:
        return name
    if key is not None:
        return key
    if isinstance(model, keras.Sequential):
        return f"{layer_names(model)[model.layers[0].name]}_input"
    return f"input_{unnamed.index(name) + 1}"


def _number(name: str) -> int:
    found = _UNNAMED_INPUT.match(name)
    return int(found[1] or 0) if found else 0


def _keys(structure: Any) -> list[str | None]:
    """Return the key of each tensor in a dict of tensors; ``None`` for each tensor of other structures."""
    import keras

    count = len(keras.tree.flatten(structure))
    if not isinstance(structure, Mapping) or len(structure) != count:
        return [None] * count
    keys = {k: k for k in structure}
    return [str(k) for k in keras.tree.flatten(keys)]


def output_names(model: Any) -> list[str]:
    """Return the names of a model's outputs, in the order in which Keras flattens them: keys of a dict, or layers."""
    import keras

    structure = getattr(model, "_outputs_struct", None)
    if structure is None:
        structure = model.outputs
    keys = _keys(structure)
    names = layer_names(model)
    taken: dict[str, int] = defaultdict(int)
    found = []
    for tensor, key in zip(keras.tree.flatten(structure), keys, strict=True):
        made_by = tensor._keras_history.operation.name
        name = key or names.get(made_by, made_by)
        # A layer with several outputs gives its second output the suffix _1, and so on.
        found.append(f"{name}_{taken[name]}" if taken[name] else name)
        taken[name] += 1
    return found


def argument_names(structure: Any) -> list[str]:
    """Return the names of the inputs of a subclassed model: keys of a dict, or ``input_1``, ``input_2``, ..."""
    only = structure[0] if len(structure) == 1 else structure
    return [key or f"input_{i + 1}" for i, key in enumerate(_keys(only))]


def result_names(outputs: Any) -> list[str]:
    """Return the names of the outputs of a subclassed model: keys of a dict, or ``output_1``, ``output_2``, ..."""
    return [key or f"output_{i + 1}" for i, key in enumerate(_keys(outputs))]


def layer_names(model: Any) -> dict[str, str]:
    """Return the Keras 2 name of each layer and operation of a model, by its name in this process."""
    made: dict[str, list[tuple[int, str]]] = defaultdict(list)
    kept: set[str] = set()
    for operation in _operations(model):
        prefix = _prefix(type(operation).__name__)
        found = re.fullmatch(rf"{prefix}(?:_(\d+))?", operation.name)
        number = int(found[1] or 0) if found else -1
        if found and number < _made_so_far(prefix):
            made[prefix].append((number, operation.name))
        else:
            kept.add(operation.name)
    names = {name: name for name in kept}
    for prefix, numbered in made.items():
        free = _free_names(_AS_BEFORE.get(prefix, prefix), kept)
        names |= {name: next(free) for _, name in sorted(set(numbered))}
    return names


def _free_names(prefix: str, taken: set[str]) -> Any:
    number = 0
    while True:
        name = f"{prefix}_{number}" if number else prefix
        if name not in taken:
            yield name
        number += 1


def _operations(model: Any) -> Iterable[Any]:
    """Return all layers, including nested layers, and the operations of functional models."""
    found = {id(o): o for o in (*model._flatten_layers(include_self=False), *getattr(model, "operations", ()))}
    return found.values()


def _prefix(class_name: str) -> str:
    """Return the prefix of the names of a class's layers, computed as in Keras."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _made_so_far(prefix: str) -> float:
    """Return how many names with this prefix Keras has made; infinity if this version of Keras does not say.

    A name with this number or a larger one was given by the program.
    """
    try:
        from keras.src.backend.common.global_state import get_global_attribute
    except ImportError:
        return float("inf")
    counts = get_global_attribute("object_name_uids")
    return float("inf") if counts is None else counts.get(prefix, 0)
