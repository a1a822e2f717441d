"""`tfspark serve` where anybody may reach it: clients that hold connections, signals, TLS, remote files."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_servers import Server, until
from pyarrow import fs
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfspark.errors import ConfigurationError
from tfspark.model_server import places, repository
from tfspark.model_server.model_config import ConfigFileSource, DirectorySource, parse_config_file
from tfspark.model_server.places import RemotePlace
from tfspark.model_server.repository import Repository
from tfspark.model_server.text_config import BATCHING, SSL, read_text
from tfspark.records.storage import ArrowStorage

TIMEOUT = 2.0


class Model(tf.Module):
    def __init__(self, factor: float) -> None:
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def times(self, x: Any) -> Any:
        return {"y": self.factor * x}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
    def endless(self, x: Any) -> Any:
        return {"y": tf.while_loop(lambda y: y > -1.0, lambda y: [tf.math.sqrt(y * y + 1.0)], [x])[0]}


def save(factor: float, directory: Path) -> None:
    model = Model(factor)
    tf.saved_model.save(model, str(directory), {"serving_default": model.times, "endless": model.endless})


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    base = tmp_path_factory.mktemp("models")
    save(2.0, base / "m" / "1")
    return base


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: Any) -> tuple[Path, bytes]:
    """Return a file as TensorFlow Serving's ``--ssl_config_file`` takes, and the certificate in it."""
    key, pem = _certificate()
    file = tmp_path_factory.mktemp("ssl") / "ssl.config"
    quoted = [text.decode().replace("\n", "\\n") for text in (key, pem)]
    file.write_text(f'server_key: "{quoted[0]}"\nserver_cert: "{quoted[1]}"\nclient_verify: false\n')
    return file, pem


