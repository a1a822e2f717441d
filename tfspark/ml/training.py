"""The programs of an Estimator's nodes: `train` and `evaluate` are the ``main`` functions of their clusters."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError
from tfspark.ml.custom_objects import load_keras
from tfspark.ml.param_values import live
from tfspark.ml.plan import VALIDATION, EvaluationPlan, FitPlan, ModelPlan, Tensor, TrainedModel

if TYPE_CHECKING:
    from tfspark.node.context import NodeContext


def train(plan: FitPlan, ctx: NodeContext) -> tuple[dict[str, list[float]], TrainedModel] | None:
    """Train the model; the chief returns the history and the model, other nodes return ``None``."""
    import keras

    from tfspark.ml.datasets import batch_function, open_columns
    from tfspark.ml.value_checks import in_words

    if plan.seed is not None:
        keras.utils.set_random_seed(plan.seed)
    model = compiled_model(plan.model)
    if ctx.is_chief:
        ctx._link.tell_open_columns(open_columns(model, plan.training))
    validation = None
    if plan.validation is not None:
        rows = ctx.dataset(plan.batch_size, plan.validation.columns, name=VALIDATION)
        validation = rows.map(batch_function(model, plan.validation))
    with in_words():
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
    from tfspark.ml.datasets import batch_function
    from tfspark.ml.value_checks import in_words

    model = compiled_model(plan.model)
    dataset = ctx.dataset(plan.batch_size, plan.batch.columns).map(batch_function(model, plan.batch))
    with in_words():
        return ctx.evaluate(model, dataset)


def compiled_model(plan: ModelPlan) -> Any:
    """Return the model of a plan, ready to train.

    Raises
    ------
    ConfigurationError
        If it is not a Keras model, or it is not compiled and the plan has no loss to compile it with.
    """
    import keras

    custom = live(plan.custom_objects) or {}
    model = live(plan.function)() if plan.function is not None else _loaded(plan, custom)
    if not (hasattr(model, "compile") and hasattr(model, "fit")) or isinstance(model, type):
        raise ConfigurationError(f"The model function must return a Keras model, got {type(model).__name__}.")
    loss, rate = _made(live(plan.loss, custom)), live(plan.learning_rate, custom)
    if loss is not None:
        optimizer = keras.optimizers.get(_made(live(plan.optimizer, custom)) or "rmsprop")
        kind = "weighted_metrics" if plan.weighted else "metrics"
        model.compile(
            optimizer=optimizer if rate is None else _with_learning_rate(optimizer, rate, ()),
            loss=loss,
            loss_weights=live(plan.loss_weights),
            **{kind: _made(live(plan.metrics, custom))},
        )
    if not model.compiled:
        raise ConfigurationError("The model is not compiled.", hint="Pass a loss, or return a compiled model.")
    if loss is None and rate is not None:
        model.optimizer = _with_learning_rate(model.optimizer, rate, model.trainable_variables)
        # A model that was trained before keeps its training step, which contains the old optimizer.
        model.train_function = None
    return model


def _made(value: Any) -> Any:
    """Return Keras objects; a class is replaced by an object that is made without arguments."""
    if isinstance(value, list):
        return [_made(v) for v in value]
    if isinstance(value, dict):
        return {k: _made(v) for k, v in value.items()}
    return value() if isinstance(value, type) else value


def _with_learning_rate(optimizer: Any, rate: Any, variables: Any) -> Any:
    """Return an optimizer of `variables` with a learning rate; a number is set, a schedule makes a new optimizer."""
    if isinstance(rate, float):
        try:
            optimizer.learning_rate = rate
        except TypeError:
            raise scheduled_already(type(optimizer).__name__, rate) from None
        return optimizer
    if hasattr(optimizer, "inner_optimizer"):
        raise ConfigurationError(
            f"learningRate is a LearningRateSchedule, but {type(optimizer).__name__} takes only a number.",
            hint="Make the inner optimizer with it: LossScaleOptimizer(Adam(schedule)).",
        )
    # TensorFlow cannot export an optimizer whose learning rate was changed from a number to a schedule.
    scheduled = type(optimizer).from_config({**optimizer.get_config(), "learning_rate": rate})
    if optimizer.built:
        scheduled.build(variables)
        before = {v.path: v for v in optimizer.variables}
        for variable in scheduled.variables:
            variable.assign(before[variable.path])
    return scheduled


def scheduled_already(optimizer: str, rate: Any) -> ConfigurationError:
    """Return the error for an optimizer that has a schedule although a learning rate is set too."""
    return ConfigurationError(
        f"learningRate={rate} is set, but the optimizer {optimizer} has a LearningRateSchedule.",
        hint="Set only one of them. learningRate takes a LearningRateSchedule, too.",
    )


def _loaded(plan: ModelPlan, custom_objects: dict[str, Any]) -> Any:
    assert plan.keras is not None
    with tempfile.NamedTemporaryFile(suffix=".keras") as f:
        return load_keras(plan.keras, f.name, custom_objects, compile=plan.loss is None)


def _callbacks(plan: FitPlan) -> list[Any]:
    import keras

    given = [c if isinstance(c, keras.callbacks.Callback) else c() for c in live(plan.callbacks) or []]
    if plan.early_stopping is not None:
        given.append(keras.callbacks.EarlyStopping(**plan.early_stopping))
    return given


def trained(model: Any, plan: FitPlan, ctx: NodeContext) -> TrainedModel:
    """Return the model in both of its forms, a ``.keras`` file and a SavedModel."""
    from tfspark.prediction.model_source import EmbeddedModel

    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        path = os.path.join(directory, "model.keras")
        model.save(path)
        with open(path, "rb") as f:
            keras_file = f.read()
        version = _exported(model, os.path.join(directory, "export"), ctx)
        inputs, outputs = _signature(model, plan, version)
        return TrainedModel(keras_file, EmbeddedModel.of(version).archive, inputs, outputs)


def _exported(model: Any, base: str, ctx: NodeContext) -> str:
    from tfspark.node.keras.inputs import known_inputs

    if known_inputs(model):
        return ctx.export(model, base, name=model.name)
    # The inputs of a subclassed model have no names with which to serve it; Keras itself makes up names.
    model.export(base, verbose=False)
    return base


def _signature(model: Any, plan: FitPlan, version: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Match the names of inputs and outputs in the Keras model with their names in its SavedModel."""
    from tfspark.ml.datasets import output_names
    from tfspark.node.keras.inputs import known_inputs
    from tfspark.saved_models.description import read_signature
    from tfspark.saved_models.masking import masked_values

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
    masks = {"inputs": masked_values(model), "outputs": {}}
    tensors = {
        k: tuple(
            Tensor(n, key, found[k][key].dtype, found[k][key].row_shape or (), masks[k].get(n))
            for n, key in zip(names[k], keys[k], strict=True)
        )
        for k in names
    }
    return tensors["inputs"], tensors["outputs"]


def _in_order(key: str) -> tuple[str, int]:
    """Return a sort key that places ``output_10`` after ``output_9``."""
    head, _, number = key.rpartition("_")
    return (head, int(number)) if number.isdigit() else (key, -1)
