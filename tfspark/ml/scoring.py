"""Batch prediction with the SavedModel of a `KerasModel`; it is sent with the tasks and needs no shared directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfspark.columns.spec import Shape
from tfspark.prediction.local import add_predictions
from tfspark.prediction.model_source import EmbeddedModel
from tfspark.prediction.plan import plan_prediction
from tfspark.saved_models.signatures import DEFAULT, Signature, TensorInfo

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from tfspark.ml.plan import Tensor, TrainedModel


def score(
    df: DataFrame,
    model: TrainedModel,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    batch_size: int,
    shapes: Mapping[str, Shape],
    padding: Mapping[str, Any],
) -> DataFrame:
    """Add the outputs of a model to a DataFrame, lazily; see `tfspark.predict`.

    Parameters
    ----------
    inputs
        Column of each input, by the name of the input.
    outputs
        New column for each output, by the name of the output.
    shapes
        Shape of one row for array columns whose inputs do not define it.
    padding
        The value with which array columns are padded, if it is not the value that the model masks.

    Raises
    ------
    SchemaError
        If a column cannot be converted to a tensor, or not to the tensor of its input.
    """
    described = Signature(DEFAULT, _infos(model.inputs), _infos(model.outputs))
    keys = {t.name: t.key for t in (*model.inputs, *model.outputs)}
    plan = plan_prediction(
        df.sparkSession,
        EmbeddedModel.holding(model.saved_model, described),
        signature=DEFAULT,
        inputs={keys[name]: column for name, column in inputs.items()},
        outputs={keys[name]: column for name, column in outputs.items()},
        batch_size=batch_size,
        shapes=shapes,
        padding=padding,
        asked_by="transform",
    )
    return add_predictions(df, plan)


def _infos(tensors: tuple[Tensor, ...]) -> dict[str, TensorInfo]:
    return {t.key: TensorInfo(t.dtype, (None, *t.shape), mask=t.mask) for t in tensors}