def _certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    signed = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(
        key, hashes.SHA256()
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, signed.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def server(base: Path, certificate: tuple[Path, bytes]) -> Iterator[Server]:
    server = Server(
        base,
        *("--timeout-seconds", str(TIMEOUT), "--shutdown-seconds", "4", "--max-connections", "12"),
        *("--ssl-config-file", certificate[0]),
    )
    yield server
    server.process.kill()
    server.process.wait()


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


HEADER = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


def test_connections_that_do_not_get_on_are_closed(server: Server) -> None:
    sent = {"nothing": b"", "half a header": HEADER[:30], "half a body": HEADER + b'{"inputs"'}
    began = time.monotonic()
    connections = {name: connect(server) for name in sent}
    for name, connection in connections.items():
        connection.sendall(sent[name])
    # A header that comes drop by drop has no more time than another.
    dripping = connect(server)
    dripped = threading.Event()

    def drip() -> None:
        for i in range(len(HEADER)):
            try:
                dripping.sendall(HEADER[i : i + 1])
            except OSError:
                break
            if dripped.wait(0.2):
                break

    thread = threading.Thread(target=drip)
    thread.start()
    for name, connection in [*connections.items(), ("drop by drop", dripping)]:
        answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 408 ") or name == "drop by drop", (name, answer)
        assert time.monotonic() - began >= TIMEOUT * 0.9
    dripped.set()
    thread.join()
    assert time.monotonic() - began < 6 * TIMEOUT
    # A body that gets on may take longer than that.
    slow = connect(server)
    body = b'{"inputs": [1.0]}'
    slow.sendall(
        HEADER.replace(b"1000", str(len(body)).encode()).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    pause = threading.Event()
    for i in range(0, len(body), 3):
        slow.sendall(body[i : i + 3])
        pause.wait(TIMEOUT / 4)
    assert rest_of(slow).endswith(b'{"outputs": [2.0]}')


def test_there_are_no_more_connections_than_allowed(server: Server) -> None:
    server.http.close()
    held = [connect(server) for _ in range(12)]
    answer = rest_of(connect(server))
    assert answer.startswith(b"HTTP/1.1 503 ")
    for connection in held:
        connection.close()
    server.http = httpx.Client(base_url=server.url, timeout=60)
    until(lambda: server.http.get("/healthz/live").status_code == 200)


def test_grpc_is_encrypted_if_asked(server: Server, certificate: tuple[Path, bytes]) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    options = [("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(server.grpc, grpc.ssl_channel_credentials(certificate[1]), options) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        assert list(answer.outputs["y"].float_val) == [2.0]
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError):
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=5)


def test_it_ends_soon_after_a_signal_whatever_is_half_sent(server: Server) -> None:
    held = connect(server)
    held.sendall(HEADER + b'{"inp')
    assert server.http.get("/healthz/live").status_code == 200
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 8
    held.close()


def test_it_ends_soon_after_a_signal_whatever_the_model_does(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=f"Cannot listen on 127.0.0.1:{port} for gRPC"):
            Server(base, grpc_port=str(port))
    server = Server(base, "--shutdown-seconds", "2", "--calls", "1")
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "endless"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(0.0))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        # The second waits for the first, of which only the answer is dropped.
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as late:
                stub.Predict(request, timeout=1)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    (model,) = server.http.get("/overview").json()["models"]
    assert (model["versions"][0]["requests"], model["versions"][0]["calls"]) == (2, 1)
    began = time.monotonic()
    server.process.terminate()
    assert server.process.wait(30) == 1
    assert time.monotonic() - began < 6
    assert any("dropping calls that are still running" in line for line in server.lines)
    server.stop()


def test_models_of_other_file_systems_are_copied(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(base / "m", tmp_path / "bucket" / "models" / "m")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    store = ArrowStorage(fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem()), "store://bucket/")

    def place_of(uri: str) -> Any:
        assert uri.startswith("store://bucket/")
        return RemotePlace(store, uri.removeprefix("store://bucket/"))

    monkeypatch.setattr(repository, "place_of", place_of)
    monkeypatch.setattr("tfspark.model_server.model_config.place_of", place_of)
    models = Repository(DirectorySource("store://bucket/models"))

    def answer() -> float:
        return float(models.find("m").call("serving_default", {"x": np.ones(1, np.float32)})["y"][0])

    assert answer() == 2.0
    (copy,) = (tmp_path / "tmp").iterdir()
    save(3.0, tmp_path / "bucket" / "models" / "m" / "0002")
    models.refresh()
    assert answer() == 3.0
    models.refresh()
    assert not copy.exists() and len(list((tmp_path / "tmp").iterdir())) == 1
    before = models.find("m")
    (tmp_path / "bucket" / "models" / "m" / "0002" / "note").write_text("new")
    models.refresh()
    assert models.find("m") is not before
    (tmp_path / "bucket").rename(tmp_path / "away")
    models.refresh()
    assert not models.healthy


def test_a_place_is_local_or_named_by_a_uri(tmp_path: Path) -> None:
    assert isinstance(places.place_of(f"file://{tmp_path}"), places.LocalPlace)
    assert places.place_of(str(tmp_path)).versions() == {}
    assert places.child_of("s3://b/models/?region=x", "m") == "s3://b/models/m?region=x"
    assert places.names_of("s3://b/models/m/?region=x") == ("m", "models")
    assert places.names_of("/models/m/3") == ("3", "m")
    with pytest.raises(ConfigurationError, match="Supported schemes are file, hdfs, s3"):
        places.place_of("ftp://host/models")


BAD_CONFIGS = [
    ("nonsense", "is not a model config file"),
    ("", "has no model_config_list"),
    ('model_config_list { config { name: "m" } }', "needs name and base_path"),
    ('model_config_list { config { name: "m" base_path: "/a" } config { name: "m" base_path: "/b" } }', "'m' twice"),
    ('model_config_list { config { name: "m" base_path: "/a" model_platform: "caffe" } }', "only 'tensorflow'"),
    (
        'model_config_list { config { name: "m" base_path: "/a" model_version_policy { specific {} } } }',
        "without versions",
    ),
]


def test_configuration_files_that_are_wrong_are_named(tmp_path: Path) -> None:
    for text, message in BAD_CONFIGS:
        with pytest.raises(ConfigurationError, match=message):
            parse_config_file(text.encode(), "f")
    with pytest.raises(ConfigurationError, match="Cannot read the model config file"):
        ConfigFileSource(str(tmp_path / "none")).read()
    file = tmp_path / "f"
    file.write_text("max_batch_size { value: 8 } allowed_batch_sizes: [2, 8] pad_variable_length_inputs: true")
    assert read_text(str(file), BATCHING) == {
        "max_batch_size": 8,
        "allowed_batch_sizes": [2, 8],
        "pad_variable_length_inputs": True,
    }
    with pytest.raises(ConfigurationError, match="Its fields are server_key"):
        read_text(str(file), SSL)
    everything = parse_config_file(
        b'model_config_list { config { name: "m" base_path: "/a" model_version_policy { all {} } } '
        b'config { name: "n" base_path: "/b" model_version_policy { latest { num_versions: 3 } } } }',
        "f",
    )
    assert [c.policy.newest for c in everything.values()] == [None, 3]
