"""Batch inference with a model that travels with the task: `tfspark.predict` without a directory to share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tfspark.schema import Shape

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
) -> DataFrame:
    """Add the outputs of a model to a DataFrame, lazily.

    Parameters
    ----------
    inputs
        Input of the model to the column that becomes it.
    outputs
        Output of the model to the column that it becomes.
    shapes
        Shape of one row for array columns whose inputs do not tell it.

    Raises
    ------
    SchemaError
        If a column has no tensor form.
    """
    from tfspark.inference.frame import add_predictions
    from tfspark.inference.plan import PredictionPlan
    from tfspark.inference.source import ModelCall, PackedModel
    from tfspark.saved_models.signatures import Signature, TensorInfo

    def infos(tensors: tuple[Tensor, ...]) -> dict[str, TensorInfo]:
        return {t.key: TensorInfo(t.dtype, (None, *t.shape)) for t in tensors}

    keys = {t.name: t.key for t in (*model.inputs, *model.outputs)}
    packed = PackedModel(model.saved_model, hashlib.sha256(model.saved_model).hexdigest())
    call = ModelCall(packed)
    # What training has found spares the driver a look at the model, for which it would need TensorFlow.
    signature = Signature(call.signature, infos(model.inputs), infos(model.outputs))
    plan = PredictionPlan(
        call,
        signature,
        {keys[name]: column for name, column in inputs.items()},
        {keys[name]: column for name, column in outputs.items()},
        batch_size,
        dict(shapes),
        {},
    )
    return add_predictions(df, plan)
