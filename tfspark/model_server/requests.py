"""Converts REST requests of TensorFlow Serving to calls of a model, and outputs to answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.model_server.errors import MissingSignature, RequestError, TooLarge
from tfspark.model_server.json_values import decode, encode, is_base64, text
from tfspark.saved_models.signatures import CLASSIFY, DEFAULT, PREDICT, REGRESS, Signature

_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Call:
    """A call of a model.

    Attributes
    ----------
    signature
        Name of the signature.
    inputs
        Arrays by input name.
    rows
        Number of rows, if it is the same for all inputs; otherwise None, and the call cannot be joined with others.
    by_row
        Whether the answer lists rows instead of columns.
    outputs
        Requested outputs; empty for all.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    rows: int | None
    by_row: bool = True
    outputs: tuple[str, ...] = ()


def signature_of(name: Any, signatures: Mapping[str, Signature]) -> Signature:
    """Return the signature with this name, or the default signature for an empty name.

    Raises
    ------
    RequestError
        If the signature does not exist.
    """
    if not isinstance(name, str):
        raise RequestError('"signature_name" must be a string.')
    name = name or DEFAULT
    if name not in signatures:
        raise MissingSignature(
            f'Serving signature name: "{name}" not found in signature def; the signatures are {list(signatures)}'
        )
    return signatures[name]


def common_rows(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Return the first dimension if it is the same for all arrays; otherwise None."""
    sizes = {a.shape[:1] for a in arrays.values()}
    return sizes.pop()[0] if len(sizes) == 1 and () not in sizes else None


# --- predict


def predict_call(
    body: Mapping[str, Any], signature: Signature, defaults: Mapping[str, np.ndarray] | None = None
) -> Call:
    """Convert a ``:predict`` request to a call; it lists rows (``instances``) or columns (``inputs``).

    Parameters
    ----------
    defaults
        Values of inputs that a request may omit.

    Raises
    ------
    RequestError
        If the body does not fit the signature.
    """
    if ("instances" in body) == ("inputs" in body):
        raise RequestError('The body must have either "instances" (rows) or "inputs" (columns).')
    by_row = "instances" in body
    defaults = defaults or {}
    if by_row:
        columns = _rows_to_columns(body["instances"], signature, defaults)
    else:
        columns = _columns(body["inputs"], signature, defaults)
    arrays = {n: decode(n, columns[n], info) for n, info in signature.inputs.items() if n in columns}
    rows = common_rows(arrays)
    return Call(signature.name, {**defaults, **arrays}, rows if set(arrays) >= set(defaults) else None, by_row)


def _rows_to_columns(instances: Any, signature: Signature, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise RequestError('"instances" must be a list of at least one row.')
    names = list(signature.inputs)
    if not _is_named(instances[0]):
        if len(names) != 1:
            raise RequestError(f"Each instance must be an object with the inputs {names}.")
        if any(_is_named(row) for row in instances):
            raise RequestError("Some instances are objects, but instance 0 is not.")
        return {names[0]: instances}
    given = set(instances[0]) if isinstance(instances[0], dict) else set()
    for i, row in enumerate(instances):
        if not _is_named(row):
            raise RequestError(f"Instance {i} is not an object, but instance 0 is.")
        if set(row) != given or given - set(names) or set(names) - given - set(defaults):
            raise RequestError(f"Instance {i} has {sorted(row)}, but the inputs are {names}.")
    return {n: [row[n] for row in instances] for n in given}


def _columns(inputs: Any, signature: Signature, defaults: Mapping[str, Any]) -> dict[str, Any]:
    names = list(signature.inputs)
    if not _is_named(inputs):
        if len(names) != 1:
            raise RequestError(f'"inputs" must be an object with the inputs {names}.')
        return {names[0]: inputs}
    if missing := set(names) - set(inputs) - set(defaults):
        raise RequestError(f'"inputs" lacks {sorted(missing)}; the inputs are {names}.')
    return {n: inputs[n] for n in names if n in inputs}


def _is_named(value: Any) -> bool:
    """Return whether a value is an object that maps names to tensors; ``{"b64": ...}`` is not."""
    return isinstance(value, dict) and not is_base64(value)


def predict_answer(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the answer to a ``:predict`` request.

    Raises
    ------
    RequestError
        If the answer is by row, and the outputs have different numbers of rows.
    """
    encoded = {n: encode(n, a) for n, a in outputs.items()}
    if not call.by_row:
        return {"outputs": next(iter(encoded.values())) if len(encoded) == 1 else encoded}
    if not common_rows(outputs):
        shapes = {n: a.shape for n, a in outputs.items()}
        raise RequestError(f'The outputs have different numbers of rows: {shapes}. Send "inputs" (columns) instead.')
    if len(encoded) == 1:
        return {"predictions": next(iter(encoded.values()))}
    return {"predictions": [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]}


# --- classify and regress


def check_method(signature: Signature, method: str) -> None:
    """Check that a signature supports ``classify`` or ``regress``.

    Raises
    ------
    RequestError
        If it does not support the method.
    """
    info = signature.inputs.get("inputs")
    outputs = {CLASSIFY: {"classes", "scores"}, REGRESS: {"outputs"}}[method]
    # TensorFlow 2 marks all signatures as predict; then their inputs and outputs decide.
    fits = signature.method in (method, PREDICT) and info is not None and info.dtype == "string"
    if not fits or len(signature.inputs) > 1 or not set(signature.outputs) or set(signature.outputs) - outputs:
        raise RequestError(
            f"Expected a signature for {method}, but {signature.name!r} is for {signature.method}; "
            'name another one as "signature_name".'
        )


def example_call(body: Mapping[str, Any], signature: Signature, method: str, most_bytes: int) -> Call:
    """Convert a ``:classify`` or ``:regress`` request to a call with its serialized examples.

    Parameters
    ----------
    method
        Method that the signature must support.
    most_bytes
        Largest total size of the context, which is repeated for each example.

    Raises
    ------
    RequestError
        If the signature has another method, the examples are invalid, or the context is too large.
    """
    check_method(signature, method)
    examples = body.get("examples")
    if not isinstance(examples, list) or not examples:
        raise RequestError('"examples" must be a list of at least one object.')
    context = body.get("context", {})
    if not isinstance(context, dict):
        raise RequestError('"context" must be an object.')
    repeated = len(json.dumps(context)) * len(examples)
    if context and repeated > most_bytes:
        raise TooLarge(
            f'"context" is repeated in each of {len(examples)} examples, which is {repeated} bytes; the limit is '
            f"{most_bytes} bytes."
        )
    for i, example in enumerate(examples):
        if not isinstance(example, dict):
            raise RequestError(f"Example {i} is not an object.")
        if both := set(context) & set(example):
            raise RequestError(f'Example {i} has features of "context" again: {sorted(both)}.')
    serialized = np.empty(len(examples), object)
    serialized[:] = [_example({**context, **example}) for example in examples]
    return Call(signature.name, {"inputs": serialized}, len(examples))


def _example(features: Mapping[str, Any]) -> bytes:
    feature = {name: _feature(name, value) for name, value in features.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _feature(name: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    types = set(map(type, values))
    if not types:
        # The model reads a feature without a kind as an empty list of the kind that it expects.
        return tf.train.Feature()
    if types <= {bool, int}:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=_whole(name, values)))
    if types == {float}:
        if any(abs(v) > _FLOAT_MAX for v in values if np.isfinite(v)):
            raise RequestError(f'Feature "{name}" holds a number that is too large.')
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if types & {bool, int, float}:
        raise RequestError(f'Feature "{name}" holds values of several kinds; 1.0 is a float, 1 is not.')
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text(name, v) for v in values]))


