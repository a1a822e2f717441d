"""What TensorFlow Serving does with requests, case by case: asked by REST, and by its own published client."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from model_servers import Server, linear, until
from prometheus_client.parser import text_string_to_metric_families
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfspark.saved_models.export import export_model
from tfspark.saved_models.signatures import CLASSIFY, REGRESS

F, INT, S = tf.float32, tf.int64, tf.string


class Values(tf.Module):
    """One signature for each thing that models do with shapes and types."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1], F, "x")])
    def column(self, x: Any) -> Any:
        return {"y": x * 2.0}

    @tf.function(input_signature=[tf.TensorSpec([None, None], F, "x")])
    def candidates(self, x: Any) -> Any:
        return {"y": tf.nn.softmax(x, axis=0)}

    @tf.function(input_signature=[tf.TensorSpec([1, None], F, "user"), tf.TensorSpec([None, None], F, "items")])
    def rank(self, user: Any, items: Any) -> Any:
        return {"scores": tf.linalg.matvec(items, user[0])}

    @tf.function(input_signature=[tf.TensorSpec([None], F, "values"), tf.TensorSpec([None], INT, "row_splits")])
    def ragged(self, values: Any, row_splits: Any) -> Any:
        return {"sums": tf.reduce_sum(tf.RaggedTensor.from_row_splits(values, row_splits), axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], F, "x")])
    def kept(self, x: Any) -> Any:
        return {"y": tf.boolean_mask(x, x > 0)}

    @tf.function(input_signature=[tf.TensorSpec([], S, "s")])
    def scalar(self, s: Any) -> Any:
        return {"s": s}

    @tf.function(input_signature=[tf.TensorSpec([None], F, "x")])
    def imaginary(self, x: Any) -> Any:
        return {"c": tf.complex(x, x)}

    @tf.function(
        input_signature=[
            *(tf.TensorSpec([None], t, t.name) for t in (tf.uint64, tf.int8, tf.bool, tf.float64, tf.float16)),
            tf.TensorSpec([None], S, "string"),
        ]
    )
    def types(self, u: Any, i: Any, b: Any, d: Any, h: Any, s: Any) -> Any:
        return {"u": u, "i": i, "b": b, "d": d, "h": h, "s": s}

    @tf.function(input_signature=[tf.TensorSpec([None], S, "inputs")])
    def parsed(self, inputs: Any) -> Any:
        kinds = {"i": tf.io.VarLenFeature(INT), "f": tf.io.VarLenFeature(F), "s": tf.io.VarLenFeature(S)}
        found = tf.io.parse_example(inputs, kinds)
        whole = tf.reduce_sum(tf.sparse.to_dense(found["i"]), axis=1)
        return {"outputs": tf.cast(whole, F) + tf.reduce_sum(tf.sparse.to_dense(found["f"]), axis=1)}


