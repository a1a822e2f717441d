"""The command ``tfspark serve``: serves REST, gRPC and the web page in one process until a signal arrives."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import threading
import time
from importlib.util import find_spec
from types import FrameType
from typing import Any

from tfspark.distribution import install_command
from tfspark.errors import ConfigurationError, DependencyError
from tfspark.host_names import in_url
from tfspark.model_server.options import (
    DEFAULT_GRPC_PORT,
    add_options,
    is_loopback,
    limits_of,
    places_of,
    tls_of,
)
from tfspark.tensorflow_import import import_tensorflow

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 60
"""How long an idle connection stays open; with a shorter time, clients often write to a connection that is closing."""

ENDING_SECONDS = 0.5
"""Part of the shutdown time that is reserved for the server's own cleanup."""


def add_parser(verbs: Any) -> None:
    """Add the ``serve`` command to ``tfspark``."""
    parser = verbs.add_parser(
        "serve",
        help="serve SavedModels by TensorFlow Serving's REST and gRPC APIs",
        description="Serve SavedModels by TensorFlow Serving's REST and gRPC APIs, with a web page to try them. There "
        "is no authentication: listen on other interfaces than loopback only if everybody there may use the models.",
        formatter_class=_Defaults,
    )
    add_options(parser)
    parser.set_defaults(run=run)


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options, except None, False and an empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, [], False) else super()._get_help_string(action)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for module in ("starlette", "uvicorn", "grpc", "grpc_health", "grpc_reflection", "tensorflow_serving"):
        if find_spec(module) is None:
            raise DependencyError(
                f"tfspark serve needs {module}, which is not installed.", hint=f"{install_command('serve')}."
            )
    tensorflow = import_tensorflow()
    # Hides the warning that the loader is deprecated. TensorFlow Serving uses it too, and users cannot change it.
    tensorflow.get_logger().setLevel(logging.ERROR)
    from tfspark.model_server.core import Core
    from tfspark.model_server.repository import Repository

    listener = listen(options.host, options.port)
    try:
        core_limits, tls = limits_of(options), tls_of(options)
        repository = Repository(places_of(options))
        repository.watch(options.poll_seconds)
        core = Core(repository, core_limits)
        asyncio.run(_serve(core, options, listener, tls))
    finally:
        listener.close()
    return 0


async def _serve(core: Any, options: argparse.Namespace, listener: socket.socket, tls: Any) -> None:
    import uvicorn

    from tfspark.model_server.app import make_app
    from tfspark.model_server.http import protocol

    local = is_loopback(options.host)
    front, grpc_port = _grpc_front(core, options, tls, local)
    app = make_app(core, ["localhost", "127.0.0.1", options.host] if local else None, options.cors_origin)
    ending = _Ending(options.shutdown_seconds)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ending.begin()
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            stopping = [] if front is None else [front.stop(ending.left())]
            await asyncio.gather(super().shutdown(sockets), *stopping)

    config = uvicorn.Config(
        app,
        http=protocol(options.timeout_seconds, options.max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.timeout_graceful_shutdown = max(options.shutdown_seconds - 2 * ENDING_SECONDS, 0.0)  # type: ignore[assignment]
    server = Server(config)
    # uvicorn handles signals while it serves, and raises them again afterwards.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    if front is not None:
        await front.start()
        logger.info("gRPC is at %s:%d", in_url(options.host), grpc_port)
    logger.info("models are at http://%s:%d", in_url(options.host), listener.getsockname()[1])
    if not local:
        logger.warning("no authentication: everybody who can reach %s can use the models", options.host)
    await server.serve(sockets=[listener])
    core.close()
    core.repository.close(ending.left())


def _grpc_front(core: Any, options: argparse.Namespace, tls: Any, local: bool) -> tuple[Any, int]:
    """Return the gRPC server and its port, or ``(None, 0)`` if gRPC is off or its default port is in use."""
    from tfspark.model_server.grpc_front import GrpcFront

    if options.grpc_port == "off":
        return None, 0
    front = GrpcFront(core, local or options.allow_reload_requests, options.max_connections, tls)
    port = DEFAULT_GRPC_PORT if options.grpc_port is None else options.grpc_port
    try:
        return front, front.listen(f"{in_url(options.host)}:{port}")
    except ConfigurationError as e:
        if options.grpc_port is not None:
            raise
        logger.warning("%s Only REST is served.", e.message)
        return None, 0


class _Ending:
    """Ends the process when the shutdown time after a signal is over, even if calls are still running."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    def begin(self) -> None:
        """Start the shutdown time; a second signal does not restart it."""
        if self._began is None:
            self._began = time.monotonic()
            timer = threading.Timer(self._seconds - ENDING_SECONDS / 2, self._end)
            timer.daemon = True
            timer.start()

    def left(self) -> float:
        """Return how many seconds running requests still have."""
        passed = 0.0 if self._began is None else time.monotonic() - self._began
        return max(self._seconds - 2 * ENDING_SECONDS - passed, 0.0)

    def _end(self) -> None:
        logger.warning("dropping calls that are still running %g seconds after the signal", self._seconds)
        logging.shutdown()
        # A call of a model cannot be interrupted, and a normal exit of the interpreter would wait for it.
        os._exit(1)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; called before models are loaded, so that the port is known and reserved.

    Raises
    ------
    ConfigurationError
        If the address is in use or not available.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as e:
        raise ConfigurationError(
            f"Cannot listen on {in_url(host)}:{port}: {e}", hint="Choose another --port."
        ) from None
