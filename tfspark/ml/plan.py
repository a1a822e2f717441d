"""The plans by which a node trains or evaluates: plain data, made in the driver from Params."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VALIDATION = "validation"
"""Name under which the validation rows are fed."""


def fed_name(column: str) -> str:
    """Return the name under which a column is fed; it has no dots, because Spark splits names at dots for Python."""
    return column.replace(".", "/")


@dataclass(frozen=True)
class BatchPlan:
    """The fed columns that Keras takes as ``x``, ``y`` and ``sample_weight``.

    Attributes
    ----------
    inputs
        The column of the only input, or the column of each input by its name.
    targets
        The column of the only label, or the column of each output's label.
    weight
        The column of the weights, if there is one.
    padding
        The value with which arrays of different lengths are padded, by column, if it is not the value that the model
        masks.
    classes
        Number of classes by label column, for columns whose metadata contains it.
    """

    inputs: str | Mapping[str, str]
    targets: str | Mapping[str, str]
    weight: str | None = None
    padding: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """All columns to feed, each once."""
        groups = [[g] if isinstance(g, str) else list(g.values()) for g in (self.inputs, self.targets)]
        return list(dict.fromkeys([*groups[0], *groups[1], *([self.weight] if self.weight else [])]))

    def as_fed(self) -> BatchPlan:
        """Return the plan with the column names under which columns are fed; see `fed_name`."""
        inputs, targets = (
            fed_name(g) if isinstance(g, str) else {n: fed_name(c) for n, c in g.items()}
            for g in (self.inputs, self.targets)
        )
        padding, classes = ({fed_name(c): v for c, v in of.items()} for of in (self.padding, self.classes))
        return BatchPlan(inputs, targets, self.weight and fed_name(self.weight), padding, classes)


@dataclass(frozen=True)
class ModelPlan:
    """How a node makes its compiled model; objects are packed, see `tfspark.ml.param_values`.

    Attributes
    ----------
    keras
        A ``.keras`` file, unless there is a function.
    function
        A pickled function that makes the model.
    loss, loss_weights, metrics, optimizer
        As for ``Model.compile``. Without a loss, the model must be compiled already.
    learning_rate
        A number or a LearningRateSchedule; ``None`` for the learning rate of the optimizer.
    weighted
        Whether rows have weights. If so, metrics are weighted, as the loss is.
    """

    keras: bytes | None = field(default=None, repr=False)
    function: Any = field(default=None, repr=False)
    custom_objects: Any = None
    loss: Any = None
    loss_weights: Any = None
    metrics: Any = None
    optimizer: Any = None
    learning_rate: Any = None
    weighted: bool = False


@dataclass(frozen=True)
class FitPlan:
    """Everything that training needs except the rows."""

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
    """Everything that evaluation needs except the rows."""

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
        Dtype and shape of one row; ``None`` for a dimension of any length.
    mask
        The value of an input that the model masks, if it has a layer for masking.
    """

    name: str
    key: str
    dtype: str
    shape: tuple[int | None, ...]
    mask: float | None = None

    def to_json(self) -> list[Any]:
        """Encode for a file."""
        return [self.name, self.key, self.dtype, list(self.shape), self.mask]

    @classmethod
    def from_json(cls, fields: list[Any]) -> Tensor:
        """Decode the result of `to_json`."""
        # Models that were saved by versions without masks have four fields.
        return cls(fields[0], fields[1], fields[2], tuple(fields[3]), *fields[4:])


@dataclass(frozen=True)
class TrainedModel:
    """The result of training: the model as a ``.keras`` file and as a packed SavedModel, its inputs and outputs."""

    keras: bytes = field(repr=False)
    saved_model: bytes = field(repr=False)
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
