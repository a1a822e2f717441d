"""What a node has to know to train or evaluate: plain data, made in the driver from Params."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VALIDATION = "validation"
"""Name under which the rows to validate with are fed."""


@dataclass(frozen=True)
class BatchPlan:
    """Which fed columns become what Keras takes as ``x``, ``y`` and ``sample_weight``.

    Attributes
    ----------
    inputs
        The column of the only input, or the column of each input by its name.
    targets
        The column of the only label, or the column of each output's label.
    weight
        The column of the weights, if there is one.
    """

    inputs: str | Mapping[str, str]
    targets: str | Mapping[str, str]
    weight: str | None = None

    @property
    def columns(self) -> list[str]:
        """All columns to feed, each once."""
        groups = [[g] if isinstance(g, str) else list(g.values()) for g in (self.inputs, self.targets)]
        return list(dict.fromkeys([*groups[0], *groups[1], *([self.weight] if self.weight else [])]))


@dataclass(frozen=True)
class ModelPlan:
    """How a node comes by its compiled model; objects are packed, see `tfspark.ml.packing`.

    Attributes
    ----------
    keras
        A ``.keras`` file, unless there is a function.
    function
        A pickled function that makes the model.
    loss, loss_weights, metrics, optimizer
        As ``Model.compile`` takes them. Without a loss the model comes compiled.
    weighted
        Whether rows have weights: then metrics are weighted, as the loss is.
    """

    keras: bytes | None = field(default=None, repr=False)
    function: Any = field(default=None, repr=False)
    custom_objects: Any = None
    loss: Any = None
    loss_weights: Any = None
    metrics: Any = None
    optimizer: Any = None
    learning_rate: float | None = None
    weighted: bool = False


@dataclass(frozen=True)
class FitPlan:
    """All that training needs beside the rows."""

    model: ModelPlan
    training: BatchPlan
    validation: BatchPlan | None
    batch_size: int
    shuffle: bool
    seed: int | None
    callbacks: Any
    early_stopping: Mapping[str, Any] | None


@dataclass(frozen=True)
class EvaluationPlan:
    """All that evaluation needs beside the rows."""

    model: ModelPlan
    batch: BatchPlan
    batch_size: int


@dataclass(frozen=True)
class Tensor:
    """An input or output of a trained model.

    Attributes
    ----------
    name
        Name in the Keras model.
    key
        Name in the signature of its SavedModel.
    dtype, shape
        Of one row; ``None`` for a dimension of any length.
    """

    name: str
    key: str
    dtype: str
    shape: tuple[int | None, ...]

    def to_json(self) -> list[Any]:
        """Encode for a file."""
        return [self.name, self.key, self.dtype, list(self.shape)]

    @classmethod
    def from_json(cls, fields: list[Any]) -> Tensor:
        """Decode what `to_json` made."""
        return cls(fields[0], fields[1], fields[2], tuple(fields[3]))


@dataclass(frozen=True)
class TrainedModel:
    """What training gives: the model as a ``.keras`` file and as a packed SavedModel, and what is known of it."""

    keras: bytes = field(repr=False)
    saved_model: bytes = field(repr=False)
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
