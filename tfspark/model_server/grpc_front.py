"""TensorFlow Serving's gRPC services, with the same repository, versions, labels and batchers as REST."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfspark.errors import ConfigurationError
from tfspark.model_server import messages, metrics
from tfspark.model_server.core import Core
from tfspark.model_server.errors import Code, Forbidden, RequestError
from tfspark.model_server.model_config import configs_of
from tfspark.saved_models.signatures import CLASSIFY, REGRESS

logger = logging.getLogger(__name__)

PREDICTION_SERVICE = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODEL_SERVICE = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

HANDSHAKE_MS = 30_000
IDLE_MS = 300_000
"""An idle connection is closed after this time; clients reconnect."""


@dataclass(frozen=True)
class Tls:
    """The server's key and certificate in PEM, the CA for client certificates, and whether clients must have one."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None = None
    verify_clients: bool = False


class GrpcFront:
    """A gRPC server in the running event loop.

    Parameters
    ----------
    reloads
        Whether clients may change the served models.
    max_calls
        Largest number of concurrent calls; further calls are rejected.
    """

    def __init__(self, core: Core, reloads: bool, max_calls: int, tls: Tls | None = None) -> None:
        self._core, self._tls = core, tls
        # With grpc.so_reuseport, two servers could share a port.
        options = [
            ("grpc.max_receive_message_length", core.limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", IDLE_MS),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=max_calls)
        self._health = health.aio.HealthServicer()
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(core), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(core, reloads), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (PREDICTION_SERVICE, MODEL_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._updates: set[asyncio.Future[None]] = set()

    def listen(self, address: str) -> int:
        """Listen on an address and return the port.

        Raises
        ------
        ConfigurationError
            If the address is in use or not available.
        """
        try:
            if self._tls is None:
                return self._server.add_insecure_port(address)
            pair = [(self._tls.key, self._tls.certificate)]
            credentials = grpc.ssl_server_credentials(pair, self._tls.client_ca, self._tls.verify_clients)
            return self._server.add_secure_port(address, credentials)
        except (RuntimeError, ValueError):
            raise ConfigurationError(
                f"Cannot listen on {address} for gRPC.",
                hint="Choose another --grpc-port, or look at --ssl-config-file.",
            ) from None

    async def start(self) -> None:
        """Serve, and update the health of the models when it changes."""
        await self._server.start()
        loop = asyncio.get_running_loop()

        def changed() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._update_health)

        self._core.repository.on_change = changed
        self._update_health()

    def _update_health(self) -> None:
        task = asyncio.ensure_future(self._tell_health())
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    async def _tell_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        repository = self._core.repository
        ready = {"": repository.healthy, PREDICTION_SERVICE: repository.healthy, MODEL_SERVICE: True}
        for name, is_ready in ready.items():
            await self._health.set(name, states.SERVING if is_ready else states.NOT_SERVING)

    async def stop(self, seconds: float) -> None:
        """Accept no more calls, and end running calls after `seconds`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)


async def _answered(api: str, model: str, context: Any, answer: Callable[[], Awaitable[Any]], core: Core) -> Any:
    """Return the answer, or abort the call with the code of the error; record the call in the metrics."""
    began = time.monotonic()
    status, problem = Code.CANCELLED.name, ""
    try:
        result = await answer()
        status = "OK"
        return result
    except RequestError as e:
        status, problem = e.code.name, e.message
    except Exception as e:
        logger.exception("a gRPC request failed")
        status, problem = Code.INTERNAL.name, f"{type(e).__name__}: {e}"
    finally:
        known = model if model in core.repository.models() else metrics.UNKNOWN_MODEL
        metrics.requested(known, api, "GRPC", status, time.monotonic() - began)
    await context.abort(grpc.StatusCode[status], problem)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, core: Core) -> None:
        self._core, self._repository, self._most = core, core.repository, core.limits.body_bytes

    async def Predict(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            loaded = messages.find(self._repository, request.model_spec)
            parsing = partial(messages.predict_call, request, loaded, self._most)
            call = await self._core.parse(request.ByteSize(), parsing)
            outputs = await self._core.ask(loaded, call)
            size = sum(a.nbytes for a in outputs.values())
            return await self._core.parse(size, partial(messages.predict_answer, loaded, call, outputs))

        return await _answered("Predict", request.model_spec.name, context, answer, self._core)

    async def Classify(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            response = classification_pb2.ClassificationResponse()
            call, outputs = await self._examples(request, response, CLASSIFY)
            response.result.CopyFrom(messages.classification(call, outputs))
            return response

        return await _answered("Classify", request.model_spec.name, context, answer, self._core)

    async def Regress(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            response = regression_pb2.RegressionResponse()
            call, outputs = await self._examples(request, response, REGRESS)
            response.result.CopyFrom(messages.regression(call, outputs))
            return response

        return await _answered("Regress", request.model_spec.name, context, answer, self._core)

    async def _examples(self, request: Any, response: Any, method: str) -> Any:
        loaded = messages.find(self._repository, request.model_spec)
        parsing = partial(messages.example_call, request.model_spec, request.input, loaded, method, self._most)
        call = await self._core.parse(request.ByteSize(), parsing)
        messages.fill_spec(response.model_spec, loaded, call.signature)
        return call, await self._core.ask(loaded, call)

    async def MultiInference(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            if not request.tasks:
                raise RequestError("Inference request should have at least one task.")
            loaded = messages.find(self._repository, request.tasks[0].model_spec)
            parsing = partial(messages.tasks, request, loaded, self._most)
            calls = await self._core.parse(request.ByteSize(), parsing)
            outputs = await asyncio.gather(*(self._core.ask(loaded, call) for _, call in calls))
            results = [
                messages.inference_result(loaded, method, call, found)
                for (method, call), found in zip(calls, outputs, strict=True)
            ]
            return inference_pb2.MultiInferenceResponse(results=results)

        model = request.tasks[0].model_spec.name if request.tasks else ""
        return await _answered("MultiInference", model, context, answer, self._core)

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            loaded = messages.find(self._repository, request.model_spec)
            return messages.metadata(loaded, list(request.metadata_field))

        return await _answered("GetModelMetadata", request.model_spec.name, context, answer, self._core)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, core: Core, reloads: bool) -> None:
        self._core, self._reloads = core, reloads

    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            return messages.model_status(messages.statuses_of(self._core.repository, request.model_spec))

        return await _answered("GetModelStatus", request.model_spec.name, context, answer, self._core)

    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        async def answer() -> Any:
            if not self._reloads:
                raise Forbidden(
                    "This server does not accept reload requests, because a model can run any code in its graph. Start "
                    "it with --allow-reload-requests to accept them."
                )
            response = model_management_pb2.ReloadConfigResponse()
            try:
                configs = configs_of(request.config)
            except ConfigurationError as e:
                raise RequestError(e.message) from None
            failed = await asyncio.to_thread(self._core.repository.configure, configs)
            if failed:
                response.status.error_code = Code.UNKNOWN.number
                response.status.error_message = "; ".join(f"{m}: {e}" for m, e in failed.items())
            return response

        return await _answered("HandleReloadConfigRequest", "", context, answer, self._core)
