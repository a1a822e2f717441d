"""The address of this host that other nodes use, and Spark's directories for local files.

The module imports only the standard library: ``tfspark doctor`` sends it to executors that have no tfspark.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile

logger = logging.getLogger(__name__)


def address_towards(host: str, port: int) -> str:
    """Return the address of this host in the network that leads to `host`.

    ``SPARK_LOCAL_IP`` of the executor takes precedence, if it is an address of this host. ``0.0.0.0`` and ``::``
    count as unset: a node can listen on them, but others cannot connect to them.
    """
    if chosen := _own_address(os.environ.get("SPARK_LOCAL_IP", "").strip("[]")):
        return chosen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    infos = socket.getaddrinfo(host, port, family if ":" in host else 0, socket.SOCK_DGRAM)
    family, kind, proto, _, target = infos[0]
    with socket.socket(family, kind, proto) as s:
        s.connect(target)
        return str(s.getsockname()[0])


def _own_address(name: str) -> str | None:
    """Return the address of `name` if it belongs to this host."""
    if not name:
        return None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as s:
            s.bind(address)
            own = str(s.getsockname()[0])
    except OSError as e:
        logger.warning("Ignoring SPARK_LOCAL_IP=%s: it is not an address of this host: %s", name, e)
        return None
    return None if ipaddress.ip_address(own.partition("%")[0]).is_unspecified else own


def local_directories() -> list[str]:
    """Return the writable directories for local files, at least one; Spark removes them when the application ends."""
    from pyspark import SparkFiles

    named = os.environ.get("SPARK_LOCAL_DIRS") or os.environ.get("LOCAL_DIRS") or ""
    # In local mode the variable is not set; the directory of SparkFiles is private to the application.
    candidates = [d for d in named.split(",") if d] or [SparkFiles.getRootDirectory()]
    writable = [os.path.abspath(d) for d in candidates if os.path.isdir(d) and os.access(d, os.W_OK)]
    return list(dict.fromkeys(writable)) or [tempfile.gettempdir()]
