"""The ASGI application: TensorFlow Serving's paths, and a page for people."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
import tensorflow as tf
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tfspark.finite import finite
from tfspark.model_server import gate
from tfspark.model_server import requests as rq
from tfspark.model_server.batching import Arrays, Batcher, BatchLimits
from tfspark.model_server.describe import metadata, overview, version_status
from tfspark.model_server.faults import RequestError, TooLarge
from tfspark.model_server.repository import LoadedVersion, Repository
from tfspark.saved_models.signatures import CLASSIFY, REGRESS, Signature

MAX_BODY_BYTES = 64 << 20

PATH = re.compile(
    r"/v1/models/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?:(?P<metadata>/metadata)|:(?P<verb>predict|classify|regress))?"
)

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class ServerLimits:
    """Attributes are those of `BatchLimits`, and the size of a body that is read, in bytes."""

    batch: BatchLimits = field(default_factory=BatchLimits)
    body_bytes: int = MAX_BODY_BYTES


def make_app(
    repository: Repository, limits: ServerLimits = ServerLimits(), hosts: list[str] | None = None
) -> Starlette:
    """Return the application that serves a repository.

    Parameters
    ----------
    hosts
        Host names and addresses that requests may be addressed to; by default any. A server on the loopback interface
        names its own, so that a web page from elsewhere cannot reach it by a host name that it controls.
    """
    executor = ThreadPoolExecutor(limits.batch.calls, thread_name_prefix="tfspark-model")
    server = _Server(repository, limits, executor)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        executor.shutdown()

    return Starlette(
        routes=[
            Route("/healthz", server.health),
            Route("/overview", server.overview),
            *[Route(path, partial(_page, *page)) for path, page in PAGE.items()],
            Route("/{path:path}", server.api, methods=["GET", "HEAD", "POST"]),
        ],
        middleware=[Middleware(_Gate, hosts=hosts)],
        exception_handlers={
            RequestError: _refuse,
            HTTPException: _refuse_http,
            tf.errors.OpError: _refuse_op,
            Exception: _fail,
        },
        lifespan=lifespan,
    )


class _Gate:
    """Answers requests that `gate` does not let in; before anything else of them is looked at."""

    def __init__(self, app: ASGIApp, hosts: list[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                gate.check(scope["scheme"], headers.get("host", ""), headers.get("origin"), self._hosts)
            except RequestError as e:
                await _answer({"error": e.message}, e.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Server:
    def __init__(self, repository: Repository, limits: ServerLimits, executor: ThreadPoolExecutor) -> None:
        self._repository, self._limits, self._executor = repository, limits, executor

    async def health(self, _: Request) -> Response:
        healthy = self._repository.healthy
        return _answer({"healthy": healthy}, 200 if healthy else 503)

    async def overview(self, _: Request) -> Response:
        return _answer(finite(overview(self._repository)))

    async def api(self, request: Request) -> Response:
        """Answer everything under ``/v1/models``."""
        path = PATH.fullmatch(request.scope["path"])
        asks = path is not None and path["verb"] is not None
        if path is None or asks != (request.method == "POST"):
            raise RequestError(f"Malformed request: {request.method} {request.url.path}")
        version = None if path["version"] is None else int(path["version"])
        if asks:
            loaded = self._repository.find(path["model"], version, path["label"])
            return await self._ask(loaded, path["verb"], await self._body(request))
        if path["metadata"]:
            return _answer(metadata(self._repository.find(path["model"], version, path["label"])))
        return _answer(version_status(self._repository.statuses(path["model"], version, path["label"])))

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        body = bytearray()
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise TooLarge(f"The body has {declared} bytes, more than the {most} that are allowed.")
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise TooLarge(f"The body has more than the {most} bytes that are allowed.")
        except ClientDisconnect:
            raise RequestError("The client left before it had sent its request.") from None
        return bytes(body)

    async def _ask(self, loaded: LoadedVersion, verb: str, body: bytes) -> Response:
        # Large bodies take a while to parse, during which others are served.
        call = await run_in_threadpool(_parse, loaded, verb, body, self._limits.body_bytes)
        batcher = self._batcher(loaded, loaded.signatures[call.signature])
        outputs = await batcher.submit(call.inputs, call.rows)
        answers: dict[str, Callable[..., Any]] = {"classify": rq.classify_answer, "regress": rq.regress_answer}
        return await run_in_threadpool(lambda: _answer(answers.get(verb, rq.predict_answer)(call, outputs)))

    def _batcher(self, loaded: LoadedVersion, signature: Signature) -> Batcher:
        if signature.name not in loaded.batchers:
            joins = all(i.has_rows for i in (*signature.inputs.values(), *signature.outputs.values()))
            call = partial(_call, weakref.ref(loaded), signature.name)
            loaded.batchers[signature.name] = Batcher(call, self._executor, self._limits.batch, joins)
        return loaded.batchers[signature.name]


def _call(version: weakref.ref[LoadedVersion], signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
    """Call a version that holds the batcher, which would keep it alive if it held the version in its turn."""
    loaded = version()
    if loaded is None:
        raise RuntimeError("The version has been dropped, and nobody waits for the answer.")
    return loaded.call(signature, inputs)


def _parse(loaded: LoadedVersion, verb: str, body: bytes, most_bytes: int) -> rq.Call:
    content = rq.parse_json(body)
    signature = rq.signature_of(content, loaded.signatures)
    if verb == "predict":
        return rq.predict_call(content, signature)
    return rq.example_call(content, signature, {"classify": CLASSIFY, "regress": REGRESS}[verb], most_bytes)


async def _page(name: str, kind: str, _: Request) -> Response:
    text = resources.files("tfspark.model_server").joinpath("page", name).read_text("utf-8")
    return Response(text, media_type=kind, headers=SECURITY)


def _answer(content: Any, status: int = 200) -> Response:
    # NaN and Infinity are written as TensorFlow Serving writes them, although JSON has no such numbers.
    return Response(json.dumps(content), status, media_type="application/json", headers=SECURITY)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _answer({"error": error.message}, error.status)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer({"error": f"Malformed request: {request.method} {request.url.path}"}, error.status_code)


async def _refuse_op(_: Request, error: Exception) -> Response:
    """Answer for what the model's graph did not accept."""
    assert isinstance(error, tf.errors.OpError)
    theirs = isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError))
    return _answer({"error": _what_failed(str(error.message))}, 400 if theirs else 500)


def _what_failed(message: str) -> str:
    """Return the line of TensorFlow's message that says what failed, without where in the graph."""
    noise = ("Graph execution error", "Detected at node", "<stack traces", " ", "\t", "Stack trace")
    lines = [line for line in message.splitlines() if line and not line.startswith(noise)]
    return re.sub(r"\{\{.*?\}\} ?", "", lines[0] if lines else message.strip())


async def _fail(_: Request, error: Exception) -> Response:
    return _answer({"error": f"{type(error).__name__}: {error}"}, 500)
