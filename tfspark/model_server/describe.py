"""What the server tells of its models: states and metadata as TensorFlow Serving does, and what its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfspark.model_server.repository import LoadedVersion, Repository, VersionStatus
from tfspark.saved_models.signatures import Signature, TensorInfo

SHOWN_VALUES = 64
"""Example rows for the page have no longer arrays than this; longer ones are to be filled in."""


def version_status(statuses: Mapping[int, VersionStatus]) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models/NAME``."""
    return {
        "model_version_status": [
            {
                "version": str(number),
                "state": status.state,
                "status": {"error_code": "UNKNOWN" if status.error else "OK", "error_message": status.error},
            }
            for number, status in statuses.items()
        ]
    }


def metadata(loaded: LoadedVersion) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models/NAME/metadata``."""
    signatures = {n: _signature_def(s) for n, s in loaded.signatures.items()}
    return {
        "model_spec": {"name": loaded.model, "signature_name": "", "version": str(loaded.number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _signature_def(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {n: _tensor_info(i) for n, i in signature.inputs.items()},
        "outputs": {n: _tensor_info(i) for n, i in signature.outputs.items()},
        "method_name": signature.method,
    }


def _tensor_info(info: TensorInfo) -> dict[str, Any]:
    dims = [{"size": str(-1 if d is None else d), "name": ""} for d in info.shape or ()]
    enum = tf.as_dtype(info.dtype).as_datatype_enum
    name = tf.compat.v1.AttrValue(type=enum).DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[enum].name
    return {"dtype": name, "tensor_shape": {"dim": dims, "unknown_rank": info.shape is None}, "name": info.tensor}


def overview(repository: Repository) -> dict[str, Any]:
    """Return what the page shows."""
    return {
        "healthy": repository.healthy,
        "models": [
            {
                "name": name,
                "labels": dict(repository.policy.labels.get(name, {})),
                "versions": [
                    {"version": number, "state": status.state, "error": status.error, **_loaded(status.loaded)}
                    for number, status in sorted(versions.items(), reverse=True)
                ],
            }
            for name, versions in repository.models().items()
        ],
    }


def _loaded(loaded: LoadedVersion | None) -> dict[str, Any]:
    if loaded is None:
        return {}
    return {
        "card": loaded.card,
        "signatures": {
            n: {
                "inputs": {k: str(i) for k, i in s.inputs.items()},
                "outputs": {k: str(i) for k, i in s.outputs.items()},
                "method": s.method,
                "example": {k: _zeros(i.dtype, i.row_shape or ()) for k, i in s.inputs.items()},
            }
            for n, s in loaded.signatures.items()
        },
        "requests": sum(b.requests for b in loaded.batchers.values()),
        "calls": sum(b.calls for b in loaded.batchers.values()),
    }


def _zeros(dtype: str, shape: tuple[int | None, ...]) -> Any:
    if not shape:
        return "" if dtype == "string" else False if dtype == "bool" else 0 if "int" in dtype else 0.0
    size = 1 if shape[0] is None else min(shape[0], SHOWN_VALUES)
    return [_zeros(dtype, shape[1:])] * size
