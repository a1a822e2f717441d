"""The ASGI application: the endpoints of TensorFlow Serving's REST API, and a web page."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Callable, Collection
from functools import partial
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tfspark.json_numbers import nonfinite_to_none
from tfspark.model_server import gate, metrics
from tfspark.model_server import requests as rq
from tfspark.model_server.core import Core
from tfspark.model_server.describe import gauges, metadata, overview, version_status
from tfspark.model_server.errors import NotFound, RequestError, TooLarge
from tfspark.model_server.json_values import parse_object
from tfspark.model_server.loaded import LoadedVersion
from tfspark.saved_models.signatures import CLASSIFY, REGRESS

PATH = re.compile(
    r"/v1/models/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?:(?P<metadata>/metadata)|:(?P<verb>predict|classify|regress))?",
    re.IGNORECASE,
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


def make_app(core: Core, hosts: Collection[str] | None = None, origins: Collection[str] = ()) -> Starlette:
    """Return the application that serves a repository.

    Parameters
    ----------
    hosts
        Host names and addresses to accept in the ``Host`` header; any by default. A server on the loopback interface
        accepts only its own names, so that an external web page cannot reach it through DNS rebinding.
    origins
        Origins of web pages to accept in addition to the server's own: ``scheme://host:port``, or ``*`` for all.
    """
    server = _Server(core)
    cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"])
    return Starlette(
        routes=[
            Route("/healthz/live", server.live),
            Route("/healthz/models/{model}", server.ready_model),
            *[Route(path, server.ready) for path in ("/healthz", "/healthz/ready")],
            Route("/overview", server.overview),
            Route(metrics.PATH, server.metrics),
            *[Route(path, partial(_page, *page)) for path, page in PAGE.items()],
            Route("/{path:path}", server.api, methods=["GET", "HEAD", "POST"]),
        ],
        middleware=[Middleware(_Gate, hosts=hosts, origins=origins), *([cors] if origins else [])],
        exception_handlers={RequestError: _refuse, HTTPException: _refuse_http, Exception: _fail},
    )


class _Gate:
    """Rejects requests that do not pass `gate`, before any other processing."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                gate.check(scope["scheme"], headers.get("host", ""), headers.get("origin"), self._hosts, self._origins)
            except RequestError as e:
                await _answer({"error": e.message}, e.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Server:
    def __init__(self, core: Core) -> None:
        self._core, self._repository = core, core.repository

    async def live(self, _: Request) -> Response:
        return _answer({"alive": True})

    async def ready(self, _: Request) -> Response:
        healthy = self._repository.healthy
        return _answer({"healthy": healthy, "models": self._repository.readiness()}, 200 if healthy else 503)

    async def ready_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        ready = self._repository.readiness().get(name)
        if ready is None:
            raise NotFound(f"Could not find any versions of model {name}")
        return _answer({"healthy": ready}, 200 if ready else 503)

    async def overview(self, _: Request) -> Response:
        return _answer(nonfinite_to_none(overview(self._repository)))

    async def metrics(self, _: Request) -> Response:
        text = metrics.METRICS.exposition(gauges(self._repository))
        return Response(text, headers={**SECURITY, "content-type": metrics.CONTENT_TYPE})

    async def api(self, request: Request) -> Response:
        """Answer requests for paths under ``/v1/models``; all other paths are an error."""
        path = PATH.fullmatch(request.scope["path"])
        asks = path is not None and path["verb"] is not None
        if path is None or asks != (request.method == "POST"):
            raise RequestError(f"Malformed request: {request.method} {request.url.path}")
        version = None if path["version"] is None else int(path["version"])
        if asks:
            return await self._counted(path["model"], version, path["label"], path["verb"].lower(), request)
        if path["metadata"]:
            return _answer(metadata(self._repository.find(path["model"], version, path["label"])))
        return _answer(version_status(self._repository.statuses(path["model"], version, path["label"])))

    async def _counted(
        self, model: str, version: int | None, label: str | None, verb: str, request: Request
    ) -> Response:
        began, known, status = time.monotonic(), metrics.UNKNOWN_MODEL, "INTERNAL"
        try:
            loaded = self._repository.find(model, version, label)
            known = loaded.model
            response = await self._ask(loaded, verb, await self._body(request))
            status = "OK"
            return response
        except RequestError as e:
            status = e.code.name
            raise
        finally:
            metrics.requested(known, verb.capitalize(), "REST", status, time.monotonic() - began)

    async def _body(self, request: Request) -> bytes:
        most = self._core.limits.body_bytes
        body = bytearray()
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise TooLarge(f"The body has {declared} bytes; the limit is {most} bytes.")
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise TooLarge(f"The body has more than {most} bytes, which is the limit.")
        except ClientDisconnect:
            raise RequestError("The client disconnected before it had sent its request.") from None
        if request.headers.get("content-encoding", "").strip().lower() == "gzip":
            return await self._core.parse(len(body), partial(_unzipped, bytes(body), most))
        return bytes(body)

    async def _ask(self, loaded: LoadedVersion, verb: str, body: bytes) -> Response:
        call = await self._core.parse(len(body), partial(_parse, loaded, verb, body, self._core.limits.body_bytes))
        outputs = await self._core.ask(loaded, call)
        answers: dict[str, Callable[..., Any]] = {"classify": rq.classify_answer, "regress": rq.regress_answer}
        answer = partial(answers.get(verb, rq.predict_answer), call, outputs)
        return await self._core.parse(sum(a.nbytes for a in outputs.values()), lambda: _answer(answer()))


def _unzipped(body: bytes, most: int) -> bytes:
    inflating = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        found = inflating.decompress(body, most + 1)
    except zlib.error as e:
        raise RequestError(f"Cannot decompress the body: {e}") from None
    if len(found) > most:
        raise TooLarge(f"The decompressed body has more than {most} bytes, which is the limit.")
    if not inflating.eof or inflating.unused_data:
        raise RequestError("The body is not exactly one complete gzip stream.")
    return found


def _parse(loaded: LoadedVersion, verb: str, body: bytes, most_bytes: int) -> rq.Call:
    content = parse_object(body)
    signature = rq.signature_of(content.get("signature_name", ""), loaded.signatures)
    if verb == "predict":
        return rq.predict_call(content, signature, loaded.defaults.get(signature.name))
    return rq.example_call(content, signature, {"classify": CLASSIFY, "regress": REGRESS}[verb], most_bytes)


async def _page(name: str, kind: str, _: Request) -> Response:
    text = (resources.files("tfspark.model_server") / "page" / name).read_text("utf-8")
    return Response(text, media_type=kind, headers=SECURITY)


def _answer(content: Any, status: int = 200) -> Response:
    # NaN and Infinity are written as TensorFlow Serving writes them, although standard JSON does not have them.
    return Response(json.dumps(content), status, media_type="application/json", headers=SECURITY)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _answer({"error": error.message}, error.status)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer({"error": f"Malformed request: {request.method} {request.url.path}"}, error.status_code)


async def _fail(_: Request, error: Exception) -> Response:
    return _answer({"error": f"{type(error).__name__}: {error}"}, 500)
