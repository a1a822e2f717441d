"""Converts gRPC requests of TensorFlow Serving to calls of a model, and outputs to answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from tfspark.model_server.errors import Code, RequestError, TooLarge, Unimplemented
from tfspark.model_server.loaded import LoadedVersion
from tfspark.model_server.requests import Call, check_method, classes, common_rows, signature_of, values
from tfspark.model_server.tensors import from_proto, to_proto
from tfspark.saved_models.signatures import CLASSIFY, REGRESS

if TYPE_CHECKING:
    from tfspark.model_server.repository import Repository, Statuses

METADATA_FIELD = "signature_def"


def find(repository: Repository, spec: Any) -> LoadedVersion:
    """Return the version of a ``ModelSpec``.

    Raises
    ------
    RequestError
        If the ``ModelSpec`` names no model, or the version is not loaded.
    """
    if not spec.name:
        raise RequestError("Missing ModelSpec: the request names no model.")
    return repository.find(spec.name, *_version(spec))


def _version(spec: Any) -> tuple[int | None, str | None]:
    choice = spec.WhichOneof("version_choice")
    if choice == "version":
        return spec.version.value, None
    return None, spec.version_label or None if choice == "version_label" else None


def fill_spec(spec: Any, loaded: LoadedVersion, signature: str) -> None:
    """Set the model, version and signature of an answer."""
    spec.name = loaded.model
    spec.version.value = loaded.number
    spec.signature_name = signature


def predict_call(request: Any, loaded: LoadedVersion, most_bytes: int) -> Call:
    """Convert a ``PredictRequest`` to a call.

    Raises
    ------
    RequestError
        If the request does not fit the signature.
    """
    signature = signature_of(request.model_spec.signature_name, loaded.signatures)
    defaults = loaded.defaults[signature.name]
    given, wanted = set(request.inputs), set(signature.inputs)
    missing = wanted - given - set(defaults)
    if given - wanted or missing:
        raise RequestError(
            f"input size does not match signature: the inputs are {sorted(wanted)}. Sent extra: "
            f"{sorted(given - wanted)}. Missing but required: {sorted(missing)}."
        )
    outputs = tuple(request.output_filter)
    if unknown := [o for o in outputs if o not in signature.outputs]:
        raise RequestError(
            f"output tensor alias not found in signature: {unknown[0]}. The outputs are {list(signature.outputs)}."
        )
    if len(set(outputs)) < len(outputs):
        raise RequestError(f"duplicate output tensor alias in {list(outputs)}.")
    arrays = {n: from_proto(n, request.inputs[n], signature.inputs[n], most_bytes) for n in sorted(given)}
    rows = common_rows(arrays) if given >= set(defaults) else None
    return Call(signature.name, {**defaults, **arrays}, rows, outputs=outputs)


def predict_answer(loaded: LoadedVersion, call: Call, outputs: Mapping[str, np.ndarray]) -> Any:
    """Return the answer to a ``PredictRequest``."""
    answer = predict_pb2.PredictResponse()
    fill_spec(answer.model_spec, loaded, call.signature)
    for name, array in outputs.items():
        answer.outputs[name].CopyFrom(to_proto(array))
    return answer


def example_call(spec: Any, given: Any, loaded: LoadedVersion, method: str, most_bytes: int) -> Call:
    """Convert the ``Input`` of a classify or regress request to a call.

    Raises
    ------
    RequestError
        If the signature does not exist or has another method, there are no examples, or the context is too large.
    """
    name = spec.signature_name
    try:
        signature = signature_of(name, loaded.signatures)
    except RequestError as e:
        raise RequestError(e.message) from None
    check_method(signature, method)
    serialized = _examples(given, most_bytes)
    if not len(serialized):
        raise RequestError("Input is empty.")
    return Call(signature.name, {"inputs": serialized}, len(serialized))


def _examples(given: Any, most_bytes: int) -> np.ndarray:
    kind = given.WhichOneof("kind")
    context = b""
    if kind == "example_list_with_context":
        examples = given.example_list_with_context.examples
        features = given.example_list_with_context.context.features.feature
        if any(n in features for e in examples for n in e.features.feature):
            raise RequestError("A feature is in both the context and an example.")
        context = given.example_list_with_context.context.SerializeToString()
    else:
        examples = given.example_list.examples if kind == "example_list" else []
    if len(context) * len(examples) > most_bytes:
        raise TooLarge(
            f"The context is repeated in each of {len(examples)} examples, which is more than the limit of "
            f"{most_bytes} bytes."
        )
    serialized = np.empty(len(examples), object)
    # Two concatenated serialized messages are one message with the entries of both.
    serialized[:] = [context + e.SerializeToString() for e in examples]
    return serialized


def classification(call: Call, outputs: Mapping[str, np.ndarray]) -> Any:
    """Return a ``ClassificationResult``."""
    result = classification_pb2.ClassificationResult()
    for row in classes(call, outputs):
        found = result.classifications.add()
        for label, score in row:
            found.classes.add(label=_text(label), score=score)
    return result


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise RequestError(f"The class {label!r} is not valid UTF-8.") from None


def regression(call: Call, outputs: Mapping[str, np.ndarray]) -> Any:
    """Return a ``RegressionResult``."""
    result = regression_pb2.RegressionResult()
    for value in values(call, outputs).tolist():
        result.regressions.add(value=value)
    return result


def tasks(request: Any, loaded: LoadedVersion, most_bytes: int) -> list[tuple[str, Call]]:
    """Return the method and the call of each task of a ``MultiInferenceRequest``.

    Raises
    ------
    RequestError
        If the tasks have different models or input tensors, or use the same signature twice, or if a method is not
        supported.
    """
    calls: list[tuple[str, Call]] = []
    for task in request.tasks:
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise RequestError("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise Unimplemented(f"Unsupported signature method_name: {task.method_name}")
        call = example_call(task.model_spec, request.input, loaded, task.method_name, most_bytes)
        if any(call.signature == c.signature for _, c in calls):
            raise RequestError(f"Duplicate evaluation of signature: {call.signature}")
        calls.append((task.method_name, call))
    tensors = {loaded.signatures[c.signature].inputs["inputs"].tensor for _, c in calls}
    if len(tensors) > 1:
        raise RequestError("Input tensor must be the same for all Signatures.")
    return calls


def inference_result(loaded: LoadedVersion, method: str, call: Call, outputs: Mapping[str, np.ndarray]) -> Any:
    """Return the ``InferenceResult`` of one task."""
    result = inference_pb2.InferenceResult()
    fill_spec(result.model_spec, loaded, call.signature)
    if method == CLASSIFY:
        result.classification_result.CopyFrom(classification(call, outputs))
    else:
        result.regression_result.CopyFrom(regression(call, outputs))
    return result


def metadata(loaded: LoadedVersion, fields: list[str]) -> Any:
    """Return a ``GetModelMetadataResponse``.

    Raises
    ------
    RequestError
        If a metadata field is unknown.
    """
    if not fields:
        raise RequestError("GetModelMetadataRequest must specify at least one metadata_field")
    if unknown := [f for f in fields if f != METADATA_FIELD]:
        raise RequestError(f"Metadata field {unknown[0]} is not supported")
    answer = get_model_metadata_pb2.GetModelMetadataResponse()
    answer.model_spec.name = loaded.model
    answer.model_spec.version.value = loaded.number
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in loaded.definitions.items():
        signatures.signature_def[name].CopyFrom(definition)
    answer.metadata[METADATA_FIELD].Pack(signatures)
    return answer


def model_status(statuses: Statuses) -> Any:
    """Return a ``GetModelStatusResponse``."""
    answer = get_model_status_pb2.GetModelStatusResponse()
    states = get_model_status_pb2.ModelVersionStatus.State
    for number, status in statuses.items():
        shown = answer.model_version_status.add(version=number, state=states.Value(status.state))
        shown.status.error_code = Code.UNKNOWN.number if status.error else 0
        shown.status.error_message = status.error
    return answer


def statuses_of(repository: Repository, spec: Any) -> Statuses:
    """Return the statuses of the versions of a ``ModelSpec``.

    Raises
    ------
    RequestError
        If the ``ModelSpec`` names no model, or the model does not exist.
    """
    if not spec.name:
        raise RequestError("Missing ModelSpec: the request names no model.")
    return repository.statuses(spec.name, *_version(spec))
