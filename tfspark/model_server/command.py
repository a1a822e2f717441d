"""``tfspark serve``."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import socket
from typing import Any

from tfspark.distribution import install_command
from tfspark.errors import ConfigurationError, DependencyError
from tfspark.tensorflow_import import import_tensorflow

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8501
"""TensorFlow Serving's for REST."""

KEEP_ALIVE_SECONDS = 60
"""How long a connection without requests stays open: shorter, and busy clients often write to one that just closes."""


def add_parser(verbs: Any) -> None:
    """Add the command to those of ``tfspark``."""
    parser = verbs.add_parser(
        "serve",
        help="serve SavedModels by TensorFlow Serving's REST API",
        description="Serve SavedModels by TensorFlow Serving's REST API, with a page to try them. There is no "
        "authentication: listen on other interfaces than loopback only where everybody may use the models.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "directory", metavar="DIR", help="numbered versions of a model, or one such directory per model"
    )
    parser.add_argument("--name", help="name of the model, if DIR holds one; by default that of DIR")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 for any that is free")
    parser.add_argument("--versions", type=_versions, default=1, metavar="N|all", help="serve so many of the newest")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        type=_label,
        metavar="[MODEL:]LABEL=VERSION",
        help="name a version, which is then served however old it is; may be given often",
    )
    parser.add_argument("--poll-seconds", type=float, default=2.0, help="how often to look for new versions")
    parser.add_argument("--batch-rows", type=_positive, default=1024, help="most rows in one call of the model")
    parser.add_argument("--waiting-rows", type=_positive, default=65_536, help="refuse requests if more rows wait")
    parser.add_argument("--calls", type=_positive, default=1, help="calls of the model at the same time")
    parser.add_argument("--max-body-mb", type=_positive, default=64, help="refuse larger requests")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {n}")
    return n


def _versions(text: str) -> int | None:
    return None if text == "all" else _positive(text)


def _label(text: str) -> tuple[str | None, str, int]:
    """Read ``[MODEL:]LABEL=VERSION``."""
    name, separator, version = text.partition("=")
    if not separator or not version.isdecimal() or not name:
        raise argparse.ArgumentTypeError(f"must be LABEL=VERSION or MODEL:LABEL=VERSION, not {text!r}")
    model, colon, label = name.rpartition(":")
    return (model if colon else None, label, int(version))


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as e:
        raise DependencyError(
            f"tfspark serve needs {e.name}, which is not installed.", hint=f"{install_command('serve')}."
        ) from None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import_tensorflow()
    from tfspark.model_server.app import ServerLimits, make_app
    from tfspark.model_server.batching import BatchLimits
    from tfspark.model_server.repository import Repository, find_models

    listener = listen(options.host, options.port)
    try:
        policy = _policy(options, list(find_models(options.directory, options.name)))
        repository = Repository(options.directory, options.name, policy)
        repository.watch(options.poll_seconds)
        limits = ServerLimits(
            BatchLimits(options.batch_rows, options.waiting_rows, options.calls), options.max_body_mb << 20
        )
        local = _is_loopback(options.host)
        app = make_app(repository, limits, ["localhost", "127.0.0.1", options.host] if local else None)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, log_level="warning", timeout_keep_alive=KEEP_ALIVE_SECONDS
        )
        server = uvicorn.Server(config)
        logger.info("models are at http://%s:%d", _in_url(options.host), listener.getsockname()[1])
        if not local:
            logger.warning("whoever reaches %s may use the models: there is no authentication", options.host)
        # uvicorn ends well on a signal and then sends it again, to whoever handled it before.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
        repository.close()
    finally:
        listener.close()
    return 0


def _policy(options: argparse.Namespace, models: list[str]) -> Any:
    from tfspark.model_server.repository import VersionPolicy

    labels: dict[str, dict[str, int]] = {}
    for model, label, version in options.label:
        if model is None and len(models) > 1:
            raise ConfigurationError(
                f"--label {label}={version} does not say of which model.",
                hint=f"Write MODEL:{label}; there are {models}.",
            )
        for of in [model] if model is not None else models:
            labels.setdefault(of, {})[label] = version
    return VersionPolicy(options.versions, labels)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that the port is known, and taken, before models are loaded.

    Raises
    ------
    ConfigurationError
        If that cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as e:
        raise ConfigurationError(
            f"Cannot listen on {_in_url(host)}:{port}: {e}", hint="Choose another --port."
        ) from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