def _whole(name: str, values: Sequence[Any]) -> list[int]:
    if any(not -(2**63) <= v < 2**63 for v in values):
        raise RequestError(f'Feature "{name}" holds a number that is too large.')
    return [int(v) for v in values]


def classes(call: Call, outputs: Mapping[str, np.ndarray]) -> list[list[tuple[bytes, float]]]:
    """Return the label and the score of each class, for each example.

    Raises
    ------
    RequestError
        If the outputs do not have one row per example.
    """
    some = next(iter(outputs.values()))
    scores = _per_example(call, "scores", outputs.get("scores", np.zeros(some.shape, np.float32)), "f")
    labels = _per_example(call, "classes", outputs.get("classes", np.full(scores.shape, b"", object)), "O")
    if labels.shape != scores.shape:
        raise RequestError(f"The model has {labels.shape} classes for {scores.shape} scores.")
    return [
        list(zip(a, b, strict=True)) for a, b in zip(labels.tolist(), scores.astype(np.float32).tolist(), strict=True)
    ]


def _per_example(call: Call, name: str, array: np.ndarray, kind: str) -> np.ndarray:
    if array.dtype.kind != kind:
        raise RequestError(f'Output "{name}" is {array.dtype.name}; classes are strings, scores and values are floats.')
    if array.shape[:1] != (call.rows,) or array.ndim > 2:
        raise RequestError(f'Output "{name}" has shape {array.shape} for {call.rows} examples.')
    return array.reshape(array.shape[0], -1)


def values(call: Call, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return one number for each example.

    Raises
    ------
    RequestError
        If there is not exactly one number per example.
    """
    found = _per_example(call, "outputs", outputs["outputs"], "f")
    if found.shape[1] != 1:
        raise RequestError(f'Output "outputs" has {found.shape[1]} values for each example, not one.')
    return found.reshape(-1)


def classify_answer(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the answer to a ``:classify`` request."""
    rows = classes(call, outputs)
    labels = np.array([[label for label, _ in row] for row in rows], object)
    scores = np.array([[score for _, score in row] for row in rows], np.float32)
    pairs = zip(encode("classes", labels), encode("scores", scores), strict=True)
    return {"results": [[list(pair) for pair in zip(*row, strict=True)] for row in pairs]}


def regress_answer(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the answer to a ``:regress`` request."""
    return {"results": encode("outputs", values(call, outputs))}
