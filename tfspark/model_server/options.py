"""The options of ``tfspark serve``; options that TensorFlow Serving also has use the same names."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Callable
from typing import Any

from tfspark.errors import ConfigurationError

DEFAULT_PORT = 8501
DEFAULT_GRPC_PORT = 8500
"""The default port of TensorFlow Serving."""

MAX_CONNECTIONS = 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command line."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="numbered versions of a model, or one such directory per model; a path, or a URI of hdfs, s3 or gs",
    )
    models.add_argument("--name", help="name of the model, if DIR holds one; by default that of DIR")
    models.add_argument(
        "--versions", type=_versions, default=1, metavar="N|all", help="number of the newest versions to serve"
    )
    models.add_argument(
        "--label",
        action="append",
        default=[],
        type=_label,
        metavar="[MODEL:]LABEL=VERSION",
        help="label of a version; labelled versions are always served; may be repeated",
    )
    models.add_argument(
        "--model-config-file", metavar="FILE", help="models, version policies and labels, instead of DIR"
    )
    models.add_argument(
        "--poll-seconds", type=float, default=2.0, help="pause between two looks at versions and config file"
    )
    models.add_argument(
        "--allow-reload-requests",
        action="store_true",
        help="let gRPC clients change the served models; always allowed on the loopback interface",
    )
    _add_listening(parser.add_argument_group("listening"))
    _add_load(parser.add_argument_group("load"))


def _add_listening(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    group.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="port of REST and the web page; 0 for any free port"
    )
    group.add_argument(
        "--grpc-port",
        type=_grpc_port,
        metavar="PORT|off",
        help=f"port of gRPC; 0 for any free port (default: {DEFAULT_GRPC_PORT}, or no gRPC if it is in use)",
    )
    group.add_argument("--ssl-config-file", metavar="FILE", help="key and certificates for gRPC")
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin scheme://host:port whose web pages may send requests, or '*' for all; may be repeated",
    )
    group.add_argument(
        "--timeout-seconds",
        type=_positive_float,
        default=30.0,
        help="close connections whose request or answer makes no progress for this time",
    )
    group.add_argument(
        "--shutdown-seconds", type=_positive_float, default=10.0, help="time for running requests after SIGTERM"
    )
    group.add_argument(
        "--max-connections", type=_positive, default=MAX_CONNECTIONS, help="largest number of connections"
    )
    group.add_argument("--max-body-mb", type=_positive, default=64, help="largest size of a request in MB")


def _add_load(group: Any) -> None:
    group.add_argument(
        "--calls",
        type=_positive,
        help="concurrent calls of a signature (default: the number of CPUs, or 1 with batching)",
    )
    group.add_argument(
        "--waiting-rows",
        type=_positive,
        default=65_536,
        help="largest number of waiting rows; further requests are rejected",
    )
    group.add_argument(
        "--enable-batching",
        action="store_true",
        help="join waiting requests into one call; only for models that process each row independently",
    )
    group.add_argument("--batch-rows", type=_positive, help="largest number of rows in one joined call (default: 1024)")
    group.add_argument(
        "--batching-parameters-file", metavar="FILE", help="batching parameters in TensorFlow Serving's format"
    )


def _port(text: str) -> int:
    n = int(text)
    if not 0 <= n <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {n}")
    return n


def _grpc_port(text: str) -> int | str:
    return text if text == "off" else _port(text)


def _positive(text: str) -> int:
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {n}")
    return n


def _positive_float(text: str) -> float:
    x = float(text)
    if not x > 0:
        raise argparse.ArgumentTypeError(f"must be > 0, got {text}")
    return x


def _versions(text: str) -> int | None:
    return None if text == "all" else _positive(text)


def _label(text: str) -> tuple[str | None, str, int]:
    """Parse ``[MODEL:]LABEL=VERSION``."""
    name, separator, version = text.partition("=")
    if not separator or not version.isdecimal() or not name:
        raise argparse.ArgumentTypeError(f"must be LABEL=VERSION or MODEL:LABEL=VERSION, got {text!r}")
    model, colon, label = name.rpartition(":")
    return (model if colon else None, label, int(version))


def places_of(options: argparse.Namespace) -> Any:
    """Return the source of the models.

    Raises
    ------
    ConfigurationError
        If not exactly one of a directory and a model config file is given, or if options for a directory are given
        with a model config file.
    """
    from tfspark.model_server.model_config import ConfigFileSource, DirectorySource, VersionPolicy

    if (options.directory is None) == (options.model_config_file is None):
        raise ConfigurationError("tfspark serve needs either DIR or --model-config-file.")
    if options.model_config_file is not None:
        if options.label or options.name or options.versions != 1:
            raise ConfigurationError(
                "--name, --versions and --label work with DIR only; set them in the model config file instead."
            )
        return ConfigFileSource(options.model_config_file)
    labels: dict[str | None, dict[str, int]] = {}
    for model, label, version in options.label:
        labels.setdefault(model, {})[label] = version
    return DirectorySource(options.directory, options.name, VersionPolicy(options.versions), labels)


def limits_of(options: argparse.Namespace) -> Any:
    """Return the limits of the server.

    Raises
    ------
    ConfigurationError
        If batching parameters are invalid, or are given without --enable-batching.
    """
    from tfspark.model_server.batching import BatchLimits
    from tfspark.model_server.core import ServerLimits

    join, file = options.enable_batching, options.batching_parameters_file
    if not join and (file is not None or options.batch_rows is not None):
        raise ConfigurationError("--batch-rows and --batching-parameters-file need --enable-batching.")
    given = _batching_parameters(file) if file is not None else {}
    rows = options.batch_rows or given.get("max_batch_size", 1024)
    enqueued = given.get("max_enqueued_batches")
    calls = options.calls or given.get("num_batch_threads") or (1 if join else os.cpu_count() or 1)
    batch = BatchLimits(
        join=join,
        rows=rows,
        wait_seconds=given.get("batch_timeout_micros", 0) / 1e6,
        allowed_rows=tuple(given.get("allowed_batch_sizes", ())),
        pad=given.get("pad_variable_length_inputs", False),
        waiting_rows=options.waiting_rows if enqueued is None else enqueued * rows,
        calls=calls,
    )
    return ServerLimits(batch, options.max_body_mb << 20)


def _batching_parameters(path: str) -> dict[str, Any]:
    from tfspark.model_server.text_config import BATCHING, read_text

    found = read_text(path, BATCHING)
    sizes = found.get("allowed_batch_sizes", [])
    checks: dict[str, Callable[[Any], bool]] = {
        "max_batch_size": lambda n: n >= 1,
        "num_batch_threads": lambda n: n >= 1,
        "max_enqueued_batches": lambda n: n >= 1,
        "batch_timeout_micros": lambda n: n >= 0,
    }
    for name, fits in checks.items():
        if name in found and not fits(found[name]):
            least = 0 if name == "batch_timeout_micros" else 1
            raise ConfigurationError(f"{path}: {name} must be >= {least}, got {found[name]}.")
    if sizes != sorted(set(sizes)) or any(n < 1 for n in sizes):
        raise ConfigurationError(f"{path}: allowed_batch_sizes must be positive and ascending, got {sizes}.")
    if sizes and sizes[-1] != found.get("max_batch_size", 1024):
        raise ConfigurationError(
            f"{path}: the last of allowed_batch_sizes must be max_batch_size, got {sizes[-1]} and "
            f"{found.get('max_batch_size', 1024)}."
        )
    return found


def tls_of(options: argparse.Namespace) -> Any:
    """Return the key and the certificates for gRPC; None without --ssl-config-file.

    Raises
    ------
    ConfigurationError
        If the file has no key or no certificate, or requires client certificates without a CA.
    """
    from tfspark.model_server.grpc_front import Tls
    from tfspark.model_server.text_config import SSL, read_text

    if options.ssl_config_file is None:
        return None
    found = read_text(options.ssl_config_file, SSL)
    if not found.get("server_key") or not found.get("server_cert"):
        raise ConfigurationError(
            f"{options.ssl_config_file} needs server_key and server_cert.",
            hint="Both are texts in PEM, not paths.",
        )
    if found.get("client_verify") and not found.get("custom_ca"):
        raise ConfigurationError(
            f"{options.ssl_config_file} has client_verify without custom_ca.",
            hint="Add custom_ca, the certificate that signs those of clients.",
        )
    ca = found["custom_ca"].encode() if found.get("custom_ca") else None
    return Tls(found["server_key"].encode(), found["server_cert"].encode(), ca, found.get("client_verify", False))


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
