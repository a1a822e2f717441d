"""What nodes do for an Estimator: `train` and `evaluate` are the ``main`` of their clusters."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError
from tfspark.ml.packing import live
from tfspark.ml.plan import VALIDATION, EvaluationPlan, FitPlan, ModelPlan, Tensor, TrainedModel

if TYPE_CHECKING:
    from tfspark.node.context import NodeContext


def train(plan: FitPlan, ctx: NodeContext) -> tuple[dict[str, list[float]], TrainedModel] | None:
    """Train; the chief returns the history and the model."""
    import keras

    from tfspark.ml.batches import batch_function

    if plan.seed is not None:
        keras.utils.set_random_seed(plan.seed)
    model = compiled_model(plan.model)
    validation = None
    if plan.validation is not None:
        rows = ctx.dataset(plan.batch_size, plan.validation.columns, name=VALIDATION)
        validation = rows.map(batch_function(model, plan.validation))
    history = ctx.fit(
        model,
        batch_size=plan.batch_size,
        columns=plan.training.columns,
        shuffle=plan.shuffle,
        map_batch=batch_function(model, plan.training),
        validation_data=validation,
        callbacks=_callbacks(plan),
    )
    return (history, trained(model, plan, ctx)) if ctx.is_chief else None


def evaluate(plan: EvaluationPlan, ctx: NodeContext) -> dict[str, float]:
    """Compute loss and metrics over all fed rows."""
    from tfspark.ml.batches import batch_function

    model = compiled_model(plan.model)
    dataset = ctx.dataset(plan.batch_size, plan.batch.columns).map(batch_function(model, plan.batch))
    return ctx.evaluate(model, dataset)


def compiled_model(plan: ModelPlan) -> Any:
    """Make the model of a plan, ready to train.

    Raises
    ------
    ConfigurationError
        If it is no Keras model, or neither compiled nor has a loss to be compiled with.
    """
    custom = live(plan.custom_objects) or {}
    model = live(plan.function)() if plan.function is not None else _loaded(plan, custom)
    if not (hasattr(model, "compile") and hasattr(model, "fit")):
        raise ConfigurationError(f"The model function returned a {type(model).__name__}, which is no Keras model.")
    loss = live(plan.loss)
    if loss is not None:
        kind = "weighted_metrics" if plan.weighted else "metrics"
        model.compile(
            optimizer=live(plan.optimizer) or "rmsprop",
            loss=loss,
            loss_weights=live(plan.loss_weights),
            **{kind: live(plan.metrics)},
        )
    if not model.compiled:
        raise ConfigurationError("The model is not compiled.", hint="Pass a loss, or return a compiled model.")
    if plan.learning_rate is not None:
        model.optimizer.learning_rate = plan.learning_rate
    return model


def _loaded(plan: ModelPlan, custom_objects: dict[str, Any]) -> Any:
    import keras

    assert plan.keras is not None
    with tempfile.NamedTemporaryFile(suffix=".keras") as f:
        f.write(plan.keras)
        f.flush()
        return keras.saving.load_model(f.name, custom_objects=custom_objects, compile=plan.loss is None)


def _callbacks(plan: FitPlan) -> list[Any]:
    import keras

    given = [c if isinstance(c, keras.callbacks.Callback) else c() for c in live(plan.callbacks) or []]
    if plan.early_stopping is not None:
        given.append(keras.callbacks.EarlyStopping(**plan.early_stopping))
    return given


def trained(model: Any, plan: FitPlan, ctx: NodeContext) -> TrainedModel:
    """Write the model down, in both its forms."""
    from tfspark.inference.source import PackedModel

    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        path = os.path.join(directory, "model.keras")
        model.save(path)
        with open(path, "rb") as f:
            keras_file = f.read()
        version = _exported(model, os.path.join(directory, "export"), ctx)
        inputs, outputs = _signature(model, plan, version)
        return TrainedModel(keras_file, PackedModel.of(version).archive, inputs, outputs)


def _exported(model: Any, base: str, ctx: NodeContext) -> str:
    from tfspark.node.keras.inputs import known_inputs

    if known_inputs(model):
        return ctx.export(model, base, name=model.name)
    # What a subclassed model takes has no names to serve it by; Keras itself makes some up.
    model.export(base, verbose=False)
    return base


def _signature(model: Any, plan: FitPlan, version: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Bring together what inputs and outputs are called in the Keras model and in its SavedModel."""
    from tfspark.ml.batches import output_names
    from tfspark.node.keras.inputs import known_inputs
    from tfspark.saved_models.description import read_signature

    signature = read_signature(version)
    found = {"inputs": signature.inputs, "outputs": signature.outputs}
    keys = {k: sorted(found[k], key=_in_order) for k in ("inputs", "outputs")}
    columns = plan.training.inputs
    # A model that does not name its inputs is called with a dict, which TensorFlow flattens by key.
    unnamed = not known_inputs(model) and not isinstance(columns, str)
    inputs = sorted(columns) if unnamed else keys["inputs"]
    outputs = output_names(model)
    if set(outputs) == set(keys["outputs"]) or len(outputs) != len(keys["outputs"]):
        outputs = keys["outputs"]
    names = {"inputs": inputs, "outputs": outputs}
    tensors = {
        k: tuple(
            Tensor(n, key, found[k][key].dtype, found[k][key].row_shape or ())
            for n, key in zip(names[k], keys[k], strict=True)
        )
        for k in names
    }
    return tensors["inputs"], tensors["outputs"]


def _in_order(key: str) -> tuple[str, int]:
    """Sort ``output_10`` after ``output_9``."""
    head, _, number = key.rpartition("_")
    return (head, int(number)) if number.isdigit() else (key, -1)
