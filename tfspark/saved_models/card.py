"""The model card: a description of a model version, stored with it as JSON and as Markdown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from platform import python_version
from typing import Any

from tfspark import __version__
from tfspark.json_numbers import nonfinite_to_none, plain_value
from tfspark.saved_models.signatures import Signature, TensorInfo

DIRECTORY = "assets.extra"
"""Directory of a SavedModel for files that its graph does not load; TensorFlow Serving ignores them."""

JSON_FILE = "model_card.json"
TEXT_FILE = "MODEL_CARD.md"


@dataclass(frozen=True)
class ModelCard:
    """The description of one version of a model.

    Attributes
    ----------
    name
        Name of the model.
    description
        A short text by the author of the model.
    metrics
        Numbers by metric name.
    data
        The training data, as plain values: for example rows, columns and source.
    parameters
        Number of weights.
    signatures
        The signatures of the SavedModel by name.
    """

    name: str
    description: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain values, with the time and the versions of Python, tfspark, Keras and TensorFlow.

        NaN and infinities become ``None``.
        """
        # The imported modules give their versions: packages from PYTHONPATH or --py-files have no metadata.
        keras = sys.modules.get("keras")
        card = {
            "name": self.name,
            "description": self.description,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "metrics": {k: float(v) for k, v in self.metrics.items()},
            "data": dict(self.data),
            "parameters": self.parameters,
            "signatures": {n: s.to_json() for n, s in self.signatures.items()},
            "versions": {
                "python": python_version(),
                "tfspark": __version__,
                **({} if keras is None else {"keras": str(keras.__version__)}),
                "tensorflow": tensorflow_version(),
            },
        }
        return dict(nonfinite_to_none(card))

    def write(self, directory: str) -> None:
        """Write the card as JSON and as Markdown into the SavedModel `directory`.

        Raises
        ------
        TypeError
            If `data` has a value that JSON cannot hold.
        """
        card = self.to_json()
        os.makedirs(os.path.join(directory, DIRECTORY), exist_ok=True)
        for name, text in ((JSON_FILE, json.dumps(card, indent=2) + "\n"), (TEXT_FILE, _readable(card, self))):
            with open(os.path.join(directory, DIRECTORY, name), "w", encoding="utf-8") as f:
                f.write(text)


def read_card(directory: str) -> dict[str, Any] | None:
    """Return the card of a SavedModel as `ModelCard.to_json` wrote it, or None if there is no card."""
    try:
        with open(os.path.join(directory, DIRECTORY, JSON_FILE), encoding="utf-8") as f:
            card = json.load(f)
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def with_card(signature: Signature, directory: str) -> Signature:
    """Return the signature with the `mask` and `fill` of each input from the card of its SavedModel.

    The signature is returned unchanged if the card is missing or its values cannot be used.
    """
    try:
        said = (read_card(directory) or {})["signatures"][signature.name]["inputs"]
        inputs = {n: _as_said(info, said.get(n, {})) for n, info in signature.inputs.items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        return signature
    return replace(signature, inputs=inputs)


def _as_said(info: TensorInfo, said: Mapping[str, Any]) -> TensorInfo:
    mask = said.get("mask")
    return replace(info, mask=None if mask is None else float(mask), fill=plain_value(said.get("fill")))


def tensorflow_version() -> str:
    """Return the version of TensorFlow, whose distribution may be ``tensorflow``, ``tensorflow-cpu`` or another."""
    import tensorflow as tf

    return str(tf.__version__)


def _readable(card: Mapping[str, Any], of: ModelCard) -> str:
    lines = [f"# {card['name']}", ""]
    if of.description:
        lines += [of.description, ""]
    lines += [f"Written {card['created']}."]
    if of.parameters is not None:
        lines += [f"{of.parameters:,} parameters."]
    if of.metrics:
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {_cell(k)} | {float(v):.6g} |" for k, v in of.metrics.items()]
    if of.data:
        lines += ["", "## Data", ""]
        lines += [f"- {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in card["data"].items()]
    lines += ["", "## Signatures", ""]
    for name, signature in of.signatures.items():
        lines += [f"`{name}`", "", "| | name | type and shape |", "|---|---|---|"]
        lines += _rows("in", signature.inputs) + _rows("out", signature.outputs) + [""]
    lines += ["## Made with", "", ", ".join(f"{k} {v}" for k, v in card["versions"].items()), ""]
    return "\n".join(lines)


def _rows(kind: str, infos: Mapping[str, TensorInfo]) -> list[str]:
    return [f"| {kind} | {_cell(n)} | {i} |" for n, i in infos.items()]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