def half_plus_two(directory: Path, version: float = 2.0) -> None:
    """Write a model of TensorFlow 1 whose variables `tf.saved_model.load` does not take, and whose signatures share."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        half = tf.compat.v1.get_variable("half", initializer=0.5, use_resource=False)
        examples = tf.compat.v1.placeholder(tf.string, [None], "examples")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], F)})["x"]
        y = x * half + version
        info = tf.compat.v1.saved_model.build_tensor_info
        labels = tf.tile(tf.constant([["half plus two"]]), [tf.shape(y)[0], 1])
        define = tf.compat.v1.saved_model.signature_def_utils.build_signature_def
        signatures = {
            "serving_default": define({"x": info(x)}, {"y": info(y), "z": info(y + 1.0)}, "tensorflow/serving/predict"),
            "regress": define({"inputs": info(examples)}, {"outputs": info(y)}, REGRESS),
            "regress_twice": define({"inputs": info(examples)}, {"outputs": info(2 * y)}, REGRESS),
            "classify": define({"inputs": info(examples)}, {"classes": info(labels), "scores": info(y)}, CLASSIFY),
        }
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def with_default(directory: Path) -> None:
    """Give the input "scale" of a saved model a value for requests that leave it out."""

    class Scaled(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], F, "x"), tf.TensorSpec([], F, "scale")])
        def __call__(self, x: Any, scale: Any) -> Any:
            return {"y": x * scale}

    module = Scaled()
    tf.saved_model.save(module, str(directory), module.__call__)
    path = directory / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    saved.meta_graphs[0].signature_def["serving_default"].defaults["scale"].CopyFrom(tf.make_tensor_proto(10.0, F))
    path.write_bytes(saved.SerializeToString())


class Client:
    """TensorFlow Serving's own stubs."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options)
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, model: str, signature: str = "", outputs: Any = (), **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name, request.model_spec.signature_name = model, signature
        for name, value in inputs.items():
            proto = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
            request.inputs[name].CopyFrom(proto)
        return self.predictions.Predict(request, timeout=60)


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    base = tmp_path_factory.mktemp("models")
    values = Values()
    names = "column candidates rank ragged kept scalar imaginary types parsed"
    tf.saved_model.save(values, str(base / "values" / "1"), {n: getattr(values, n) for n in names.split()})
    half_plus_two(base / "half" / "00000122", 3.0)
    half_plus_two(base / "half" / "00000123")
    with_default(base / "scaled" / "1")
    (base / "bad" / "1").mkdir(parents=True)
    (base / "bad" / "1" / "saved_model.pb").write_bytes(b"nonsense")
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    server = Server(
        base,
        *("--versions", "2", "--label", "half:old=122", "--poll-seconds", "0.1", "--max-body-mb", "1"),
        *("--cors-origin", "https://app.example"),
    )
    yield server
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.lines), "".join(server.lines)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    client = Client(server.grpc)
    yield client
    client.channel.close()


def predict(signature: str, **body: Any) -> dict[str, Any]:
    return {"signature_name": signature, **body}


TYPES = {"uint64": [2**64 - 1], "int8": [-5], "bool": [True], "float64": [0.1], "float16": [0.5], "string": ["ä"]}
ANSWERS: list[tuple[str, Any, Any]] = [
    (
        "half:predict",
        {"instances": [1.0, 2.0, 5.0]},
        [{"y": 2.5, "z": 3.5}, {"y": 3.0, "z": 4.0}, {"y": 4.5, "z": 5.5}],
    ),
    ("half/versions/122:predict", {"instances": [{"x": 0.0}]}, [{"y": 3.0, "z": 4.0}]),
    ("half/labels/old:predict", {"inputs": 0.0}, {"y": 3.0, "z": 4.0}),
    ("/V1/Models/half/Versions/123:predict", {"inputs": {"x": [[2]]}}, {"y": [[3.0]], "z": [[4.0]]}),
    ("half:regress", {"signature_name": "regress", "examples": [{"x": 80.0}, {"x": [90.0]}]}, [42.0, 47.0]),
    ("half:classify", {"signature_name": "classify", "examples": [{"x": 2.0}]}, [[["half plus two", 3.0]]]),
    ("values:predict", predict("column", instances=[1.0, 2.0, 5.0]), [2.0, 4.0, 10.0]),
    ("values:predict", predict("column", instances=[[0.1]]), [[0.2]]),
    ("values:predict", predict("candidates", inputs=[[1.0], [1.0]]), [[0.5], [0.5]]),
    ("values:predict", predict("rank", inputs={"user": [[1, 2]], "items": [[1, 0], [0, 1], [1, 1]]}), [1.0, 2.0, 3.0]),
    (
        "values:predict",
        predict("ragged", inputs={"values": [1, 2, 3], "row_splits": [0, 1, 3], "extra": 5}),
        [1.0, 5.0],
    ),
    ("values:predict", predict("kept", instances=[1.0, -1.0, 2.0]), [1.0, 2.0]),
    ("values:predict", predict("kept", inputs=[-1.0]), []),
    ("values:predict", predict("kept", inputs=[]), []),
    ("values:predict", predict("scalar", inputs="a"), "a"),
    ("values:predict", predict("scalar", inputs={"b64": "/w"}), {"b64": "/w=="}),
    (
        "values:predict",
        predict("types", inputs=TYPES),
        {"u": [2**64 - 1], "i": [-5], "b": [True], "d": [0.1], "h": [0.5], "s": ["ä"]},
    ),
    (
        "values:regress",
        predict("parsed", examples=[{"i": True}, {"i": [1, True], "f": 0.5}, {"i": [], "s": []}]),
        [1.0, 2.5, 0.0],
    ),
    ("scaled:predict", {"inputs": {"x": [1.0]}}, [10.0]),
    ("scaled:predict", {"inputs": {"x": [1.0], "scale": 3}}, [3.0]),
]


