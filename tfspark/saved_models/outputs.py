"""Flattens nested outputs, because a SavedModel has flat ones: ``{"a": {"b": x}}`` becomes ``{"a/b": x}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flat_outputs(outputs: Any) -> dict[str, Any]:
    """Return outputs by name; those of a list get the names of Keras' own export: ``output_0``, ``output_1``."""
    if isinstance(outputs, Mapping):
        return dict(_leaves(outputs, ""))
    flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return {f"output_{i}": t for i, t in enumerate(flat)}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if _is_list(value) else None
    if inner is None:
        yield name, value
    else:
        for key, v in inner:
            yield from _leaves(v, f"{name}/{key}" if name else str(key))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def flat_model(model: Any) -> Any:
    """Return a Keras model without nested outputs.

    This is `model` itself, unless it is functional and its outputs are nested.
    """
    import keras

    outputs = getattr(model, "_outputs_struct", None)
    if not isinstance(outputs, Mapping) or not any(isinstance(o, Mapping) or _is_list(o) for o in outputs.values()):
        return model
    return keras.Model(model.input, flat_outputs(outputs), name=model.name)
