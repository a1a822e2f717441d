"""Finds code for TensorFlow 1 and Keras 2 that TensorFlow 2.21 and Keras 3 do not support, for `migrate`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ESTIMATOR = "Keras and ctx.fit: tf.estimator left TensorFlow with version 2.16"

GONE = {
    "tensorflow.estimator": ESTIMATOR,
    "tensorflow.compat.v1.estimator": ESTIMATOR,
    "tensorflow.keras.estimator": ESTIMATOR,
    "tensorflow_estimator": ESTIMATOR,
    "tensorflow.contrib": "what replaces it in TensorFlow 2: tf.contrib left with version 2.0",
    "tensorflow.Session": "functions and Keras: sessions left the main API with TensorFlow 2.0",
    "tensorflow.placeholder": "arguments of functions: placeholders left the main API with TensorFlow 2.0",
    "tensorflow.app": "argparse or absl: tf.app left with TensorFlow 2.0",
    "tensorflow.flags": "argparse or absl: tf.flags left with TensorFlow 2.0",
    "tensorflow.gfile": "tf.io.gfile",
    "tensorflow.train.MonitoredTrainingSession": "Keras, or tf.train.CheckpointManager in a loop",
    "tensorflow.train.Supervisor": "Keras, or tf.train.CheckpointManager in a loop",
    "tensorflow.keras.experimental": "the same name without experimental, if Keras 3 has it",
    "tensorflow.keras.layers.experimental": "the same name without experimental: tf.keras.layers.Rescaling",
    "tensorflow.keras.optimizers.experimental": "tf.keras.optimizers.Adam and others",
    "tensorflow.keras.optimizers.legacy": "tf.keras.optimizers.Adam and others",
    "tensorflow.keras.mixed_precision.experimental": "tf.keras.mixed_precision.set_global_policy(name)",
    "tensorflow.keras.utils.multi_gpu_model": "ctx.fit, with a worker for each GPU",
    "tensorflow.keras.wrappers.scikit_learn": "the package scikeras",
    "tensorflow.keras.layers.CuDNNLSTM": "tf.keras.layers.LSTM",
    "tensorflow.keras.layers.CuDNNGRU": "tf.keras.layers.GRU",
    "tensorflow.keras.backend.get_session": "nothing: there are no sessions",
    "tensorflow.keras.backend.set_session": "nothing: there are no sessions",
}
"""Names that were removed, and what to write instead."""

METHODS = {
    "fit_generator": "model.fit(...)",
    "evaluate_generator": "model.evaluate(...)",
    "predict_generator": "model.predict(...)",
    "predict_classes": "model.predict(...).argmax(axis=-1)",
    "predict_proba": "model.predict(...)",
    "model_to_estimator": ESTIMATOR,
}
"""Methods of models that were removed, and what to write instead."""

ARGUMENTS = {
    "save_format": "model.export(directory) for a SavedModel, model.save('model.keras') for a file: Keras 3 has no "
    "save_format",
    "lr": "learning_rate=",
}
"""Arguments that Keras 3 does not accept, and what to write instead."""

SUFFIXES = {True: (".weights.h5",), False: (".keras", ".h5")}
"""Suffixes that the path of a ModelCheckpoint must have, by ``save_weights_only``."""

SAVES = {"save_weights": (".weights.h5",), "save": (".keras", ".h5")}
"""Suffixes that the path of a saved model must have, by method."""

OPTIMIZERS = {"Adadelta", "Adagrad", "Adam", "Adamax", "Ftrl", "Nadam", "RMSprop", "SGD"}

LAYER = (
    r"(?:input|dense|conv[123]d|separable_conv2d|depthwise_conv2d|embedding|flatten|lstm|gru|bidirectional|reshape|"
    r"dropout|batch_normalization|activation|softmax|masking|rescaling|sequential|model)"
)

EXPORTED_NAME = re.compile(rf"{LAYER}(?:_\d+)?_input|input_\d+|{LAYER}_\d+")
"""Matches names that Keras 2 gave to inputs and outputs of exported models."""

EXPORTED_BECOMES = (
    "the same with compat.export_saved_model; ctx.export calls inputs by keras.Input(name=...), and the output output_0"
)


@dataclass(frozen=True)
class Use:
    """One part of a program that Keras 3 or TensorFlow 2.21 treats differently.

    Attributes
    ----------
    runs
        Whether the program runs on `tfspark.compat` if this part is not changed.
    """

    line: int
    use: str
    becomes: str
    runs: bool = False


def find_uses(tree: ast.AST) -> Iterator[Use]:
    """Yield the parts of a program that Keras 3 and TensorFlow 2.21 treat differently."""
    names = dict(_imported(tree))
    values = _assigned(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from _of_import(node)
        elif isinstance(node, ast.Attribute):
            yield from _of_name(node, names)
        elif isinstance(node, ast.Call):
            yield from _of_call(node, names, values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and EXPORTED_NAME.fullmatch(node.value):
            yield Use(node.lineno, f"the Keras 2 name {node.value!r}", EXPORTED_BECOMES, runs=True)


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the program's own names for TensorFlow, Keras and their imported members, each with its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.split(".")[0]
                if package in ("tensorflow", "keras"):
                    yield alias.asname or package, alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("tensorflow", "keras"):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.AST, names: Mapping[str, str]) -> str:
    """Return the full name of a member of TensorFlow or Keras, such as ``tensorflow.keras.x``; otherwise ``""``."""
    if isinstance(node, ast.Name):
        name = names.get(node.id, "")
    elif isinstance(node, ast.Attribute):
        inner = _full_name(node.value, names)
        name = f"{inner}.{node.attr}" if inner else ""
    else:
        name = ""
    return f"tensorflow.{name}" if name.split(".")[0] == "keras" else name


def _gone(name: str) -> str | None:
    return next((known for known in GONE if name == known or name.startswith(f"{known}.")), None)


def _of_import(node: ast.Import | ast.ImportFrom) -> Iterator[Use]:
    modules = [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        modules = [f"{node.module}.{name}" for name in modules] if node.module and not node.level else []
    for module in modules:
        name = f"tensorflow.{module}" if module.split(".")[0] == "keras" else module
        if known := _gone(name):
            yield Use(node.lineno, f"import of {module}", GONE[known])


def _of_name(node: ast.Attribute, names: Mapping[str, str]) -> Iterator[Use]:
    name = _full_name(node, names)
    # Only the exact name counts, so that tf.estimator.Estimator is reported once: for its inner node tf.estimator.
    if name in GONE:
        yield Use(node.lineno, name.replace("tensorflow.", "tf.", 1), GONE[name])


def _of_call(node: ast.Call, names: Mapping[str, str], values: Mapping[str, ast.AST]) -> Iterator[Use]:
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    name = _full_name(node.func, names)
    last = name.rpartition(".")[2] or method
    if not name and method in METHODS:
        yield Use(node.lineno, f".{method}(...)", METHODS[method])
    for keyword in node.keywords:
        if keyword.arg == "save_format" or (keyword.arg == "lr" and last in OPTIMIZERS):
            yield Use(keyword.value.lineno, f"{keyword.arg}=", ARGUMENTS[keyword.arg])
        elif keyword.arg and EXPORTED_NAME.fullmatch(keyword.arg):
            yield Use(keyword.value.lineno, f"the Keras 2 name {keyword.arg!r}", EXPORTED_BECOMES, runs=True)
    if last == "ModelCheckpoint":
        yield from _of_checkpoint(node, values)
    elif method in SAVES and node.args and _is_a_model(node.func):
        end = _ending(node.args[0], values)
        if end is not None and not end.endswith(SAVES[method]):
            yield Use(node.lineno, f"{method}(...{end!r})", f"a path that ends with {_either(SAVES[method])}")


def _is_a_model(method: ast.AST) -> bool:
    """Return whether a method is that of a model: the name of the object contains ``model``."""
    return isinstance(method, ast.Attribute) and "model" in ast.unparse(method.value).rpartition(".")[2].lower()


def _either(suffixes: tuple[str, ...]) -> str:
    return " or ".join(map(repr, suffixes))


def _of_checkpoint(node: ast.Call, values: Mapping[str, ast.AST]) -> Iterator[Use]:
    given = {k.arg: k.value for k in node.keywords if k.arg}
    path = given.get("filepath", node.args[0] if node.args else None)
    weights = given.get("save_weights_only")
    if weights is None and len(node.args) > 4:
        weights = node.args[4]
    if path is None or not isinstance(weights, (ast.Constant, type(None))):
        return
    suffixes = SUFFIXES[bool(weights and weights.value)]
    end = _ending(path, values)
    becomes = f"a path that ends with {_either(suffixes)}"
    if end is None:
        yield Use(path.lineno, "the path of ModelCheckpoint", f"{becomes}, if it does not yet", runs=True)
    elif not end.endswith(suffixes):
        yield Use(path.lineno, f"the path of ModelCheckpoint, ...{end!r}", becomes)


def _assigned(tree: ast.AST) -> dict[str, ast.AST]:
    """Return the expression that is assigned to each name; the last assignment counts."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            found |= {t.id: node.value for t in node.targets if isinstance(t, ast.Name)}
    return found


def _ending(node: ast.AST, values: Mapping[str, ast.AST], depth: int = 5) -> str | None:
    """Return the text with which an expression ends, or ``None`` if the source does not show it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if depth == 0:
        return None
    inner: ast.AST | None = None
    if isinstance(node, ast.Name):
        inner = values.get(node.id)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Div)):
        inner = node.right
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        inner = node.left
    elif isinstance(node, ast.JoinedStr) and node.values:
        inner = node.values[-1]
    elif isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
        # os.path.join(directory, name), tf.io.gfile.join(directory, name), "...".format(...)
        inner = node.func.value if node.func.attr == "format" else node.args[-1] if node.func.attr == "join" else None
    return None if inner is None else _ending(inner, values, depth - 1)