def test_requests_that_tensorflow_serving_answers(server: Server) -> None:
    for path, body, expected in ANSWERS:
        url = path if path.startswith("/") else f"/v1/models/{path}"
        answer = server.http.post(url, content=json.dumps(body))
        assert answer.status_code == 200, (path, body, answer.text)
        (key,) = answer.json()
        kinds = {"instances": "predictions", "inputs": "outputs", "examples": "results"}
        assert key == next(kinds[k] for k in kinds if k in body)
        assert answer.json()[key] == expected, (path, body)


REFUSED: list[tuple[str, Any, int, str]] = [
    ("values:predict", predict("imaginary", inputs=[1.0]), 400, "complex64, which JSON cannot hold"),
    ("values:predict", predict("kept", instances=[-1.0]), 400, "different numbers of rows"),
    ("values:predict", predict("kept", inputs=[True, 5]), 400, "has values of another type"),
    ("values:predict", predict("kept", inputs=[True]), 400, "has values of another type"),
    ("values:predict", predict("kept", inputs=[16_777_217]), 400, "whole numbers that float32 cannot hold exactly"),
    ("values:predict", predict("kept", inputs=[1e39]), 400, "beyond its range"),
    ("values:predict", predict("types", inputs={**TYPES, "uint64": [-1]}), 400, "beyond its range"),
    ("values:predict", predict("types", inputs={**TYPES, "uint64": [2**64]}), 400, "beyond its range"),
    ("values:predict", predict("types", inputs={**TYPES, "int8": [200]}), 400, "beyond its range"),
    ("values:predict", predict("types", inputs={**TYPES, "bool": [1]}), 400, "has values of another type"),
    ("values:predict", predict("scalar", instances=[5]), 400, "takes strings"),
    ("values:predict", predict("rank", instances=[{"user": [1], "items": [1], "more": 1}]), 400, "but the inputs are"),
    ("values:regress", predict("parsed", examples=[{"i": [1, 0.5]}]), 400, "several kinds"),
    ("values:regress", predict("parsed", examples=[{"i": [None]}]), 400, "takes strings"),
    ("values:regress", predict("parsed", examples=[{"i": 2**63}]), 400, "too large"),
    ("values:regress", predict("parsed", examples=[{"f": 1e39}]), 400, "too large"),
    ("values:regress", predict("parsed", context={"f": 1.0}, examples=[{"f": 2.0}]), 400, "again"),
    ("values:regress", predict("parsed", examples=[{"i": 1.5}]), 400, "i"),
    ("half:predict", {"signature_name": None, "instances": [1.0]}, 400, "must be a string"),
    ("half:predict", {"instances": []}, 400, "at least one row"),
    ("half/labels/new:predict", {"instances": [1.0]}, 400, "Unrecognized servable version label: new"),
    ("half/versions/5:predict", {"instances": [1.0]}, 404, r"Specific\(half, 5\)"),
    ("bad:predict", {"instances": [1.0]}, 404, r"Latest\(bad\)"),
]


def test_requests_that_tensorflow_serving_refuses(server: Server) -> None:
    for path, body, status, message in REFUSED:
        answer = server.post(path, body)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), (path, body, answer.text)
        assert re.search(message, answer.json()["error"]), (path, body, answer.text)


def test_numbers_have_as_few_digits_as_tell_them_apart(server: Server) -> None:
    text = server.post("values:predict", predict("kept", inputs=[0.1, 1e20, 3, 0.30000001])).text
    assert text == '{"outputs": [0.1, 1e+20, 3.0, 0.3]}'


