"""Batch inference with the SavedModel of a `KerasModel`, which travels with the task: no directory has to be shared."""

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
        Input of the model to the column that becomes it.
    outputs
        Output of the model to the column that it becomes.
    shapes
        Shape of one row for array columns whose inputs do not tell it.
    padding
        What array columns are padded with, where it is not what the model masks.

    Raises
    ------
    SchemaError
        If a column has no tensor form, or not that of its input.
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
