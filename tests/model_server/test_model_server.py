"""`tfspark serve`: TensorFlow Serving's REST API, asked by a real HTTP client and a real browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import keras
import pytest
import tensorflow as tf
from browser import chromium
from model_servers import Server, linear, until

from tfspark.cli import main
from tfspark.saved_models.export import export_model


class Odd(tf.Module):
    """What Keras models do not do: scalars, many types, and outputs that are not one value per row."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, "n"),
            tf.TensorSpec([None], tf.string, "s"),
            tf.TensorSpec([None, None], tf.bool, "b"),
        ]
    )
    def mixed(self, n: Any, s: Any, b: Any) -> Any:
        return {"n": n + 1, "s": s, "s_bytes": s, "b": tf.logical_not(b), "f": tf.math.log(tf.cast(n, tf.float32))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def total(self, x: Any) -> Any:
        return {"total": tf.reduce_sum(x), "x": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "n")])
    def picky(self, n: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(n, 100, message="n is too large")]):
            return {"n": n * 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("models")
    for factor in (1.0, 2.0, 3.0):
        export_model(linear(factor), str(base / "linear"), regress=True, metrics={"loss": factor})
    x, word = keras.Input((1,), name="x"), keras.Input((1,), name="word", dtype="string")
    one_hot = keras.layers.StringLookup(vocabulary=["a"], output_mode="one_hot")(word)
    scores = keras.layers.Dense(2, kernel_initializer="ones")(
        keras.layers.Concatenate()([x, keras.ops.cast(one_hot, "float32")])
    )
    export_model(keras.Model({"x": x, "word": word}, scores), str(base / "words"), classes=["no", "yes"])
    odd = Odd()
    tf.saved_model.save(odd, str(base / "odd" / "1"), {n: getattr(odd, n) for n in ("mixed", "total", "picky")})
    # Requests of 5 ms share a call, however fast calls are.
    batching = tmp_path_factory.mktemp("batching") / "parameters"
    batching.write_text("batch_timeout_micros { value: 5000 }")
    server = Server(
        base,
        *("--versions", "2", "--label", "linear:first=1", "--poll-seconds", "0.1", "--max-body-mb", "1"),
        *("--enable-batching", "--batching-parameters-file", batching, "--cors-origin", "https://app.example"),
    )
    yield server
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.lines)


def test_status_of_versions(server: Server) -> None:
    answer = server.http.get("/v1/models/linear").json()
    ok = {"error_code": "OK", "error_message": ""}
    assert answer == {
        "model_version_status": [{"version": v, "state": "AVAILABLE", "status": ok} for v in ("3", "2", "1")]
    }
    assert len(server.http.get("/v1/models/linear/versions/2").json()["model_version_status"]) == 1
    assert server.http.get("/v1/models/linear/labels/first").json()["model_version_status"][0]["version"] == "1"
    ready = {"healthy": True, "models": {"linear": True, "odd": True, "words": True}}
    assert server.http.get("/healthz").json() == server.http.get("/healthz/ready").json() == ready
    assert server.http.get("/healthz/live").json() == {"alive": True}
    assert server.http.get("/healthz/models/words").json() == {"healthy": True}
    assert server.http.get("/healthz/models/none").status_code == 404