def test_bodies_in_gzip_and_web_pages_of_others(server: Server) -> None:
    url, body = "/v1/models/values:predict", json.dumps(predict("column", inputs=[2.0])).encode()
    headers = {"content-encoding": "gzip"}
    assert server.http.post(url, content=gzip.compress(body), headers=headers).json() == {"outputs": [4.0]}
    for wrong in (body, gzip.compress(body)[:-4], gzip.compress(body) + b"x"):
        assert server.http.post(url, content=wrong, headers=headers).status_code == 400
    assert server.http.post(url, content=gzip.compress(b" " * 2_000_000), headers=headers).status_code == 413
    asked = server.http.post(url, content=body, headers={"origin": "https://app.example"})
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://app.example"
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert server.http.options(url, headers=preflight).status_code == 200
    assert server.http.post(url, content=body, headers={"origin": "https://other.example"}).status_code == 403


def test_rows_of_different_requests_do_not_meet(server: Server, client: Client) -> None:
    async def ask(http: httpx.AsyncClient, n: int) -> None:
        body = predict("candidates", inputs=[[1.0]] * n)
        answer = await http.post("/v1/models/values:predict", json=body)
        assert np.allclose(answer.json()["outputs"], 1 / n)

    async def load() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            await asyncio.gather(*(ask(http, 1 + i % 5) for i in range(200)))

    def rpc(n: int) -> None:
        for _ in range(25):
            found = client.predict("values", "candidates", x=np.ones((n, 1), np.float32)).outputs["y"]
            assert np.allclose(tf.make_ndarray(found), 1 / n)

    failed: list[BaseException] = []
    threads = [threading.Thread(target=_noting(failed, rpc, n)) for n in (1, 2, 3, 4)]
    for t in threads:
        t.start()
    asyncio.run(load())
    for t in threads:
        t.join()
    assert failed == []


def _noting(failed: list[BaseException], function: Callable[..., None], *args: Any) -> Callable[[], None]:
    def run() -> None:
        try:
            function(*args)
        except BaseException as e:
            failed.append(e)

    return run


def test_a_model_that_cannot_be_loaded_stops_no_other(server: Server) -> None:
    ready = server.http.get("/healthz")
    assert ready.status_code == 503
    assert ready.json() == {"healthy": False, "models": {"bad": False, "half": True, "scaled": True, "values": True}}
    assert server.http.get("/healthz/live").status_code == 200
    assert server.http.get("/healthz/models/bad").status_code == 503
    assert server.http.get("/healthz/models/half").status_code == 200
    (status,) = server.http.get("/v1/models/bad").json()["model_version_status"]
    assert status["state"] == "END" and "Cannot read" in status["status"]["error_message"]


# --- gRPC


def test_grpc_predict(client: Client) -> None:
    answer = client.predict("half", x=np.array([[2.0]], np.float32))
    assert {n: tf.make_ndarray(p).tolist() for n, p in answer.outputs.items()} == {"y": [[3.0]], "z": [[4.0]]}
    assert list(answer.outputs["y"].float_val) == [3.0]
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half", 123, "serving_default")
    assert set(client.predict("half", outputs=["z"], x=np.float32(1)).outputs) == {"z"}
    given = {
        "uint64": np.array([2**64 - 1], np.uint64),
        "int8": np.array([-5], np.int8),
        "bool": np.array([True]),
        "float64": np.array([0.1]),
        "float16": np.array([0.5], np.float16),
        "string": np.array([b"\xff"], object),
    }
    found = client.predict("values", "types", **given).outputs
    assert [tf.make_ndarray(found[n])[0] for n in "uibdhs"] == [2**64 - 1, -5, True, 0.1, 0.5, b"\xff"]
    complex_ = client.predict("values", "imaginary", x=np.ones(1, np.float32)).outputs["c"]
    assert tf.make_ndarray(complex_).tolist() == [1 + 1j]
    assert tf.make_ndarray(client.predict("values", "scalar", s=b"a\0").outputs["s"]).item() == b"a\0"
    assert tf.make_ndarray(client.predict("scaled", x=np.ones(2, np.float32)).outputs["y"]).tolist() == [10, 10]
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = "half", "old"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(0.0))
    assert client.predictions.Predict(request).model_spec.version.value == 122


