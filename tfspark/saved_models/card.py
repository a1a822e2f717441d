"""The model card: what a version is, beside it, for programs and for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from platform import python_version
from typing import Any

from tfspark import __version__
from tfspark.finite import finite
from tfspark.saved_models.signatures import Signature, TensorInfo

DIRECTORY = "assets.extra"
"""Where a SavedModel has room for what its graph does not load; TensorFlow Serving leaves it alone."""

JSON_FILE = "model_card.json"
TEXT_FILE = "MODEL_CARD.md"


@dataclass(frozen=True)
class ModelCard:
    """What is told of one version of a model.

    Attributes
    ----------
    name
        Of the model.
    description
        A few words by its maker.
    metrics
        Numbers by name.
    data
        What it was trained on: any plain values, such as rows, columns and where they came from.
    parameters
        Number of weights.
    signatures
        What can be asked of it.
    """

    name: str
    description: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain values, with the time and the versions of what made it.

        Numbers that are not finite are ``None``.
        """
        # By the modules themselves: what comes by PYTHONPATH or --py-files is not known as installed.
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
        return dict(finite(card))

    def write(self, directory: str) -> None:
        """Write both forms into the SavedModel `directory`.

        Raises
        ------
        TypeError
            If `data` holds what JSON cannot.
        """
        card = self.to_json()
        os.makedirs(os.path.join(directory, DIRECTORY), exist_ok=True)
        for name, text in ((JSON_FILE, json.dumps(card, indent=2) + "\n"), (TEXT_FILE, _readable(card, self))):
            with open(os.path.join(directory, DIRECTORY, name), "w", encoding="utf-8") as f:
                f.write(text)


def read_card(directory: str) -> dict[str, Any] | None:
    """Return the card of a SavedModel as `ModelCard.to_json` made it, or None if it has none."""
    try:
        with open(os.path.join(directory, DIRECTORY, JSON_FILE), encoding="utf-8") as f:
            card = json.load(f)
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def tensorflow_version() -> str:
    """Return the version of TensorFlow, by whichever name it is installed."""
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
