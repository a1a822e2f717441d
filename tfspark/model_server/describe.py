"""Descriptions of the models: states and metadata as in TensorFlow Serving, and the data of the web page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from tfspark.model_server.loaded import LoadedVersion
from tfspark.model_server.metrics import Labels
from tfspark.model_server.repository import Repository, VersionStatus

SHOWN_VALUES = 64
"""Largest size of each dimension in example rows of the web page; users fill in longer arrays."""


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
    signatures = {
        n: json_format.MessageToDict(d, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)
        for n, d in sorted(loaded.definitions.items())
    }
    return {
        "model_spec": {"name": loaded.model, "signature_name": "", "version": str(loaded.number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def gauges(repository: Repository) -> dict[str, dict[Labels, float]]:
    """Return the current Prometheus gauges of the models."""
    waiting: dict[Labels, float] = {}
    for name, versions in repository.models().items():
        loaded = [s.loaded for s in versions.values() if s.loaded is not None]
        waiting[("model_name", name),] = sum(b.waiting_rows for v in loaded for b in list(v.batchers.values()))
    ready: dict[Labels, float] = {(("model_name", n),): float(r) for n, r in repository.readiness().items()}
    return {"tfspark_serve_ready": ready, "tfspark_serve_waiting_rows": waiting}


def overview(repository: Repository) -> dict[str, Any]:
    """Return the data of the web page."""
    return {
        "healthy": repository.healthy,
        "models": [
            {
                "name": name,
                "labels": dict(repository.policy(name).labels),
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
        "requests": sum(b.requests for b in list(loaded.batchers.values())),
        "calls": sum(b.calls for b in list(loaded.batchers.values())),
    }


def _zeros(dtype: str, shape: tuple[int | None, ...]) -> Any:
    if not shape:
        return "" if dtype == "string" else False if dtype == "bool" else 0 if "int" in dtype else 0.0
    size = 1 if shape[0] is None else min(shape[0], SHOWN_VALUES)
    return [_zeros(dtype, shape[1:])] * size