def test_grpc_refusals_have_the_codes_of_tensorflow_serving(client: Client) -> None:
    x = np.ones((1, 1), np.float32)
    huge = tf.make_tensor_proto(1.0, shape=[1])
    huge.tensor_shape.dim[0].size = 1 << 40
    short = tf.make_tensor_proto([b"a"], shape=[1])
    short.tensor_shape.dim[0].size = 3
    del short.string_val[:]
    cases = [
        (lambda: client.predict("none", x=x), "NOT_FOUND", "Latest(none)"),
        (lambda: client.predict("", x=x), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (lambda: client.predict("half", "none", x=x), "FAILED_PRECONDITION", '"none" not found'),
        (lambda: client.predict("half"), "INVALID_ARGUMENT", "Missing but required: ['x']"),
        (lambda: client.predict("half", x=x, more=x), "INVALID_ARGUMENT", "Sent extra: ['more']"),
        (lambda: client.predict("half", x=x.astype(np.float64)), "INVALID_ARGUMENT", "takes float32, but is float64"),
        (lambda: client.predict("half", outputs=["w"], x=x), "INVALID_ARGUMENT", "alias not found in signature: w"),
        (lambda: client.predict("half", outputs=["y", "y"], x=x), "INVALID_ARGUMENT", "duplicate output tensor alias"),
        (lambda: client.predict("values", "kept", x=huge), "RESOURCE_EXHAUSTED", "4398046511104 bytes"),
        (lambda: client.predict("values", "types", string=short), "INVALID_ARGUMENT", "Missing but required"),
        (lambda: client.predict("values", "scalar", s=short), "INVALID_ARGUMENT", '"s"'),
        (lambda: client.predict("values", "rank", user=x, items=np.ones((1, 2), np.float32)), "INVALID_ARGUMENT", ""),
        (
            lambda: client.predict("values", "kept", x=np.ones(400_000, np.float32)),
            "RESOURCE_EXHAUSTED",
            "larger than max",
        ),
    ]
    for call, code, message in cases:
        found = refused(call)
        assert found[0] == code and message in found[1], (found, code, message)
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = "half", "new"
    assert refused(lambda: client.predictions.Predict(request)) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: new",
    )


def examples(request: Any, signature: str, *xs: float, context: bool = False) -> Any:
    request.model_spec.name, request.model_spec.signature_name = "half", signature
    for x in xs:
        feature = tf.train.Feature(float_list=tf.train.FloatList(value=[x]))
        example = tf.train.Example(features=tf.train.Features(feature={"x": feature}))
        if context:
            request.input.example_list_with_context.context.CopyFrom(example)
            request.input.example_list_with_context.examples.add()
        else:
            request.input.example_list.examples.add().CopyFrom(example)
    return request


def test_grpc_classify_regress_and_multi_inference(client: Client) -> None:
    asked = examples(classification_pb2.ClassificationRequest(), "classify", 2.0, 4.0)
    answer = client.predictions.Classify(asked)
    assert [[(c.label, c.score) for c in r.classes] for r in answer.result.classifications] == [
        [("half plus two", 3.0)],
        [("half plus two", 4.0)],
    ]
    assert answer.model_spec.version.value == 123
    asked = examples(regression_pb2.RegressionRequest(), "regress", 2.0, context=True)
    assert [r.value for r in client.predictions.Regress(asked).result.regressions] == [3.0]
    asked = examples(regression_pb2.RegressionRequest(), "regress")
    assert refused(lambda: client.predictions.Regress(asked)) == ("INVALID_ARGUMENT", "Input is empty.")
    asked = examples(classification_pb2.ClassificationRequest(), "regress", 1.0)
    assert (
        "Expected a signature for tensorflow/serving/classify" in refused(lambda: client.predictions.Classify(asked))[1]
    )

    both = inference_pb2.MultiInferenceRequest()
    both.input.CopyFrom(examples(regression_pb2.RegressionRequest(), "regress", 2.0).input)
    for signature, method in (("classify", CLASSIFY), ("regress", REGRESS), ("regress_twice", REGRESS)):
        task = both.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "half", signature
    results = client.predictions.MultiInference(both).results
    assert results[0].classification_result.classifications[0].classes[0].score == 3.0
    assert [r.regression_result.regressions[0].value for r in results[1:]] == [3.0, 6.0]
    both.tasks.add(method_name=REGRESS).model_spec.CopyFrom(both.tasks[1].model_spec)
    assert "Duplicate evaluation" in refused(lambda: client.predictions.MultiInference(both))[1]
    both.tasks[3].method_name = "tensorflow/serving/predict"
    assert refused(lambda: client.predictions.MultiInference(both))[0] == "UNIMPLEMENTED"
    assert refused(lambda: client.predictions.MultiInference(inference_pb2.MultiInferenceRequest()))[0] == (
        "INVALID_ARGUMENT"
    )


