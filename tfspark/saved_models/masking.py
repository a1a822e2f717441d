"""What is known of a model's inputs beside their types: what it masks, and what replaced nulls in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfspark.json_numbers import plain_value
from tfspark.saved_models.signatures import Signature


def masked_values(model: Any) -> dict[str, float]:
    """Return the value that a ``Masking`` layer masks, by the name of the input that it takes.

    An ``Embedding`` with ``mask_zero`` masks 0, which is what rows are padded with anyway.
    """
    import keras

    try:
        inputs = list(model.inputs or [])
    except (AttributeError, ValueError):
        # A subclassed model does not say what it takes.
        return {}
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Masking):
            taken = [t for node in layer._inbound_nodes for t in node.input_tensors]
            of = [t.name for t in inputs if any(t is x for x in taken)]
            found.update(dict.fromkeys(of, float(layer.mask_value)))
    return found


def with_masks(signature: Signature, masks: Mapping[str, float]) -> Signature:
    """Return a signature that knows what its inputs mask."""
    inputs = {n: replace(info, mask=masks.get(n)) for n, info in signature.inputs.items()}
    return replace(signature, inputs=inputs)


def with_fill(signature: Signature, fill: Mapping[str, Any]) -> Signature:
    """Return a signature that knows what replaced nulls of its inputs, as far as these are plain values."""
    inputs = {n: replace(info, fill=plain_value(fill.get(n))) for n, info in signature.inputs.items()}
    return replace(signature, inputs=inputs)