def test_metadata(server: Server) -> None:
    answer = server.http.get("/v1/models/words/metadata").json()
    assert answer["model_spec"] == {"name": "words", "signature_name": "", "version": "1"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["word"]["dtype"] == "DT_STRING"
    assert signature["inputs"]["x"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
        "unknown_rank": False,
    }
    assert signature["method_name"] == "tensorflow/serving/predict" and signature["defaults"] == {}


@pytest.mark.parametrize(
    ("path", "factor"), [("linear", 3), ("linear/versions/2", 2), ("linear/labels/first", 1), ("linear/versions/1", 1)]
)
def test_predict_goes_to_the_version_that_was_asked_for(server: Server, path: str, factor: int) -> None:
    for row in ([1.0, 2.0, 3.0], [1, 2, 3]):
        assert server.post(f"{path}:predict", {"instances": [row]}).json() == {"predictions": [[6.0 * factor]]}
    named = {"instances": [{"x": [1, 2, 3]}, {"x": [0, 0, 1]}], "signature_name": "serving_default"}
    assert server.post(f"{path}:predict", named).json() == {"predictions": [[6.0 * factor], [1.0 * factor]]}
    for inputs in ([[1, 2, 3]], {"x": [[1, 2, 3]]}):
        assert server.post(f"{path}:predict", {"inputs": inputs}).json() == {"outputs": [[6.0 * factor]]}


def test_values_of_all_types(server: Server) -> None:
    raw = base64.b64encode(b"\xff").decode()
    rows = [{"n": 2**53 + 1, "s": "ä", "b": [True, False]}, {"n": 0, "s": {"b64": raw}, "b": [False, False]}]
    answer = server.post("odd:predict", {"signature_name": "mixed", "instances": rows})
    first, second = answer.json()["predictions"]
    assert first["n"] == 2**53 + 2 and first["s"] == "ä" and first["b"] == [False, True]
    assert first["s_bytes"] == {"b64": base64.b64encode("ä".encode()).decode()}
    assert second["s"] == second["s_bytes"] == {"b64": raw}
    assert second["f"] == -math.inf
    columns = {"n": [1], "s": [{"b64": raw}], "b": [[]]}
    assert server.post("odd:predict", {"signature_name": "mixed", "inputs": columns}).json()["outputs"]["b"] == [[]]
    total = server.post("odd:predict", {"signature_name": "total", "inputs": [1.5, 2]}).json()
    assert total == {"outputs": {"total": 3.5, "x": [1.5, 2.0]}}


def test_classify_and_regress(server: Server) -> None:
    examples = {
        "signature_name": "classify",
        "context": {"x": 1.0},
        "examples": [{"word": "a"}, {"word": {"b64": "YQ"}}, {"word": "b"}],
    }
    answer = server.post("words:classify", examples).json()
    assert answer == {"results": [[["no", 2.0], ["yes", 2.0]]] * 3}
    again = {**examples, "examples": [{"word": "a", "x": 2.0}]}
    assert "of \"context\" again: ['x']" in server.post("words:classify", again).json()["error"]
    answer = server.post("linear:regress", {"signature_name": "regress", "examples": [{"x": [1.0, 2.0, 3.0]}]}).json()
    assert answer == {"results": [18.0]}


ROW = {"x": [1], "word": ["a"]}
BAD: list[tuple[str, Any, int, str]] = [
    ("linear:predict", "", 400, "JSON Parse error"),
    ("linear:predict", b"\xff\xfe", 400, "JSON Parse error"),
    ("linear:predict", "[" * 100_000, 400, "JSON Parse error"),
    ("linear:predict", "[]", 400, "must be an object"),
    ("linear:predict", "{}", 400, 'either "instances"'),
    ("linear:predict", {"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}, 400, 'either "instances"'),
    ("linear:predict", {"instances": []}, 400, "at least one row"),
    ("linear:predict", {"instances": 5}, 400, "at least one row"),
    ("linear:predict", {"instances": [[1, 2]]}, 400, "Matrix size-incompatible"),
    ("linear:predict", {"instances": [[1, 2, 3], [1, 2]]}, 400, "different lengths"),
    ("linear:predict", {"instances": [["1", "2", "3"]]}, 400, "takes float32, but has values of another type"),
    ("linear:predict", {"instances": [[1, 2, None]]}, 400, "values of another type"),
    ("linear:predict", {"instances": [["x" * 500_000, *[1] * 100_000]]}, 400, "values of another type"),
    ("linear:predict", {"instances": [[1, 2, {}]]}, 400, "values of another type"),
    ("linear:predict", {"inputs": "x"}, 400, "values of another type"),
    ("linear:predict", '{"inputs": ' + "[" * 40 + "]" * 40 + "}", 400, "more than 32 dimensions"),
    ("linear:predict", {"instances": [[1, 2, 10**400]]}, 400, "beyond its range"),
    ("linear:predict", {"instances": [{"y": [1, 2, 3]}]}, 400, r"has \['y'\], but the inputs are \['x'\]"),
    ("linear:predict", {"instances": [{"x": [1, 2, 3]}, [1, 2, 3]]}, 400, "Instance 1 is not an object"),
    ("linear:predict", {"signature_name": "none", "instances": [1]}, 400, 'signature name: "none" not found'),
    ("linear:predict", {"signature_name": 5, "instances": [1]}, 400, "must be a string"),
    ("linear:predict", {"signature_name": None, "instances": [[1, 2, 3]]}, 400, "must be a string"),
    ("words:predict", {"instances": [5]}, 400, "must be an object with the inputs"),
    ("words:predict", {"inputs": 5}, 400, '"inputs" must be an object'),
    ("words:predict", {"inputs": {"x": [[1]], "word": [["a"], ["b"]]}}, 400, "must be equal"),
    ("words:predict", {"inputs": {"x": [[1]]}}, 400, r"lacks \['word'\]"),
    ("words:predict", {"instances": [{"x": [1], "word": [5]}]}, 400, '"word" takes strings'),
    ("words:predict", {"instances": [{"x": [1], "word": [{"b64": "?"}]}]}, 400, "not base64"),
    ("words:predict", '{"instances": [{"x": [1], "word": ["\\ud800"]}]}', 400, "surrogate"),
    ("words:predict", {"instances": [ROW, {"x": [1], "word": "a"}]}, 400, "different lengths"),
    ("odd:predict", {"signature_name": "picky", "inputs": [1.5]}, 400, "takes int32, but has values of another type"),
    ("odd:predict", {"signature_name": "picky", "inputs": [2**31]}, 400, "beyond its range"),
    ("odd:predict", {"signature_name": "picky", "inputs": [100]}, 400, "n is too large"),
    ("odd:predict", {"signature_name": "total", "instances": [1.5]}, 400, 'Send "inputs"'),
    ("odd:predict", {"instances": [1]}, 400, 'signature name: "serving_default" not found'),
    ("words:classify", {"examples": [{}]}, 400, "Expected a signature for tensorflow/serving/classify"),
    ("words:classify", {"signature_name": "classify", "examples": []}, 400, "at least one object"),
    ("words:classify", {"signature_name": "classify", "examples": [5]}, 400, "Example 0 is not an object"),
    ("words:classify", {"signature_name": "classify", "context": 5, "examples": [{}]}, 400, "context"),
    (
        "words:classify",
        {"signature_name": "classify", "context": {"word": "a" * 2000}, "examples": [{"x": 1.0}] * 1000},
        413,
        r'"context" is repeated in each of 1000 examples, which is 2\d{6} bytes; the limit is 1048576',
    ),
    ("words:classify", {"signature_name": "classify", "examples": [{"x": 1, "word": "a"}]}, 400, "x"),
    ("words:classify", {"signature_name": "classify", "examples": [{"x": 2**64, "word": "a"}]}, 400, "too large"),
    ("words:classify", {"signature_name": "classify", "examples": [{"x": None}]}, 400, "takes strings"),
    ("linear:regress", {"signature_name": "classify", "examples": [{}]}, 400, "not found"),
    ("none:predict", {"instances": [1]}, 404, r"Servable not found for request: Latest\(none\)"),
    ("linear/versions/9:predict", {"instances": [1]}, 404, r"Specific\(linear, 9\)"),
    ("linear/labels/none:predict", {"instances": [1]}, 400, "Unrecognized servable version label: none"),
    ("linear:explain", {"instances": [1]}, 400, "Malformed request: POST /v1/models/linear:explain"),
    ("linear", {"instances": [1]}, 400, "Malformed request"),
    ("linear/versions/x:predict", {"instances": [1]}, 400, "Malformed request"),
    ("linear:predict", b" " * 2_000_000, 413, "2000000 bytes"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_requests_are_answered_in_json(server: Server, path: str, body: Any, status: int, message: str) -> None:
    answer = server.post(path, body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and re.search(message, answer.json()["error"]), answer.text


def test_other_bad_requests(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(32):
            yield b" " * 65536

    assert server.http.post("/v1/models/linear:predict", content=chunks()).status_code == 413
    assert server.http.get("/v1/models/linear:predict").status_code == 400
    assert server.http.get("/v1/models/none").json() == {"error": "Could not find any versions of model none"}
    assert server.http.get("/v1/models/none").status_code == 404
    assert server.http.get("/v1/models/../../etc/passwd").status_code == 400
    assert server.http.delete("/v1/models/linear").status_code == 405
    # A page whose host name its owner has pointed here is none of ours.
    other = server.http.get("/v1/models/linear", headers={"host": "evil.example"})
    assert other.status_code == 400 and other.json() == {
        "error": "The Host header is 'evil.example', which is not a name of this server."
    }
    assert server.http.get("/healthz").status_code == 200


def test_web_pages_of_others_are_refused(server: Server) -> None:
    def ask(origin: str) -> httpx.Response:
        body = json.dumps({"instances": [[1, 1, 1]]})
        headers = {"origin": origin, "content-type": "text/plain"}
        return server.http.post("/v1/models/linear:predict", content=body, headers=headers)

    assert ask(server.url).status_code == 200
    for origin in ("http://evil.example", "null", server.url.replace("http", "https"), server.url + "0", ""):
        assert ask(origin).status_code == 403
        assert ask(origin).json() == {"error": f"Web pages from {origin!r} are not allowed to use this server."}
    assert server.http.get("/overview", headers={"origin": "http://evil.example"}).status_code == 403


def test_a_server_answers_on_the_address_that_it_was_given(tmp_path: Path) -> None:
    export_model(linear(1.0), str(tmp_path / "m"))
    with contextlib.ExitStack() as usual:
        # The usual port for gRPC is taken: by this test, or by somebody else.
        with contextlib.suppress(OSError):
            usual.enter_context(socket.create_server(("::1", 8500), family=socket.AF_INET6))
        server = Server(tmp_path / "m", "--host", "::1", grpc_port=None)
    try:
        assert server.grpc == "" and any("Only REST is served" in line for line in server.lines)
        assert server.url.startswith("http://[::1]:")
        assert server.post("m:predict", {"instances": [[1, 1, 1]]}).json() == {"predictions": [[3.0]]}
    finally:
        assert server.stop() == 0


def test_under_load_every_request_gets_its_own_answer_and_many_share_a_call(server: Server) -> None:
    def calls() -> tuple[int, int]:
        models = {m["name"]: m for m in server.http.get("/overview").json()["models"]}
        return models["linear"]["versions"][0]["requests"], models["linear"]["versions"][0]["calls"]

    async def ask(client: httpx.AsyncClient, i: int) -> None:
        if i % 10 == 9:
            answer = await client.post("/v1/models/linear:predict", json={"instances": [[i]]})
            assert answer.status_code == 400
            return
        rows = [[i, 0, k] for k in range(i % 4 + 1)]
        answer = await client.post("/v1/models/linear:predict", json={"instances": rows})
        assert answer.json() == {"predictions": [[3.0 * (i + k)] for k in range(i % 4 + 1)]}

    async def load() -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(ask(client, i) for i in range(600)))

    before = calls()
    asyncio.run(load())
    after = calls()
    assert after[0] - before[0] == 600
    assert after[1] - before[1] < 540


def test_a_bad_request_does_not_fail_those_that_run_with_it(server: Server) -> None:
    async def load() -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            bodies = [{"signature_name": "picky", "inputs": [200 if i % 5 == 0 else i % 50]} for i in range(60)]
            answers = await asyncio.gather(*(client.post("/v1/models/odd:predict", json=b) for b in bodies))
            for b, a in zip(bodies, answers, strict=True):
                if a.status_code == 200:
                    assert a.json() == {"outputs": [2 * b["inputs"][0]]}
            return [a.status_code for a in answers]

    assert asyncio.run(load()) == [400 if i % 5 == 0 else 200 for i in range(60)]


def test_new_versions_are_served_bad_ones_are_not_and_removed_ones_go(tmp_path: Path) -> None:
    base = tmp_path / "m"
    export_model(linear(1.0), str(base))
    server = Server(base, "--poll-seconds", "0.1")
    try:
        versions = lambda: {  # noqa: E731
            s["version"]: s["state"] for s in server.http.get("/v1/models/m").json()["model_version_status"]
        }
        ask = lambda: server.post("m:predict", {"instances": [[1, 1, 1]]}).json()  # noqa: E731
        assert ask() == {"predictions": [[3.0]]}
        export_model(linear(2.0), str(base))
        until(lambda: versions() == {"2": "AVAILABLE"})
        assert ask() == {"predictions": [[6.0]]}
        (base / ".3").mkdir()
        (base / ".3" / "saved_model.pb").write_bytes(b"nonsense")
        (base / ".3").rename(base / "3")
        until(lambda: versions() == {"3": "END", "2": "AVAILABLE"})
        status = server.http.get("/v1/models/m/versions/3").json()["model_version_status"][0]["status"]
        assert status["error_code"] == "UNKNOWN" and "Cannot read" in status["error_message"]
        assert ask() == {"predictions": [[6.0]]}
        assert server.http.get("/healthz").status_code == 200
        shutil.rmtree(base / "3")
        export_model(linear(3.0), str(base))
        until(lambda: ask() == {"predictions": [[9.0]]})
        for version in base.iterdir():
            shutil.rmtree(version)
        # In between, a version may be found while half of it is gone, and is shown as one that cannot be loaded.
        until(lambda: server.http.get("/v1/models/m").status_code == 404)
        assert server.http.get("/healthz").status_code == 503
    finally:
        assert server.stop() == 0


def test_the_page_shows_signatures_and_sends_a_row(server: Server) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    with chromium() as browser:
        browser.get(server.url)
        wait = WebDriverWait(browser, 60)
        wait.until(lambda b: b.find_element(By.ID, "health").text == "healthy")
        section = browser.find_element(By.CSS_SELECTOR, "section[data-model=words]")
        assert [r.text for r in section.find_elements(By.CSS_SELECTOR, "tbody tr")] == [
            "in word string (?, 1)",
            "in x float32 (?, 1)",
            "out output_0 float32 (?, 2)",
        ]
        area, answer = (section.find_element(By.CSS_SELECTOR, s) for s in ("textarea", ".answer"))
        assert json.loads(area.get_attribute("value")) == {"word": [""], "x": [0.0]}

        def send(text: str) -> str:
            browser.execute_script("arguments[0].textContent = ''", answer)
            area.clear()
            area.send_keys(text)
            section.find_element(By.CSS_SELECTOR, "button").click()
            wait.until(lambda _: answer.text)
            return str(answer.text)

        assert json.loads(send('{"word": ["a"], "x": [2]}')) == {"predictions": [[3.0, 3.0]]}
        assert "has values of another type" in send('{"word": ["a"], "x": ["<b>2</b>"]}')
        assert "failed" in answer.get_attribute("class")
        assert send("{nonsense").startswith("This is no JSON")
        Select(section.find_element(By.CSS_SELECTOR, ".signature")).select_by_value("classify")
        assert json.loads(send('{"word": "a", "x": 2.0}')) == {"results": [[["no", 3.0], ["yes", 3.0]]]}
        linear_card = browser.find_element(By.CSS_SELECTOR, "section[data-model=linear] .card pre")
        assert json.loads(linear_card.get_attribute("textContent"))["metrics"] == {"loss": 3.0}
        # What the content security policy stopped, or scripts did wrong, would be here; refused rows are known.
        said = [e["message"] for e in browser.get_log("browser") if "400 (Bad Request)" not in e["message"]]
        assert said == []


def test_what_cannot_be_served_is_said(tmp_path: Path, capsys: Any) -> None:
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert "holds no SavedModel" in capsys.readouterr().err
    (tmp_path / "saved_model.pb").write_bytes(b"nonsense")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert "No model can be loaded" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--host", "192.0.2.77"]) == 1
    assert "Cannot listen on 192.0.2.77" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "0", "--batch-rows", "5"]) == 1
    assert "need --enable-batching" in capsys.readouterr().err
    assert main(["serve", "--port", "0"]) == 1
    assert "either DIR or --model-config-file" in capsys.readouterr().err
    for wrong in (["--versions", "0"], ["--label", "x"], ["--batch-rows", "no"]):
        with pytest.raises(SystemExit):
            main(["serve", str(tmp_path), *wrong])