def test_grpc_metadata_status_health_and_reflection(server: Server, client: Client) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half"
    answer = client.predictions.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures) and answer.model_spec.version.value == 123
    assert signatures.signature_def["regress"].method_name == REGRESS
    for fields in ([], ["other"]):
        del request.metadata_field[:]
        request.metadata_field.extend(fields)
        assert refused(lambda: client.predictions.GetModelMetadata(request))[0] == "INVALID_ARGUMENT"
    metadata = server.http.get("/v1/models/scaled/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert metadata["serving_default"]["defaults"]["scale"]["float_val"] == [10.0]
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "bad"
    (found,) = client.models.GetModelStatus(status).model_version_status
    assert found.state == found.END and found.status.error_code == 2
    status.model_spec.name = "none"
    assert refused(lambda: client.models.GetModelStatus(status))[0] == "NOT_FOUND"
    health = health_pb2_grpc.HealthStub(client.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    models = health_pb2.HealthCheckRequest(service="tensorflow.serving.ModelService")
    assert health.Check(models).status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(client.channel).get_services()
    assert {"tensorflow.serving.PredictionService", "grpc.health.v1.Health"} <= set(services)


def test_metrics_for_prometheus(server: Server, client: Client) -> None:
    server.post("half:predict", {"instances": [1.0]})
    server.post("nobody:predict", {"instances": [1.0]})
    client.predict("half", x=np.float32(1))
    text = server.http.get("/monitoring/prometheus/metrics").text
    assert "# TYPE :tensorflow:serving:request_count counter" in text
    for entrypoint in ("REST", "GRPC"):
        labels = f'model_name="half",API="Predict",entrypoint="{entrypoint}"'
        assert f":tensorflow:serving:request_latency_count{{{labels}}}" in text
    assert 'request_count{model_name="(unknown)",status="NOT_FOUND"}' in text and "nobody" not in text
    assert 'tfspark_serve_ready{model_name="bad"} 0' in text and 'tfspark_serve_ready{model_name="half"} 1' in text
    assert len(list(text_string_to_metric_families(text))) >= 5


# --- a server whose models a file names


CONFIG = """
model_config_list {{
  config {{
    name: "half" base_path: "{base}/half" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 122 versions: 123 }} }}
    version_labels {{ key: "stable" value: {stable} }}
  }}
  {more}
}}
"""


def write_warmup(version: Path, count: int, signature: str = "column") -> None:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "values", signature
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0]]))
    (version / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(version / "assets.extra" / "tf_serving_warmup_requests")) as f:
        for _ in range(count):
            f.write(log.SerializeToString())


