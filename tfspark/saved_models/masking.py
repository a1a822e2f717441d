"""Properties of a model's inputs: the value that the model masks, and the value that replaced nulls in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfspark.json_numbers import plain_value
from tfspark.saved_models.signatures import Signature


def masked_values(model: Any) -> dict[str, float]:
    """Return the value that a ``Masking`` layer masks, by the name of the input to which the layer is applied.

    An ``Embedding`` with ``mask_zero`` is ignored: it masks 0, and rows are padded with 0 anyway.
    """
    import keras

    try:
        inputs = list(model.inputs or [])
    except (AttributeError, ValueError):
        # A subclassed model does not list its inputs.
        return {}
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Masking):
            taken = [t for node in layer._inbound_nodes for t in node.input_tensors]
            of = [t.name for t in inputs if any(t is x for x in taken)]
            found.update(dict.fromkeys(of, float(layer.mask_value)))
    return found


def with_masks(signature: Signature, masks: Mapping[str, float]) -> Signature:
    """Return the signature with the masked value of each input."""
    inputs = {n: replace(info, mask=masks.get(n)) for n, info in signature.inputs.items()}
    return replace(signature, inputs=inputs)


def with_fill(signature: Signature, fill: Mapping[str, Any]) -> Signature:
    """Return the signature with the value that replaced nulls in each input, if it is a plain value."""
    inputs = {n: replace(info, fill=plain_value(fill.get(n))) for n, info in signature.inputs.items()}
    return replace(signature, inputs=inputs)