def test_a_config_file_is_read_again_and_reload_requests_are_taken(base: Path, tmp_path: Path) -> None:
    warm, cold = tmp_path / "values", tmp_path / "cold"
    for target, count, signature in ((warm, 3, "column"), (cold, 1, "none")):
        shutil.copytree(base / "values", target)
        write_warmup(target / "1", count, signature)
    file = tmp_path / "models.config"
    file.write_text(CONFIG.format(base=base, stable=122, more=""))
    batching = tmp_path / "batching.config"
    batching.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 2000 } num_batch_threads { value: 2 }"
        "allowed_batch_sizes: 4 allowed_batch_sizes: 8 max_enqueued_batches { value: 100 }"
    )
    options = ["--model-config-file", file, "--poll-seconds", "0.1", "--enable-batching"]
    server = Server(*options, "--batching-parameters-file", batching)
    try:
        client = Client(server.grpc)

        def stable() -> Any:
            answer = server.post("half/labels/stable:predict", {"inputs": 0.0})
            return answer.json()["outputs"]["y"] if answer.status_code == 200 else answer.status_code

        assert stable() == 3.0
        # Batches are padded to four rows, of which nobody sees anything.
        rows = np.array([[2.0], [4.0], [6.0]], np.float32)
        found = client.predict("half", x=rows).outputs["y"]
        assert tf.make_ndarray(found).tolist() == [[3.0], [4.0], [5.0]]
        more = f'config {{ name: "values" base_path: "{warm}" }} config {{ name: "cold" base_path: "{cold}" }}'
        more += f' config {{ name: "empty" base_path: "{tmp_path}/nothing" }}'
        file.write_text(CONFIG.format(base=base, stable=123, more=more))
        until(lambda: stable() == 2.0)
        until(lambda: server.http.get("/healthz").json()["models"].get("values", False))
        until(lambda: any("Warm-up request 0" in line for line in server.lines))
        until(lambda: any("warmed up version 1 of values with 3 requests" in line for line in server.lines))
        ready = server.http.get("/healthz").json()["models"]
        assert ready == {"cold": False, "empty": False, "half": True, "values": True}
        file.write_text("nonsense")
        until(lambda: any("cannot read the models to serve" in line for line in server.lines))
        assert stable() == 2.0

        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(CONFIG.format(base=base, stable=122, more=""), request.config)
        answer = client.models.HandleReloadConfigRequest(request, timeout=60)
        assert answer.status.error_code == 0 and stable() == 3.0
        assert server.http.get("/v1/models/values").status_code == 404
        request.config.model_config_list.config.add(name="gone", base_path=str(tmp_path / "nothing"))
        answer = client.models.HandleReloadConfigRequest(request, timeout=60)
        assert answer.status.error_code and "gone: no versions were found" in answer.status.error_message
        empty = model_management_pb2.ReloadConfigRequest()
        assert refused(lambda: client.models.HandleReloadConfigRequest(empty))[0] == "INVALID_ARGUMENT"
        client.channel.close()
    finally:
        assert server.stop() == 0


def test_hot_reload_under_load_of_both_interfaces(tmp_path: Path) -> None:
    export_model(linear(1.0), str(tmp_path / "m"))
    server = Server(tmp_path / "m", "--poll-seconds", "0.1")
    done = threading.Event()
    failed: list[BaseException] = []
    counts = [0, 0]

    def rpc() -> None:
        client = Client(server.grpc)
        while not done.is_set():
            answer = client.predict("m", x=np.ones((2, 3), np.float32))
            (found,) = (tf.make_ndarray(p) for p in answer.outputs.values())
            assert found.tolist() == [[3.0 * answer.model_spec.version.value]] * 2
            counts[0] += 1
        client.channel.close()

    def rest() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not done.is_set():
                answer = http.post("/v1/models/m:predict", json={"instances": [[1, 1, 1]]})
                assert answer.status_code == 200 and answer.json()["predictions"][0][0] in (3.0, 6.0, 9.0)
                counts[1] += 1

    threads = [threading.Thread(target=_noting(failed, f)) for f in (rpc, rest) for _ in range(4)]
    try:
        for t in threads:
            t.start()
        for version in (2.0, 3.0):
            export_model(linear(version), str(tmp_path / "m"))
            expected = {"predictions": [[3 * version]]}
            until(lambda e=expected: server.post("m:predict", {"instances": [[1, 1, 1]]}).json() == e)  # type: ignore[misc]
        done.set()
        for t in threads:
            t.join()
        assert failed == [] and min(counts) > 20
    finally:
        done.set()
        assert server.stop() == 0
